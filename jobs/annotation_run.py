"""One run on a dataset: what is left of an inventory is done, and the next version published."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Final

import pyarrow as pa

from jobs.annotation_done import add_parts, retried_codes, take_over
from jobs.annotation_flows import run_flows
from jobs.annotation_plan import AnnotationPlan
from jobs.annotation_pools import held_cpus
from jobs.progress import Progress
from pipeline import dataset, runtime
from pipeline.cores import cores
from pipeline.corrections import Corrections
from pipeline.files import delete_files, list_files, write_bytes
from pipeline.lock import DatasetLock, new_run_id
from pipeline.parts import RUNS, merge_embeddings, merge_images, recorded_parts, write_part
from pipeline.plan_records import check_plan, read_plan
from pipeline.planner import Planner
from pipeline.run_log import RunLog
from pipeline.run_records import Recorder
from pipeline.secrets import hide_all_secrets, hide_secrets
from pipeline.sources import source_place
from pipeline.work_units import Work
from schemas.errors import (
    LockedError,
    OutputError,
    PublicationError,
    SegmillError,
    SettingsError,
)
from schemas.manifest import Changes, Counts, DataFile, EmbeddingsFile, Manifest
from schemas.meter import RunMeter
from schemas.runs import ANNOTATE

_RECORDED_PACKAGES: Final = (
    "segmill", "ray", "torch", "open_clip_torch", "transformers", "pyarrow",
)  # fmt: skip
# A pass that leaves something undone, without any error, is repeated; more often is a bug of ours.
_MAX_PASSES: Final = 3


@dataclass(frozen=True)
class AnnotateResult:
    """What a run did; `too_many_bad` is what turns the exit code to 1."""

    output: str
    version: int
    published: bool  # False: the newest version is already what was asked for
    run_id: str
    counts: Counts
    changes: Changes
    ignored: int  # files passed over for their extension
    repeated: int  # uris given more than once
    seconds: float
    too_many_bad: bool
    meter: RunMeter | None  # None: there was nothing to do


@contextmanager
def holding(
    plan: AnnotationPlan, progress: Progress, *, recalls_only: bool = False
) -> Iterator["AnnotationRun"]:
    """Hold the dataset of the plan for a run on it.

    With `recalls_only` nothing is done but labels from kept embeddings. Raises LockedError when
    another run holds the dataset.
    """
    config, run_id = plan.config, new_run_id()
    command = "relabel" if recalls_only else ANNOTATE
    with (
        DatasetLock(config.output, run_id, config.lock_ttl_s, command) as lock,
        RunLog(config.output, run_id),
        Recorder(config.output, run_id, command) as recorder,
        Planner(
            plan.fingerprints, config.plan_memory_mb, cores(), config.keep_embeddings
        ) as planner,
    ):
        identity = _Identity(run_id, lock, recorder)
        yield AnnotationRun(plan, identity, planner, progress, recalls_only=recalls_only)


@dataclass(frozen=True)
class _Identity:
    """What makes a run the one that may write: its id, its lock, its record."""

    run_id: str
    lock: DatasetLock
    recorder: Recorder


@dataclass(frozen=True)
class _Files:
    """The files of the next version."""

    images: list[DataFile]
    embeddings: list[EmbeddingsFile] | None  # None: the newest version is of just these images


class AnnotationRun:
    """One run: compares, does what is left, publishes, tidies up."""

    def __init__(
        self,
        plan: AnnotationPlan,
        identity: _Identity,
        planner: Planner,
        progress: Progress,
        *,
        recalls_only: bool,
    ) -> None:
        self._plan = plan
        self._config = plan.config
        self._output = plan.config.output
        self._run_id = identity.run_id
        self._lock = identity.lock
        self._recorder = identity.recorder
        self._planner = planner
        self._progress = progress
        newest = dataset.newest_version(self._output)
        self._base = dataset.read_manifest(self._output, newest) if newest else None
        corrected = self._base.corrections if self._base else ()
        self._corrections = Corrections.read(self._output, corrected)
        self._published_parts: set[str] = set()  # files of earlier runs that a version names
        self._recorder.version = newest
        self._recalls_only = recalls_only
        self._from_embeddings = 0
        self._meter: RunMeter | None = None

    def result(self, inventory: Iterable[pa.Table], started: float) -> AnnotateResult:
        """Label what is left of the inventory (INVENTORY rows), begun at `started` (monotonic).

        Raises PublicationError when another run published the same version meanwhile.
        """
        repeated = self._planner.add_inventory(inventory)
        self._planner.add_corrections(self._corrections.keys(self._plan.vocabulary.names))
        self._take_over()
        self._correct()
        try:
            manifest = self._published(self._do_what_is_left())
            published = manifest.run_id == self._run_id
            self._recorder.succeed(manifest.version, published=published)
            self._tidy(manifest)
        except SegmillError as error:
            # Of a run that lost the dataset the files may be gone: say so, not that they are.
            with suppress(OutputError):
                self._lock.check()
            if isinstance(error, OutputError):
                # The store took the lock and what was done so far: no setting of it is wrong.
                raise SegmillError(
                    f"{error}; what was finished is kept: run again to go on"
                ) from None
            raise
        counts = manifest.counts
        return AnnotateResult(
            output=hide_secrets(self._output),
            version=manifest.version,
            published=published,
            run_id=self._run_id,
            counts=counts,
            changes=self._changes(),
            ignored=0,
            repeated=repeated,
            seconds=time.monotonic() - started,
            too_many_bad=counts.quarantined > self._config.max_bad_fraction * counts.inventory,
            meter=self._meter,
        )

    def refuse_other_base(self, version: int) -> None:
        """Raise PublicationError where the newest version is not the one that is meant."""
        newest = self._base.version if self._base else 0
        if newest != version:
            raise PublicationError(
                f"version {newest} of {hide_secrets(self._output)} was published by another run "
                f"since version {version} was read; nothing is lost: run again"
            )

    def _correct(self) -> None:
        """Write the corrected rows that are new, or of classes that stand in another order now."""
        images = self._planner.uncorrected()
        if images:
            rows = self._corrections.rows(images, self._plan.vocabulary.names, self._run_id)
            part = write_part(self._output, self._run_id, rows)
            add_parts(self._planner, self._output, [part], "own", self._retried)

    def _take_over(self) -> None:
        """Tell the planner what is done: by runs that were cut short, and in the newest version."""
        stale, self._published_parts = take_over(
            self._planner, self._output, self._base, self._retried
        )
        # Only now, before another version: what no record names is never deleted.
        delete_files(self._output, stale)

    @property
    def _retried(self) -> tuple[str, ...] | None:
        return () if self._recalls_only else retried_codes(self._config)

    def _left(self) -> Work:
        work = self._planner.left(self._output, self._run_id)
        if self._recalls_only and work.relabel.images < work.images:
            raise SettingsError(
                f"{work.images - work.relabel.images} of {self._planner.images} images have no "
                "embeddings of these settings that could be labelled again; `segmill annotate` "
                "with the same settings and --keep-embeddings makes them"
            )
        return work

    def _do_what_is_left(self) -> "_Files":
        """Return the files in which every image of the inventory is, each once."""
        work = self._left()
        if not work.images:
            return self._merged()
        self._from_embeddings = work.recalled
        resolved = json.dumps(hide_all_secrets(self._config.model_dump(mode="json")), indent=2)
        write_bytes(self._output, f"{RUNS}/{self._run_id}/config.json", resolved.encode())
        self._recorder.plan(self._planner.images, work.images)
        self._progress.say(f"{work.images} of {self._planner.images} images are to be done")
        config, started = self._config, time.monotonic()
        cpus = held_cpus(config) if work.fetch.images or work.reclassify.images else 0
        results: list[runtime.FlowResult] = []
        with runtime.cluster(
            config.address, config.object_store_mb, cpus, ship_code=config.ship_code
        ):
            for _ in range(_MAX_PASSES):
                done = list(run_flows(self._plan, work, self._run_id, self._progress))
                parts = [part for result in done for part in result.parts]
                add_parts(self._planner, self._output, parts, "own", self._retried)
                self._correct()
                results += done
                self._measure(results, time.monotonic() - started)
                work = self._left()
                if not work.images:
                    return self._merged()
        raise SegmillError(
            f"{work.images} of {self._planner.images} images came out of no stage; nothing was "
            "published, and what was finished is kept"
        )

    def _measure(self, results: Sequence[runtime.FlowResult], seconds: float) -> None:
        parts = [part for result in results for part in result.parts]
        self._meter = RunMeter(
            images=sum(part.images.rows for part in parts),
            seconds=seconds,
            size_bytes=sum(part.size_bytes for part in parts),
            flows=tuple(result.meter for result in results if result.meter),
        )
        check = check_plan(
            read_plan(self._output),
            self._meter,
            self._plan.fingerprints.label,
            self._config.keep_embeddings,
        )
        self._meter = self._recorder.meter = self._meter.model_copy(update={"plan": check})

    def _merged(self) -> "_Files":
        images = self._planner.outcome(self._config.rows_per_file)
        merge = partial(merge_images, self._output, self._run_id)
        files = images.kept + runtime.map_tasks(merge, images.merges)
        files.sort(key=lambda file: file.path)
        if self._base is not None and files == list(self._base.images):
            return _Files(files, None)
        embeddings = self._planner.embeddings()
        merge_kept = partial(merge_embeddings, self._output, self._run_id)
        return _Files(files, embeddings.kept + runtime.map_tasks(merge_kept, embeddings.merges))

    def _published(self, files: "_Files") -> Manifest:
        """Publish the files as the next version, unless the newest one is just these."""
        counts = _account(self._planner.images, files.images)
        if self._base is not None and files.embeddings is None:
            return self._base
        plan = self._plan
        manifest = Manifest(
            version=self._base.version + 1 if self._base else 1,
            created=datetime.now(UTC),
            run_id=self._run_id,
            lock=self._lock.number,
            fingerprint=plan.fingerprints.label,
            source=self._source,
            vocabulary=plan.vocabulary,
            counts=counts,
            changes=self._changes(),
            images=tuple(files.images),
            embeddings=tuple(files.embeddings or ()),
            corrections=self._base.corrections if self._base else (),
            config=hide_all_secrets(plan.config.model_dump(mode="json")),
            models={
                "proposer_licence": plan.proposer.licence,
                "proposal_fingerprint": plan.fingerprints.proposal,
                "embedding_fingerprint": plan.fingerprints.embedding,
                "divisor": plan.proposer.divisor,
                **plan.deciding,
            },
            software={package: version(package) for package in _RECORDED_PACKAGES},
        )
        self._lock.check()
        dataset.publish(self._output, manifest)
        return manifest

    @property
    def _source(self) -> str:
        """The place of the images; that which was recorded may be told from another folder."""
        if self._recalls_only and self._base:
            return self._base.source
        return hide_secrets(source_place(self._config.source))

    def _changes(self) -> Changes:
        done = self._planner.own()
        return Changes(
            kept=self._planner.images - done,
            done=done,
            from_embeddings=self._from_embeddings,
            removed=self._planner.removed(),
        )

    def _tidy(self, manifest: Manifest) -> None:
        """Delete what publication made superfluous: small parts, their records, lists of work.

        A run that lost the dataset since it published leaves that to the one that has it now.
        """
        # Without the inventory of the source it is not known what another run's parts are good for.
        own = f"{RUNS}/{self._run_id}/" if self._recalls_only else f"{RUNS}/"
        parts = recorded_parts(self._output)
        mine = {record: part for record, part in parts.items() if record.startswith(own)}
        listed = list_files(self._output, RUNS)
        lists = [path for path in listed if path.startswith(own) and "/todo/" in path]
        files = {path for part in mine.values() for path in part.paths}
        files -= manifest.paths | self._published_parts
        try:
            # After they were listed: none is of a run that has taken over since.
            self._lock.check()
            delete_files(self._output, [*mine, *lists])
            # Who takes over from here on finds no record of these files, and publishes none.
            self._lock.check()
        except LockedError:
            return
        delete_files(self._output, sorted(files))


def _account(images: int, files: Sequence[DataFile]) -> Counts:
    """Add up the files; raises SegmillError unless every image of the inventory is in one."""
    labelled = sum(file.labelled for file in files)
    quarantined = sum(file.quarantined for file in files)
    if labelled + quarantined != images:
        raise SegmillError(
            f"{labelled} labelled + {quarantined} quarantined images do not make the {images} of "
            "the inventory; nothing was published"
        )
    reasons: Counter[str] = Counter()
    for file in files:
        reasons.update(file.reasons)
    return Counts(
        inventory=images,
        labelled=labelled,
        quarantined=quarantined,
        reasons=dict(reasons.most_common()),
    )
