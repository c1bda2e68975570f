# Sluice. `make run` shows it, `make test` proves it, `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
CNI_BIN ?= /opt/cni/bin
DESTDIR ?=
ENGINE ?= nftables
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help deps build run play test check unit lab-test vm-test test-kernels policy-check podman-check alert-check chart-check fuzz format install uninstall clean

help: ## Print this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

deps: ## Install the Debian packages that building and testing need.
	@scripts/dependencies

build: deps ## Build bin/sluice (static), bin/sluice-agent and bin/dpctl.
	@scripts/build

run: build ## Bring up a cluster in namespaces, show Services at work, leave a clean machine (ENGINE=ebpf: the other engine).
	@echo "== demo: two nodes and a small shop, in network namespaces, by $(ENGINE)"
	@$(SUDO) bin/dpctl lab demo --engine $(ENGINE)

play: build ## Bring up a cluster with an API server and open a shell in which kubectl changes it (ENGINE=ebpf).
	@command -v kubectl >/dev/null || scripts/dependencies kubernetes-client
	@ENGINE=$(ENGINE) scripts/play

# What runs side by side keeps one processor busy each. The longest are first.
test: build ## Everything that CI runs: all the tests below.
	@scripts/check first
	@scripts/lab-test
	@scripts/side-by-side "scripts/check beside" "scripts/vm-test 6.1" scripts/policy-check "scripts/vm-test 6.12" \
	  scripts/podman-check scripts/alert-check scripts/chart-check

check: deps ## Fast: format, lint, warnings as errors, unit and kernel tests.
	@scripts/check

unit: check

lab-test: build ## Tests that run the built programs in labs.
	@scripts/lab-test

vm-test: build ## Tests that need a machine of their own: in virtual ones (fetches QEMU and two kernels once).
	@scripts/vm-test

test-kernels: build ## Tests on every kernel that Sluice is for: 5.10, 6.1, 6.12, sid; half an hour (not part of make test).
	@scripts/test-kernels

podman-check: build ## Have Debian's podman run containers on the plugin, in namespaces of its own.
	@scripts/podman-check

alert-check: ## Try the alert rules with promtool (from Debian, unpacked, not installed).
	@scripts/alert-check

chart-check: ## Compare the Helm chart with the plain YAML and give it wrong values (Helm comes from PyPI).
	@scripts/chart-check

policy-check: deps ## Compare what policies mean with another program's reading (from PyPI).
	@scripts/policy-check

fuzz: deps ## Read hostile bytes with the decoders of what API servers send, ten minutes (not part of make test).
	@scripts/fuzz

format: ## Rewrite the sources in the project's format.
	@swift format --in-place --recursive --parallel Package.swift Sources Plugins Tests

install: build ## Install the programs (PREFIX, CNI_BIN, DESTDIR).
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" CNI_BIN="$(CNI_BIN)" scripts/install

uninstall: ## Remove the programs.
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" CNI_BIN="$(CNI_BIN)" scripts/install --remove

clean: ## Remove everything that was built.
	rm -rf .build .build-static .build-policy-check bin
