"""Metrics that add, by the protocol of the reference (spec 5.2)."""

import numpy as np
import pytest

from pipeline.metrics import BoundaryCounts, Confusion, harmonic_iou, summarise
from tests.helpers import draw, draw_classes

# Predicted, truth; classes 0 to 3. Class 2 is predicted but absent from the truth, 3 never occurs.
PREDICTED = draw_classes("0012", "0.12")
TRUTH = draw_classes("0011", "0111")


def test_confusion_counts_predicted_against_true_pixels():
    expected = [
        [3, 0, 0, 0],  # predicted 0
        [0, 2, 0, 0],
        [0, 2, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],  # no label
    ]
    np.testing.assert_array_equal(Confusion.of(PREDICTED, TRUTH, 4).counts, expected)


def test_a_class_predicted_but_absent_from_the_truth_lowers_the_mean():
    confusion = Confusion.of(PREDICTED, TRUTH, 4)
    # IoU 3/3 and 2/5; class 2 counts as 0, class 3 not at all.
    np.testing.assert_allclose(confusion.iou(), [1.0, 0.4, np.nan, np.nan])
    assert confusion.miou() == pytest.approx((1.0 + 0.4 + 0.0) / 3)
    assert confusion.pixel_accuracy() == pytest.approx(5 / 8)


def test_detectron2_leaves_out_a_class_that_is_only_predicted():
    confusion = Confusion.of(PREDICTED, TRUTH, 4)
    assert confusion.miou(protocol="detectron2") == pytest.approx((1.0 + 0.4) / 2)
    assert np.isnan(confusion.miou([False, False, True, True], "detectron2"))


def test_accuracies_are_of_the_truth():
    confusion = Confusion.of(PREDICTED, TRUTH, 4)  # 3 of 3 and 2 of 5 are right
    np.testing.assert_allclose(confusion.accuracy(), [1.0, 0.4, np.nan, np.nan])
    assert confusion.mean_accuracy() == pytest.approx(0.7)
    assert confusion.mean_accuracy([False, True, True, False]) == pytest.approx(0.4)
    assert confusion.pixel_accuracy([True, False, True, False]) == 1.0
    assert np.isnan(confusion.pixel_accuracy([False, False, True, True]))


def test_frequency_weights_are_shares_of_the_truth():
    confusion = Confusion.of(PREDICTED, TRUTH, 4)
    assert confusion.frequency_weighted_iou() == pytest.approx((3 * 1.0 + 5 * 0.4) / 8)


@pytest.mark.parametrize(
    "members, expected",
    [
        ([True, True, True, True], 1.4 / 3),
        ([True, False, False, False], 1.0),
        ([False, True, True, False], 0.2),
        ([False, False, True, True], 0.0),
        ([False, False, False, True], np.nan),
        ([False] * 4, np.nan),
    ],
    ids=["all", "first", "with an absent one", "only predicted", "never occurs", "none"],
)
def test_the_mean_is_taken_over_the_members(members, expected):
    assert Confusion.of(PREDICTED, TRUTH, 4).miou(members) == pytest.approx(expected, nan_ok=True)


def test_ignored_truth_counts_nowhere():
    truth = np.where(TRUTH == 1, 255, TRUTH)
    confusion = Confusion.of(PREDICTED, truth, 4)
    assert confusion.counts.sum() == 3
    # Class 2 was predicted on ignored pixels only, so that it does not lower the mean.
    assert confusion.miou() == 1.0
    assert Confusion.of(PREDICTED, TRUTH, 4, ignore=1).counts.sum() == 3


def test_parts_merged_equal_the_whole():
    left = Confusion.of(PREDICTED[:, :1], TRUTH[:, :1], 4)
    right = Confusion.of(PREDICTED[:, 1:], TRUTH[:, 1:], 4)
    whole = Confusion.of(PREDICTED, TRUTH, 4)
    np.testing.assert_array_equal((left + right).counts, whole.counts)
    merged = sum([left, right], start=Confusion.zero(4))
    np.testing.assert_array_equal(merged.counts, whole.counts)


def test_nothing_counted_has_no_metrics():
    for empty in (Confusion.zero(2), Confusion.of(np.zeros((0, 3), int), np.zeros((0, 3), int), 2)):
        assert np.isnan([*empty.iou(), empty.miou(), empty.pixel_accuracy()]).all()
        assert np.isnan([empty.mean_accuracy(), empty.frequency_weighted_iou()]).all()
        assert np.isnan(list(summarise(empty, ["cat", "dog"], {"base": [0]}).values())).all()


@pytest.mark.parametrize("predicted, expected", [("1", 1.0), ("0", 0.0), (".", 0.0)])
def test_one_pixel_is_right_or_wrong(predicted, expected):
    confusion = Confusion.of(draw_classes(predicted), draw_classes("1"), 2)
    assert confusion.miou() == confusion.pixel_accuracy() == expected


def test_index_types_do_not_matter():
    counts = [
        Confusion.of(PREDICTED.clip(0).astype(predicted), TRUTH.astype(truth), 300).counts
        for predicted, truth in [("uint8", "uint8"), ("int64", "int32"), ("int16", "uint16")]
    ]
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[2])


