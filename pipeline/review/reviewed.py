"""What people made of the tasks: files of Label Studio (JSON) and of CVAT (XML) read back.

Dimension key: H W pixels.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.exports.cvat import mask_of_runs
from pipeline.exports.label_studio import brush_mask
from pipeline.resize import Size
from pipeline.review.polygons import polygon_mask
from pipeline.segments import IGNORE
from schemas.errors import SettingsError

# Why an image is in the queue.
WORTH: Final = "worth"
RANDOM: Final = "random"

# Of CVAT, and of Label Studio.
_MASK: Final = "mask"
_POLYGON: Final = "polygon"
_BRUSH: Final = "brushlabels"
_POLYGONS: Final = "polygonlabels"


@dataclass(frozen=True)
class Region:
    """One drawn region: the name of its class, and its mask (H, W) in an image of a size."""

    label: str
    mask: Callable[[Size], NDArray[np.bool_]]  # raises ValueError where it is none of that size


@dataclass(frozen=True)
class Reviewed:
    """An image that a person has looked at, with all that it then was labelled as."""

    place: str  # in the file, for people
    image: str  # image_id, or the name below the source
    regions: tuple[Region, ...]  # later ones lie on top
    bytes_sha256: str | None  # of the image as it was reviewed, where the file tells
    version: int | None  # of the dataset
    chosen: str | None  # why: worth, or random

    def label_map(self, size: Size, names: Sequence[str]) -> NDArray[np.int32]:
        """Return class indices (H, W), IGNORE where nothing is drawn.

        Raises SettingsError for a class that `names` do not have and a region of another size.
        """
        map_HW = np.full(size, IGNORE, np.int32)
        for region in self.regions:
            if region.label not in names:
                raise SettingsError(
                    f"{self.place} has the label {region.label!r}, which is no class of the "
                    f"dataset; its classes are {', '.join(names[:20])}"
                )
            try:
                map_HW[region.mask(size)] = names.index(region.label)
            except ValueError as error:
                raise SettingsError(f"{self.place}, {region.label!r}: {error}") from None
        return map_HW


@dataclass(frozen=True)
class Reviews:
    """What a file holds of the work of people."""

    finished: tuple[Reviewed, ...]  # in the file's order
    unfinished: int  # images that nobody has finished: nothing is known of them


def read_reviewed(path: Path) -> Reviews:
    """Return the reviewed images of a file.

    CVAT does not say which images somebody has finished, and lists every image of a task: those
    count that have a shape or a tag.

    Raises SettingsError for a file that cannot be read, or is of another layout.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"cannot read {path}: {reason}") from None
    try:
        if text.lstrip().startswith("<"):
            found = list(_of_cvat(path, ET.fromstring(text)))
        else:
            found = list(_of_label_studio(path, json.loads(text)))
    except (ET.ParseError, ValueError) as error:
        raise SettingsError(
            f"{path} is neither Label Studio's JSON nor CVAT for images 1.1: {error}"
        ) from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise SettingsError(
            f"{path} is no file of reviewed tasks (export them as JSON, or as CVAT for images "
            f"1.1): {type(error).__name__} {error}"
        ) from None
    finished = tuple(one for one in found if one is not None)
    return Reviews(finished, len(found) - len(finished))


def _of_label_studio(path: Path, tasks: list[dict[str, Any]]) -> Iterator[Reviewed | None]:
    for number, task in enumerate(tasks):
        place, data = f"{path}, task {task.get('id', number)}", task["data"]
        finished = [one for one in task["annotations"] if not one.get("was_cancelled")]
        if not finished:
            yield None
            continue
        newest = max(finished, key=lambda one: str(one.get("updated_at", "")))
        drawn = [one for one in newest["result"] if one["type"] != "choices"]
        yield Reviewed(
            place=place,
            image=data["image_id"],
            regions=tuple(_drawn_region(place, region) for region in drawn),
            bytes_sha256=data.get("bytes_sha256"),
            version=data.get("segmill_version"),
            chosen=data.get("chosen"),
        )


def _drawn_region(place: str, region: dict[str, Any]) -> Region:
    kind, value = region["type"], region["value"]
    if kind not in (_BRUSH, _POLYGONS) or (kind == _BRUSH and value.get("format") != "rle"):
        raise SettingsError(
            f"{place} has a region of type {kind!r}; only brush masks ({_BRUSH}) and polygons "
            f"({_POLYGONS}) are taken"
        )
    told = (region["original_height"], region["original_width"])
    labels = value[kind]
    if len(labels) != 1:
        raise SettingsError(f"{place} has a region of {len(labels)} labels; it must have one")
    if kind == _BRUSH:
        return Region(labels[0], partial(_brush, value["rle"], told))
    # Label Studio counts in hundredths of the image's sides.
    points = [(x * told[1] / 100, y * told[0] / 100) for x, y in value["points"]]
    return Region(labels[0], partial(_polygon, points, told))


def _brush(rle: list[int], told: Size, size: Size) -> NDArray[np.bool_]:
    _check_size(told, size)
    return brush_mask(rle, size)


def _polygon(points: list[tuple[float, float]], told: Size, size: Size) -> NDArray[np.bool_]:
    _check_size(told, size)
    return polygon_mask(points, size)


def _check_size(told: Size, size: Size) -> None:
    if told != size:
        raise ValueError(f"its image is {told[0]} x {told[1]}, not {size[0]} x {size[1]}")


def _of_cvat(path: Path, root: ET.Element) -> Iterator[Reviewed | None]:
    for image in root.iter("image"):
        if all(child.tag == "attribute" for child in image):
            yield None
            continue
        place = f"{path}, image {image.attrib['name']}"
        shapes = [child for child in image if child.tag not in ("tag", "attribute")]
        shapes.sort(key=lambda shape: int(shape.get("z_order", 0)))
        told = (int(image.attrib["height"]), int(image.attrib["width"]))
        yield Reviewed(
            place=place,
            image=image.attrib["name"],
            regions=tuple(_cvat_region(place, shape, told) for shape in shapes),
            bytes_sha256=None,
            version=None,
            chosen=None,
        )


def _cvat_region(place: str, shape: ET.Element, told: Size) -> Region:
    label = shape.attrib["label"]
    if shape.tag == _POLYGON:
        pairs = (pair.split(",") for pair in shape.attrib["points"].split(";"))
        return Region(label, partial(_polygon, [(float(x), float(y)) for x, y in pairs], told))
    if shape.tag != _MASK:
        raise SettingsError(f"{place} has a {shape.tag}; only masks and polygons are taken")
    left, top, width, height = (
        int(shape.attrib[name]) for name in ("left", "top", "width", "height")
    )
    runs = [int(number) for number in shape.attrib["rle"].split(",")]
    return Region(label, partial(_cvat_mask, runs, (left, top, width, height), told))


def _cvat_mask(
    runs: list[int], box: tuple[int, int, int, int], told: Size, size: Size
) -> NDArray[np.bool_]:
    _check_size(told, size)
    left, top, width, height = box
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"it reaches out of the image: box {box}")
    mask_HW = np.zeros(size, bool)
    mask_HW[top : top + height, left : left + width] = mask_of_runs(runs, (height, width))
    return mask_HW
