"""The queue of images to review, and the tasks that it is written as."""

import json
import tracemalloc
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow as pa
import pytest

from jobs.cli import main
from jobs.review import review
from pipeline.evaluation.checked_segments import of_the_model
from pipeline.exports.cvat import mask_of_runs, row_runs
from pipeline.exports.label_studio import brush_mask, brush_rle
from pipeline.review.queue import Candidates, random_images, worthy_images
from pipeline.review.tasks import ReviewedVersion, ReviewTask, write_label_studio
from schemas.annotation import ANNOTATED, HUMAN
from schemas.errors import SettingsError
from schemas.trust_config import ReviewConfig
from tests.export_ground import NAMES, publish_rows, truth_of
from tests.test_calibrate import labelled


def candidates(images, classes=3):
    """Of {image_id: {class: (margin, disagreement)}}."""
    rows = [
        {
            "image_id": name, "status": "labelled", "annotator": "model",
            "segments": [
                {"class_index": index, "margin": margin, "disagreement": disagreement}
                for index, (margin, disagreement) in segments.items()
            ],
        }
        for name, segments in images.items()
    ]  # fmt: skip
    kind = pa.struct(
        [("class_index", pa.int32()), ("margin", pa.float32()), ("disagreement", pa.float32())]
    )
    schema = pa.schema(
        [("image_id", pa.string()), ("status", pa.string()), ("annotator", pa.string()),
         ("segments", pa.list_(kind))]
    )  # fmt: skip
    half = len(rows) // 2
    return Candidates.of(pa.Table.from_pylist(part, schema) for part in (rows[:half], rows[half:]))


def test_the_more_doubtful_image_comes_first():
    found = candidates(
        {"b": {0: (0.9, 0.1)}, "a": {0: (0.1, None)}, "c": {0: (0.9, 0.9)}, "d": {0: (1.0, 0.0)}}
    )
    assert worthy_images(found, 9) == ["a", "c", "b"]  # of d nothing is in doubt


def test_rare_classes_come_before_frequent_ones():
    images = {f"{n}": {0: (0.5, None)} for n in range(20)} | {"x": {1: (0.6, None)}}
    assert worthy_images(candidates(images), 1) == ["x"]


def test_the_queue_does_not_fill_up_with_one_class():
    images = {f"a{n}": {0: (0.1, None)} for n in range(10)}
    images |= {f"b{n}": {1: (0.4, None)} for n in range(10)}
    kinds = [name[0] for name in worthy_images(candidates(images), 6)]
    assert kinds[0] == "a" and kinds.count("b") == 2


def test_the_queue_is_what_trying_every_image_every_time_gives():
    rng = np.random.default_rng(0)
    images = {
        f"{n:03}": {
            int(k): (float(rng.random()), float(rng.random()))
            for k in rng.choice(8, rng.integers(0, 4), replace=False)
        }
        for n in range(120)
    }
    counts = np.bincount([k for segments in images.values() for k in segments])
    doubts, expected = np.zeros(8), []
    while len(expected) < 30:
        gains = {}
        for name, segments in images.items():
            values = {k: (1 - np.float32(m) + np.float32(d)) / 2 for k, (m, d) in segments.items()}
            gains[name] = sum(
                (np.sqrt(doubts[k] + u) - np.sqrt(doubts[k])) / np.sqrt(counts[k])
                for k, u in values.items()
            )
        best = max((name for name in images if name not in expected), key=lambda n: gains[n])
        expected.append(best)
        for k, (m, d) in images[best].items():
            doubts[k] += (1 - np.float32(m) + np.float32(d)) / 2
    assert worthy_images(candidates(images), 30) == expected


def test_random_images_do_not_depend_on_the_order_of_files():
    images = {f"{n}": {0: (0.5, None)} for n in range(50)}
    first = random_images(candidates(images), 10, seed=1)
    assert first == random_images(candidates(dict(reversed(images.items()))), 10, seed=1)
    assert first != random_images(candidates(images), 10, seed=2) and len(set(first)) == 10


def test_ids_of_many_images_take_little_memory():
    images = {f"{n:032}": {} for n in range(10_000)}
    tracemalloc.start()
    try:
        found = candidates(images)
        assert len(random_images(found, 5, seed=1)) == 5
        assert worthy_images(found, 5, without=["a"]) == []
        del images
        assert tracemalloc.get_traced_memory()[0] < 2**19
    finally:
        tracemalloc.stop()


def test_rows_of_people_are_not_asked_for_again():
    rows = [{"status": "labelled", "annotator": who} for who in ("model", HUMAN)]
    assert len(of_the_model(pa.Table.from_pylist(rows))) == 1
    assert ANNOTATED.field("annotator").nullable is False


def test_brush_masks_are_read_back():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 11), (300, 200)):
        mask_HW = rng.random(size) < 0.3
        np.testing.assert_array_equal(brush_mask(brush_rle(mask_HW), size), mask_HW)


