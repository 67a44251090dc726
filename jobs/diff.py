"""`segmill diff`: what changed between two versions of labels, and whether that is too much."""

import json
import time
from contextlib import ExitStack

from pipeline.comparison.drift import Drift
from pipeline.comparison.join import Joined, Version
from pipeline.comparison.page import write_diff_page
from pipeline.comparison.result import (
    EXAMPLES,
    DiffResult,
    ImageCounts,
    VersionName,
    changed_settings,
    failed_limits,
)
from pipeline.dataset import read_manifest
from pipeline.pages import shown_uri
from pipeline.storage import hide_secrets
from pipeline.whole_file import refuse_unwritable, whole_file
from schemas.diff_config import DiffConfig
from schemas.errors import SettingsError


def diff(config: DiffConfig) -> DiffResult:
    """Compare two versions by image and pixel, and write what was asked for.

    Raises SettingsError when a version cannot be read or a file cannot be written.
    """
    started = time.monotonic()
    before, after = _version(config.before), _version(config.after)
    for path in filter(None, (config.output, config.page)):
        refuse_unwritable(path)
    result = _compare(config, before, after, started)
    with ExitStack() as files:
        if config.output is not None:
            file = files.enter_context(whole_file(config.output))
            json.dump(result.as_json(), file, indent=2)
        if config.page is not None:
            write_diff_page(files.enter_context(whole_file(config.page)), result, before, after)
    return result


def _version(name: str) -> Version:
    """Return the version that DATASET@VERSION names; DATASET alone is its newest one."""
    dataset, at, number = name.rpartition("@")
    if not (at and number.isascii() and number.isdigit()):
        return Version(name, read_manifest(name))
    if not dataset or int(number) < 1:
        raise SettingsError(f"{hide_secrets(name)!r} must be DATASET@VERSION, such as labels@3")
    return Version(dataset, read_manifest(dataset, int(number)))


def _compare(config: DiffConfig, before: Version, after: Version, started: float) -> DiffResult:
    drift = Drift(keep=config.max_images)
    with Joined(before, after, config.memory_mb) as joined:
        for table in joined.shared():
            drift.add_shared(table)
        for table in joined.pairs():
            drift.add_pairs(table)
        images = _image_counts(joined, drift, before)
        status_changes = joined.status_changes()
        examples = {
            "added": joined.absent_examples("after", "before", EXAMPLES),
            "removed": joined.absent_examples("before", "after", EXAMPLES),
            "status": joined.status_examples(EXAMPLES),
        }
    classes = tuple(drift.classes())
    return DiffResult(
        before=VersionName.of(before.dataset, before.manifest),
        after=VersionName.of(after.dataset, after.manifest),
        settings=changed_settings(before.manifest, after.manifest),
        images=images,
        status_changes=status_changes,
        examples={name: tuple(map(shown_uri, uris)) for name, uris in examples.items()},
        classes=classes,
        flows=tuple(drift.flows()),
        largest=tuple(drift.largest()),
        failures=tuple(failed_limits(config, images, classes)),
        seconds=time.monotonic() - started,
    )


def _image_counts(joined: Joined, drift: Drift, before: Version) -> ImageCounts:
    removed, removed_labelled = joined.absent("before", "after")
    added, _ = joined.absent("after", "before")
    return ImageCounts(
        compared=drift.images,
        moved=drift.moved_images,
        replaced=joined.replaced(),
        added=added,
        removed=removed,
        lost=removed_labelled + joined.newly_quarantined(),
        labelled_before=before.manifest.counts.labelled,
        pixels=drift.pixels,
        moved_pixels=drift.moved_pixels,
    )
