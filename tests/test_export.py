"""`segmill export`: what is selected, how it is split, that it goes on, and what it refuses."""

import hashlib
import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml
from pycocotools import mask as coco_mask

import jobs.export
from jobs.cli import main
from jobs.export import ExportResult, export
from pipeline.dataset import read_manifest
from pipeline.exports import EXPORTS, hugging_face, output, shards
from pipeline.exports.output import PIECES, Export, piece_path, record_path
from pipeline.exports.pictures import LeftOut, Pictures, _check_available
from pipeline.exports.records import file_stem, name_below, split_of
from pipeline.exports.selection import Selection, TrustLimits
from pipeline.exports.shards import plan_shards
from pipeline.fetching import Request
from pipeline.files import in_parallel
from pipeline.segments import encode_segments
from schemas.errors import OutputError, SettingsError, StoreUnavailableError
from schemas.export_config import ExportConfig, SelectionSettings
from schemas.vocabulary import Vocabulary
from tests.dataset_checks import rows_of
from tests.export_ground import (
    FILES,
    NAMES,
    ReadRowGroups,
    lower_limits,
    publish_ground,
    publish_packed,
    publish_rows,
)
from tests.helpers import draw_classes
from tests.servers import S3Server
from tests.test_manifest import MANIFEST

CLASSES = draw_classes("0012", "0.12", "3322")
SIZE = (3, 4)


def segments() -> list[dict[str, Any]]:
    scores = np.choose(CLASSES + 1, [0, 0.2, 0.4, 0.6, 0.8]).astype(np.float32)
    return encode_segments(CLASSES, scores, ("sky", "cat", "dog", "tree"), 0.0)


def select(tmp_path: Path, classes: str = "", floors: str = "", **settings: Any) -> Selection:
    for name, text in (("classes", classes), ("class_min_scores", floors)):
        if text:
            settings[name] = tmp_path / f"{name}.yaml"
            settings[name].write_text(text)
    vocabulary = Vocabulary.of(("sky", "cat", "dog", "tree"))
    return Selection.read(vocabulary, SelectionSettings(**settings))


@pytest.mark.parametrize(
    "limits, kept",
    [
        ({}, ["cat", "dog", "none"]),
        ({"max_disagreement": 0.1}, ["dog", "none"]),
        ({"min_stability": 0.95}, ["none"]),
    ],
)
def test_segments_that_are_not_trusted_are_left_out(limits, kept):
    measured = {"cat": (0.3, 0.9), "dog": (0.1, 0.9), "none": (None, None)}
    names = ("disagreement", "stability")
    trust = TrustLimits(**limits)
    found = [
        name
        for name, values in measured.items()
        if trust.keep(dict(zip(names, values, strict=True)))
    ]
    assert found == kept


def test_limits_of_trust_come_from_the_settings(tmp_path):
    selection = select(tmp_path, min_margin=0.3, max_disagreement=0.4, min_stability=0.5)
    assert selection.trust == TrustLimits(0.4, 0.5) and selection.margins == (0.3,) * 4
    unsure = [segment | {"margin": 0.2} for segment in segments()]
    kept, dropped = selection.apply(unsure, SIZE)
    assert not kept and dropped == {"below_margin": len(unsure)}


@pytest.mark.parametrize("name", ["class_min_scores", "class_min_margins"])
def test_what_a_person_drew_is_kept_where_its_class_is_dropped(tmp_path, name):
    floors = tmp_path / "floors.yaml"
    floors.write_text("cat: drop")
    selection = select(tmp_path, **{name: floors})
    kept, _ = selection.apply(segments(), SIZE)  # without margins: drawn by a person
    of_model, dropped = selection.apply([one | {"margin": 1.0} for one in segments()], SIZE)
    assert len(kept) == 4 and len(of_model) == 3 and dropped.total() == 1


def test_floors_of_another_measure_are_refused(tmp_path):
    path = tmp_path / "floors.yaml"
    path.write_text("class_min_margins: {cat: 0.1}\nprovenance: {}")
    assert select(tmp_path, class_min_margins=path).margins == (0.0, 0.1, 0.0, 0.0)
    with pytest.raises(SettingsError, match=r"floors\.yaml holds no class_min_scores"):
        select(tmp_path, class_min_scores=path)


