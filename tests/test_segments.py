"""Label maps to segments and back."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.segments import decode_label_map, decode_mask, encode_mask, encode_segments
from tests.helpers import draw, draw_classes

NAMES = ("sky", "cat", "tree")


def scores_like(classes_HW, value=0.5):
    return np.full(classes_HW.shape, value, dtype=np.float32)


@pytest.mark.parametrize(
    "rows, runs",
    [
        (["..", ".."], [4]),
        (["#.", "#."], [0, 2, 2]),
        ([".#", "#."], [1, 2, 1]),
        (["##", "##"], [0, 4]),
        (["#"], [0, 1]),
        (["."], [1]),
        (["...", "..#"], [5, 1]),
        ([".", "#", "."], [1, 1, 1]),
    ],
    ids=[
        "empty",
        "left column",
        "anti-diagonal",
        "full",
        "one pixel",
        "one empty pixel",
        "last of a wide one",
        "middle of a tall one",
    ],
)
def test_counts_go_down_the_columns_and_come_back(rows, runs):
    mask_HW = draw(*rows)
    counts = encode_mask(mask_HW)
    uncompressed = {"size": list(mask_HW.shape), "counts": runs}
    assert counts == coco_mask.frPyObjects(uncompressed, *mask_HW.shape)["counts"]
    np.testing.assert_array_equal(decode_mask(counts, mask_HW.shape), mask_HW)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 5), (64, 64)], ids=str)
def test_random_masks_come_back(size):
    mask_HW = np.random.default_rng(0).random(size) < 0.3
    decoded = decode_mask(encode_mask(mask_HW), size)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask_HW)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (90, 41), (300, 500)], ids=str)
def test_every_class_is_encoded_as_coco_encodes_its_mask(size):
    # Few large regions and many small ones: counts of one to four characters, growing and falling.
    generator = np.random.default_rng(sum(size))
    classes_HW = generator.integers(0, 2, size) * (generator.random(size) < 0.01)
    classes_HW[size[0] // 3 :, size[1] // 2 :] = 2
    segments = encode_segments(classes_HW, scores_like(classes_HW), NAMES, 0.0)
    assert [segment["class_index"] for segment in segments] == np.unique(classes_HW).tolist()
    for segment in segments:
        mask_HW = classes_HW == segment["class_index"]
        assert segment["counts"] == encode_mask(mask_HW)
        assert segment["area"] == mask_HW.sum()
        x0, y0, x1, y1 = segment["box"]
        inside = mask_HW[y0:y1, x0:x1]
        assert inside.sum() == mask_HW.sum()
        assert all(edge.any() for edge in (*inside[[0, -1]], *inside[:, [0, -1]].T))


def test_segments_describe_their_class():
    classes_HW = draw_classes("2200", "2201", "0001")
    scores_HW = scores_like(classes_HW)
    scores_HW[1, 3] = 1.0
    cat = encode_segments(classes_HW, scores_HW, NAMES, 0.0)[1]
    assert {**cat, "counts": None} == {
        "segment_id": 2,
        "label": "cat",
        "class_index": 1,
        "score": 0.75,
        "margin": None,
        "area": 2,
        "box": [3, 1, 4, 3],
        "counts": None,
    }
    np.testing.assert_array_equal(decode_mask(cat["counts"], (3, 4)), classes_HW == 1)


@pytest.mark.parametrize(
    "rows, labels",
    [
        (["0"], ["sky"]),
        (["11", "11", "11"], ["cat"]),
        (["0102", "0102"], ["sky", "cat", "tree"]),
        (["22222"], ["tree"]),
    ],
    ids=["one pixel", "one class", "every class", "one row"],
)
def test_segments_partition_the_map_and_give_it_back(rows, labels):
    classes_HW = draw_classes(*rows)
    segments = encode_segments(classes_HW, scores_like(classes_HW), NAMES, 0.0)
    assert [segment["label"] for segment in segments] == labels
    assert [segment["segment_id"] for segment in segments] == list(range(1, len(labels) + 1))
    assert sum(segment["area"] for segment in segments) == classes_HW.size
    np.testing.assert_array_equal(decode_label_map(segments, classes_HW.shape), classes_HW)


def test_pixels_under_the_score_floor_belong_to_no_segment():
    classes_HW = draw_classes("0011", "0011")
    scores_HW = np.array([[0.9, 0.3, 0.29, 0.1], [0.5, 0.0, 0.1, 0.2]], dtype=np.float32)
    segments = encode_segments(classes_HW, scores_HW, NAMES, 0.3)
    assert [(segment["label"], segment["area"]) for segment in segments] == [("sky", 3)]
    np.testing.assert_array_equal(decode_label_map(segments, (2, 4)), draw_classes("00..", "0..."))


def test_pixels_without_evidence_belong_to_no_segment_even_without_a_floor():
    classes_HW = draw_classes("01")
    scores_HW = np.array([[0.0, 1e-6]], dtype=np.float32)
    segments = encode_segments(classes_HW, scores_HW, NAMES, 0.0)
    np.testing.assert_array_equal(decode_label_map(segments, (1, 2)), draw_classes(".1"))


def test_a_map_without_any_evidence_has_no_segments():
    classes_HW = draw_classes("012")
    assert encode_segments(classes_HW, scores_like(classes_HW, 0.0), NAMES, 0.0) == []
    np.testing.assert_array_equal(decode_label_map([], (1, 3)), draw_classes("..."))


def test_a_score_that_rounding_lifts_above_one_is_one():
    classes_HW = draw_classes("00")
    scores_HW = scores_like(classes_HW, np.nextafter(np.float32(1), np.float32(2)))
    segment = encode_segments(classes_HW, scores_HW, NAMES, 0.0, margins_HW=scores_HW)[0]
    assert (segment["score"], segment["margin"]) == (1.0, 1.0)


def test_a_run_that_goes_on_at_the_top_of_the_next_column_reaches_the_top():
    # No other run of the class does: the first one of its column is of another class.
    classes_HW = draw_classes("10.", "20.", "0..", "0..")
    sky = encode_segments(classes_HW, scores_like(classes_HW), NAMES, 0.0)[0]
    assert (sky["label"], sky["area"], sky["box"]) == ("sky", 4, [0, 0, 2, 4])


def test_overlapping_segments_are_refused():
    segments = [
        {"segment_id": 1, "class_index": 0, "counts": encode_mask(draw("##."))},
        {"segment_id": 2, "class_index": 1, "counts": encode_mask(draw(".##"))},
    ]
    with pytest.raises(ValueError, match="segment 2 overlaps"):
        decode_label_map(segments, (1, 3))