def test_brush_values_may_stand_one_by_one():
    """As Label Studio's own encoder writes short changes: 0, size, length less 1, values."""
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 7, 11, 16))
    bits += "000" + f"{3:03b}" + "".join(f"{value:08b}" for value in (9, 9, 9, 200))
    bits += "100" + f"{3:03b}" + f"{100:08b}"
    stream = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2)
    data = list(stream.to_bytes(-(-len(bits) // 8), "big"))
    assert brush_mask(data, (1, 2)).tolist() == [[True, False]]


@pytest.mark.parametrize("spoil", [lambda r: r[:-2], lambda r: [0, *r], lambda r: []])
def test_what_is_no_brush_mask_is_refused(spoil):
    with pytest.raises(ValueError, match="brush RLE"):
        brush_mask(spoil(brush_rle(np.eye(5, dtype=bool))), (5, 5))


def test_runs_of_cvat_are_read_back():
    for mask_HW in (np.eye(4, 6, dtype=bool), np.ones((2, 3), bool), np.zeros((2, 3), bool)):
        np.testing.assert_array_equal(mask_of_runs(row_runs(mask_HW), mask_HW.shape), mask_HW)
    with pytest.raises(ValueError, match="do not cover 2 x 3"):
        mask_of_runs([1, 2], (2, 3))
    with pytest.raises(ValueError, match="do not cover 2 x 3"):
        mask_of_runs([-1, 7], (2, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    rows = [labelled(folder, number, (number + 1) / 12) for number in range(10)]
    rows += [labelled(folder, 10, 0.01, annotator=HUMAN)]
    return rows, publish_rows(folder, rows, str(folder / "labels"), rows_per_file=4)


def test_tasks_for_label_studio_hold_the_labels(made, tmp_path):
    rows, dataset = made
    output = tmp_path / "tasks.json"
    result = review(ReviewConfig(dataset=dataset, output=output, budget=4, random_share=0.5))
    assert result.chosen == {"worth": 2, "random": 2} and result.images == 10
    tasks = json.loads(output.read_text())
    assert [task["data"]["chosen"] for task in tasks] == ["worth"] * 2 + ["random"] * 2
    by_id = {row["image_id"]: row for row in rows}
    for task in tasks:
        row = by_id[task["data"]["image_id"]]
        name = row["uri"].rpartition("/")[2]
        assert task["data"]["image"] == f"/data/local-files/?d={name}"
        assert task["data"]["segmill_version"] == 1
        found_HW = np.full((4, 6), -1)
        for region in task["predictions"][0]["result"]:
            (label,) = region["value"]["brushlabels"]
            found_HW[brush_mask(region["value"]["rle"], (4, 6))] = NAMES.index(label)
        np.testing.assert_array_equal(found_HW, truth_of(row))
    assert 'value="cat"' in (tmp_path / "label_config.xml").read_text()


def test_tasks_for_cvat_hold_the_labels(made, tmp_path):
    _, dataset = made
    output = tmp_path / "tasks.xml"
    review(ReviewConfig(dataset=dataset, output=output, format="cvat", budget=3))
    images = ET.parse(output).getroot().findall("image")
    assert len(images) == 3 and all(len(image.findall("mask")) == 2 for image in images)
    assert images[0].get("name") == "0.png"  # of the smallest margin


@pytest.mark.parametrize("form", ["label-studio", "cvat"])
def test_where_nothing_is_in_doubt_there_are_no_tasks(tmp_path, form):
    row = {**labelled(tmp_path, 0, 0.5), "segments": []}
    dataset = publish_rows(tmp_path, [row], str(tmp_path / "labels"))
    result = review(ReviewConfig(dataset=dataset, output=tmp_path / "t", format=form))
    assert result.chosen == {"worth": 0, "random": 0} and (tmp_path / "t").is_file()


def test_without_a_model_s_labels_there_is_nothing_to_review(tmp_path):
    dataset = publish_rows(
        tmp_path, [labelled(tmp_path, 0, 0.5, annotator=HUMAN)], str(tmp_path / "labels")
    )
    with pytest.raises(SettingsError, match="nothing to review"):
        review(ReviewConfig(dataset=dataset, output=tmp_path / "t.json"))


def test_the_command_prints_one_line_of_json(made, tmp_path, capsys):
    assert main(["review", made[1], "--output", str(tmp_path / "t.json"), "--budget", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == {"worth": 2, "random": 0}


def test_pixels_that_a_brush_drew_to_less_than_half_are_not_of_the_mask():
    # One by one, in the layout of `brush_rle`: its four values of a pixel are all the same.
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 7, 11, 16))
    bits += f"000{7:03b}" + "".join(f"{value:08b}" for value in [127] * 4 + [128] * 4)
    rle = np.packbits([int(bit) for bit in bits]).tolist()
    assert brush_mask(rle, (1, 2)).tolist() == [[False, True]]


def test_a_segment_without_a_margin_is_in_no_doubt():
    images = {"a": {0: (None, None)}, "b": {0: (0.5, None), 1: (None, None)}, "c": {}}
    assert worthy_images(candidates(images), 9) == ["b"]
    assert worthy_images(candidates(images), 9, without={"b"}) == []


def test_each_segment_keeps_its_class_whatever_the_order_of_images():
    images = {f"{n}": {0: (0.5, None)} for n in range(1, 9)}
    # Of two files, the last of which holds the first of all ids.
    found = candidates(dict(reversed(images.items())) | {"0": {1: (0.5, None)}})
    assert worthy_images(found, 1) == ["0"]


def test_an_image_beside_the_source_is_named_by_its_uri(made, tmp_path):
    rows, _ = made
    write_label_studio(
        tmp_path / "t.json",
        [ReviewTask(rows[0] | {"bytes_sha256": None}, "worth")],
        ReviewedVersion(1, "/other", NAMES),
    )
    (task,) = json.loads((tmp_path / "t.json").read_text())
    assert task["data"]["image"] == rows[0]["uri"]
