"""Chaos: kill, cut off and crowd runs by seeded schedules; the dataset must be the same.

    python -m tests.chaos [--schedules 20] [--seed 0] [--folder FOLDER]

Stories go to stderr; the last line of stdout is JSON. Schedule `seed + n` is the n-th; a failed one
is repeated with `--schedules 1 --seed SEED`, and its dataset stays in the folder.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.chaos.ground import Ground
from tests.chaos.proxy import faulty_store
from tests.chaos.schedule import Schedule, draw
from tests.chaos.trial import Verdict, carry_out
from tests.servers import start_s3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", allow_abbrev=False)
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where everything is written")
    chosen = parser.parse_args()
    # A short path: Ray's sockets are in it.
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    verdicts: list[Verdict] = []
    with ExitStack() as stack:
        server = stack.enter_context(start_s3())
        os.environ.update(server.environment)
        proxy = stack.enter_context(faulty_store(server.endpoint))
        disk = Ground(folder / "disk", "disk")
        grounds = {"disk": disk, "s3": Ground(folder / "s3", "s3", proxy, disk)}
        for ground in grounds.values():
            ground.folder.mkdir(exist_ok=True)
        with suppress(KeyboardInterrupt):  # the figures are then of what was done
            for seed in range(chosen.seed, chosen.seed + chosen.schedules):
                schedule = draw(seed)
                verdict = carry_out(schedule, grounds[schedule.store])
                tell(verdict, schedule)
                if not verdict.is_good and schedule.store == "s3":
                    keep(verdict, folder / f"labels-{seed}")
                verdicts.append(verdict)
    failed = [verdict.seed for verdict in verdicts if not verdict.is_good]
    if failed:
        print(f"kept for a look: {folder}", file=sys.stderr)
    elif chosen.folder is None:
        shutil.rmtree(folder)
    print(json.dumps(figures(verdicts)))
    return 1 if failed else 0


def figures(verdicts: list[Verdict]) -> dict[str, object]:
    needed = sum(verdict.work.needed for verdict in verdicts) or 1
    return {
        "schedules": len(verdicts),
        "divergences": sum(len(verdict.divergences) for verdict in verdicts),
        "torn_reads": sum(len(verdict.torn_reads) for verdict in verdicts),
        "redone_fraction": round(sum(verdict.work.redone for verdict in verdicts) / needed, 4),
        "first_seed": verdicts[0].seed if verdicts else None,
        "failed_seeds": [verdict.seed for verdict in verdicts if not verdict.is_good],
        "in_flight_fraction": round(sum(v.work.in_flight for v in verdicts) / needed, 4),
        "reads": sum(verdict.reads for verdict in verdicts),
    }


def tell(verdict: Verdict, schedule: Schedule) -> None:
    work = verdict.work
    lines = [
        f"seed {verdict.seed} on {schedule.store} ({schedule.stages}): "
        f"{'as it must be' if verdict.is_good else 'DIVERGES'}, "
        f"{verdict.seconds:.0f} s, {verdict.reads} reads, {work.redone} of {work.needed} redone, "
        f"{work.in_flight} in flight",
        *verdict.story, *verdict.divergences, *verdict.torn_reads[:5],
    ]  # fmt: skip
    print("\n    ".join(lines), file=sys.stderr, flush=True)


def keep(verdict: Verdict, folder: Path) -> None:
    """Copy a dataset out of the S3 server, which forgets everything when it ends."""
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).get(verdict.output, str(folder), recursive=True)


if __name__ == "__main__":
    sys.exit(main())
