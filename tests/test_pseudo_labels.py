"""Pseudo labels of small score maps; classes 0 and 1 are seen, 2 and 3 are not."""

import pytest
import torch

from pipeline.pseudo_labels import PseudoLabelSettings, pseudo_labels
from tests.helpers import draw_classes

SEEN = torch.tensor([True, True, False, False])
UNKNOWN = torch.tensor([[255, 255, 255, 255]])
# Four pixels, best classes 0, 3, 2 and 1 of all, 2, 3, 2 and 3 of the unseen.
SCORES = torch.tensor(
    [
        [[3.0, 1.0, 0.5, 0.0]],
        [[0.0, 0.0, 0.0, 2.0]],
        [[2.0, 0.0, 1.0, 0.0]],
        [[1.0, 2.0, 0.0, 1.5]],
    ]
)


def labels(truth=UNKNOWN, **settings):
    return pseudo_labels(SCORES, truth, SEEN, PseudoLabelSettings(**settings)).tolist()


def test_with_the_prior_the_best_unseen_class_is_taken():
    assert labels() == [[2, 3, 2, 3]]


def test_without_it_all_classes_compete():
    assert labels(prior="none") == [[0, 3, 2, 1]]


def test_the_truth_of_seen_classes_is_pasted_and_no_other():
    truth = torch.tensor([[1, 0, 3, 255]])
    assert labels(truth) == [[1, 0, 2, 3]]
    assert labels(truth, prior="none") == [[1, 0, 2, 1]]


def test_an_unsigned_truth_is_read_like_any_other():
    assert labels(torch.tensor([[1, 0, 3, 255]], dtype=torch.uint8)) == [[1, 0, 2, 3]]
    assert labels(torch.from_numpy(draw_classes("10.."))) == [[1, 0, 2, 3]]


def test_a_probability_below_the_threshold_is_rejected_and_ignored():
    # Softmax over all classes: exp(2) / (exp(3) + exp(0) + exp(2) + exp(1)) = 0.2369, and so on.
    best = SCORES.softmax(dim=0)[2:].amax(dim=0)
    assert best[0].tolist() == pytest.approx([0.2369, 0.6103, 0.4269, 0.3231], abs=1e-4)
    assert labels(min_score=0.4) == [[255, 3, 2, 255]]
    assert labels(min_score=0.4, rejected_index=4) == [[4, 3, 2, 4]]


def test_without_the_prior_the_threshold_is_on_the_summed_score():
    assert labels(prior="none", min_score=2.0) == [[0, 3, 255, 1]]  # 2.0 itself stays


def test_the_truth_wins_over_rejection():
    assert labels(torch.tensor([[1, 255, 3, 255]]), min_score=0.9) == [[1, 255, 255, 255]]


def test_parts_equal_the_whole():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand((4, 6, 5), generator=generator)
    truth = torch.randint(0, 4, (6, 5), generator=generator)
    settings = PseudoLabelSettings(min_score=0.26)
    whole = pseudo_labels(scores, truth, SEEN, settings)
    parts = [pseudo_labels(scores[:, rows], truth[rows], SEEN, settings)
             for rows in (slice(0, 4), slice(4, 6))]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole)
    assert set(whole.unique().tolist()) == {0, 1, 2, 3, 255}


@pytest.mark.parametrize(
    "truth, seen, words",
    [
        (torch.zeros(4, 1), SEEN, r"truth must be \(1, 4\)"),
        (UNKNOWN, SEEN[:3], r"seen flags \(4,\)"),
    ],
    ids=["turned", "a flag too few"],
)
def test_what_does_not_fit_is_refused(truth, seen, words):
    with pytest.raises(ValueError, match=words):
        pseudo_labels(SCORES, truth, seen, PseudoLabelSettings())


def test_rejected_pixels_cannot_become_a_class():
    with pytest.raises(ValueError, match="rejected_index 3 is one of the 4 classes"):
        labels(rejected_index=3)
