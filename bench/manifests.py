#!/usr/bin/env python3
"""Writes N Services with M endpoints each as manifests: manifests.py FOLDER SERVICES ENDPOINTS [DUAL]."""
import os
import sys

folder, services, endpoints = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dual = len(sys.argv) > 4
per_file = 100
os.makedirs(folder, exist_ok=True)


def service(n):
    ips = [f"10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}"]
    if dual:
        ips.append(f"fd00:10:96::{n:x}")
    text = f"""apiVersion: v1
kind: Service
metadata: {{name: svc-{n}, namespace: ns-{n % 50}}}
spec:
  clusterIP: {ips[0]}
  clusterIPs: [{', '.join('"%s"' % ip for ip in ips)}]
  ports: [{{name: http, port: 80, protocol: TCP, targetPort: 8080}}]
"""
    for family, prefix in (("IPv4", None), ("IPv6", "v6")) if dual else (("IPv4", None),):
        text += f"""---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: svc-{n}-{family.lower()}
  namespace: ns-{n % 50}
  labels: {{kubernetes.io/service-name: svc-{n}}}
addressType: {family}
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
"""
        for e in range(endpoints):
            k = n * endpoints + e
            address = (
                f"fd00:10:244::{k >> 16:x}:{k & 0xffff:x}" if prefix else f"10.{128 + k // 65536}.{k // 256 % 256}.{k % 256}"
            )
            text += f"""- addresses: ["{address}"]
  conditions: {{ready: true, serving: true, terminating: false}}
  nodeName: node-{k % 100}
  targetRef: {{kind: Pod, name: pod-{k}, namespace: ns-{n % 50}}}
"""
    return text


for start in range(0, services, per_file):
    numbers = range(start + 1, min(start + per_file, services) + 1)
    with open(f"{folder}/services-{start // per_file:04}.yaml", "w") as out:
        out.write("---\n".join(service(n) for n in numbers))
