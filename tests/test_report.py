"""The report page: what it shows, that data stays text, that it needs nothing from elsewhere."""

import base64
import hashlib
import re
import tracemalloc
from datetime import UTC, datetime
from html.parser import HTMLParser
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.report import _choose, report
from pipeline.dataset import publish, read_manifest
from pipeline.overview import mean_margins
from pipeline.palette import PATTERNS, class_colours, hexadecimal, pattern_lines
from pipeline.parts import read_columns, write_images
from pipeline.run_records import Recorder
from pipeline.segments import encode_segments
from schemas.annotation import ANNOTATED, LABELLED, QUARANTINED, image_id, table_from_rows
from schemas.errors import SettingsError
from schemas.manifest import Changes, Counts, Manifest
from schemas.meter import FlowMeter, RunMeter, StageMeter
from schemas.report_config import ReportConfig
from schemas.vocabulary import Vocabulary, VocabularyClass
from tests.export_ground import lower_limits
from tests.helpers import draw_classes

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}&amp;",
    "\u202egnp.\u2067' onmouseover=alert(1) x='",
)
PICTURE = draw_classes("0011.", "0011.", "2211.", "2211.")
VOID_TAGS = {"meta", "link", "img", "input"}


class Page(HTMLParser):
    """A page as a browser takes it: elements with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    def all(self, tag, **wanted):
        found = [attributes for name, attributes in self.elements if name == tag]
        return [one for one in found if wanted.items() <= {k: one.get(k) for k in wanted}.items()]


def labelled_row(path, names, label_map=PICTURE, score=0.75):
    """Write a picture of the label map's size and return its row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", label_map.shape[::-1], (10, 200, 30)).save(path, "png")
    scores = np.full(label_map.shape, score, dtype=np.float32)
    return {
        **identity(f"file://{path}"),
        "bytes_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "height": label_map.shape[0],
        "width": label_map.shape[1],
        "status": LABELLED,
        "n_proposals": 3,
        "coverage": float((label_map >= 0).mean()),
        "mean_score": score,
        "segments": encode_segments(
            np.maximum(label_map, 0), np.where(label_map < 0, 0, scores), names, 0.0, scores
        ),
    }


def quarantined_row(uri, stage="decode", code="corrupt", message="truncated"):
    error = {"stage": stage, "code": code, "message": message}
    return {
        **identity(uri),
        "status": QUARANTINED,
        "error": error,
        "n_proposals": 0,
        "segments": [],
    }


def identity(uri):
    return {
        "image_id": image_id(uri),
        "uri": uri,
        "fingerprint": "f" * 64,
        "run_id": "run",
        "annotator": "model",
    }


def write_dataset(directory, files, vocabulary):
    """Publish a version with the given rows per file and return the dataset's path."""
    parts = [
        write_images(str(directory), "run", table_from_rows(rows, ANNOTATED)) for rows in files
    ]
    labelled, quarantined = (sum(getattr(p, n) for p in parts) for n in (LABELLED, QUARANTINED))
    reasons = {reason: number for part in parts for reason, number in part.reasons.items()}
    publish(
        str(directory),
        Manifest(
            version=1,
            created=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
            run_id="20240506T070809Z-abcdef",
            lock=1,
            fingerprint="f" * 64,
            source="some/photos",
            vocabulary=vocabulary,
            counts=Counts(
                inventory=labelled + quarantined,
                labelled=labelled,
                quarantined=quarantined,
                reasons=reasons,
            ),
            changes=Changes(kept=0, done=len(parts), from_embeddings=0, removed=0),
            images=tuple(parts),
            config={"max_image_pixels": 10_000},
            models={"proposer": "maskformer", "ensemble_weight": 0.8, "templates": ["a {}."]},
            software={"torch": "2.0"},
        ),
    )
    return str(directory)


def page_of(tmp_path, dataset, **settings):
    result = report(ReportConfig(dataset=dataset, output=tmp_path / "page.html", **settings))
    return result, Page(result.output)


def pixels(image):
    data = base64.b64decode(image["src"].partition(",")[2])
    return np.asarray(Image.open(BytesIO(data)).convert("RGBA"))


