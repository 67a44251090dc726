"""Proposals that are dropped, and duplicates that share a crop."""

import numpy as np
import pytest
import torch

from pipeline.masks import SoftMasks
from pipeline.models import Proposals, find_classifier
from pipeline.models.crop_classifier import CropClassifier
from pipeline.models.crops import CropSettings
from pipeline.models.shared_vectors import owners_of
from pipeline.pruning import PruneSettings, prune
from pipeline.stages.propose import Propose
from pipeline.synthetic import make_scene
from schemas.annotation import DECODED, LABELLED, table_from_rows

PADDED, SIZE = (32, 64), (32, 48)  # a grid of 8 x 16 cells, of which 8 x 12 are in the image


def rectangles(*spans, inside=8.0, outside=-8.0):
    """Return masks of cells (top, bottom, left, right)."""
    logits_Qhw = torch.full((len(spans), 8, 16), outside)
    for mask_hw, (top, bottom, left, right) in zip(logits_Qhw, spans, strict=True):
        mask_hw[top:bottom, left:right] = inside
    return logits_Qhw


def keeps(logits_Qhw, **settings):
    return PruneSettings(**settings).keeps(SoftMasks(logits_Qhw, PADDED, SIZE)).tolist()


def test_nothing_is_asked_for_by_default():
    assert keeps(rectangles((0, 0, 0, 0), (0, 8, 0, 12))) == [True, True]


def test_empty_and_tiny_masks_go_and_padding_counts_for_nothing():
    # Of 96 cells: 96, 12, 1 and none; the last lies in the padding.
    logits = rectangles((0, 8, 0, 12), (0, 1, 0, 12), (3, 4, 5, 6), (0, 0, 0, 0), (0, 8, 12, 16))
    assert keeps(logits, min_area=1e-9) == [True, True, True, False, False]
    assert keeps(logits, min_area=1 / 96) == [True, True, True, False, False]
    assert keeps(logits, min_area=0.05) == [True, True, False, False, False]


def test_the_threshold_is_that_of_the_masks():
    logits = rectangles((0, 8, 0, 12), (0, 8, 0, 12), inside=0.5)
    logits[1] *= 2  # a probability of 0.73 against 0.62
    assert keeps(logits, min_area=0.5, mask_threshold=0.7) == [False, True]


def test_masks_that_hang_on_their_threshold_go():
    steep, slope = rectangles((0, 4, 0, 12), (0, 4, 0, 12))
    slope[4:6] = -0.5  # in the mask at a threshold one logit lower
    assert keeps(torch.stack([steep, slope]), min_stability=0.9) == [True, False]
    assert keeps(torch.stack([steep, slope]), min_stability=0.6) == [True, True]


def test_stability_is_of_the_masks_at_one_logit_more_and_at_one_less():
    # Of 96 cells: 48 at one logit more, 60 at the threshold, 72 at one logit less.
    (logits,) = rectangles((0, 4, 0, 12))
    logits[4:5], logits[5:6] = 0.5, -0.5
    assert keeps(torch.stack([logits, logits + 100]), min_stability=48 / 72) == [True, True]
    assert keeps(torch.stack([logits, logits + 100]), min_stability=0.67) == [False, True]


def test_masks_that_are_nowhere_the_largest_go_and_equal_ones_stay():
    first, second, third = rectangles((0, 8, 0, 12), (2, 4, 2, 4), (2, 4, 2, 4))
    second[2:4, 2:4] = 3.0  # everywhere below the first
    assert keeps(torch.stack([first, second]), min_won=1e-9) == [True, False]
    assert keeps(torch.stack([first, third]), min_won=1e-9) == [True, True]
    assert keeps(torch.stack([first, third]), min_won=4 / 96) == [True, True]
    assert keeps(torch.stack([first, third]), min_won=0.05) == [True, False]


def test_where_nothing_would_be_left_nothing_goes():
    assert keeps(rectangles((0, 1, 0, 1), (0, 0, 0, 0)), min_area=0.5) == [True, True]
    assert keeps(torch.zeros((0, 8, 16)), min_area=0.5) == []


