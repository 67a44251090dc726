"""Run lengths decoded in bulk equal what pycocotools makes of them, mask by mask."""

import numpy as np
import pytest

from pipeline.run_lengths import decode_runs
from pipeline.segments import encode_mask
from tests.helpers import draw

RANDOM = np.random.default_rng(0)
MASKS = {
    "empty": np.zeros((3, 4), bool),
    "full": np.ones((3, 4), bool),
    "one pixel": np.ones((1, 1), bool),
    "no pixel": np.zeros((1, 1), bool),
    "corner": draw("..#", "..."),
    "noise": RANDOM.random((37, 53)) < 0.5,
    "sparse": RANDOM.random((200, 300)) < 0.002,
    "blocks": np.kron(RANDOM.random((9, 7)) < 0.5, np.ones((41, 57), bool)),
    "large": np.pad(np.ones((900, 2), bool), ((50, 50), (1500, 1500))),
}


def painted(runs, number, shape):
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, end, mask in zip(runs.starts_R, runs.ends_R, runs.masks_R, strict=True):
        if mask == number:
            flat[start:end] = True
    return flat.reshape(shape, order="F")


def test_all_masks_at_once_equal_each_alone():
    runs = decode_runs([encode_mask(mask) for mask in MASKS.values()])
    for number, mask in enumerate(MASKS.values()):
        assert (painted(runs, number, mask.shape) == mask).all()
        assert runs.pixels_N[number] == mask.size


def test_no_masks_have_no_runs():
    runs = decode_runs([])
    assert (runs.starts_R.size, runs.pixels_N.size) == (0, 0)
    assert decode_runs([b""]).pixels_N.tolist() == [0]


@pytest.mark.parametrize(
    "counts", [b"\x00", b"\xff", b"0o", b"O", b"ooooooooooooooo0"],
    ids=["below", "above", "cut off", "negative", "too long"],
)  # fmt: skip
def test_what_is_no_run_length_is_an_error(counts):
    with pytest.raises(ValueError, match=r"counts|negative"):
        decode_runs([encode_mask(draw("#.")), counts])
