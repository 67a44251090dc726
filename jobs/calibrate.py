"""`segmill calibrate`: score floors of every class that keep a promised precision."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.dataset import read_manifest, read_uris
from pipeline.evaluation.checked_segments import (
    UNKNOWN,
    CheckedSegments,
    all_scores,
    rows_of_the_model,
)
from pipeline.evaluation.score_floors import Floor, Promise, find_floors
from pipeline.exports.selection import DROP, FLOORS
from pipeline.metrics import known_pixels, truth_ignore
from pipeline.review.reviewed import RANDOM, Reviewed, read_reviewed
from pipeline.storage import hide_secrets
from pipeline.truth import Truths, read_truth
from pipeline.whole_file import refuse_unwritable, whole_file
from schemas.errors import SettingsError
from schemas.manifest import Manifest
from schemas.trust_config import CalibrateConfig

_COLUMNS: Final = ("uri", "height", "width", "segments")


@dataclass(frozen=True)
class CalibrateResult:
    """The floors, by class name, and on how much they rest."""

    dataset: str
    version: int
    output: str
    by: str  # score or margin
    images: int  # with a truth
    segments: int  # checked ones
    floors: Mapping[str, Floor]
    seconds: float

    @property
    def promised(self) -> int:
        """For how many classes the promise can be made."""
        return sum(floor.score is not None for floor in self.floors.values())


def calibrate(config: CalibrateConfig) -> CalibrateResult:
    """Compare the model's segments with the truth, and write the floors that follow.

    Raises SettingsError where there is no truth, none of a labelled image, or one that does not fit
    or that two images claim equally, and OutputError where there is no such version.
    """
    started = time.monotonic()
    refuse_unwritable(config.output)
    if config.reviews is not None:
        reviews = _of_one_version(config, config.reviews)
        manifest = read_manifest(config.dataset, reviews[0].version)
        checked = _compared_with_reviews(config, manifest, reviews)
    else:
        manifest = read_manifest(config.dataset, config.version)
        checked = _compared_with_maps(config, manifest)
    if not checked.images:
        raise SettingsError(
            f"no image of version {manifest.version} of {hide_secrets(config.dataset)} that a "
            f"model has labelled has a truth in {config.truth or config.reviews}"
        )
    by_class = checked.by_class()
    promise = Promise(config.precision, config.confidence, for_all=config.promise == "all")
    floors = find_floors(
        by_class, all_scores(config.dataset, manifest, config.by), promise, config.seed
    )
    names = manifest.vocabulary.names
    result = CalibrateResult(
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        output=str(config.output),
        by=config.by,
        images=checked.images,
        segments=sum(len(one.scores_N) for one in by_class.values()),
        floors={names[index]: floor for index, floor in floors.items()},
        seconds=time.monotonic() - started,
    )
    _write(config, manifest, result)
    return result


def _of_one_version(config: CalibrateConfig, path: Path) -> list[Reviewed]:
    """Return the reviews that a promise may rest on: of one version, of images drawn at random."""
    reviewed = read_reviewed(path).finished
    fair = [one for one in reviewed if one.chosen == RANDOM]
    if not fair:
        raise SettingsError(
            f"{path} holds {len(reviewed)} reviewed images, none of which is known to have been "
            "chosen at random: they promise nothing of the rest; review images of `segmill review "
            "--random-share` with Label Studio"
        )
    versions = sorted({one.version for one in fair if one.version is not None})
    wanted = config.version or (versions[0] if len(versions) == 1 else None)
    if wanted not in versions:
        named = ", ".join(map(str, versions))
        raise SettingsError(
            f"{path} holds reviews of versions {named}; --version takes one of them"
        )
    return [one for one in fair if one.version == wanted]


def _compared_with_reviews(
    config: CalibrateConfig, manifest: Manifest, reviews: Sequence[Reviewed]
) -> CheckedSegments:
    """Compare with what people drew; where they drew nothing there is none of the classes."""
    by_id, names = {one.image: one for one in reviews}, manifest.vocabulary.names
    checked = CheckedSegments(config.min_overlap, config.by)
    for row in rows_of_the_model(config.dataset, manifest, ("image_id", *_COLUMNS)):
        review = by_id.get(row["image_id"])
        if review is not None:
            checked.add(row, review.label_map((row["height"], row["width"]), names))
    return checked


def _compared_with_maps(config: CalibrateConfig, manifest: Manifest) -> CheckedSegments:
    if config.truth is None:
        raise SettingsError("truth is required")
    truths = Truths.find(config.truth).paired(read_uris(config.dataset, manifest))
    checked, num_classes = CheckedSegments(config.min_overlap, config.by), len(manifest.vocabulary)
    ignore = truth_ignore(num_classes) if config.ignore is None else config.ignore
    for row in rows_of_the_model(config.dataset, manifest, _COLUMNS):
        path = truths.get(row["uri"])
        if path is not None:
            checked.add(row, _read_truth(path, row, num_classes, ignore))
    return checked


def _read_truth(
    path: Path, row: Mapping[str, Any], num_classes: int, ignore: int
) -> NDArray[np.int32]:
    try:
        truth_HW = read_truth(path, (row["height"], row["width"]))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    try:
        known_HW = known_pixels(truth_HW, num_classes, ignore)
    except ValueError as error:
        raise SettingsError(f"truth {path}: {error}") from None
    return np.where(known_HW, truth_HW, UNKNOWN)


def _write(config: CalibrateConfig, manifest: Manifest, result: CalibrateResult) -> None:
    """Write the floors as `export --class-min-scores` reads them, with where they come from."""
    otherwise = DROP if config.unpromised == "drop" else 0.0
    content = {
        FLOORS[config.by]: {
            name: otherwise if floor.score is None else floor.score
            for name, floor in result.floors.items()
        },
        "classes": {name: asdict(floor) for name, floor in result.floors.items()},
        "provenance": {
            "dataset": result.dataset,
            "version": manifest.version,
            "run_id": manifest.run_id,
            "fingerprint": manifest.fingerprint,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "images": result.images,
            "segments": result.segments,
            **config.model_dump(mode="json", exclude={"dataset", "output", "version"}),
        },
    }
    with whole_file(config.output) as file:
        file.write(
            f"# For `segmill export --{FLOORS[config.by].replace('_', '-')}`. It holds for this "
            "version, and rests\n# on the checked images being a random part of it.\n"
        )
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
