"""Two versions compared: counts by hand, random maps against whole maps, the gate, the page."""

import json

import numpy as np
import pytest

from jobs.cli import main
from jobs.diff import diff
from pipeline.comparison.moves import ImageError, LabelRuns, find_moves
from pipeline.dataset import publish, read_manifest
from pipeline.parts import write_images
from pipeline.segments import encode_mask
from schemas.annotation import ANNOTATED, table_from_rows
from schemas.diff_config import DiffConfig
from schemas.errors import SettingsError
from schemas.vocabulary import Vocabulary
from tests.helpers import draw, draw_classes
from tests.test_report import HOSTILE, Page, labelled_row, quarantined_row, write_dataset

NAMES = ("sky", "tree", "zebra")


def dataset_of(directory, files, names=NAMES):
    return write_dataset(directory, files, Vocabulary.of(names))


def maps(tmp_path, *pictures, names=NAMES):
    """Return labelled rows 0.png, 1.png, ... of label maps drawn as text."""
    return [
        labelled_row(tmp_path / "photos" / f"{number}.png", names, draw_classes(*picture))
        for number, picture in enumerate(pictures)
    ]


def compare(before, after, **settings):
    return diff(DiffConfig(before=before, after=after, **settings))


@pytest.fixture
def pair(tmp_path):
    """Two images of 4 x 2: one unchanged; of the other sky loses a pixel, a tree appears."""
    before = dataset_of(tmp_path / "a", [maps(tmp_path, ("0011", "0011"), ("0000", "00.."))])
    after = dataset_of(tmp_path / "b", [maps(tmp_path, ("0011", "0011"), ("0001", "001."))])
    return before, after


def test_moved_pixels_flows_and_class_overlap(pair):
    result = compare(*pair)
    assert (result.images.compared, result.images.moved) == (2, 1)
    assert (result.images.moved_pixels, result.images.pixels) == (2, 16)
    assert {(f.before, f.after): f.pixels for f in result.flows} == {
        ("sky", "tree"): 1,
        (None, "tree"): 1,
    }
    drift = {d.name: (d.before, d.after, d.iou) for d in result.classes}
    assert drift == {"sky": (10, 9, 9 / 10), "tree": (4, 6, 4 / 6)}
    (change,) = result.largest
    assert (change.uri.rpartition("/")[2], change.moved) == ("1.png", 2 / 8)


def test_a_version_equals_itself(pair):
    result = compare(pair[0], f"{pair[0]}@1", max_moved=0, min_class_iou=1, max_lost=0)
    assert (result.images.moved_pixels, result.images.compared, result.images.pixels) == (0, 2, 16)
    assert {d.name: (d.before, d.iou) for d in result.classes} == {"sky": (10, 1), "tree": (4, 1)}
    assert (result.flows, result.largest, result.failures) == ((), (), ())


def test_random_maps_equal_a_comparison_of_whole_maps(tmp_path):
    random = np.random.default_rng(1)
    sides, confusion, moved = ([], []), np.zeros((4, 4), np.int64), []
    for number in range(40):
        height, width = random.integers(1, 30, 2)
        two = random.integers(-1, 3, (2, height, width))
        if number % 4 == 0:
            two[1] = np.where(random.random((height, width)) < 0.9, two[0], two[1])
        np.add.at(confusion, (two[0] + 1, two[1] + 1), 1)
        moved.append(float((two[0] != two[1]).mean()))
        for rows, one in zip(sides, two, strict=True):
            rows.append(labelled_row(tmp_path / "photos" / f"{number}.png", NAMES, one))
    before = dataset_of(tmp_path / "a", [sides[0][:13], sides[0][13:]])
    after = dataset_of(tmp_path / "b", [sides[1][:30], sides[1][30:]])
    result = compare(before, after, max_images=40)
    index = {None: 0, "sky": 1, "tree": 2, "zebra": 3}
    expected = {(b, a): confusion[index[b], index[a]] for b in index for a in index if b != a}
    assert {(f.before, f.after): f.pixels for f in result.flows} == expected
    for drift in result.classes:
        k = index[drift.name]
        union = confusion[k].sum() + confusion[:, k].sum() - confusion[k, k]
        assert drift.iou == pytest.approx(confusion[k, k] / union)
    assert [c.moved for c in result.largest] == pytest.approx(sorted(filter(None, moved))[::-1])


