"""The analyzer's command says the same as the use of its library in analyzer.py."""

import ipaddress
import itertools
import pathlib
import subprocess
import sys
import tempfile
import unittest

import yaml

import check
from analyzer import Analysis
from worlds import pod_name, pods_of, read_world

WORLD = check.HERE / "agreement"
PORTS = [1, 53, 80, 5429, 5430, 5432, 5433, 9187, 65535]
ADDRESSES = ["203.0.113.0", "203.0.113.127", "203.0.113.128", "203.0.114.0", "2001:db8::1", "2001:db9::", "10.244.1.2"]


class Command(unittest.TestCase):
    def test_command_and_library_agree(self):
        world = read_world(WORLD)
        analysis = Analysis(world.documents)
        rules = rules_by_command()
        pods = [pod_name(pod) for pod in pods_of(world.documents)]
        outside = [ipaddress.ip_address(text) for text in ADDRESSES]
        pairs = [*itertools.permutations(pods, 2), *itertools.product(pods, outside), *itertools.product(outside, pods)]
        answers = []
        for (source, destination), protocol, port in itertools.product(pairs, ["TCP", "UDP", "SCTP"], PORTS):
            said = any(rule_allows(rule, source, destination, protocol, port) for rule in rules)
            answers.append(said)
            with self.subTest(source=str(source), destination=str(destination), protocol=protocol, port=port):
                self.assertEqual(analysis.allows(source, destination, protocol, port), said)
        self.assertEqual({True, False}, set(answers))


def rules_by_command():
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "rules.yaml"
        subprocess.run(
            [sys.executable, "-m", "nca", "--connectivity", "-r", WORLD, "--output_endpoints", "pods", "--print_ipv6"]
            + ["-o", "yaml", "-f", output],
            check=True,
            capture_output=True,
        )
        [query] = yaml.safe_load(output.read_text())
        return query["explanation"][0]["rules"]


def rule_allows(rule, source, destination, protocol, port):
    return (
        is_end(rule, "src", source)
        and is_end(rule, "dst", destination)
        and any(connection_covers(connection, protocol, port) for connection in rule["connection"])
    )


def is_end(rule, side, end):
    if not isinstance(end, str):
        return any(end in ipaddress.ip_network(block) for block in rule.get(f"{side}_ip_block", []))
    namespace, name = end.split("/")
    return namespace in rule.get(f"{side}_ns", []) and bool({"*", name, end} & {*rule.get(f"{side}_pods", [])})


def connection_covers(connection, protocol, port):
    if connection == "All connections":
        return True
    if "All but" in connection:
        return not any(connection_covers(cube, protocol, port) for cube in connection["All but"])
    protocols = connection.get("protocols", "*")
    excluded = protocols.startswith("all but ")
    named = protocols.removeprefix("all but ").split(", ")
    if protocols != "*" and (protocol in named) == excluded:
        return False
    return "dst_ports" not in connection or any(port in port_range(text) for text in connection["dst_ports"])


def port_range(text):
    first, _, last = str(text).partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    unittest.main()