@pytest.mark.parametrize(
    "predicted, truth, words",
    [
        ("00", "0", "prediction is .1, 2., truth is .1, 1."),
        ("0", "4", "indices up to .4., there are 4 classes"),
        ("0", ".", "indices up to .-1., there are 4 classes"),
    ],
    ids=["other size", "index too large", "negative index"],
)
def test_a_truth_that_does_not_fit_is_refused(predicted, truth, words):
    with pytest.raises(ValueError, match=words):
        Confusion.of(draw_classes(predicted), draw_classes(truth), 4)
    with pytest.raises(ValueError, match=words):
        BoundaryCounts.of(draw_classes(predicted), draw_classes(truth), 4)


@pytest.mark.parametrize(
    "seen, unseen, expected",
    [
        (40.3859, 36.4862, 38.34),
        (0.5, 0.5, 0.5),
        (0.0, 0.7, 0.0),
        (0.7, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (0.7, np.nan, np.nan),
        (np.nan, 0.0, np.nan),
    ],
    ids=["published", "equal", "no seen", "no unseen", "neither", "no unseen class", "0 and nan"],
)
def test_hiou_is_the_harmonic_mean(seen, unseen, expected):
    assert harmonic_iou(seen, unseen) == pytest.approx(expected, abs=0.005, nan_ok=True)


def test_a_summary_names_each_set_and_its_complement():
    confusion = Confusion.of(PREDICTED, TRUTH, 4)
    metrics = summarise(confusion, ["cat", "dog", "cow", "pot"], {"base": [0, 2], "all": range(4)})
    assert metrics["IoU-dog"] == pytest.approx(0.4)
    assert metrics["ACC-cat"] == 1.0
    assert metrics["mIoU-base"] == pytest.approx(0.5)  # 3/3, and 0 for the one only predicted
    assert metrics["mIoU-unbase"] == pytest.approx(0.4)
    assert metrics["hIoU-base"] == pytest.approx(2 / (1 / 0.5 + 1 / 0.4))
    assert (metrics["pAcc-base"], metrics["pAcc-unbase"]) == (1.0, pytest.approx(0.4))
    assert np.isnan([metrics["mIoU-unall"], metrics["pAcc-unall"], metrics["hIoU-all"]]).all()
    by_truth = summarise(confusion, ["a", "b", "c", "d"], {"base": [0, 2]}, "detectron2")
    assert (by_truth["mIoU"], by_truth["mIoU-base"]) == (pytest.approx(0.7), 1.0)


def test_a_summary_wants_a_name_for_every_class():
    with pytest.raises(ValueError, match="longer than"):
        summarise(Confusion.zero(3), ["cat", "dog"])


def ring(side, width):
    """Return a square mask without its middle."""
    mask = np.ones((side, side), dtype=int)
    mask[width:-width, width:-width] = 0
    return mask


@pytest.mark.parametrize("side, width", [(10, 1), (71, 2), (142, 4)])
def test_a_boundary_is_two_percent_of_the_diagonal_wide(side, width):
    whole = np.zeros((side, side), dtype=int)
    counts = BoundaryCounts.of(whole, whole, 1)
    assert counts.truth[0] == counts.hits[0] == ring(side, width).sum()


# 1 is a square; the prediction is shifted by one pixel. The boundary is 1 pixel wide.
SQUARE = ["......", ".####.", ".####.", ".####.", ".####.", "......"]
SHIFTED = ["......", "..####", "..####", "..####", "..####", "......"]
EDGE = ["......", ".####.", ".#..#.", ".#..#.", ".####.", "......"]
SHIFTED_EDGE = ["......", "..####", "..#..#", "..#..#", "..####", "......"]


def test_boundary_iou_compares_contours():
    truth, predicted = draw(*SQUARE).astype(int), draw(*SHIFTED).astype(int)
    edge, shifted_edge = draw(*EDGE), draw(*SHIFTED_EDGE)
    counts = BoundaryCounts.of(predicted, truth, 2)
    assert counts.truth[1] == edge.sum()
    assert counts.predicted[1] == shifted_edge.sum()
    expected = (edge & shifted_edge).sum() / (edge | shifted_edge).sum()
    assert counts.iou()[1] == pytest.approx(expected)
    assert expected < Confusion.of(predicted, truth, 2).iou()[1]


def test_boundary_iou_follows_the_protocols():
    counts = BoundaryCounts.of(draw_classes("0012"), draw_classes("0011"), 4)
    np.testing.assert_allclose(counts.iou(), [1.0, 0.5, np.nan, np.nan])
    assert counts.miou() == pytest.approx(0.5)
    assert counts.miou(protocol="detectron2") == pytest.approx(0.75)
    assert counts.miou([True, False, False, True]) == 1.0
    assert np.isnan(BoundaryCounts.zero(2).miou())


def test_ignored_pixels_are_outside_of_both_boundaries():
    truth = ring(30, 6) * 255  # a frame is ignored
    perfect = BoundaryCounts.of(np.zeros((30, 30), dtype=int), truth, 1)
    assert perfect.iou() == [1.0]
    assert perfect.truth[0] == ring(18, 1).sum()
    assert BoundaryCounts.of(truth, np.full((30, 30), 255), 1).truth[0] == 0


def test_boundaries_of_parts_merged_equal_the_whole():
    one = BoundaryCounts.of(PREDICTED, TRUTH, 4)
    total = sum([one, one], start=BoundaryCounts.zero(4))
    np.testing.assert_array_equal(total.truth, 2 * one.truth)
    np.testing.assert_array_equal(total.iou(), one.iou())
