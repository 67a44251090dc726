"""What the commands on the versions of a dataset print."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.show.printing import print_json

if TYPE_CHECKING:
    from jobs.register import RegisterResult
    from jobs.vacuum import VacuumResult
    from jobs.verify import VerifyResult
    from jobs.versions import VersionsResult


def show_versions(result: "VersionsResult", console: Console) -> int:
    """Print a line per version."""
    table = Table(title=result.dataset, title_justify="left")
    for name in ("version", "images", "done", "removed", "quarantined", "files", "MiB"):
        table.add_column(name, justify="right")
    table.add_column("created")
    table.add_column("run")
    rows = []
    for one in result.versions:
        rows.append({**vars(one), "created": one.created.isoformat(timespec="seconds")})
        shown = {**rows[-1], "size_bytes": f"{one.size_bytes / 2**20:.1f}"}
        table.add_row(*map(str, shown.values()))
    console.print(table)
    print_json({"dataset": result.dataset, "versions": rows})
    return 0


def show_verify(result: "VerifyResult", console: Console) -> int:
    """Print what is wrong; 1 when anything is."""
    for problem in result.problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    verdict = f"{len(result.problems)} problems" if result.problems else "whole"
    console.print(
        f"version {result.version}: {result.files} files, {result.images} images, "
        f"{result.label_maps} label maps read: {verdict}",
        highlight=False,
    )
    print_json(
        {
            "version": result.version,
            "images": result.images,
            "files": result.files,
            "label_maps": result.label_maps,
            "problems": len(result.problems),
            "seconds": round(result.seconds, 2),
        }
    )
    return int(bool(result.problems))


def show_vacuum(result: "VacuumResult", console: Console) -> int:
    """Print what was deleted, or would be."""
    for path in result.files:
        console.print(path, highlight=False, markup=False, soft_wrap=True)
    named = ", ".join(map(str, result.versions)) or "none"
    done = "deleted" if result.deleted else "would be deleted (see --delete)"
    console.print(f"versions: {named}; {len(result.files)} files: {done}", highlight=False)
    print_json(
        {
            "deleted": result.deleted,
            "versions": list(result.versions),
            "files": len(result.files),
            "size_bytes": result.size_bytes,
        }
    )
    return 0


def show_register(result: "RegisterResult", console: Console) -> int:
    """Print what the table shows."""
    how = "shows" if result.registered else "shows already"
    console.print(
        f"{result.table} {how} version {result.version} of {result.dataset}: {result.files} files, "
        f"{result.rows} images",
        highlight=False,
        markup=False,
    )
    print_json(vars(result))
    return 0