def drawn(selection: Selection) -> list[str]:
    """The label map that a selection leaves, as text."""
    kept, _ = selection.apply(segments(), SIZE)
    map_HW = np.full(SIZE, ".")
    for segment in kept:
        mask = coco_mask.decode({"size": SIZE, "counts": segment.counts}).astype(bool)
        assert (map_HW[mask] == ".").all() and mask.sum() == segment.area
        x0, y0, x1, y1 = segment.box
        assert mask[y0:y1, x0:x1].sum() == segment.area
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
        map_HW[mask] = str(segment.class_index)
    return ["".join(row) for row in map_HW]


@pytest.mark.parametrize(
    "classes, floors, settings, names, expected",
    [
        ("", "", {}, "sky cat dog tree", ["0012", "0.12", "3322"]),
        ("", "", {"min_score": 0.5}, "sky cat dog tree", ["...2", "...2", "3322"]),
        ("", "sky: 0.1", {"min_score": 0.7}, "sky cat dog tree", ["00..", "0...", "33.."]),
        ("", "dog: 0.61", {}, "sky cat dog tree", ["001.", "0.1.", "33.."]),
        ("", "", {"min_area": 3}, "sky cat dog tree", ["00.2", "0..2", "..22"]),
        ("cat: pet\ndog: pet", "", {}, "sky pet tree", ["0011", "0.11", "2211"]),
        ("cat: pet\ndog: pet", "cat: 0.5", {"min_area": 5}, "sky pet tree", 3 * ["...."]),
        ("cat: sky", "", {}, "sky dog tree", ["0001", "0.01", "2211"]),
        ("sky: drop\ntree: null", "", {}, "cat dog", ["..01", "..01", "..11"]),
        ("sky: 1\ncat: 0", "", {}, "cat sky dog tree", ["1102", "1.02", "3322"]),
        ("sky: 0\ncat: 1\ndog: 1\ntree: 0", "", {}, "sky cat", ["0011", "0.11", "0011"]),
        ("sky: 3", "", {}, "cat dog tree sky", ["3301", "3.01", "2211"]),
    ],
    ids=[
        "everything", "floor", "lower floor of one class", "higher floor of one class", "area",
        "joined", "floors before, area after joining", "into an old class", "dropped", "indices",
        "joined by index", "one index, the others before it",
    ],
)  # fmt: skip
def test_selection(
    tmp_path: Path,
    classes: str,
    floors: str,
    settings: dict[str, Any],
    names: str,
    expected: list[str],
) -> None:
    selection = select(tmp_path, classes, floors, **settings)
    assert selection.names == tuple(names.split())
    assert drawn(selection) == expected


def test_a_joined_segment_has_the_mean_score_of_its_pixels(tmp_path: Path) -> None:
    kept, dropped = select(tmp_path, "cat: pet\ndog: pet\nsky: drop", "tree: 1").apply(
        segments(), SIZE
    )
    assert dropped == {"class_dropped": 1, "below_score": 1}
    assert [segment.score for segment in kept] == pytest.approx([(2 * 0.4 + 4 * 0.6) / 6])


