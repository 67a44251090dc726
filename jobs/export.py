"""`segmill export`: a version of a dataset in the format of a trainer or of a labelling tool."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from jobs.progress import Progress, Silent
from pipeline.dataset import read_manifest
from pipeline.evaluation.parallel import add_up
from pipeline.exports import find_format
from pipeline.exports.output import INDEX, LEFT_OUT, SHARDS, WORK, Export
from pipeline.exports.pictures import Pictures
from pipeline.exports.selection import Selection
from pipeline.exports.shards import ShardSpec, ShardWriter, plan_shards
from pipeline.files import DRAFT_SUFFIX, delete_files, in_parallel, list_files, read_bytes
from pipeline.sources import source_place
from pipeline.storage import hide_secrets
from schemas.errors import OutputError, SettingsError
from schemas.export_config import ExportConfig
from schemas.export_manifest import EXPORT_LAYOUT, ExportCounts, ExportManifest
from schemas.manifest import Manifest

MANIFEST: Final = "export.json"
_PLAN: Final = f"{WORK}/plan.json"
# Settings that do not decide what is in the files, or that stand there as what was made of them.
_FREE: Final = frozenset(
    {"dataset", "output", "version", "workers", "fetch_attempts", "web_timeout_seconds",
     "max_bad_fraction", "classes",
     "class_min_scores", "min_score", "min_area", "min_margin", "class_min_margins",
     "max_disagreement", "min_stability"}
)  # fmt: skip


@dataclass(frozen=True)
class ExportResult:
    """What the export holds, and how many of its shards were done before this run."""

    output: str
    manifest: ExportManifest
    shards: int
    shards_kept: int
    max_bad_fraction: float
    seconds: float

    @property
    def left_out(self) -> int:
        """Labelled images that are not in it."""
        return sum(self.manifest.counts.left_out.values())


def export(config: ExportConfig, progress: Progress | None = None) -> ExportResult:
    """Write the export, or what an earlier call left undone of it.

    Raises SettingsError before any work for an unknown format, a class list that does not fit, an
    output that holds something else; StoreUnavailableError where images cannot be had: what is
    done is kept.
    """
    started = time.monotonic()
    entry = find_format(config.format)
    if entry.holds_images and config.images != "copy":
        raise SettingsError(
            f"images is {config.images!r}; {config.format} holds the images itself: leave it out"
        )
    manifest = read_manifest(config.dataset, config.version)
    selection = Selection.read(manifest.vocabulary, config)
    decided = _decided(config, manifest, selection)
    shards = plan_shards(manifest, config.images_per_shard)
    place = Export(
        url=config.output,
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        fingerprint=hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest(),
        classes=selection.names,
        num_shards=len(shards),
        has_images=config.images != "none",
    )
    finished = _finished(place, decided)
    if finished is not None:
        return _result(config, finished, len(shards), len(shards), started)
    goes_on = _claim(place, decided)
    writer = _writer(config, manifest, selection, place)
    with progress or Silent() as shown:
        counts, kept = _write_shards(writer, shards, config.workers, shown)
        shown.say("joining what the shards have in common")
        entry.finish(place, counts)
    place.write_lines(INDEX, INDEX)
    place.write_lines(LEFT_OUT, LEFT_OUT)
    if goes_on:  # what was being written when an earlier call was killed
        names = list_files(config.output, "")
        delete_files(config.output, [name for name in names if name.endswith(DRAFT_SUFFIX)])
    finished = _manifest(config, manifest, place, decided, counts)
    place.write(MANIFEST, finished.model_dump_json(indent=1).encode() + b"\n")
    place.tidy()
    return _result(config, finished, len(shards), kept, started)


def _decided(config: ExportConfig, manifest: Manifest, selection: Selection) -> dict[str, Any]:
    """Return all that decides what the files of the export hold."""
    settings = config.model_dump(mode="json", exclude=set(_FREE))
    return {
        "layout": EXPORT_LAYOUT,
        "version": manifest.version,
        "run_id": manifest.run_id,
        "files": [file.sha256 for file in manifest.images],
        "classes": selection.names,
        "targets": selection.targets,
        "floors": selection.floors,
        "margins": selection.margins,
        "min_area": selection.min_area,
        "trust": asdict(selection.trust),
        **settings,
    }


def _finished(place: Export, decided: dict[str, Any]) -> ExportManifest | None:
    """Return the manifest where this export is whole; raises OutputError where another one is."""
    shown = hide_secrets(place.url)
    try:
        manifest = ExportManifest.model_validate_json(read_bytes(place.url, MANIFEST))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise OutputError(f"{MANIFEST} of {shown} is of another layout") from None
    _refuse_another(shown, manifest.fingerprint, place, manifest.settings, decided)
    return manifest


def _claim(place: Export, decided: dict[str, Any]) -> bool:
    """Make the output this export's; say whether it was already, from an earlier call.

    Raises OutputError where the output holds another export, or anything else.
    """
    shown = hide_secrets(place.url)
    try:
        begun = json.loads(read_bytes(place.url, _PLAN))
    except FileNotFoundError:
        if list_files(place.url, ""):
            raise OutputError(
                f"{shown} is not empty and holds no export; name another directory"
            ) from None
        place.write_json(_PLAN, {"fingerprint": place.fingerprint, "decided": decided})
        return False
    _refuse_another(shown, begun["fingerprint"], place, begun["decided"], decided)
    return True


def _refuse_another(
    shown: str, found: str, place: Export, before: dict[str, Any], decided: dict[str, Any]
) -> None:
    if found == place.fingerprint:
        return
    now = json.loads(json.dumps(decided))
    names = [name for name in now if before.get(name) != now[name] and name != "files"]
    raise OutputError(
        f"{shown} holds another export (its {', '.join(names) or 'dataset'} differs); name another "
        "directory, or delete that one"
    )


def _writer(
    config: ExportConfig, manifest: Manifest, selection: Selection, place: Export
) -> ShardWriter:
    return ShardWriter(
        dataset=config.dataset,
        source=source_place(manifest.source),
        format=config.format,
        export=place,
        selection=selection,
        pictures=Pictures.of(config, manifest) if config.images != "none" else None,
        link=config.images == "link",
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
    )


def _write_shards(
    writer: ShardWriter, shards: Sequence[ShardSpec], workers: int | None, progress: Progress
) -> tuple[ExportCounts, int]:
    """Write the shards that are not done yet; return what all hold, and how many were done.

    A shard that left an image out is not: it may be had by now.
    """
    url = writer.export.url
    # What a killed export was writing is still a draft.
    records = [path for path in list_files(url, SHARDS) if not path.endswith(DRAFT_SUFFIX)]
    counts = map(
        ExportCounts.model_validate_json, in_parallel(lambda path: read_bytes(url, path), records)
    )
    numbers = [int(path.rpartition("/")[2].removesuffix(".json")) for path in records]
    done, kept, again = set[int](), ExportCounts(), set[int]()
    for number, found in zip(numbers, counts, strict=True):
        if found.left_out:
            again.add(number)
        else:
            done.add(number)
            kept += found
    if again:
        writer.export.forget(again)
    left = [shard for shard in shards if shard.number not in done]
    progress.start(["export"], len(shards), "shards", done=len(done))

    def handed_out() -> Iterator[ShardSpec]:
        for index, shard in enumerate(left):
            progress.update({"export": len(done) + index})
            yield shard

    return kept + add_up(writer, handed_out(), 1, workers), len(done)


def _manifest(
    config: ExportConfig,
    manifest: Manifest,
    place: Export,
    decided: dict[str, Any],
    counts: ExportCounts,
) -> ExportManifest:
    return ExportManifest(
        format=config.format,
        dataset=place.dataset,
        version=manifest.version,
        run_id=manifest.run_id,
        created=datetime.now(UTC),
        fingerprint=place.fingerprint,
        classes=place.classes,
        ignore=place.ignore,
        settings=decided,
        counts=counts,
    )


def _result(
    config: ExportConfig, manifest: ExportManifest, shards: int, kept: int, started: float
) -> ExportResult:
    return ExportResult(
        output=hide_secrets(config.output),
        manifest=manifest,
        shards=shards,
        shards_kept=kept,
        max_bad_fraction=config.max_bad_fraction,
        seconds=time.monotonic() - started,
    )
