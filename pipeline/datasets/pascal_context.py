"""Pascal Context on the images of VOC 2010: 459 classes, and the 59 most frequent (spec 5.1)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.datasets.maps import decode_mat
from pipeline.datasets.plan import (
    DatasetEntry,
    Pair,
    Plan,
    Request,
    check_apart,
    check_images,
    files,
    find_folder,
    number_names,
    pair_listed,
    read_lines,
)
from schemas.errors import DatasetError
from schemas.vocabulary import Vocabulary

# Ids of the 59 classes among the 459, ascending, and their names in this order: alphabetical, but
# that the data set calls diningtable "table".
IDS_59: Final = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
NAMES_59: Final = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform",
    "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa",
    "diningtable", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window",
    "wood",
)  # fmt: skip

_ALSO_CALLED: Final = {"table": "diningtable"}
_NUM_CLASSES: Final = 459
_UNLABELLED: Final = 0
_IMAGES: Final = {"train": 4_998, "val": 5_105}
_HOMES: Final = ("VOCdevkit/VOC2010", "VOC2010")
_VOC, _CONTEXT, _LABELS = "VOCtrainval_03-May-2010.tar", "trainval.tar.gz", "labels.txt"
_LINE: Final = re.compile(r"(\d+)\s*:\s*(\S.*)")


def _plan_59(request: Request) -> Plan:
    """Plan the 59 classes; all other pixels are ignored."""
    maps = _maps_folder(request)
    if listed := _labels_file(request, maps):
        _compare(_read_names(listed), listed)
    index_of = {id_: index for index, id_ in enumerate(IDS_59)}
    others = frozenset(range(_NUM_CLASSES + 1)) - index_of.keys()
    splits = _splits(request, maps)
    return Plan(Vocabulary.of(NAMES_59), index_of, others, splits, decode_mat)


def _plan_459(request: Request) -> Plan:
    """Plan all classes, whose names are read from the download."""
    maps = _maps_folder(request)
    listed = _labels_file(request, maps)
    if listed is None:
        raise DatasetError(
            f"{maps.parent} has no {_LABELS}, the names of the {_NUM_CLASSES} classes; put there "
            "the one of the data set's page"
        )
    names, index_of = number_names(_read_names(listed))
    splits = _splits(request, maps)
    return Plan(Vocabulary.of(names), index_of, frozenset({_UNLABELLED}), splits, decode_mat)


def _maps_folder(request: Request) -> Path:
    homes = (*_HOMES, "pascal-context", ".")
    return find_folder(request.source, [f"{home}/trainval" for home in homes], _CONTEXT)


def _labels_file(request: Request, maps: Path) -> Path | None:
    candidates = (maps / _LABELS, maps.parent / _LABELS, request.source / _LABELS)
    return next((path for path in candidates if path.is_file()), None)


def _read_names(path: Path) -> dict[int, str]:
    """Read lines of `id: name`; refuses a list that is not of ids 1 to 459."""
    names: dict[int, str] = {}
    for line in read_lines(path):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DatasetError(f"{path} has the line {line!r}, not `id: name`")
        names[int(match[1])] = match[2]
    if sorted(names) != list(range(1, _NUM_CLASSES + 1)):
        raise DatasetError(f"{path} names {len(names)} classes, not ids 1 to {_NUM_CLASSES}")
    return names


def _compare(names: Mapping[int, str], path: Path) -> None:
    for id_, name in zip(IDS_59, NAMES_59, strict=True):
        if _ALSO_CALLED.get(names[id_], names[id_]) != name:
            raise DatasetError(f"{path} calls class {id_} {names[id_]!r}, officially {name!r}")


def _splits(request: Request, maps: Path) -> dict[str, list[Pair]]:
    """Pair by the lists of VOC 2010: Context has a map for every image in them."""
    voc = find_folder(request.source, _HOMES, _VOC)
    images = files(find_folder(voc, ("JPEGImages",), _VOC), ".jpg")
    labels = files(maps, ".mat")
    splits: dict[str, list[Pair]] = {}
    for split in _IMAGES:
        listed = voc / "ImageSets" / "Main" / f"{split}.txt"
        splits[split] = pair_listed(read_lines(listed), images, labels, listed)
    check_images(splits, _IMAGES, request.partial)
    check_apart(splits)
    return splits


PASCAL_CONTEXT_59 = DatasetEntry(
    summary="the 59 most frequent classes of Pascal Context",
    downloads=(_VOC, _CONTEXT),
    plan=_plan_59,
    images=_IMAGES,
)
PASCAL_CONTEXT_459 = DatasetEntry(
    summary="all 459 classes of Pascal Context, named by its labels.txt",
    downloads=(_VOC, _CONTEXT, _LABELS),
    plan=_plan_459,
    images=_IMAGES,
)
