"""Views of an image: size, padding, what a pixel and its label go through together."""

import numpy as np
import pytest
from PIL import Image

from pipeline.training.augmentation import Augmentation, jitter
from pipeline.training.labelled_images import VOID

STEADY = {"colour_jitter": False, "flip": False}


def rng(seed=0):
    return np.random.default_rng(seed)


def image_of(positions_HW):
    """An image whose colour says the position of the pixel."""
    pixels = np.asarray(positions_HW, np.uint8)[..., None] * np.array([20, 10, 5], np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def halves():
    positions_HW = np.zeros((40, 60), np.int32)
    positions_HW[:, 30:] = 1
    return positions_HW


def test_a_view_of_the_own_size_is_the_image(halves):
    steady = Augmentation((40,), 1000, crop_size=60, **STEADY)
    pixels_CC3, positions_CC = steady(rng(), image_of(halves), halves)
    assert (pixels_CC3[:40] == np.asarray(image_of(halves))).all()
    assert (positions_CC[:40] == halves).all()
    # What the image does not reach: the reference's grey, and no class.
    assert (pixels_CC3[40:] == 128).all() and (positions_CC[40:] == VOID).all()


def test_the_shorter_side_is_one_of_the_list_and_the_longer_is_limited(halves):
    sides = set()
    for seed in range(20):
        views = Augmentation((20, 80), 60, crop_size=128, **STEADY)(
            rng(seed), image_of(halves), halves
        )
        inside = views[1] != VOID
        sides.add((int(inside.any(1).sum()), int(inside.any(0).sum())))
    assert sides == {(20, 30), (40, 60)}


def test_crops_reach_every_border_and_nothing_beyond(halves):
    positions_HW = np.arange(40 * 60, dtype=np.int32).reshape(40, 60)
    corners = set()
    crop = Augmentation((40,), 1000, crop_size=32, **STEADY)
    for seed in range(300):
        _, positions_CC = crop(rng(seed), image_of(halves), positions_HW)
        top, left = divmod(int(positions_CC[0, 0]), 60)
        assert (positions_CC == positions_HW[top : top + 32, left : left + 32]).all()
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(9))
    assert {left for _, left in corners} == set(range(29))


def test_pixels_and_labels_are_mirrored_together(halves):
    mirror = Augmentation((40,), 1000, crop_size=60, colour_jitter=False)
    seen = set()
    for seed in range(20):
        pixels_CC3, positions_CC = mirror(rng(seed), image_of(halves), halves)
        assert (pixels_CC3[:40, :, 0] == 20 * positions_CC[:40]).all()
        seen.add(int(positions_CC[0, 0]))
    assert seen == {0, 1}


def test_one_generator_makes_one_view(halves):
    augment = Augmentation((32, 40, 48), 1000, crop_size=32)
    first, again = (augment(rng(3), image_of(halves), halves) for _ in range(2))
    other = augment(rng(4), image_of(halves), halves)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()


def test_jitter_stays_within_its_bounds():
    grey_HW3 = np.full((8, 8, 3), 100, np.uint8)
    values, generator = [], rng()
    for _ in range(2000):
        jittered_HW3 = jitter(generator, grey_HW3)
        # Grey has no hue and no saturation to change.
        assert len(np.unique(jittered_HW3)) == 1
        values.append(int(jittered_HW3[0, 0, 0]))
    # 0.5 * (100 - 32) to 1.5 * (100 + 32); a quarter keeps brightness and contrast.
    assert min(values) >= 34 and max(values) <= 198
    assert min(values) < 45 and max(values) > 180
    assert 0.22 < np.mean(np.asarray(values) == 100) < 0.30


def test_hue_turns_by_a_tenth_of_the_circle_at_most():
    red_HW3 = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    hues = []
    for seed in range(400):
        hsv = Image.fromarray(jitter(rng(seed), red_HW3)).convert("HSV")
        hue = int(np.asarray(hsv)[0, 0, 0])
        hues.append(hue - 256 if hue > 128 else hue)
    assert 22 <= max(hues) <= 28 and -28 <= min(hues) <= -22
    assert 0.35 < np.mean(np.abs(hues) <= 1) < 0.65  # one time in two it stays


def test_an_empty_crop_of_classes_is_a_view_too():
    nothing_HW = np.full((40, 60), VOID, np.int32)
    image = Image.new("RGB", (60, 40))
    _, positions_CC = Augmentation((40,), 1000, crop_size=32)(rng(), image, nothing_HW)
    assert (positions_CC == VOID).all()
