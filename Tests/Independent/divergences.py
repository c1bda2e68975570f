"""Where network-config-analyzer is known to read a NetworkPolicy otherwise than Kubernetes does, or not at all.

A divergence is known by a *rewriting*: the same world, said in a way that the analyzer understands. A judgement that
differs counts as known only where the analyzer agrees once these rewritings are applied; so a real disagreement
cannot hide behind an `ipBlock` that happens to be there. Each class has a minimal world in the folder of its name, and
check.py fails where that world does not diverge any more.
"""

import copy
import ipaddress

from worlds import (
    addresses,
    is_finished,
    is_on_host_network,
    namespaces_of,
    pod_name,
    pods_of,
    policies_of,
)

POD_MARK = "sluice.dev/pod-number"
NO_SUCH_VALUE = "sluice.no-such-value"
EMPTY_VALUE = "sluice.empty-value"


class Divergence:
    """A class of known divergences and its rewriting.

    name: also the name of the reproducer's folder. refused: the analyzer refuses such a world altogether.
    by_family: the rewriting is another one for IPv4 than for IPv6.
    """

    def __init__(self, name, rewrite, refused=False, by_family=False):
        self.name = name
        self.refused = refused
        self.by_family = by_family
        #: Called with documents, which it may change, and a family; returns those that stay, or None where all do.
        self.rewrite = rewrite

    def is_in(self, documents, family):
        """Whether a world has something of this class, for flows of a family (4 or 6)."""
        return rewritten(documents, [self.name], family) != documents


def rewritten(documents, names, family):
    """The world as the analyzer is to be told of it: `documents` with the rewritings of these classes."""
    documents = copy.deepcopy(documents)
    for divergence in DIVERGENCES:
        if divergence.name in names:
            kept = divergence.rewrite(documents, family)
            documents = documents if kept is None else kept
    return documents


# MARK: Worlds that the analyzer refuses


def _inert_rules(documents, _):
    """Rules of a direction that an explicit policyTypes does not list are inert."""
    for policy in policies_of(documents):
        spec = policy["spec"]
        for direction in ("Ingress", "Egress"):
            if spec.get("policyTypes") and direction not in spec["policyTypes"]:
                spec.pop(direction.lower(), None)


def _policy_types_order(documents, _):
    """policyTypes is a set; the analyzer knows its elements in one order only."""
    for policy in policies_of(documents):
        types = policy["spec"].get("policyTypes")
        if types:
            policy["spec"]["policyTypes"] = [one for one in ("Ingress", "Egress") if one in types]


def _missing_pod_selector(documents, _):
    """A podSelector that is missing or null is the empty one."""
    for policy in policies_of(documents):
        if policy["spec"].get("podSelector") is None:
            policy["spec"]["podSelector"] = {}


def _leading_zeros(documents, _):
    """Stored objects may have decimals with leading zeros: 010.0.0.0/8 is 10.0.0.0/8."""
    for block in _blocks(documents):
        block["cidr"] = _without_leading_zeros(block["cidr"])
        if block.get("except"):
            block["except"] = [_without_leading_zeros(cidr) for cidr in block["except"]]


def _without_leading_zeros(cidr):
    if ":" in cidr:
        return cidr
    base, _, length = cidr.partition("/")
    return ".".join(str(int(part)) for part in base.split(".")) + "/" + length


# MARK: Worlds that it reads otherwise


def _audit_mode(documents, _):
    """A policy in audit mode (Sluice's own annotation) drops nothing."""
    return [document for document in documents if not _is_audit(document)]


def _is_audit(document):
    annotations = document["metadata"].get("annotations") or {}
    return document.get("kind") == "NetworkPolicy" and annotations.get("sluice.dev/mode") == "audit"


def _finished_pods(documents, _):
    """A pod that has succeeded or failed is neither subject nor peer; its address may be another's."""
    return [document for document in documents if document.get("kind") != "Pod" or not is_finished(document)]


def _host_network(documents, _):
    """A pod on the host's network is its node's address, which policies name by ipBlock only."""
    return [document for document in documents if document.get("kind") != "Pod" or not is_on_host_network(document)]


def _empty_egress(documents, _):
    """Without policyTypes, a policy isolates for egress where it has an egress *rule*: `egress: []` is none."""
    for policy in policies_of(documents):
        spec = policy["spec"]
        if not spec.get("policyTypes") and not spec.get("egress"):
            spec.pop("egress", None)


def _namespace_empty_value(documents, _):
    """A namespace without a label is not one whose label is empty: the empty value gets a name."""
    for namespace in namespaces_of(documents):
        _name_empty_values(namespace["metadata"].get("labels") or {})
    for selector in _peer_selectors(documents, "namespaceSelector"):
        _name_empty_values(selector.get("matchLabels") or {})
        for requirement in selector.get("matchExpressions") or []:
            if requirement.get("values"):
                requirement["values"] = [value or EMPTY_VALUE for value in requirement["values"]]


def _name_empty_values(labels):
    for key, value in labels.items():
        labels[key] = value or EMPTY_VALUE


def _exists_elsewhere(documents, _):
    """Exists and DoesNotExist of a podSelector hold in other namespaces too: In and NotIn do for the analyzer."""
    values = {}
    for pod in pods_of(documents):
        for key, value in (pod["metadata"].get("labels") or {}).items():
            values.setdefault(key, set()).add(value)
    for selector in _peer_selectors(documents, "podSelector", beside="namespaceSelector"):
        for requirement in selector.get("matchExpressions") or []:
            operator = {"Exists": "In", "DoesNotExist": "NotIn"}.get(requirement["operator"])
            if operator:
                requirement["operator"] = operator
                requirement["values"] = sorted(values.get(requirement["key"], {NO_SUCH_VALUE}))


