"""Compact embeddings: masks as a picture, vectors in half precision."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.mask_codec import decode_logits, encode_logits
from pipeline.masks import Precision, unpack_grid
from pipeline.stages.rows import Row, is_quarantined
from schemas.annotation import EMBEDDED, table_from_rows

# Of the picture; the vectors come on top, two bytes a dimension.
MOST_BYTES: Final = 60_000
_VECTORS: Final = ("query_embeds", "void_logits", "clip_embeds")


def compacted(rows: Iterable[Row], precision: Precision) -> pa.Table:
    """Return EMBEDDED rows in the compact form."""
    made = [row if is_quarantined(row) else _compacted(row, precision) for row in rows]
    return table_from_rows(made, EMBEDDED)


def is_compact(row: Row) -> bool:
    """Return whether the masks of a row are a picture; before EMBEDDED they never are."""
    return row.get("mask_picture") is not None


def picture_logits(row: Row) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the mask logits (Q, h, w) of a compact row."""
    shape = (row["n_proposals"], row["mask_height"], row["mask_width"])
    return decode_logits(row["mask_picture"], shape)


def vectors(row: Row, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a column of vectors, flat, of a row of either form."""
    stored = np.frombuffer(row[name], np.float16 if is_compact(row) else np.float32)
    return stored.astype(np.float32)


def _compacted(row: Row, precision: Precision) -> Row:
    shape = (row["n_proposals"], row["mask_height"], row["mask_width"])
    logits_Qhw = unpack_grid(row["mask_logits"], shape, precision, "cpu").numpy()
    halves = {
        name: vectors(row, name).astype(np.float16).tobytes()
        for name in _VECTORS
        if row[name] is not None
    }
    picture = encode_logits(logits_Qhw, MOST_BYTES)
    return {**row, **halves, "mask_logits": None, "mask_picture": picture}
