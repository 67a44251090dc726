"""Cityscapes: the 19 classes that count in its benchmark (spec 5.1)."""

from pathlib import Path
from typing import Final

from pipeline.datasets.maps import decode_png
from pipeline.datasets.plan import (
    DatasetEntry,
    Pair,
    Plan,
    Request,
    check_apart,
    check_images,
    find_folder,
    pair_all,
)
from schemas.vocabulary import Vocabulary

# What `_labelIds.png` holds for each class.
CLASSES: Final = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip

_NUM_IDS: Final = 34
_IMAGES: Final = {"train": 2_975, "val": 500}
_IMAGE_END, _LABEL_END = "_leftImg8bit.png", "_gtFine_labelIds.png"
_IMAGE_ZIP, _LABEL_ZIP = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"


def _plan(request: Request) -> Plan:
    splits = {split: _pairs(request.source, split) for split in _IMAGES}
    check_images(splits, _IMAGES, request.partial)
    check_apart(splits)
    return Plan(
        vocabulary=Vocabulary.of(CLASSES.values()),
        index_of={value: index for index, value in enumerate(CLASSES)},
        ignored=frozenset(range(_NUM_IDS)) - CLASSES.keys(),
        splits=splits,
        decode=decode_png,
    )


def _pairs(source: Path, split: str) -> list[Pair]:
    """Pair the files of all cities by what their names begin with."""
    images = _files(source, f"leftImg8bit/{split}", _IMAGE_END, _IMAGE_ZIP)
    return pair_all(images, _files(source, f"gtFine/{split}", _LABEL_END, _LABEL_ZIP))


def _files(source: Path, folder: str, end: str, download: str) -> dict[str, Path]:
    home = find_folder(source, (f"cityscapes/{folder}", folder), download)
    return {path.name.removesuffix(end): path for path in home.glob(f"*/*{end}")}


CITYSCAPES = DatasetEntry(
    summary="19 classes of Cityscapes, fine annotations",
    downloads=(_IMAGE_ZIP, _LABEL_ZIP),
    plan=_plan,
    images=_IMAGES,
)
