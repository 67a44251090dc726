"""Polygons of people as masks."""

import math

import numpy as np
import pytest

from pipeline.exports.polygons import trace
from pipeline.review.polygons import polygon_mask
from tests.export_ground import ragged_map


@pytest.mark.parametrize("seed", range(3))
def test_rings_along_the_edges_of_pixels_come_back_exactly(seed):
    size = (31, 43)
    mask_HW = ragged_map(np.random.default_rng(seed), size) == 1
    found_HW = np.zeros(size, bool)
    for ring in trace(mask_HW, (0, 0, size[1], size[0])):  # holes are joined by bridges
        found_HW |= polygon_mask(ring.corners_N2.tolist(), size)
    assert mask_HW.any() and (found_HW == mask_HW).all()


def test_a_slanted_outline_is_followed_to_a_pixel():
    size, centre, radius = (120, 160), (70.3, 50.6), 33.0
    turns = [2 * math.pi * n / 90 for n in range(90)]
    circle = [(centre[0] + radius * math.cos(t), centre[1] + radius * math.sin(t)) for t in turns]
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    away_HW = np.hypot(columns - centre[0], rows - centre[1])
    found_HW = polygon_mask(circle, size)
    assert found_HW[away_HW < radius - 1].all() and not found_HW[away_HW > radius + 1].any()
    assert abs(found_HW.sum() / (math.pi * radius**2) - 1) < 0.02


def test_what_lies_outside_is_cut_off():
    found_HW = polygon_mask([(-3, -3), (4, -3), (4, 9), (-3, 9)], (6, 8))
    assert found_HW[:, :4].all() and not found_HW[:, 4:].any()


def test_a_line_has_no_pixels():
    assert not polygon_mask([(1, 1), (5, 1), (3, 1)], (6, 8)).any()


@pytest.mark.parametrize(
    "points, message",
    [
        ([(0, 0), (1, 1)], "2 vertices has no inside"),
        ([(0, 0), (1, 1), (math.nan, 2)], "pairs of numbers"),
        ([(0, 0, 0), (1, 1, 1), (1, 2, 1)], "pairs of numbers"),
        ([(0, 0), (1e9, 1), (1, 2)], r"\(1e\+09, 1\) is far from an image of 6 x 8"),
    ],
)
def test_what_is_no_polygon_of_the_image_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        polygon_mask(points, (6, 8))


def test_a_vertex_may_lie_outside_by_as_much_as_the_image_is_large():
    polygon_mask([(-6, -4), (12, 0), (12, 8)], (4, 6))
    for far in ((12.1, 0), (0, 8.1), (-6.1, 0), (0, -4.1)):
        with pytest.raises(ValueError, match="is far from an image of 4 x 6"):
            polygon_mask([(0, 0), (3, 3), far], (4, 6))
