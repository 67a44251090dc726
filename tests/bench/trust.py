"""What the measures of trust cost: the label stage with and without them.

    python -m tests.bench.trust [repeats]

Rows of EMBEDDED with random blobs as masks and random vectors, of the size of a scene and of a
photo, in both encodings; with and without alternate in one process, in processor seconds. Label
maps must be equal byte for byte.
"""

import json
import statistics
import sys
import time
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import torch

from pipeline.models.clip import ClipSource
from pipeline.models.device import pick_device
from pipeline.quick_labels import _Winners
from pipeline.stages.compact import compacted
from pipeline.stages.label import Label
from schemas.annotation import EMBEDDED, LABELLED, table_from_rows
from tests.classify import make_classify
from tests.test_mask_codec import smooth_masks

# Height, width, proposals, names, dimensions of the vectors, images.
KINDS = {"scene": (144, 168, 24, 72, 32, 16), "photo": (480, 640, 100, 171, 512, 2)}


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    print(json.dumps({kind: measure(kind, repeats) for kind in KINDS}))


def measure(kind: str, repeats: int) -> dict[str, float]:
    height, width, num_masks, num_names, num_dims, images = KINDS[kind]
    rng = np.random.default_rng(0)
    text_KD = unit(rng.standard_normal((num_names, num_dims)))
    names = tuple(f"thing {n}" for n in range(num_names))
    label = make_classify(ClipSource("embedded", None, "fp32", None), text_KD, names).label
    rows = [embedded(rng, n, text_KD, (height, width, num_masks)) for n in range(images)]
    exact = table_from_rows(rows, EMBEDDED)
    found = {}
    for encoding, table in (("exact", exact), ("compact", compacted(exact.to_pylist(), "float16"))):
        ratios = [paired(label, table) for _ in range(repeats)]
        found[encoding] = round(statistics.median(ratios), 3)
    return found


def paired(label: Label, table: pa.Table) -> float:
    """Return the ratio of the seconds with and without."""
    with_s, measured = timed(label, table)
    with ExitStack() as stack:
        stack.enter_context(patch("pipeline.fusion.lead", lambda _sums, best, *_, dim: best))
        stack.enter_context(patch.object(_Winners, "margins", lambda winners: winners.best_N))
        stack.enter_context(patch("pipeline.stages.label.segment_trust", lambda *_: None))
        without_s, bare = timed(label, table)
    if measured != bare:
        raise AssertionError("the label maps differ")
    return with_s / without_s


def timed(label: Label, table: pa.Table) -> tuple[float, list[list[bytes]]]:
    started = time.process_time()
    rows = label(table).to_pylist()
    seconds = time.process_time() - started
    return seconds, [[segment["counts"] for segment in row["segments"]] for row in rows]


def embedded(
    rng: np.random.Generator, number: int, text_KD: np.ndarray, size: tuple[int, int, int]
) -> dict[str, object]:
    """Return a row of which every proposal means a random class, and both heads nearly agree."""
    height, width, num_masks = size
    padded = -(-height // 32) * 8, -(-width // 32) * 8
    masks = smooth_masks(num_masks, *padded, seed=number)
    meant_QD = text_KD[rng.integers(len(text_KD), size=num_masks)]
    noise = 2.0 / np.sqrt(text_KD.shape[1])
    query_QD, clip_QD = (
        unit(meant_QD + noise * rng.standard_normal(meant_QD.shape)) for _ in range(2)
    )
    return {
        "image_id": str(number), "uri": str(number), "status": LABELLED,
        "height": height, "width": width, "image_height": height, "image_width": width,
        "mask_logits": masks.astype(np.float16).tobytes(), "mask_height": padded[0],
        "mask_width": padded[1], "n_proposals": num_masks, "query_embeds": query_QD.tobytes(),
        "void_logits": np.zeros(num_masks, np.float32).tobytes(),
        "valid": np.ones(num_masks, bool).tobytes(), "clip_embeds": clip_QD.tobytes(),
    }  # fmt: skip


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    assert pick_device() == "cpu"
    main()
