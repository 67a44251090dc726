"""What moved between two label maps of the same images, by run arithmetic: no map is made.

Labels are small numbers here, 0 for pixels of no segment. Dimension key: B images, N segments, E
edges of runs, P pieces in which neither map changes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.run_lengths import Ints, decode_runs


@dataclass(frozen=True, eq=False)
class LabelRuns:
    """The segments of several images: compressed counts, image (0 to B - 1) and label of each."""

    counts: list[bytes]
    images_N: Ints
    labels_N: Ints


@dataclass(frozen=True, eq=False)
class Moves:
    """Pixels by label before and after (equal where they stayed), and moved ones per image (B,)."""

    flows: dict[tuple[int, int], int]
    moved_B: Ints


class ImageError(ValueError):
    """The segments of one image of a batch are no label map."""

    def __init__(self, image: int, problem: str) -> None:
        super().__init__(problem)
        self.image = image


def find_moves(before: LabelRuns, after: LabelRuns, pixels_B: Ints) -> Moves:
    """Compare the label maps of images of so many pixels.

    Raises ImageError when segments overlap or do not fit the image.
    """
    starts_B = np.concatenate([[0], pixels_B.cumsum()[:-1]]).astype(np.int64)
    old, new = (_edges(side, pixels_B, starts_B) for side in (before, after))
    # All images lie on one line, one behind the other; no piece crosses from one to the next.
    cuts_P = _sorted_once(np.concatenate([old[0], new[0], starts_B]))
    lengths_P = np.diff(cuts_P, append=pixels_B.sum())
    images_P = np.searchsorted(starts_B, cuts_P, side="right") - 1
    old_P, new_P = (
        labels[np.searchsorted(at, cuts_P, side="right") - 1] for at, labels in (old, new)
    )
    moved_B = _sums(images_P, np.where(old_P == new_P, 0, lengths_P), len(pixels_B))
    stayed = old_P == new_P
    flows = {(label, label): total for label, total in _totals(old_P[stayed], lengths_P[stayed])}
    base = 1 + int(new_P.max(initial=0))
    pairs = old_P[~stayed] * base + new_P[~stayed]
    flows |= {divmod(pair, base): total for pair, total in _totals(pairs, lengths_P[~stayed])}
    return Moves(flows, moved_B)


def _sorted_once(values: Ints) -> Ints:
    """Return the values in order, each once; they are a few ascending sequences already."""
    ordered = np.sort(values, kind="stable")
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]


def _edges(side: LabelRuns, pixels_B: Ints, starts_B: Ints) -> tuple[Ints, Ints]:
    """Return the positions on the line where the label changes, ascending, and the label there."""
    try:
        runs = decode_runs(side.counts)
    except ValueError as error:
        raise ImageError(_first_bad(side), str(error)) from None
    unfit_N = runs.pixels_N != pixels_B[side.images_N]
    if unfit_N.any():
        first = int(unfit_N.argmax())
        image = int(side.images_N[first])
        raise ImageError(
            image,
            f"a segment covers {runs.pixels_N[first]} pixels, the image has {pixels_B[image]}",
        )
    shift_R = starts_B[side.images_N[runs.masks_R]]
    order_R = np.argsort(runs.starts_R + shift_R, kind="stable")
    starts_R, ends_R = ((at + shift_R)[order_R] for at in (runs.starts_R, runs.ends_R))
    masks_R = runs.masks_R[order_R]
    overlaps = starts_R[1:] < ends_R[:-1]
    if overlaps.any():
        image = int(side.images_N[masks_R[int(overlaps.argmax()) + 1]])
        raise ImageError(image, "its segments overlap")
    # A run that ends where the next begins gives two edges at one place; a search takes the later.
    edges_E = np.concatenate([[0], np.stack([starts_R, ends_R], axis=1).ravel()])
    labels_E = np.zeros(len(edges_E), dtype=np.int64)
    labels_E[1::2] = side.labels_N[masks_R]
    return edges_E.astype(np.int64), labels_E


def _first_bad(side: LabelRuns) -> int:
    for counts, image in zip(side.counts, side.images_N, strict=True):
        try:
            decode_runs([counts])
        except ValueError:
            return int(image)
    raise AssertionError("runs fail together but not alone")


def _totals(keys: Ints, values: Ints) -> list[tuple[int, int]]:
    """Return every key with the sum of its values."""
    found, places = np.unique(keys, return_inverse=True)
    totals = _sums(places, values, len(found))
    return list(zip(found.tolist(), totals.tolist(), strict=True))


def _sums(groups: NDArray[np.integer], values: Ints, count: int) -> Ints:
    """Return the sum of the values of every group, exactly."""
    totals = np.zeros(count, dtype=np.int64)
    np.add.at(totals, groups, values)
    return totals
