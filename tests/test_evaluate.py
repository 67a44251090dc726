"""A published dataset against truths, by hand: both protocols, and what does not fit."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.cli import main
from jobs.evaluate import evaluate
from pipeline.dataset import publish
from pipeline.metrics import BoundaryCounts
from pipeline.parts import write_images
from pipeline.segments import encode_segments
from pipeline.truth import ImageFiles
from schemas.annotation import ANNOTATED, LABELLED, QUARANTINED, image_id
from schemas.errors import OutputError, SettingsError
from schemas.evaluate_config import EvaluateConfig
from schemas.manifest import Counts
from schemas.vocabulary import Vocabulary, VocabularyClass
from tests.helpers import draw_classes
from tests.test_manifest import MANIFEST

NAMES = ("sky", "cat", "tree", "sofa")
# Predicted, truth. Tree is predicted but in no truth, sofa occurs nowhere.
PAIRS = {
    "one": (draw_classes("0012", "0.12"), draw_classes("0011", "0111")),
    "two": (draw_classes("00", "11", "11"), draw_classes("00", "01", "11")),
}
HITS, TRUE, PREDICTED = (3 + 2, 2 + 3), (3 + 3, 5 + 3), (3 + 2, 2 + 4)
IOU = [
    hits / (true + predicted - hits)
    for hits, true, predicted in zip(HITS, TRUE, PREDICTED, strict=True)
]


def vocabulary(flags):
    classes = [VocabularyClass(name=n, seen=f) for n, f in zip(NAMES, flags, strict=True)]
    return Vocabulary(classes=tuple(classes))


def row(name, predicted_HW):
    height, width = predicted_HW.shape
    scores_HW = np.full(predicted_HW.shape, 0.5, np.float32)
    return {
        "image_id": image_id(name), "uri": f"file:///photos/{name}.jpg", "fingerprint": "f",
        "run_id": "run", "annotator": "model",
        "n_proposals": 3, "height": height, "width": width, "status": LABELLED,
        "segments": encode_segments(predicted_HW, scores_HW, NAMES, 0.0),
    }  # fmt: skip


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "truth"
    folder.mkdir()
    for name, (_, truth_HW) in PAIRS.items():
        Image.fromarray(truth_HW.astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def dataset(tmp_path):
    """Publish the pairs, an image without truth and a quarantined one; return a function."""

    def build(flags=(True, False, False, True)):
        output = str(tmp_path / f"labels{sum(map(bool, flags))}")
        rows = [row(name, predicted) for name, (predicted, _) in PAIRS.items()]
        rows.append(row("lonely", draw_classes("0")))
        error = {"stage": "decode", "code": "corrupt", "message": "why"}
        bad = {"status": QUARANTINED, "segments": [], "error": error}
        rows.append(row("bad", draw_classes("0")) | bad)
        files = [
            write_images(output, "run", pa.Table.from_pylist(chunk, schema=ANNOTATED))
            for chunk in (rows[:1], rows[1:])
        ]
        counts = Counts(inventory=4, labelled=3, quarantined=1, reasons={})
        changes = {"images": tuple(files), "vocabulary": vocabulary(flags), "counts": counts}
        publish(output, MANIFEST.model_copy(update={**changes, "version": 1}))
        return output

    return build


def test_both_protocols_are_returned_and_the_wanted_one_is_the_headline(dataset, truth):
    labels = dataset()
    found = evaluate(EvaluateConfig(dataset=labels, truth=str(truth)))
    assert (found.images, found.without_truth, found.quarantined) == (2, 1, 1)
    # Tree, which is predicted only, counts as 0 in the paper's protocol, not in detectron2's.
    reference, detectron2 = found.by_protocol["reference"], found.by_protocol["detectron2"]
    assert reference.miou == pytest.approx(sum(IOU) / 3)
    assert detectron2.miou == pytest.approx(sum(IOU) / 2)
    assert (reference.seen_miou, detectron2.seen_miou) == pytest.approx((IOU[0], IOU[0]))
    assert (reference.unseen_miou, detectron2.unseen_miou) == pytest.approx((IOU[1] / 2, IOU[1]))
    for means in (reference, detectron2):
        harmonic = 2 / (1 / means.seen_miou + 1 / means.unseen_miou)
        assert means.hiou == pytest.approx(harmonic)
    assert found.headline is reference
    other = evaluate(EvaluateConfig(dataset=labels, truth=str(truth), protocol="detectron2"))
    assert other.headline == detectron2
    assert other.by_protocol == found.by_protocol


def test_metrics_of_pixels_are_of_all_images_together(dataset, truth):
    found = evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth)))
    assert found.pixel_accuracy == pytest.approx(sum(HITS) / sum(TRUE))
    assert found.mean_accuracy == pytest.approx((HITS[0] / TRUE[0] + HITS[1] / TRUE[1]) / 2)
    weighted = (TRUE[0] * IOU[0] + TRUE[1] * IOU[1]) / sum(TRUE)
    assert found.frequency_weighted_iou == pytest.approx(weighted)
    assert found.class_iou == pytest.approx(dict(zip(NAMES, IOU, strict=False)))


def test_boundaries_add_up_over_images(dataset, truth):
    found = evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth)))
    counts = [BoundaryCounts.of(*pair, len(NAMES)) for pair in PAIRS.values()]
    total = counts[0] + counts[1]
    for protocol, means in found.by_protocol.items():
        assert means.boundary_miou == pytest.approx(total.miou(protocol=protocol))
    assert found.headline.boundary_miou < found.by_protocol["detectron2"].boundary_miou


def test_a_vocabulary_without_flags_has_no_seen_and_unseen(dataset, truth):
    found = evaluate(EvaluateConfig(dataset=dataset((None,) * 4), truth=str(truth)))
    for means in found.by_protocol.values():
        assert (means.seen_miou, means.unseen_miou, means.hiou) == (None, None, None)
        assert means.miou > 0


@pytest.mark.parametrize("protocol, other", [("detectron2", "reference"), ("reference", "detect")])
def test_the_command_names_the_protocol_of_its_figures(dataset, truth, capsys, protocol, other):
    assert main(["evaluate", dataset(), "--truth", str(truth), "--protocol", protocol]) == 0
    captured = capsys.readouterr()
    line = json.loads(captured.out.strip().splitlines()[-1])
    assert line["protocol"] == protocol
    assert line["miou"] == line["by_protocol"][protocol]["miou"]
    assert line["miou"] == round(sum(IOU) / (3 if protocol == "reference" else 2), 4)
    assert line["by_protocol"].keys() == {"reference", "detectron2"}
    header = next(text for text in captured.err.splitlines() if "mean over classes" in text)
    assert header.index(protocol) < header.index(other)


def test_a_class_list_without_a_truth_has_no_figure_in_json(dataset, truth, capsys):
    """A mean over no class is nan, which JSON does not have."""
    assert main(["evaluate", dataset((True, True, True, False)), "--truth", str(truth)]) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (line["unseen_miou"], line["hiou"]) == (None, None)
    assert line["seen_miou"] is not None


def test_a_protocol_that_there_is_not_is_refused(dataset, truth, capsys):
    assert main(["evaluate", "labels", "--truth", str(truth), "--protocol", "coco"]) == 2
    message = capsys.readouterr().err
    assert "coco" in message and "reference" in message and "detectron2" in message


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda truth_HW: truth_HW[:1], r"one\.png: prediction is \(2, 4\), truth is \(1, 4\)"),
        (lambda truth_HW: truth_HW + 4, r"one\.png: truth holds .* 5\], there are 4 classes"),
    ],
    ids=["other size", "larger index"],
)
def test_a_truth_that_does_not_fit_is_named_with_both_sides(dataset, truth, change, words):
    Image.fromarray(change(PAIRS["one"][1]).astype(np.uint8)).save(truth / "one.png")
    with pytest.raises(SettingsError, match=words):
        evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth)))


def test_a_truth_for_no_image_is_refused(dataset, truth):
    for file in truth.iterdir():
        file.rename(file.with_stem(f"x{file.stem}"))
    with pytest.raises(SettingsError, match=r"no labelled image of .* has a truth in"):
        evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth)))


@pytest.fixture
def clips(tmp_path):
    """Publish images of equal stems in two folders, and a truth of one; return both."""
    sky, cat = draw_classes("00"), draw_classes("11")
    rows = [row(f"{clip}/00000", labels) for clip, labels in (("bear", sky), ("bus", cat))]
    output = str(tmp_path / "clips")
    file = write_images(output, "run", pa.Table.from_pylist(rows, schema=ANNOTATED))
    counts = Counts(inventory=2, labelled=2, quarantined=0, reasons={})
    changes = {"images": (file,), "vocabulary": vocabulary((None,) * 4), "counts": counts}
    publish(output, MANIFEST.model_copy(update={**changes, "version": 1}))
    folder = tmp_path / "clip-truth" / "bear"
    folder.mkdir(parents=True)
    Image.fromarray(sky.astype(np.uint8)).save(folder / "00000.png")
    return output, folder


def test_a_truth_is_of_the_image_alone_whose_path_agrees_furthest(clips):
    labels, folder = clips
    found = evaluate(EvaluateConfig(dataset=labels, truth=str(folder.parent)))
    assert (found.images, found.without_truth, found.pixel_accuracy) == (1, 1, 1.0)


def test_a_truth_that_two_images_claim_equally_is_refused_with_both(clips):
    labels, folder = clips
    folder.rename(folder.with_name("maps"))
    words = r"maps/00000\.png may be of file:///photos/b.*/00000\.jpg or of .*/b.*/00000\.jpg; put"
    with pytest.raises(SettingsError, match=words):
        evaluate(EvaluateConfig(dataset=labels, truth=str(folder.parent)))


@pytest.mark.parametrize(
    ("uris", "files"),
    [
        (["/photos/1.jpg", "/photos/batch/1.jpg"], ["1.png", "batch/1.png"]),
        ([f"s3://{x}.tar#bytes=0512-9999/0.jpg" for x in "ab"], ["a/0.png", "b/0.png"]),
        ([f"s3://{x}.tar#bytes=0512-9999/x/0.jpg" for x in "ab"], ["a/x/0.png", "b/x/0.png"]),
        ([f"s3://{x}.tar#bytes=0512-9999/0.jpg" for x in "ab"], ["a.tar/0.png", "b.tar/0.png"]),
        ([f"hf://{x}.parquet#row=0/image/0.png" for x in "ab"], ["a/0.png", "b/0.png"]),
    ],
    ids=["mirrored", "tars", "folders in tars", "with ending", "Parquet"],
)  # fmt: skip
def test_truths_in_the_folders_of_their_images_are_paired(uris, files):
    paths = [Path("masks", file) for file in files]
    found = ImageFiles(paths).paired(uris)
    assert found == dict(zip(uris, paths, strict=True))


def test_of_many_files_of_a_stem_the_one_that_agrees_furthest_is_found():
    folders = ["/".join(names) for depth in range(4) for names in product("ab", repeat=depth)]
    files = ImageFiles(Path("masks", folder, "1.png") for folder in folders if folder != "a/b")
    assert [*map(str, files)][:2] == ["masks/1.png", "masks/a/1.png"] and len(files) == 14
    for folder in folders:
        image = Path("/photos", folder, "1.jpg")
        wanted = Path("masks", "a/a/b" if folder == "a/b" else folder, "1.png")
        assert files.of(str(image)) == wanted


def test_scores_of_segments_are_compared_with_correctness(dataset, truth):
    found = evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth))).total.calibration
    # Every segment is scored 0.5; ten of the labelled pixels with a truth are right.
    assert (found.pixels[10], found.correct[10]) == (sum(PREDICTED) + 2, sum(HITS))
    assert found.expected_error() == pytest.approx(abs(sum(HITS) / found.pixels.sum() - 0.5))


def test_processes_add_up_to_the_same(dataset, truth, monkeypatch):
    labels = dataset()
    alone = evaluate(EvaluateConfig(dataset=labels, truth=str(truth), workers=1))
    monkeypatch.setattr("jobs.evaluate._IMAGES_PER_CHUNK", 1)
    together = evaluate(EvaluateConfig(dataset=labels, truth=str(truth), workers=2))
    assert without_time(together.document()) == without_time(alone.document())


def test_an_error_in_a_process_names_the_truth(dataset, truth):
    Image.fromarray(PAIRS["one"][1][:1].astype(np.uint8)).save(truth / "one.png")
    with pytest.raises(SettingsError, match=r"one\.png: prediction is \(2, 4\)"):
        evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth), workers=2))


@pytest.fixture
def predictions(tmp_path):
    """The same label maps as PNG files, and a vocabulary of the names."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name, (predicted_HW, _) in PAIRS.items():
        without = np.where(predicted_HW < 0, 255, predicted_HW)
        Image.fromarray(without.astype(np.uint8)).save(folder / f"{name}.png")
    (tmp_path / "classes.txt").write_text("\n".join(f"{name} [seen]" for name in NAMES))
    return {"dataset": str(folder), "vocabulary": tmp_path / "classes.txt"}


