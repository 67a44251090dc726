"""The confusion matrix to look at: cells to draw, and the largest confusions in words.

Dimension key: K class names.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import Confusion
from schemas.vocabulary import Vocabulary

MAX_CLASSES: Final = 200
NO_LABEL: Final = "no label"
_MIN_SHARE: Final = 0.002  # of a true class; fainter cells could not be seen
_MAX_LISTED: Final = 20
_SIDES: Final = (5.0, 18.0)  # of a cell
_WANTED_WIDTH: Final = 760.0
_MIN_SIDE_OF_TEXT: Final = 9.0
_MARGIN: Final = 130.0  # for names
_LONGEST_NAME: Final = 19


@dataclass(frozen=True)
class Cell:
    """A share of one true class that got one label."""

    row: int
    column: int
    share: float
    is_hit: bool
    title: str

    @property
    def opacity(self) -> float:
        """How strongly it is drawn: rare confusions are to be seen, too."""
        return max(0.12, math.sqrt(self.share))


@dataclass(frozen=True)
class HeatMap:
    """Rows: true classes. Columns: predicted ones, in the same order, and "no label"."""

    names: tuple[str, ...]
    cells: tuple[Cell, ...]
    num_left_out: int  # classes that are not drawn

    @property
    def side(self) -> float:
        """Width and height of a cell."""
        return min(_SIDES[1], max(_SIDES[0], _WANTED_WIDTH / (len(self.names) + 1)))

    @property
    def margin(self) -> float:
        """Room for names left and above."""
        return _MARGIN if self.has_names else 4.0

    @property
    def has_names(self) -> bool:
        """Whether cells are large enough for names beside them."""
        return self.side >= _MIN_SIDE_OF_TEXT

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, as far as there is room."""
        return tuple(_short(name) for name in (*self.names, NO_LABEL))

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows, as far as there is room."""
        return tuple(map(_short, self.names))


@dataclass(frozen=True)
class Mistake:
    """One kind of confusion: pixels of a true class that got another label, or none."""

    truth: str
    predicted: str
    share: float  # of the true class
    share_of_errors: float


def make_heat_map(confusion: Confusion, vocabulary: Vocabulary) -> HeatMap:
    """Return the map of the classes that occur, the most frequent ones where there are many."""
    present = np.flatnonzero((confusion.truth > 0) | (confusion.predicted > 0))
    frequent = present[np.argsort(-confusion.truth[present], kind="stable")][:MAX_CLASSES]
    shown = np.sort(frequent)
    rows = [*shown, len(vocabulary)]
    counts = confusion.counts[np.ix_(rows, shown)]  # predicted by truth, as the matrix is
    shares = counts / np.maximum(confusion.truth[shown], 1)
    names = tuple(vocabulary.names[index] for index in shown)
    labels = (*names, NO_LABEL)
    cells = tuple(
        Cell(
            row=int(truth),
            column=int(predicted),
            share=float(shares[predicted, truth]),
            is_hit=bool(predicted == truth),
            title=f"{names[truth]} labelled {labels[predicted]}: "
            f"{shares[predicted, truth]:.1%} ({counts[predicted, truth]:,} px)",
        )
        for predicted, truth in zip(*(shares >= _MIN_SHARE).nonzero(), strict=True)
    )
    return HeatMap(names, cells, len(present) - len(shown))


def largest_mistakes(confusion: Confusion, vocabulary: Vocabulary) -> Sequence[Mistake]:
    """Return the confusions of the most pixels, largest first."""
    wrong: NDArray[Any] = confusion.counts.copy()
    np.fill_diagonal(wrong, 0)
    total = int(wrong.sum())
    labels = (*vocabulary.names, NO_LABEL)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_LISTED]
    found = []
    for predicted, truth in zip(*np.unravel_index(order, wrong.shape), strict=True):
        pixels = int(wrong[predicted, truth])
        if pixels:
            share = pixels / int(confusion.truth[truth])
            found.append(Mistake(labels[truth], labels[predicted], share, pixels / total))
    return found


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
