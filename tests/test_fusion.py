"""From query and CLIP scores to a label map, against the worked values of the specification."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import interpolate

import pipeline.fusion
from pipeline.fusion import (
    LOGIT_SCALE,
    LabelMap,
    fuse,
    label_map,
    query_probs,
    region_probs,
    score_tiles,
)
from pipeline.masks import SoftMasks

ALL_VALID = torch.tensor([True])


@pytest.mark.parametrize(
    "weight, seen, unseen",
    [
        (0.8, 0.344610, 0.522330),
        (0.7, 0.369343, 0.487351),
        (0.5, 0.424264, 0.424264),
        (0.4, 0.454715, 0.395852),
    ],
    ids=["coco", "voc", "ade", "cityscapes"],
)
def test_fused_scores_are_those_of_the_reference(weight, seen, unseen):
    query, clip = torch.tensor([[0.3, 0.3]]), torch.tensor([[0.6, 0.6]])
    fused = fuse(query, clip, ALL_VALID, torch.tensor([True, False]), weight)
    torch.testing.assert_close(fused, torch.tensor([[seen, unseen]]), rtol=0, atol=1e-6)


def test_an_invalid_proposal_has_clip_scores_of_one():
    query = torch.tensor([[0.3, 0.3], [0.3, 0.3], [0.3, 0.3]])
    clip = torch.tensor([[0.6, 0.6], [0.1, 0.1]])
    valid = torch.tensor([True, False, True])
    fused = fuse(query, clip, valid, torch.tensor([True, False]), 0.8)
    torch.testing.assert_close(
        fused,
        torch.tensor([[0.344610, 0.522330], [0.381678, 0.786003], [0.240822, 0.124573]]),
        rtol=0,
        atol=1e-6,
    )


def test_without_flags_every_class_counts_as_unseen():
    query, clip = torch.tensor([[0.3, 0.3]]), torch.tensor([[0.6, 0.6]])
    fused = fuse(query, clip, ALL_VALID, None, 0.8)
    torch.testing.assert_close(fused, torch.full((1, 2), 0.522330), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "query, weight",
    [(None, 0.8), (torch.tensor([[0.3, 0.7], [0.5, 0.5]]), 0.0)],
    ids=["no query scores", "weight of zero"],
)
def test_clip_alone_leaves_invalid_proposals_without_score(query, weight):
    clip = torch.tensor([[0.2, 0.8]])
    valid = torch.tensor([False, True])
    for seen in (None, torch.tensor([True, False])):
        torch.testing.assert_close(
            fuse(query, clip, valid, seen, weight), torch.tensor([[0.0, 0.0], [0.2, 0.8]])
        )


def test_query_scores_alone_are_returned_as_they_are():
    query = torch.tensor([[0.3, 0.6], [0.1, 0.1]])
    assert fuse(query, None, torch.tensor([True, False]), torch.tensor([True, False]), 0.8) is query


def test_a_weight_of_one_takes_the_query_for_seen_and_clip_for_unseen():
    query, clip = torch.tensor([[0.3, 0.4]]), torch.tensor([[0.6, 0.7]])
    fused = fuse(query, clip, ALL_VALID, torch.tensor([True, False]), 1.0)
    torch.testing.assert_close(fused, torch.tensor([[0.3, 0.7]]))


def test_no_scores_at_all_are_refused():
    with pytest.raises(ValueError, match="query scores, CLIP scores, or both"):
        fuse(None, None, ALL_VALID, None, 0.8)


def test_no_proposals_fuse_to_none():
    nothing = torch.zeros((0, 3))
    assert fuse(nothing, nothing, torch.zeros(0, dtype=torch.bool), None, 0.8).shape == (0, 3)
    assert fuse(None, nothing, torch.zeros(0, dtype=torch.bool), None, 0.8).shape == (0, 3)


def test_no_object_takes_its_share_of_the_query_scores_and_none_of_clips():
    text_KD = torch.eye(2)
    embeds_QD = torch.tensor([[1.0, 0.0]])
    equal_void = torch.tensor([LOGIT_SCALE])
    torch.testing.assert_close(
        query_probs(embeds_QD, text_KD, equal_void), torch.tensor([[0.5, 0.0]])
    )
    torch.testing.assert_close(region_probs(embeds_QD, text_KD), torch.tensor([[1.0, 0.0]]))


def test_cosines_are_multiplied_by_one_hundred():
    text_KD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    embeds_QD = torch.tensor([[0.01, 0.0]])  # logits 1 and 0
    e = torch.e
    torch.testing.assert_close(
        region_probs(embeds_QD, text_KD), torch.tensor([[e / (e + 1), 1 / (e + 1)]])
    )
    torch.testing.assert_close(
        query_probs(embeds_QD, text_KD, torch.zeros(1)),
        torch.tensor([[e / (e + 2), 1 / (e + 2)]]),
    )


@pytest.fixture
def random_scores():
    torch.manual_seed(0)
    return torch.rand(7, 5), torch.rand(7, 6, 9)


@pytest.mark.parametrize(
    "size",
    [(6, 9), (24, 36), (13, 9), (6, 20), (3, 4), (1, 1), (40, 2), (1, 9), (11, 300)],
    ids=[
        "same",
        "four times",
        "taller",
        "wider",
        "smaller",
        "one pixel",
        "tall and narrow",
        "one row",
        "wide",
    ],
)
@pytest.mark.parametrize("tile_floats", [1, 500, 2**20], ids=["single rows", "tiles", "one tile"])
def test_tiles_give_the_label_map_of_the_dense_computation(
    monkeypatch, random_scores, size, tile_floats
):
    monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", tile_floats)
    class_scores_QK, mask_probs_QHW = random_scores
    summed_KHW = torch.einsum("qk,qhw->khw", class_scores_QK, mask_probs_QHW)
    dense_KHW = interpolate(summed_KHW[None], size=size, mode="bilinear", align_corners=False)[0]
    evidence_1HW = interpolate(
        mask_probs_QHW.sum(dim=0)[None, None], size=size, mode="bilinear", align_corners=False
    )[0]

    found = label_map(class_scores_QK, mask_probs_QHW, size)

    best_HW, classes_HW = dense_KHW.max(dim=0)
    # Where the two best classes differ by less than rounding, either is right.
    top = dense_KHW.topk(2, dim=0).values
    clear_HW = (top[0] - top[1]) > 1e-5
    assert clear_HW.float().mean() > 0.99
    assert found.classes_HW.shape == found.scores_HW.shape == size
    torch.testing.assert_close(found.classes_HW[clear_HW], classes_HW[clear_HW])
    torch.testing.assert_close(found.scores_HW, best_HW / evidence_1HW[0])
    assert 0 <= found.scores_HW.min() <= found.scores_HW.max() <= 1


@pytest.mark.parametrize("tile_floats, count", [(1, 13), (500, 3), (2**20, 1)])
def test_tiles_are_the_score_map_from_top_to_bottom(monkeypatch, random_scores, tile_floats, count):
    monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", tile_floats)
    class_scores_QK, mask_probs_QHW = random_scores
    tiles = list(score_tiles(class_scores_QK, mask_probs_QHW, (13, 8)))
    assert len(tiles) == count
    rows = [row for tile in tiles for row in range(13)[tile.rows]]
    assert rows == list(range(13))
    dense_KHW = interpolate(
        torch.einsum("qk,qhw->khw", class_scores_QK, mask_probs_QHW)[None],
        size=(13, 8),
        mode="bilinear",
        align_corners=False,
    )[0]
    torch.testing.assert_close(torch.cat([tile.scores_KTW for tile in tiles], dim=1), dense_KHW)


def test_without_proposals_the_score_map_is_zero():
    tiles = list(score_tiles(torch.zeros((0, 4)), torch.zeros((0, 2, 3)), (5, 7)))
    assert torch.equal(torch.cat([tile.scores_KTW for tile in tiles], 1), torch.zeros((4, 5, 7)))


def test_the_score_is_the_winners_share_of_the_evidence():
    # One pixel: mask 0 says class 1 with 0.9, mask 1 says class 0 with 0.4.
    class_scores_QK = torch.tensor([[0.1, 0.9], [0.4, 0.0]])
    mask_probs_QHW = torch.tensor([[[0.5]], [[0.25]]])
    found = label_map(class_scores_QK, mask_probs_QHW, (1, 1))
    assert found.classes_HW.tolist() == [[1]]
    assert found.scores_HW.item() == pytest.approx(0.45 / 0.75)


def test_a_pixel_that_no_mask_covers_has_no_score():
    class_scores_QK = torch.tensor([[0.2, 1.0]])
    mask_probs_QHW = torch.tensor([[[1.0, 0.0]]])
    found = label_map(class_scores_QK, mask_probs_QHW, (1, 2))
    assert found.scores_HW.tolist() == [[1.0, 0.0]]
    assert found.classes_HW[0, 0] == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5)], ids=["one pixel", "not square"])
def test_no_proposals_give_a_map_without_score(size):
    found = label_map(torch.zeros((0, 4)), torch.zeros((0, 2, 3)), size)
    assert found.scores_HW.shape == found.classes_HW.shape == size
    assert not found.scores_HW.any()


def test_dropped_invalid_proposals_score_nothing_where_kept_ones_are_boosted():
    query_QK, region_VK = torch.tensor([[0.3], [0.3]]), torch.tensor([[0.6]])
    valid_Q, seen_K = torch.tensor([True, False]), torch.tensor([True])
    kept = fuse(query_QK, region_VK, valid_Q, seen_K, 0.8)
    dropped = fuse(query_QK, region_VK, valid_Q, seen_K, 0.8, keep_invalid=False)
    torch.testing.assert_close(kept, torch.tensor([[0.344610], [0.381678]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(dropped, torch.tensor([[0.344610], [0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (1, 5), (50, 30)])
def test_masks_of_a_small_original_are_made_a_few_rows_at_a_time(monkeypatch, size):
    torch.manual_seed(0)
    masks = SoftMasks(torch.randn(5, 40, 24) * 4, (160, 96), (150, 90))
    scores_QK, make_rows, made = torch.rand(5, 4), SoftMasks.rows, []

    def rows(*arguments, **options):
        made.append(make_rows(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(SoftMasks, "rows", rows)
    monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", 2**14)  # all rows are a tile
    found = []
    for times in (1, 2**10):
        monkeypatch.setattr(pipeline.fusion, "_TIMES_OF_MASKS", times)
        found.append((label_map(scores_QK, masks, size), max(part.numel() for part in made)))
    (by_parts, most), (at_once, whole) = found
    assert most <= 2**14 and (size == (1, 5) or whole > 2 * most)
    assert torch.equal(by_parts.classes_HW, at_once.classes_HW)
    assert torch.equal(by_parts.scores_HW, at_once.scores_HW)
    assert torch.equal(by_parts.margins_HW, at_once.margins_HW)


def test_847_classes_at_2048_pixels_need_little_beyond_the_masks():
    # In a process of its own, whose peak is what is measured (by /proc: getrusage's also counts
    # the parent's); K x H x W would be 14 GB. Tiles are alike and none outlives the next, so that
    # a part of them tells.
    script = """
