"""Recall of true segments by proposals, by hand; truths read as segments."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.evaluation.recall import BUDGETS, IOU_THRESHOLDS, ProposalRecall, segment_ious
from pipeline.evaluation.truth_segments import (
    MIN_PIXELS,
    TrueSegments,
    connected_segments,
    find_truths,
    read_segments,
)
from schemas.errors import SettingsError
from tests.helpers import draw_classes

ALL = len(BUDGETS)  # position of the budget "all"
AT = {threshold: index for index, threshold in enumerate(IOU_THRESHOLDS)}


def blocks(*rows, side=8):
    """Return a map of blocks of 64 pixels: what is drawn small is large enough to be found."""
    return np.kron(draw_classes(*rows), np.ones((side, side), dtype=int)).astype(np.int32)


def test_the_best_proposal_so_far_counts():
    iou_QG = np.array([[0.0, 0.5], [0.75, 0.4], [0.95, 0.0]])
    found = ProposalRecall.of(iou_QG)
    assert (found.images, found.proposals, found.segments) == (1, 3, 2)
    recall_NT = found.recall()
    first, first_two = recall_NT[0], recall_NT[1]
    assert (first[AT[0.5]], first[AT[0.55]]) == (0.5, 0)
    assert (first_two[AT[0.5]], first_two[AT[0.75]], first_two[AT[0.8]]) == (1, 0.5, 0)
    assert (recall_NT[ALL][AT[0.5]], recall_NT[ALL][AT[0.95]]) == (1, 0.5)
    # Budgets above the number of proposals take all of them.
    np.testing.assert_array_equal(recall_NT[2], recall_NT[ALL])
    assert found.average_recall()[[0, 1, ALL]].tolist() == pytest.approx([0.05, 0.35, 0.55])
    assert found.mean_best_iou()[[0, ALL]].tolist() == pytest.approx([0.25, 0.725])


def test_no_proposal_finds_nothing_and_no_segment_has_no_recall():
    nothing = ProposalRecall.of(np.zeros((0, 3)))
    assert nothing.segments == 3 and not nothing.recall().any()
    assert np.isnan(ProposalRecall.of(np.zeros((2, 0))).average_recall()).all()
    assert np.isnan(ProposalRecall.zero().mean_proposals)


def test_parts_merged_are_the_whole():
    parts = [
        ProposalRecall.of(np.array([[0.9, 0.1]])),
        ProposalRecall.of(np.array([[0.6], [0.7]])),
    ]
    whole = sum(parts, start=ProposalRecall.zero())
    assert (whole.images, whole.proposals, whole.segments) == (2, 3, 3)
    assert whole.mean_proposals == 1.5
    assert whole.recall()[ALL][AT[0.7]] == pytest.approx(2 / 3)
    assert whole.recall()[0][AT[0.6]] == pytest.approx(2 / 3)
    assert whole.mean_best_iou()[ALL] == pytest.approx(1.7 / 3)


def test_ignored_pixels_are_left_out_of_masks():
    truths = TrueSegments((blocks("1102", "1102"),))
    masks = [blocks("####".replace("#", "1"), "0000") == 1, blocks("1110", "1110") == 1]
    # The upper row: two of the blocks of each, the third block is of nobody.
    expected = [[2 / (4 + 3 - 2), 1 / (2 + 3 - 1)], [1, 0]]
    np.testing.assert_allclose(segment_ious(masks, truths), expected)


def test_the_segments_of_several_people_are_all_to_be_found():
    truths = TrueSegments((blocks("12"), blocks("11")))
    assert truths.num_segments == 3
    np.testing.assert_allclose(segment_ious([blocks("10") == 1], truths), [[1, 0, 0.5]])


def test_specks_are_not_to_be_found():
    ids = np.zeros((20, 20), dtype=np.int32)
    ids[0, : MIN_PIXELS // 4] = 1
    ids[4:12, :8] = 2
    ids[12, 0] = 2
    truths = TrueSegments((ids,))
    assert truths.num_segments == 1
    assert segment_ious([ids == 2], truths).tolist() == [[1]]


def test_segments_of_classes_are_connected_parts():
    found = connected_segments(draw_classes("0110", "0119", "9990"), 9)
    np.testing.assert_array_equal(found, draw_classes("1442", "1440", "0003"))


def test_ids_of_cocos_colours_and_of_grey_maps(tmp_path):
    ids = draw_classes("0012", "0012")
    colours = np.stack([ids * 0, ids, ids * 7], axis=-1).astype(np.uint8)  # 256 and 65536 apart
    Image.fromarray(colours).save(tmp_path / "colours.png")
    Image.fromarray(ids.astype(np.uint8) * 100).save(tmp_path / "grey.png")
    for name in ("colours", "grey"):
        (found,) = read_segments(tmp_path / f"{name}.png", "segments", (2, 4), 255).maps
        np.testing.assert_array_equal(found, ids)


def save_bsds(path, *maps):
    """Write segmentations the way the data set has them."""
    cells = np.empty((1, len(maps)), dtype=object)
    for index, ids in enumerate(maps):
        cells[0, index] = {"Segmentation": ids.astype(np.uint16)}
    savemat(path, {"groundTruth": cells})


def test_segmentations_of_several_people_are_read(tmp_path):
    first, second = draw_classes("1122", "3322"), draw_classes("1111", "5555")
    save_bsds(tmp_path / "photo.mat", first, second)
    found = read_segments(tmp_path / "photo.mat", "bsds", (2, 4), 255)
    np.testing.assert_array_equal(found.maps[0], first)
    np.testing.assert_array_equal(found.maps[1], draw_classes("1111", "2222"))


@pytest.mark.shared
@pytest.mark.parametrize("name, size, segments", [("101085", (481, 321), (26, 61, 41, 21, 42))])
def test_a_file_of_bsds_is_read(shared, name, size, segments):
    path = shared / "bsds500" / "groundTruth" / "val" / f"{name}.mat"
    found = read_segments(path, "bsds", size, 255)
    assert tuple(int(ids.max()) for ids in found.maps) == segments
    masks = [found.maps[0] == index for index in range(1, 27)]
    recall = ProposalRecall.of(segment_ious(masks, TrueSegments(found.maps[:1])))
    assert recall.recall()[ALL].tolist() == [1.0] * len(IOU_THRESHOLDS)
    by_others = ProposalRecall.of(segment_ious(masks, TrueSegments(found.maps[1:])))
    assert 0.1 < by_others.average_recall()[ALL] < 0.9


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: path.write_bytes(b"no matlab"), r"photo\.mat is not a file of BSDS500"),
        (lambda path: path.write_bytes(b""), r"photo\.mat is not a file of BSDS500"),
        (lambda path: savemat(path, {"other": np.ones(3)}), r"under groundTruth: KeyError"),
        (lambda path: save_bsds(path, np.ones((2, 2, 2))), r"no maps of segment ids \(H, W\)"),
        (lambda path: save_bsds(path, np.ones((4, 2))), r"labels are \(2, 4\), truth is \(4, 2\)"),
    ],
    ids=["text", "empty", "other variables", "three axes", "other size"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, write, words):
    write(tmp_path / "photo.mat")
    with pytest.raises(ValueError, match=words):
        read_segments(tmp_path / "photo.mat", "bsds", (2, 4), 255)


@pytest.mark.parametrize(
    "kind, words",
    [("classes", "PNG label maps"), ("segments", "segment ids"), ("bsds", "BSDS500")],
)
def test_a_directory_without_truths_is_refused(tmp_path, kind, words):
    (tmp_path / "photo.txt").touch()
    with pytest.raises(SettingsError, match=words):
        find_truths(str(tmp_path), kind)