def test_label_maps_are_measured_like_a_dataset(dataset, truth, predictions):
    stored = evaluate(EvaluateConfig(dataset=dataset((True,) * 4), truth=str(truth)))
    found = evaluate(EvaluateConfig(**predictions, truth=str(truth)))
    assert (found.images, found.without_truth, found.quarantined) == (2, 0, 0)
    np.testing.assert_array_equal(found.confusion.counts, stored.confusion.counts)
    assert found.by_protocol["detectron2"] == stored.by_protocol["detectron2"]
    assert found.coverage == stored.coverage < 1
    assert not found.has_scores and "calibration" not in found.document()


@pytest.mark.parametrize("setting", [{"version": 1}, {"proposals": True}])
def test_label_maps_have_no_versions_and_no_proposals(truth, predictions, setting):
    with pytest.raises(ValueError, match="label maps are read"):
        EvaluateConfig(**predictions, truth=str(truth), **setting)


def test_a_prediction_that_cannot_be_read_is_named(truth, predictions, tmp_path):
    (tmp_path / "predictions" / "two.png").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"prediction .*two\.png cannot be read"):
        evaluate(EvaluateConfig(**predictions, truth=str(truth)))


def test_another_class_of_the_truth_may_be_ignored(dataset, truth):
    """With 255 as a class of the truth there would have to be 256 names."""
    found = evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth), ignore=1))
    assert found.class_iou.keys() == {"sky"}
    with_255 = PAIRS["one"][1].astype(np.uint8)
    with_255[0, 0] = 255
    Image.fromarray(with_255).save(truth / "one.png")
    with pytest.raises(SettingsError, match=r"up to \[0, 255\]"):
        evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth), ignore=1))


