"""`segmill datasets list` and `segmill datasets prepare`: training data from official downloads."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobs.progress import Progress, Silent
from pipeline.datasets import DATASETS, find_dataset
from pipeline.datasets.layout import SegmentationDataset
from pipeline.datasets.plan import DatasetEntry, Request
from pipeline.datasets.prepare import Preparation, prepare_dataset
from schemas.config import Config
from schemas.datasets_config import DatasetsPrepareConfig
from schemas.errors import DatasetError

_STAGE: Final = "prepare"
# Settings that only some data sets have a use for.
_OWN: Final = frozenset(
    {"vocabulary", "label_values", "ignore_values", "image_column", "mask_column", "partial"}
)


@dataclass(frozen=True)
class DatasetsResult:
    """The entries of the registry by name."""

    entries: Mapping[str, DatasetEntry]


@dataclass(frozen=True)
class PrepareResult:
    """Where a data set is, and what it holds."""

    output: Path
    dataset: SegmentationDataset
    seconds: float


def list_datasets(config: Config) -> DatasetsResult:
    """Return what can be prepared."""
    return DatasetsResult({name: entry() for name, entry in DATASETS.items()})


def prepare(config: DatasetsPrepareConfig, progress: Progress | None = None) -> PrepareResult:
    """Check a download, and write its images, maps of class indices, and vocabulary.

    The same call goes on where one was interrupted. Raises DatasetError that names the file and
    what would be right.
    """
    started = time.monotonic()
    entry = find_dataset(config.name)
    _refuse_unused(config, entry)
    source = config.source or config.root
    if not source.is_dir():
        raise DatasetError(f"there is no directory {source}; unpack the download there")
    how = Preparation(
        name=config.name,
        output=config.output or config.root / config.name,
        image_files=config.image_files,
        max_bad_fraction=config.max_bad_fraction,
        workers=config.workers,
    )
    with progress or Silent() as shown:
        shown.say(f"checking the files in {source}")
        plan = entry.plan(Request(source, **{name: getattr(config, name) for name in _OWN}))
        shown.start([_STAGE], sum(map(len, plan.splits.values())))
        dataset = prepare_dataset(plan, how, lambda done: shown.update({_STAGE: done}))
    return PrepareResult(how.output, dataset, time.monotonic() - started)


def _refuse_unused(config: DatasetsPrepareConfig, entry: DatasetEntry) -> None:
    """Refuse a setting that this data set has no use for: the user expects something of it."""
    takes = entry.takes | ({"partial"} if entry.images else set())
    for name in sorted(_OWN - takes):
        if getattr(config, name) != DatasetsPrepareConfig.model_fields[name].default:
            flag = f"--{name.replace('_', '-')}"
            raise DatasetError(f"data set {config.name} has no use for {flag}")
