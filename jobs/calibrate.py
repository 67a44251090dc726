"""`segmill calibrate`: score floors of every class that keep a promised precision."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.dataset import read_manifest
from pipeline.evaluation.checked_segments import (
    UNKNOWN,
    CheckedSegments,
    all_scores,
    rows_of_the_model,
)
from pipeline.evaluation.score_floors import Floor, Promise, find_floors
from pipeline.exports.selection import DROP, FLOORS
from pipeline.metrics import truth_ignore
from pipeline.storage import hide_secrets
from pipeline.truth import Truths
from pipeline.whole_file import whole_file
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

    Raises SettingsError where there is no truth, or none of a labelled image, and OutputError where
    there is no such version.
    """
    started = time.monotonic()
    manifest = read_manifest(config.dataset, config.version)
    checked = _compared_with_maps(config, manifest)
    if not checked.images:
        raise SettingsError(
            f"no image of {hide_secrets(config.dataset)} that a model has labelled has a truth in "
            f"{config.truth}"
        )
    by_class = checked.by_class()
    promise = Promise(config.precision, config.confidence, for_all=config.promise == "all")
    floors = find_floors(by_class, all_scores(config.dataset, manifest), promise, config.seed)
    names = manifest.vocabulary.names
    result = CalibrateResult(
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        output=str(config.output),
        images=checked.images,
        segments=sum(len(one.scores_N) for one in by_class.values()),
        floors={names[index]: floor for index, floor in floors.items()},
        seconds=time.monotonic() - started,
    )
    _write(config, manifest, result)
    return result


def _compared_with_maps(config: CalibrateConfig, manifest: Manifest) -> CheckedSegments:
    if config.truth is None:
        raise SettingsError("truth is required")
    truths, checked = Truths.find(config.truth), CheckedSegments(config.min_overlap)
    ignore = truth_ignore(len(manifest.vocabulary)) if config.ignore is None else config.ignore
    for row in rows_of_the_model(config.dataset, manifest, _COLUMNS):
        if truths.of(row["uri"]) is not None:
            checked.add(row, _truth_of(row, truths, ignore))
    return checked


def _truth_of(row: Mapping[str, Any], truths: Truths, ignore: int) -> NDArray[np.int32]:
    try:
        truth_HW = truths.read(row["uri"], (row["height"], row["width"]))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return np.where(truth_HW == ignore, UNKNOWN, truth_HW)


def _write(config: CalibrateConfig, manifest: Manifest, result: CalibrateResult) -> None:
    """Write the floors as `export --class-min-scores` reads them, with where they come from."""
    otherwise = DROP if config.unpromised == "drop" else 0.0
    content = {
        FLOORS: {
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
            "# Score floors for `segmill export --class-min-scores`. They hold for this version, "
            "and rest\n# on the checked images being a random part of it.\n"
        )
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
