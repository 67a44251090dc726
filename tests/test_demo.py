"""The demo without Ray: the scenes it draws, and what it may delete."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs import demo
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import TEST_SEED, VOCABULARY, make_scene
from schemas.annotate_config import AnnotateConfig
from schemas.errors import ModelError, SettingsError
from schemas.vocabulary import read_vocabulary


def write_results(output, number=2):
    """Leave behind what a demo leaves behind."""
    demo.prepare_directory(output)
    demo.write_scenes(output / "scenes", output / "truth", number, seed=0)
    for path in ("labels/_manifest/v000001.json", "labels/images/run=x/part-0.parquet"):
        (output / path).parent.mkdir(parents=True)
        (output / path).write_text("{}")
    (output / "report.html").write_text("page")


def files_in(output):
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


def test_scenes_and_truth_are_lossless_pngs_of_equal_name(tmp_path):
    demo.prepare_directory(tmp_path / "demo")
    demo.write_scenes(tmp_path / "demo/scenes", tmp_path / "demo/truth", 2, seed=3)
    assert files_in(tmp_path / "demo") == [
        demo.MARKER,
        *(f"{kind}/scene-0000{number}.png" for kind in ("scenes", "truth") for number in (0, 1)),
    ]
    expected = make_scene(TEST_SEED + 3, 1)
    image = np.asarray(Image.open(tmp_path / "demo/scenes/scene-00001.png"))
    truth = np.asarray(Image.open(tmp_path / "demo/truth/scene-00001.png"))
    assert (image == expected.image_HW3).all() and image.ndim == 3
    assert (truth == expected.label_map_HW).all() and truth.ndim == 2


def test_a_new_demo_starts_clean_in_an_old_one(tmp_path):
    write_results(tmp_path / "demo")
    demo.prepare_directory(tmp_path / "demo")
    assert files_in(tmp_path / "demo") == [demo.MARKER]
    write_results(tmp_path / "demo", number=1)
    assert "scenes/scene-00000.png" in files_in(tmp_path / "demo")


def test_a_new_demo_keeps_what_no_demo_made(tmp_path):
    write_results(tmp_path / "demo")
    mine = ["labels/notes.txt", "mine.txt", "scenes/holiday.png"]
    for name in mine:
        (tmp_path / "demo" / name).write_text("mine")
    demo.prepare_directory(tmp_path / "demo")
    assert files_in(tmp_path / "demo") == sorted([demo.MARKER, *mine])


def test_a_directory_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes/scene-00000.png").write_text("mine")
    with pytest.raises(SettingsError, match="was not made by a demo"):
        demo.prepare_directory(tmp_path)
    assert files_in(tmp_path) == ["scenes/scene-00000.png"]


def test_an_empty_directory_is_taken(tmp_path):
    demo.prepare_directory(tmp_path)
    assert files_in(tmp_path) == [demo.MARKER]


def test_a_link_to_elsewhere_is_not_followed(tmp_path):
    write_results(tmp_path / "demo")
    (tmp_path / "elsewhere/images").mkdir(parents=True)
    (tmp_path / "elsewhere/images/mine.txt").write_text("mine")
    (tmp_path / "demo/labels/_runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="cannot write"):
        demo.prepare_directory(tmp_path / "demo")
    assert (tmp_path / "elsewhere/images/mine.txt").exists()


def test_a_file_as_output_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(SettingsError, match="it is a file"):
        demo.prepare_directory(tmp_path / "demo")


def test_settings_come_from_the_quality_file(tmp_path):
    chosen = {"weight": 0.6, "mask_threshold": 0.4}
    quality = {"prompts": "single", "chosen_on_validation": chosen}
    (tmp_path / "quality.json").write_text(json.dumps(quality))
    settings = demo.chosen_settings(tmp_path / "quality.json")
    assert settings == {"prompts": "single", "ensemble_weight": 0.6, "mask_threshold": 0.4}
    assert settings.keys() <= AnnotateConfig.model_fields.keys()


def test_models_that_were_never_measured_are_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="train_embedded"):
        demo.chosen_settings(tmp_path / "quality.json")


def test_the_embedded_vocabulary_is_in_the_order_of_the_label_maps():
    if not EMBEDDED_VOCABULARY.is_file():
        pytest.skip("the embedded models are not built")
    assert read_vocabulary(EMBEDDED_VOCABULARY).names == VOCABULARY
