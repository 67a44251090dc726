"""One pair of files at a time: check both, write the image, the map, and the map of seen classes.

The map is the last of a pair's files to be written: where it is, the pair is done.
Dimension key: K class names, H W pixels.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.maps import Indexing, decode_png, encode_indices
from pipeline.datasets.plan import Decoder, FileBlob, Pair
from pipeline.decode import BadImage, decode_image
from pipeline.files import DRAFT_SUFFIX, write_bytes
from pipeline.metrics import truth_ignore
from schemas.annotate_config import SourceSettings

_LIMITS: Final = SourceSettings()  # what `annotate` accepts by itself is an image here
_DRAFT_EDGES: Final = (16, 16)  # a photo is decoded to see that it can be, and at what size


@dataclass(frozen=True)
class Skip:
    """A pair that is in no split: all of it is ignored, or one of its files is bad."""

    split: str
    name: str
    reason: str
    is_bad: bool


@dataclass(frozen=True, eq=False)
class Counts:
    """Images and pixels of some pairs; counts add up."""

    images: int
    class_pixels_K: NDArray[np.int64]
    class_images_K: NDArray[np.int64]
    ignored_pixels: int

    @classmethod
    def zero(cls, num_classes: int) -> "Counts":
        """Return the neutral element."""
        none = np.zeros(num_classes, np.int64)
        return cls(0, none, none, 0)

    @classmethod
    def of(cls, class_pixels_K: NDArray[np.int64], ignored_pixels: int) -> "Counts":
        """Return the counts of one image, or of none where every pixel is ignored."""
        shown_K = (class_pixels_K > 0).astype(np.int64)
        if not shown_K.any():
            return cls.zero(len(class_pixels_K))
        return cls(1, class_pixels_K, shown_K, ignored_pixels)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.images + other.images,
            self.class_pixels_K + other.class_pixels_K,
            self.class_images_K + other.class_images_K,
            self.ignored_pixels + other.ignored_pixels,
        )


@dataclass(frozen=True)
class Converted:
    """What became of some pairs of one split."""

    split: str
    counts: Counts
    base_counts: Counts
    skips: tuple[Skip, ...]


@dataclass(frozen=True)
class Conversion:
    """What is done to every pair of a data set; it travels to the processes."""

    output: Path
    decode: Decoder
    index_of: Mapping[int, int]
    ignored: frozenset[int]
    is_seen: tuple[bool, ...]  # (K,)
    base_of: Mapping[str, str]  # split -> the one of its maps of seen classes
    image_files: Literal["link", "copy"]

    @property
    def _num_classes(self) -> int:
        return len(self.is_seen)

    @cached_property
    def _indexing(self) -> Indexing:
        return Indexing(self.index_of, self.ignored, self._num_classes)

    @cached_property
    def _base_indexing(self) -> Indexing:
        seen = [index for index, flag in enumerate(self.is_seen) if flag]
        unseen = [index for index, flag in enumerate(self.is_seen) if not flag]
        index_of = {index: position for position, index in enumerate(seen)}
        return Indexing(index_of, frozenset({*unseen, self._indexing.ignore}), len(seen))

    def convert(self, split: str, pairs: Sequence[Pair]) -> Converted:
        """Convert some pairs; bad files are reported, not raised."""
        counts = Counts.zero(self._num_classes)
        base_counts = Counts.zero(sum(self.is_seen))
        skips: list[Skip] = []
        for pair in pairs:
            try:
                class_pixels_K, ignored_pixels = self._pair(split, pair)
            except _Bad as error:
                skips.append(Skip(split, pair.name, str(error), is_bad=True))
                continue
            one = Counts.of(class_pixels_K, ignored_pixels)
            counts += one
            if not one.images:
                skips.append(Skip(split, pair.name, "every pixel is ignored", is_bad=False))
            elif split in self.base_of:
                base = self._base_counts(one)
                base_counts += base
                if not base.images:
                    reason = "every pixel is ignored or of an unseen class"
                    skips.append(Skip(self.base_of[split], pair.name, reason, is_bad=False))
        return Converted(split, counts, base_counts, tuple(skips))

    def _base_counts(self, counts: Counts) -> Counts:
        is_seen_K = np.array(self.is_seen)
        unseen_pixels = int(counts.class_pixels_K[~is_seen_K].sum())
        return Counts.of(counts.class_pixels_K[is_seen_K], counts.ignored_pixels + unseen_pixels)

    def _pair(self, split: str, pair: Pair) -> tuple[NDArray[np.int64], int]:
        """Write a pair unless it is done; return its pixels per class (K,) and of none."""
        path = f"masks/{split}/{pair.name}.png"
        if (self.output / path).exists():
            try:
                return self._count(decode_png((self.output / path).read_bytes()))
            except ValueError:
                pass  # not what was written: it is written again
        indices_HW = self._indices(pair)
        class_pixels_K, ignored_pixels = self._count(indices_HW)
        data = self._checked_image(pair, indices_HW.shape)
        if class_pixels_K.any():
            self._write_image(split, pair, data)
            if split in self.base_of and class_pixels_K[np.array(self.is_seen)].any():
                base_HW = self._base_indexing.apply(indices_HW)
                base_path = f"masks/{self.base_of[split]}/{pair.name}.png"
                self._write(base_path, encode_indices(base_HW, self._base_indexing.ignore))
            self._write(path, encode_indices(indices_HW, self._indexing.ignore))
        return class_pixels_K, ignored_pixels

    def _indices(self, pair: Pair) -> NDArray[np.int32]:
        try:
            return self._indexing.apply(self.decode(pair.labels.read()))
        except (OSError, ValueError) as error:
            raise _Bad(f"{pair.labels.where}: {error}") from None

    def _checked_image(self, pair: Pair, shape: tuple[int, ...]) -> bytes:
        try:
            data = pair.image.read()
            origin = decode_image(
                data, _LIMITS.max_image_pixels, _LIMITS.max_image_frames, _DRAFT_EDGES
            ).origin
        except (OSError, ValueError, BadImage) as error:
            raise _Bad(f"{pair.image.where}: {error}") from None
        if (origin.height, origin.width) != shape:
            raise _Bad(
                f"{pair.labels.where} is {shape[0]}x{shape[1]}, the image {origin.height}x"
                f"{origin.width} (height x width, EXIF orientation {origin.exif_orientation})"
            )
        return data

    def _count(self, indices_HW: NDArray[np.int32]) -> tuple[NDArray[np.int64], int]:
        counted = indices_HW[indices_HW != truth_ignore(self._num_classes)]
        if counted.size and int(counted.max()) >= self._num_classes:
            raise ValueError(f"index {counted.max()} is none of {self._num_classes} classes")
        pixels_K = np.bincount(counted, minlength=self._num_classes).astype(np.int64)
        return pixels_K, indices_HW.size - counted.size

    def _write_image(self, split: str, pair: Pair, data: bytes) -> None:
        suffix = image_suffix(pair, data)
        path = f"images/{split}/{pair.name}{suffix}"
        if self.image_files == "link" and isinstance(pair.image, FileBlob):
            target = self.output / path
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}{DRAFT_SUFFIX}")
            try:
                os.link(pair.image.path.resolve(), draft)
            except OSError:  # another disk, or one without hard links
                self._write(path, data)
            else:
                os.replace(draft, target)
                # Of two links to one file the replacement does nothing, and the draft stays.
                draft.unlink(missing_ok=True)
        else:
            self._write(path, data)

    def _write(self, path: str, data: bytes) -> None:
        write_bytes(str(self.output), path, data)


class _Bad(Exception):  # a verdict on a pair, caught at the per-pair boundary
    """One line that names the file and what is wrong with it."""


def image_suffix(pair: Pair, data: bytes) -> str:
    """Return the suffix of an image: that of its file, or of its format."""
    if isinstance(pair.image, FileBlob):
        return pair.image.path.suffix.lower()
    for start, suffix in ((b"\xff\xd8", ".jpg"), (b"\x89PNG", ".png"), (b"RIFF", ".webp")):
        if data.startswith(start):
            return suffix
    return ".img"
