"""`segmill relabel`: other names, prompts or thresholds for a dataset that kept its embeddings."""

import time
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from jobs.annotation_plan import AnnotationPlan, recorded_settings
from jobs.annotation_run import AnnotateResult, holding
from jobs.progress import Progress, RecordedProgress, Silent
from pipeline.dataset import newest_version, read_manifest
from pipeline.parts import read_columns
from pipeline.secrets import hide_secrets
from schemas.annotate_config import AnnotateConfig
from schemas.annotation import INVENTORY, conform
from schemas.errors import OutputError, SettingsError
from schemas.manifest import Manifest
from schemas.relabel_config import RelabelConfig
from schemas.vocabulary import read_vocabulary

_KEPT: Final = ("image_id", "uri", "etag")


def relabel(config: RelabelConfig, progress: Progress | None = None) -> AnnotateResult:
    """Publish a version of which every label is made again from the kept embeddings.

    Settings that are not given are those of the newest version. Raises OutputError where there is
    no version, SettingsError (or a kind of it) where it keeps no embeddings, where an image has
    none of its models, where the file of its prompts has changed, or where a setting is wrong,
    LockedError when another run holds the dataset, and PublicationError when another run published
    a version since the settings were read.
    """
    started = time.monotonic()
    progress = progress or RecordedProgress(Silent())
    number = newest_version(config.dataset)
    if not number:
        raise OutputError(f"{hide_secrets(config.dataset)} holds no published dataset")
    manifest = read_manifest(config.dataset, number)
    vocabulary = manifest.vocabulary
    if config.vocabulary is not None:
        vocabulary = read_vocabulary(config.vocabulary)
    with progress:
        plan = AnnotationPlan.of(_resolved(config, manifest), vocabulary)
        _refuse_changed_prompts(config, manifest, plan)
        with holding(plan, progress, recalls_only=True) as run:
            run.refuse_other_base(number)
            return run.result(_inventory(config.dataset, manifest), started)


def _resolved(config: RelabelConfig, manifest: Manifest) -> AnnotateConfig:
    """Return the settings of the version with the changes asked for."""
    if not manifest.embeddings:
        raise SettingsError(
            f"version {manifest.version} of {hide_secrets(config.dataset)} keeps no embeddings to "
            "label again; annotate with --keep-embeddings"
        )
    # Where some images have compact ones alone, those count; exact ones give what they always do.
    is_compact = any(file.encoding == "compact" for file in manifest.embeddings)
    changes: dict[str, Any] = {
        **config.model_dump(exclude={"dataset"}, exclude_none=True),
        "output": config.dataset,
        "keep_embeddings": "compact" if is_compact else "exact",
        # No setting of relabelling: a cluster whose workers had to be sent the code has to again.
        "ship_code": config.address != "local" and manifest.config.get("ship_code", False),
    }
    return recorded_settings(config.dataset, manifest, changes)


def _refuse_changed_prompts(
    config: RelabelConfig, manifest: Manifest, plan: AnnotationPlan
) -> None:
    """Raise SettingsError where prompts that nobody asked to change are others than they were."""
    for name, prompts, asked in (
        ("query_prompts", plan.query_prompts, config.prompts),
        ("region_prompts", plan.region_prompts, config.region_prompts or config.prompts),
    ):
        if asked is None and list(prompts.identity) != list(manifest.models[name]):
            raise SettingsError(
                f"the prompts of version {manifest.version} came from {plan.config.prompts!r} "
                f"(region prompts: {plan.config.region_prompts!r}), and what is there now differs; "
                "give --prompts to label with it, or put the file back"
            )


def _inventory(dataset: str, manifest: Manifest) -> Iterator[pa.Table]:
    """Yield the images of a version as INVENTORY rows."""
    for file in manifest.images:
        table = read_columns(dataset, file.path, _KEPT)
        for name in INVENTORY.names:
            if name not in _KEPT:
                nulls = pa.nulls(len(table), INVENTORY.field(name).type)
                table = table.append_column(name, nulls)
        yield conform(table, INVENTORY)
