"""Data sets of one's own, a folder or Hugging Face files, up to training and evaluation."""

import json
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.evaluate import evaluate
from pipeline.dataset import publish
from pipeline.datasets.layout import read_dataset, read_split, read_split_vocabulary
from pipeline.metrics import BoundaryCounts, Confusion, truth_ignore
from pipeline.parts import write_images
from pipeline.segments import encode_segments
from pipeline.truth import Truths, read_label_map
from schemas.annotation import ANNOTATED, LABELLED, image_id
from schemas.config import EvaluateConfig
from schemas.errors import DatasetError, VocabularyError
from schemas.manifest import Counts
from tests import downloads
from tests.test_datasets import bands, prepared
from tests.test_manifest import MANIFEST

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def own(tmp_path):
    """A folder data set and the settings that prepare it."""
    downloads.folder(tmp_path)
    return {"root": tmp_path, "vocabulary": tmp_path / "classes.txt"}


def test_a_folder(own):
    root = prepared("folder", **own)
    assert bands(root, "train") == {"a": [0, 1, 255], "b": [2, 2, 1]}
    assert bands(root, "val") == {"a": [1, 1, 1]}
    assert {str(mask.relative_to(root)) for _, mask in read_split(root, "train")} == {
        "masks/train/a.png", "masks/train/deep/b.png",
    }  # fmt: skip
    (line,) = (root / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "c" and "every pixel is ignored" in line


def test_masks_may_hold_other_values_than_indices(own):
    settings = {"label_values": (2, 0, 1), "ignore_values": (255, 7)}
    assert bands(prepared("folder", **own, **settings), "train")["a"] == [1, 2, 255]


def test_values_count_from_the_first_that_is_not_ignored(own):
    own["vocabulary"].write_text("cat\ntree\n")
    root = prepared("folder", **own, ignore_values=(0, 255))
    assert bands(root, "train") == {"a": [255, 0, 255], "b": [1, 1, 0]}


def test_flags_of_a_vocabulary_make_maps_of_the_seen_classes(own):
    own["vocabulary"].write_text("sky [unseen]\ncat [seen]\ntree [seen]\n")
    root = prepared("folder", **own)
    assert bands(root, "train_base") == {"a": [255, 0, 255], "b": [1, 1, 0]}
    assert read_split_vocabulary(root, "train_base").names == ("cat", "tree")


def test_images_without_splits_are_for_training(tmp_path):
    downloads.save_photo(tmp_path / "images" / "a.JPG")
    downloads.save_map(tmp_path / "masks" / "a.png", downloads.fill(0, 0))
    (tmp_path / "classes.txt").write_text("sky\n")
    root = prepared("folder", tmp_path, vocabulary=tmp_path / "classes.txt")
    assert list(read_dataset(root).splits) == ["train"]
    assert bands(root, "train") == {"a": [0, 0, 0]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary": None}, "give the --vocabulary"),
        ({"label_values": (0, 1)}, r"--label-values has 2 values, .* has 3 classes"),
        ({"label_values": (0, 1, 1)}, "--label-values has a value twice"),
        ({"label_values": (0, 1, 255)}, "value 255 is in --label-values and in --ignore-values"),
        ({"label_values": (0, 1, -1)}, "masks hold values from 0 to 65535, not -1"),
        ({"label_values": (0, 1, 3)}, r"b.png: value 2 is neither one of the 3 classes nor"),
        ({"ignore_values": ()}, r"a.png: value 255 is neither"),
    ],
)
def test_settings_of_a_folder_are_checked(own, settings, message):
    with pytest.raises(DatasetError, match=message):
        prepared("folder", **(own | settings))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda root: downloads.save_photo(root / "images" / "b.jpg"), "beside folders of splits"),
        (lambda root: downloads.save_photo(root / "images/val/a.png"), "two images of one name"),
        (lambda root: (root / "images" / "empty").mkdir(), "images/empty has no images"),
        (
            lambda root: [
                downloads.save_photo(root / "images" / "train_base" / "a.jpg"),
                downloads.save_map(root / "masks/train_base/a.png", downloads.fill(1)),
                (root / "classes.txt").write_text("sky [unseen]\ncat [seen]\ntree [seen]\n"),
            ],
            "split 'train_base' has the name of maps that are made here",
        ),
    ],
)
def test_the_layout_of_a_folder_is_checked(own, add, message):
    add(own["root"])
    with pytest.raises(DatasetError, match=message):
        prepared("folder", **own)


def test_a_vocabulary_with_a_repeated_name_is_refused(own):
    own["vocabulary"].write_text("sky\nsky\ntree\n")
    with pytest.raises(VocabularyError, match="line 2"):
        prepared("folder", **own)


def test_an_image_turned_by_its_exif_must_fit_its_mask_as_it_is_seen(own):
    photo = own["root"] / "images" / "val" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).save(photo, exif=exif)
    with pytest.raises(DatasetError, match=r"a.png is 6x8, the image 8x6 .*orientation 6"):
        prepared("folder", **own)


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


