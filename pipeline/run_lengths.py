"""COCO's compressed run lengths as arrays, of many masks at once, without making a mask.

Pixels are numbered down the columns: pixel (row, column) of an image of height H is column * H +
row. Dimension key: N masks, R runs of ones, C numbers in all strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_ZERO: Final = 48  # the character of five zero bits
_MORE: Final = 0x20
_SIGN: Final = 0x10


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of ones, [start, end), of masks in order, and the pixels (N,) of each mask's image.

    Within a mask runs ascend and do not touch.
    """

    starts_R: Ints
    ends_R: Ints
    masks_R: Ints
    pixels_N: Ints


def decode_runs(counts: Sequence[bytes]) -> Runs:
    """Return the runs of compressed masks (`rleFrString` of pycocotools).

    Raises ValueError for a string that is no such mask.
    """
    values_C, numbers_N = _numbers(b"".join(counts), np.array(list(map(len, counts)), np.int64))
    first_N = numbers_N.cumsum() - numbers_N
    ranks_C = np.arange(len(values_C)) - np.repeat(first_N, numbers_N)
    is_odd_C = ranks_C % 2 == 1
    runs_C = values_C.copy()
    # From the fourth number on each is told as its difference from the one two before.
    for chain_C, chained_N in (
        (is_odd_C, numbers_N // 2),
        (~is_odd_C & (ranks_C > 0), np.maximum(numbers_N - 1, 0) // 2),
    ):
        runs_C[chain_C] = _cumsum_of_groups(values_C[chain_C], chained_N)
    if (runs_C < 0).any():
        raise ValueError("a run is of negative length")
    ends_C = _cumsum_of_groups(runs_C, numbers_N)
    ones_C = is_odd_C & (runs_C > 0)
    pixels_N = np.zeros(len(counts), dtype=np.int64)
    some_N = numbers_N > 0
    pixels_N[some_N] = ends_C[(first_N + numbers_N - 1)[some_N]]
    masks_C = np.repeat(np.arange(len(counts)), numbers_N)
    return Runs((ends_C - runs_C)[ones_C], ends_C[ones_C], masks_C[ones_C], pixels_N)


def _numbers(data: bytes, lengths_N: Ints) -> tuple[Ints, Ints]:
    """Return the signed numbers of the joined strings, and how many of them each string has."""
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - _ZERO
    if codes.size == 0:
        return codes, np.zeros(len(lengths_N), dtype=np.int64)
    is_last = (codes & _MORE) == 0
    string_ends_N = lengths_N.cumsum()
    if codes.min() < 0 or codes.max() > 63 or not is_last[string_ends_N[lengths_N > 0] - 1].all():
        raise ValueError("its counts are no compressed run lengths")
    lasts_C = is_last.nonzero()[0]
    firsts_C = np.concatenate([[0], lasts_C[:-1] + 1])
    digits_C = lasts_C - firsts_C + 1
    if digits_C.max() > 12:
        raise ValueError("its counts hold a number beyond 60 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(firsts_C, digits_C))
    values_C = np.add.reduceat((codes & 0x1F) << shifts, firsts_C)
    is_negative_C = (codes[lasts_C] & _SIGN) != 0
    values_C -= np.where(is_negative_C, np.int64(1) << (5 * digits_C), 0)
    told_N = np.searchsorted(lasts_C, string_ends_N)
    return values_C, np.diff(told_N, prepend=0)


def _cumsum_of_groups(values: Ints, sizes: Ints) -> Ints:
    """Return sums up to and with every entry, begun anew in every group of so many entries."""
    sums = values.cumsum()
    before = np.concatenate([[0], sums])[sizes.cumsum() - sizes]
    return np.asarray(sums - np.repeat(before, sizes))
