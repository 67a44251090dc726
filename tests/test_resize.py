"""Sizes of the method, against the values that the reference gives (spec 2.1)."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pipeline.bilinear import RowTaps, resize_width, rows_at_once, rows_one_by_one
from pipeline.resize import padded_size, resize_image, resized_size


@pytest.mark.parametrize(
    "original, short, long, resized, padded",
    [
        ((480, 640), 640, 2560, (640, 853), (640, 864)),
        ((427, 640), 640, 2560, (640, 959), (640, 960)),
        ((333, 500), 640, 2560, (640, 961), (640, 992)),
        ((640, 640), 640, 2560, (640, 640), (640, 640)),
        ((100, 640), 640, 2560, (400, 2560), (416, 2560)),
        ((375, 500), 512, 2048, (512, 683), (512, 704)),
        ((500, 375), 512, 2048, (683, 512), (704, 512)),
        ((3000, 2000), 512, 2048, (768, 512), (768, 512)),
        ((1024, 2048), 1024, 2048, (1024, 2048), (1024, 2048)),
        ((1, 500), 512, 2048, (4, 2048), (32, 2048)),
        ((2290, 1422), 640, 1333, (1031, 640), (1056, 640)),
        ((2602, 2249), 1024, 288, (288, 249), (288, 256)),
        ((1007, 508), 160, 288, (288, 145), (288, 160)),
    ],
    ids=[
        "coco landscape",
        "coco rounded down",
        "coco rounded up",
        "square",
        "panorama, limited by its long edge",
        "voc landscape",
        "voc portrait",
        "large portrait",
        "cityscapes unchanged",
        "one pixel high",
        "portrait, shrunk",
        "limit below the short edge",
        "portrait, limited by its long edge",
    ],
)
def test_sizes_are_those_of_the_reference(original, short, long, resized, padded):
    assert resized_size(original, short, long) == resized
    assert padded_size(resized, 32) == padded


@pytest.mark.parametrize(
    "original, expected",
    [((59424, 3), (2560, 1)), ((3, 59424), (1, 2560)), ((1, 1), (640, 640))],
    ids=["extremely tall", "extremely wide", "one pixel"],
)
def test_no_side_falls_below_one_pixel(original, expected):
    assert resized_size(original, 640, 2560) == expected


@pytest.mark.parametrize(
    "size, padded",
    [((1, 1), (32, 32)), ((32, 64), (32, 64)), ((33, 31), (64, 32))],
    ids=["one pixel", "multiples stay", "one over and one under"],
)
def test_padding_rounds_each_side_up(size, padded):
    assert padded_size(size, 32) == padded


def test_resizing_gives_height_then_width_and_averages_when_shrinking():
    pixels = np.zeros((8, 4, 3), dtype=np.uint8)
    pixels[:, ::2] = 200
    shrunk = resize_image(Image.fromarray(pixels), (2, 1))
    assert shrunk.shape == (2, 1, 3)
    np.testing.assert_allclose(shrunk, 100, atol=1)


def test_an_image_of_the_right_size_keeps_its_pixels():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(resize_image(Image.fromarray(pixels), (2, 3)), pixels)


@pytest.mark.parametrize("shape, width", [((37, 54), 200), ((3, 5, 216), 864), ((4, 7), 5)])
def test_lines_resized_as_a_picture_of_lines_are_the_same_numbers(shape, width):
    """A GPU is given them so, see `resize_width`."""
    values = torch.randn(shape)
    flat = values.reshape(1, 1, -1, shape[-1])
    as_picture = interpolate(
        flat, size=(flat.shape[2], width), mode="bilinear", align_corners=False
    )
    assert torch.equal(resize_width(values, width), as_picture.reshape(*shape[:-1], width))


@pytest.mark.parametrize("target, rows", [(13, slice(0, 13)), (40, slice(7, 31)), (3, slice(1, 3))])
def test_rows_one_by_one_and_at_once_are_those_of_the_whole(target, rows):
    values_HWQ = torch.randn((9, 4, 5))
    whole_1QTW = interpolate(
        values_HWQ.permute(2, 0, 1)[None], size=(target, 4), mode="bilinear", align_corners=False
    )
    taps = RowTaps.of(9, target)
    needed_HWQ, own = values_HWQ[taps.needed(rows)], taps.within(rows)
    for resize in (rows_one_by_one, rows_at_once):
        found_QTW = resize(needed_HWQ, own).permute(2, 0, 1)
        torch.testing.assert_close(found_QTW, whole_1QTW[0, :, rows])
