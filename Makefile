# Sluice. `make run` shows it, `make test` proves it, `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
CNI_BIN ?= /opt/cni/bin
DESTDIR ?=
ENGINE ?= nftables
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help deps build run test check unit lab-test vm-test policy-check format install uninstall clean

help: ## Print this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

deps: ## Install the Debian packages that building and testing need.
	@scripts/dependencies

build: deps ## Build bin/sluice (static), bin/sluice-agent and bin/dpctl.
	@scripts/build

run: build ## Bring up a cluster in namespaces, show Services at work, leave a clean machine (ENGINE=ebpf: the other engine).
	@echo "== demo: two nodes and a small shop, in network namespaces, by $(ENGINE)"
	@$(SUDO) bin/dpctl lab demo --engine $(ENGINE)

test: build check lab-test vm-test policy-check ## Everything that CI runs: all the tests below.

check: deps ## Fast: format, lint, warnings as errors, unit and kernel tests.
	@scripts/check

unit: check

lab-test: build ## Tests that run the built programs in labs.
	@scripts/lab-test

vm-test: build ## Tests that need a machine of their own: in a virtual one (fetches QEMU and a kernel once).
	@scripts/vm-test

policy-check: deps ## Compare what policies mean with another program's reading (from PyPI).
	@scripts/policy-check

format: ## Rewrite the sources in the project's format.
	@swift format --in-place --recursive --parallel Package.swift Sources Plugins Tests

install: build ## Install the programs (PREFIX, CNI_BIN, DESTDIR).
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" CNI_BIN="$(CNI_BIN)" scripts/install

uninstall: ## Remove the programs.
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" CNI_BIN="$(CNI_BIN)" scripts/install --remove

clean: ## Remove everything that was built.
	rm -rf .build .build-static .build-policy-check bin
