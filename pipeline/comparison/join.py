"""The rows of two versions of labels side by side, joined by image_id out of core.

Files that both versions have in common are not joined: their rows are equal by their hash. The rows
of all others go into a DuckDB database in a temporary folder, which spills to disk.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from pipeline.dataset import read_rows
from pipeline.scratch_database import scratch_database
from schemas.annotation import LABELLED
from schemas.manifest import Manifest

_COLUMNS: Final = (
    "image_id", "uri", "bytes_sha256", "height", "width", "status", "error.stage", "error.code",
    "segments.list.element.label", "segments.list.element.area", "segments.list.element.counts",
)  # fmt: skip
_SHARED_COLUMNS: Final = (
    "height", "width", "status", "segments.list.element.label", "segments.list.element.area",
)  # fmt: skip
_BATCH_ROWS: Final = 512

_TABLE: Final = """
create table {side} (image_id varchar, uri varchar, bytes_sha256 varchar, height integer,
    width integer, status varchar, error struct(stage varchar, code varchar),
    segments struct(label varchar, area bigint, counts blob)[])
"""
# Why a pair of rows is not compared pixel by pixel, null where it is.
_VERDICT: Final = f"""
case when b.status <> '{LABELLED}' or a.status <> '{LABELLED}' then 'status'
     when b.height <> a.height or b.width <> a.width or b.bytes_sha256 <> a.bytes_sha256
     then 'content' end
"""


@dataclass(frozen=True)
class Version:
    """One published version."""

    dataset: str
    manifest: Manifest


class Joined:
    """Two versions, read once; use it as a context manager."""

    def __init__(self, before: Version, after: Version, memory_mb: int) -> None:
        self._sides = {"before": before, "after": after}
        common = {file.sha256 for file in before.manifest.images}
        self._shared = common & {file.sha256 for file in after.manifest.images}
        self._memory_mb = memory_mb
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._database = opened.enter_context(
                scratch_database("diff", self._memory_mb, setting="memory_mb")
            )
            for side in self._sides:
                self._database.execute(_TABLE.format(side=side))
                for arriving in self._read(side, shared=False, columns=_COLUMNS):
                    self._database.register("arriving", arriving)
                    self._database.execute(f"insert into {side} by name select * from arriving")
                    self._database.unregister("arriving")
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def shared(self) -> Iterator[pa.Table]:
        """Yield size, status, labels and areas of the rows that are the same in both versions."""
        yield from self._read("after", shared=True, columns=_SHARED_COLUMNS)

    def pairs(self) -> Iterator[pa.Table]:
        """Yield image_id, uri, height, width, bytes_sha256, old and new segments of the images to
        compare: labelled in both versions, of equal content.
        """
        reader = self._database.sql(
            "select image_id, a.uri uri, a.height height, a.width width, "
            "a.bytes_sha256 bytes_sha256, b.segments old, a.segments new "
            f"from before b join after a using (image_id) where ({_VERDICT}) is null"
        ).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            yield pa.Table.from_batches([batch])

    def replaced(self) -> int:
        """Return how many images are labelled in both versions, but of another content."""
        return self._number(
            f"before b join after a using (image_id) where ({_VERDICT}) = 'content'"
        )

    def absent(self, there: str, not_there: str) -> tuple[int, int]:
        """Return how many images one version has and the other has not, and the labelled ones."""
        lone = f"{there} t where not exists (from {not_there} n where n.image_id = t.image_id)"
        return self._number(lone), self._number(f"{lone} and t.status = '{LABELLED}'")

    def absent_examples(self, there: str, not_there: str, limit: int) -> list[str]:
        """Return the uris of some such images, always the same ones."""
        return self._column(
            f"select uri from {there} t where not exists "
            f"(from {not_there} n where n.image_id = t.image_id) order by image_id limit {limit}"
        )

    def status_changes(self) -> dict[tuple[str, str], int]:
        """Return how many images went from one status to another, with the reason of a failure."""
        found = self._database.execute(
            f"select {_state('b')}, {_state('a')}, count(*) from before b join after a "
            f"using (image_id) where {_state('b')} <> {_state('a')} group by all "
            "order by 3 desc, 1, 2"
        ).fetchall()
        return {(old, new): count for old, new, count in found}

    def newly_quarantined(self) -> int:
        """Return how many images were labelled before and are not any more."""
        return self._number(
            "before b join after a using (image_id) "
            f"where b.status = '{LABELLED}' and a.status <> '{LABELLED}'"
        )

    def status_examples(self, limit: int) -> list[str]:
        """Return the uris of some images of another status, always the same ones."""
        return self._column(
            "select a.uri from before b join after a using (image_id) "
            f"where {_state('b')} <> {_state('a')} order by image_id limit {limit}"
        )

    def _read(self, side: str, *, shared: bool, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        version = self._sides[side]
        images = tuple(
            file for file in version.manifest.images if (file.sha256 in self._shared) == shared
        )
        part = version.manifest.model_copy(update={"images": images})
        yield from read_rows(version.dataset, part, columns, _BATCH_ROWS)

    def _number(self, source: str) -> int:
        ((number,),) = self._database.execute(f"select count(*) from {source}").fetchall()
        return int(number)

    def _column(self, query: str) -> list[Any]:
        return [value for (value,) in self._database.execute(query).fetchall()]


def _state(side: str) -> str:
    reason = f"' (' || {side}.error.stage || '/' || {side}.error.code || ')'"
    return f"({side}.status || coalesce({reason}, ''))"
