"""Asks network-config-analyzer (PyPI, np-guard) what the policies of a world allow.

The analyzer is used as a library: its command takes a second per call and answers with summarized rules, while what
its own connectivity query is printed from (the set of all allowed connections) answers any number of questions.
Reading of objects, selection, named ports and the algebra are the analyzer's; nothing of Sluice is used.
test_analyzer.py compares this use with the command.
"""

import contextlib
import io

from worlds import pod_name, pods_of


class _Nowhere(io.TextIOBase):
    def write(self, text):
        return len(text)


# The analyzer's modules keep the stderr they find when they are imported. What they write there is advice on style.
with contextlib.redirect_stderr(_Nowhere()):
    from nca.CoreDS.Peer import BasePeerSet
    from nca.NetworkConfig.NetworkConfig import NetworkConfig
    from nca.NetworkConfig.PeerContainer import PeerContainer
    from nca.NetworkConfig.PoliciesFinder import PoliciesFinder
    from nca.NetworkConfig.TopologyObjectsFinder import NamespacesFinder, PodsFinder
    from nca.Resources.PolicyResources.NetworkPolicy import PolicyConnectionsFilter

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


class Rejected(Exception):
    """The analyzer refuses a world; the text is its reason."""


class Analysis:
    """What the analyzer says about one world."""

    def __init__(self, documents):
        """documents: Namespace, Pod and NetworkPolicy objects as parsed YAML; other kinds are ignored.

        Raises Rejected.
        """
        BasePeerSet.reset()  # The analyzer numbers pods in a singleton.
        with contextlib.redirect_stdout(_Nowhere()):
            try:
                self._connections = self._all_allowed_connections(documents)
            except SyntaxError as error:  # The analyzer's own way to say that an object is wrong.
                raise Rejected(error.msg) from error
            except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:  # It fell over one.
                raise Rejected(f"{type(error).__name__}: {error}") from error
        # IPv4, IPv6 and pods follow each other on one line of integers.
        line = BasePeerSet()
        self._first = {4: line.min_ipv4_index, 6: line.min_ipv6_index}
        self._pods = {pod.full_name(): line.min_pod_index + index for pod, index in line.peer_to_index.items()}
        # It keeps two of the equal pods of a workload.
        for name in map(pod_name, pods_of(documents)):
            if name not in self._pods:
                raise Rejected(f"leaves out pod {name}")

    @staticmethod
    def _all_allowed_connections(documents):
        namespaces = NamespacesFinder()
        pods = PodsFinder()
        pods.namespaces_finder = namespaces
        policies = PoliciesFinder()
        for document in documents:
            namespaces.parse_yaml_code_for_ns(document)
        for document in documents:
            pods.add_eps_from_yaml(document)
        container = PeerContainer(pods.peer_set, namespaces.namespaces, [], pods.representative_peers)
        policies.set_peer_container(container)
        for document in documents:
            policies.parse_yaml_code_for_policy(document, "world.yaml")
        policies.parse_policies_in_parse_queue()
        config = NetworkConfig("world", container, policies)
        wanted = PolicyConnectionsFilter.only_all_allowed_connections()
        return config.allowed_connections(res_conns_filter=wanted).all_allowed_conns

    def allows(self, source, destination, protocol, port):
        """Whether the policies allow a connection.

        source, destination: a pod as "namespace/name", or an ipaddress object; at least one is a pod.
        """
        point = {
            "src_peers": self._number(source),
            "dst_peers": self._number(destination),
            "protocols": PROTOCOLS[protocol],
            "dst_ports": port,
        }
        # The set is a tree with a level per dimension that matters; the keys of a level are disjoint sets of values.
        node = self._connections
        for dimension in self._connections.active_dimensions:
            value = point[dimension]
            for values, below in node.layers.items():
                if any(interval.start <= value <= interval.end for interval in values):
                    node = below
                    break
            else:
                return False
        return True

    def _number(self, end):
        return self._pods[end] if isinstance(end, str) else self._first[end.version] + int(end)
