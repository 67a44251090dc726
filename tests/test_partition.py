"""Regions: masks on the proposals' grid, borders, greedy merging."""

import numpy as np
import pytest
import torch

from pipeline.models import find_proposer
from pipeline.models.partition import (
    Borders,
    Merge,
    distinct,
    grid_logits,
    merge_greedily,
    owners,
    region_masks,
)
from schemas.errors import ModelError
from tests.helpers import draw, draw_classes

REGIONS = draw_classes("0011", "0221")


@pytest.mark.parametrize(
    "name, edges",
    [("felzenszwalb", (320, 1280)), ("contours", (320, 1280)), ("selective-search", (640, 2560))],
)
def test_a_proposer_without_weights_refuses_them_by_its_own_name(name, edges):
    entry = find_proposer(name)
    card = entry.describe(None)
    assert (card.short_edge, card.long_edge, card.divisor) == (*edges, 32)
    assert (card.embedding_dim, card.weights_sha256) == (None, None)
    with pytest.raises(ModelError, match=f"proposer {name} has no weights; .* is 'x'"):
        entry.describe("x")


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 31), (32, 64)], ids=str)
def test_a_cell_holds_the_share_of_its_pixels_that_lie_in_the_image(size):
    mask_HW = np.random.default_rng(0).random(size) > 0.5
    logits = grid_logits(np.stack([mask_HW, np.ones(size, bool), np.zeros(size, bool)]))
    height, width = logits.shape[1:]
    assert (height * 4 % 32, width * 4 % 32) == (0, 0)
    for row in range(-(-size[0] // 4)):
        for column in range(-(-size[1] // 4)):
            cell = mask_HW[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
            expected = np.clip(cell.mean(), 0.01, 0.99)
            assert logits[0, row, column].sigmoid().item() == pytest.approx(expected, abs=1e-6)
    covered = torch.zeros((height, width), dtype=bool)
    covered[: -(-size[0] // 4), : -(-size[1] // 4)] = True
    assert (logits[1] > 0).equal(covered)
    assert (logits[2] < 0).all()


def test_no_mask_has_no_logits():
    assert grid_logits(np.zeros((0, 40, 20), dtype=bool)).shape == (0, 16, 8)


def test_every_region_has_a_mask_and_equal_masks_are_one():
    masks = region_masks(draw_classes("0055", "0005"))
    np.testing.assert_array_equal(masks, [draw("##..", "###."), draw("..##", "...#")])
    assert len(distinct([masks[0], masks[1], masks[0].copy()])) == 2


def test_borders_add_up_by_pair_of_regions():
    values = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    edges = Borders.of(REGIONS, values).edges()
    # 0-1: 2|3 in the first row. 0-2: 2/6 below, 5|6. 1-2: 3/7 below, 7|8 in the second row.
    np.testing.assert_array_equal(edges.pairs_E2, [[0, 1], [0, 2], [1, 2]])
    np.testing.assert_array_equal(edges.sums_E, [3, 6 + 6, 7 + 8])
    np.testing.assert_array_equal(edges.lengths_E, [1, 2, 2])
    assert Borders.of(np.zeros((1, 1), dtype=int)).edges().pairs_E2.shape == (0, 2)


class Line:
    """Regions with a height each; merging costs the difference, and gives the mean."""

    def __init__(self, *heights):
        self.heights = list(heights)

    def costs(self, region, others):
        return [abs(self.heights[region] - self.heights[other]) for other in others]

    def join(self, first, second, merged):
        assert merged == len(self.heights)
        self.heights.append((self.heights[first] + self.heights[second]) / 2)


NEXT_TO_EACH_OTHER = np.array([[0, 1], [1, 2], [2, 3]])


def test_the_cheapest_neighbours_merge_first():
    merges = merge_greedily(Line(0.0, 4.0, 5.0, 0.0), 4, NEXT_TO_EACH_OTHER)
    # 0 and 3 are equal but never neighbours until all between them is merged.
    assert merges == [Merge(1, 2, 1.0), Merge(0, 4, 4.5), Merge(3, 5, 2.25)]
    np.testing.assert_array_equal(owners(4, merges), [6, 6, 6, 6])


def test_merging_ends_at_the_cost_limit():
    merges = merge_greedily(Line(0.0, 1.0, 5.0, 6.0), 4, NEXT_TO_EACH_OTHER, max_cost=1.0)
    np.testing.assert_array_equal(owners(4, merges), [4, 4, 5, 5])
    assert merge_greedily(Line(0.0, 1.0), 2, NEXT_TO_EACH_OTHER[:1], max_cost=0.9) == []
    np.testing.assert_array_equal(owners(2, []), [0, 1])


def test_a_region_alone_has_nothing_to_merge_with():
    assert merge_greedily(Line(0.0), 1, np.zeros((0, 2), dtype=int)) == []
