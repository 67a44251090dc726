"""The oracle classifier: class scores of masks from the truth."""

import numpy as np
import pytest
import torch

from pipeline.oracle import oracle_scores
from tests.helpers import draw, draw_classes

TRUTH = draw_classes("0011", "0011", "2222")


def soft(*masks):
    """Return masks drawn as text as probabilities (Q, H, W)."""
    return torch.from_numpy(np.stack([draw(*mask) for mask in masks])) * 0.8 + 0.1


def scores(*masks, truth=TRUTH, num_classes=4):
    return oracle_scores(soft(*masks), truth, num_classes)


def test_a_mask_of_one_class_scores_it_alone():
    found = scores(["##..", "##..", "...."], ["....", "....", ".###"])
    torch.testing.assert_close(found, torch.eye(4)[[0, 2]])


def test_scores_are_ious_that_sum_to_one():
    # The first row: 2 of 4 + 4 - 2 pixels for classes 0 and 1, none for the rest.
    # The left half: 4 of 6 for class 0, 2 of 8 for class 2.
    found = scores(["####", "....", "...."], ["##..", "##..", "##.."])
    left = np.array([4 / 6, 0, 2 / 8, 0])
    expected = [[0.5, 0.5, 0, 0], (left / left.sum()).tolist()]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_ignored_pixels_are_of_no_class_but_of_the_mask():
    truth = draw_classes("01..").clip(-1)
    truth[truth == -1] = 255
    found = scores(["####"], truth=truth)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert not scores(["..##"], truth=truth).any()
    other = oracle_scores(soft(["####"]), draw_classes("0133"), 2, ignore=3)
    torch.testing.assert_close(other, torch.tensor([[0.5, 0.5]]))


def test_an_empty_mask_and_no_mask_score_nothing():
    assert not scores(["....", "....", "...."]).any()
    assert oracle_scores(torch.zeros((0, 3, 4)), TRUTH, 4).shape == (0, 4)


def test_the_threshold_is_strict():
    half = torch.full((1, 3, 4), 0.5)
    assert not oracle_scores(half, TRUTH, 4).any()


def test_masks_and_scores_give_the_truth_back():
    masks = soft(["##..", "##..", "...."], ["..##", "..##", "...."], ["....", "....", "####"])
    summed = torch.einsum("qk,qhw->khw", oracle_scores(masks, TRUTH, 4), masks)
    np.testing.assert_array_equal(summed.argmax(dim=0).numpy(), TRUTH)


@pytest.mark.parametrize(
    "truth, words",
    [
        (TRUTH.T, r"masks are \(3, 4\), truth is \(4, 3\)"),
        (TRUTH + 2, r"truth holds indices \[4\], there are 4 classes"),
        (TRUTH - 1, r"truth holds indices \[-1\], there are 4 classes"),
    ],
    ids=["other size", "index too large", "negative index"],
)
def test_a_truth_that_does_not_fit_is_refused(truth, words):
    with pytest.raises(ValueError, match=words):
        scores(["####", "....", "...."], truth=truth)