@pytest.fixture
def small(tmp_path):
    """Two labelled images and a quarantined one, one class of three unseen."""
    classes = [("sky", True), ("tree", True), ("zebra", False)]
    vocabulary = Vocabulary(classes=tuple(VocabularyClass(name=n, seen=s) for n, s in classes))
    rows = [labelled_row(tmp_path / "photos" / f"{i}.png", vocabulary.names) for i in "ab"]
    rows.append(quarantined_row("s3://bucket/broken.jpg"))
    return write_dataset(tmp_path / "labels", [rows], vocabulary)


def test_page_names_images_classes_and_provenance(tmp_path, small):
    result, page = page_of(tmp_path, small)
    assert (result.images, result.unreadable, result.quarantined) == (2, 0, 1)
    for words in ("a.png", "b.png", "Version 1", "20240506T070809Z-abcdef", "some/photos"):
        assert words in page.text
    for words in ("2 of 3", "decode/corrupt 1", "1 unseen", "ensemble weight 0.8", "a {}."):
        assert words in page.text
    assert "broken.jpg decode corrupt truncated" in page.text
    assert page.open == []


def test_legend_gives_share_and_score_and_marks_unseen_classes(tmp_path, small):
    _, page = page_of(tmp_path, small)
    assert "tree 40% 0.75 sky 20% 0.75 zebra unseen 20% 0.75 no label 20%" in page.text


def test_label_map_has_the_colours_of_the_legend_and_is_clear_without_label(tmp_path, small):
    _, page = page_of(tmp_path, small)
    maps = page.all("img", **{"class": "map overlay"})
    label_map = pixels(next(one for one in maps if one["alt"].startswith("Labels of a.png")))
    assert label_map.shape == (4, 5, 4)
    assert label_map[:, 4, 3].tolist() == [0] * 4
    sky, tree, _ = class_colours(3)
    assert tuple(label_map[0, 0]) == (*sky, 255)
    # The second class is drawn with rising lines, two of eight diagonals darker than its colour.
    lines = pattern_lines("rising", (4, 5))
    shaded = tuple(round(value * 0.68) for value in tree)
    for column in (2, 3):
        for row in range(2):
            is_boundary = column == 3 or row == 3
            wanted = shaded if lines[row, column] else tree
            assert is_boundary or tuple(label_map[row, column, :3]) == wanted
    assert f'class="chip rising" style="background-color:{hexadecimal(tree)}"' in page.source


def test_every_image_has_its_words(tmp_path, small):
    _, page = page_of(tmp_path, small)
    photos, maps = (page.all("img", **{"class": kind}) for kind in ("photo", "map overlay"))
    assert sorted(photo["alt"] for photo in photos) == ["Image a.png", "Image b.png"]
    assert len(maps) == 2 and all("tree 40%" in label_map["alt"] for label_map in maps)


def test_page_needs_nothing_from_elsewhere(tmp_path, small):
    _, page = page_of(tmp_path, small)
    for _, attributes in page.elements:
        values = {name: value or "" for name, value in attributes.items() if name != "title"}
        assert not [value for value in values.values() if "//" in value.partition("base64,")[0]]
        assert all(values.get(name, "data:").startswith(("data:", "#")) for name in ("src", "href"))
    style, script = (
        re.search(f"<{tag}>(.*?)</{tag}>", page.source, re.S)[1] for tag in ("style", "script")
    )
    assert not re.search(r"url\(|@import", style)
    assert not re.search(r"fetch|import|XMLHttp|innerHTML|https?:", script)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; img-src data:" in policy and f"'sha256-{digest}'" in policy