def test_the_json_file_holds_every_figure(dataset, truth, tmp_path):
    file = tmp_path / "new" / "result.json"
    found = evaluate(EvaluateConfig(dataset=dataset(), truth=str(truth), output=file))
    written = json.loads(file.read_text())
    assert written["by_protocol"]["reference"]["miou"] == pytest.approx(sum(IOU) / 3, abs=1e-6)
    assert [row["name"] for row in written["classes"]] == ["sky", "cat", "tree"]
    tree = written["classes"][2]
    assert (tree["iou"], tree["truth_pixels"], tree["predicted_pixels"]) == (None, 0, 2)
    cells = {
        (predicted, true): pixels
        for predicted, true, pixels in zip(
            *(written["confusion"][name] for name in ("predicted", "truth", "pixels")), strict=True
        )
    }
    dense = np.zeros((5, 4), dtype=int)
    for cell, pixels in cells.items():
        dense[cell] = pixels
    np.testing.assert_array_equal(dense, found.confusion.counts)
    assert written["outlines"].keys() == {"precision", "recall", "f_measure"}


def test_the_hash_of_the_protocol_tells_what_can_be_compared(dataset, truth):
    def digest(labels, **settings):
        config = EvaluateConfig(dataset=labels, truth=str(truth), **settings)
        return evaluate(config).document()["protocol_sha256"]

    labels = dataset()
    same = digest(labels)
    assert same == digest(labels, workers=1)
    others = {
        digest(labels, protocol="detectron2"),
        digest(labels, ignore=254),
        digest(dataset((True, True, True, False))),
    }
    assert len(others | {same}) == 4


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path):
    with pytest.raises(OutputError, match="it is a directory"):
        evaluate(EvaluateConfig(dataset="nowhere", truth="nowhere", output=tmp_path))


def test_truths_without_classes_are_compared_by_outlines(dataset, truth, capsys):
    labels = dataset()
    ids = truth.parent / "ids"
    ids.mkdir()
    for name, (_, truth_HW) in PAIRS.items():
        # Segments 7 and 9 in the place of classes 0 and 1.
        Image.fromarray((2 * truth_HW + 7).astype(np.uint8)).save(ids / f"{name}.png")
    by_class = evaluate(EvaluateConfig(dataset=labels, truth=str(truth)))
    config = EvaluateConfig(dataset=labels, truth=str(ids), truth_format="segments")
    found = evaluate(config)
    assert not found.has_classes and "classes" not in found.document()
    assert found.document()["outlines"] == by_class.document()["outlines"]
    assert found.total.outlines.predicted[0] > 0
    assert main(["evaluate", labels, "--truth", str(ids), "--truth-format", "segments"]) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert "miou" not in line and line["outline_f"] > 0


def without_time(document):
    return {name: value for name, value in document.items() if name != "seconds"}
