"""Checks judgements of Sluice's policy oracle against network-config-analyzer: see README.md."""

import argparse
import collections
import importlib.metadata
import pathlib
import sys
import time

from comparison import CLASSES, check_reproducer, compare
from worlds import BadWorld, read_world

HERE = pathlib.Path(__file__).parent


def main(arguments):
    parser = argparse.ArgumentParser(prog="policy-check", description=__doc__)
    parser.add_argument("worlds", nargs="?", type=pathlib.Path, help="folder with one folder per world")
    parser.add_argument("--at-least", type=int, default=1, metavar="N", help="fail where there are fewer worlds")
    options = parser.parse_args(arguments)
    try:
        print(f"network-config-analyzer {importlib.metadata.version('network-config-analyzer')}")
        sound = check_reproducers()
        if options.worlds:
            sound = check_worlds(options.worlds, options.at_least) and sound
    except BadWorld as error:
        print(f"policy-check: {error}", file=sys.stderr)
        return 2
    return 0 if sound else 1


def check_reproducers():
    """Whether each class of known divergences has a world that still diverges, by that class alone. Raises BadWorld."""
    problems = [problem for name in CLASSES for problem in check_reproducer(read_world(HERE / name))]
    for problem in problems:
        print(problem)
    print(f"{len(CLASSES)} known divergences, each with its world: {'see above' if problems else 'all as recorded'}")
    return not problems


def check_worlds(folder, at_least):
    """Whether the analyzer agrees on all worlds in a folder, known divergences apart. Raises BadWorld."""
    start = time.monotonic()
    folders = sorted(path.parent for path in folder.glob("*/world.yaml"))
    if len(folders) < at_least:
        raise BadWorld(f"{folder}: has {len(folders)} worlds, must have at least {at_least}")
    agreed, unasked, disagreements, expected = 0, 0, 0, collections.Counter()
    known, known_in, refused = collections.Counter(), collections.Counter(), collections.Counter()
    for path in folders:
        world = read_world(path)
        report = compare(world)
        for line in report.disagreements:
            print(line)
        agreed += report.agreed
        unasked += report.unasked
        disagreements += len(report.disagreements)
        expected.update(flow.allowed for flow in world.flows)
        known += report.known
        known_in.update(report.known.keys())
        refused.update(report.refused)
    if not expected[True] or not expected[False]:
        raise BadWorld(f"{folder}: must have both flows that are allowed and flows that are denied")
    for name, count in known.most_common():
        print(f"  known, {name}: {count} flows in {known_in[name]} worlds")
    for name, count in refused.most_common():
        print(f"  known, {name}: {count} worlds that the analyzer refuses as they are")
    if unasked:
        print(f"  not asked, no pod at either end: {unasked} flows")
    print(
        f"{len(folders)} worlds, {expected.total()} flows ({expected[True]} allowed, {expected[False]} denied): "
        f"{agreed} agree, {known.total()} differ by known divergences, {disagreements} disagree; "
        f"{time.monotonic() - start:.1f} s"
    )
    return not disagreements


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
