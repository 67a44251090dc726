"""From the kept embeddings of a dataset to label maps for a second round of training (spec 4).

Nothing of a unit stays in memory: its maps are files, and what is told of them is small.
Dimension key: K class names, H W pixels, T rows of a tile, W columns.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from pipeline.datasets.maps import encode_indices
from pipeline.evaluation.proposals import ProposalUnit
from pipeline.files import write_bytes
from pipeline.metrics import truth_ignore
from pipeline.parts import read_row_group
from pipeline.pseudo_labels import PseudoLabelSettings, known_pixels, pseudo_labels
from pipeline.stages.label import Label
from pipeline.training.labelled_images import LabelledImages, Pair
from pipeline.truth import read_indices

SPLIT: Final = "train"
STALE: Final = "stale_embeddings"
OTHER_CONTENT: Final = "other_content"

_LEAST_EVIDENCE: Final = 1e-12  # sum of masks where none covers a pixel


@dataclass(frozen=True)
class PseudoClass:
    """What an image shows of a class: its pixels, and of the pseudo-labelled ones the mean score.

    The score is the class's share of the masks over a pixel, as in a dataset's segments; 0 where
    all pixels are of the truth.
    """

    class_index: int
    pixels: int
    score: float


@dataclass(frozen=True)
class PseudoImage:
    """What became of one image: a label map, or the `reason` why there is none."""

    name: str  # of its map, below the directory of maps
    reason: str = ""
    detail: str = ""
    classes: tuple[PseudoClass, ...] = ()
    rejected: int = 0  # pixels

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PseudoImage:
        """Return the image that `dataclasses.asdict` made plain."""
        classes = tuple(PseudoClass(**entry) for entry in values["classes"])
        return cls(**{**values, "classes": classes})


@dataclass(frozen=True, eq=False)
class PseudoLabeller:
    """Writes images/train and masks/train; a value that any worker can be given."""

    dataset: str
    output: Path
    label: Label
    embedding_fingerprint: str
    data: LabelledImages
    pairs: Mapping[str, Pair]  # by the path of the map
    settings: PseudoLabelSettings
    min_share: float

    def __call__(self, unit: ProposalUnit, /) -> list[PseudoImage]:
        """Label the images of a row group that have a truth."""
        torch.set_num_threads(1)  # others work beside
        table = read_row_group(self.dataset, unit.path, unit.row_group)
        table = table.filter(pc.is_in(table["image_id"], pa.array(list(unit.truths))))
        return [self._image(row, unit.truths[row["image_id"]]) for row in table.to_pylist()]

    def _image(self, row: dict[str, Any], truth: Path) -> PseudoImage:
        name = truth.relative_to(self.data.masks).as_posix()
        source = self.data.images / self.pairs[name].image
        if row["embedding_fingerprint"] != self.embedding_fingerprint:
            return PseudoImage(name, STALE, "kept of another CLIP or other crops")
        try:
            if hashlib.sha256(source.read_bytes()).hexdigest() != row["bytes_sha256"]:
                return PseudoImage(name, OTHER_CONTENT, f"{row['uri']} is not {source}")
            truth_HW = read_indices(truth)
        except OSError as error:
            return PseudoImage(name, "not_found", f"{source}: {error.strerror}")
        except ValueError as error:
            return PseudoImage(name, "bad_label_map", str(error))
        if truth_HW.shape != (row["height"], row["width"]):
            sizes = f"map {truth_HW.shape}, image {(row['height'], row['width'])} (height, width)"
            return PseudoImage(name, "sizes_differ", sizes)
        labels_HW, drawn = self._labels(row, truth_HW)
        _link_or_copy(source, self.output / "images" / SPLIT / self.pairs[name].image)
        # The map is the last file of an image: where it is, the image is done.
        data = encode_indices(labels_HW, truth_ignore(len(self.label.names)))
        write_bytes(str(self.output), f"masks/{SPLIT}/{name}", data)
        return PseudoImage(name, classes=drawn.classes(), rejected=drawn.rejected)

    @torch.inference_mode()
    def _labels(
        self, row: dict[str, Any], truth_HW: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], _Drawn]:
        drawn = _Drawn(len(self.label.names))
        labels_HW = np.empty(truth_HW.shape, np.int32)
        seen_K = torch.tensor(self.data.seen)
        for tile in self.label.score_tiles(row):
            scores_KTW = tile.scores_KTW.cpu()
            truth_TW = torch.from_numpy(truth_HW[tile.rows])
            labels_TW = pseudo_labels(scores_KTW, truth_TW, seen_K, self.settings)
            known_TW = known_pixels(truth_TW, seen_K)
            best_TW = scores_KTW.gather(0, labels_TW.clamp_max(len(seen_K) - 1)[None])[0]
            share_TW = best_TW / tile.evidence_TW.cpu().clamp_min(_LEAST_EVIDENCE)
            doubtful_TW = (share_TW < self.min_share) & ~known_TW
            labels_TW = labels_TW.masked_fill(doubtful_TW, self.settings.rejected_index)
            drawn.add(labels_TW.numpy(), share_TW.numpy(), known_TW.numpy())
            labels_HW[tile.rows] = labels_TW.numpy()
        return labels_HW, drawn


@dataclass
class _Drawn:
    """Counts of one image, tile by tile."""

    num_classes: int
    rejected: int = 0
    _pixels: NDArray[np.int64] = field(init=False)
    _pseudo: NDArray[np.int64] = field(init=False)
    _shares: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self._pixels = np.zeros(self.num_classes, np.int64)
        self._pseudo = np.zeros(self.num_classes, np.int64)
        self._shares = np.zeros(self.num_classes, np.float64)

    def add(
        self,
        labels_TW: NDArray[np.int64],
        share_TW: NDArray[np.float32],
        known_TW: NDArray[np.bool_],
    ) -> None:
        """Count the rows of a tile; `known_TW` is where the truth was pasted."""
        is_class_TW = labels_TW < self.num_classes
        is_pseudo_TW = is_class_TW & ~known_TW
        self.rejected += int((~is_class_TW).sum())
        self._pixels += np.bincount(labels_TW[is_class_TW], minlength=self.num_classes)
        pseudo_N = labels_TW[is_pseudo_TW]
        self._pseudo += np.bincount(pseudo_N, minlength=self.num_classes)
        self._shares += np.bincount(pseudo_N, share_TW[is_pseudo_TW], self.num_classes)

    def classes(self) -> tuple[PseudoClass, ...]:
        """Return the classes that occur."""
        means = self._shares / np.maximum(self._pseudo, 1)
        return tuple(
            PseudoClass(int(index), int(self._pixels[index]), float(means[index]))
            for index in np.flatnonzero(self._pixels)
        )


def ignore_classes(output: Path, images: Sequence[tuple[str, Sequence[int]]], ignore: int) -> None:
    """Make pixels of some classes ignored in the maps of some images; once more changes nothing."""
    for name, classes in images:
        path = f"masks/{SPLIT}/{name}"
        labels_HW = read_indices(output / path)
        labels_HW = np.where(np.isin(labels_HW, classes), ignore, labels_HW).astype(np.int32)
        write_bytes(str(output), path, encode_indices(labels_HW, ignore))


def in_chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the disk has no links; whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f"{target.name}.draft")
    draft.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), draft)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, draft)
    os.replace(draft, target)
    draft.unlink(missing_ok=True)  # of two links to one file the replacement does nothing
