"""ADE20K as the scene parsing challenge has it: 150 classes (spec 5.1)."""

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
    pair_all,
)
from schemas.vocabulary import Vocabulary

NAMES: Final = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road, route", "bed", "window", "grass",
    "cabinet", "sidewalk, pavement", "person", "earth, ground", "door", "table", "mountain, mount",
    "plant", "curtain", "chair", "car", "water", "painting, picture", "sofa", "shelf", "house",
    "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock, stone",
    "wardrobe, closet, press", "lamp", "tub", "rail", "cushion", "base, pedestal, stand", "box",
    "column, pillar", "signboard, sign", "chest of drawers, chest, bureau, dresser", "counter",
    "sand", "sink", "skyscraper", "fireplace", "refrigerator, icebox", "grandstand, covered stand",
    "path", "stairs", "runway", "case, display case, showcase, vitrine",
    "pool table, billiard table, snooker table", "pillow", "screen door, screen",
    "stairway, staircase", "river", "bridge, span", "bookcase", "blind, screen", "coffee table",
    "toilet, can, commode, crapper, pot, potty, stool, throne", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm, palm tree", "kitchen island", "computer", "swivel chair", "boat",
    "bar", "arcade machine", "hovel, hut, hutch, shack, shanty", "bus", "towel", "light", "truck",
    "tower", "chandelier", "awning, sunshade, sunblind", "street lamp", "booth", "tv", "plane",
    "dirt track", "clothes", "pole", "land, ground, soil",
    "bannister, banister, balustrade, balusters, handrail",
    "escalator, moving staircase, moving stairway", "ottoman, pouf, pouffe, puff, hassock",
    "bottle", "buffet, counter, sideboard", "poster, posting, placard, notice, bill, card", "stage",
    "van", "ship", "fountain", "conveyer belt, conveyor belt, conveyer, conveyor, transporter",
    "canopy", "washer, automatic washer, washing machine", "plaything, toy", "pool", "stool",
    "barrel, cask", "basket, handbasket", "falls", "tent", "bag", "minibike, motorbike", "cradle",
    "oven", "ball", "food, solid food", "step, stair", "tank, storage tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket, cover",
    "sculpture", "hood, exhaust hood", "sconce", "vase", "traffic light", "tray", "trash can",
    "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator",
    "glass, drinking glass", "clock", "flag",
)  # fmt: skip

_OTHER: Final = 0
_FOLDERS: Final = {"train": "training", "val": "validation"}
_IMAGES: Final = {"train": 20_210, "val": 2_000}
_HOME, _DOWNLOAD = "ADEChallengeData2016", "ADEChallengeData2016.zip"


def _plan(request: Request) -> Plan:
    home = find_folder(request.source, (_HOME,), _DOWNLOAD)
    splits: dict[str, list[Pair]] = {}
    for split, folder in _FOLDERS.items():
        images = files(find_folder(home, (f"images/{folder}",), _DOWNLOAD), ".jpg")
        labels = files(find_folder(home, (f"annotations/{folder}",), _DOWNLOAD), ".png")
        splits[split] = pair_all(images, labels)
    check_images(splits, _IMAGES, request.partial)
    check_apart(splits)
    return Plan(
        vocabulary=Vocabulary.of(NAMES),
        index_of={value: value - 1 for value in range(1, len(NAMES) + 1)},
        ignored=frozenset({_OTHER}),
        splits=splits,
        decode=decode_png,
    )


ADE20K_150 = DatasetEntry(
    summary="150 classes of ADE20K",
    downloads=(_DOWNLOAD,),
    plan=_plan,
    images=_IMAGES,
)
