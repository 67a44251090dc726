"""`segmill correct`: what people drew takes the place of a model's labels, in a new version."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.corrections import Corrections, Row, correction_of
from pipeline.exports.records import name_below
from pipeline.fingerprints import Fingerprints
from pipeline.lock import DatasetLock, new_run_id
from pipeline.parts import read_columns, read_table, write_corrections, write_images
from pipeline.review.reviewed import Reviewed, read_reviewed
from pipeline.run_log import RunLog
from pipeline.run_records import Recorder
from pipeline.sources import source_place
from pipeline.storage import hide_secrets
from schemas.annotation import ANNOTATED, CORRECTIONS, LABELLED, table_from_rows
from schemas.errors import SettingsError
from schemas.manifest import Changes, DataFile, Manifest
from schemas.trust_config import CorrectConfig

_COLUMNS: Final = (
    "image_id", "uri", "etag", "bytes_sha256", "height", "width", "exif_orientation", "frames",
    "status", "fingerprint",
)  # fmt: skip


@dataclass(frozen=True)
class CorrectResult:
    """What became of the reviewed images."""

    dataset: str
    version: int
    published: bool  # False: the newest version has all of them already
    taken: int
    unchanged: int  # the newest version has these labels of theirs already
    stale: int  # the image's bytes are not those that were reviewed
    unfinished: int  # images of the file that nobody has finished
    gone: int  # the newest version has no labelled image of that name
    seconds: float


@dataclass
class _Found:
    """The corrections to be made, and the file of the version that each image is in."""

    rows: list[Row]
    paths: list[str]
    unchanged: int = 0
    stale: int = 0
    gone: int = 0


def correct(config: CorrectConfig) -> CorrectResult:
    """Publish a version in which the reviewed images have the labels that people gave them.

    A finished image without regions is one without labels. Raises SettingsError for a file that
    holds no reviewed task, a class that the dataset does not have, or a region that does not fit
    its image; OutputError where there is no version, LockedError while a run is at work on the
    dataset.
    """
    started = time.monotonic()
    reviews = read_reviewed(config.reviews)
    if not reviews.finished:
        raise SettingsError(f"{config.reviews} holds no task that somebody has finished")
    dataset.read_manifest(config.dataset)  # before a lock makes a directory of it
    run_id = new_run_id()
    with (
        DatasetLock(config.dataset, run_id, config.lock_ttl_s, "correct") as lock,
        RunLog(config.dataset, run_id),
        Recorder(config.dataset, run_id, "correct") as recorder,
    ):
        manifest = dataset.read_manifest(config.dataset)
        recorder.version = manifest.version
        found = _find(config.dataset, manifest, reviews.finished)
        if found.rows:
            recorder.plan(manifest.counts.inventory, len(found.rows))
            manifest = _corrected(config.dataset, manifest, found, (run_id, lock.number))
            lock.check()
            dataset.publish(config.dataset, manifest)
        recorder.succeed(manifest.version, published=bool(found.rows))
    return CorrectResult(
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        published=bool(found.rows),
        taken=len(found.rows),
        unchanged=found.unchanged,
        stale=found.stale,
        unfinished=reviews.unfinished,
        gone=found.gone,
        seconds=time.monotonic() - started,
    )


def _find(place: str, manifest: Manifest, reviewed: Sequence[Reviewed]) -> _Found:
    by_name = {one.image: one for one in reviewed}  # of several reviews the last one counts
    source, names = source_place(manifest.source), manifest.vocabulary.names
    found = _Found([], [], gone=len(by_name))
    for file in manifest.images:
        for row in read_columns(place, file.path, _COLUMNS).to_pylist():
            review = by_name.get(row["image_id"]) or by_name.get(name_below(source, row["uri"]))
            if review is None or row["status"] != LABELLED:
                continue
            found.gone -= 1
            if review.bytes_sha256 not in (None, row["bytes_sha256"]):
                found.stale += 1
                continue
            size = (row["height"], row["width"])
            correction = correction_of(row, review.label_map(size, names), names)
            if row["fingerprint"] == Fingerprints.of_correction(correction["sha256"], names):
                found.unchanged += 1
                continue
            found.rows.append(correction)
            found.paths.append(file.path)
    return found


def _corrected(
    place: str, manifest: Manifest, found: _Found, identity: tuple[str, int]
) -> Manifest:
    """Write the files of the next version, and return its manifest."""
    run_id, lock_number = identity
    table = table_from_rows(found.rows, CORRECTIONS)
    stored = write_corrections(place, run_id, table)
    corrections = Corrections(table)
    rows = corrections.rows(corrections.drawn_on, manifest.vocabulary.names, run_id)
    touched = set(found.paths)
    files = [
        _rewritten(place, run_id, file, rows) if file.path in touched else file
        for file in manifest.images
    ]
    done = len(found.rows)
    changed: dict[str, Any] = {
        "version": manifest.version + 1,
        "created": datetime.now(UTC),
        "run_id": run_id,
        "lock": lock_number,
        "changes": Changes(
            kept=manifest.counts.inventory - done, done=done, from_embeddings=0, removed=0
        ),
        "images": tuple(sorted(files, key=lambda file: file.path)),
        "corrections": (*manifest.corrections, stored),
    }
    return manifest.model_copy(update=changed)


def _rewritten(place: str, run_id: str, file: DataFile, rows: pa.Table) -> DataFile:
    """Write a file anew, with these rows in the place of those of the same images."""
    table = read_table(place, file.path, ANNOTATED)
    of_file = rows.filter(pc.is_in(rows["image_id"], table["image_id"].combine_chunks()))
    others = table.filter(pc.invert(pc.is_in(table["image_id"], rows["image_id"].combine_chunks())))
    return write_images(place, run_id, pa.concat_tables([others, of_file]))
