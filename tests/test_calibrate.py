"""`segmill calibrate`: from label maps that people have checked to floors that export takes."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.calibrate import calibrate
from jobs.cli import main
from jobs.export import export
from pipeline.segments import encode_segments
from schemas.annotation import HUMAN, LABELLED, image_id
from schemas.errors import SettingsError
from schemas.export_config import ExportConfig
from schemas.trust_config import CalibrateConfig
from tests.export_ground import publish_rows

SKY, CAT, SEA = 0, 1, 4
IMAGES = 150


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images half sky, half cat; sky is right, cat only where its score is above a half."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = np.random.default_rng(0)
    (folder / "truth").mkdir()
    rows = []
    for number in range(IMAGES):
        score = rng.random()
        rows.append(labelled(folder, number, score))
        truth_HW = np.full((4, 6), SKY, np.uint8)
        truth_HW[:, 3:] = CAT if score > 0.5 else SEA
        truth_HW[0] = 255
        Image.fromarray(truth_HW).save(folder / "truth" / f"{number}.png")
    return folder, publish_rows(folder, rows, str(folder / "labels"), rows_per_file=60)


def labelled(folder, number, cat_score, **changes):
    classes_HW = np.zeros((4, 6), np.int32)
    classes_HW[:, 3:] = CAT
    scores_HW = np.where(classes_HW == CAT, cat_score, 0.7).astype(np.float32)
    names = ("sky", "cat", "", "road", "sea")
    uri = f"file://{folder}/photos/{number}.png"
    return {
        "image_id": image_id(uri), "uri": uri, "fingerprint": "f", "run_id": "run-1",
        "annotator": "model", "height": 4, "width": 6, "status": LABELLED, "n_proposals": 2,
        "coverage": 1.0, "mean_score": 0.5,
        "segments": encode_segments(classes_HW, scores_HW, names, 0.0, scores_HW),
    } | changes  # fmt: skip


def run(made, tmp_path, **settings):
    folder, dataset = made
    config = {"dataset": dataset, "truth": str(folder / "truth"), "output": tmp_path / "t.yaml"}
    return calibrate(CalibrateConfig.model_validate(config | settings))


def test_floors_separate_right_from_wrong(made, tmp_path):
    result = run(made, tmp_path)
    assert (result.images, result.segments, result.promised) == (IMAGES, 2 * IMAGES, 2)
    sky, cat = result.floors["sky"], result.floors["cat"]
    assert sky.kept_share == 1 and sky.correct == sky.kept == IMAGES
    # Of the scores above the floor nine in ten are above a half.
    assert 0.4 < cat.score < 0.6 and cat.basis == "own"


def test_export_takes_the_file(made, tmp_path):
    floor = run(made, tmp_path).floors["cat"].score
    config = ExportConfig(
        dataset=made[1], output=str(tmp_path / "out"), format="coco-instances", images="none",
        class_min_scores=tmp_path / "t.yaml",
    )  # fmt: skip
    export(config)
    (path,) = (tmp_path / "out").rglob("*train*.json")
    annotations = json.loads(path.read_text())["annotations"]
    cats = [one["score"] for one in annotations if one["category_id"] == CAT + 1]
    assert len(annotations) - len(cats) == IMAGES and min(cats) == floor
    assert len(cats) < 0.7 * IMAGES


def test_margins_get_floors_of_their_own(made, tmp_path):
    result = run(made, tmp_path, by="margin")
    assert 0.4 < result.floors["cat"].score < 0.6
    content = yaml.safe_load((tmp_path / "t.yaml").read_text())
    assert content["class_min_margins"]["cat"] == result.floors["cat"].score
    assert "class_min_scores" not in content


def test_the_file_says_on_what_it_rests(made, tmp_path):
    run(made, tmp_path, precision=0.8, promise="all")
    content = yaml.safe_load((tmp_path / "t.yaml").read_text())
    known = content["provenance"]
    assert (known["precision"], known["promise"], known["version"]) == (0.8, "all", 1)
    assert (known["images"], known["segments"], known["run_id"]) == (IMAGES, 2 * IMAGES, "run-1")
    assert content["classes"]["cat"]["lower_bound"] >= 0.8


def test_what_cannot_be_promised_is_dropped_or_kept(made, tmp_path):
    result = run(made, tmp_path, precision=0.999)
    assert result.promised == 0 and "fewest that could suffice" in result.floors["cat"].reason
    content = yaml.safe_load((tmp_path / "t.yaml").read_text())
    assert content["class_min_scores"] == {"sky": "drop", "cat": "drop"}
    run(made, tmp_path, precision=0.999, unpromised="keep")
    content = yaml.safe_load((tmp_path / "t.yaml").read_text())
    assert content["class_min_scores"] == {"sky": 0.0, "cat": 0.0}


def test_a_stricter_overlap_makes_segments_wrong(made, tmp_path):
    """Of every sky a quarter is ignored in the truth, and counts neither way."""
    assert run(made, tmp_path, min_overlap=1.0).floors["sky"].score is not None


def test_rows_of_people_are_not_of_the_model(made, tmp_path):
    folder, _ = made
    rows = [labelled(folder, number, 0.9) for number in range(40)]
    rows += [labelled(folder, number, 0.1, annotator=HUMAN) for number in range(40, 80)]
    dataset = publish_rows(tmp_path, rows, str(tmp_path / "labels"), rows_per_file=50)
    assert run((folder, dataset), tmp_path).images == 40


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"truth": None}, "either --truth or --reviews"),
        ({"reviews": "r.json"}, "either --truth or --reviews"),
        ({"precision": 1.0}, "less than 1"),
    ],
)
def test_wrong_settings_are_refused(made, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(made, tmp_path, **settings)


def test_a_truth_of_another_size_is_refused(made, tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "3.png")
    with pytest.raises(SettingsError, match=r"3\.png is 2x2, the image is 4x6"):
        run(made, tmp_path, truth=str(tmp_path))


def test_a_truth_that_holds_no_class_is_refused_as_evaluate_does(made, tmp_path):
    """Else the void of 16-bit maps would count as a class that every segment misses."""
    truth_HW = np.zeros((4, 6), np.uint16)
    truth_HW[:, :4] = 65535
    Image.fromarray(truth_HW).save(tmp_path / "3.png")
    with pytest.raises(SettingsError, match=r"3\.png: .* up to \[0, 65535\], there are 5 classes"):
        run(made, tmp_path, truth=str(tmp_path))
    assert run(made, tmp_path, truth=str(tmp_path), ignore=65535).images == 1


def test_a_truth_is_compared_with_the_image_of_its_folder_alone(made, tmp_path):
    rows = [labelled(tmp_path, f"{clip}/{number}", 0.9) for clip in "ab" for number in range(3)]
    dataset = publish_rows(tmp_path, rows, str(tmp_path / "labels"))
    (tmp_path / "truth" / "b").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (6, 4)).save(tmp_path / "truth" / "b" / f"{number}.png")
    assert run((tmp_path, dataset), tmp_path).images == 3


def test_truths_of_other_images_are_no_truths(made, tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "other.png")
    with pytest.raises(SettingsError, match=r"no image of .* has a truth"):
        run(made, tmp_path, truth=str(tmp_path))


def test_the_command_prints_one_line_of_json(made, tmp_path, capsys):
    folder, dataset = made
    words = ["calibrate", dataset, "--truth", str(folder / "truth"), "--output"]
    assert main([*words, str(tmp_path / "t.yaml")]) == 0
    assert json.loads(capsys.readouterr().out)["promised"] == 2
    assert main([*words, str(tmp_path / "t.yaml"), "--precision", "0.999"]) == 1
