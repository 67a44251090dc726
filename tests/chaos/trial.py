"""A schedule, carried out and judged."""

import shutil
import time
from dataclasses import dataclass, field
from random import Random

import s3fs

from jobs.vacuum import vacuum
from pipeline.dataset import read_manifest, versions
from pipeline.files import list_files, read_bytes
from pipeline.lock import LOCKS, Holder
from pipeline.parts import RUNS
from pipeline.text_vectors import texts_path
from pipeline.verification import check_version
from schemas.upkeep_config import VacuumConfig
from tests.chaos.ground import Ground, rows_by_name
from tests.chaos.readers import Reader
from tests.chaos.run import Outcome, Run
from tests.chaos.schedule import Disturbed, Schedule
from tests.chaos.work import Work


@dataclass
class Verdict:
    """What a schedule has shown."""

    seed: int
    output: str
    divergences: list[str] = field(default_factory=list)
    torn_reads: list[str] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    story: list[str] = field(default_factory=list)
    reads: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not self.divergences and not self.torn_reads


def carry_out(schedule: Schedule, ground: Ground) -> Verdict:
    """Run the schedule and judge the dataset that it leaves.

    A dataset that is as it must be is deleted; any other stays for a look at it.
    """
    started = time.monotonic()
    for state in {run.state for run in schedule.runs}:
        ground.reference(state, schedule.stages)
    verdict = Verdict(schedule.seed, ground.output(f"labels-{schedule.seed}"))
    rng = Random(schedule.seed)
    with Reader(verdict.output, schedule.seed) as reader:
        for number, disturbed in enumerate([*schedule.runs, _in_peace(schedule)]):
            ground.set_source(disturbed.state)
            if ground.proxy is not None:
                ground.proxy.rng = Random(f"{schedule.seed} {number}")
                ground.proxy.rate, ground.proxy.faults = disturbed.fault_rate, disturbed.faults
                ground.proxy.injected.clear()
            name = f"{schedule.seed}-{number}"
            outcome = Run(ground, verdict.output, name, disturbed, schedule, rng).result()
            if ground.proxy is not None:
                outcome.struck += [f"{n} x {what}" for what, n in ground.proxy.injected.items()]
                ground.proxy.heal()
            verdict.story.append(_tell(number, outcome))
            verdict.divergences += _faults_of(number, outcome, disturbed)
            if outcome.code is not None:
                verdict.work.after_run(verdict.output, outcome)
    verdict.torn_reads, verdict.reads = reader.torn, reader.reads
    if outcome.code == 0:
        _judge(verdict, ground, schedule)
    if verdict.is_good:
        _delete(verdict.output)
    verdict.seconds = time.monotonic() - started
    return verdict


def _in_peace(schedule: Schedule) -> Disturbed:
    return Disturbed(strikes=(), state=schedule.final_state)


def _tell(number: int, outcome: Outcome) -> str:
    struck = "; ".join(outcome.struck) or "nothing struck"
    writers = f", second writers {outcome.writers}" if outcome.writers else ""
    last = outcome.stderr.strip().splitlines()[-1:] if outcome.code else []
    return (
        f"run {number}: {struck} -> exit {outcome.code}{writers} in {outcome.seconds:.0f} s "
        f"{' '.join(last)[:300]}"
    )


def _faults_of(number: int, outcome: Outcome, disturbed: Disturbed) -> list[str]:
    """Return what a run must not do, whatever strikes it."""
    struck = {strike.what for strike in disturbed.strikes}
    allowed = {0}
    if struck or disturbed.fault_rate:
        # Cut short; locked out by a second writer, or signalled.
        allowed |= {1, 3, 130, 143, -9}
    found = []
    if outcome.code is None:
        found.append(f"run {number} hung and was ended")
    elif outcome.code not in allowed:
        found.append(f"run {number} ended with {outcome.code}: {outcome.stderr[-500:]}")
    if outcome.noise:
        found.append(f"run {number} printed more than its result: {outcome.noise[:3]}")
    if outcome.code == 1 and "run again" not in outcome.stderr:
        found.append(f"run {number} failed without a word: {outcome.stderr[-500:]}")
    if "Traceback" in outcome.stderr:
        found.append(f"run {number} showed a traceback: {outcome.stderr[-3000:]}")
    found += [f"the second writer of run {number} hung" for c in outcome.writers if c is None]
    found += [
        f"the second writer of run {number} ended with {code}"
        for code in outcome.writers
        if code not in {None, 0, 1, 3}
    ]
    found += [f"run {number} left a process behind: {title}" for title in outcome.leftover]
    return found


def _judge(verdict: Verdict, ground: Ground, schedule: Schedule) -> None:
    """Compare the dataset with the undisturbed one, and look whether it is whole and tidy."""
    output, problems = verdict.output, verdict.divergences
    state = schedule.final_state
    expected, found = ground.reference(state, schedule.stages), rows_by_name(ground, output)
    differing = sorted(
        name for name in expected.keys() & found.keys() if found[name] != expected[name]
    )
    if differing:
        problems.append(f"{len(differing)} rows differ, such as {differing[:3]}")
    if missing := len(expected.keys() - found.keys()):
        problems.append(f"{missing} images are missing")
    if foreign := len(found.keys() - expected.keys()):
        problems.append(f"{foreign} images do not belong there")
    problems += _versions_problems(output)
    counts = read_manifest(output).counts
    if not counts.inventory == counts.labelled + counts.quarantined == len(ground.images[state]):
        problems.append(f"{counts} for {len(ground.images[state])} files")
    left = [path for path in list_files(output, RUNS) if "/parts/" in path or "/todo/" in path]
    problems += [f"{path} was left" for path in left]
    locks = [path for path in list_files(output, LOCKS) if path.endswith(".json")]
    if len(locks) != 1:
        problems.append(f"there are {locks}")
    elif not Holder.model_validate_json(read_bytes(output, locks[0])).released:
        problems.append("the lock was not released")
    # What killed runs left without a name is vacuumed away, and nothing else.
    vacuum(VacuumConfig(dataset=output, delete=True, older_than_hours=0, keep_versions=100))
    problems += [f"after vacuum: {problem}" for problem in _versions_problems(output)]
    named = {
        file.path
        for version in versions(output)
        for file in (*read_manifest(output, version).images,
                     *read_manifest(output, version).embeddings)
    }  # fmt: skip
    named |= {
        texts_path(read_manifest(output, version).fingerprint) for version in versions(output)
    }
    stored = {*list_files(output, "images"), *list_files(output, "embeddings")}
    problems += [f"vacuum left {path}" for path in sorted(stored - named)]


def _versions_problems(output: str) -> list[str]:
    return [
        f"version {version}: {problem}"
        for version in versions(output)
        for problem in check_version(output, read_manifest(output, version), None)[0]
    ]


def _delete(output: str) -> None:
    if output.startswith("s3://"):
        s3fs.S3FileSystem(use_listings_cache=False).rm(output, recursive=True)
    else:
        shutil.rmtree(output)
