"""Any folder: images/<split>/..., masks/<split>/... of equal names, and a vocabulary.

Images directly in images/ are the split `train`. Masks are grey or palette PNG.
"""

from itertools import count, islice
from pathlib import Path
from typing import Final

from pipeline.datasets.maps import decode_png
from pipeline.datasets.plan import DatasetEntry, Pair, Plan, Request, find_folder, pair_all
from pipeline.metrics import truth_ignore
from schemas.annotate_config import IMAGE_EXTENSIONS
from schemas.errors import DatasetError
from schemas.vocabulary import Vocabulary, read_vocabulary

OWN_SETTINGS: Final = frozenset({"vocabulary", "label_values", "ignore_values"})

_ENDS: Final = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS)
_ONLY_SPLIT: Final = "train"
_HIGHEST: Final = 65_535  # of a 16-bit PNG


def _plan(request: Request) -> Plan:
    vocabulary, index_of, ignored = own_classes(request)
    images = find_folder(request.source, ("images",), "the images")
    masks = find_folder(request.source, ("masks",), "the masks")
    splits = {name: _pairs(images / below, masks / below) for name, below in _splits(images)}
    origin = (str(request.source.resolve()),)
    return Plan(vocabulary, index_of, ignored, splits, decode_png, origin)


def own_classes(request: Request) -> tuple[Vocabulary, dict[int, int], frozenset[int]]:
    """Return the user's classes, the class index of every value of the masks, what is ignored."""
    if request.vocabulary is None:
        raise DatasetError("this data set's classes are your own; give the --vocabulary of them")
    vocabulary = read_vocabulary(request.vocabulary)
    ignored = (
        frozenset({truth_ignore(len(vocabulary))})
        if request.ignore_values is None
        else frozenset(request.ignore_values)
    )
    free = (value for value in count() if value not in ignored)
    values = request.label_values or tuple(islice(free, len(vocabulary)))
    if len(values) != len(vocabulary):
        raise DatasetError(
            f"--label-values has {len(values)} values, {request.vocabulary} has {len(vocabulary)} "
            "classes; give one for each"
        )
    index_of = {value: index for index, value in enumerate(values)}
    if len(index_of) != len(values):
        raise DatasetError("--label-values has a value twice; give each class its own")
    wrong = [value for value in (*values, *sorted(ignored)) if not 0 <= value <= _HIGHEST]
    if wrong:
        raise DatasetError(f"masks hold values from 0 to {_HIGHEST}, not {wrong[0]}")
    if both := sorted(index_of.keys() & ignored):
        raise DatasetError(f"value {both[0]} is in --label-values and in --ignore-values")
    return vocabulary, index_of, ignored


def _splits(images: Path) -> list[tuple[str, str]]:
    """Return the splits and where each is, relative to the images."""
    inside = sorted(images.iterdir())
    folders = [path.name for path in inside if path.is_dir()]
    loose = [path for path in inside if path.suffix.lower() in _ENDS]
    if folders and loose:
        raise DatasetError(f"{loose[0]} is beside folders of splits; move it into one of them")
    if not folders and not loose:
        raise DatasetError(f"{images} has no images, nor folders of them (one per split)")
    return [(name, name) for name in folders] or [(_ONLY_SPLIT, ".")]


def _pairs(images: Path, masks: Path) -> list[Pair]:
    found: dict[str, Path] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() not in _ENDS:
            continue
        name = path.relative_to(images).with_suffix("").as_posix()
        if name in found:
            raise DatasetError(f"{found[name]} and {path} are two images of one name")
        found[name] = path
    if not found:
        raise DatasetError(f"{images} has no images")
    labels = {
        path.relative_to(masks).with_suffix("").as_posix(): path for path in masks.rglob("*.png")
    }
    return pair_all(found, labels)


FOLDER = DatasetEntry(
    summary="your images/<split>/ and masks/<split>/*.png, with --vocabulary",
    downloads=("images/", "masks/"),
    plan=_plan,
    takes=OWN_SETTINGS,
)
