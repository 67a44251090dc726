"""`segmill review`: the images most worth a person's time, as tasks of a labelling tool."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import read_manifest, read_rows
from pipeline.evaluation.checked_segments import of_the_model
from pipeline.review.queue import COLUMNS, Candidates, random_images, worthy_images
from pipeline.review.reviewed import RANDOM, WORTH
from pipeline.review.tasks import ReviewedVersion, ReviewTask, write_cvat, write_label_studio
from pipeline.sources import source_place
from pipeline.storage import hide_secrets
from pipeline.whole_file import refuse_unwritable
from schemas.errors import SettingsError
from schemas.manifest import Manifest
from schemas.trust_config import ReviewConfig

_TASK_COLUMNS: Final = ("image_id", "uri", "bytes_sha256", "height", "width", "segments")


@dataclass(frozen=True)
class ReviewResult:
    """What is in the queue."""

    dataset: str
    version: int
    output: str
    images: int  # labelled by a model, to choose from
    chosen: dict[str, int]  # how many by worth, how many at random
    seconds: float


def review(config: ReviewConfig) -> ReviewResult:
    """Choose the images and write the tasks.

    Raises SettingsError where no image is labelled by a model, and OutputError where there is no
    such version or the file cannot be written.
    """
    started = time.monotonic()
    refuse_unwritable(config.output)
    manifest = read_manifest(config.dataset, config.version)
    tables = read_rows(config.dataset, manifest, COLUMNS, batch_rows=4096)
    candidates = Candidates.of(of_the_model(table) for table in tables)
    if not candidates.image_ids:
        raise SettingsError(
            f"version {manifest.version} of {hide_secrets(config.dataset)} has no image whose "
            "labels are a model's: there is nothing to review"
        )
    at_random = random_images(candidates, round(config.budget * config.random_share), config.seed)
    worthy = worthy_images(candidates, config.budget - len(at_random), set(at_random))
    chosen = dict.fromkeys(worthy, WORTH) | dict.fromkeys(at_random, RANDOM)
    tasks = _tasks(config.dataset, manifest, chosen)
    of = ReviewedVersion(manifest.version, source_place(manifest.source), manifest.vocabulary.names)
    write = write_label_studio if config.format == "label-studio" else write_cvat
    write(config.output, tasks, of)
    return ReviewResult(
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        output=str(config.output),
        images=len(candidates.image_ids),
        chosen={WORTH: len(worthy), RANDOM: len(at_random)},
        seconds=time.monotonic() - started,
    )


def _tasks(dataset: str, manifest: Manifest, chosen: dict[str, str]) -> Iterator[ReviewTask]:
    """Yield the chosen images in their order, the most worthy first."""
    wanted = pa.array(list(chosen), pa.string())  # of none it could not tell the type
    rows = {}
    for table in read_rows(dataset, manifest, _TASK_COLUMNS):
        for row in table.filter(pc.is_in(table["image_id"], wanted)).to_pylist():
            rows[row["image_id"]] = row
    for image_id, why in chosen.items():
        yield ReviewTask(rows[image_id], why)