def test_hostile_names_stay_text(tmp_path):
    vocabulary = Vocabulary.of(HOSTILE)
    rows = [
        labelled_row(tmp_path / "photos" / f"{number}{name.replace('/', '')}.png", HOSTILE)
        for number, name in enumerate(HOSTILE)
    ]
    rows += [
        quarantined_row(f"s3://bucket/{name}", stage=name, code=name, message=name)
        for name in HOSTILE
    ]
    dataset = write_dataset(tmp_path / "labels", [rows], vocabulary)
    truth = tmp_path / "truth"
    truth.mkdir()
    for row in rows[:3]:
        stem = row["uri"].rpartition("/")[2].removesuffix(".png")
        Image.fromarray(np.zeros(PICTURE.shape, np.uint8)).save(truth / f"{stem}.png")
    _, page = page_of(tmp_path, dataset, truth=str(truth))
    assert len(page.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert all(name in page.text for name in HOSTILE)
    assert page.open == []


def test_image_that_is_gone_or_changed_gets_a_note(tmp_path, small):
    (tmp_path / "photos" / "a.png").unlink()
    Image.new("RGB", (5, 4)).save(tmp_path / "photos" / "b.png")
    result, page = page_of(tmp_path, small)
    assert (result.images, result.unreadable) == (2, 2)
    assert "a.png: it does not exist" in page.text
    assert "the file changed since it was labelled" in page.text
    assert page.text.count("Image not available") == 2
    assert len(page.all("img", **{"class": "map"})) == 2


def test_image_over_limits_that_were_lowered_is_shown(tmp_path, small):
    lower_limits(small)
    result, page = page_of(tmp_path, small)
    assert (result.images, result.unreadable) == (2, 0)
    assert "Image not available" not in page.text


def test_truth_brings_a_column_figures_and_missed_classes(tmp_path, small):
    truth = np.where(PICTURE == 2, 0, PICTURE)  # no zebra in it; 255 is ignored
    (tmp_path / "truth").mkdir()
    Image.fromarray(np.where(truth < 0, 255, truth).astype(np.uint8)).save(tmp_path / "truth/a.png")
    _, page = page_of(tmp_path, small, truth=str(tmp_path / "truth"))
    # sky 4 of 8, tree 8 of 8, zebra predicted but absent: 0
    for words in (
        "Seen mIoU 75.0%",
        "Unseen mIoU 0.0%",
        "hIoU 0.0%",
        "mIoU 50.0%",
        "accuracy 75.0%",
    ):
        assert words in page.text
    assert "tree 100.0% sky 50.0%" in page.text
    absent = "\N{EN DASH}"
    assert f"tree 40% 40% 0.75 sky 20% 40% 0.75 zebra unseen 20% {absent} 0.75" in page.text
    assert f"no label 20% 20% {absent}" in page.text
    assert page.text.count("no truth") == 1
    assert len([image for image in page.all("img") if image["alt"].startswith("Truth of a")]) == 1


def test_the_worst_the_least_certain_and_others_evenly_are_shown(tmp_path):
    scores = [0.9] * 12
    scores[7], scores[3] = 0.2, 0.3
    names = [f"{number:02}.png" for number in range(12)]
    files = [
        [
            labelled_row(
                tmp_path / "photos" / name, ["x"], np.zeros((2, 3), int), scores[int(name[:2])]
            )
            for name in part
        ]
        for part in (names[:5], names[5:6], names[6:])
    ]
    # Half of the last image has no label, which makes it the worst but not the least certain.
    files[2][5] = labelled_row(
        tmp_path / "photos" / "11.png", ["x"], draw_classes("0......", "......."), 0.9
    )
    dataset = write_dataset(tmp_path / "labels", files, Vocabulary.of(["x"]))
    result, page = page_of(tmp_path, dataset, max_images=4)
    picked = {card["data-name"]: card["data-picked"] for card in page.all("article")}
    in_order = [
        row["uri"].rpartition("/")[2]
        for part in (read_manifest(dataset).images)
        for row in read_columns(dataset, part.path, ["uri"]).to_pylist()
    ]
    left = [name for name in in_order if name not in ("07.png", "11.png")]
    assert result.images == 4
    assert picked == {
        "11.png": "worst", "07.png": "uncertain", left[0]: "spread", left[5]: "spread",
    }  # fmt: skip
    assert list(picked) == [name for name in in_order if name in picked]
    assert "4 of 12 labelled: the worst, the least certain, and others spread evenly" in page.text


def overview_of(labelled, worst, uncertain):
    least = [SimpleNamespace(ranks=lambda ranks=ranks: ranks) for ranks in (worst, uncertain)]
    return SimpleNamespace(labelled=labelled, worst=least[0], uncertain=least[1])


@pytest.mark.parametrize(
    "worst, uncertain, spread",
    [
        ([0, 9], [], [1, 3, 5, 7]),
        ([4, 3], [4, 5], [0, 2, 7]),
        ([], [], [0, 1, 3, 5, 6, 8]),
        (list(range(9)), [9], []),
    ],
    ids=["both ends", "the middle", "none", "all"],
)
def test_others_are_spread_over_what_was_not_chosen(worst, uncertain, spread):
    chosen = _choose(overview_of(10, worst, uncertain), 6)
    assert [rank for rank, why in chosen.items() if why == ("spread",)] == spread


def test_choosing_of_a_large_dataset_takes_little_memory():
    tracemalloc.start()
    try:
        chosen = _choose(overview_of(10**6, [5, 999_999], [7]), 240)
        assert len(chosen) == 240 and tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_figures_are_of_all_images_not_only_of_those_shown(tmp_path):
    pictures = [("01",), ("0.",), ("00",), ("11",)]
    scores = [0.25, 0.5, 1.0, 0.75]
    rows = [
        labelled_row(
            tmp_path / "photos" / f"{number}.png",
            ["sky", "tree", "zebra"],
            draw_classes(*one),
            score,
        )
        for number, (one, score) in enumerate(zip(pictures, scores, strict=True))
    ]
    names = Vocabulary.of(["sky", "tree", "zebra"])
    dataset = write_dataset(tmp_path / "labels", [rows[:1], rows[1:]], names)
    result, page = page_of(tmp_path, dataset, max_images=1)
    assert result.images == 1
    # sky: 3 images, 4 of 7 pixels, score (0.25 + 0.5 + 2) / 4; tree: 2 images, 3 pixels
    assert "sky 3 57.1% 0.69 tree 2 42.9% 0.58 zebra 0 0.0% \N{EN DASH}" in page.text
    assert "Pixels with a label 87.5% of 8" in page.text
    histograms = {one["aria-label"].partition(":")[0]: one["aria-label"] for one in page.all("svg")}
    by_score = (
        histograms["Segments by score in twentieths of 0 to 1"].partition(": ")[2].split(", ")
    )
    expected = [0] * 20
    expected[5], expected[10], expected[15], expected[19] = 2, 1, 1, 1
    assert [int(count) for count in by_score] == expected


def test_throughput_is_told_from_the_runs_start_to_its_publication(tmp_path, small):
    first = read_manifest(small)
    changes = Changes(kept=1, done=2, from_embeddings=1, removed=3)
    created = datetime(2024, 5, 6, 7, 9, 9, tzinfo=UTC)
    later = {"version": 2, "created": created, "changes": changes, "run_id": "20240506T070905Z-a"}
    publish(small, first.model_copy(update=later))
    publish(small, first.model_copy(update={**later, "version": 3, "run_id": "by hand"}))
    _, page = page_of(tmp_path, small, version=2)
    assert "2 20240506T070905Z-a 2 1 1 3 4 0.50" in page.text
    assert "by hand" not in page.text
    _, page = page_of(tmp_path, small)
    assert "3 by hand 2 1 1 3 \N{EN DASH} \N{EN DASH}" in page.text


def test_throughput_shows_what_the_run_measured(tmp_path, small):
    decode, classify = (
        StageMeter(
            name=name, pool=pool, workers=workers, worker_s=10.0 * workers, images=2,
            size_bytes=1_500_000, busy_s=busy_s, cpu_s=busy_s,
        )
        for name, pool, workers, busy_s in (("decode", "tasks", 2, 1.0), ("classify", "b", 1, 8.0))
    )  # fmt: skip
    flow = FlowMeter(
        images=2, seconds=10.0, start_up_s=3.0, cores=4, stages=(decode, classify)
    )  # fmt: skip
    manifest = read_manifest(small)
    with Recorder(small, manifest.run_id) as recorder:
        recorder.meter = RunMeter(images=2, seconds=13.0, size_bytes=9, flows=(flow,))
    _, page = page_of(tmp_path, small)
    assert "Meter of version 1" in page.text
    assert "0.20 of at most 0.25 images/s (80.0%); classify binds; start-up 3 s" in page.text
    assert "decode 2 500.0 500.0 2 5.0% 1.5 classify 2 4000.0 4000.0 1 80.0% 1.5" in page.text


def test_a_page_has_no_more_images_than_it_has_room_for(tmp_path, small):
    result, page = page_of(tmp_path, small, max_page_mb=0.400001)
    assert (result.images, result.left_out) == (1, 1)
    assert "1 more were chosen; the page has no room for them." in page.text
    assert len(page.all("article")) == 1


def test_large_images_become_small_thumbnails(tmp_path):
    row = labelled_row(tmp_path / "photos" / "wide.png", ["x"], np.zeros((40, 1000), int))
    dataset = write_dataset(tmp_path / "labels", [[row]], Vocabulary.of(["x"]))
    page_images = page_of(tmp_path, dataset)[1].all("img")
    assert {pixels(image).shape[:2] for image in page_images} == {(10, 256)}


def test_dataset_of_quarantined_images_only_makes_a_page(tmp_path):
    rows = [quarantined_row(f"s3://bucket/{number}.jpg") for number in range(250)]
    dataset = write_dataset(tmp_path / "labels", [rows], Vocabulary.of(["x"]))
    result, page = page_of(tmp_path, dataset)
    assert (result.images, result.quarantined) == (0, 200)
    assert "No image was labelled." in page.text and "The first 200 are listed" in page.text
    assert len(page.all("td", **{"class": "message"})) == 200


def test_signed_urls_lose_their_signature(tmp_path):
    rows = [quarantined_row("s3://bucket/a.jpg?signature=secret")]
    dataset = write_dataset(tmp_path / "labels", [rows], Vocabulary.of(["x"]))
    assert "secret" not in page_of(tmp_path, dataset)[1].source


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"dataset": "nowhere"}, "holds no published dataset"),
        ({"version": 7}, "version 7"),
        ({"truth": "nowhere"}, "no PNG label maps in nowhere"),
        ({"output": "."}, "it is a directory"),
        ({"output": "photos/a.png/page.html"}, "cannot write"),
    ],
    ids=["no dataset", "no such version", "no truth", "directory as output", "file as directory"],
)
def test_wrong_settings_are_one_clear_error(tmp_path, small, monkeypatch, settings, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=problem):
        report(ReportConfig(**{"dataset": small, "output": "page.html", **settings}))


