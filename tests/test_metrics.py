"""Metrics that add, by the protocol of the reference (spec 5.2)."""

import json

import numpy as np
import pytest

from pipeline.metrics import Confusion, harmonic_iou
from tests.helpers import draw_classes

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


@pytest.mark.parametrize(
    "seen, unseen, expected",
    [
        (40.3859, 36.4862, 38.34),
        (0.5, 0.5, 0.5),
        (0.0, 0.7, 0.0),
        (0.7, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (0.7, float("nan"), float("nan")),
    ],
    ids=["published", "equal", "no seen", "no unseen", "neither", "nothing unseen occurs"],
)
def test_hiou_is_the_harmonic_mean(seen, unseen, expected):
    assert harmonic_iou(seen, unseen) == pytest.approx(expected, abs=0.005, nan_ok=True)


@pytest.mark.shared
@pytest.mark.parametrize("case", ["mixed", "unseen_zero", "no_unseen", "perfect", "no_sets"])
def test_metrics_are_those_of_the_reference(shared, case):
    golden = shared.parent / "golden" / "metrics"
    record = json.loads((golden / "metrics.json").read_text())[case]
    expected = {name: float(value) / 100 for name, value in record["result"].items()}
    num_classes = sum(name.startswith("IoU-") for name in expected)
    with np.load(golden / "maps.npz") as maps:
        total = Confusion.zero(num_classes)
        for index in range(record["images"]):
            predicted, truth = maps[f"{case}.pred{index}"], maps[f"{case}.gt{index}"]
            total += Confusion.of(predicted, truth, num_classes)
        np.testing.assert_array_equal(
            total.counts[:num_classes], maps[f"{case}.confusion"][:num_classes, :num_classes]
        )
    assert total.miou() == pytest.approx(expected["mIoU"])
    assert total.pixel_accuracy() == pytest.approx(expected["pACC"])
    ious = [value for name, value in expected.items() if name.startswith("IoU-")]
    np.testing.assert_allclose(total.iou(), ious)
    for name, members in (record["sets"] or {}).items():
        chosen = [index in members for index in range(num_classes)]
        inside, outside = total.miou(chosen), total.miou([not flag for flag in chosen])
        for key, value in [("mIoU", inside), ("mIoU-un", outside)]:
            label = f"{key}{name}" if key.endswith("un") else f"{key}-{name}"
            assert value == pytest.approx(expected[label], nan_ok=True)
        assert harmonic_iou(inside, outside) == pytest.approx(expected[f"hIoU-{name}"], nan_ok=True)
