"""What `segmill status` prints."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json, rounded

if TYPE_CHECKING:
    from jobs.drain import DrainResult
    from jobs.status import RunStatus, StatusResult
    from pipeline.lock import Held


def show_status(result: "StatusResult", console: Console) -> int:
    """Print the state of a dataset; 1 when somebody should look at it."""
    manifest = result.manifest
    version = f"version {manifest.version}" if manifest else "nothing published"
    left = "?" if result.left is None else result.left
    console.print(
        f"{result.dataset}: {version}, {result.finished} images finished and not published, "
        f"{left} left", highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    if manifest is not None:
        counts = manifest.counts
        reasons = "".join(f", {number} {why}" for why, number in counts.reasons.items())
        console.print(
            f"{counts.labelled} labelled, {counts.quarantined} quarantined{reasons}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    console.print(_table(result.runs))
    if result.lock is not None:
        console.print(_told(result.lock), highlight=False, markup=False, soft_wrap=True)
    for problem in result.problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    print_json(_values(result))
    return int(bool(result.problems))


def show_drain(result: "DrainResult", console: Console) -> int:
    """Print which node gets no more work, and why."""
    console.print(
        f"node {result.node_id} gets no new work: {result.reason}; {result.seconds:g} s are left",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    print_json({"node_id": result.node_id, "reason": result.reason, "seconds": result.seconds})
    return 0


def _table(runs: "tuple[RunStatus, ...]") -> Table:
    table = Table()
    for name in ("run", "command", "state", "started, UTC", "took", "to do"):
        table.add_column(name, overflow="fold")
    for run in runs:
        started = f"{run.started:%Y-%m-%d %H:%M}" if run.started else ""
        took = _whole_seconds(run.ended - run.started) if run.ended and run.started else ""
        to_do = "" if run.to_do is None else str(run.to_do)
        table.add_row(run.run_id, run.command, run.state, started, took, to_do)
    return table


def _whole_seconds(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))


def _told(lock: "Held") -> str:
    alive = "is held" if lock.is_alive else "was held, until it fell silent,"
    silent = "" if lock.silent_s is None else f", renewed {lock.silent_s:.0f} s ago"
    return f"the lock {alive} by {lock.holder.run_id} on {lock.holder.host}{silent}"


def _values(result: "StatusResult") -> dict[str, Any]:
    manifest, lock = result.manifest, result.lock
    counts = manifest.counts if manifest else None
    return {
        "dataset": result.dataset,
        "ok": not result.problems,
        "problems": list(result.problems),
        "version": manifest.version if manifest else 0,
        "created": _time(manifest.created) if manifest else None,
        "images": counts.inventory if counts else 0,
        "labelled": counts.labelled if counts else 0,
        "quarantined": counts.quarantined if counts else 0,
        "reasons": counts.reasons if counts else {},
        "finished": result.finished,
        "left": result.left,
        "age_hours": None if result.age_s is None else rounded(result.age_s / 3600),
        "lock": lock
        and {
            "run_id": lock.holder.run_id,
            "host": lock.holder.host,
            "since": lock.holder.since,
            "silent_seconds": rounded(lock.silent_s),
            "alive": lock.is_alive,
        },
        "runs": [
            {
                "run_id": run.run_id,
                "command": run.command,
                "state": run.state,
                "started": _time(run.started),
                "ended": _time(run.ended),
                "to_do": run.to_do,
                "error": run.error,
            }
            for run in result.runs
        ],
    }


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
