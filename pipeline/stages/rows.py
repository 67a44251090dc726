"""Rows of a stage as dictionaries: quarantine, per-image isolation, images from bytes."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.annotation import QUARANTINED
from schemas.errors import SegmillError

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def quarantine(row: Row, stage: str, code: str, message: str) -> Row:
    """Return `row` as a quarantined one: the reason recorded, the pixels dropped."""
    error = {"stage": stage, "code": code, "message": message[:500]}
    dropped = dict.fromkeys(("image", "mask_logits", "pixel_embeds"))
    return {**row, "status": QUARANTINED, "error": error, **dropped}


def is_quarantined(row: Row) -> bool:
    """Say whether an earlier stage gave this image up."""
    return bool(row["status"] == QUARANTINED)


def isolate(
    work: Callable[[Sequence[Row]], list[Row]], rows: Sequence[Row], stage: str
) -> list[Row]:
    """Apply `work` to all rows; if that fails, to each alone, and quarantine those that fail alone.

    An error that every row shares (more than one row, none succeeds) is not an image's fault: it
    is raised again. So is a missing or mismatched model.
    """
    try:
        return work(rows) if rows else []
    except SegmillError:
        raise
    except Exception as batch_error:
        if len(rows) == 1:
            return [_quarantine_failure(rows[0], stage, batch_error)]
        logger.warning("%s: a batch of %d failed, trying each image alone", stage, len(rows))
        results = [result for row in rows for result in isolate(work, [row], stage)]
        if all(result["status"] == QUARANTINED for result in results):
            raise
        return results


def _quarantine_failure(row: Row, stage: str, error: Exception) -> Row:
    detail = (str(error).strip().splitlines() or [""])[0]
    logger.warning("%s: quarantined %s", stage, row["image_id"], exc_info=error)
    return quarantine(row, stage, "model_failure", f"{type(error).__name__}: {detail}")


def image_of(row: Row) -> NDArray[np.uint8]:
    """Return the resized RGB image (H, W, 3) of a row; read-only, it shares the row's bytes."""
    shape = (row["image_height"], row["image_width"], 3)
    return np.frombuffer(row["image"], dtype=np.uint8).reshape(shape)
