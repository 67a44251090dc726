"""What an image costs as the vocabulary grows from 10 to 1,000 names.

    python -m tests.bench.vocabulary [images] [rounds]

The models, photos, masks and queries of `tests.bench.exact_path`, random class vectors, one thread,
processor seconds. Proposals and CLIP's vectors know nothing of the vocabulary and are made once;
labels are made with every vocabulary in turn, `rounds` times, of which the median counts. Text
vectors are made once a run, whatever the number of images, and are not in it.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from tests.bench.exact_path import Bench, photos, shaped_table

NAMES: Final = (10, 100, 1000)
DIMS: Final = 512


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    images, rounds = counts + [3, 5][len(counts) :]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        print(json.dumps({"vocabulary": figures(Bench(Path(folder), photos(images)), rounds)}))


def figures(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return seconds per image of what every vocabulary shares, and of the labels of each."""
    exact, images = bench.exact, len(bench.images)
    exact.visual.position = None
    started = time.process_time()
    proposed = exact.propose(bench.images)
    propose_s = time.process_time() - started
    proposed = shaped_table(proposed)  # the bench's own work
    started = time.process_time()
    embedded = exact.classify.embed(proposed)
    shared_s = propose_s + time.process_time() - started
    labels = {names: with_names(exact.classify.label, names) for names in NAMES}
    seconds: dict[int, list[float]] = {names: [] for names in NAMES}
    for _ in range(rounds):
        for names, label in labels.items():
            started = time.process_time()
            rows = label(embedded)
            seconds[names].append(time.process_time() - started)
            assert all(rows["segments"].to_pylist())
    label_s = {names: median(found) for names, found in seconds.items()}
    return {
        "images": images,
        "rounds": rounds,
        "propose_and_embed_s": round(shared_s / images, 3),
        "label_s": {names: round(found / images, 3) for names, found in label_s.items()},
        "vocabulary_1000_over_10": round(
            (shared_s + label_s[NAMES[-1]]) / (shared_s + label_s[NAMES[0]]), 4
        ),
        "label_1000_over_10": round(label_s[NAMES[-1]] / label_s[NAMES[0]], 3),
    }


def with_names(label: Any, names: int) -> Any:
    """Return the stage with other classes: random unit vectors, nine of ten of them seen."""
    vectors_KD = np.random.default_rng(names).normal(size=(names, DIMS)).astype(np.float32)
    vectors_KD /= np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    return replace(
        label,
        names=tuple(f"class {index}" for index in range(names)),
        seen=tuple(index % 10 != 0 for index in range(names)),
        query_text_KD=vectors_KD,
        region_text_KD=vectors_KD,
    )


if __name__ == "__main__":
    main()
