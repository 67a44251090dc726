"""Preparing again: after faults or a kill, with more processes, over something else."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline.datasets.layout import read_dataset, read_split
from schemas.errors import DatasetError
from tests import downloads
from tests.test_dataset_faults import refuse
from tests.test_datasets import bands, prepared


@pytest.fixture
def coco(tmp_path):
    downloads.coco_stuff(tmp_path)
    return tmp_path


def tree(root):
    """Return the content of every file below a directory."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_bad_files_within_the_tolerance_are_left_out_and_recorded(coco):
    (coco / "coco" / "train2017" / "000000000009.jpg").write_bytes(b"")
    refuse(coco, r"1 of 3 pairs are bad so far, --max-bad-fraction is 0.3", max_bad_fraction=0.3)
    root = prepared("coco-stuff", coco, max_bad_fraction=0.34)
    assert list(bands(root, "train")) == ["000000000025"]
    records = [json.loads(line) for line in (root / "skipped.jsonl").read_text().splitlines()]
    (bad,) = [record for record in records if record["is_bad"]]
    assert (bad["split"], bad["name"]) == ("train", "000000000009")
    assert "the file has no bytes" in bad["reason"]


def test_a_failed_run_goes_on_when_the_file_is_mended(coco):
    photo = coco / "coco" / "val2017" / "000000000139.jpg"
    good = photo.read_bytes()
    photo.write_bytes(b"")
    refuse(coco, "000000000139.jpg")
    done = {path: path.stat().st_mtime_ns for path in (coco / "coco-stuff").rglob("*.png")}
    assert len(done) == 3
    photo.write_bytes(good)
    root = prepared("coco-stuff", coco)
    assert done.items() <= {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}.items()
    undisturbed = coco / "undisturbed"
    assert tree(root) == tree(prepared("coco-stuff", coco, output=undisturbed))


def test_a_map_that_was_damaged_is_made_again(coco):
    root = prepared("coco-stuff", coco)
    whole = tree(root)
    (root / "dataset.json").unlink()
    (root / "masks" / "train" / "000000000009.png").write_bytes(b"\x89PNG")
    downloads.save_map(root / "masks" / "train" / "000000000025.png", downloads.fill(171))
    (root / "masks" / "val" / "000000000139.png").unlink()
    assert tree(prepared("coco-stuff", coco)) == whole


def test_processes_make_what_one_makes(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\ncat [seen]\ntree [unseen]\n")
    for index in range(150):
        downloads.save_photo(tmp_path / "images" / f"{index}.png", index)
        downloads.save_map(tmp_path / "masks" / f"{index}.png", downloads.fill(index % 3, 1, 2))
    settings = {"source": tmp_path, "vocabulary": tmp_path / "classes.txt"}
    one = prepared("folder", tmp_path, output=tmp_path / "one", **settings)
    three = prepared("folder", tmp_path, output=tmp_path / "three", workers=3, **settings)
    assert tree(one) == tree(three)
    assert read_dataset(one).splits["train"].count == 150


def test_a_run_that_was_killed_goes_on(tmp_path):
    size = (300, 400)
    downloads.save_photo(tmp_path / "images" / "0.jpg", size=size)
    downloads.save_map(tmp_path / "masks" / "0.png", np.indices(size).sum(axis=0) % 3)
    for name in range(1, 150):  # of one content, so that they are quickly made
        os.link(tmp_path / "images" / "0.jpg", tmp_path / "images" / f"{name}.jpg")
        os.link(tmp_path / "masks" / "0.png", tmp_path / "masks" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("sky\ncat [seen]\ntree\n")
    settings = {"source": tmp_path, "vocabulary": tmp_path / "classes.txt"}
    command = [sys.executable, "-m", "jobs.cli", "datasets", "prepare", "folder", "--workers", "1"]
    for name, value in {**settings, "root": tmp_path}.items():
        command += [f"--{name}", str(value)]
    masks = tmp_path / "folder" / "masks" / "train"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        while len(list(masks.glob("*.png"))) < 5:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
    assert 5 <= len(list(masks.glob("*.png"))) < 150
    with pytest.raises(DatasetError, match="is no prepared data set"):
        read_dataset(tmp_path / "folder")
    resumed = prepared("folder", tmp_path, **settings)
    whole = prepared("folder", tmp_path, **settings, output=tmp_path / "whole")
    left = {path for path in tree(resumed) if path.endswith(".draft")}
    assert tree(whole).items() == {(k, v) for k, v in tree(resumed).items() if k not in left}
    assert len(list(read_split(resumed, "train"))) == 150


def test_what_is_prepared_is_not_prepared_again(coco):
    root = prepared("coco-stuff", coco)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert prepared("coco-stuff", coco) == root
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    (root / "masks" / "val" / "000000000139.png").unlink()
    with pytest.raises(DatasetError, match=r"has 0 maps, dataset.json says 1; delete .*json"):
        prepared("coco-stuff", coco)


def test_an_output_that_holds_something_else_is_left_alone(coco):
    (coco / "coco-stuff").mkdir()
    (coco / "coco-stuff" / "thesis.txt").write_text("mine")
    refuse(coco, "holds something else already")
    prepared("coco-stuff", coco, output=coco / "other")
    downloads.ade20k(coco)
    with pytest.raises(DatasetError, match="with other settings or another download"):
        prepared("ade20k-150", coco, output=coco / "other")


@pytest.mark.parametrize("image_files", ["link", "copy"])
def test_images_are_linked_or_copied(coco, image_files):
    root = prepared("coco-stuff", coco, image_files=image_files)
    original = coco / "coco" / "val2017" / "000000000139.jpg"
    ((image, _),) = read_split(root, "val")
    assert image.read_bytes() == original.read_bytes()
    assert image.samefile(original) == (image_files == "link")
    assert [path for path in root.rglob("*.draft")] == []
