"""Tiny data sets laid out as the official downloads unpack: made-up pixels, real names."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from pipeline.datasets.pascal_context import IDS_59, NAMES_59

SIZE = (6, 8)  # height, width


def fill(*values):
    """Return a map (6, 8) of horizontal bands of equal height, one per value."""
    return np.repeat(np.array(values), SIZE[0] // len(values))[:, None].repeat(SIZE[1], axis=1)


def save_photo(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_map(path, values_HW, depth=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values_HW.astype(depth)).save(path)


def save_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def coco_stuff(root: Path, labels="stuffthingmaps"):
    """Map values are ids - 1: 20 cow (unseen), 0 person, 181 wood, 255 void."""
    maps = {
        "train": {"000000000009": fill(0, 20, 255), "000000000025": fill(20, 20, 255)},
        "val": {"000000000139": fill(181, 12, 0)},
    }
    for split, of_images in maps.items():
        for name, values_HW in of_images.items():
            save_photo(root / "coco" / f"{split}2017" / f"{name}.jpg")
            save_map(root / "coco" / labels / f"{split}2017" / f"{name}.png", values_HW)


def voc_2012(root: Path, with_list=True):
    """Map values: 0 background, 1 aeroplane, 16 pottedplant (unseen), 255 void."""
    home = root / "VOCdevkit" / "VOC2012"
    maps = {
        "2007_000032": fill(0, 1, 255),
        "2008_000002": fill(20, 15, 0),  # in the augmented maps alone
        "2009_000003": fill(16, 0, 255),
        "2007_000033": fill(0, 1, 19),  # of validation
    }
    for name, values_HW in maps.items():
        save_photo(home / "JPEGImages" / f"{name}.jpg")
        save_map(home / "SegmentationClassAug" / f"{name}.png", values_HW)
    save_photo(home / "JPEGImages" / "2010_unlabelled.jpg")
    lists = home / "ImageSets" / "Segmentation"
    save_lines(lists / "val.txt", ["2007_000033"])
    if with_list:
        names = ("2007_000032", "2008_000002", "2009_000003")
        lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
        save_lines(lists / "trainaug.txt", lines)


def pascal_context(root: Path):
    """Ids: 2 aeroplane, 397 table, 458 wood; 1 and 459 are outside of the 59."""
    home = root / "VOCdevkit" / "VOC2010"
    maps = {"2008_000008": fill(2, 397, 0), "2008_000009": fill(458, 459, 1)}
    for name, values_HW in maps.items():
        save_photo(home / "JPEGImages" / f"{name}.jpg")
        (home / "trainval").mkdir(exist_ok=True)
        savemat(home / "trainval" / f"{name}.mat", {"LabelMap": values_HW.astype(np.uint16)})
    save_photo(home / "JPEGImages" / "2008_unlabelled.jpg")
    save_lines(home / "ImageSets" / "Main" / "train.txt", ["2008_000008"])
    save_lines(home / "ImageSets" / "Main" / "val.txt", ["2008_000009"])
    save_lines(home / "labels.txt", [f"{id_}: {name}" for id_, name in context_names().items()])


def context_names():
    names = {id_: f"thing {id_}" for id_ in range(1, 460)}
    names |= dict(zip(IDS_59, NAMES_59, strict=True))
    return names | {397: "table"}


def ade20k(root: Path):
    """Map values: 0 other, 1 wall, 150 flag."""
    maps = {
        ("training", "ADE_train_00000001"): fill(0, 1, 150),
        ("validation", "ADE_val_00000001"): fill(2, 2, 3),
    }
    for (folder, name), values_HW in maps.items():
        home = root / "ADEChallengeData2016"
        save_photo(home / "images" / folder / f"{name}.jpg")
        save_map(home / "annotations" / folder / f"{name}.png", values_HW)


ADE_OBJECTS = ["zebra", "wall", "door", "wall", *(f"object {id_}" for id_ in range(5, 301)), "sky"]


def ade20k_full(root: Path):
    """Ids are positions + 1: zebra in training alone, door a part in validation, wall twice."""
    home = root / "ADE20K_2021_17_01"
    images = [
        ("training", "ADE_train_00000001", (1, 2, 301)),
        ("training", "ADE_frame_00000002", (3, 4, 4)),
        ("validation", "ADE_val_00000001", (2, 4, 301)),
    ]
    present_KN = np.zeros((len(ADE_OBJECTS), len(images)), np.uint8)
    for column, (folder, name, ids) in enumerate(images):
        scene = home / "images" / "ADE" / folder / "urban" / "street"
        save_photo(scene / f"{name}.jpg")
        values_HW = fill(*ids)
        pixels_HW3 = np.stack([values_HW // 256 * 10, values_HW % 256, values_HW * 0], axis=-1)
        save_map(scene / f"{name}_seg.png", pixels_HW3)
        present_KN[np.array(ids) - 1, column] = 1
    present_KN[2, 2] = 1
    parts_KN = np.zeros_like(present_KN)
    parts_KN[2, 2] = 1
    index = {
        "objectnames": ADE_OBJECTS,
        "objectPresence": present_KN,
        "objectIsPart": parts_KN,
        "folder": [f"{home.name}/images/ADE/{folder}/urban/street" for folder, _, _ in images],
        "filename": [f"{name}.jpg" for _, name, _ in images],
    }
    (home / "index_ade20k.pkl").write_bytes(pickle.dumps(index))


def cityscapes(root: Path):
    """Map values: 7 road, 33 bicycle, 4 static (ignored)."""
    maps = {
        ("train", "aachen", "aachen_000000_000019"): fill(7, 33, 4),
        ("val", "lindau", "lindau_000000_000019"): fill(4, 26, 26),
    }
    for (split, city, name), values_HW in maps.items():
        save_photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        folder = root / "gtFine" / split / city
        save_map(folder / f"{name}_gtFine_labelIds.png", values_HW)
        save_map(folder / f"{name}_gtFine_instanceIds.png", values_HW * 1000, np.uint16)


def folder(root: Path):
    """Three classes 0 to 2, 255 ignored; one image lies deeper, one is all ignored."""
    maps = {
        "train/a": fill(0, 1, 255), "train/deep/b": fill(2, 2, 1), "train/c": fill(255, 255, 255),
        "val/a": fill(1, 1, 1),
    }  # fmt: skip
    for name, values_HW in maps.items():
        save_photo(root / "images" / f"{name}.jpg")
        save_map(root / "masks" / f"{name}.png", values_HW)
    (root / "classes.txt").write_text("sky\ncat\ntree\n")