import torch
from itertools import islice
from pipeline.fusion import LabelMap, score_tiles
from pipeline.masks import SoftMasks
torch.set_num_threads(1)
def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
size, cpu = (2048, 2048), torch.device("cpu")
scores, logits = torch.rand((100, 847)) ** 9, 3 * torch.randn((100, 512, 512))
with torch.inference_mode():
    LabelMap.of(score_tiles(scores, SoftMasks(logits, size, size), (2, 2048)), (2, 2048), cpu)
    before = memory("VmRSS")
    tiles = islice(score_tiles(scores, SoftMasks(logits, size, size), size), 80)
    labels = LabelMap.of(tiles, size, cpu)
assert labels.classes_HW.shape == size and len(labels.classes_HW.unique()) > 50
print(memory("VmHWM") - before)
"""
    run = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert int(run.stdout) < 256 * 1024  # KiB; the map itself takes 48 MiB


def test_a_pixel_that_is_exactly_at_the_least_score_is_kept():
    scores_HW = torch.tensor([[0.5, 0.4999, 0.0]])
    found = LabelMap(torch.tensor([[2, 1, 0]]), scores_HW, scores_HW)
    assert found.kept(0.5).classes_HW.tolist() == [[2, -1, -1]]
    assert found.kept(0.0).classes_HW.tolist() == [[2, 1, -1]]
