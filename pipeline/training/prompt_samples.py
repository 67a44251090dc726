"""Which regions a prompt is learned from, and which choose among the prompts (spec 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from pipeline.training.labelled_images import Finding, Pair
from schemas.errors import SettingsError

# What a random stream of the samples' seed is for; the drawing of samples has the seed alone, as
# the reference's.
HELD_OUT: Final = 1
CHOICE: Final = 2
VIEW: Final = 3


class Sample(NamedTuple):
    """The region of a seen class in an image: all its pixels, as one mask."""

    pair: Pair
    position: int  # among the seen classes


def hold_out(
    findings: Sequence[Finding], share: float, seed: int
) -> tuple[list[Finding], list[Finding]]:
    """Return the images to learn from and, of a share above 0, one or more to choose by."""
    count = math.ceil(share * len(findings))
    if count == len(findings):
        raise SettingsError(
            f"held_out {share} of {len(findings)} images leaves none to learn from; give more "
            "images, or one seed and held_out 0"
        )
    order = np.random.default_rng([seed, HELD_OUT]).permutation(len(findings))
    kept_out = set(order[:count].tolist())
    return (
        [finding for index, finding in enumerate(findings) if index not in kept_out],
        [finding for index, finding in enumerate(findings) if index in kept_out],
    )


def draw(findings: Sequence[Finding], per_class: int, *, seed: int, repeat: bool) -> list[Sample]:
    """Return samples of every class in order; of one with fewer regions than `per_class`, all.

    Others are drawn with replacement (the reference's way) or without.
    """
    rng = np.random.default_rng(seed)
    return _drawn(_by_class(findings), per_class, rng, repeat=repeat)


def draw_held_out(findings: Sequence[Finding], per_class: int, seed: int) -> list[Sample]:
    """Return the samples that choose among prompts: at most `per_class` of a class, none twice."""
    rng = np.random.default_rng([seed, CHOICE])
    return _drawn(_by_class(findings), per_class, rng, repeat=False)


def _by_class(findings: Sequence[Finding]) -> dict[int, list[Pair]]:
    pairs: dict[int, list[Pair]] = {}
    for finding in findings:
        for position in finding.positions:
            pairs.setdefault(position, []).append(finding.pair)
    return dict(sorted(pairs.items()))


def _drawn(
    pairs: Mapping[int, Sequence[Pair]], per_class: int, rng: np.random.Generator, *, repeat: bool
) -> list[Sample]:
    samples: list[Sample] = []
    for position, found in pairs.items():
        chosen: Sequence[int] = range(len(found))
        if len(found) >= per_class:
            chosen = sorted(rng.choice(len(found), per_class, replace=repeat).tolist())
        samples += [Sample(found[index], position) for index in chosen]
    return samples