def publish_truth(root, split, output):
    """Publish labels that are the truth of a split itself, but for one pixel of its first image."""
    vocabulary = read_split_vocabulary(root, split)
    rows = []
    for image, mask in read_split(root, split):
        map_HW = read_label_map(mask)
        map_HW = np.where(map_HW == truth_ignore(len(vocabulary)), 0, map_HW).astype(np.int32)
        map_HW[0, 0] = (map_HW[0, 0] + (not rows)) % len(vocabulary)
        height, width = map_HW.shape
        scores_HW = np.full(map_HW.shape, 0.5, np.float32)
        rows.append({
            "image_id": image_id(image.name), "uri": image.as_uri(), "fingerprint": "f",
            "run_id": "run", "n_proposals": 3, "height": height, "width": width,
            "segments": encode_segments(map_HW, scores_HW, vocabulary.names, 0.0),
            "status": LABELLED,
        })  # fmt: skip
    part = write_images(output, "run", pa.Table.from_pylist(rows, schema=ANNOTATED))
    counts = Counts(inventory=len(rows), labelled=len(rows), quarantined=0, reasons={})
    changes = {"images": (part,), "vocabulary": vocabulary, "counts": counts, "version": 1}
    publish(output, MANIFEST.model_copy(update=changes))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("coco-stuff", downloads.coco_stuff),
        ("pascal-context-459", downloads.pascal_context),
        ("cityscapes", downloads.cityscapes),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_maps_of_a_split_are_the_truth_of_an_evaluation(tmp_path, name, make, split):
    make(tmp_path)
    root = prepared(name, tmp_path)
    output = str(tmp_path / "labels")
    publish_truth(root, split, output)
    facts = read_dataset(root).splits[split]
    found = evaluate(EvaluateConfig(dataset=output, truth=str(root / "masks" / split)))
    assert (found.images, found.without_truth) == (facts.count, 0)
    counted = sum(facts.class_pixels)
    first = read_label_map(next(read_split(root, split)).mask)[0, 0]
    wrong = int(first != truth_ignore(len(read_split_vocabulary(root, split))))
    assert found.pixel_accuracy == pytest.approx(1 - wrong / counted)


def test_65535_is_ignored_where_255_is_a_class():
    truth_HW = np.array([[255, 65535], [0, 255]])
    predicted_HW = np.array([[255, 255], [0, 0]])
    confusion = Confusion.of(predicted_HW, truth_HW, 256)
    assert confusion.truth.sum() == 3 and confusion.hits.sum() == 2
    assert BoundaryCounts.of(predicted_HW, truth_HW, 256).truth.sum() == 3
    assert (truth_ignore(255), truth_ignore(256)) == (255, 65535)
    with pytest.raises(ValueError, match="there are 255 classes"):
        Confusion.of(predicted_HW, truth_HW, 255)


def test_camvid_as_a_folder(shared, tmp_path):
    names = [
        "sky", "building", "pole", "road", "pavement", "tree",
        "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
    ]  # fmt: skip
    (tmp_path / "classes.txt").write_text("\n".join(names))
    settings = {"vocabulary": tmp_path / "classes.txt", "source": shared / "camvid"}
    root = prepared("folder", tmp_path, **settings, ignore_values=(11,), workers=2)
    facts = read_dataset(root).splits
    assert {split: one.count for split, one in facts.items()} == {"train": 367, "val": 101}
    assert facts["val"].class_pixels[names.index("road")] > 10**6
    for one in facts.values():
        pixels = sum(one.class_pixels) + one.ignored_pixels
        assert pixels == one.count * 480 * 360
    masks = Truths.find(str(root / "masks" / "val"))
    assert all(masks.of(str(image)) == mask for image, mask in read_split(root, "val"))


def test_coco128_as_a_folder_with_ids_of_its_own(shared, tmp_path):
    source = shared / "coco128"
    classes = yaml.safe_load((source / "classes.yaml").read_text())["classes"]
    ids = sorted(id_ for id_ in classes if id_)
    (tmp_path / "classes.txt").write_text("\n".join(classes[id_] for id_ in ids))
    settings = {"vocabulary": tmp_path / "classes.txt", "source": source, "ignore_values": (0,)}
    root = prepared("folder", tmp_path, **settings, label_values=tuple(ids))
    ((_, mask), *_) = read_split(root, "val2017")
    original = read_label_map(source / "masks" / "val2017" / mask.name)
    index_of = {id_: index for index, id_ in enumerate(ids)} | {0: 255}
    assert read_label_map(mask).tolist() == [
        [index_of[id_] for id_ in row] for row in original.tolist()
    ]
    assert sum(one.count + one.skipped for one in read_dataset(root).splits.values()) == 200
