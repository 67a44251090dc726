"""Kept masks as one picture."""

import numpy as np
import pytest

from pipeline.mask_codec import decode_logits, encode_logits


def smooth_masks(num_masks=20, height=30, width=41, seed=0):
    """Blobs with soft borders, as a network makes them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre_Q2 = rng.uniform(0, [height, width], (num_masks, 2))
    radius_Q = rng.uniform(3, 12, num_masks)
    distance_Qhw = np.hypot(
        rows - centre_Q2[:, 0, None, None], columns - centre_Q2[:, 1, None, None]
    )
    return (2.0 * (radius_Q[:, None, None] - distance_Qhw)).astype(np.float32)


def probs(logits):
    return 1 / (1 + np.exp(-logits.clip(-50, 50)))


@pytest.mark.parametrize("num_masks", [1, 20, 700], ids=["one", "some", "more than a column"])
def test_masks_come_back_nearly_the_same(num_masks):
    logits = smooth_masks(num_masks, height=60, width=33)
    data = encode_logits(logits, 10**9)
    found = decode_logits(data, logits.shape)
    assert found.shape == logits.shape and found.dtype == np.float32
    assert np.abs(probs(found) - probs(logits)).max() < 0.12
    assert np.abs(probs(found) - probs(logits)).mean() < 0.005
    assert ((found > 0) == (logits > 0)).mean() > 0.997


def test_logits_of_any_size_stay_finite():
    logits = np.array([[[-1e4, 1e4], [0.0, 3.0]]], np.float32)
    found = decode_logits(encode_logits(logits, 10**9), logits.shape)
    assert np.isfinite(found).all()
    assert (np.sign(found[0, 0]) == [-1, 1]).all()


def test_a_smaller_budget_makes_a_smaller_picture():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 3, (16, 40, 40)).astype(np.float32)  # what no codec likes
    sizes = [len(encode_logits(noise, budget)) for budget in (10**9, 14_000, 7_000)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[1] <= 14_000 and sizes[2] <= 7_000
    assert decode_logits(encode_logits(noise, 1), noise.shape).shape == noise.shape


def test_no_mask_takes_no_byte():
    empty = np.zeros((0, 8, 8), np.float32)
    assert encode_logits(empty, 100) == b""
    assert decode_logits(b"", empty.shape).shape == empty.shape


def test_a_picture_of_another_image_is_refused():
    data = encode_logits(smooth_masks(), 10**9)
    with pytest.raises(ValueError, match=r"does not hold masks of \(20, 64, 41\)"):
        decode_logits(data, (20, 64, 41))