def test_what_belongs_to_a_proposal_goes_with_it():
    found = Proposals(
        rectangles((0, 8, 0, 12), (0, 0, 0, 0), (0, 4, 0, 12)), torch.eye(3), torch.arange(3.0)
    )
    left = prune(found, PruneSettings(min_area=0.1), PADDED, SIZE)
    assert torch.equal(left.mask_logits_Qhw, found.mask_logits_Qhw[[0, 2]])
    assert torch.equal(left.query_embeds_QD, torch.eye(3)[[0, 2]])
    assert left.void_logits_Q.tolist() == [0, 2]
    without = prune(Proposals(found.mask_logits_Qhw), PruneSettings(min_area=0.1), PADDED, SIZE)
    assert (len(without.mask_logits_Qhw), without.query_embeds_QD) == (2, None)


def test_the_stage_hands_on_what_stays():
    picture = make_scene(5_400, 0).image_HW3
    height, width = picture.shape[:2]
    row = {
        "image_id": "0", "uri": "0", "height": height, "width": width, "status": LABELLED,
        "image_height": height, "image_width": width, "image": picture.tobytes(),
    }  # fmt: skip
    table = table_from_rows([row], DECODED)
    (whole,) = Propose("maskformer", None, 32, "float32")(table).to_pylist()
    pruning = PruneSettings(min_area=0.01)
    (left,) = Propose("maskformer", None, 32, "float32", (), pruning)(table).to_pylist()
    assert 0 < left["n_proposals"] < whole["n_proposals"]
    grid = (left["mask_height"], left["mask_width"])
    all_Qhw, kept_Qhw = (
        np.frombuffer(one["mask_logits"], np.float32).reshape(-1, *grid) for one in (whole, left)
    )
    padded = (-(-height // 32) * 32, -(-width // 32) * 32)
    kept_Q = pruning.keeps(SoftMasks(torch.tensor(all_Qhw), padded, (height, width))).numpy()
    assert np.array_equal(all_Qhw[kept_Q], kept_Qhw)
    voids = [np.frombuffer(one["void_logits"], np.float32) for one in (whole, left)]
    assert np.array_equal(voids[0][kept_Q], voids[1])


def test_duplicates_take_the_vector_of_the_surest_of_them():
    logits = rectangles((0, 4, 0, 10), (0, 4, 0, 9), (0, 0, 0, 0), (0, 4, 0, 8), (4, 8, 0, 12))
    logits[1] += 0.5  # surer than its neighbours
    masks = SoftMasks(logits, PADDED, SIZE)
    assert owners_of(masks, 0.85, 0.5).tolist() == [1, 1, 2, 1, 4]
    assert owners_of(masks, 0.89, 0.5).tolist() == [1, 1, 2, 3, 4]
    assert owners_of(masks, 1.0, 0.5).tolist() == [0, 1, 2, 3, 4]
    dense = masks.whole()
    assert owners_of(dense, 0.85, 0.5).tolist() == [1, 1, 2, 1, 4]


class Counted:
    """A stand-in for a CLIP: the mean of a crop, and how many it was shown."""

    side, mean, std = 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self):
        self.shown = 0

    def encode_crops(self, crops_N3SS, batch, at_once):
        self.shown += len(crops_N3SS)
        return crops_N3SS.flatten(2).mean(dim=2)


@pytest.mark.parametrize("dense", [False, True])
def test_only_one_of_every_group_is_shown(dense):
    generator = torch.Generator().manual_seed(0)
    image_3HW = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)
    logits = rectangles((0, 4, 0, 10), (0, 4, 0, 9), (0, 0, 0, 0), (0, 4, 0, 10), (4, 8, 0, 12))
    logits[0] += 0.5  # the surest
    other = rectangles((0, 0, 0, 0))
    masks = [SoftMasks(one, PADDED, SIZE) for one in (logits, other)]
    regions = [(image_3HW, one.whole() if dense else one) for one in masks]
    clip = Counted()
    (every, _) = CropClassifier(clip, CropSettings(), 4).embed(regions)
    assert clip.shown == 4
    clip.shown = 0
    shared = find_classifier("crops").load(clip, CropSettings(min_shared_iou=0.95), 4)
    found, none = shared.embed(regions)
    assert clip.shown == 3
    assert found.valid_Q.tolist() == every.valid_Q.tolist() == [True, True, False, True, True]
    assert torch.equal(found.clip_embeds_VD, every.clip_embeds_VD)  # equal masks, equal vectors
    assert (none.valid_Q.tolist(), len(none.clip_embeds_VD)) == ([False], 0)
    shared = find_classifier("crops").load(clip, CropSettings(min_shared_iou=0.85), 4)
    (found, _) = shared.embed(regions)
    assert torch.equal(found.clip_embeds_VD, every.clip_embeds_VD[[0, 0, 0, 3]])
