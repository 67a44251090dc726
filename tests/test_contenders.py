"""Classes that cannot be first or second are left out, and nothing else changes."""

import pytest
import torch

import pipeline.fusion
from pipeline.bilinear import bilinear_taps
from pipeline.contenders import Contenders
from pipeline.fusion import LabelMap, label_map, score_tiles
from pipeline.masks import SoftMasks

K, Q = 48, 12
CPU = torch.device("cpu")


def masks(size, seed=0):
    """Return masks of ragged outlines on a grid of 40 x 56 nodes, of an image of `size`."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, Q, 4, 5), generator=random)
    logits_Qhw = torch.nn.functional.interpolate(coarse, size=(40, 56), mode="bicubic")[0]
    logits_Qhw += 0.1 * torch.randn(logits_Qhw.shape, generator=random)
    logits_Qhw[:2] = logits_Qhw[:2].abs()  # two of them nearly everywhere
    return SoftMasks(20 * logits_Qhw - 4, (160, 224), size)


def scores(sharpness, seed=0):
    random = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn((Q, K), generator=random)).softmax(dim=1)


@pytest.mark.parametrize("sharpness", [0, 1, 6], ids=["all alike", "soft", "sharp"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "size, original",
    [
        ((160, 224), (160, 224)),
        ((150, 161), (25, 49)),
        ((99, 211), (197, 230)),
        ((40, 56), (1, 1)),
    ],
    ids=["as it is", "shrunk", "enlarged", "one pixel"],
)
@pytest.mark.parametrize("tile_floats", [1, 2**15, 2**24], ids=["row by row", "tiles", "one tile"])
def test_the_label_map_is_that_of_all_classes(
    monkeypatch, sharpness, seed, size, original, tile_floats
):
    monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", tile_floats)
    scores_QK, soft = scores(sharpness, seed), masks(size, seed)
    whole = LabelMap.of(score_tiles(scores_QK, soft, original), original, CPU)
    found = label_map(scores_QK, soft, original)
    clear_HW = whole.margins_HW > 1e-5  # elsewhere rounding decides, and either is right
    assert sharpness == 0 or clear_HW.float().mean() > 0.99
    assert torch.equal(found.classes_HW[clear_HW], whole.classes_HW[clear_HW])
    torch.testing.assert_close(found.scores_HW, whole.scores_HW, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.margins_HW, whole.margins_HW, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sharpness, most", [(6, K // 2), (1, K - 1)], ids=["sharp", "soft"])
def test_few_classes_contend_and_the_first_two_of_every_pixel_do(monkeypatch, sharpness, most):
    monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", 2**15)
    scores_QK, soft, size = scores(sharpness), masks((150, 211)), (120, 170)
    whole_KHW = torch.cat([tile.scores_KTW for tile in score_tiles(scores_QK, soft, size)], dim=1)
    best_2HW = whole_KHW.topk(2, dim=0).indices
    counts = []
    for tile in score_tiles(scores_QK, soft, size, Contenders.of(scores_QK, soft)):
        assert set(best_2HW[:, tile.rows].unique().tolist()) <= set(tile.classes_K.tolist())
        torch.testing.assert_close(tile.scores_KTW, whole_KHW[tile.classes_K, tile.rows])
        counts.append(len(tile.classes_K))
    assert len(counts) > 5
    assert 2 <= sum(counts) / len(counts) <= most


def test_padding_beside_the_image_lets_no_class_contend():
    """A mask in the padding alone, right of the image and below it, is sure of the last class."""
    logits_Qhw = torch.full((3, 8, 8), -20.0)
    logits_Qhw[0], logits_Qhw[1] = 5.0, 1.0
    logits_Qhw[2, :, 5:] = logits_Qhw[2, 5:] = 20.0
    soft = SoftMasks(logits_Qhw, (32, 32), (16, 16))
    scores_QK = torch.full((3, K), 1e-6)
    scores_QK[0, 4], scores_QK[1, 7], scores_QK[2, K - 1] = 0.9, 0.8, 1.0
    tiles = list(score_tiles(scores_QK, soft, (16, 16), Contenders.of(scores_QK, soft)))
    assert {label for tile in tiles for label in tile.classes_K.tolist()} >= {4, 7}
    assert all(K - 1 not in tile.classes_K for tile in tiles)


def test_where_no_mask_is_every_class_contends():
    """All sums are zero there, and the first class is the label, as without contenders."""
    soft = SoftMasks(torch.full((Q, 8, 8), -torch.inf), (32, 32), (32, 32))
    assert len(Contenders.of(scores(1), soft).among(slice(0, 8))) == K
    assert not label_map(scores(1), soft, (32, 32)).classes_HW.any()


@pytest.mark.parametrize(
    "nodes, padded, width", [(20, 80, 80), (20, 80, 67), (13, 64, 61), (90, 40, 40)]
)
@pytest.mark.parametrize("original", [1, 33, 67, 80, 300])
def test_a_block_holds_all_nodes_that_a_pixel_is_mixed_of(nodes, padded, width, original):
    soft = SoftMasks(torch.zeros((1, 2, nodes)), (8, padded), (8, width))
    blocks = [set(block) for block in Contenders.of(torch.ones(1, 2), soft).columns_BN.tolist()]
    across = [tap.tolist() for tap in bilinear_taps(nodes, padded, CPU)]
    for pair in zip(
        *(tap.tolist() for tap in bilinear_taps(width, original, CPU)[:2]), strict=True
    ):
        mixed = {side[column] for side in across[:2] for column in pair}
        assert any(mixed <= block for block in blocks), (pair, mixed)


@pytest.mark.parametrize("border", range(1, 20))
@pytest.mark.parametrize("original", [(8, 80), (5, 33), (8, 300)], ids=str)
def test_a_class_that_wins_between_two_nodes_alone_contends(border, original):
    """Left of the border two classes are ahead of class 4, and right of it two others."""
    logits_Qhw = torch.full((3, 2, 20), -9.0)
    logits_Qhw[0, :, :border], logits_Qhw[1, :, border:], logits_Qhw[2] = 9.0, 9.0, 9.0
    soft = SoftMasks(logits_Qhw, (8, 80), (8, 80))
    scores_QK = torch.zeros((3, 5))
    scores_QK[0, :2] = scores_QK[1, 2:4] = torch.tensor([0.95, 0.93])
    scores_QK[2, 4] = 0.9
    (tile,) = score_tiles(scores_QK, soft, original, Contenders.of(scores_QK, soft))
    (whole,) = score_tiles(scores_QK, soft, original)
    wins = 4 in whole.scores_KTW.argmax(dim=0)
    assert wins or original == (5, 33)  # not every border has a pixel upon it
    assert (4 in tile.classes_K) >= wins
