"""Regions cut out for CLIP, against a reference written out plainly here (spec 2.4)."""

import numpy as np
import pytest
import torch

import pipeline.models.crops
from pipeline.masks import SoftMasks
from pipeline.models.crop_classifier import CropClassifier, batches_of
from pipeline.models.crops import CropSettings, crop_regions, expand_boxes
from tests.helpers import draw

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIDE = 16
ONE_PIXEL = [".....", "...#.", "....."]
L_SHAPE = ["..#..", "..#..", "..###"]
LAST_COLUMN = ["....#", "....#", "....."]
FULL = ["#####", "#####", "#####"]
EMPTY = [".....", ".....", "....."]


def cut(image, masks, side=SIDE, **settings):
    return crop_regions(image, masks, CropSettings(**settings), side=side, mean=MEAN, std=STD)


def soft(*drawings):
    """Return soft masks: 0.9 inside, 0.2 outside."""
    return torch.stack([torch.from_numpy(np.where(draw(*rows), 0.9, 0.2)) for rows in drawings])


@pytest.fixture
def photo():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 5), dtype=np.uint8))


def cubic(distance, a=-0.75):
    """Return the weight of Keys' cubic convolution kernel."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_matrix(source, target):
    """Return (target, source) weights: four taps about each centre, clamped to the edge."""
    weights = np.zeros((target, source))
    for index in range(target):
        centre = (index + 0.5) * source / target - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[index, min(max(tap, 0), source - 1)] += cubic(centre - tap)
    return weights


def plain_crop(image_3HW, blend_HW, box, fill, side=SIDE):
    x0, y0, x1, y1 = box
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    blend = blend_HW[y0:y1, x0:x1]
    pixels = image_3HW.numpy().astype(float)[:, y0:y1, x0:x1]
    crop = (pixels * blend + fill * 255 * mean * (1 - blend) - 255 * mean) / (255 * std)
    down, across = resize_matrix(y1 - y0, side), resize_matrix(x1 - x0, side)
    return np.einsum("sh,chw,tw->cst", down, crop, across)


def test_the_plain_reference_has_the_coefficients_of_the_specification():
    # 16 pixels from 8: the second pixel lies at offset 0.25 between source pixels 0 and 1.
    expected = (-0.10546875, 0.87890625, 0.26171875, -0.03515625)
    assert tuple(cubic(offset) for offset in (1.25, 0.25, -0.75, -1.75)) == expected
    assert tuple(resize_matrix(8, 16)[5, 1:5]) == expected


def test_a_crop_is_resized_with_the_coefficients_of_the_specification():
    impulse = torch.zeros((3, 8, 8), dtype=torch.uint8)
    impulse[:, :, 3] = 255
    crops = cut(impulse, torch.ones((1, 8, 8)), fill="zero").crops_V3SS
    # Back from normalised colours to the share of white; eight pixels of a row see column 3.
    share = (crops[0, 0, 0] * STD[0] + MEAN[0])[3:11]
    taps = (-0.10546875, 0.87890625, 0.26171875, -0.03515625)
    expected = [taps[3], taps[0], taps[2], taps[1], taps[1], taps[2], taps[0], taps[3]]
    np.testing.assert_allclose(share, expected, atol=1e-6)


@pytest.mark.parametrize(
    "rows, box",
    [
        (ONE_PIXEL, (3, 1, 4, 2)),
        (L_SHAPE, (2, 0, 5, 3)),
        (LAST_COLUMN, (4, 0, 5, 2)),
        (FULL, (0, 0, 5, 3)),
        (["#....", ".....", "....#"], (0, 0, 5, 3)),
    ],
    ids=["one pixel", "L", "last column", "full", "two corners"],
)
def test_boxes_are_tight_and_half_open(rows, box):
    image = torch.zeros((3, 3, 5), dtype=torch.uint8)
    assert cut(image, soft(rows)).boxes_V4.tolist() == [list(box)]


@pytest.mark.parametrize("fill", ["mean", "zero"])
@pytest.mark.parametrize("matting", [False, True], ids=["binary", "matting"])
@pytest.mark.parametrize(
    "rows, box, ratio, expanded",
    [
        (ONE_PIXEL, [3, 1, 4, 2], 1.0, (3, 1, 4, 2)),
        (L_SHAPE, [2, 0, 5, 3], 1.0, (2, 0, 5, 3)),
        (FULL, [0, 0, 5, 3], 1.0, (0, 0, 5, 3)),
        (ONE_PIXEL, [3, 1, 4, 2], 3.0, (2, 0, 5, 3)),
        (LAST_COLUMN, [4, 0, 5, 2], 2.0, (3, 0, 5, 3)),
    ],
    ids=["one pixel", "L", "full", "one pixel grown", "grown past the edge"],
)
def test_a_crop_equals_the_plain_reference(photo, rows, box, ratio, expanded, matting, fill):
    masks_QHW = soft(rows)
    found = cut(photo, masks_QHW, fill=fill, matting=matting, expand_ratio=ratio)
    blend_HW = masks_QHW[0].numpy() if matting else draw(*rows).astype(float)
    expected = plain_crop(photo, blend_HW, expanded, fill=1.0 if fill == "mean" else 0.0)
    assert found.boxes_V4.tolist() == [box]
    assert found.crops_V3SS.shape == (1, 3, SIDE, SIDE)
    np.testing.assert_allclose(found.crops_V3SS[0], expected, atol=1e-5)


def test_a_larger_region_is_shrunk_without_antialias():
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 40, 23), dtype=np.uint8))
    crops = cut(image, torch.ones((1, 40, 23))).crops_V3SS
    expected = plain_crop(image, np.ones((40, 23)), (0, 0, 23, 40), fill=1.0)
    np.testing.assert_allclose(crops[0], expected, atol=1e-5)


def test_outside_the_mask_a_normalised_crop_is_zero(photo):
    crops = cut(photo, soft(["#....", ".....", "....#"]), side=15).crops_V3SS
    # With 15 pixels from 5 and from 3, the taps of the middle ones see only the outside.
    assert np.abs(crops[0, :, 7, 7]).max() <= 1e-6


def test_only_masks_with_a_pixel_above_the_threshold_are_cut(photo):
    found = cut(photo, soft(EMPTY, ONE_PIXEL, EMPTY, FULL))
    assert found.valid_Q.tolist() == [False, True, False, True]
    assert found.boxes_V4.tolist() == [[3, 1, 4, 2], [0, 0, 5, 3]]
    assert len(found.crops_V3SS) == 2


def test_the_threshold_itself_is_outside(photo):
    masks_QHW = torch.full((1, 3, 5), 0.5)
    assert not cut(photo, masks_QHW, mask_threshold=0.5).valid_Q.any()
    assert cut(photo, masks_QHW, mask_threshold=0.49).valid_Q.all()


@pytest.mark.parametrize("table", [1, 3 * 1500, 10**9], ids=["singly", "a few", "all at once"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"mask_threshold": 0.3, "fill": "zero", "expand_ratio": 1.5}, {"matting": True}],
    ids=["paper", "grown, black", "matting"],
)
def test_masks_still_to_be_made_give_the_crops_of_whole_ones(monkeypatch, settings, table):
    monkeypatch.setattr(pipeline.models.crops, "_TABLE_FLOATS", table)
    generator = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (3, 30, 44), generator=generator, dtype=torch.uint8)
    logits_Qhw = 2 * torch.randn((9, 8, 12), generator=generator) - 3
    logits_Qhw[4] = -5
    masks = SoftMasks(logits_Qhw, (32, 48), (30, 44))
    found, expected = cut(image, masks, **settings), cut(image, masks.whole(), **settings)
    assert 1 < found.valid_Q.sum() < 9
    assert torch.equal(found.valid_Q, expected.valid_Q)
    assert torch.equal(found.boxes_V4, expected.boxes_V4)
    torch.testing.assert_close(found.crops_V3SS, expected.crops_V3SS, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 2], ids=["no masks", "two empty masks"])
def test_without_a_valid_mask_there_are_no_crops(photo, count):
    found = cut(photo, soft(EMPTY, EMPTY)[:count])
    assert found.valid_Q.tolist() == [False] * count
    assert found.boxes_V4.shape == (0, 4)
    assert found.crops_V3SS.shape == (0, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    "size, box, ratio, expanded",
    [
        ((170, 64), [31, 103, 46, 109], 1.0, (31, 103, 46, 109)),
        ((133, 156), [51, 39, 97, 77], 1.5, (39, 29, 108, 86)),
        ((20, 198), [119, 15, 139, 20], 1.5, (114, 13, 144, 20)),
        ((100, 48), [3, 9, 14, 54], 1.25, (1, 3, 15, 59)),
        ((87, 198), [135, 0, 168, 80], 1.1, (133, 0, 169, 84)),
        ((112, 46), [0, 0, 7, 39], 2.0, (0, 0, 10, 58)),
        ((106, 23), [3, 27, 21, 40], 2.0, (0, 20, 23, 46)),
        ((140, 169), [157, 42, 167, 43], 1.25, (155, 41, 168, 43)),
    ],
    ids=[
        "ratio of one",
        "inside the image",
        "over the bottom",
        "truncated",
        "over the top",
        "over the corner",
        "over both sides",
        "one pixel high",
    ],
)
def test_boxes_grow_as_in_the_reference(size, box, ratio, expanded):
    others = torch.tensor([[0, 0, 1, 1], box, [0, 0, 2, 2]])
    assert expand_boxes(others, ratio, size)[1].tolist() == list(expanded)


class SmallMemory:
    """A CLIP whose device holds few crops at once, and says so as torch does."""

    side, mean, std = 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, capacity):
        self.capacity, self.batches = capacity, []

    def encode_crops(self, crops_N3SS, batch, at_once):
        parts = []
        for start in range(0, len(crops_N3SS), batch):
            part = crops_N3SS[start : start + batch]
            self.batches.append(len(part))
            if len(part) > self.capacity:
                raise torch.OutOfMemoryError("CUDA out of memory")
            parts.append(part.flatten(1).mean(1, keepdim=True))
        return torch.cat(parts)


def test_crops_go_in_smaller_batches_where_the_gpu_is_too_small():
    image_3HW = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    masks_QHW = torch.rand(11, 20, 30)
    roomy, small = SmallMemory(100), SmallMemory(3)
    (expected,) = CropClassifier(roomy, CropSettings(), 64).embed([(image_3HW, masks_QHW)])
    classifier = CropClassifier(small, CropSettings(), 64)
    (found,) = classifier.embed([(image_3HW, masks_QHW)])
    assert torch.equal(found.clip_embeds_VD, expected.clip_embeds_VD)
    assert small.batches == [11, 5, 2, 2, 2, 2, 2, 1]
    small.batches.clear()
    classifier.embed([(image_3HW, masks_QHW)])
    assert max(small.batches) == 2  # what it learned stays
    roomy.batches.clear()
    two = CropClassifier(roomy, CropSettings(), 16).embed([(image_3HW, masks_QHW)] * 2)
    assert roomy.batches == [16, 6]  # crops of both images share a batch
    assert all(torch.equal(one.clip_embeds_VD, expected.clip_embeds_VD) for one in two)
    with pytest.raises(torch.OutOfMemoryError):
        CropClassifier(SmallMemory(0), CropSettings(), 4).embed([(image_3HW, masks_QHW)])


@pytest.mark.parametrize("counts", [(), (0,), (3,), (4, 0, 4), (1, 1, 1, 6, 0, 9), (0, 11, 2)])
def test_batches_are_the_same_rows_in_order(counts):
    numbers = torch.arange(sum(counts)).float()
    found = list(batches_of(iter(numbers.split(list(counts))), 4))
    assert [len(batch) for batch in found[:-1]] == [4] * (len(found) - 1)
    assert all(1 <= len(batch) <= 4 for batch in found)
    assert torch.equal(torch.cat([numbers[:0], *found]), numbers)
    # What lies in one tensor already is not copied.
    if counts == (4, 0, 4):
        assert [batch.data_ptr() for batch in found] == [numbers.data_ptr(), numbers[4:].data_ptr()]


@pytest.mark.parametrize("count", [1, 3])
def test_regions_none_of_which_holds_a_pixel_have_no_crops(count):
    """Each is above the threshold at a node of its grid, which is between four pixels."""
    logits_Qhw = torch.full((count, 8, 8), -9.0)
    logits_Qhw[:, 3, 3] = 0.01
    between = SoftMasks(logits_Qhw, (32, 32), (32, 32))
    assert (between.outer_boxes(0.5)[:, 2] > 0).all()
    found = cut(torch.zeros((3, 32, 32), dtype=torch.uint8), between)
    assert not found.valid_Q.any()
    assert found.boxes_V4.shape == (0, 4) and len(found.crops_V3SS) == 0
