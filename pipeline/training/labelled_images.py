"""Images with label maps to learn from: pairing of files, what is accepted, and the order of use.

Dimension key: H W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import BadImage, decode_image
from pipeline.truth import read_indices
from schemas.errors import SettingsError
from schemas.vocabulary import Vocabulary

VOID: Final = -1  # position of pixels that are part of no mask: unseen, ignored, padding
NO_SEEN_PIXEL: Final = "no_seen_pixel"

_MAX_FRAMES: Final = 1000  # or pages: a file of more is no photo
_NAMED: Final = 5  # files or labels named in one message


@dataclass(frozen=True)
class Pair:
    """An image and its label map: paths below the two directories."""

    image: str
    mask: str


@dataclass(frozen=True)
class Finding:
    """What was found out about a pair: `reason` is empty where it can be learned from.

    `positions` are those of the seen classes that the map shows.
    """

    pair: Pair
    reason: str = ""
    detail: str = ""
    positions: tuple[int, ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether a file is at fault, and not only void of seen classes."""
        return self.reason not in ("", NO_SEEN_PIXEL)


@dataclass(frozen=True)
class LabelledImages:
    """Two directories, and what the labels in their maps mean.

    `seen` is the seen flag of every class of the vocabulary: a seen class has a position among the
    seen ones, all other pixels are void (spec 3.1). With `num_maps` so many maps must be there, and
    an image without one is none of them; without, every image has one.
    """

    images: Path
    masks: Path
    seen: tuple[bool, ...]
    ignore_label: int = 255
    max_image_pixels: int = 100_000_000
    num_maps: int | None = None

    @classmethod
    def of(
        cls, images: Path, masks: Path, vocabulary: Vocabulary, ignore_label: int, max_pixels: int
    ) -> LabelledImages:
        """Check that labels are told from the ignored one; without flags all classes are seen."""
        if ignore_label < len(vocabulary):
            raise SettingsError(
                f"ignore_label is {ignore_label}, which is class "
                f"{vocabulary.names[ignore_label]!r} of the vocabulary; it must be "
                f"{len(vocabulary)} or more"
            )
        seen = vocabulary.seen or (True,) * len(vocabulary)
        if not any(seen):
            raise SettingsError("no class of the vocabulary is flagged seen: nothing to learn")
        return cls(images.absolute(), masks.absolute(), seen, ignore_label, max_pixels)

    @property
    def num_seen(self) -> int:
        """How many classes are learned."""
        return sum(self.seen)

    def pairs(self, extensions: Collection[str]) -> list[Pair]:
        """Return all pairs, which agree in their paths but for the suffix, in order.

        Raises SettingsError that names images without a map, and maps without an image, and where
        there are fewer maps than there were.
        """
        images = _by_name(self.images, {f".{extension}" for extension in extensions})
        masks = _by_name(self.masks, {".png"})
        if self.num_maps is not None:
            if len(masks) < self.num_maps:
                raise SettingsError(
                    f"{self.masks} has {len(masks)} label maps, dataset.json says {self.num_maps}; "
                    "prepare the data set again"
                )
            images = {name: path for name, path in images.items() if name in masks}
        for names, others, what, lacking in (
            (images, masks, "images", f"PNG label map in {self.masks}"),
            (masks, images, "label maps", f"image in {self.images}"),
        ):
            alone = sorted(names.keys() - others.keys())
            if alone:
                named = ", ".join(names[name] for name in alone[:_NAMED])
                raise SettingsError(
                    f"{len(alone)} of {len(names)} {what} have no {lacking} ({named}"
                    f"{', ...' if len(alone) > _NAMED else ''}); an image and its map must have "
                    "the same name but for the suffix"
                )
        if not images:
            raise SettingsError(f"there are no images in {self.images}")
        return [Pair(images[name], masks[name]) for name in sorted(images)]

    def examine(self, pairs: Sequence[Pair]) -> list[Finding]:
        """Read pairs whole, as training will; raises SettingsError for labels of no class."""
        return [self._examine(pair) for pair in pairs]

    def _examine(self, pair: Pair) -> Finding:
        try:
            labels_HW = self._labels(pair)
            image = self._image(pair)
        except BadImage as error:
            return Finding(pair, error.code, str(error))
        except ValueError as error:
            return Finding(pair, "bad_label_map", str(error))
        if labels_HW.shape != (image.height, image.width):
            sizes = f"map {labels_HW.shape}, image {(image.height, image.width)}"
            return Finding(pair, "sizes_differ", f"{sizes} (height, width)")
        present = np.unique(labels_HW)
        known = [label for label in present if label != self.ignore_label]
        unknown = [int(label) for label in known if not 0 <= label < len(self.seen)]
        if unknown:
            raise SettingsError(
                f"{self.masks / pair.mask} holds the labels {unknown[:_NAMED]}; there are 0 to "
                f"{len(self.seen) - 1} for the classes of the vocabulary, and ignore_label "
                f"{self.ignore_label}"
            )
        positions = tuple(sum(self.seen[:label]) for label in known if self.seen[label])
        return Finding(pair, "" if positions else NO_SEEN_PIXEL, positions=positions)

    def load(self, pair: Pair) -> tuple[Image.Image, NDArray[np.int32]]:
        """Return an upright RGB image and the seen position or VOID of every pixel (H, W).

        Raises BadImage or ValueError when a file went bad since it was examined.
        """
        labels_HW = self._labels(pair)
        positions = np.full(int(max(labels_HW.max(), len(self.seen))) + 1, VOID, np.int32)
        positions[np.flatnonzero(self.seen)] = np.arange(self.num_seen)
        return self._image(pair), positions[labels_HW]

    def _labels(self, pair: Pair) -> NDArray[np.int32]:
        return read_indices(self.masks / pair.mask)

    def _image(self, pair: Pair) -> Image.Image:
        try:
            data = (self.images / pair.image).read_bytes()
        except OSError as error:
            raise BadImage("not_found", f"{pair.image}: {error.strerror}") from None
        return decode_image(data, self.max_image_pixels, _MAX_FRAMES).image


@dataclass(frozen=True)
class Sampler:
    """An endless shuffled order: every image once, then every image again in another order."""

    count: int
    seed: int

    def index(self, position: int) -> int:
        """Return which image stands at a position of the order, which no state is needed for."""
        turn, offset = divmod(position, self.count)
        return int(_order(self.count, self.seed, turn)[offset])


@lru_cache(maxsize=2)  # a batch may reach into the next turn
def _order(count: int, seed: int, turn: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, turn]).permutation(count)


def _by_name(directory: Path, suffixes: Collection[str]) -> dict[str, str]:
    """Return the files below a directory by their path without suffix."""
    if not directory.is_dir():
        raise SettingsError(f"there is no directory {directory}")
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            relative = path.relative_to(directory)
            name = relative.with_suffix("").as_posix()
            if name in found:
                raise SettingsError(
                    f"{found[name]} and {relative} of {directory} have the same name; images and "
                    "label maps are paired by it"
                )
            found[name] = relative.as_posix()
    return found
