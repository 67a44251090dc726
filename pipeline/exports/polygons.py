"""Polygons that hold exactly the pixels of a mask, holes included.

One ring per 4-connected piece: its border, with every hole joined to it by a vertical bridge that
is walked down and up again, for the formats have no other way to say "hole". A ring is given twice
over, for there are two ways to fill one:

    corners  along the edges of pixels, at whole numbers: exact for geometry, and for pycocotools
    centres  through the border pixels themselves: exact where filling paints the outline, too, as
             OpenCV's fillPoly does and with it the trainers that read YOLO

A border is a cycle of directed edges (pixel, side) with the piece on its right. From each edge the
next one is known from the two pixels ahead, so the cycles of a whole mask are one permutation.

Dimension key: H W pixels, E edges, N vertices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_TOP, _RIGHT, _BOTTOM, _LEFT = range(4)
# Per side, seen with the piece on the right: the step (row, column) along the edge, that across it
# to the pixel outside, and the corner of the pixel at which the edge begins.
_AHEAD: Final = ((0, 1), (1, 0), (0, -1), (-1, 0))
_OUTSIDE: Final = ((-1, 0), (0, 1), (1, 0), (0, -1))
_START: Final = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])

Cycle = Sequence[int]


@dataclass(frozen=True, eq=False)
class Ring:
    """One piece of a mask; vertices (N, 2) are x, y, and the last is joined to the first."""

    corners_N2: NDArray[np.int64]  # of pixels: 0 to W, 0 to H
    centres_N2: NDArray[np.int64]  # pixels: 0 to W - 1, 0 to H - 1


def trace(mask_HW: NDArray[np.bool_], box: tuple[int, int, int, int]) -> list[Ring]:
    """Return the rings of a mask that lies in a box (half-open XYXY), from top to bottom."""
    x0, y0, x1, y1 = box
    inside_HW = mask_HW[y0:y1, x0:x1]
    if not inside_HW.any():
        return []
    edges = _Edges.of(inside_HW)
    outer: list[Cycle] = []
    holes: list[Cycle] = []
    for cycle in edges.cycles():
        (outer if edges.turns_right(cycle) else holes).append(cycle)
    hanging: dict[int, tuple[int, Cycle]] = {}  # edge -> where a hole's cycle is joined, the cycle
    for hole in holes:
        # The topmost bottom side that the hole's border runs along: straight up from there lies
        # nothing but the piece, until the side above, which is another border's.
        lowest = min((edge for edge in hole if edges.side[edge] == _BOTTOM), key=edges.pixel_of)
        hanging[edges.above(lowest)] = hole.index(lowest), hole
    offset_2 = np.array([x0, y0])
    rings = []
    for border in outer:
        corners_N = np.fromiter(_walk(border, hanging, start_after=1), np.int64)
        centres_N = np.fromiter(_walk(border, hanging, start_after=0), np.int64)
        rings.append(
            Ring(
                _without_straights(edges.corners(corners_N)) + offset_2,
                _without_straights(edges.centres(centres_N)) + offset_2,
            )
        )
    return rings


@dataclass(frozen=True, eq=False)
class _Edges:
    """The border of a mask: where edges are, and which one follows which."""

    rows_E: NDArray[np.int64]
    columns_E: NDArray[np.int64]
    sides_E: NDArray[np.int64]
    next: list[int]
    side: list[int]
    number_of: NDArray[np.int64]  # (4, H, W) of each side of each pixel; -1: it is inside

    @classmethod
    def of(cls, mask_HW: NDArray[np.bool_]) -> "_Edges":
        height, width = mask_HW.shape
        padded = np.pad(mask_HW, 1)
        is_edge_4HW = np.stack(
            [
                mask_HW & ~padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
                for down, right in _OUTSIDE
            ]
        )
        sides_E, rows_E, columns_E = is_edge_4HW.nonzero()
        number_of = np.full(is_edge_4HW.shape, -1, np.int64)
        number_of[sides_E, rows_E, columns_E] = np.arange(len(sides_E))
        ahead_E2 = np.array(_AHEAD)[sides_E]
        outside_E2 = np.array(_OUTSIDE)[sides_E]
        turned_E, left_E = (sides_E + 1) % 4, (sides_E + 3) % 4
        q_rows, q_columns = rows_E + ahead_E2[:, 0], columns_E + ahead_E2[:, 1]
        r_rows, r_columns = q_rows + outside_E2[:, 0], q_columns + outside_E2[:, 1]

        def at(sides: Any, rows: Any, columns: Any) -> NDArray[np.int64]:
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            found = number_of[sides, rows.clip(0, height - 1), columns.clip(0, width - 1)]
            return np.where(inside, found, -1)

        right = at(turned_E, rows_E, columns_E)
        straight = at(sides_E, q_rows, q_columns)
        left = at(left_E, r_rows, r_columns)
        following = np.where(right >= 0, right, np.where(straight >= 0, straight, left))
        return cls(rows_E, columns_E, sides_E, following.tolist(), sides_E.tolist(), number_of)

    def cycles(self) -> Iterator[list[int]]:
        """Yield every closed border, by its first edge in the order of the edges."""
        seen = bytearray(len(self.next))
        for first in range(len(self.next)):
            if seen[first]:
                continue
            cycle, edge = [], first
            while not seen[edge]:
                seen[edge] = 1
                cycle.append(edge)
                edge = self.next[edge]
            yield cycle

    def turns_right(self, cycle: Cycle) -> bool:
        """Say whether a border goes round its piece, and not round a hole of it."""
        x_N, y_N = self.corners(np.array(cycle)).T
        return bool((x_N * np.roll(y_N, -1) - np.roll(x_N, -1) * y_N).sum() > 0)

    def pixel_of(self, edge: int) -> tuple[int, int]:
        return int(self.rows_E[edge]), int(self.columns_E[edge])

    def above(self, edge: int) -> int:
        """Return the top side nearest above the pixel of an edge, in its column."""
        row, column = self.pixel_of(edge)
        return int(next(found for found in self.number_of[_TOP, row::-1, column] if found >= 0))

    def corners(self, edges_N: NDArray[np.int64]) -> NDArray[np.int64]:
        start_N2 = _START[self.sides_E[edges_N]]
        return np.stack(
            [self.columns_E[edges_N] + start_N2[:, 1], self.rows_E[edges_N] + start_N2[:, 0]], 1
        )

    def centres(self, edges_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([self.columns_E[edges_N], self.rows_E[edges_N]], 1)


def _walk(cycle: Cycle, hanging: dict[int, tuple[int, Cycle]], start_after: int) -> Iterator[int]:
    """Yield the edges of a border and, at the edges where holes hang, of these in between.

    A hole is entered at its edge of that position plus `start_after`, walked round, and left where
    it was entered; then the edge above it comes a second time.
    """
    stack: list[tuple[Cycle, Iterator[int], int | None]] = [(cycle, iter(cycle), None)]
    while stack:
        _, edges, joined_at = stack[-1]
        for edge in edges:
            yield edge
            if edge in hanging:
                position, hole = hanging[edge]
                start = (position + start_after) % len(hole)
                turned = [*hole[start:], *hole[:start], hole[start]]
                # The last repeats the first: a hole below it must not be entered twice.
                stack.append((turned, iter(turned), edge))
                break
        else:
            stack.pop()
            if joined_at is not None:
                yield joined_at


def _without_straights(vertices_N2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop repeated vertices, and those at which a ring goes straight on."""
    moved_N = (vertices_N2 != np.roll(vertices_N2, 1, axis=0)).any(axis=1)
    if not moved_N.any():
        return vertices_N2[:1]
    vertices_N2 = vertices_N2[moved_N]
    before_N2 = vertices_N2 - np.roll(vertices_N2, 1, axis=0)
    after_N2 = np.roll(vertices_N2, -1, axis=0) - vertices_N2
    cross_N = before_N2[:, 0] * after_N2[:, 1] - before_N2[:, 1] * after_N2[:, 0]
    dot_N = (before_N2 * after_N2).sum(axis=1)
    turning_N2: NDArray[np.int64] = vertices_N2[(cross_N != 0) | (dot_N < 0)]
    return turning_N2
