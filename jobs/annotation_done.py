"""What of an inventory is done already: by the newest version, and by runs that were cut short."""

import logging
from collections.abc import Mapping, Sequence

from pipeline.files import in_parallel, list_files
from pipeline.parts import recorded_parts
from pipeline.planner import RETRIED_CODES, Origin, Planner
from schemas.annotate_config import AnnotateConfig
from schemas.manifest import Manifest, Part

logger = logging.getLogger(__name__)

Retried = tuple[str, ...] | None  # error codes of images to be tried again; None: all


def retried_codes(config: AnnotateConfig) -> Retried:
    """Return which quarantined images the settings have tried again."""
    return None if config.retry_quarantined else RETRIED_CODES


def take_over(planner: Planner, dataset: str, base: Manifest | None, retried: Retried) -> list[str]:
    """Tell the planner what is done; return the records of parts that are published since."""
    published = {file.path for file in base.images} if base else set()
    parts = recorded_parts(dataset)
    stale = [record for record, part in parts.items() if part.images.path in published]
    adopted = {record: part for record, part in parts.items() if record not in stale}
    add_parts(planner, dataset, _whole(dataset, adopted), "adopted", retried)
    if base is not None:
        planner.add_done(dataset, base.images, base.embeddings, "published", retried=retried)
    return stale


def _whole(dataset: str, parts: Mapping[str, Part]) -> list[Part]:
    """Return the parts whose files are there; the images of others are done again."""
    folders = {path.rpartition("/")[0] for part in parts.values() for path in part.paths}
    listed = in_parallel(lambda folder: list_files(dataset, folder), sorted(folders))
    there = {path for paths in listed for path in paths}
    for record, part in parts.items():
        if not there.issuperset(part.paths):
            logger.warning("passed over the record %s: its files are gone", record)
    return [part for part in parts.values() if there.issuperset(part.paths)]


def add_parts(
    planner: Planner, dataset: str, parts: Sequence[Part], origin: Origin, retried: Retried
) -> None:
    """Tell the planner of the rows of some parts."""
    planner.add_done(
        dataset,
        [part.images for part in parts],
        [part.embeddings for part in parts if part.embeddings],
        origin,
        retried=retried,
    )