@pytest.mark.parametrize(
    "classes, floors, said",
    [
        ("car: dog", "", "names the class 'car'; did you mean 'cat'"),
        ("sky: 9", "", "index 9 leaves a gap; 4 classes have the indices 0 to 3"),
        ("sky: -1", "", "indices begin at 0"),
        ("sky: 1.5", "", "becomes 1.5; it may become a name, an index, or drop"),
        ("sky: true", "", "becomes True"),
        ("sky: 0\ncat: sky", "", "'sky' would be two classes"),
        ("sky: drop\ncat: drop\ndog: drop\ntree: drop", "", "every class is dropped"),
        ("- sky", "", "must hold a mapping"),
        ("{", "", "is not valid YAML"),
        ("", "cat: 2", "the floor of 'cat' is 2, it must be a score from 0 to 1"),
        ("", "cat: high", "the floor of 'cat' is 'high'"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, classes: str, floors: str, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        select(tmp_path, classes, floors)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*nowhere.yaml: No such file"):
        Selection.read(Vocabulary.of(["a"]), SelectionSettings(classes=tmp_path / "nowhere.yaml"))


def test_a_split_is_a_share_of_the_ids_and_only_grows_with_it() -> None:
    ids = [f"{number:032x}" for number in range(2000)]
    small = {one for one in ids if split_of(one, 0.1, 0) == "val"}
    large = {one for one in ids if split_of(one, 0.3, 0) == "val"}
    assert small < large and 150 < len(small) < 250 and 540 < len(large) < 660
    assert {one for one in ids if split_of(one, 0.1, 1) == "val"} != small
    assert not any(split_of(one, 0.0, 0) == "val" for one in ids)


def test_names_of_files_are_plain() -> None:
    assert file_stem("0123456789abcdef", "s3://b/x y/é../a.b;c.tar.gz") == "a_b_c_tar-0123456789ab"
    assert file_stem("0123456789abcdef", "s3://b/日本.png") == "image-0123456789ab"
    assert file_stem("../../../../etc", "s3://b/a.png") == "a-_"
    assert name_below("s3://b/photos/", "s3://b/photos/day/a.png") == "day/a.png"
    assert name_below("s3://b/photos", "s3://b/photos2/a.png") == "s3://b/photos2/a.png"


def test_shards_are_equal_shares_of_all_files() -> None:
    (file,) = MANIFEST.images
    files = tuple(
        file.model_copy(update={"path": str(rows), "rows": rows}) for rows in (3, 0, 5, 1)
    )
    planned = plan_shards(MANIFEST.model_copy(update={"images": files}), 4)
    assert [
        [(rows.path, rows.start, rows.count, rows.number) for rows in shard.rows]
        for shard in planned
    ] == [[("3", 0, 3, 0), ("5", 0, 1, 3)], [("5", 1, 4, 4)], [("1", 0, 1, 8)]]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ground")
    publish_ground(folder)
    return folder


def run(ground: Path, output: Path | str, **settings: Any) -> ExportResult:
    given: dict[str, Any] = {"dataset": str(ground / "labels"), "format": "semantic-png"}
    return export(ExportConfig(**given | {"output": str(output), "images_per_shard": 3} | settings))


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the time in the manifest."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    manifest = json.loads(found["export.json"])
    manifest.pop("created")
    return found | {"export.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_killed_export_goes_on_to_the_same_files(
    ground: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ground, tmp_path / "whole", format=name, val_fraction=0.4)
    read, started = shards._read, []

    def killed(dataset: str, rows: shards.Rows) -> Any:
        started.append(rows)
        for number, table in read(dataset, rows):
            if number >= 4:  # in the middle of the second shard
                raise KeyboardInterrupt
            yield number, table

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_read", killed)
        with pytest.raises(KeyboardInterrupt):
            run(ground, tmp_path / "cut", format=name, val_fraction=0.4)
    assert not (tmp_path / "cut" / "export.json").exists()
    before = len(started)
    for half in ("half.jpg", "_export/shards/00000001.json"):
        (tmp_path / "cut" / f"{half}.0123.draft").write_bytes(b"of a process that was killed")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_read", lambda *given: started.append(given[1]) or read(*given))
        result = run(ground, tmp_path / "cut", format=name, val_fraction=0.4)
    assert (result.shards, result.shards_kept) == (3, 1)
    assert min(rows.number for rows in started[before:]) == 3  # the first shard was not read
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["coco-instances", "cvat", "semantic-png"])
def test_of_two_calls_at_once_the_later_one_destroys_nothing(
    ground: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this one comes to join the shards the other has finished, and their pieces are gone."""
    run(ground, tmp_path / "whole", format=name)
    write_shards = jobs.export._write_shards

    def overtaken(*given: Any) -> Any:
        found = write_shards(*given)
        with monkeypatch.context() as patch:
            patch.setattr(jobs.export, "_write_shards", write_shards)
            run(ground, tmp_path / "out", format=name)
        return found

    monkeypatch.setattr(jobs.export, "_write_shards", overtaken)
    with pytest.raises(OutputError, match=r"another call has finished .* the export is whole"):
        run(ground, tmp_path / "out", format=name)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_that_left_images_out_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = publish_ground(tmp_path)
    photo = tmp_path / "photos" / "e.png"
    photo.rename(tmp_path / "e.png")
    with monkeypatch.context() as patch:
        patch.setattr(jobs.export.Export, "write_lines", failing)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tmp_path / "out", dataset=dataset)
    (tmp_path / "e.png").rename(photo)
    pieces = next((tmp_path / "out" / "_export" / "pieces").iterdir())
    (pieces / "00000001.0123.draft").write_bytes(b"of a process that was killed")
    result = run(tmp_path, tmp_path / "out", dataset=dataset)
    assert (result.shards, result.shards_kept) == (3, 2)
    run(tmp_path, tmp_path / "whole", dataset=dataset)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / "left_out.jsonl").read_bytes()


def failing(*_: Any) -> None:
    raise KeyboardInterrupt


def test_whose_images_may_be_had_decides_what_an_export_holds(ground: Path, tmp_path: Path) -> None:
    run(ground, tmp_path)
    with pytest.raises(OutputError, match="its trust_dataset differs"):
        run(ground, tmp_path, trust_dataset=True)


def test_a_class_may_be_called_as_the_word_for_dropping(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(("leaf", "drop"))
    assert Selection.read(vocabulary, SelectionSettings()).targets == (0, 1)
    (tmp_path / "classes.yaml").write_text("leaf: drop")
    chosen = Selection.read(vocabulary, SelectionSettings(classes=tmp_path / "classes.yaml"))
    assert (chosen.names, chosen.targets) == (("drop",), (None, 0))


def test_a_finished_export_is_not_done_again(ground: Path, tmp_path: Path) -> None:
    run(ground, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run(ground, tmp_path)
    assert result.shards_kept == result.shards == 3 and result.manifest.counts.images == 6
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_several_processes_write_the_same(ground: Path, tmp_path: Path) -> None:
    run(ground, tmp_path / "one", format="coco-polygons", workers=1)
    run(ground, tmp_path / "two", format="coco-polygons", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"val_fraction": 0.5}, "its val_fraction differs"),
        ({"format": "coco-instances"}, "its format differs"),
        ({"min_area": 4}, "its min_area differs"),
    ],
)
def test_another_export_is_not_written_over(
    ground: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    run(ground, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=said):
        run(ground, tmp_path, **change)
    assert contents(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(ground: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty and holds no export"):
        run(ground, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_wrong_settings_end_before_any_work(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(ground / "labels"), "--output", str(tmp_path / "out")]
    assert main([*command, "--format", "coco"]) == 2
    assert "there is no export format 'coco'; there are coco-instances" in capsys.readouterr().err
    assert main([*command, "--format", "webdataset", "--images", "none"]) == 2
    assert "webdataset holds the images itself" in capsys.readouterr().err
    assert main(["export", "x", "--output", "x/", "--format", "cvat"]) == 2
    assert "is the dataset itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_description_of_format_names_all_of_them() -> None:
    described = ExportConfig.model_fields["format"].description or ""
    assert [name for name in EXPORTS if name not in described] == []


def test_the_command_prints_one_line_of_json(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floors = tmp_path / "floors.yaml"
    floors.write_text("sea: 0.9\n")
    command = ["export", str(ground / "labels"), "--format", "yolo-seg", "--val-fraction", "0.4"]
    command += ["--output", str(tmp_path / "out"), "--class-min-scores", str(floors)]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sum(printed["images"].values()) == 6
    assert printed["dropped"] == {"below_score": 6} and printed["quarantined"] == 1
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (told["version"], told["run_id"], told["classes"]) == (1, "run-1", list(NAMES))
    assert told["settings"]["floors"] == [0.0, 0.0, 0.0, 0.0, 0.9]


def test_links_share_the_images_and_none_names_their_places(ground: Path, tmp_path: Path) -> None:
    run(ground, tmp_path / "link", format="coco-instances", images="link")
    for line in (tmp_path / "link" / "index.jsonl").read_text().splitlines():
        entry = json.loads(line)
        source = Path(entry["uri"].removeprefix("file://"))
        target = tmp_path / "link" / entry["file_name"]
        assert os.path.samefile(source, target) == ("turned" not in source.name)
    run(ground, tmp_path / "none", format="coco-instances", images="none")
    content = json.loads((tmp_path / "none/annotations/instances_train.json").read_text())
    assert sorted(image["file_name"] for image in content["images"]) == sorted(FILES)
    assert not (tmp_path / "none" / "images").exists()


def test_row_groups_of_images_in_a_parquet_file_are_read_once_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = publish_packed(tmp_path, 70, 4)
    read = ReadRowGroups(monkeypatch)
    settings: dict[str, Any] = {"format": "coco-instances", "images_per_shard": 60, "workers": 1}
    result = run(tmp_path, tmp_path / "out", dataset=dataset, **settings)
    assert result.manifest.counts.images == 70
    assert len(read) <= 18 + 10  # there are 18, and 10 images in the second shard
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    numbers = {image["id"]: image["file_name"] for image in content["images"]}
    assert len(numbers) == len(set(numbers.values())) == 70
    rows = rows_of(dataset)
    for line in (tmp_path / "out/index.jsonl").read_text().splitlines():
        entry = json.loads(line)
        (row,) = [row for row in rows if row["uri"] == entry["uri"]]
        data = (tmp_path / "out" / entry["file_name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["bytes_sha256"]


def test_limits_that_were_lowered_leave_nothing_out(tmp_path: Path) -> None:
    dataset = publish_ground(tmp_path)
    lower_limits(dataset)
    result = run(tmp_path, tmp_path / "out", dataset=dataset)
    assert (result.manifest.counts.images, result.left_out) == (6, 0)


def test_a_file_that_was_cut_at_the_limit_did_not_change(tmp_path: Path) -> None:
    dataset = publish_ground(tmp_path, ("a.png",))
    config = ExportConfig(dataset=dataset, output=str(tmp_path / "out"), format="cvat")
    pictures = Pictures.of(config, read_manifest(dataset, None))
    rows = [row for row in rows_of(dataset) if row["status"] == "labelled"]
    short = replace(pictures, fetching=replace(pictures.fetching, max_bytes=1000))
    assert short.fetch(rows) == [LeftOut("too_many_bytes", "the file has more than 1000 bytes")]
    assert short.fetch([rows[0] | {"bytes_sha256": None}])[0] == short.fetch(rows)[0]
    (tmp_path / "photos/a.png").write_bytes(b"other")
    (left_out,) = short.fetch(rows)
    assert isinstance(left_out, LeftOut) and left_out.code == "changed"


def test_names_below_the_source_stand_as_they_are_in_cvat(tmp_path: Path) -> None:
    publish_ground(tmp_path, ("a.png", "images/a.png"))
    run(tmp_path, tmp_path / "out", format="cvat", images="none")
    root = ET.parse(tmp_path / "out" / "train.xml")
    assert sorted(image.get("name", "") for image in root.iter("image")) == [
        "a.png",
        "images/a.png",
    ]


def test_images_that_changed_or_went_are_left_out_and_counted(
    ground: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = publish_ground(tmp_path)
    (tmp_path / "photos" / "d.jpg").write_bytes(b"other")
    (tmp_path / "photos" / "e.png").unlink()
    result = run(tmp_path, tmp_path / "out", dataset=dataset)
    assert result.manifest.counts.left_out == {"changed": 1, "unreadable": 1}
    assert result.manifest.counts.images == 4
    assert len(list((tmp_path / "out").rglob("masks/*/*.png"))) == 4
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    reasons = {Path(json.loads(line)["uri"]).name: json.loads(line)["message"] for line in lines}
    assert reasons == {
        "d.jpg": "the file changed since it was labelled",
        "e.png": "it does not exist",
    }
    command = ["export", dataset, "--format", "semantic-png", "--output", str(tmp_path / "out")]
    assert main([*command, "--images-per-shard", "3"]) == 1  # 2 of 6
    assert main([*command, "--images-per-shard", "3", "--max-bad-fraction", "0.4"]) == 0
    assert "to try the images again that were left out, delete it" in capsys.readouterr().err


@pytest.fixture
def joined(tmp_path: Path) -> Export:
    """An export of 300 shards, of which every third has lines."""
    place = Export(str(tmp_path / "out"), "labels", 1, "f", NAMES, 300, has_images=False)
    for number in range(300):
        place.write(record_path(number), b"{}")
        if number % 3 == 0:
            place.write(piece_path("lines", number), f"{number}\n{number + 1}\n".encode())
    place.write(f"{piece_path('lines', 1)}.1f.draft", b"half a li")
    return place


@pytest.mark.parametrize("most_bytes, groups", [(2**25, [64, 36]), (1, [1] * 100)])
def test_lines_of_shards_are_joined_in_order_by_some_at_a_time(
    joined: Export, monkeypatch: pytest.MonkeyPatch, most_bytes: int, groups: list[int]
) -> None:
    together = []

    def noting(read: Callable[[str], bytes], paths: list[str]) -> list[bytes]:
        together.append(len(paths))
        return in_parallel(read, paths)

    monkeypatch.setattr(output, "_BYTES_AT_ONCE", most_bytes)
    monkeypatch.setattr(output, "in_parallel", noting)
    found = [int(line) for line in joined.lines("lines")]
    assert found == [n for number in range(0, 300, 3) for n in (number, number + 1)]
    assert together == groups
    assert list(joined.lines("other")) == [] and together == groups


@pytest.mark.parametrize("gone", [record_path(1), record_path(0), piece_path("lines", 150)])
def test_an_export_that_another_call_finished_is_not_joined(
    joined: Export, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    lines = joined.lines("lines")
    if gone.startswith(PIECES):
        monkeypatch.setattr(output, "_PIECES_AT_ONCE", 4)
        next(lines)
    (Path(joined.url) / gone).unlink()
    with pytest.raises(OutputError, match="another call has finished the export"):
        list(lines)


def test_from_a_bucket_to_a_bucket(tmp_path: Path, s3_server: S3Server) -> None:
    fs = s3fs.S3FileSystem()
    fs.mkdir("exporting")
    local = publish_ground(tmp_path)
    fs.put(local, "exporting/labels", recursive=True)
    settings = {"dataset": "s3://exporting/labels", "format": "hugging-face"}
    refused = run(tmp_path, "s3://exporting/refused", **settings)
    # A dataset in a bucket must not have files of this machine copied out.
    assert refused.manifest.counts.left_out == {"refused": 6}
    run(tmp_path, "s3://exporting/out", **settings, trust_dataset=True)
    run(tmp_path, tmp_path / "out", format="hugging-face")
    for path in (tmp_path / "out").rglob("*.parquet"):
        name = path.relative_to(tmp_path / "out")
        assert fs.cat_file(f"exporting/out/{name}") == path.read_bytes()
    assert not fs.exists("exporting/out/_export") and fs.exists("exporting/out/export.json")


@pytest.mark.parametrize(
    "uris, results, ends",
    [
        (["s3://b/a", "s3://b/c"], [ConnectionError("no"), TimeoutError()], True),
        (["s3://b/a", "s3://b/c"], [ConnectionError("no"), FileNotFoundError()], False),
        (["s3://b/a", "s3://b/c"], [ConnectionError("no"), b"image"], False),
        (["s3://b/a"], [ConnectionError("no")], False),
        (["https://a/b", "https://c/d"], [ConnectionError("no"), TimeoutError()], False),
    ],
    ids=["no answer at all", "one is gone", "one came", "a single one", "web servers"],
)
def test_a_store_that_does_not_answer_ends_the_export(
    uris: list[str], results: list[bytes | Exception], ends: bool
) -> None:
    requests = [Request(uri) for uri in uris]
    if ends:
        with pytest.raises(StoreUnavailableError, match=r"none of 2 images .* run again"):
            _check_available(requests, results)
    else:
        _check_available(requests, results)


def test_images_that_are_all_gone_are_all_left_out(tmp_path: Path) -> None:
    publish_ground(tmp_path)
    shutil.rmtree(tmp_path / "photos")
    result = run(tmp_path, tmp_path / "out")
    assert result.manifest.counts.left_out == {"unreadable": 6}
    assert result.manifest.counts.images == 0


def test_a_dataset_with_damaged_labels_is_told_apart(tmp_path: Path) -> None:
    dataset = publish_ground(tmp_path, ("a.png",))
    rows = [row for row in rows_of(dataset) if row["status"] == "labelled"]
    rows[0]["segments"][1]["counts"] = rows[0]["segments"][0]["counts"]
    publish_rows(tmp_path, rows, str(tmp_path / "damaged"))
    with pytest.raises(OutputError, match=r"a\.png are damaged: segment 1 overlaps another"):
        run(tmp_path, tmp_path / "out", dataset=str(tmp_path / "damaged"))
    assert not (tmp_path / "out" / "export.json").exists()


def test_what_is_exactly_at_a_limit_is_kept(tmp_path: Path) -> None:
    one = segments()[2] | {"score": 0.5, "margin": 0.5, "disagreement": 0.5, "stability": 0.5}
    limits = {name: 0.5 for name in ("min_score", "min_margin", "max_disagreement")}
    selection = select(tmp_path, **limits, min_stability=0.5, min_area=one["area"])
    kept, dropped = selection.apply([one], SIZE)
    assert len(kept) == 1 and not dropped
    for name, value in {"score": 0.4, "margin": 0.4, "disagreement": 0.6, "stability": 0.4}.items():
        assert not selection.apply([one | {name: value}], SIZE)[0]
    assert not replace(selection, min_area=one["area"] + 1).apply([one], SIZE)[0]


def test_long_names_are_cut_and_files_of_this_machine_are_named_below_their_folder() -> None:
    assert file_stem("0123456789abcdef", f"s3://b/{'x' * 300}.png") == f"{'x' * 80}-0123456789ab"
    assert name_below("/photos", "file:///photos/day/a.png") == "day/a.png"
    assert name_below("/photos", "file:///other/a.png") == "file:///other/a.png"


def test_without_a_val_split_yolo_is_given_train_twice(ground: Path, tmp_path: Path) -> None:
    run(ground, tmp_path, format="yolo-seg", val_fraction=0.0)
    content = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert (content["train"], content["val"]) == ("images/train", "images/train")


def test_where_no_images_are_copied_tasks_name_their_uris(ground: Path, tmp_path: Path) -> None:
    run(ground, tmp_path, format="label-studio", images="none")
    tasks = [task for path in tmp_path.glob("tasks/*") for task in json.loads(path.read_text())]
    labelled = {row["uri"] for row in rows_of(str(ground / "labels")) if row["segments"]}
    assert {task["data"]["image"] for task in tasks} == labelled


def test_many_images_of_a_split_are_written_once_each(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugging_face, "_ROWS", 2)
    run(ground, tmp_path, format="hugging-face", images_per_shard=5, workers=1)
    ids = [one for path in tmp_path.glob("data/*") for one in pd.read_parquet(path)["image_id"]]
    assert len(ids) == len(set(ids)) == 6


@pytest.mark.parametrize("sorted_bytes", [0, 2**20], ids=["table by table", "all at once"])
def test_how_rows_lie_in_their_file_makes_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sorted_bytes: int
) -> None:
    dataset = publish_packed(tmp_path, 11, 4)
    settings: dict[str, Any] = {"dataset": dataset, "format": "coco-instances", "workers": 1}
    run(tmp_path, tmp_path / "one", **settings, images_per_shard=4)
    (part,) = Path(dataset).rglob("images/**/*.parquet")
    pq.write_table(pq.read_table(part), part, row_group_size=3)
    monkeypatch.setattr(shards, "_SORTED_BYTES", sorted_bytes)
    monkeypatch.setattr(shards, "_ROWS", 2)
    run(tmp_path, tmp_path / "two", **settings, images_per_shard=4)

    def entries(name: str) -> list[dict[str, Any]]:
        content = json.loads((tmp_path / name / "annotations/instances_train.json").read_text())
        return [
            *sorted(content["images"], key=lambda image: image["id"]),
            *sorted(content["annotations"], key=lambda annotation: annotation["id"]),
        ]

    assert entries("two") == entries("one") and len(entries("one")) == 11 * 6
    assert [image["id"] for image in entries("one")[:11]] == list(range(1, 12))