def test_failed_report_keeps_the_page_that_was_there(tmp_path, small):
    (tmp_path / "page.html").write_text("earlier")
    path = read_manifest(small).images[0].path
    (tmp_path / "labels" / path).write_bytes(b"PAR1 no more")
    with pytest.raises(SettingsError, match=f"cannot read {path}"):
        page_of(tmp_path, small)
    assert (tmp_path / "page.html").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".draft")] == []


def test_truth_that_is_no_png_is_named(tmp_path, small):
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth/a.png").write_text("not a picture")
    with pytest.raises(SettingsError, match="truth"):
        page_of(tmp_path, small, truth=str(tmp_path / "truth"))


def test_colours_do_not_depend_on_how_many_there_are():
    assert class_colours(200)[:5] == class_colours(5)
    assert len(set(class_colours(300))) == 300
    assert len(class_colours(5000)) == 5000
    assert class_colours(0) == ()


def test_neighbouring_classes_differ_in_their_pattern_too():
    drawn = [pattern_lines(pattern, (16, 16)) for pattern in PATTERNS]
    assert len({lines.tobytes() for lines in drawn}) == len(PATTERNS) == 7


def test_mean_margins_are_over_labelled_pixels_and_none_of_a_person():
    kind = pa.list_(pa.struct([("margin", pa.float32()), ("area", pa.int64())]))
    images = [
        [{"margin": 0.5, "area": 3}, {"margin": 1.0, "area": 1}],
        [],
        [{"margin": None, "area": 4}],
    ]
    found = mean_margins(pa.array(images, kind))
    np.testing.assert_array_equal(found, [0.625, np.nan, np.nan])
