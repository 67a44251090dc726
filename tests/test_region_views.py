"""Regions as CLIP's input in prompt training: views, draws, and positions for their size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pipeline.models.clip import Clip, ClipSource
from pipeline.models.clip_positions import check_input_size, input_size, resample
from pipeline.models.embedded import EMBEDDED_CLIP
from pipeline.training.labelled_images import Finding, Pair
from pipeline.training.prompt_samples import draw, draw_held_out, hold_out
from pipeline.training.region_views import Region, RegionInput, random_part
from schemas.errors import ModelError, SettingsError
from tests.tiny_clips import save_small_clip

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def region():
    """A red cross on blue, with blue at its left that its box does not hold."""
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[10:14, 20:50] = mask_HW[2:30, 30:34] = True
    pixels_HW3 = np.where(mask_HW[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)
    return Region.of(Image.fromarray(pixels_HW3), mask_HW)


def test_a_region_is_the_tight_box_of_its_mask(region):
    assert region.image.size == region.mask.size == (30, 28)  # width, height
    pixels_HW3, mask_HW = region.view((0, 0, 30, 28), (28, 30))
    assert (pixels_HW3[mask_HW] == (255, 0, 0)).all()
    assert (pixels_HW3[~mask_HW] == (0, 0, 255)).all()
    assert mask_HW.sum() == 4 * 30 + 28 * 4 - 16


def test_a_view_is_squashed_to_height_and_width(region):
    pixels_HW3, mask_HW = region.view((0, 0, 15, 28), (52, 48))
    assert pixels_HW3.shape == (52, 48, 3)
    assert mask_HW.shape == (52, 48)
    expected = region.image.crop((0, 0, 15, 28)).resize((48, 52), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels_HW3, np.asarray(expected))


def test_random_parts_keep_to_area_and_shape():
    rng = np.random.default_rng(0)
    boxes = [random_part(rng, (90, 120)) for _ in range(500)]
    sizes = np.array([(y1 - y0, x1 - x0) for x0, y0, x1, y1 in boxes])
    assert all(0 <= x0 < x1 <= 120 and 0 <= y0 < y1 <= 90 for x0, y0, x1, y1 in boxes)
    shares = sizes.prod(1) / (90 * 120)
    assert 0.07 < shares.min() < 0.12 and 0.8 < shares.max() <= 1
    aspects = sizes[:, 1] / sizes[:, 0]
    assert 0.7 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.4
    assert len(set(boxes)) > 400


@pytest.mark.parametrize("size, box", [((1, 100), (49, 0, 50, 1)), ((100, 2), (0, 48, 2, 51))])
def test_a_part_of_a_line_is_its_middle(size, box):
    found = random_part(np.random.default_rng(0), size)
    assert found == box


def test_random_views_show_the_mask_and_are_mirrored_one_time_in_two(region):
    half = Region(region.image, region.mask.copy())
    half.mask.paste(0, (3, 0, 30, 28))  # only the left end of the bar remains
    rng = np.random.default_rng(0)
    masks = [half.random_view(rng, (28, 30))[1] for _ in range(200)]
    assert all(mask.any() for mask in masks)
    # The part shows the left end at its left, unless it is mirrored.
    at_left = np.mean([mask[:, 0].any() for mask in masks])
    assert 0.4 < at_left < 0.6


@pytest.mark.parametrize(
    "fill, outside",
    [("reference", MEAN), ("mean", (0, 0, 0)), ("zero", (-2, -2, -2))],
)
def test_outside_the_mask_is_the_fill(fill, outside):
    pixels = torch.full((2, 6, 5, 3), 255, dtype=torch.uint8)
    masks = torch.zeros(2, 6, 5, dtype=torch.bool)
    masks[1, 2, 3] = True
    result = RegionInput((6, 5), fill, MEAN, STD)(pixels, masks)
    assert result.shape == (2, 3, 6, 5)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor(outside, dtype=torch.float32))
    inside = [(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(result[1, :, 2, 3], torch.tensor(inside))


def findings(count):
    """Image n shows class 0, and class n % 3."""
    return [
        Finding(Pair(f"{n}.jpg", f"{n}.png"), positions=tuple(sorted({0, n % 3})))
        for n in range(count)
    ]


def test_samples_are_drawn_per_class_with_replacement_where_there_are_enough():
    found = draw(findings(60), 30, seed=0, repeat=True)
    assert [sum(s.position == p for s in found) for p in range(3)] == [30, 20, 20]
    zeros = [sample.pair.image for sample in found if sample.position == 0]
    assert len(set(zeros)) < 30
    assert {s.pair.image for s in found if s.position == 1} == {f"{n}.jpg" for n in range(1, 60, 3)}
    assert found == draw(findings(60), 30, seed=0, repeat=True)
    assert found != draw(findings(60), 30, seed=1, repeat=True)


def test_samples_can_be_drawn_without_replacement():
    for found in (draw(findings(60), 30, seed=0, repeat=False), draw_held_out(findings(60), 30, 0)):
        assert len(set(found)) == len(found) == 70


def test_held_out_images_are_others_than_those_learned_from():
    all_of_them = findings(50)
    learned, kept_out = hold_out(all_of_them, 0.1, 0)
    assert (len(learned), len(kept_out)) == (45, 5)
    assert {f.pair for f in learned} | {f.pair for f in kept_out} == {f.pair for f in all_of_them}
    assert hold_out(all_of_them, 0.1, 0) == (learned, kept_out)
    assert hold_out(all_of_them, 0.1, 1) != (learned, kept_out)
    assert hold_out(all_of_them, 0, 0) == (all_of_them, [])
    with pytest.raises(SettingsError, match=r"held_out 0\.1 of 1 images leaves none"):
        hold_out(all_of_them[:1], 0.1, 0)


@pytest.fixture(scope="module")
def clip():
    return Clip.load(ClipSource(f"local-dir:{EMBEDDED_CLIP}"))


def test_positions_are_resampled_bicubically_and_the_first_stays():
    positions = torch.arange(10 * 2).float().reshape(10, 2)
    found = resample(positions, (3, 3), (4, 2))
    assert found.shape == (9, 2)
    torch.testing.assert_close(found[0], positions[0])
    grid = positions[1:].reshape(3, 3, 2).permute(2, 0, 1)[None]
    expected = interpolate(grid, size=(4, 2), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(found[1:].reshape(4, 2, 2), expected.permute(1, 2, 0))
    assert torch.equal(resample(positions, (3, 3), (3, 3)), positions)


def test_a_vision_transformer_takes_another_size_and_then_its_own_again(clip):
    own, higher = torch.randn(2, 3, 48, 48), torch.randn(2, 3, 56, 48)
    before = clip.encode_crops(own, 2)
    with input_size(clip.model.visual, (56, 48)):
        assert clip.encode_crops(higher, 2).shape == (2, 128)
        assert clip.model.visual.positional_embedding.shape == (1 + 7 * 6, 128)
    assert torch.equal(clip.encode_crops(own, 2), before)


def test_rows_that_fill_no_patch_are_left_out(clip):
    """As 244 rows are 15 patches of 16 in the reference, 52 are 6 of 8 here."""
    tall = torch.randn(2, 3, 52, 48)
    with input_size(clip.model.visual, (52, 48)):
        found = clip.encode_crops(tall, 2)
    torch.testing.assert_close(found, clip.encode_crops(tall[:, :, :48], 2))


def test_a_resnet_takes_another_size(tmp_path):
    clip = Clip.load(ClipSource(save_small_clip("RN50", tmp_path / "clip")))
    with input_size(clip.model.visual, (256, 224)):
        assert clip.encode_crops(torch.randn(1, 3, 256, 224), 1).shape == (1, 32)


def test_a_tower_of_unknown_positions_is_refused(tmp_path):
    clip = Clip.load(ClipSource(save_small_clip("EVA02-B-16", tmp_path / "clip")))
    with pytest.raises(ModelError, match=r"TimmModel cannot be interpolated.*region_shape to sq"):
        check_input_size(clip.model.visual, (244, 224))
