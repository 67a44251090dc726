"""What must hold of every dataset, checked without trusting the code that wrote it."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.dataset import read_manifest, read_rows
from schemas.annotation import LABELLED, QUARANTINED


def rows_of(dataset: str) -> list[dict[str, Any]]:
    """All rows of the newest version."""
    manifest = read_manifest(dataset)
    return [row for table in read_rows(dataset, manifest) for row in table.to_pylist()]


def check_rows(rows: Iterable[dict[str, Any]], *, whole: bool) -> None:
    """One row per image; every label map partitions its image (fully where `whole`)."""
    rows = list(rows)
    assert len({row["image_id"] for row in rows}) == len(rows)
    for row in rows:
        if row["status"] == QUARANTINED:
            assert row["error"]["stage"] and row["error"]["code"] and row["segments"] == []
        else:
            assert row["status"] == LABELLED and row["error"] is None
            check_partition(row, whole=whole)


def check_partition(row: dict[str, Any], *, whole: bool) -> None:
    """Segments decoded by pycocotools alone never overlap, and fit their area and box."""
    size = [row["height"], row["width"]]
    owners = np.zeros(size, dtype=np.int32)
    for segment in row["segments"]:
        mask = coco_mask.decode({"size": size, "counts": segment["counts"]})
        assert mask.sum() == segment["area"] > 0
        x0, y0, x1, y1 = segment["box"]
        assert mask[y0:y1, x0:x1].sum() == segment["area"]
        assert 0 < segment["score"] <= 1
        owners += mask
    assert owners.max(initial=0) <= 1
    assert np.isclose(owners.mean(), row["coverage"], atol=1e-6)
    if whole:
        assert owners.min() == 1
