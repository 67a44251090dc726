"""`segmill vacuum`: delete old versions, and files that no version names."""

import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from pipeline.dataset import MANIFESTS, manifest_path, read_manifest, versions
from pipeline.files import FileFacts, delete_files, list_facts
from pipeline.lock import DatasetLock, new_run_id
from pipeline.parts import (
    CORRECTIONS_FOLDER,
    EMBEDDINGS_FOLDER,
    IMAGES,
    RUNS,
    is_record,
    recorded_parts,
)
from pipeline.storage import hide_secrets
from pipeline.text_vectors import texts_path
from schemas.errors import OutputError
from schemas.upkeep_config import VacuumConfig

# What Segmill writes, and drafts of it. In the same folders there may be photos of the user.
_OURS: Final = re.compile(
    rf"(({IMAGES}|{EMBEDDINGS_FOLDER}|{CORRECTIONS_FOLDER})/run=[^/]+/part-[0-9a-f]{{24}}\.parquet"
    rf"|{EMBEDDINGS_FOLDER}/texts-[0-9a-f]{{24}}\.npz"
    rf"|{MANIFESTS}/v\d+\.json)(\.[0-9a-f]{{32}}\.draft)?"
    rf"|{RUNS}/.+"
)


@dataclass(frozen=True)
class VacuumResult:
    """What was deleted, or would be."""

    dataset: str
    deleted: bool
    versions: tuple[int, ...]
    files: tuple[str, ...]
    size_bytes: int


def vacuum(config: VacuumConfig) -> VacuumResult:
    """Delete what is old and of no use; only list it unless `delete` is set.

    A version is kept when it is among the newest or young; a file when a kept version names it or
    it is young; one that Segmill did not write is none of its business. Raises LockedError when a
    run is at work on the dataset, and OutputError where there is no dataset.
    """
    _versions(config.dataset)
    lock = DatasetLock(config.dataset, f"vacuum-{new_run_id()}", config.lock_ttl_s, "vacuum")
    with lock if config.delete else nullcontext():
        dropped, files = _superfluous(config)
        if config.delete:
            lock.check()
            # Manifests and records first: none may name a file that is gone.
            records = [path for path in files if is_record(path)]
            manifests = [manifest_path(number) for number in dropped]
            delete_files(config.dataset, manifests + records)
            delete_files(config.dataset, [path for path in files if not is_record(path)])
    return VacuumResult(
        dataset=hide_secrets(config.dataset),
        deleted=config.delete,
        versions=tuple(dropped),
        files=tuple(files),
        size_bytes=sum(facts.size_bytes for facts in files.values()),
    )


def _versions(dataset: str) -> list[int]:
    """Return the published versions; without any, everything would be superfluous."""
    if not (numbers := versions(dataset)):
        raise OutputError(f"{hide_secrets(dataset)} holds no published dataset")
    return numbers


def _superfluous(config: VacuumConfig) -> tuple[list[int], dict[str, FileFacts]]:
    oldest = time.time() - config.older_than_hours * 3600
    numbers = _versions(config.dataset)
    old = numbers[: -config.keep_versions]
    named = {manifest_path(number) for number in numbers}  # dropped ones are told apart
    dropped, runs = [], set()
    for number in numbers:  # one manifest at a time: each names all files of a version
        manifest = read_manifest(config.dataset, number)
        if number in old and manifest.created.timestamp() < oldest:
            dropped.append(number)
            continue
        named |= {*manifest.paths, texts_path(manifest.fingerprint)}
        runs.add(manifest.run_id)
    stored = {
        path: facts
        for folder in (IMAGES, EMBEDDINGS_FOLDER, CORRECTIONS_FOLDER, RUNS, MANIFESTS)
        for path, facts in list_facts(config.dataset, folder).items()
    }
    young = {path for path, facts in stored.items() if (facts.changed or 0) >= oldest}
    # A part goes or stays whole, or its record would name a file that is gone.
    for record, part in recorded_parts(config.dataset).items():
        if not young.isdisjoint({record, *part.paths}):
            named |= {record, *part.paths}
    kept_files = named | young
    return dropped, {
        path: facts
        for path, facts in stored.items()
        if path not in kept_files and _OURS.fullmatch(path) and not _is_config_of(path, runs)
    }


def _is_config_of(path: str, runs: set[str]) -> bool:
    folder, run, *rest = path.split("/")
    return folder == RUNS and run in runs and rest[0] not in ("parts", "todo")