def _sidecar_ports(documents, _):
    """Ports of an init container that is always restarted can be named as any other's."""
    for pod in pods_of(documents):
        for container in pod["spec"].get("initContainers") or []:
            if container.get("restartPolicy") == "Always" and container.get("ports"):
                pod["spec"]["containers"].append({"name": container["name"], "ports": container.pop("ports")})


def _port_name_twice(documents, _):
    """A name that a pod gives to several ports means all of them: the analyzer knows the last. Each gets its own."""
    extra = {}  # Name -> the names of the second, third, ... port of that name.
    for pod in pods_of(documents):
        seen = {}
        for container in pod["spec"].get("containers") or []:
            for port in container.get("ports") or []:
                name = port.get("name")
                if not name:
                    continue
                seen[name] = seen.get(name, 0) + 1
                if seen[name] == 1:
                    continue
                names = extra.setdefault(name, [])
                if len(names) < seen[name] - 1:
                    names.append(f"x{list(extra).index(name)}-{seen[name]}")
                port["name"] = names[seen[name] - 2]
    for rule in _rules(documents):
        for port in list(rule.get("ports") or []):
            rule["ports"] += [{**port, "port": name} for name in extra.get(port.get("port"), [])]


def _ip_block_and_pods(documents, family):
    """An ipBlock holds the pods whose addresses it covers: they are added as a selector of their own."""
    numbers = {}
    for pod in pods_of(documents):
        address = addresses(pod).get(family)
        if address:
            numbers[str(len(numbers))] = (pod, address)
    for rule in _rules(documents):
        for key in ("from", "to"):
            added = [_pods_in(peer["ipBlock"], numbers) for peer in rule.get(key) or [] if peer.get("ipBlock")]
            if any(added):
                rule[key] += [_pods_numbered(covered) for covered in added if covered]
                for number, (pod, _) in numbers.items():
                    pod["metadata"]["labels"] = {**(pod["metadata"].get("labels") or {}), POD_MARK: number}


def _pods_in(block, numbers):
    inside = _network(block["cidr"])
    holes = [_network(cidr) for cidr in block.get("except") or []]
    return [
        number
        for number, (_, address) in numbers.items()
        if address in inside and not any(address in hole for hole in holes)
    ]


def _pods_numbered(numbers):
    requirement = {"key": POD_MARK, "operator": "In", "values": numbers}
    return {"namespaceSelector": {}, "podSelector": {"matchExpressions": [requirement]}}


def _network(cidr):
    return ipaddress.ip_network(_without_leading_zeros(cidr), strict=False)


# MARK: Parts of policies


def _rules(documents):
    for policy in policies_of(documents):
        for direction in ("ingress", "egress"):
            yield from policy["spec"].get(direction) or []


def _peers(documents):
    for rule in _rules(documents):
        for key in ("from", "to"):
            yield from rule.get(key) or []


def _blocks(documents):
    return [peer["ipBlock"] for peer in _peers(documents) if peer.get("ipBlock")]


def _peer_selectors(documents, key, beside=None):
    """Selectors of peers that are there, are not null, and whose peer also has a selector `beside`."""
    return [
        peer[key]
        for peer in _peers(documents)
        if peer.get(key) is not None and (beside is None or peer.get(beside) is not None)
    ]


# MARK: The list

# In the order in which rewritings are applied: pods leave first, then selectors and ports change, then blocks become
# selectors.
DIVERGENCES = [
    Divergence("inert-rules", _inert_rules, refused=True),
    Divergence("policy-types-order", _policy_types_order, refused=True),
    Divergence("missing-pod-selector", _missing_pod_selector, refused=True),
    Divergence("leading-zeros", _leading_zeros, refused=True),
    Divergence("audit-mode", _audit_mode),
    Divergence("finished-pods", _finished_pods),
    Divergence("host-network", _host_network),
    Divergence("empty-egress", _empty_egress),
    Divergence("namespace-empty-value", _namespace_empty_value),
    Divergence("exists-elsewhere", _exists_elsewhere),
    Divergence("sidecar-ports", _sidecar_ports),
    Divergence("port-name-twice", _port_name_twice),
    Divergence("ip-block-and-pods", _ip_block_and_pods, by_family=True),
]


# MARK: Judgements that no policy makes

POD_TO_ITSELF = "pod-to-itself"
OWN_NODE = "own-node"
ALWAYS_ALLOWED = [POD_TO_ITSELF, OWN_NODE]


def node_addresses(documents):
    """The addresses of each pod's node, by the pod's name: the analyzer knows no nodes.

    They are `status.hostIP` and `status.hostIPs` of the pod and `status.addresses` of the Node that it names.
    """
    nodes = {document["metadata"]["name"]: document for document in documents if document.get("kind") == "Node"}
    found = {}
    for pod in pods_of(documents):
        status = pod.get("status") or {}
        texts = [status.get("hostIP")] + [entry["ip"] for entry in status.get("hostIPs") or []]
        node = nodes.get(pod["spec"].get("nodeName")) or {}
        for entry in (node.get("status") or {}).get("addresses") or []:
            if entry.get("type") in ("InternalIP", "ExternalIP"):
                texts.append(entry["address"])
        found[pod_name(pod)] = {ipaddress.ip_address(text) for text in texts if text}
    return found


def always_allowed(source, destination, nodes):
    """Which of ALWAYS_ALLOWED a flow is, or None: a pod reaches itself, and its own node reaches it, always.

    source, destination: as for Analysis.allows. nodes: as `node_addresses` gives them.
    """
    if source == destination:
        return POD_TO_ITSELF
    if not isinstance(source, str) and isinstance(destination, str) and source in nodes[destination]:
        return OWN_NODE
    return None
