"""How far the measures of trust tell right from wrong segments, and whether promises are kept.

    python -m tests.bench.promise [scenes] [checked]

Synthetic scenes of a seed of their own, labelled by the embedded models; a segment is right where
at least half of its pixels are of its class. `auroc` is the chance that a wrong segment has a worse
value than a right one. Then 200 times some scenes are drawn at random and calibrated on, at 0.9 and
0.95: `broken` is the share of resamples in which any promise (of classes by themselves, or of the
rare ones together) does not hold on all scenes, `promised` that in which there is one, `kept` the
mean share of all segments that are then left.
"""

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.evaluation.checked_segments import CheckedSegments
from pipeline.evaluation.score_floors import Checked, Promise, find_floors
from pipeline.stages.propose import Propose
from pipeline.synthetic import make_scene
from tests.bench.scenes import decoded, embedded_classify

SEED = 9_400  # scenes of no training, validation or test range
RESAMPLES = 200
MEASURES = {"score": 1, "margin": 1, "stability": 1, "disagreement": -1}


def main() -> None:
    given = [int(value) for value in sys.argv[1:3]]
    scenes, checked = given + [400, 150][len(given) :]
    rows = labelled(scenes)
    by_class = {}
    for measure in ("score", "margin"):
        found = CheckedSegments(0.5, measure)
        for index, row in enumerate(rows):
            found.add(row, make_scene(SEED, index).label_map_HW.astype(np.int32))
        by_class[measure] = found.by_class()
    right = np.concatenate([one.correct_N for one in by_class["score"].values()])
    print(
        json.dumps(
            {
                "scenes": scenes,
                "segments": len(right),
                "right": round(float(right.mean()), 4),
                "auroc": auroc(rows, by_class["score"]),
                "checked": checked,
                **{
                    measure: resampled(found, scenes, checked, Promise(0.9, 0.95, for_all=True))
                    for measure, found in by_class.items()
                },
            }
        )
    )  # fmt: skip


def labelled(scenes: int) -> list[dict[str, Any]]:
    propose, classify = Propose("maskformer", None, 32, "float32"), embedded_classify()
    return classify(propose(decoded(SEED, scenes))).to_pylist()


def auroc(rows: list[dict[str, Any]], by_class: dict[int, Checked]) -> dict[str, float]:
    place = {
        (int(image), index): bool(correct)
        for index, one in by_class.items()
        for image, correct in zip(one.images_N, one.correct_N, strict=True)
    }
    segments = [
        (segment, place[number, segment["class_index"]])
        for number, row in enumerate(rows)
        for segment in row["segments"]
    ]
    right = np.array([correct for _, correct in segments])
    return {
        name: round(rank_auroc(np.array([sign * one[name] for one, _ in segments]), right), 3)
        for name, sign in MEASURES.items()
    }


def rank_auroc(values: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    ranks, count = rankdata(values), int(right.sum())
    return float((ranks[right].sum() - count * (count + 1) / 2) / (count * (~right).sum()))


def resampled(
    by_class: dict[int, Checked], scenes: int, checked: int, promise: Promise
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    population = {index: one.scores_N for index, one in by_class.items()}
    total = sum(map(len, population.values()))
    broken, promised, kept = 0, 0, []
    for number in range(RESAMPLES):
        drawn = np.zeros(scenes, bool)
        drawn[rng.choice(scenes, checked, replace=False)] = True
        sample = {
            index: Checked(*(getattr(one, name)[chosen] for name in
                             ("images_N", "scores_N", "correct_N")))
            for index, one in by_class.items()
            if (chosen := drawn[one.images_N]).any()
        }  # fmt: skip
        groups: dict[Any, list[NDArray[np.bool_]]] = {}
        for index, floor in find_floors(sample, population, promise, seed=number).items():
            if floor.score is not None:
                key = index if floor.basis == "own" else floor.basis
                one = by_class[index]
                groups.setdefault(key, []).append(one.correct_N[one.scores_N >= floor.score])
        precisions = [np.concatenate(parts).mean() for parts in groups.values()]
        broken += any(precision < promise.precision for precision in precisions)
        promised += bool(groups)
        if groups:
            kept.append(sum(len(part) for parts in groups.values() for part in parts) / total)
    return {
        "broken": broken / RESAMPLES,
        "promised": promised / RESAMPLES,
        "kept": round(float(np.mean(kept)), 3) if kept else 0.0,
    }


if __name__ == "__main__":
    main()
