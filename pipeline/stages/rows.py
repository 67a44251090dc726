"""Rows of a stage as dictionaries: quarantine, per-image isolation, images from bytes."""

import logging
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.annotation import QUARANTINED
from schemas.errors import SegmillError

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows as dictionaries, in which large binaries are views of the table's memory.

    Masks and pixels are megabytes an image: `Table.to_pylist` would copy them.
    """
    columns = [
        _views(column) if pa.types.is_large_binary(column.type) else column.to_pylist()
        for column in table.columns
    ]
    names = table.column_names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _views(column: pa.ChunkedArray) -> list[memoryview | None]:
    """Return the values of a large binary column; Arrow's own scalars are copies."""
    found: list[memoryview | None] = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        whole = memoryview(b"" if data is None else data).toreadonly()
        found += [
            whole[start:end] if valid else None
            for valid, start, end in zip(chunk.is_valid().to_pylist(), ends, ends[1:], strict=False)
        ]
    return found


def slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Yield the table so many rows at a time, the last ones fewer; nothing is copied."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)


def quarantine(row: Row, stage: str, code: str, message: str) -> Row:
    """Return `row` as a quarantined one: the reason recorded, the pixels dropped."""
    error = {"stage": stage, "code": code, "message": message[:500]}
    dropped = dict.fromkeys(("image", "mask_logits", "pixel_embeds", "clip_embeds"))
    return {**row, "status": QUARANTINED, "error": error, **dropped}


def is_quarantined(row: Row) -> bool:
    """Say whether an earlier stage gave this image up."""
    return bool(row["status"] == QUARANTINED)


def isolate(
    work: Callable[[Sequence[Row]], list[Row]],
    rows: Sequence[Row],
    stage: str,
    group_of: Callable[[Row], Hashable] = lambda row: None,
) -> list[Row]:
    """Apply `work` to all rows of a group; if it fails, to halves; quarantine what fails alone.

    Halves are also the answer to a GPU out of memory. An error that every row shares (more than
    one row, of whatever groups, none succeeds) is not an image's fault: it is raised again. So is
    a missing or mismatched model.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(group_of(row), []).append(index)
    results, first_error = list(rows), None
    for indices in groups.values():
        done, error = _bisect(work, [rows[index] for index in indices], stage)
        for index, result in zip(indices, done, strict=True):
            results[index] = result
        if error is not None and first_error is None:
            # Without its frames, which hold the tensors of the failed batch.
            first_error = error.with_traceback(None)
    if first_error is not None and len(rows) > 1 and all(map(is_quarantined, results)):
        raise first_error
    return results


def _bisect(
    work: Callable[[Sequence[Row]], list[Row]], rows: Sequence[Row], stage: str
) -> tuple[list[Row], Exception | None]:
    if not rows:
        return [], None
    try:
        return work(rows), None
    except SegmillError:
        raise
    except Exception as caught:
        error = caught  # Python forgets `caught` at the end of this block
    if len(rows) == 1:
        return [_quarantine_failure(rows[0], stage, error)], error
    logger.warning("%s: a batch of %d failed, trying its halves", stage, len(rows))
    if is_out_of_gpu_memory(error):
        _empty_gpu_cache(error)
    middle = len(rows) // 2
    halves = [_bisect(work, half, stage)[0] for half in (rows[:middle], rows[middle:])]
    return halves[0] + halves[1], error


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Say whether torch ran out of memory on its device; does not import torch."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _empty_gpu_cache(error: Exception) -> None:
    error.__traceback__ = None  # its frames hold the tensors of the failed batch
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _quarantine_failure(row: Row, stage: str, error: Exception) -> Row:
    detail = (str(error).strip().splitlines() or [""])[0]
    logger.warning("%s: quarantined %s", stage, row["image_id"], exc_info=error)
    code = "out_of_gpu_memory" if is_out_of_gpu_memory(error) else "model_failure"
    return quarantine(row, stage, code, f"{type(error).__name__}: {detail}")


def isolate_live(
    work: Callable[[Sequence[Row]], list[Row]],
    rows: Sequence[Row],
    stage: str,
    group_of: Callable[[Row], Hashable] = lambda row: None,
) -> list[Row]:
    """Apply `work` to the rows that are not quarantined yet, see `isolate`; keep the order."""
    live = [row for row in rows if not is_quarantined(row)]
    results = iter(isolate(work, live, stage, group_of))
    return [row if is_quarantined(row) else next(results) for row in rows]


def image_of(row: Row) -> NDArray[np.uint8]:
    """Return the resized RGB image (H, W, 3) of a row; read-only, it shares the row's bytes."""
    shape = (row["image_height"], row["image_width"], 3)
    return np.frombuffer(row["image"], dtype=np.uint8).reshape(shape)
