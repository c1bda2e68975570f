"""Worlds and what is expected of them, as files: see README.md for the format."""

import collections
import ipaddress
import json
import pathlib

import yaml

FINISHED = ("Succeeded", "Failed")
FLOW_KEYS = {"from", "to", "protocol", "port", "allowed"}
OPTIONAL_FLOW_KEYS = {"family", "analyzer"}
FAMILIES = {"IPv4": 4, "IPv6": 6}


class BadWorld(Exception):
    """A world or its expectations cannot be understood; the text names folder, object and field."""


class Flow(collections.namedtuple("Flow", "source destination family protocol port allowed analyzer")):
    """A connection and whether it is expected to be allowed.

    source, destination: a pod as "namespace/name", or an ipaddress object. family: 4 or 6.
    analyzer: the answer that is recorded for the analyzer: True, False, "rejected"; None where none is recorded.
    """

    def __str__(self):
        return f"{self.source} -> {self.destination} {self.protocol}/{self.port} (IPv{self.family})"


class World(collections.namedtuple("World", "name documents flows")):
    """documents: parsed manifests in the order of the file. flows: the expected judgements."""


def read_world(folder):
    """Reads `world.yaml` and `expected.json`. Raises BadWorld."""
    folder = pathlib.Path(folder)
    try:
        documents = list(_flattened(yaml.load_all((folder / "world.yaml").read_text(), Loader=yaml.CSafeLoader)))
        expected = json.loads((folder / "expected.json").read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadWorld(f"{folder}: {error}") from error
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
            raise BadWorld(f"{folder}/world.yaml: a document is no object with metadata")
        if document.get("kind") in ("Pod", "NetworkPolicy") and not isinstance(document.get("spec"), dict):
            raise BadWorld(f"{folder}/world.yaml: {document['kind']} {document['metadata'].get('name')}: has no spec")
    if not isinstance(expected, list) or not expected:
        raise BadWorld(f"{folder}/expected.json: must be a list of at least one flow")
    pods = {pod_name(pod): pod for pod in pods_of(documents)}
    flows = []
    for index, entry in enumerate(expected):
        try:
            flows.append(_flow(entry, pods))
        except (KeyError, TypeError, ValueError) as error:
            raise BadWorld(f"{folder}/expected.json: [{index}]: {error}") from error
    return World(folder.name, documents, flows)


def pods_of(documents):
    return [document for document in documents if document.get("kind") == "Pod"]


def policies_of(documents):
    return [document for document in documents if document.get("kind") == "NetworkPolicy"]


def namespaces_of(documents):
    return [document for document in documents if document.get("kind") == "Namespace"]


def pod_name(pod):
    metadata = pod["metadata"]
    return f"{metadata.get('namespace') or 'default'}/{metadata['name']}"


def addresses(pod):
    """`status.podIPs`, or `status.podIP` where that is all there is, as {4: address, 6: address}."""
    status = pod.get("status") or {}
    texts = [entry["ip"] for entry in status.get("podIPs") or []] or [status.get("podIP")]
    found = [ipaddress.ip_address(text) for text in texts if text]
    return {address.version: address for address in found}


def is_finished(pod):
    return (pod.get("status") or {}).get("phase") in FINISHED


def is_on_host_network(pod):
    return bool((pod.get("spec") or {}).get("hostNetwork"))


def _flattened(documents):
    for document in documents:
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            yield from _flattened(document["items"])
        elif document is not None:
            yield document


def _flow(entry, pods):
    missing, unknown = FLOW_KEYS - entry.keys(), entry.keys() - FLOW_KEYS - OPTIONAL_FLOW_KEYS
    if missing or unknown:
        raise ValueError(f"keys missing: {sorted(missing)}, keys unknown: {sorted(unknown)}")
    if entry["protocol"] not in ("TCP", "UDP", "SCTP"):
        raise ValueError(f"protocol: {entry['protocol']!r} is not TCP, UDP or SCTP")
    if type(entry["port"]) is not int or not 1 <= entry["port"] <= 65535:
        raise ValueError(f"port: {entry['port']!r} is not from 1 to 65535")
    if type(entry["allowed"]) is not bool:
        raise ValueError(f"allowed: {entry['allowed']!r} is not true or false")
    if entry.get("analyzer") not in (None, True, False, "rejected"):
        raise ValueError(f"analyzer: {entry['analyzer']!r} is not true, false or \"rejected\"")
    source, of_source = _end("from", entry, pods)
    destination, of_destination = _end("to", entry, pods)
    shared = of_source & of_destination
    if entry.get("family") not in (None, *FAMILIES):
        raise ValueError(f"family: {entry['family']!r} is not IPv4 or IPv6")
    family = FAMILIES[entry["family"]] if entry.get("family") else min(shared, default=None)
    if family not in shared:
        raise ValueError("the two ends do not both have an address of the family")
    return Flow(source, destination, family, entry["protocol"], entry["port"], entry["allowed"], entry.get("analyzer"))


def _end(key, entry, pods):
    """An end of a flow and the families it has."""
    text = entry[key]
    if "/" not in text:
        address = ipaddress.ip_address(text)
        return address, {address.version}
    if text not in pods:
        raise ValueError(f"{key}: there is no pod {text}")
    return text, set(addresses(pods[text]))
