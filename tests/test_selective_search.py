"""Selective search: a flat partition by likeness."""

import numpy as np
import pytest

from pipeline.models import find_proposer
from pipeline.models.partition import Borders
from pipeline.models.selective_search import (
    SelectiveSearch,
    SelectiveSearchSettings,
    _Look,
    partition,
)
from pipeline.resize import padded_size
from tests.helpers import draw_classes

# The paper's least region of 1000 pixels is larger than the images here.
SMALL = SelectiveSearchSettings(min_size=30)


def stripes(*colours, height=60, width=20):
    """Return an image of vertical stripes of the colours."""
    return np.repeat([colours] * height, width, axis=1).astype(np.uint8)


RED, DARK_RED, BLUE = (220, 40, 60), (200, 38, 55), (20, 60, 230)
NOISE = np.random.default_rng(0).integers(0, 256, (6, 12, 3), dtype=np.uint8)


def propose(image, settings=SMALL):
    (proposals,) = SelectiveSearch(settings).propose([image])
    return proposals.mask_logits_Qhw


def test_two_colours_are_two_regions():
    regions = partition(stripes(RED, BLUE, width=40), SelectiveSearchSettings(min_similarity=0.9))
    np.testing.assert_array_equal(regions[:, :39], regions[0, 0])
    np.testing.assert_array_equal(regions[:, 41:], regions[0, -1])
    assert regions[0, 0] != regions[0, -1]


def test_like_neighbours_merge_and_unlike_ones_do_not():
    image = stripes(RED, DARK_RED, BLUE, width=40)
    apart = partition(image, SelectiveSearchSettings(min_similarity=1.1))
    assert len(np.unique(apart)) == 3
    merged = partition(image, SelectiveSearchSettings(min_similarity=0.6))
    assert merged[0, 0] == merged[0, 60] != merged[0, 100]
    assert len(np.unique(partition(image, SelectiveSearchSettings(min_similarity=0.0)))) == 1


def test_no_neighbours_are_left_that_are_like_enough():
    image = NOISE.repeat(8, axis=0).repeat(8, axis=1)
    for least in (0.5, 0.65, 0.8):
        settings = SelectiveSearchSettings(min_size=30, min_similarity=least)
        regions = np.unique(partition(image, settings), return_inverse=True)[1]
        look = _Look.of(image, regions, settings)
        for low, high in Borders.of(regions).edges().pairs_E2.tolist():
            assert 1.0 - look.costs(low, [high])[0] < least


def test_similarity_is_the_mean_of_size_colour_texture_and_fill():
    image = stripes(RED, BLUE, height=4, width=2)
    regions = draw_classes("0011", "0011", "0011", "0222")
    look = _Look.of(image, regions, SMALL)
    # 0 and 2 have 10 of the 16 pixels, and the image itself as their box.
    size, fill = 1 - 10 / 16, 1 - (16 - 10) / 16
    (similarity,) = (1.0 - np.array(look.costs(0, [2]))).tolist()
    colour, texture = similarity_parts(look, 0, 2)
    assert similarity == pytest.approx((size + fill + colour + texture) / 4)


def similarity_parts(look, first, second):
    """Return the intersections of the normalised colour and texture histograms."""
    return [
        sum(
            min(a, b)
            for a, b in zip(
                (counts[first] / counts[first].sum()).tolist(),
                (counts[second] / counts[second].sum()).tolist(),
                strict=True,
            )
        )
        for counts in (look.colour_RB, look.texture_RB)
    ]


def test_a_merged_region_looks_like_its_pixels():
    image = NOISE.repeat(4, axis=0).repeat(4, axis=1)
    parts = np.zeros(image.shape[:2], dtype=int)
    parts[:, 11:], parts[9:, 30:] = 1, 2
    look = _Look.of(image, parts, SMALL)
    look.join(1, 2, 3)
    whole = _Look.of(image, parts.clip(0, 1), SMALL)
    for name in ("areas_R", "boxes_R4", "colour_RB", "texture_RB"):
        np.testing.assert_array_equal(getattr(look, name)[3], getattr(whole, name)[1])


def test_histograms_have_25_colour_and_80_texture_bins_per_channel():
    look = _Look.of(stripes(RED), np.zeros((60, 20), dtype=int), SelectiveSearchSettings())
    assert look.colour_RB.shape == (1, 3 * 25)
    assert look.texture_RB.shape == (1, 3 * 80)
    for counts in (look.colour_RB, look.texture_RB):
        np.testing.assert_array_equal(counts.reshape(3, -1).sum(axis=1), [60 * 20] * 3)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 90), (70, 3), (40, 100), (33, 31)], ids=str)
def test_proposals_cover_an_image_of_any_size_without_overlap(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    logits = propose(image)
    height, width = padded_size(size, 32)
    assert logits.shape[1:] == (height // 4, width // 4)
    assert logits.isfinite().all()
    inside = logits[:, : -(-size[0] // 4), : -(-size[1] // 4)].sigmoid()
    # Shares of a cell add up to one, but for the margin that keeps logits finite.
    assert (inside.sum(dim=0) - 1).abs().max() <= 0.01 * len(logits) + 1e-5


def test_one_colour_is_one_proposal():
    assert (propose(stripes(RED, height=32, width=64)) > 0).all()
    assert len(propose(stripes(RED))) == 1


def test_an_image_smaller_than_the_least_region_is_one_proposal():
    assert len(propose(stripes(RED, BLUE, height=8, width=4), SelectiveSearchSettings())) == 1


def test_the_same_image_gives_the_same_proposals_in_any_company():
    image = NOISE.repeat(8, axis=0).repeat(8, axis=1)
    alone = propose(image)
    together = SelectiveSearch(SMALL).propose([stripes(RED, BLUE), image])
    assert together[1].mask_logits_Qhw.equal(alone)
    areas = (alone > 0).sum(dim=(1, 2)).tolist()
    assert areas == sorted(areas, reverse=True)
    assert SelectiveSearch().propose([]) == []


def test_it_is_in_the_registry_under_its_name():
    assert find_proposer("selective-search").load(None, "cpu") == SelectiveSearch()
