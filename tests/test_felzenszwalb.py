"""The weight-free proposer: regions of an image as mask logits over the padded image."""

import numpy as np
import pytest

from pipeline.masks import mask_probs
from pipeline.models import find_proposer
from pipeline.models.felzenszwalb import Felzenszwalb
from pipeline.resize import padded_size
from schemas.errors import ModelError


def propose(image):
    (proposals,) = Felzenszwalb().propose([image])
    return proposals


def masks_of(image):
    """Return the proposals as boolean masks (Q, H, W) of the image's own size."""
    size = image.shape[:2]
    return (mask_probs(propose(image).mask_logits_Qhw, padded_size(size, 32), size) > 0.5).numpy()


def two_halves(height, width, edge):
    image = np.full((height, width, 3), 30, dtype=np.uint8)
    image[:, edge:] = (220, 40, 60)
    return image


@pytest.mark.parametrize(
    "size, edge",
    [((64, 96), 32), ((40, 100), 64), ((90, 50), 24)],
    ids=["no padding", "wide", "tall"],
)
def test_each_of_two_halves_is_a_proposal(size, edge):
    masks_QHW = masks_of(two_halves(*size, edge))
    left_HW = np.arange(size[1])[None, :] < edge
    for expected_HW in (left_HW, ~left_HW):
        overlaps = [
            (mask_HW & expected_HW).sum() / (mask_HW | expected_HW).sum() for mask_HW in masks_QHW
        ]
        assert max(overlaps) > 0.9


def test_an_image_of_one_colour_is_one_proposal():
    masks_QHW = masks_of(np.full((33, 47, 3), 128, dtype=np.uint8))
    assert masks_QHW.shape == (1, 33, 47)
    assert masks_QHW.all()  # also in the cells that the edge of the image cuts


@pytest.mark.parametrize("size", [(1, 1), (1, 2560), (320, 1), (2, 3), (32, 32), (33, 31)], ids=str)
def test_an_image_of_any_size_has_a_proposal_on_the_padded_grid(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    logits_Qhw = propose(image).mask_logits_Qhw
    height, width = padded_size(size, 32)
    assert 1 <= len(logits_Qhw) <= 100
    assert logits_Qhw.shape[1:] == (height // 4, width // 4)
    assert logits_Qhw.isfinite().all()


def test_a_busy_image_has_at_most_a_hundred_proposals_and_the_largest_come_first():
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image = image.repeat(8, axis=0).repeat(8, axis=1)
    logits_Qhw = propose(image).mask_logits_Qhw
    assert len(logits_Qhw) == 100
    areas = (logits_Qhw > 0).sum(dim=(1, 2))
    assert areas[:10].float().mean() > areas[-10:].float().mean()


def test_images_of_one_call_do_not_depend_on_each_other():
    images = [two_halves(64, 96, 32), two_halves(40, 40, 20)]
    together = Felzenszwalb().propose(images)
    for image, found in zip(images, together, strict=True):
        assert found.mask_logits_Qhw.equal(propose(image).mask_logits_Qhw)
    assert Felzenszwalb().propose([]) == []


def test_there_is_no_query_head():
    found = propose(two_halves(32, 32, 16))
    assert (found.query_embeds_QD, found.void_logits_Q) == (None, None)


def test_an_unknown_proposer_is_refused_with_those_there_are():
    with pytest.raises(
        ModelError, match="no proposer 'maskrcnn'; there are contours, detectron2, felz"
    ):
        find_proposer("maskrcnn")
