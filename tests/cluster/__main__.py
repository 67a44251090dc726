"""Runs on simulated clusters; the datasets must be those of one machine.

    python -m tests.cluster [--scenarios NAME,NAME] [--stages tiny|quick] [--folder FOLDER]

Stories go to stderr; the last line of stdout is JSON. Two scenarios make network namespaces, which
takes root; without it they are told as skipped.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.ground import Ground
from tests.cluster.hosts import Cluster
from tests.cluster.scenarios import SCENARIOS, Bench

_OF_ROOT = ("drained", "cut_off")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", allow_abbrev=False)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--stages", choices=("tiny", "quick"), default="tiny")
    parser.add_argument("--folder", type=Path, help="where everything is written")
    chosen = parser.parse_args()
    names = chosen.scenarios.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    may_make_hosts = os.geteuid() == 0 and shutil.which("ip") is not None
    skipped = [name for name in names if name in _OF_ROOT and not may_make_hosts]
    # A short path: Ray's sockets are in it.
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="cl-"))
    ground = Ground(folder, "disk")
    folder.mkdir(parents=True, exist_ok=True)
    ground.reference(0, chosen.stages)
    nodes = killed = 0
    failed: list[str] = []
    for name in names:
        if name in skipped:
            print(f"{name}: skipped, it needs root and `ip`", file=sys.stderr, flush=True)
            continue
        started = time.monotonic()
        with ExitStack() as stack, Cluster(folder / name) as cluster:
            bench = Bench(cluster, ground, name, chosen.stages, stack)
            try:
                SCENARIOS[name](bench)
                bench.judge()
            except Exception as error:  # of one scenario; the others are still to be told
                bench.problems.append(f"{type(error).__name__}: {error}")
        nodes += cluster.started
        killed += cluster.killed
        failed += [name] if bench.problems else []
        verdict = "DIFFERS" if bench.problems else "equal"
        story = [f"{name}: {verdict}, {time.monotonic() - started:.0f} s, {bench.facts}"]
        print("\n    ".join([*story, *bench.problems]), file=sys.stderr, flush=True)
    if failed:
        print(f"kept for a look: {folder}", file=sys.stderr)
    elif chosen.folder is None:
        shutil.rmtree(folder)
    figures = {
        "nodes": nodes,
        "killed_nodes": killed,
        "equal_to_single_machine": not failed,
        "scenarios": [name for name in names if name not in skipped],
        "skipped": skipped,
        "failed": failed,
    }
    print(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
