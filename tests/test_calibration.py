"""Scores against correctness, by hand."""

import numpy as np
import pytest

from pipeline.evaluation.calibration import NUM_BINS, Calibration, bin_edges
from tests.helpers import draw_classes

PREDICTED = draw_classes("00011", "00.11")
TRUTH = draw_classes("00111", "01110")
IGNORED = np.where(draw_classes("00000", "00001") == 1, 255, TRUTH)


def segment(class_index, score):
    return {"class_index": class_index, "score": score}


def test_pixels_count_in_the_bin_of_their_segments_score():
    # Class 0 has five pixels of which three are right, class 1 four of which three are.
    found = Calibration.of([segment(0, 0.62), segment(1, 0.98)], PREDICTED, TRUTH, 255)
    assert dict(enumerate(found.pixels.tolist())) == dict.fromkeys(range(NUM_BINS), 0) | {
        12: 5,
        19: 4,
    }
    assert (found.correct[12], found.correct[19]) == (3, 3)
    assert found.accuracy()[[12, 19]].tolist() == [3 / 5, 3 / 4]
    assert np.isnan(found.accuracy()[0])
    assert found.mean_scores()[[12, 19]].tolist() == pytest.approx([0.62, 0.98])
    expected = (5 * abs(3 / 5 - 0.62) + 4 * abs(3 / 4 - 0.98)) / 9
    assert found.expected_error() == pytest.approx(expected)


def test_too_sure_and_too_unsure_are_both_wrong_and_do_not_make_up_for_each_other():
    pixels, correct = np.zeros((2, NUM_BINS), np.int64)
    scores = np.zeros(NUM_BINS)
    pixels[[0, -1]], correct[[0, -1]], scores[[0, -1]] = 10, 5, (0, 10)
    assert Calibration(pixels, correct, scores).expected_error() == pytest.approx(0.5)


def test_ignored_pixels_and_pixels_without_a_label_count_nowhere():
    found = Calibration.of([segment(0, 0.62), segment(1, 0.98)], PREDICTED, IGNORED, 255)
    assert (found.pixels[19], found.correct[19]) == (3, 3)
    assert found.pixels.sum() == 8


def test_a_class_that_is_ignored_as_a_whole_is_no_error():
    truth = np.where(PREDICTED == 1, 255, 0)
    found = Calibration.of([segment(0, 0.5), segment(1, 0.7)], PREDICTED, truth, 255)
    assert found.pixels.sum() == 5


def test_the_score_of_one_is_in_the_last_bin():
    found = Calibration.of([segment(0, 1.0), segment(1, 0.0)], PREDICTED, TRUTH, 255)
    assert (found.pixels[0], found.pixels[-1]) == (4, 5)


def test_what_a_minimum_score_keeps():
    found = Calibration.of([segment(0, 0.62), segment(1, 0.98)], PREDICTED, TRUTH, 255)
    kept = dict(zip(bin_edges().tolist(), found.kept().tolist(), strict=True))
    correct = dict(zip(bin_edges().tolist(), found.accuracy_of_kept().tolist(), strict=True))
    assert (kept[0.0], kept[0.6], kept[0.65], kept[0.95]) == (1, 1, 4 / 9, 4 / 9)
    assert (correct[0.6], correct[0.65]) == (6 / 9, 3 / 4)


def test_parts_merged_are_the_whole():
    parts = [
        Calibration.of([segment(0, 0.62), segment(1, 0.98)], PREDICTED, TRUTH, 255),
        Calibration.of([segment(0, 0.2), segment(1, 0.97)], PREDICTED, IGNORED, 255),
    ]
    whole = sum(parts, start=Calibration.zero())
    assert whole.pixels.sum() == 17
    assert (whole.pixels[4], whole.pixels[12], whole.pixels[19]) == (5, 5, 7)
    assert (whole.correct[4], whole.correct[12], whole.correct[19]) == (3, 3, 6)
    assert whole.scores[19] == pytest.approx(4 * 0.98 + 3 * 0.97)


def test_nothing_has_no_error():
    assert np.isnan(Calibration.zero().expected_error())
    assert np.isnan(Calibration.zero().kept()).all()
