"""Mask logits between the pools, and the soft masks made from them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pipeline.masks import SoftMasks, boxes_around, mask_probs, pack_logits, unpack_logits


@pytest.mark.parametrize(
    "precision, dtype, tolerance",
    [
        ("float32", np.float32, 0.0),
        ("float16", np.float16, 8 * 2.0**-11),
        ("uint8", np.uint8, 8 / 255 + 1e-6),
    ],
    ids=["float32 is exact", "float16 to its rounding", "uint8 to half a step"],
)
def test_packing_and_unpacking_gives_the_logits_back(precision, dtype, tolerance):
    logits_Qhw = torch.linspace(-8.0, 8.0, 2 * 3 * 5).reshape(2, 3, 5)
    packed_Qhw = pack_logits(logits_Qhw, precision)
    assert packed_Qhw.dtype == dtype
    assert packed_Qhw.shape == (2, 3, 5)
    torch.testing.assert_close(unpack_logits(packed_Qhw), logits_Qhw, rtol=0, atol=tolerance)


def test_uint8_clips_at_eight():
    packed_Qhw = pack_logits(torch.tensor([[[-100.0, 100.0]]]), "uint8")
    assert unpack_logits(packed_Qhw).tolist() == [[[-8.0, 8.0]]]


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8"])
def test_no_logit_changes_its_sign_so_no_pixel_crosses_one_half(precision):
    logits_Qhw = torch.tensor([[[-1e-3, 1e-3, -7.0, 7.0]]])
    unpacked_Qhw = unpack_logits(pack_logits(logits_Qhw, precision))
    assert (unpacked_Qhw > 0).tolist() == [[[False, True, False, True]]]


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8"])
def test_no_proposals_pack_and_unpack_as_none(precision):
    packed_Qhw = pack_logits(torch.zeros((0, 2, 3)), precision)
    assert unpack_logits(packed_Qhw).shape == (0, 2, 3)


def test_padding_is_cropped_off_and_the_sigmoid_comes_last():
    torch.manual_seed(0)
    logits_Qhw = 4 * torch.randn(3, 8, 16)
    upsampled = interpolate(logits_Qhw[None], size=(32, 64), mode="bilinear", align_corners=False)
    probs_QHW = mask_probs(logits_Qhw, padded=(32, 64), size=(20, 50))
    assert probs_QHW.shape == (3, 20, 50)
    torch.testing.assert_close(probs_QHW, upsampled[0, :, :20, :50].sigmoid())


def test_a_step_between_cells_is_interpolated_as_a_logit():
    # Six pixels over two cells have their centres at -1/3, 0, 1/3, 2/3, 1 and 4/3 cells.
    logits_Qhw = torch.tensor([[[-6.0, 2.0]]])
    probs_QHW = mask_probs(logits_Qhw, padded=(1, 6), size=(1, 6))
    expected = torch.tensor([-6.0, -6.0, -10 / 3, -2 / 3, 2.0, 2.0]).sigmoid()
    torch.testing.assert_close(probs_QHW[0, 0], expected)


def test_a_mask_on_the_left_stays_on_the_left():
    logits_Qhw = torch.full((1, 8, 16), -8.0)
    logits_Qhw[:, :, :4] = 8.0
    inside_HW = mask_probs(logits_Qhw, padded=(32, 64), size=(30, 40))[0] > 0.5
    assert inside_HW[:, :16].all()
    assert not inside_HW[:, 16:].any()


def test_no_proposals_give_no_masks_of_the_right_size():
    assert mask_probs(torch.zeros((0, 8, 8)), padded=(32, 32), size=(5, 9)).shape == (0, 5, 9)


def test_a_one_pixel_image_has_one_pixel_masks():
    assert mask_probs(torch.zeros((2, 8, 8)), padded=(32, 32), size=(1, 1)).tolist() == [
        [[0.5]],
        [[0.5]],
    ]


@pytest.fixture(params=[((10, 13), (40, 52)), ((7, 9), (32, 64)), ((40, 60), (20, 30))], ids=str)
def soft(request) -> SoftMasks:
    """Noise over grids a quarter of the padded image, of another ratio, and finer than it."""
    grid, padded = request.param
    logits_Qhw = 3 * torch.randn((5, *grid), generator=torch.Generator().manual_seed(2)) - 2
    logits_Qhw[3] = -4  # empty
    return SoftMasks(logits_Qhw, padded, (padded[0] - 3, padded[1] - 5))


def test_rows_made_when_asked_for_are_those_of_the_whole_masks(soft):
    whole_QHW = soft.whole()
    rows_T = torch.tensor([4, 0, soft.size[0] - 1])
    for rows in (slice(0, 1), slice(4, 11), slice(0, soft.size[0])):
        torch.testing.assert_close(soft.rows(rows), whole_QHW[:, rows].permute(1, 2, 0))
    proposals_R = torch.tensor([2, 0, 4])
    found_RW = soft.rows_of(proposals_R, rows_T, slice(3, 17))
    torch.testing.assert_close(found_RW, whole_QHW[proposals_R, rows_T, 3:17])


@pytest.mark.parametrize("min_prob", [0.5, 0.3, 0.9])
def test_outer_boxes_hold_every_pixel_above_the_threshold(soft, min_prob):
    above_QHW = soft.whole() > min_prob
    outer_Q4 = soft.outer_boxes(min_prob)
    tight_Q4 = boxes_around(above_QHW.any(2), above_QHW.any(1))
    some_Q = above_QHW.flatten(1).any(1)
    assert some_Q.sum() > 1
    assert (outer_Q4[some_Q, :2] <= tight_Q4[some_Q, :2]).all()
    assert (outer_Q4[some_Q, 2:] >= tight_Q4[some_Q, 2:]).all()
    assert outer_Q4[3].tolist() == [0, 0, 0, 0]


def test_no_masks_have_no_boxes():
    assert SoftMasks(torch.zeros((0, 8, 8)), (32, 32), (5, 9)).outer_boxes(0.5).shape == (0, 4)
