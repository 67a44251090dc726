"""Corrections of people: taken back, kept through later runs, used by whoever reads the dataset."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.calibrate import calibrate
from jobs.cli import main
from jobs.correct import correct
from jobs.review import review
from jobs.vacuum import vacuum
from jobs.verify import verify
from pipeline import dataset as datasets
from pipeline.corrections import Corrections
from pipeline.exports.label_studio import brush_rle
from pipeline.lock import DatasetLock
from pipeline.review.reviewed import Reviews, read_reviewed
from pipeline.run_records import newest_runs
from schemas.annotation import HUMAN, MODEL
from schemas.errors import LockedError, SettingsError
from schemas.trust_config import CalibrateConfig, CorrectConfig, ReviewConfig
from schemas.upkeep_config import VacuumConfig, VerifyConfig
from tests.dataset_checks import check_rows, rows_of
from tests.export_ground import NAMES, publish_rows, truth_of
from tests.test_calibrate import labelled

SIZE = (4, 6)
SEA_HW = np.zeros(SIZE, bool)
SEA_HW[:2] = True


@pytest.fixture
def made(tmp_path):
    """A dataset of ten images, and the queue of four of them."""
    rows = [
        labelled(tmp_path, number, (number + 1) / 12, etag=str(number), bytes_sha256=f"s{number}")
        for number in range(10)
    ]
    dataset = publish_rows(tmp_path, rows, str(tmp_path / "labels"), rows_per_file=4)
    review(ReviewConfig(dataset=dataset, output=tmp_path / "tasks.json", budget=4))
    return dataset, json.loads((tmp_path / "tasks.json").read_text())


def region(label, mask_HW):
    return {
        "type": "brushlabels", "original_height": mask_HW.shape[0],
        "original_width": mask_HW.shape[1],
        "value": {"format": "rle", "rle": brush_rle(mask_HW), "brushlabels": [label]},
    }  # fmt: skip


def answer(tmp_path, tasks, *results):
    """What Label Studio exports: the tasks with the annotations of people."""
    for number, task in enumerate(tasks):
        result = results[min(number, len(results) - 1)]
        task["annotations"] = [] if result is None else [{"result": result, "updated_at": "2026"}]
    path = tmp_path / "corrections.json"
    path.write_text(json.dumps(tasks))
    return path


def take(dataset, path):
    return correct(CorrectConfig(dataset=dataset, reviews=path))


def polygon(label, *points):
    """A polygon as Label Studio tells it: in hundredths of the sides."""
    height, width = SIZE
    return {
        "type": "polygonlabels", "original_height": height, "original_width": width,
        "value": {
            "points": [[100 * x / width, 100 * y / height] for x, y in points], "closed": True,
            "polygonlabels": [label],
        },
    }  # fmt: skip


EVERYTHING = [region("sky", np.ones(SIZE, bool)), region("sea", SEA_HW)]


def test_corrected_images_have_the_labels_of_people(made, tmp_path):
    dataset, tasks = made
    before = {row["image_id"]: row for row in rows_of(dataset)}
    result = take(dataset, answer(tmp_path, tasks, EVERYTHING, [], None))
    assert (result.version, result.published, result.taken) == (2, True, 2)
    (record,) = newest_runs(dataset, 9)
    assert record.start.command == record.end.command == "correct"
    drawn, emptied = (task["data"]["image_id"] for task in tasks[:2])
    rows = {row["image_id"]: row for row in rows_of(dataset)}
    check_rows(rows.values(), whole=False)
    assert {name for name, row in rows.items() if row["annotator"] == HUMAN} == {drawn, emptied}
    expected_HW = np.where(SEA_HW, NAMES.index("sea"), NAMES.index("sky"))  # the later one on top
    np.testing.assert_array_equal(truth_of(rows[drawn]), expected_HW)
    assert [segment["margin"] for segment in rows[drawn]["segments"]] == [None, None]
    assert rows[emptied]["segments"] == [] and rows[emptied]["coverage"] == 0
    others = rows.keys() - {drawn, emptied}
    assert all(rows[name] == before[name] for name in others)
    assert verify(VerifyConfig(dataset=dataset, all_label_maps=True)).problems == ()


def test_taking_the_same_again_publishes_nothing(made, tmp_path):
    dataset, tasks = made
    path = answer(tmp_path, tasks, EVERYTHING)
    take(dataset, path)
    result = take(dataset, path)
    assert (result.version, result.published, result.taken, result.unchanged) == (2, False, 0, 4)


def test_a_later_correction_takes_the_place_of_an_earlier_one(made, tmp_path):
    dataset, tasks = made
    take(dataset, answer(tmp_path, tasks, EVERYTHING))
    result = take(dataset, answer(tmp_path, tasks[:1], [region("cat", SEA_HW)]))
    assert (result.version, result.taken) == (3, 1)
    manifest = datasets.read_manifest(dataset)
    table = Corrections.read(dataset, manifest.corrections).table
    labels = {
        row["image_id"]: [one["label"] for one in row["regions"]] for row in table.to_pylist()
    }
    assert len(manifest.corrections) == 2 and len(labels) == 4
    assert labels[tasks[0]["data"]["image_id"]] == ["cat"]
    assert labels[tasks[1]["data"]["image_id"]] == ["sea", "sky"]


def test_changed_and_vanished_images_are_left_alone(made, tmp_path):
    dataset, tasks = made
    tasks[0]["data"]["bytes_sha256"] = "of other bytes"
    tasks[1]["data"]["image_id"] = "0" * 32
    result = take(dataset, answer(tmp_path, tasks, EVERYTHING))
    assert (result.taken, result.stale, result.gone) == (2, 1, 1)


def test_corrections_are_kept_by_vacuum_and_missed_by_verify(made, tmp_path):
    dataset, tasks = made
    take(dataset, answer(tmp_path, tasks, EVERYTHING))
    (file,) = datasets.read_manifest(dataset).corrections
    gone = vacuum(
        VacuumConfig(dataset=dataset, delete=True, keep_versions=1, older_than_hours=0)
    ).files
    assert gone and file.path not in gone and (Path(dataset) / file.path).exists()
    assert verify(VerifyConfig(dataset=dataset)).problems == ()
    (Path(dataset) / file.path).write_bytes(b"other")
    assert any(file.path in problem for problem in verify(VerifyConfig(dataset=dataset)).problems)


def test_a_run_at_work_is_not_disturbed(made, tmp_path):
    dataset, tasks = made
    path = answer(tmp_path, tasks, EVERYTHING)
    with DatasetLock(dataset, "other", 60.0), pytest.raises(LockedError, match="other"):
        take(dataset, path)
    assert datasets.versions(dataset) == [1]


def rows_under(made, tmp_path, names):
    dataset, tasks = made
    take(dataset, answer(tmp_path, tasks[:1], EVERYTHING))
    corrections = Corrections.read(dataset, datasets.read_manifest(dataset).corrections)
    assert [one.image_id for one in corrections.drawn_on] == [tasks[0]["data"]["image_id"]]
    (row,) = corrections.rows(corrections.drawn_on, names, "next").to_pylist()
    return row, corrections


def test_under_another_vocabulary_labels_keep_their_names(made, tmp_path):
    row, corrections = rows_under(made, tmp_path, ("sea", "lake", "sky"))
    assert {one["label"]: one["class_index"] for one in row["segments"]} == {"sea": 0, "sky": 2}
    prints = {corrections.keys(names)["fingerprint"][0] for names in (("sky",), ("sea", "sky"))}
    assert len(prints) == 2 and row["annotator"] == HUMAN


def test_classes_that_are_no_more_leave_their_pixels_without_label(made, tmp_path):
    row, _ = rows_under(made, tmp_path, ("sea",))
    assert [one["label"] for one in row["segments"]] == ["sea"]
    assert row["coverage"] == SEA_HW.mean() and row["segments"][0]["area"] == SEA_HW.sum()


def test_cvat_is_taken_as_well(made, tmp_path):
    dataset, _ = made
    path = tmp_path / "tasks.xml"
    review(ReviewConfig(dataset=dataset, output=path, format="cvat", budget=2))
    text = path.read_text().replace('label="cat"', 'label="sea"')
    path.write_text(text)
    assert take(dataset, path).taken == 2
    drawn = [row for row in rows_of(dataset) if row["annotator"] == HUMAN]
    assert {one["label"] for row in drawn for one in row["segments"]} == {"sky", "sea"}
    assert all((truth_of(row)[:, 3:] == NAMES.index("sea")).all() for row in drawn)


def test_images_of_cvat_on_which_nobody_drew_keep_their_labels(made, tmp_path, capsys):
    """CVAT lists every image of a task, and its task may hold the whole source."""
    dataset, _ = made
    path = tmp_path / "tasks.xml"
    review(ReviewConfig(dataset=dataset, output=path, format="cvat", budget=3))
    root = ET.parse(path)
    _, tagged, untouched = root.iter("image")
    tagged[:] = [ET.Element("tag", label="nothing", source="manual")]
    untouched[:] = []
    root.write(path)
    before = {row["uri"]: row for row in rows_of(dataset)}
    assert main(["correct", dataset, str(path)]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["unfinished"] == 1
    assert "1 images of the file nobody has finished" in output.err
    after = {row["uri"]: row for row in rows_of(dataset)}
    by_person = {uri for uri, row in after.items() if row["annotator"] == HUMAN}
    assert len(by_person) == 2 and not any(untouched.get("name") in uri for uri in by_person)
    assert sum(not row["segments"] for row in after.values()) == 1
    assert all(after[uri] == before[uri] for uri in after.keys() - by_person)


def test_polygons_are_taken_beside_brush_masks(made, tmp_path):
    dataset, tasks = made
    sea = polygon("sea", (0, 0), (6, 0), (6, 2), (0, 2))
    assert take(dataset, answer(tmp_path, tasks, [EVERYTHING[0], sea], None)).taken == 1
    (row,) = (row for row in rows_of(dataset) if row["annotator"] == HUMAN)
    expected_HW = np.where(SEA_HW, NAMES.index("sea"), NAMES.index("sky"))
    np.testing.assert_array_equal(truth_of(row), expected_HW)


def test_polygons_of_cvat_lie_in_the_order_of_their_depth(made, tmp_path):
    dataset, _ = made
    path = tmp_path / "tasks.xml"
    review(ReviewConfig(dataset=dataset, output=path, format="cvat", budget=1))
    root = ET.parse(path)
    (image,) = root.iter("image")
    image[:] = []
    for label, points, depth in (
        ("sea", "0.00,0.00;6.00,0.00;6.00,2.00;0.00,2.00", "1"),
        ("sky", "0,0;6,0;6,4;0,4", "0"),
    ):
        ET.SubElement(image, "polygon", label=label, points=points, z_order=depth)
    root.write(path)
    assert take(dataset, path).taken == 1
    (row,) = (row for row in rows_of(dataset) if row["annotator"] == HUMAN)
    expected_HW = np.where(SEA_HW, NAMES.index("sea"), NAMES.index("sky"))
    np.testing.assert_array_equal(truth_of(row), expected_HW)


@pytest.mark.parametrize(
    "result, message",
    [
        ([region("dragon", SEA_HW)], "'dragon', which is no class of the dataset"),
        ([region("sky", np.ones((2, 2), bool))], "its image is 2 x 2, not 4 x 6"),
        ([region("sky", SEA_HW) | {"type": "rectanglelabels"}], "'rectanglelabels'; only brush"),
        ([{"type": "brushlabels", "value": {}}], "type 'brushlabels'"),
        ([polygon("sky", (0, 0), (6, 4))], "'sky': a polygon of 2 vertices"),
        (None, "no task that somebody has finished"),
    ],
    ids=["class", "size", "rectangle", "torn", "line", "unfinished"],
)
def test_what_does_not_fit_is_refused_and_nothing_published(made, tmp_path, result, message):
    dataset, tasks = made
    with pytest.raises(SettingsError, match=message):
        take(dataset, answer(tmp_path, tasks, result))
    assert datasets.versions(dataset) == [1]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "<annotations", "[{}]", '{"a": 1}', "no"])
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "what.json"
    path.write_text(text)
    if text == "{}":
        assert read_reviewed(path) == Reviews((), 0)
    else:
        with pytest.raises(SettingsError, match=r"what\.json"):
            read_reviewed(path)


def test_random_reviews_are_checked_segments(made, tmp_path):
    dataset, _ = made
    output = tmp_path / "random.json"
    review(ReviewConfig(dataset=dataset, output=output, budget=8, random_share=1.0))
    tasks = json.loads(output.read_text())
    sky = np.zeros(SIZE, bool)
    sky[:, :3] = True
    path = answer(tmp_path, tasks, [region("sky", sky), region("sea", ~sky)])
    take(dataset, path)  # the reviewed version counts, not the corrected one
    config = CalibrateConfig(
        dataset=dataset, reviews=path, output=tmp_path / "t.yaml", precision=0.5, confidence=0.9
    )
    result = calibrate(config)
    assert (result.version, result.images, result.segments) == (1, 8, 16)
    assert result.floors["sky"].correct == 8 and result.floors["sky"].score is not None
    assert result.floors["cat"].score is None
    assert yaml.safe_load((tmp_path / "t.yaml").read_text())["class_min_scores"]["cat"] == "drop"


def test_reviews_chosen_for_their_doubt_promise_nothing(made, tmp_path):
    dataset, tasks = made
    config = CalibrateConfig(
        dataset=dataset, reviews=answer(tmp_path, tasks, EVERYTHING), output=tmp_path / "t.yaml"
    )
    with pytest.raises(SettingsError, match="--random-share"):
        calibrate(config)


def test_the_command_prints_one_line_of_json(made, tmp_path, capsys):
    dataset, tasks = made
    assert main(["correct", dataset, str(answer(tmp_path, tasks, EVERYTHING))]) == 0
    assert json.loads(capsys.readouterr().out)["taken"] == 4
    assert {row["annotator"] for row in rows_of(dataset)} == {HUMAN, MODEL}


def annotated(tmp_path, *annotations):
    path = tmp_path / "one.json"
    task = {"id": 7, "data": {"image_id": "i"}, "annotations": list(annotations)}
    path.write_text(json.dumps([task]))
    return read_reviewed(path)


def test_of_several_annotations_the_newest_that_was_not_cancelled_is_taken(tmp_path):
    old, new, cancelled = (
        {"result": [region(label, SEA_HW)], "updated_at": f"2026-0{month}", "was_cancelled": off}
        for label, month, off in (("sky", 1, False), ("sea", 2, False), ("cat", 3, True))
    )
    for annotations in ((old, new, cancelled), (cancelled, new, old)):
        (one,) = annotated(tmp_path, *annotations).finished
        assert [drawn.label for drawn in one.regions] == ["sea"]
    assert annotated(tmp_path, cancelled) == Reviews((), 1)


def test_choices_are_no_regions_and_a_region_has_one_label(tmp_path):
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    (one,) = annotated(tmp_path, {"result": [choice, region("sea", SEA_HW)]}).finished
    assert [drawn.label for drawn in one.regions] == ["sea"]
    two = region("sea", SEA_HW)
    two["value"]["brushlabels"] = ["sea", "sky"]
    with pytest.raises(SettingsError, match="task 7 has a region of 2 labels; it must have one"):
        annotated(tmp_path, {"result": [two]})


@pytest.mark.parametrize("left, top", [(-1, 0), (0, -1), (5, 0), (0, 3)])
def test_a_mask_of_cvat_that_reaches_out_of_its_image_is_refused(tmp_path, left, top):
    path = tmp_path / "tasks.xml"
    path.write_text(
        '<annotations><image name="a.png" width="6" height="4"><mask label="sea" rle="0, 4" '
        f'left="{left}" top="{top}" width="2" height="2"/></image></annotations>'
    )
    (one,) = read_reviewed(path).finished
    with pytest.raises(SettingsError, match=r"a\.png, 'sea': it reaches out of the image"):
        one.label_map(SIZE, NAMES)


def test_tasks_tell_of_which_bytes_they_are(made):
    dataset, tasks = made
    digests = {row["image_id"]: row["bytes_sha256"] for row in rows_of(dataset)}
    for data in (task["data"] for task in tasks):
        assert data["bytes_sha256"] == digests[data["image_id"]] is not None
