"""What a prepared data set is on disk, written once and read by training and evaluation.

    images/<split>/NAME.jpg     as downloaded
    masks/<split>/NAME.png      class indices; 255 is ignored (16 bits and 65535 from 256 classes)
    masks/<split>_base/NAME.png seen classes alone, counted anew, where the data set has unseen ones
    vocabulary.yaml             class names, with seen flags where the data set is split by them:
                                those of a model that was trained on the maps of seen classes
    vocabulary_base.yaml        the seen ones
    skipped.jsonl               what is in no split, and why
    dataset.json                the last to be written: no data set without it

Dimension key: K class names.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import DatasetError
from schemas.vocabulary import Vocabulary, read_vocabulary

DATASET_FILE: Final = "dataset.json"
SKIPPED_FILE: Final = "skipped.jsonl"
VOCABULARY_FILE: Final = "vocabulary.yaml"
BASE_VOCABULARY_FILE: Final = "vocabulary_base.yaml"


class LabelledImage(NamedTuple):
    """Where an image and its map of class indices are."""

    image: Path
    mask: Path


class SplitFacts(BaseModel):
    """One split: its folders and its class histogram."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str  # folder below the data set
    masks: str
    vocabulary: str  # file below the data set
    count: int
    skipped: int
    class_pixels: tuple[int, ...]  # (K,)
    class_images: tuple[int, ...]  # (K,) images that show the class
    ignored_pixels: int


class SegmentationDataset(BaseModel):
    """A prepared data set, as `dataset.json` describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_classes: int
    ignore: int
    fingerprint: str  # of what decided the maps
    splits: dict[str, SplitFacts]


def read_dataset(root: str | Path) -> SegmentationDataset:
    """Return the description; raises DatasetError where `root` holds no prepared data set."""
    path = Path(root) / DATASET_FILE
    try:
        return SegmentationDataset.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(
            f"{root} is no prepared data set, it has no {DATASET_FILE}; run `segmill datasets "
            "prepare` (again, if it was interrupted)"
        ) from None
    except (OSError, ValidationError) as error:
        raise DatasetError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


def read_split(root: str | Path, split: str) -> Iterator[LabelledImage]:
    """Yield the images of a split and their maps, in order of name.

    Raises DatasetError for an unknown split, for a map without an image, and where there are not
    as many maps as there were.
    """
    facts = split_facts(read_dataset(root), root, split)
    images = _by_name(Path(root) / facts.images)
    masks = _by_name(Path(root) / facts.masks)
    if len(masks) != facts.count:
        raise DatasetError(
            f"{Path(root) / facts.masks} has {len(masks)} maps, {DATASET_FILE} says {facts.count}"
        )
    for name in sorted(masks):
        if name not in images:
            raise DatasetError(f"{masks[name]} has no image in {Path(root) / facts.images}")
        yield LabelledImage(images[name], masks[name])


def read_split_vocabulary(root: str | Path, split: str) -> Vocabulary:
    """Return the classes that the maps of a split count."""
    return read_vocabulary(Path(root) / split_facts(read_dataset(root), root, split).vocabulary)


def split_facts(dataset: SegmentationDataset, root: str | Path, split: str) -> SplitFacts:
    """Return what is known of a split; raises DatasetError that lists what there is."""
    if split not in dataset.splits:
        raise DatasetError(f"{root} has no split {split!r}; it has {', '.join(dataset.splits)}")
    return dataset.splits[split]


def vocabulary_text(vocabulary: Vocabulary) -> str:
    """Return a vocabulary as YAML."""
    classes = [entry.model_dump(exclude_defaults=True, mode="json") for entry in vocabulary.classes]
    return yaml.safe_dump({"classes": classes}, sort_keys=False, allow_unicode=True, width=1000)


def dataset_text(dataset: SegmentationDataset) -> str:
    """Return the description as JSON."""
    return json.dumps(dataset.model_dump(mode="json"), indent=1) + "\n"


def _by_name(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by their paths in it without suffix; drafts are no files."""
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".draft"
    }
