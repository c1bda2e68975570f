"""The checker notices what it is there to notice."""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile
import unittest

import check
from comparison import CLASSES, check_reproducer, compare
from worlds import BadWorld, read_world

AGREEMENT = check.HERE / "agreement"


class Comparison(unittest.TestCase):
    def test_all_as_it_is(self):
        world = read_world(AGREEMENT)
        report = compare(world)
        self.assertEqual(report, (len(world.flows), 0, {}, [], []))

    def test_a_wrong_judgement_is_never_explained_away(self):
        for name in [*CLASSES, "agreement"]:
            world = read_world(check.HERE / name)
            for index, flow in enumerate(world.flows):
                flows = list(world.flows)
                flows[index] = flow._replace(allowed=not flow.allowed)
                with self.subTest(world=name, flow=str(flow)):
                    [line] = compare(world._replace(flows=flows)).disagreements
                    self.assertIn(str(flow), line)

    def test_a_flow_without_a_pod_is_not_counted_as_agreement(self):
        world = read_world(AGREEMENT)
        outside = world.flows[-1].destination
        flow = world.flows[-1]._replace(source=outside + 1, destination=outside, allowed=True)
        report = compare(world._replace(flows=[flow]))
        self.assertEqual(report, (0, 1, {}, [], []))
        [line] = compare(world._replace(flows=[flow._replace(allowed=False)])).disagreements
        self.assertIn("expected denied", line)

    def test_a_world_that_the_analyzer_refuses_is_reported(self):
        world = read_world(AGREEMENT)
        world.documents[-1]["spec"]["unheardOf"] = True
        [line] = compare(world).disagreements
        self.assertIn("unheardOf", line)

    def test_a_pod_that_the_analyzer_leaves_out_is_reported(self):
        world = read_world(AGREEMENT)
        pod = next(document for document in world.documents if document["kind"] == "Pod")
        owner = {"ownerReferences": [{"kind": "StatefulSet", "name": "db"}]}
        copies = [
            {**pod, "metadata": {**pod["metadata"], **owner, "name": f"db-{index}"}, "status": {}} for index in range(3)
        ]
        [line] = compare(world._replace(documents=world.documents + copies)).disagreements
        self.assertIn("shop/db-2", line)

    def test_two_pods_of_one_address_are_refused(self):
        world = read_world(AGREEMENT)
        pod = next(document for document in world.documents if document["kind"] == "Pod")
        twin = {**pod, "metadata": {**pod["metadata"], "name": "twin"}}
        with self.assertRaisesRegex(BadWorld, "10.244.1.2 is of pod shop/web and of pod shop/twin"):
            compare(world._replace(documents=[*world.documents, twin]))

    def test_a_reproducer_that_does_not_diverge_is_an_error(self):
        world = read_world(AGREEMENT)
        flows = [flow._replace(analyzer=flow.allowed) for flow in world.flows]
        [problem] = check_reproducer(world._replace(flows=flows))
        self.assertEqual(problem, "agreement: nothing diverges any more: the class can go")

    def test_a_reproducer_of_another_class_is_an_error(self):
        world = read_world(check.HERE / "empty-egress")
        self.assertEqual(check_reproducer(world._replace(name="other")), ["other: is explained by ['empty-egress']"])

    def test_a_reproducer_with_another_answer_of_the_analyzer_is_an_error(self):
        world = read_world(check.HERE / "audit-mode")
        [problem] = check_reproducer(world._replace(flows=[world.flows[0]._replace(analyzer=True)]))
        self.assertIn("recorded answer is allowed, it now says denied", problem)


class Folders(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        shutil.copytree(AGREEMENT, self.folder / "agreement")

    def run_check(self, *arguments):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = check.main([str(self.folder), *arguments])
        return code, output.getvalue()

    def edit(self, change):
        path = self.folder / "agreement" / "expected.json"
        flows = json.loads(path.read_text())
        change(flows)
        path.write_text(json.dumps(flows))

    def test_agreement(self):
        code, output = self.run_check()
        self.assertEqual(code, 0, output)
        self.assertIn("1 worlds, 20 flows (11 allowed, 9 denied): 20 agree, 0 differ", output)

    def test_disagreement(self):
        self.edit(lambda flows: flows[1].update(allowed=True))
        code, output = self.run_check()
        self.assertEqual(code, 1)
        self.assertIn("shop/web -> shop/db TCP/9187 (IPv4): expected allowed, the analyzer says denied", output)

    def test_too_few_worlds(self):
        code, output = self.run_check("--at-least", "2")
        self.assertEqual(code, 2)
        self.assertIn("has 1 worlds, must have at least 2", output)

    def test_worlds_in_which_nothing_is_denied_say_nothing(self):
        self.edit(lambda flows: flows.__setitem__(slice(None), [flow for flow in flows if flow["allowed"]]))
        code, output = self.run_check()
        self.assertEqual(code, 2)
        self.assertIn("must have both", output)

    def test_expectations_that_cannot_be_understood(self):
        for key, value, text in [
            ("from", "shop/nobody", "from: there is no pod shop/nobody"),
            ("to", "shop", "'shop' does not appear to be an IPv4 or IPv6 address"),
            ("protocol", "ICMP", "protocol: 'ICMP'"),
            ("port", 0, "port: 0"),
            ("allowed", "yes", "allowed: 'yes'"),
            ("family", "IPv5", "family: 'IPv5'"),
            ("verdict", True, "keys unknown: ['verdict']"),
        ]:
            with self.subTest(key=key, value=value):
                self.edit(lambda flows: flows.insert(0, {**flows[0], key: value}))
                with self.assertRaisesRegex(BadWorld, r"expected.json: \[0\]: ") as caught:
                    read_world(self.folder / "agreement")
                self.assertIn(text, str(caught.exception))
                self.edit(lambda flows: flows.pop(0))

    def test_a_pod_without_spec(self):
        with (self.folder / "agreement" / "world.yaml").open("a") as file:
            file.write("---\napiVersion: v1\nkind: Pod\nmetadata: {name: hollow, namespace: shop}\n")
        with self.assertRaisesRegex(BadWorld, "Pod hollow: has no spec"):
            read_world(self.folder / "agreement")

    def test_the_family_is_that_of_an_address_or_the_one_both_have(self):
        self.edit(lambda flows: flows.insert(0, {**flows[0], "to": "2001:db8::1"}))
        self.assertEqual([flow.family for flow in read_world(self.folder / "agreement").flows[:2]], [6, 4])

    def test_ends_without_a_common_family(self):
        self.edit(lambda flows: flows.insert(0, {**flows[0], "from": "ops/scrape", "to": "2001:db8::1"}))
        with self.assertRaisesRegex(BadWorld, "do not both have an address of the family"):
            read_world(self.folder / "agreement")


if __name__ == "__main__":
    unittest.main()
