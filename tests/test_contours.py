"""Contour proposals: nested regions, cut where contours are strong."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from pipeline.masks import mask_probs
from pipeline.models import find_proposer
from pipeline.models.contours import Contours, ContourSettings, Hierarchy, contour_strength
from pipeline.resize import padded_size

GREY, RED, DARK_RED = (30, 30, 30), (220, 40, 60), (190, 36, 54)


def halves(height=64, width=96, edge=32):
    image = np.full((height, width, 3), GREY, dtype=np.uint8)
    image[:, edge:] = RED
    return image


def quarters(side=64):
    """Return grey on the left; on the right two reds, one above the other."""
    image = halves(side, side, side // 2)
    image[side // 2 :, side // 2 :] = DARK_RED
    return image


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def propose(image):
    (proposals,) = Contours().propose([image])
    return proposals.mask_logits_Qhw


def masks_of(image):
    size = image.shape[:2]
    return (mask_probs(propose(image), padded_size(size, 32), size) > 0.5).numpy()


@pytest.mark.parametrize("size, edge", [((64, 96), 32), ((40, 100), 64), ((90, 50), 24)])
def test_two_colours_are_two_proposals(size, edge):
    masks_QHW = masks_of(halves(*size, edge))
    left_HW = np.broadcast_to(np.arange(size[1]) < edge, size)
    assert len(masks_QHW) == 2
    for expected_HW in (left_HW, ~left_HW):
        overlaps = [(mask & expected_HW).sum() / (mask | expected_HW).sum() for mask in masks_QHW]
        assert max(overlaps) > 0.95


def test_strength_of_a_straight_edge_is_the_difference_of_its_colours():
    strength = contour_strength(halves(edge=48), (1.0, 2.0, 4.0))
    grey, red = rgb2lab(np.array([GREY, RED], dtype=np.uint8))
    assert strength[32, 47:49].mean() == pytest.approx(np.linalg.norm(grey - red), rel=0.05)
    assert strength[:, :20].max() == strength[:, -20:].max() == 0


def test_weaker_contours_go_first_and_levels_are_nested():
    hierarchy = Hierarchy.of(contour_strength(quarters(), (1.0, 2.0)))
    two, three = hierarchy.cut(2, 0.0), hierarchy.cut(3, 0.0)
    assert (len(np.unique(two)), len(np.unique(three))) == (2, 3)
    assert two[5, 60] == two[60, 60] != two[5, 5]  # the two reds are one
    for region in np.unique(three):
        assert len(np.unique(two[three == region])) == 1
    assert len(np.unique(hierarchy.cut(1, 0.0))) == 1


def test_contours_below_the_least_strength_separate_nothing():
    hierarchy = Hierarchy.of(contour_strength(quarters(), (1.0, 2.0)))
    counts = [len(np.unique(hierarchy.cut(64, least))) for least in (1.0, 20.0, 1000.0)]
    assert counts == [3, 2, 1]


def test_proposals_are_the_regions_of_all_levels_once():
    masks_QHW = masks_of(quarters())
    assert len(masks_QHW) == 4  # grey and red, and the two reds; grey is not repeated
    assert (masks_QHW[0] | masks_QHW[1]).all()
    areas = masks_QHW.sum(axis=(1, 2))
    assert areas[2] + areas[3] == pytest.approx(64 * 32, rel=0.1)


def test_one_colour_is_one_proposal():
    masks_QHW = masks_of(np.full((33, 47, 3), 128, dtype=np.uint8))
    assert masks_QHW.shape == (1, 33, 47)
    assert masks_QHW.all()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 200), (90, 2), (40, 100), (33, 31)], ids=str)
def test_proposals_cover_an_image_of_any_size(size):
    logits = propose(noise(*size))
    height, width = padded_size(size, 32)
    assert 1 <= len(logits) <= 100
    assert logits.shape[1:] == (height // 4, width // 4)
    assert logits.isfinite().all()
    covered = logits[:, : -(-size[0] // 4), : -(-size[1] // 4)].sigmoid().sum(dim=0)
    assert covered.min() > 0.9


def test_a_busy_image_has_a_hundred_proposals_and_coarse_ones_come_first():
    logits = propose(noise(24, 24).repeat(8, axis=0).repeat(8, axis=1))
    assert len(logits) == 100
    assert (logits[:2].sigmoid().sum(dim=0) > 0.9).all()  # the coarsest level covers the image


def test_settings_bound_levels_and_proposals():
    image = noise(24, 24).repeat(4, axis=0).repeat(4, axis=1)
    (found,) = Contours(ContourSettings(levels=(3,))).propose([image])
    assert len(found.mask_logits_Qhw) == 3
    (found,) = Contours(ContourSettings(max_proposals=5)).propose([image])
    assert len(found.mask_logits_Qhw) == 5


def test_the_same_image_gives_the_same_proposals_in_any_company():
    image = noise(40, 70)
    together = Contours().propose([halves(), image])
    assert together[1].mask_logits_Qhw.equal(propose(image))
    assert Contours().propose([]) == []


def test_it_is_in_the_registry_under_its_name():
    assert find_proposer("contours").load(None, "cpu") == Contours()
