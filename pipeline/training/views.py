"""Batches of augmented images, prepared ahead in threads.

Dimension key: C side of a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import BadImage
from pipeline.training import world
from pipeline.training.labelled_images import VOID, Pair, Sampler
from pipeline.training.proposal_training import VIEWS, ProposalTraining


class View(NamedTuple):
    """One augmented image, the seen position of its pixels, and how many masks they make."""

    pair: Pair
    pixels_CC3: NDArray[np.uint8]
    positions_CC: NDArray[np.int32]
    masks: int


class Views:
    """Prepares this worker's share of every batch, one batch ahead, in threads."""

    def __init__(self, training: ProposalTraining) -> None:
        self._training = training
        self._config = training.config
        self._augmentation = training.augmentation
        self._sampler = Sampler(len(training.pairs), training.config.seed)

    def batches(self, first: int) -> Iterator[tuple[int, list[View] | Exception]]:
        """Yield steps from `first` with their views, or with what went wrong making them."""
        with ThreadPoolExecutor(self._config.loader_threads) as pool:
            ahead = self._submitted(pool, first)
            for step in range(first, self._config.steps):
                current, ahead = ahead, self._submitted(pool, step + 1)
                try:
                    yield step, [future.result() for future in current]
                except (BadImage, ValueError) as error:
                    yield step, error

    def _submitted(self, pool: ThreadPoolExecutor, step: int) -> list[Future[View]]:
        if step >= self._config.steps:
            return []
        share = self._config.batch_size // world.size()
        start = step * self._config.batch_size + world.rank() * share
        return [pool.submit(self.view, start + index) for index in range(share)]

    def view(self, position: int) -> View:
        """Return what stands at a position of the endless order."""
        pair = self._training.pairs[self._sampler.index(position)]
        image, positions_HW = self._training.data.load(pair)
        rng = np.random.default_rng([self._config.seed, VIEWS, position])
        pixels_CC3, positions_CC = self._augmentation(rng, image, positions_HW)
        present = np.unique(positions_CC)
        return View(pair, pixels_CC3, positions_CC, int((present != VOID).sum()))
