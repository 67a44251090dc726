"""Data sets in the files of Hugging Face, Parquet and Arrow."""

from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.datasets.layout import read_dataset, read_split
from pipeline.truth import read_label_map
from schemas.errors import DatasetError
from tests import downloads
from tests.test_datasets import prepared

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(array, kind="PNG"):
    file = BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def table(*maps, mask="annotation"):
    photo = np.zeros((*downloads.SIZE, 3))
    return pa.table(
        {
            "image": pa.array([cell(photo, "JPEG") for _ in maps], IMAGE),
            mask: pa.array([cell(values_HW) for values_HW in maps], IMAGE),
            "scene": ["indoors"] * len(maps),
        }
    )


@pytest.fixture
def hub(tmp_path):
    """A Parquet data set with two row groups in one file, and the settings that prepare it."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    rows = table(downloads.fill(0, 1), downloads.fill(1, 2), downloads.fill(2, 0))
    pq.write_table(rows, folder / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table(downloads.fill(1)), folder / "train-00001-of-00002.parquet")
    pq.write_table(table(downloads.fill(2)), folder / "validation-00000-of-00001.parquet")
    (tmp_path / "classes.txt").write_text("sky\ncat\ntree\n")
    return {
        "root": tmp_path, "source": tmp_path / "hub", "vocabulary": tmp_path / "classes.txt",
    }  # fmt: skip


def maps_of(root, split):
    return {
        image.name: read_label_map(mask)[:, 0].tolist() for image, mask in read_split(root, split)
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_parquet_files_of_the_hub(hub, workers):
    root = prepared("huggingface", **hub, workers=workers)
    assert maps_of(root, "train") == {
        "train-00000000.jpg": [0, 0, 0, 1, 1, 1], "train-00000001.jpg": [1, 1, 1, 2, 2, 2],
        "train-00000002.jpg": [2, 2, 2, 0, 0, 0], "train-00000003.jpg": [1] * 6,
    }  # fmt: skip
    assert maps_of(root, "validation") == {"validation-00000000.jpg": [2] * 6}


def test_folders_of_save_to_disk(hub):
    for split, values_HW in (("train", downloads.fill(0, 2)), ("test", downloads.fill(1))):
        path = hub["root"] / "saved" / split / "data-00000-of-00001.arrow"
        path.parent.mkdir(parents=True)
        rows = table(values_HW)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
    root = prepared("huggingface", **(hub | {"source": hub["root"] / "saved"}))
    assert maps_of(root, "train") == {"train-00000000.jpg": [0, 0, 0, 2, 2, 2]}
    assert maps_of(root, "test") == {"test-00000000.jpg": [1] * 6}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train/part-0.parquet", "validation/part-0.parquet"], {"train": 1, "validation": 1}),
        (["train/2024/part-0.parquet", "train/2025/part-0.parquet"], {"train": 2}),
        (["scenes/train-0.parquet", "scenes/test-0.parquet"], {"train": 1, "test": 1}),
        (["minival-0.parquet", "data/maxival-0.parquet"], {"minival": 1, "maxival": 1}),
        (["minival/data-0.parquet"], {"minival": 1}),
        (["data-0.parquet"], {"hub": 1}),
        (["train/data-0.parquet", "train/cache-0f3.arrow"], {"train": 1}),
        (["a/train-0.parquet", "b/train-0.parquet"], "a and .*b would be one split 'train'"),
        (["a/part-0.parquet", "b/part-0.parquet"], "a and .*b would be one split 'part'"),
    ],
)
def test_splits_are_named_by_files_and_folders(tmp_path, files, expected):
    source = tmp_path / "hub"
    for name in files:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(downloads.fill(0)), path)
    (tmp_path / "classes.txt").write_text("sky\n")
    settings = {"root": tmp_path, "source": source, "vocabulary": tmp_path / "classes.txt"}
    if isinstance(expected, str):
        with pytest.raises(DatasetError, match=expected):
            prepared("huggingface", **settings)
        return
    root = prepared("huggingface", **settings)
    assert {split: len(maps_of(root, split)) for split in read_dataset(root).splits} == expected


def test_another_source_of_equal_names_is_not_taken_for_done(hub):
    prepared("huggingface", **hub)
    prepared("huggingface", **hub)  # done
    path = hub["source"] / "data" / "validation-00000-of-00001.parquet"
    pq.write_table(table(downloads.fill(1)), path)
    with pytest.raises(DatasetError, match="other settings or another download"):
        prepared("huggingface", **hub)


@pytest.mark.parametrize(
    ("name", "rows", "settings", "message"),
    [
        ("0.parquet", table(downloads.fill(0)), {}, "does not say its split"),
        ("train.parquet", table(), {}, "split 'train' of .* has no rows"),
        ("train.parquet", table(downloads.fill(0), mask="image2"), {"image_column": "photo"},
         "2 columns of images beside 'photo': image, image2"),
        ("train.parquet", table(downloads.fill(0)), {"mask_column": "scene"},
         "no column 'scene' of images; there are: image, annotation"),
        ("train.parquet", table(downloads.fill(9)), {}, r"row 0, column 'annotation'\): value 9"),
        ("train.parquet", table(downloads.fill(0)).set_column(
            0, "image", pa.array([{"bytes": None, "path": "a.jpg"}], IMAGE)), {},
         r"column 'image'\): the row holds no bytes"),
    ],
    ids=["no split", "no rows", "which mask", "no images", "unknown value", "a path alone"],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(hub, name, rows, settings, message):
    source = hub["root"] / "wrong" / "data"
    source.mkdir(parents=True)
    pq.write_table(rows, source / name)
    with pytest.raises(DatasetError, match=message):
        prepared("huggingface", **(hub | settings | {"source": source.parent}))


def test_a_broken_table_is_named(hub):
    (hub["source"] / "data" / "train-00000-of-00002.parquet").write_bytes(b"PAR1PAR1")
    with pytest.raises(DatasetError, match=r"cannot read .*train-00000-of-00002.parquet: "):
        prepared("huggingface", **hub)