def test_other_vocabularies_are_compared_by_name(tmp_path):
    before = dataset_of(tmp_path / "a", [maps(tmp_path, ("01",))])
    rows = maps(tmp_path, ("10",), names=("tree", "sky"))
    after = dataset_of(tmp_path / "b", [rows], names=("tree", "sky"))
    result = compare(before, after)
    assert result.images.moved_pixels == 0
    assert result.settings["vocabulary"] == (list(NAMES), ["tree", "sky"])


def test_images_added_removed_replaced_and_of_another_status(tmp_path):
    before = maps(tmp_path, ("01",), ("00",), ("11",), ("0.",), ("00",))
    after = maps(tmp_path, ("01",), ("00",), ("11",), ("0.",), ("00",), ("22",))
    after[1] = {**after[1], "bytes_sha256": "0" * 64}
    after[2] = quarantined_row(before[2]["uri"])
    del after[3]
    result = compare(dataset_of(tmp_path / "a", [before]), dataset_of(tmp_path / "b", [after]))
    images = result.images
    assert (images.compared, images.replaced, images.added, images.removed) == (2, 1, 1, 1)
    assert (images.lost, images.labelled_before) == (2, 5)
    assert result.status_changes == {("labelled", "quarantined (decode/corrupt)"): 1}
    names = {kind: [u.rpartition("/")[2] for u in found] for kind, found in result.examples.items()}
    assert names == {"added": ["5.png"], "removed": ["3.png"], "status": ["2.png"]}


def test_versions_of_one_dataset_share_files_that_are_not_joined(tmp_path):
    rows = maps(tmp_path, ("01",), ("00",), ("1.",))
    dataset = dataset_of(
        tmp_path / "a", [rows[:1], rows[1:2], [rows[2], quarantined_row("s3://b/x")]]
    )
    first = read_manifest(dataset)
    changed = maps(tmp_path, ("01",), ("02",))[1]
    part = write_images(dataset, "later", table_from_rows([changed], ANNOTATED))
    images = (first.images[0], part, first.images[2])
    publish(dataset, first.model_copy(update={"version": 2, "images": images}))
    result = compare(f"{dataset}@1", f"{dataset}@2")
    assert (result.images.compared, result.images.moved) == (3, 1)
    assert (result.images.moved_pixels, result.images.pixels) == (1, 6)
    assert {d.name: (d.before, d.after) for d in result.classes} == {
        "sky": (3, 2), "tree": (2, 2), "zebra": (0, 1),
    }  # fmt: skip
    # A shared file is read for its areas alone; the label map of one that changed is compared.
    assert [c.uri.rpartition("/")[2] for c in result.largest] == ["1.png"]


@pytest.mark.parametrize(
    "limits, failed",
    [
        ({"max_moved": 0.125}, None),
        ({"max_moved": 0.12}, "12.5000% of the pixels moved"),
        ({"min_class_iou": 0.6}, None),
        ({"min_class_iou": 0.7}, "class 'tree' overlaps with IoU 0.6667"),
        ({"min_class_iou": 0.7, "min_class_share": 0.5}, None),
    ],
    ids=["at the limit", "moved too much", "overlap enough", "overlap too small", "small class"],
)
def test_the_gate_fails_with_exit_code_1_and_says_why(pair, capsys, limits, failed):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in limits.items()]
    assert main(["diff", *pair, *flags]) == (0 if failed is None else 1)
    told = json.loads(capsys.readouterr().out)
    assert told["moved"] == 0.125
    assert (failed is None and told["failures"] == []) or failed in told["failures"][0]


def test_lost_images_and_nothing_in_common_fail_the_gate(tmp_path):
    before = dataset_of(tmp_path / "a", [maps(tmp_path, ("01",), ("00",))])
    other = [labelled_row(tmp_path / "photos" / "other.png", NAMES, draw_classes("0"))]
    result = compare(before, dataset_of(tmp_path / "b", [other]), max_lost=0.5, max_moved=1)
    assert result.images.moved_share is None
    assert [failure.split(",")[0] for failure in result.failures] == [
        "2 of 2 labelled images are gone or quarantined",
        "no image is labelled in both versions: there is nothing to compare",
    ]


