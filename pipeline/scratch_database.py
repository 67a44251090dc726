"""A DuckDB database in a temporary folder: joins that outgrow memory spill to disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb


@contextmanager
def scratch_database(
    name: str, memory_mb: int, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield the database, which is gone afterwards; without `threads` DuckDB takes all cores.

    KeyboardInterrupt (SIGINT, and our SIGTERM) during a query goes through as such: DuckDB raises a
    RuntimeError in its place.
    """
    with TemporaryDirectory(prefix=f"segmill-{name}-") as folder:
        config: dict[str, Any] = {
            "memory_limit": f"{memory_mb}MiB",
            "preserve_insertion_order": False,
            "temp_directory": str(Path(folder) / "spill"),
        }
        if threads is not None:
            config["threads"] = threads
        with duckdb.connect(str(Path(folder) / f"{name}.duckdb"), config=config) as database:
            try:
                yield database
            except (RuntimeError, duckdb.InterruptException) as error:
                if "interrupted" in str(error).lower():
                    raise KeyboardInterrupt from None
                raise
