"""Every official layout, tiny, through `segmill datasets prepare`."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs.datasets import prepare
from pipeline.datasets import DATASETS
from pipeline.datasets.layout import read_dataset, read_split, read_split_vocabulary
from pipeline.truth import read_label_map
from schemas.datasets_config import DatasetsPrepareConfig
from schemas.errors import DatasetError
from schemas.vocabulary import read_vocabulary
from tests import downloads


def prepared(name, root, **settings):
    """Prepare a tiny download of `root`, in this process; return where it is."""
    settings = {"partial": bool(DATASETS[name]().images), "workers": 1, **settings}
    return prepare(DatasetsPrepareConfig(name=name, root=root, **settings)).output


def bands(root, split):
    """Return the class index of every band of every map of a split."""
    size = downloads.SIZE
    found = {}
    for image, mask in read_split(root, split):
        with Image.open(image) as file:
            assert file.size == size[::-1]
        map_HW = read_label_map(mask)
        assert map_HW.shape == size and (map_HW == map_HW[:, :1]).all()
        found[image.stem] = map_HW[::2, 0].tolist()
    return found


def test_coco_stuff(tmp_path):
    downloads.coco_stuff(tmp_path)
    root = prepared("coco-stuff", tmp_path)
    assert root == tmp_path / "coco-stuff"
    assert bands(root, "train") == {"000000000009": [0, 19, 255], "000000000025": [19, 19, 255]}
    assert bands(root, "val") == {"000000000139": [170, 11, 0]}
    # Cow is unseen: the second image is left out. Wood is the last of 156.
    assert bands(root, "train_base") == {"000000000009": [0, 255, 255]}
    assert bands(root, "val_base") == {"000000000139": [155, 11, 0]}
    assert sum(read_vocabulary(root / "vocabulary.yaml").seen) == 156
    assert read_split_vocabulary(root, "train_base").names[155] == "wood"
    assert len(read_split_vocabulary(root, "train_base")) == 156


def test_what_is_left_out_is_recorded(tmp_path):
    downloads.coco_stuff(tmp_path)
    root = prepared("coco-stuff", tmp_path)
    (line,) = (root / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "split": "train_base", "name": "000000000025", "is_bad": False,
        "reason": "every pixel is ignored or of an unseen class",
    }  # fmt: skip
    facts = read_dataset(root).splits
    assert (facts["train"].count, facts["train"].skipped) == (2, 0)
    assert (facts["train_base"].count, facts["train_base"].skipped) == (1, 1)


def test_a_split_has_the_histogram_of_its_classes(tmp_path):
    downloads.coco_stuff(tmp_path)
    facts = read_dataset(prepared("coco-stuff", tmp_path)).splits
    train, base = facts["train"], facts["train_base"]
    assert (train.class_pixels[0], train.class_pixels[19], train.ignored_pixels) == (16, 48, 32)
    assert (train.class_images[0], train.class_images[19]) == (1, 2)
    assert sum(train.class_pixels) == 64
    assert (base.class_pixels[0], sum(base.class_pixels), base.ignored_pixels) == (16, 16, 32)


@pytest.mark.parametrize("labels", [".", "stuffthingmaps_trainval2017", "annotations"])
def test_maps_of_coco_may_be_unpacked_beside_its_images(tmp_path, labels):
    downloads.coco_stuff(tmp_path, labels)
    assert list(bands(prepared("coco-stuff", tmp_path), "val")) == ["000000000139"]


@pytest.mark.parametrize("with_list", [True, False], ids=["trainaug.txt", "no list"])
def test_voc_2012(tmp_path, with_list):
    downloads.voc_2012(tmp_path, with_list)
    root = prepared("voc-2012", tmp_path)
    train = {"2007_000032": [255, 0, 255], "2008_000002": [19, 14, 255]}
    assert bands(root, "train") == train | {"2009_000003": [15, 255, 255]}
    assert bands(root, "val") == {"2007_000033": [255, 0, 18]}
    assert bands(root, "train_base") == train | {"2008_000002": [255, 14, 255]}
    assert len(read_split_vocabulary(root, "val_base")) == 15


def test_plain_maps_of_voc_serve_for_validation(tmp_path):
    downloads.voc_2012(tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    plain = home / "SegmentationClass"
    plain.mkdir()
    (home / "SegmentationClassAug" / "2007_000033.png").rename(plain / "2007_000033.png")
    with Image.open(plain / "2007_000033.png") as file:
        palette = file.convert("P")  # as the official ones are
        palette.putdata(downloads.fill(0, 1, 19).ravel().tolist())
        palette.save(plain / "2007_000033.png")
    assert bands(prepared("voc-2012", tmp_path), "val") == {"2007_000033": [255, 0, 18]}


def test_pascal_context_59(tmp_path):
    downloads.pascal_context(tmp_path)
    root = prepared("pascal-context-59", tmp_path)
    assert bands(root, "train") == {"2008_000008": [0, 49, 255]}
    assert bands(root, "val") == {"2008_000009": [58, 255, 255]}
    assert read_vocabulary(root / "vocabulary.yaml").names[49] == "diningtable"
    assert list(read_dataset(root).splits) == ["train", "val"]  # no class is unseen


def test_pascal_context_459_takes_its_names_from_the_download(tmp_path):
    downloads.pascal_context(tmp_path)
    root = prepared("pascal-context-459", tmp_path)
    assert bands(root, "train") == {"2008_000008": [1, 396, 65535]}
    assert bands(root, "val") == {"2008_000009": [457, 458, 0]}
    names = read_vocabulary(root / "vocabulary.yaml").names
    assert len(names) == 459 and (names[0], names[396]) == ("thing 1", "table")


def test_ade20k_150(tmp_path):
    downloads.ade20k(tmp_path)
    root = prepared("ade20k-150", tmp_path)
    assert bands(root, "train") == {"ADE_train_00000001": [255, 0, 149]}
    assert bands(root, "val") == {"ADE_val_00000001": [1, 1, 2]}


def test_ade20k_847_keeps_what_both_splits_show_as_a_whole(tmp_path):
    downloads.ade20k_full(tmp_path)
    root = prepared("ade20k-847", tmp_path)
    assert read_vocabulary(root / "vocabulary.yaml").names == ("wall", "sky")
    assert bands(root, "train") == {
        "ADE_train_00000001": [255, 0, 1], "ADE_frame_00000002": [255, 0, 0],
    }  # fmt: skip
    assert bands(root, "val") == {"ADE_val_00000001": [0, 0, 1]}


def test_ade20k_847_takes_a_vocabulary_in_its_order(tmp_path):
    downloads.ade20k_full(tmp_path)
    (tmp_path / "names.txt").write_text("sky\nzebra\n")
    root = prepared("ade20k-847", tmp_path, vocabulary=tmp_path / "names.txt")
    assert bands(root, "train") == {"ADE_train_00000001": [1, 255, 0]}
    (tmp_path / "names.txt").write_text("sky\nunicorn\n")
    with pytest.raises(DatasetError, match="'unicorn', which is no object of ADE20K's index"):
        prepared("ade20k-847", tmp_path, vocabulary=tmp_path / "names.txt")


def test_cityscapes(tmp_path):
    downloads.cityscapes(tmp_path)
    root = prepared("cityscapes", tmp_path)
    assert bands(root, "train") == {"aachen_000000_000019": [0, 18, 255]}
    assert bands(root, "val") == {"lindau_000000_000019": [255, 13, 13]}


def test_official_downloads_are_only_taken_whole(tmp_path):
    """The tiny ones have a handful of images: each is refused with the official number."""
    makers = {
        "coco-stuff": downloads.coco_stuff, "voc-2012": downloads.voc_2012,
        "pascal-context-59": downloads.pascal_context, "ade20k-150": downloads.ade20k,
        "pascal-context-459": downloads.pascal_context, "cityscapes": downloads.cityscapes,
    }  # fmt: skip
    for name, make in makers.items():
        make(tmp_path / name)
        official = DATASETS[name]().images["train"]
        with pytest.raises(DatasetError, match=rf"'train' has \d images, officially {official}"):
            prepared(name, tmp_path / name, partial=False)
        assert not (tmp_path / name / name).exists()


def test_ade20k_847_has_847_classes_in_the_official_download(tmp_path):
    downloads.ade20k_full(tmp_path)
    with pytest.raises(DatasetError, match=r"has 2 classes .* officially 847"):
        prepared("ade20k-847", tmp_path, partial=False)


def test_maps_of_few_classes_have_eight_bits_and_of_many_sixteen(tmp_path):
    downloads.pascal_context(tmp_path)
    for name, kind in (("pascal-context-59", np.uint8), ("pascal-context-459", np.uint16)):
        for _, mask in read_split(prepared(name, tmp_path), "train"):
            with Image.open(mask) as file:
                assert np.asarray(file).dtype == kind
