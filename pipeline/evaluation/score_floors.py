"""Floors of a score (or margin) that promise a precision: fixed-sequence tests of binomial tails.

A sample of segments was checked by people. The score at which precision begins to suffice is looked
for from strict to lax: floors are quantiles of *all* the dataset's scores, so that their order and
the first of them do not depend on what was found. At each the hypothesis "precision is below p" is
tested by the binomial tail of the kept ones in the sample (the dual of the Clopper-Pearson bound);
the search ends at the first that is not rejected, and the last rejected floor is taken. It is wrong
only if the first floor that should not pass passes, so that the error of one test is that of the
whole search (fixed-sequence testing; Angelopoulos et al., Learn then Test, 2021). Nothing is
assumed of the scores; the sample must be drawn at random, one segment an image, and every segment
as likely as any other.

Dimension key: N checked segments, M all segments, T floors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

Basis = Literal["own", "pooled"]

# A class is tested alone where so many times the least sample that can pass was checked, and the
# first floor is to keep so many: some errors must be affordable.
_TIMES_LEAST: Final = 2
_FLOORS: Final = 16


@dataclass(frozen=True)
class Promise:
    """What is to be promised: precision at least `precision` with `confidence`."""

    precision: float
    confidence: float
    for_all: bool  # for all groups at once; else for each by itself

    def error_of_each(self, groups: int) -> float:
        """Return the chance of a wrong promise that each of some groups may take (Bonferroni)."""
        return (1 - self.confidence) / (max(1, groups) if self.for_all else 1)

    def least_checked(self, groups: int) -> int:
        """Return the smallest sample that can pass: all correct, yet by chance only rarely so."""
        return math.ceil(math.log(self.error_of_each(groups)) / math.log(self.precision))


@dataclass(frozen=True, eq=False)
class Checked:
    """Segments of a class that were compared with a truth, at most one of an image."""

    images_N: NDArray[np.int64]
    scores_N: NDArray[np.float64]
    correct_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Floor:
    """The score from which on segments keep the promise; None: it cannot be promised."""

    score: float | None
    basis: Basis  # whether the class was tested by itself, or together with other rare ones
    checked: int  # segments; of rare classes together, images
    kept: int  # of the checked ones, and tested
    correct: int  # of these
    lower_bound: float | None  # of precision, at the confidence of this test
    kept_share: float  # of all segments of the dataset
    reason: str | None  # why nothing is promised


@dataclass(frozen=True, eq=False)
class OnePerImage:
    """Draws which of some segments are tested: at most one of an image, for these err together.

    An image of few is often left out, so that every segment is as likely as any other: the promise
    is of segments, and those of images with many may be wrong more often.
    """

    images_N: NDArray[np.int64]
    seed: int

    @property
    def num_images(self) -> int:
        """How many images the segments are of."""
        return len(np.unique(self.images_N))

    def __call__(self, kept_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of the kept segments (N,) are tested."""
        rng = np.random.default_rng(self.seed)
        order, luck_N = rng.permutation(len(kept_N)), rng.random(len(kept_N))
        order = order[kept_N[order]]
        _, first, counts = np.unique(self.images_N[order], return_index=True, return_counts=True)
        chosen = order[first]
        tested_N = np.zeros(len(kept_N), bool)
        tested_N[chosen[luck_N[chosen] < counts / counts.max(initial=1)]] = True
        return tested_N


def find_floors(
    checked: Mapping[int, Checked],
    population: Mapping[int, NDArray[np.float64]],
    promise: Promise,
    seed: int = 0,
) -> dict[int, Floor]:
    """Return a floor of every class of the dataset, from all its scores (M,) and the checked ones.

    Classes of which too few were checked are tested together, on at most one segment an image.
    """
    own = _large_enough(checked, promise)
    rare = [index for index in population if index not in own]
    groups = len(own) + bool(rare)
    found = {
        index: find_floor(
            population[index],
            checked[index].scores_N,
            checked[index].correct_N,
            promise,
            groups=groups,
        )
        for index in own
    }
    if rare:
        pooled = _together([checked[index] for index in rare if index in checked])
        scores_M = np.concatenate([population[index] for index in rare])
        floor = find_floor(
            scores_M,
            pooled.scores_N,
            pooled.correct_N,
            promise,
            groups=groups,
            draw=OnePerImage(pooled.images_N, seed),
        )
        found |= dict.fromkeys(rare, floor)
    return {index: found[index] for index in sorted(found)}


def find_floor(
    population_M: NDArray[np.float64],
    scores_N: NDArray[np.float64],
    correct_N: NDArray[np.bool_],
    promise: Promise,
    *,
    groups: int = 1,
    draw: OnePerImage | None = None,
) -> Floor:
    """Return the lowest floor of one group of segments that the sequence of tests reaches.

    Where an image may hold several of them, `draw` says at every floor which are tested.
    """
    error, least = promise.error_of_each(groups), promise.least_checked(groups)
    basis: Basis = "own" if draw is None else "pooled"
    checked = len(scores_N) if draw is None else draw.num_images
    if checked < least:
        reason = f"{checked} segments were checked, {least} are the fewest that could suffice"
        return Floor(None, basis, checked, 0, 0, None, 0.0, reason)
    shares_T = np.linspace(min(1.0, _TIMES_LEAST * least / checked), 1.0, _FLOORS)
    floors_T = np.quantile(population_M, 1 - shares_T, method="lower")
    kept_TN = scores_N >= floors_T[:, None]
    if draw is not None:
        kept_TN = np.stack([draw(kept_N) for kept_N in kept_TN])
    kept_T, correct_T = kept_TN.sum(axis=1), (kept_TN & correct_N).sum(axis=1)
    passed_T = binom.sf(correct_T - 1, kept_T, promise.precision) <= error
    steps = int(np.append(passed_T, False).argmin())
    last = max(steps - 1, 0)
    kept, correct = int(kept_T[last]), int(correct_T[last])
    bound = float(beta.ppf(error, correct, kept - correct + 1)) if correct else 0.0
    if not steps:
        reason = f"{correct} of the {kept} checked segments of the highest scores were correct"
        return Floor(None, basis, checked, kept, correct, bound, 0.0, reason)
    floor = float(floors_T[last])
    share = float((population_M >= floor).mean())
    return Floor(floor, basis, checked, kept, correct, bound, share, None)


def _large_enough(checked: Mapping[int, Checked], promise: Promise) -> list[int]:
    """Return the classes that are tested alone; the more there are, the more each of them needs."""
    sizes = {index: len(one.scores_N) for index, one in checked.items()}
    own = sorted(sizes)
    while True:
        needed = _TIMES_LEAST * promise.least_checked(len(own) + 1)
        kept = [index for index in own if sizes[index] >= needed]
        if len(kept) == len(own):
            return own
        own = kept


def _together(parts: Sequence[Checked]) -> Checked:
    """Return the segments of several classes, of which an image may hold more than one."""
    return Checked(
        *(
            np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in (("images_N", np.int64), ("scores_N", float), ("correct_N", bool))
        )
    )
