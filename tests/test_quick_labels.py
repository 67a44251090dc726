"""Label maps computed in full only where labels meet."""

import numpy as np
import pytest
import torch

from pipeline.fusion import label_map
from pipeline.masks import mask_probs
from pipeline.quick_labels import quick_labels
from pipeline.segments import KeptLabels, encode_kept
from tests.test_mask_codec import smooth_masks

PADDED, RESIZED = (128, 192), (120, 180)
SIZES = [(120, 180), (75, 111), (240, 300)]


def scene(seed=0):
    logits_Qhw = torch.from_numpy(smooth_masks(12, 32, 48, seed))
    scores_QK = torch.rand(12, 30, generator=torch.Generator().manual_seed(seed)) ** 6
    return logits_Qhw, scores_QK


def whole_and_quick(seed, size, min_score):
    """What is kept of the whole computation, and what is made of nearly nothing."""
    logits_Qhw, scores_QK = scene(seed)
    found = label_map(scores_QK, mask_probs(logits_Qhw, PADDED, RESIZED), size).kept(min_score)
    maps = (found.classes_HW, found.scores_HW, found.margins_HW)
    whole = KeptLabels.of(*(values.numpy() for values in maps), scores_QK.shape[1])
    quick = quick_labels(scores_QK, logits_Qhw, (PADDED, RESIZED, size), min_score)
    assert quick.classes_HW.shape == whole.classes_HW.shape == size
    return whole, quick


def areas(labels):
    return np.bincount(labels.classes_HW.ravel() + 1, minlength=31)[1:]


@pytest.mark.parametrize("size", SIZES, ids=["same", "smaller", "larger"])
def test_labels_scores_and_margins_are_nearly_those_of_the_whole_computation(size):
    whole, quick = whole_and_quick(0, size, 0.0)
    assert (quick.classes_HW == whole.classes_HW).mean() > 0.997
    num_pixels = whole.classes_HW.size
    assert np.abs(quick.scores_K - whole.scores_K).sum() < 0.01 * num_pixels
    assert np.abs(quick.margins_K - whole.margins_K).sum() < 0.03 * num_pixels
    assert len(whole.occurring()) > 5  # there are borders
    assert quick.occurring().tolist() == np.flatnonzero(areas(quick)).tolist()


def test_segments_have_means_of_their_own_pixels():
    whole, quick = whole_and_quick(0, RESIZED, 0.0)
    names = [str(n) for n in range(30)]
    expected = {segment["label"]: segment for segment in encode_kept(whole, names)}
    for segment in encode_kept(quick, names):
        if segment["area"] > 300:
            assert segment["score"] == pytest.approx(expected[segment["label"]]["score"], abs=0.02)
            assert segment["margin"] == pytest.approx(
                expected[segment["label"]]["margin"], abs=0.05
            )


def test_a_threshold_is_followed_as_closely_as_a_border():
    whole, _ = whole_and_quick(3, RESIZED, 0.0)
    least = whole.scores_K.sum() / whole.classes_HW.size
    whole, quick = whole_and_quick(3, RESIZED, least)
    assert 0.2 < (whole.classes_HW >= 0).mean() < 0.8
    assert ((quick.classes_HW >= 0) == (whole.classes_HW >= 0)).mean() > 0.995
    assert np.abs(quick.scores_K - whole.scores_K).sum() < 0.01 * whole.classes_HW.size


def test_padding_has_no_part_in_the_labels():
    logits_Qhw, scores_QK = scene(4)
    expected = quick_labels(scores_QK, logits_Qhw, (PADDED, RESIZED, RESIZED), 0.0)
    logits_Qhw[:, 31:] = 50.0
    logits_Qhw[:, :, 46:] = 50.0
    found = quick_labels(scores_QK, logits_Qhw, (PADDED, RESIZED, RESIZED), 0.0)
    assert (found.classes_HW[:116, :178] == expected.classes_HW[:116, :178]).all()


def test_without_proposals_there_is_no_label():
    none = quick_labels(torch.zeros(0, 30), torch.zeros(0, 32, 48), (PADDED, RESIZED, RESIZED), 0.0)
    assert none.classes_HW.shape == RESIZED and (none.classes_HW == -1).all()
    assert encode_kept(none, ["thing"] * 30) == []
