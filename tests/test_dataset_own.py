"""Data sets of one's own, as a folder of images and masks."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.datasets.layout import read_dataset, read_split, read_split_vocabulary
from pipeline.truth import Truths, read_label_map
from schemas.errors import DatasetError, VocabularyError
from tests import downloads
from tests.test_datasets import bands, prepared


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


def test_more_than_255_classes_count_all_values_and_have_their_own_ignored_one(tmp_path):
    values = (0, 254, 255, 256, 299, 65535)
    (tmp_path / "classes.txt").write_text("".join(f"class {n}\n" for n in range(300)))
    for number in range(2):
        map_HW = downloads.fill(*values[3 * number :][:3])
        downloads.save_photo(tmp_path / "images" / f"{number}.jpg")
        downloads.save_map(tmp_path / "masks" / f"{number}.png", map_HW, np.uint16)
    root = prepared("folder", tmp_path, vocabulary=tmp_path / "classes.txt")
    assert bands(root, "train") == {"0": [0, 254, 255], "1": [256, 299, 65535]}


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
