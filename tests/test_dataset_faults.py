"""Downloads that are broken, do not fit, or were half prepared: one line that names the file."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jobs.cli import main
from pipeline.datasets.layout import read_dataset, read_split
from pipeline.datasets.plan import pair_all
from schemas.errors import DatasetError
from tests import downloads
from tests.test_datasets import prepared

PERSON = "val2017/000000000139"


@pytest.fixture
def coco(tmp_path):
    downloads.coco_stuff(tmp_path)
    return tmp_path


def refuse(root, message, name="coco-stuff", **settings):
    """Expect one line, and no data set."""
    with pytest.raises(DatasetError, match=message) as caught:
        prepared(name, root, **settings)
    assert "\n" not in str(caught.value)
    assert not (root / name / "dataset.json").exists()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda coco: shutil.rmtree(coco / "train2017"), "train2017; unpack train2017.zip there"),
        (
            lambda coco: shutil.rmtree(coco / "stuffthingmaps"),
            "stuffthingmaps/train2017; unpack stuffthingmaps_trainval2017.zip there",
        ),
        (
            lambda coco: (coco / f"{PERSON}.jpg").unlink(),
            f"stuffthingmaps/{PERSON}.png has no image of that name",
        ),
        (
            lambda coco: (coco / "stuffthingmaps/train2017/000000000009.png").unlink(),
            "train2017/000000000009.jpg has no labels of that name",
        ),
        (
            lambda coco: downloads.save_map(
                coco / f"stuffthingmaps/{PERSON}.png", downloads.fill(0, 11, 200)
            ),
            f"{PERSON}.png: value 11, 200 is neither one of the 171 classes nor ignored",
        ),
        (
            lambda coco: downloads.save_photo(coco / f"{PERSON}.jpg", size=(8, 6)),
            f"{PERSON}.png is 6x8, the image 8x6",
        ),
        (
            lambda coco: (coco / f"{PERSON}.jpg").write_bytes(b"not a photo"),
            f"{PERSON}.jpg: no decoder recognises the file",
        ),
        (
            lambda coco: os.truncate(coco / f"stuffthingmaps/{PERSON}.png", 50),
            f"{PERSON}.png: cannot be read",
        ),
        (
            lambda coco: downloads.save_photo(coco / f"stuffthingmaps/{PERSON}.png"),
            f"{PERSON}.png: is a RGB image, not one of indices",
        ),
    ],
    ids=[
        "no images", "no maps", "map without image", "image without map", "unknown value",
        "another size", "no photo", "truncated map", "colour map",
    ],
)  # fmt: skip
def test_a_broken_download_is_refused(coco, break_it, message):
    break_it(coco / "coco")
    refuse(coco, message)


def test_one_image_in_two_splits_is_refused(coco):
    for suffix, folder in ((".jpg", ""), (".png", "stuffthingmaps/")):
        home = coco / "coco" / folder
        name = f"000000000009{suffix}"
        shutil.copy(home / "train2017" / name, home / "val2017" / name)
    refuse(coco, "000000000009 is in split 'train' and in 'val'")


def test_lists_of_names_are_held_against_the_files(tmp_path):
    downloads.voc_2012(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    lists = home / "ImageSets" / "Segmentation"
    downloads.save_lines(lists / "val.txt", ["2007_000033", "2007_000099"])
    refuse(tmp_path, r"1 names of .*val.txt have no image: 2007_000099", "voc-2012")
    downloads.save_lines(lists / "val.txt", ["2007_000033", "2007_000033"])
    refuse(tmp_path, r"val.txt names 2007_000033 twice", "voc-2012")
    downloads.save_lines(lists / "val.txt", [])
    refuse(tmp_path, r"val.txt lists no images", "voc-2012")
    (lists / "val.txt").unlink()
    refuse(tmp_path, r"cannot read .*val.txt: No such file", "voc-2012")


def test_names_of_pascal_context_are_checked(tmp_path):
    downloads.pascal_context(tmp_path)
    listed = tmp_path / "VOCdevkit" / "VOC2010" / "labels.txt"
    lines = listed.read_text().splitlines()
    downloads.save_lines(listed, [line.replace("table", "sofa") for line in lines])
    refuse(tmp_path, "calls class 397 'sofa', officially 'diningtable'", "pascal-context-59")
    downloads.save_lines(listed, lines[:-1])
    refuse(tmp_path, "names 458 classes, not ids 1 to 459", "pascal-context-459")
    downloads.save_lines(listed, [*lines, "wood"])
    refuse(tmp_path, "has the line 'wood', not `id: name`", "pascal-context-459")
    listed.unlink()
    refuse(tmp_path, "has no labels.txt", "pascal-context-459")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"MATLAB 5.0" * 40), "it is no MATLAB file"),
        (lambda path: savemat(path, {"Other": np.zeros((6, 8))}), "no variable LabelMap"),
        (lambda path: savemat(path, {"LabelMap": np.ones((6, 8)) / 2}), "float64 of shape"),
    ],
    ids=["no MATLAB file", "other variable", "fractions"],
)
def test_label_maps_of_pascal_context_are_checked(tmp_path, write, message):
    downloads.pascal_context(tmp_path)
    write(tmp_path / "VOCdevkit" / "VOC2010" / "trainval" / "2008_000008.mat")
    refuse(tmp_path, f"2008_000008.mat: .*{message}", "pascal-context-59")


def test_label_maps_of_ade20k_have_three_channels(tmp_path):
    downloads.ade20k_full(tmp_path)
    (path,) = tmp_path.rglob("ADE_val_00000001_seg.png")
    downloads.save_map(path, downloads.fill(0))
    refuse(tmp_path, "ADE_val_00000001_seg.png: is a L image, not RGB", "ade20k-847")


class _Hostile:
    def __reduce__(self):
        return eval, ("1",)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"objectnames": _Hostile()}, r"index_ade20k.pkl holds an object of type builtins.eval"),
        ({"objectnames": ["wall"]}, r"has no objectPresence, objectIsPart, folder"),
        (
            {"objectnames": ["wall"], "objectPresence": np.ones((1, 2)), "folder": ["training"],
             "objectIsPart": np.zeros((1, 2))},
            "arrays that do not fit",
        ),
    ],
    ids=["runs code", "keys are missing", "too few folders"],
)  # fmt: skip
def test_an_index_of_ade20k_runs_nothing_and_is_checked(tmp_path, capsys, index, message):
    downloads.ade20k_full(tmp_path)
    (tmp_path / "ADE20K_2021_17_01" / "index_ade20k.pkl").write_bytes(pickle.dumps(index))
    refuse(tmp_path, message, "ade20k-847")
    assert "it ran" not in capsys.readouterr().out


def test_pairs_are_all_or_nothing(tmp_path):
    found = {name: tmp_path / name for name in "abc"}
    assert [pair.name for pair in pair_all(found, found)] == ["a", "b", "c"]
    with pytest.raises(DatasetError, match=r"b has no labels of that name \(and 1 more images\)"):
        pair_all(found, {"a": tmp_path})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["coco"], "there is no data set 'coco'; there are coco-stuff, voc-2012,"),
        (["voc-2012", "--vocabulary", "x"], "voc-2012 has no use for --vocabulary"),
        (["folder", "--partial"], "folder has no use for --partial"),
        (["voc-2012", "--source", "absent"], "there is no directory absent"),
        (["voc-2012"], "no folder VOCdevkit/VOC2012; unpack VOCtrainval_11-May-2012.tar there"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, capsys, arguments, expected):
    assert main(["datasets", "prepare", *arguments, "--root", str(tmp_path)]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("segmill datasets prepare: ") and expected in line


def test_the_command_prepares_and_says_so(coco):
    command = [sys.executable, "-m", "jobs.cli", "datasets", "prepare", "coco-stuff"]
    flags = ["--root", str(coco), "--partial", "--workers", "2"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images"] == {
        "train": 2, "train_base": 1, "val": 1, "val_base": 1,
    }  # fmt: skip
    assert Image.open(coco / "coco-stuff" / "masks" / "val" / "000000000139.png").mode == "L"


def test_every_data_set_is_listed(capsys):
    assert main(["datasets", "list"]) == 0
    shown = capsys.readouterr()
    assert "118,287 images" in shown.err and "huggingface" in shown.err


def test_a_data_set_that_is_not_there_is_named(coco):
    with pytest.raises(DatasetError, match=r"is no prepared data set, it has no dataset.json"):
        read_dataset(coco)
    root = prepared("coco-stuff", coco)
    with pytest.raises(DatasetError, match=r"no split 'test'; it has train, train_base, val"):
        list(read_split(root, "test"))
    next((root / "images" / "val").iterdir()).unlink()
    with pytest.raises(DatasetError, match=r"000000000139.png has no image in .*images/val"):
        list(read_split(root, "val"))
