#!/usr/bin/env python3
"""Writes N Services with M endpoints each, and P pods, as manifests: manifests.py FOLDER SERVICES ENDPOINTS [PODS]."""
import os
import sys

folder, services, endpoints = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pods = int(sys.argv[4]) if len(sys.argv) > 4 else 0
per_file = 100
os.makedirs(folder, exist_ok=True)


def service(n):
    text = f"""apiVersion: v1
kind: Service
metadata: {{name: svc-{n}, namespace: ns-{n % 50}}}
spec:
  clusterIP: 10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}
  ports: [{{name: http, port: 80, protocol: TCP, targetPort: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: svc-{n}-ipv4
  namespace: ns-{n % 50}
  labels: {{kubernetes.io/service-name: svc-{n}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
"""
    for e in range(endpoints):
        k = n * endpoints + e
        text += f"""- addresses: ["10.{128 + k // 65536}.{k // 256 % 256}.{k % 256}"]
  conditions: {{ready: true, serving: true, terminating: false}}
  nodeName: node-{k % 100}
  targetRef: {{kind: Pod, name: pod-{k}, namespace: ns-{n % 50}}}
"""
    return text


def pod(n):
    return f"""apiVersion: v1
kind: Pod
metadata: {{name: pod-{n}, namespace: ns-{n % 50}, labels: {{app: app-{n % 500}, pod-template-hash: "{n % 1000}"}}}}
spec: {{nodeName: node-{n % 100}, containers: [{{name: main, ports: [{{name: http, containerPort: 8080}}]}}]}}
status: {{phase: Running, podIP: 10.{128 + n // 65536}.{n // 256 % 256}.{n % 256}, podIPs: [{{ip: 10.{128 + n // 65536}.{n // 256 % 256}.{n % 256}}}]}}
"""


for start in range(0, services, per_file):
    numbers = range(start + 1, min(start + per_file, services) + 1)
    with open(f"{folder}/services-{start // per_file:04}.yaml", "w") as out:
        out.write("---\n".join(service(n) for n in numbers))
for start in range(0, pods, per_file):
    with open(f"{folder}/pods-{start // per_file:04}.yaml", "w") as out:
        out.write("---\n".join(pod(n) for n in range(start + 1, min(start + per_file, pods) + 1)))
