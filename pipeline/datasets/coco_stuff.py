"""COCO-Stuff 164k: 80 things and 91 stuffs, 156 of them seen and 15 unseen (spec 5.1)."""

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
    files,
    find_folder,
    flagged,
    pair_all,
)

THINGS: Final = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
    "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
    "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket",
    "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
    "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
STUFFS: Final = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds",
    "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence",
    "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog",
    "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill",
    "house", "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud",
    "napkin", "net", "paper", "pavement", "pillow", "plant-other", "plastic", "platform",
    "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad",
    "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone",
    "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
NAMES: Final = THINGS + STUFFS
UNSEEN: Final = (
    "cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors", "cardboard",
    "clouds", "grass", "playingfield", "river", "road", "tree", "wall-concrete",
)  # fmt: skip

# Of the 182 ids these were given up before the annotation; a map holds id - 1.
_UNUSED_IDS: Final = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_IDS: Final = tuple(id_ for id_ in range(1, 183) if id_ not in _UNUSED_IDS)
INDEX_OF: Final = {id_ - 1: index for index, id_ in enumerate(_IDS)}
_VOID: Final = 255

_IMAGES: Final = {"train": 118_287, "val": 5_000}
_LABELS: Final = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations", ".")


def _plan(request: Request) -> Plan:
    splits = {split: _pairs(request.source, split) for split in _IMAGES}
    check_images(splits, _IMAGES, request.partial)
    check_apart(splits)
    return Plan(
        vocabulary=flagged(NAMES, UNSEEN),
        index_of=INDEX_OF,
        ignored=frozenset({_VOID}),
        splits=splits,
        decode=decode_png,
    )


def _pairs(source: Path, split: str) -> list[Pair]:
    homes = ("coco", ".", "coco/images", "images")
    images = files(
        find_folder(source, [f"{home}/{split}2017" for home in homes], f"{split}2017.zip"), ".jpg"
    )
    return pair_all(images, files(_labels_folder(source, split), ".png"))


def _labels_folder(source: Path, split: str) -> Path:
    """Return the folder of maps; the archive names it like that of the images."""
    candidates = [f"{home}/{label}/{split}2017" for home in ("coco", ".") for label in _LABELS]
    found = [name for name in candidates if any((source / name).glob("*.png"))]
    return find_folder(
        source, found or [f"coco/stuffthingmaps/{split}2017"], "stuffthingmaps_trainval2017.zip"
    )


COCO_STUFF = DatasetEntry(
    summary="171 classes, 156 seen and 15 unseen",
    downloads=("train2017.zip", "val2017.zip", "stuffthingmaps_trainval2017.zip"),
    plan=_plan,
    images=_IMAGES,
)
