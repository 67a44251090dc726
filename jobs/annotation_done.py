"""What of an inventory is done already: by the newest version, and by runs that were cut short."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from pipeline.dataset import read_manifest, versions
from pipeline.files import in_parallel, list_files
from pipeline.parts import recorded_parts
from pipeline.planner import RETRIED_CODES, Origin, Planner
from schemas.annotate_config import AnnotateConfig
from schemas.manifest import EmbeddingsFile, Manifest, Part

logger = logging.getLogger(__name__)

Retried = tuple[str, ...] | None  # error codes of images to be tried again; None: all


def retried_codes(config: AnnotateConfig) -> Retried:
    """Return which quarantined images the settings have tried again."""
    return None if config.retry_quarantined else RETRIED_CODES


def take_over(
    planner: Planner, dataset: str, base: Manifest | None, retried: Retried
) -> tuple[list[str], set[str]]:
    """Tell the planner what is done.

    Returns the records of parts that are published since, and those files of all recorded parts
    that a version names.
    """
    parts = recorded_parts(dataset)
    published = _published(dataset, parts.values(), base)
    stale = [record for record, part in parts.items() if part.images.path in published]
    adopted = {record: part for record, part in parts.items() if record not in stale}
    add_parts(planner, dataset, _whole(dataset, adopted), "adopted", retried)
    if base is not None:
        embeddings = _stored(dataset, base)
        planner.add_done(dataset, base.images, embeddings, "published", retried=retried)
    return stale, published


def _published(dataset: str, parts: Iterable[Part], base: Manifest | None) -> set[str]:
    """Return the files of the parts that a version names, be it an old one."""
    files = {path for part in parts for path in part.paths}
    named = files & base.paths if base else set()
    # A part that was published is left by a run that was killed before it had tidied up.
    if base is not None and files != named:
        for number in versions(dataset):
            if number != base.version:
                named |= files & read_manifest(dataset, number).paths
    return named


def _whole(dataset: str, parts: Mapping[str, Part]) -> list[Part]:
    """Return the parts whose files are there; the images of others are done again."""
    there = _beside(dataset, [path for part in parts.values() for path in part.paths])
    for record, part in parts.items():
        if not there.issuperset(part.paths):
            logger.warning("passed over the record %s: its files are gone", record)
    return [part for part in parts.values() if there.issuperset(part.paths)]


def _stored(dataset: str, base: Manifest) -> list[EmbeddingsFile]:
    """Return the embeddings of a version that are there; of others it is as if none were kept."""
    there = _beside(dataset, [file.path for file in base.embeddings])
    stored = [file for file in base.embeddings if file.path in there]
    if len(stored) < len(base.embeddings):
        logger.warning(
            "%d of %d files of embeddings are gone: their images are done anew where embeddings "
            "are to be kept",
            len(base.embeddings) - len(stored),
            len(base.embeddings),
        )
    return stored


def _beside(dataset: str, paths: Iterable[str]) -> set[str]:
    """Return all files that are in the folders of these."""
    folders = sorted({path.rpartition("/")[0] for path in paths})
    listed = in_parallel(lambda folder: list_files(dataset, folder), folders)
    return {path for found in listed for path in found}


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