def test_json_has_every_figure(pair, tmp_path):
    compare(*pair, output=tmp_path / "diff.json")
    told = json.loads((tmp_path / "diff.json").read_text())
    assert (told["before"]["version"], told["moved"]) == (1, 0.125)
    assert {"before": None, "after": "tree", "pixels": 1} in told["flows"]
    assert told["largest"][0]["uri"].endswith("1.png")


def test_segments_that_are_no_label_map_are_named(tmp_path, pair):
    rows = maps(tmp_path, ("01",), ("01",))
    rows[1]["segments"][1]["counts"] = rows[1]["segments"][0]["counts"]
    broken = dataset_of(tmp_path / "c", [rows])
    right = dataset_of(tmp_path / "d", [maps(tmp_path, ("01",), ("00",))])
    with pytest.raises(SettingsError, match=r"1\.png: its segments overlap"):
        compare(right, broken)


@pytest.mark.parametrize(
    "counts, problem",
    [
        (encode_mask(draw("##", "##")), "covers 4 pixels, the image has 2"),
        (b"\xff", "compressed run lengths"),
    ],
    ids=["another size", "no counts"],
)
def test_the_image_of_bad_counts_is_known(counts, problem):
    good = encode_mask(draw("##"))
    bad = LabelRuns([good, good, counts], np.array([0, 1, 2]), np.array([1, 1, 1]))
    with pytest.raises(ImageError, match=problem) as caught:
        find_moves(bad, bad, np.array([2, 2, 2]))
    assert caught.value.image == 2


@pytest.mark.parametrize(
    "name, problem",
    [
        ("nowhere", "holds no published dataset"),
        ("{}@7", "cannot read version 7"),
        ("{}@0", "must be DATASET@VERSION"),
        ("@3", "must be DATASET@VERSION"),
    ],
)
def test_versions_that_are_not_there_are_one_clear_error(pair, name, problem):
    with pytest.raises(SettingsError, match=problem):
        compare(pair[0], name.format(pair[1]))


def test_the_page_shows_the_largest_changes_first(tmp_path, pair):
    compare(*pair, page=tmp_path / "diff.html", max_moved=0)
    page = Page(tmp_path / "diff.html")
    assert page.open == []
    for words in ("Pixels moved 12.500%", "2 of 16", "1.png", "25.0% moved", "over max_moved"):
        assert words in page.text
    assert "Before After Area no label tree 12% sky tree 12%" in page.text
    assert [card["data-name"] for card in page.all("article")] == ["1.png"]
    words = {image["alt"] for image in page.all("img")}
    assert "What moved in 1.png: no label to tree 12%, sky to tree 12%" in words


def test_hostile_names_stay_text(tmp_path, browser):
    photos = [
        tmp_path / "photos" / f"{n}{name.replace('/', '')}.png" for n, name in enumerate(HOSTILE)
    ]
    sides = [
        [labelled_row(path, HOSTILE, picture) for path in photos]
        for picture in (draw_classes("012", "3.0"), draw_classes("120", "0.3"))
    ]
    for rows, kind in zip(sides, ("decode", HOSTILE[0]), strict=True):
        rows.append(quarantined_row("s3://bucket/x", stage=kind))
    before, after = (
        dataset_of(tmp_path / n, [r], HOSTILE) for n, r in zip("ab", sides, strict=True)
    )
    compare(before, after, page=tmp_path / "diff.html")
    page = Page(tmp_path / "diff.html")
    assert len(page.all("script")) == 1 and page.open == []
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(name in page.text for name in HOSTILE)
    browser.open(tmp_path / "diff.html")
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    names = browser.run("[...document.querySelectorAll('h3')].map(e => e.textContent)")
    assert sorted(names) == sorted(path.name for path in photos)


def test_photos_that_are_gone_get_a_note(tmp_path, pair):
    (tmp_path / "photos" / "1.png").unlink()
    compare(*pair, page=tmp_path / "diff.html")
    page = Page(tmp_path / "diff.html")
    assert "1.png: it does not exist" in page.text
    assert len(page.all("img")) == 3


def test_a_page_that_cannot_be_written_is_found_before_any_work(pair, tmp_path):
    (tmp_path / "photos" / "file").write_text("x")
    with pytest.raises(SettingsError, match="cannot write"):
        compare(*pair, page=tmp_path / "photos" / "file" / "page.html")
