"""A version read for training without an export: PyTorch, Ray Data, and plain Parquet readers."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from pipeline.dataset import read_manifest
from pipeline.exports.pictures import LeftOut
from pipeline.training_data import GroupSampler, SampleReader, VersionImages, read_group
from schemas.errors import OutputError, SettingsError, TrainingError
from schemas.export_config import TrainingDataConfig
from tests.dataset_checks import rows_of
from tests.export_ground import (
    NAMES,
    ReadRowGroups,
    lower_limits,
    publish_ground,
    publish_packed,
    truth_of,
)

Maps = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def expected(dataset: str) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Upright image (H, W, 3) and label map (H, W) of every labelled image, by id."""
    found = {}
    for row in rows_of(dataset):
        if row["status"] == "labelled":
            with Image.open(row["uri"].removeprefix("file://")) as file:
                image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
            truth_HW = truth_of(row)
            found[row["image_id"]] = image, np.where(truth_HW < 0, 255, truth_HW)
    return found


def config(dataset: str, **changes: Any) -> TrainingDataConfig:
    return TrainingDataConfig(dataset=dataset, **changes)


def as_numpy(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_id": sample["image_id"],
        "image": sample["image"].permute(1, 2, 0).numpy(),
        "labels": sample["labels"].numpy(),
    }


def check(samples: Any, expected: Any) -> None:
    by_id = {sample["image_id"]: sample for sample in samples}
    assert by_id.keys() == expected.keys()
    for image_id, (image, labels) in expected.items():
        np.testing.assert_array_equal(by_id[image_id]["image"], image)
        np.testing.assert_array_equal(by_id[image_id]["labels"], labels)


@pytest.mark.filterwarnings("ignore")  # PyTorch's workers are forked from a process with threads
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_every_image_once(dataset: str, expected: Any, workers: int) -> None:
    images = VersionImages(config(dataset), transform=as_numpy)
    assert len(images) == len(expected) == 6 and images.classes == NAMES
    sampler = GroupSampler(images, seed=1)
    loader = DataLoader(images, batch_size=None, sampler=sampler, num_workers=workers)
    check(loader, expected)


def test_samples_are_tensors_as_torch_wants_them(dataset: str) -> None:
    sample = VersionImages(config(dataset))[0]
    _, height, width = sample["image"].shape
    assert (str(sample["image"].dtype), len(sample["image"])) == ("torch.uint8", 3)
    assert str(sample["labels"].dtype) == "torch.int64"
    assert sample["labels"].shape == (height, width)


def test_an_epoch_is_another_order_and_keeps_row_groups_together(dataset: str) -> None:
    images = VersionImages(config(dataset))
    sampler = GroupSampler(images, seed=0)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(6)) and len(sampler) == 6
        groups = np.searchsorted(images.starts, orders[-1], side="right")
        assert np.count_nonzero(np.diff(groups)) == len(images.groups) - 1
    assert len({tuple(order) for order in orders}) > 1
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]


def split_ids(dataset: str, seed: int) -> list[set[str]]:
    return [
        {images[index]["image_id"] for index in range(len(images))}
        for images in (
            VersionImages(config(dataset, split=split, val_fraction=0.4, split_seed=seed))
            for split in ("train", "val")
        )
    ]


def test_splits_share_no_image_and_lose_none(dataset: str, expected: Any) -> None:
    # Ids are of paths, which are others in every run: of few images a split may be empty by chance.
    ids = next(ids for seed in range(20) if all(ids := split_ids(dataset, seed)))
    assert ids[0] and ids[1] and not ids[0] & ids[1] and ids[0] | ids[1] == expected.keys()


def test_classes_and_floors_are_those_of_an_export(dataset: str, tmp_path: Path) -> None:
    mapping = tmp_path / "classes.yaml"
    mapping.write_text("sky: water\nsea: water\nroad: drop\n")
    images = VersionImages(config(dataset, classes=mapping, min_score=0.35))
    assert images.classes == ("water", "cat", NAMES[2])
    labels = images[0]["labels"].numpy()
    row = next(row for row in rows_of(dataset) if row["image_id"] == images[0]["image_id"])
    truth_HW = truth_of(row)
    # The score of class k is 0.3 + 0.1 k: sky is below the floor.
    new_of = np.array([255, 1, 2, 255, 0, 255])  # the last is -1, of no class
    np.testing.assert_array_equal(labels, new_of[truth_HW])
    with pytest.raises(SettingsError, match="cannot read"):
        VersionImages(config(dataset, classes=tmp_path / "none.yaml"))


