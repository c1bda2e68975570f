"""Compares what is expected of a world with what the analyzer says, and explains each difference or reports it."""

import collections

from analyzer import Analysis, Rejected
from divergences import ALWAYS_ALLOWED, DIVERGENCES, always_allowed, node_addresses, rewritten
from worlds import BadWorld, addresses, is_finished, is_on_host_network, pod_name, pods_of

CLASSES = [divergence.name for divergence in DIVERGENCES] + ALWAYS_ALLOWED
REFUSED = {divergence.name for divergence in DIVERGENCES if divergence.refused}
BY_FAMILY = {divergence.name for divergence in DIVERGENCES if divergence.by_family}


class Report(collections.namedtuple("Report", "agreed unasked known refused disagreements")):
    """agreed: number of flows that the analyzer judges as expected, the world as it is.
    unasked: number of flows without a pod, which no policy has a say in; they are expected to be allowed.
    known: Counter of the others that are explained, by class (joined with "+" where it takes several).
    refused: names of the classes for which the analyzer refuses the world as it is.
    disagreements: lines of text; none where all is well.
    """


def compare(world):
    """A Report on a world. Raises BadWorld."""
    comparison = _Comparison(world)
    refused = [name for name in comparison.present if name in REFUSED]
    report = Report(0, 0, collections.Counter(), refused, [])
    agreed = unasked = 0
    for index, flow in enumerate(world.flows):
        try:
            judged = comparison.answer(index, comparison.present)
            plain = comparison.answer(index, refused)
        except Rejected as reason:
            report.disagreements.append(f"{world.name}: the analyzer refuses the world: {reason}")
            break
        # Also where the world as it is gives the expected answer: two mistakes may cancel out.
        if judged != flow.allowed:
            report.disagreements.append(
                f"{world.name}: {flow}: expected {_word(flow.allowed)}, the analyzer says {_word(judged)}"
            )
        elif plain != flow.allowed:
            report.known["+".join(comparison.needed(index))] += 1
        elif comparison.has_pod(index):
            agreed += 1
        else:
            unasked += 1
    return report._replace(agreed=agreed, unasked=unasked)


def check_reproducer(world):
    """What is wrong with a reproducer of the class that it is named after, as lines of text. Raises BadWorld."""
    comparison = _Comparison(world)
    problems = []
    diverges = False
    for index, flow in enumerate(world.flows):
        try:
            answer = comparison.answer(index, [])
        except Rejected:
            answer = "rejected"
        diverges = diverges or answer != flow.allowed
        if answer != flow.analyzer:
            problems.append(
                f"{world.name}: {flow}: the analyzer's recorded answer is {_word(flow.analyzer)}, "
                f"it now says {_word(answer)}"
            )
    if not diverges:
        problems.append(f"{world.name}: nothing diverges any more: the class can go")
    report = compare(world)
    problems += report.disagreements
    explained = {*report.known, *report.refused}
    if diverges and explained != {world.name}:
        problems.append(f"{world.name}: is explained by {sorted(explained)}")
    return problems


def _word(answer):
    return {True: "allowed", False: "denied", None: "missing"}.get(answer, answer)


class _Comparison:
    """The analyzer's answers to the flows of a world, under any set of rewritings."""

    def __init__(self, world):
        self._world = world
        self._pods = {pod_name(pod): pod for pod in pods_of(world.documents)}
        self._pod_at = self._pods_by_address()
        self._nodes = node_addresses(world.documents)
        self._analyses = {}
        families = {flow.family for flow in world.flows}
        #: Names of the classes that the world has something of; those that any world may have are always among them.
        self.present = [
            divergence.name
            for divergence in DIVERGENCES
            if any(divergence.is_in(world.documents, family) for family in families)
        ] + ALWAYS_ALLOWED

    def _pods_by_address(self):
        """Pods that policies know. A finished pod's address may be another's, a pod on the host's network has none."""
        found = {}
        for name, pod in self._pods.items():
            if not is_finished(pod) and not is_on_host_network(pod):
                for address in addresses(pod).values():
                    if found.setdefault(address, name) != name:
                        raise BadWorld(f"{self._world.name}: {address} is of pod {found[address]} and of pod {name}")
        return found

    def answer(self, index, classes):
        """Whether the analyzer allows a flow of a world with the rewritings of these classes. Raises Rejected."""
        flow = self._world.flows[index]
        analysis, present = self._analysis(classes, flow.family)
        source = self._resolved(flow.source, flow.family, present)
        destination = self._resolved(flow.destination, flow.family, present)
        if always_allowed(source, destination, self._nodes) in classes:
            return True
        if isinstance(source, str) or isinstance(destination, str):
            return analysis.allows(source, destination, flow.protocol, flow.port)
        return True

    def has_pod(self, index):
        """Whether one end of a flow, or both, is a pod that policies know."""
        flow = self._world.flows[index]
        return not self._pod_at.keys().isdisjoint(
            self._address(end, flow.family) for end in (flow.source, flow.destination)
        )

    def _analysis(self, classes, family):
        """The analyzer's view and the names of the pods that it was given. Each is made once. Raises Rejected."""
        key = frozenset(classes) - {*ALWAYS_ALLOWED}, family if BY_FAMILY & {*classes} else None
        if key not in self._analyses:
            documents = rewritten(self._world.documents, classes, family)
            self._analyses[key] = Analysis(documents), {pod_name(pod) for pod in pods_of(documents)}
        return self._analyses[key]

    def _resolved(self, end, family, present):
        """The pod at an end of a flow, where the analyzer was given it; else the address."""
        if end in present:
            return end
        address = self._address(end, family)
        return self._pod_at.get(address, address)

    def _address(self, end, family):
        return addresses(self._pods[end])[family] if isinstance(end, str) else end

    def needed(self, index):
        """Classes whose rewritings make the analyzer agree on a flow, none of which can be left out.

        Those without which it refuses the world are taken for granted and not named.
        """
        needed = self.present
        for name in self.present:
            fewer = [other for other in needed if other != name]
            if name not in REFUSED and self.answer(index, fewer) == self._world.flows[index].allowed:
                needed = fewer
        return [name for name in needed if name not in REFUSED]
