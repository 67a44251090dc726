"""Pixel embeddings to score maps: the tiles equal the dense formula of the reference."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, normalize

import pipeline.fusion
from pipeline.fusion import LabelMap
from pipeline.masks import unpack_logits
from pipeline.pixels import PixelScorer, pack_pixels, pixel_score_tiles

D, K = 6, 4
GENERATOR = torch.Generator().manual_seed(0)
TEXT_KD = normalize(torch.randn(K, D, generator=GENERATOR), dim=1)
SEEN_K = torch.tensor([True, False, True, False])
CLIP_1K = torch.tensor([[0.1, 0.2, 0.3, 0.4]])


def smooth(grid):
    """Return embeddings (D, h, w) whose cosines do not saturate the softmax."""
    noise = torch.randn(D, *grid, generator=torch.Generator().manual_seed(1))
    # From the centre of the sphere's part between them all classes are equally far.
    centre_D = torch.linalg.lstsq(TEXT_KD, torch.ones(K, 1)).solution[:, 0]
    return 7.0 * (0.02 * noise + normalize(centre_D, dim=0)[:, None, None])


def dense(embeds_Dhw, image_size, size, clip_1K, seen_K, weight):
    """Return the score map (K, H, W) as the formula says it, all pixels at once."""
    resized = interpolate(embeds_Dhw[None], scale_factor=4, mode="bilinear", align_corners=False)
    cropped = resized[..., : image_size[0], : image_size[1]]
    full = interpolate(cropped, size=size, mode="bilinear", align_corners=False)[0]
    cosines_KHW = torch.einsum("dhw,kd->khw", full / full.norm(dim=0), TEXT_KD)
    probs_KHW = (100 * cosines_KHW).softmax(dim=0)
    if clip_1K is None:
        return probs_KHW
    flags = torch.zeros(K) if seen_K is None else seen_K.float()
    exponent_K11 = (flags * weight + (1 - flags) * (1 - weight))[:, None, None]
    return probs_KHW**exponent_K11 * clip_1K[0][:, None, None] ** (1 - exponent_K11)


def tiled(embeds_Dhw, image_size, size, clip_1K, seen_K, weight):
    scorer = PixelScorer(TEXT_KD, clip_1K, seen_K, weight)
    return list(pixel_score_tiles(embeds_Dhw, scorer, image_size, size))


@pytest.mark.parametrize(
    "grid, image_size, size",
    [
        ((5, 7), (18, 27), (41, 30)),
        ((5, 7), (20, 28), (20, 28)),
        ((8, 8), (32, 31), (9, 70)),
        ((1, 1), (2, 3), (1, 1)),
    ],
    ids=["enlarged and cropped", "as it is", "shrunk", "one pixel"],
)
@pytest.mark.parametrize("tile_floats", [1, 10**9], ids=["row by row", "at once"])
@pytest.mark.parametrize(
    "clip_1K, seen_K, weight",
    [(None, None, 0.7), (CLIP_1K, SEEN_K, 0.7), (CLIP_1K, None, 0.7)],
    ids=["alone", "with CLIP", "all unseen"],
)
def test_tiles_together_are_the_dense_score_map(
    monkeypatch, grid, image_size, size, tile_floats, clip_1K, seen_K, weight
):
    monkeypatch.setattr(pipeline.fusion, "TILE_FLOATS", tile_floats)
    arguments = (smooth(grid), image_size, size, clip_1K, seen_K, weight)
    tiles = tiled(*arguments)
    assert len(tiles) == (size[0] if tile_floats == 1 else 1)
    expected_KHW = dense(*arguments)
    assert expected_KHW.max() < 0.999  # not saturated: the order of resizing would not show
    found_KHW = torch.cat([tile.scores_KTW for tile in tiles], dim=1)
    torch.testing.assert_close(found_KHW, expected_KHW, atol=1e-5, rtol=1e-4)
    labels = LabelMap.of(tiles, size, torch.device("cpu"))
    best_HW, classes_HW = expected_KHW.max(dim=0)
    torch.testing.assert_close(labels.scores_HW, best_HW, atol=1e-5, rtol=1e-4)
    assert (labels.classes_HW == classes_HW).float().mean() > 0.99


def test_embeddings_are_resized_before_they_are_normalised():
    # Between a long vector and a short one of another class the long one wins, though not nearest.
    embeds_Dhw = torch.stack([9.0 * TEXT_KD[0], TEXT_KD[1]], dim=1)[:, None]
    (tile,) = tiled(embeds_Dhw, (4, 8), (4, 8), None, None, 0.7)
    assert tile.scores_KTW.argmax(dim=0)[0].tolist() == [0] * 5 + [0, 1, 1]


def test_weight_zero_is_clip_alone_and_one_label_for_all():
    (tile,) = tiled(smooth((3, 3)), (12, 12), (12, 12), CLIP_1K, SEEN_K, 0.0)
    torch.testing.assert_close(tile.scores_KTW, CLIP_1K[0][:, None, None].expand(K, 12, 12))


def test_a_grid_that_does_not_cover_the_image_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\) does not cover an image of \(12, 13\)"):
        tiled(smooth((3, 3)), (12, 13), (12, 13), None, None, 0.7)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6], ids=["tiny", "usual", "huge"])
@pytest.mark.parametrize(
    "precision, tolerance", [("float32", 1e-6), ("float16", 1e-3), ("uint8", 0.02)]
)
def test_packing_keeps_the_cosines_at_any_scale(precision, tolerance, scale):
    embeds_Dhw = torch.randn(D, 3, 4, generator=torch.Generator().manual_seed(2))
    packed = pack_pixels(scale * embeds_Dhw, precision)
    assert packed.dtype == np.dtype(precision)
    found = normalize(unpack_logits(packed), dim=0)
    torch.testing.assert_close(found, normalize(embeds_Dhw, dim=0), atol=tolerance, rtol=0)


def test_embeddings_of_zero_are_packed_as_zero():
    assert not unpack_logits(pack_pixels(torch.zeros(D, 2, 2), "uint8")).any()