def test_an_image_that_changed_is_named(tmp_path: Path) -> None:
    dataset = publish_ground(tmp_path, ("a.png", "b.png"))
    (tmp_path / "photos" / "b.png").write_bytes(b"other")
    images = VersionImages(config(dataset))
    with pytest.raises(TrainingError, match=r"b\.png: the file changed"):
        [images[index] for index in range(2)]
    with pytest.raises(IndexError):
        images[2]


def test_row_groups_of_images_in_a_parquet_file_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = publish_packed(tmp_path, 24, 4)
    images = VersionImages(config(dataset))
    read = ReadRowGroups(monkeypatch)
    ids = {images[index]["image_id"] for index in GroupSampler(images, seed=0)}
    assert len(ids) == 24 and sorted(read) == list(range(6))
    # In the order of their numbers, as Ray Data asks for them, only the newest one is kept.
    read = ReadRowGroups(monkeypatch)
    reader = SampleReader.of(config(dataset), read_manifest(dataset, None))
    (group,) = images.groups
    table = read_group(dataset, group.path, group.group)
    for row in table.take(group.rows).to_pylist():
        assert not isinstance(reader.sample(row), LeftOut)
    assert read == list(range(6))


def test_limits_that_were_lowered_lose_no_image(tmp_path: Path) -> None:
    dataset = publish_ground(tmp_path, ("a.png", "b.png"))
    lower_limits(dataset)
    images = VersionImages(config(dataset))
    assert len({images[index]["image_id"] for index in range(2)}) == 2


@pytest.mark.ray
def test_ray_data_reads_a_version(
    dataset: str, expected: Any, tmp_path: Path, ray_session: None
) -> None:
    from pipeline.training_runtime import read_version

    check(read_version(config(dataset)).iter_rows(), expected)
    two = publish_ground(tmp_path, ("a.png", "b.png"))
    (tmp_path / "photos" / "b.png").unlink()
    (row,) = read_version(config(two)).take_all()
    assert row["labels"].shape == row["image"].shape[:2]
    with pytest.raises(OutputError, match="no labelled image"):
        read_version(config(two, split="val"))


def files_of(dataset: str) -> list[str]:
    manifest = json.loads((Path(dataset) / "_manifest" / "v000001.json").read_text())
    return [f"{dataset}/{part['path']}" for part in manifest["images"]]


def decoded(rows: Any) -> Maps:
    """Label maps of plain rows, by pycocotools alone."""
    found: Maps = {}
    for row in rows:
        size = [int(row["height"]), int(row["width"])]
        labels_HW = np.full(size, 255)
        for segment in row["segments"]:
            mask_HW = coco_mask.decode({"size": size, "counts": bytes(segment["counts"])})
            labels_HW[mask_HW.astype(bool)] = segment["class_index"]
        found[row["image_id"]] = labels_HW
    return found


def check_maps(found: Maps, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for image_id, (_, labels_HW) in expected.items():
        np.testing.assert_array_equal(found[image_id], labels_HW)


def test_pandas_reads_a_version(dataset: str, expected: Any) -> None:
    frame = pd.concat([pd.read_parquet(path, partitioning=None) for path in files_of(dataset)])
    labelled = frame[frame["status"] == "labelled"]
    check_maps(decoded(labelled.to_dict("records")), expected)


def test_duckdb_reads_a_version(dataset: str, expected: Any) -> None:
    rows = duckdb.execute(
        "select image_id, height, width, segments from read_parquet($files, hive_partitioning = "
        "false) where status = 'labelled'",
        {"files": files_of(dataset)},
    ).fetchall()
    names = ("image_id", "height", "width", "segments")
    check_maps(decoded(dict(zip(names, row, strict=True)) for row in rows), expected)


def test_datasets_reads_a_version(dataset: str, expected: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="no `datasets`")
    loaded = datasets.load_dataset(
        "parquet", data_files=files_of(dataset), cache_dir=str(tmp_path), split="train"
    )
    rows = loaded.filter(lambda row: row["status"] == "labelled")
    check_maps(decoded(rows), expected)
