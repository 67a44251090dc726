"""A DuckDB database in a temporary folder: joins that outgrow memory spill to disk."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb

from pipeline.cores import cores
from schemas.errors import SettingsError

# With less DuckDB fails where it should spill: a million uris are not sorted with 32.
_MB_PER_THREAD: Final = 64
_OUT_OF_MEMORY: Final = "Out of Memory Error: "


@contextmanager
def scratch_database(
    name: str, memory_mb: int, threads: int | None = None, *, setting: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield the database, which is gone afterwards; without `threads` DuckDB takes all cores.

    It takes fewer where each would have too little memory. Where the memory does not suffice all
    the same SettingsError names `setting`, which gave `memory_mb`.

    KeyboardInterrupt (SIGINT, and our SIGTERM) during a query goes through as such: DuckDB raises a
    RuntimeError in its place.
    """
    with tempfile.TemporaryDirectory(prefix=f"segmill-{name}-") as folder:
        config: dict[str, Any] = {
            "memory_limit": f"{memory_mb}MiB",
            "preserve_insertion_order": False,
            "temp_directory": str(Path(folder) / "spill"),
            "threads": max(1, min(threads or cores(), memory_mb // _MB_PER_THREAD)),
        }
        with duckdb.connect(str(Path(folder) / f"{name}.duckdb"), config=config) as database:
            try:
                yield database
            except (RuntimeError, duckdb.InterruptException) as error:
                if "interrupted" in str(error).lower():
                    raise KeyboardInterrupt from None
                raise
            except (duckdb.OutOfMemoryException, OSError) as error:  # OSError: of Arrow's reader
                if not str(error).startswith(_OUT_OF_MEMORY):
                    raise
                reason = str(error).removeprefix(_OUT_OF_MEMORY).partition("\n")[0].rstrip(".")
                if "max_temp_directory_size" in str(error):  # all the room that the disk has
                    raise SettingsError(
                        f"no room is left in {tempfile.gettempdir()} for what outgrows {setting} "
                        f"{memory_mb} ({reason}): make room there, or set TMPDIR to another folder"
                    ) from None
                raise SettingsError(
                    f"{setting} {memory_mb} is too little for so many images ({reason}): give more"
                ) from None
