"""Label maps computed in full only where labels meet."""

import pytest
import torch

from pipeline.fusion import label_map
from pipeline.masks import mask_probs
from pipeline.quick_labels import quick_label_map
from tests.test_mask_codec import smooth_masks

PADDED, RESIZED = (128, 192), (120, 180)
SIZES = [(120, 180), (75, 111), (240, 300)]


def scene(seed=0):
    logits_Qhw = torch.from_numpy(smooth_masks(12, 32, 48, seed))
    scores_QK = torch.rand(12, 30, generator=torch.Generator().manual_seed(seed)) ** 6
    return logits_Qhw, scores_QK


@pytest.mark.parametrize("size", SIZES, ids=["same", "smaller", "larger"])
def test_labels_and_scores_are_nearly_those_of_the_whole_computation(size):
    logits_Qhw, scores_QK = scene()
    whole = label_map(scores_QK, mask_probs(logits_Qhw, PADDED, RESIZED), size)
    quick = quick_label_map(scores_QK, logits_Qhw, (PADDED, RESIZED, size), 0.0)
    assert quick.classes_HW.shape == quick.scores_HW.shape == size
    assert (quick.classes_HW == whole.classes_HW).float().mean() > 0.997
    assert (quick.scores_HW - whole.scores_HW).abs().mean() < 0.01
    assert len(whole.classes_HW.unique()) > 5  # there are borders


def test_a_threshold_is_followed_as_closely_as_a_border():
    logits_Qhw, scores_QK = scene(3)
    whole = label_map(scores_QK, mask_probs(logits_Qhw, PADDED, RESIZED), RESIZED)
    least = float(whole.scores_HW.median())
    quick = quick_label_map(scores_QK, logits_Qhw, (PADDED, RESIZED, RESIZED), least)
    same = (quick.scores_HW >= least) == (whole.scores_HW >= least)
    assert 0.2 < (whole.scores_HW >= least).float().mean() < 0.8
    assert same.float().mean() > 0.995


def test_padding_has_no_part_in_the_labels():
    logits_Qhw, scores_QK = scene(4)
    expected = quick_label_map(scores_QK, logits_Qhw, (PADDED, RESIZED, RESIZED), 0.0)
    logits_Qhw[:, 31:] = 50.0
    logits_Qhw[:, :, 46:] = 50.0
    found = quick_label_map(scores_QK, logits_Qhw, (PADDED, RESIZED, RESIZED), 0.0)
    assert (found.classes_HW[:116, :178] == expected.classes_HW[:116, :178]).all()


def test_without_proposals_there_is_no_label():
    none = quick_label_map(
        torch.zeros(0, 30), torch.zeros(0, 32, 48), (PADDED, RESIZED, RESIZED), 0.0
    )
    assert none.classes_HW.shape == RESIZED and not none.scores_HW.any()
