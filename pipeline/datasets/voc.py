"""Pascal VOC 2012 with the augmented training maps: 15 classes seen and 5 unseen (spec 5.1).

Background is no class: it is ignored like the void between objects.
"""

from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.datasets.maps import decode_png
from pipeline.datasets.plan import (
    DatasetEntry,
    Plan,
    Request,
    check_apart,
    check_images,
    files,
    find_folder,
    flagged,
    pair_listed,
    read_lines,
)
from schemas.errors import DatasetError

NAMES: Final = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
UNSEEN: Final = ("pottedplant", "sheep", "sofa", "train", "tvmonitor")

_BACKGROUND, _VOID = 0, 255
_IMAGES: Final = {"train": 10_582, "val": 1_449}
_DOWNLOAD: Final = "VOCtrainval_11-May-2012.tar"
_AUGMENTED: Final = "SegmentationClassAug"


def _plan(request: Request) -> Plan:
    home = find_folder(request.source, ("VOCdevkit/VOC2012", "VOC2012"), _DOWNLOAD)
    images = files(find_folder(home, ("JPEGImages",), _DOWNLOAD), ".jpg")
    augmented = files(find_folder(home, (_AUGMENTED,), f"{_AUGMENTED}.zip"), ".png")
    val_list = home / "ImageSets" / "Segmentation" / "val.txt"
    train_list = val_list.with_name("trainaug.txt")
    val_names = _names(val_list)
    if train_list.exists():
        train_names = _names(train_list)
    else:  # it is no part of the official archive: all maps that are not for validation
        train_list = home / _AUGMENTED
        train_names = sorted(augmented.keys() - set(val_names))
    plain = home / "SegmentationClass"
    val_labels = augmented | (files(plain, ".png") if plain.is_dir() else {})
    splits = {
        "train": pair_listed(train_names, images, augmented, train_list),
        "val": pair_listed(val_names, images, val_labels, val_list),
    }
    check_images(splits, _IMAGES, request.partial)
    check_apart(splits)
    return Plan(
        vocabulary=flagged(NAMES, UNSEEN),
        index_of={value: value - 1 for value in range(1, len(NAMES) + 1)},
        ignored=frozenset({_BACKGROUND, _VOID}),
        splits=splits,
        decode=decode_png,
    )


def _names(path: Path) -> list[str]:
    """Read a list of names; the ones that go around name an image file and a map on each line."""
    names = [PurePosixPath(line.split()[0]).stem for line in read_lines(path)]
    if not names:
        raise DatasetError(f"{path} lists no images")
    return names


VOC_2012 = DatasetEntry(
    summary="20 classes, 15 seen and 5 unseen; background is ignored",
    downloads=(_DOWNLOAD, f"{_AUGMENTED}.zip"),
    plan=_plan,
    images=_IMAGES,
)
