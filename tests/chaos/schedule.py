"""What happens to a dataset, drawn from a seed: which runs, what strikes them, and when."""

import random
from dataclasses import dataclass, replace
from typing import Final

from tests.chaos.ground import IMAGES, Stages
from tests.chaos.proxy import FAULTS

# What a run outlives, by Ray's and our own retries.
WORKERS: Final = ("propose", "classify", "board", "worker")
# What ends a run, which then goes on when it is started again.
ENDS: Final = ("driver", "raylet", "gcs", "terminate", "interrupt")

_EVERY: Final = 8  # schedules of which at least one is with the tiny models


@dataclass(frozen=True)
class Moment:
    """A point of a run: once `what` was seen `count` times, and then `delay_s` later.

    Kinds: `said` (the start of a line of progress), `done` (images that have left a stage),
    `files` (files of the dataset whose path matches), and, where the store is behind the proxy,
    `request` (requests "METHOD path" to the dataset that match, held meanwhile: before they are
    carried out, or after).
    """

    kind: str
    what: str
    count: int = 1
    delay_s: float = 0.0
    after: bool = False


@dataclass(frozen=True)
class Strike:
    """What is done to a run: a process that is killed, a second writer, a pause of the driver."""

    what: str
    moment: Moment


@dataclass(frozen=True)
class Disturbed:
    """One run, on one of the two states of the source."""

    strikes: tuple[Strike, ...]
    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    state: int = 0


@dataclass(frozen=True)
class Schedule:
    """Disturbed runs one after the other; after them the command is left in peace."""

    seed: int
    store: str
    runs: tuple[Disturbed, ...]
    settings: tuple[tuple[str, str], ...] = ()
    stages: Stages = "quick"

    @property
    def final_state(self) -> int:
        return self.runs[-1].state


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    rng = random.Random(seed)
    store = rng.choice(["disk", "s3"])
    runs = [_disturbed(rng, store) for _ in range(rng.choice([1, 1, 2]))]
    # After a run that finished there is nothing to do, but on a source that has changed.
    was_ended = any(strike.what in ENDS for strike in runs[0].strikes)
    if len(runs) > 1 and (not was_ended or rng.random() < 0.6):
        runs[-1] = replace(runs[-1], state=1)
    settings = {"rows-per-file": rng.choice(["24", "40", "32768"])}
    if rng.random() < 0.25:
        settings["keep-embeddings"] = rng.choice(["exact", "compact"])
    # Embeddings are a matter of the models.
    stages: Stages = "tiny" if "keep-embeddings" in settings or seed % _EVERY == 0 else "quick"
    return Schedule(seed, store, tuple(runs), tuple(settings.items()), stages)


def _disturbed(rng: random.Random, store: str) -> Disturbed:
    strikes = [_strike(rng, store) for _ in range(rng.choice([1, 1, 2, 3]))]
    rate = 0.0
    if store == "s3":
        rate = rng.choice([0.0, 0.05, 0.15, 0.3])
        if rate and rng.random() < 0.25:
            strikes = []  # faults alone
    return Disturbed(tuple(strikes), rate)


def _strike(rng: random.Random, store: str) -> Strike:
    kind = rng.choices(["worker", "end", "second", "pause"], [4, 5, 1.5, 1])[0]
    moment = _moment(rng, store)
    if kind == "worker":
        # Workers live from the start of Ray to the end of the stages.
        return Strike(rng.choice(WORKERS), rng.choice([_progress, _parts])(rng))
    if kind == "end":
        what = rng.choices(ENDS, [5, 2, 1, 1, 1])[0]
        return Strike(what, moment if what not in {"raylet", "gcs"} else _progress(rng))
    return Strike(kind, rng.choice([_progress, _parts])(rng))


def _moment(rng: random.Random, store: str) -> Moment:
    if store == "s3" and rng.random() < 0.5:
        return _request(rng)
    return rng.choice([_start, _progress, _parts, _publication])(rng)


def _start(rng: random.Random) -> Moment:
    said = rng.choice(["listing", "listing", f"{IMAGES}", "prompting"])
    if said == f"{IMAGES}":  # "... of ... images are to be done": Ray is started
        return Moment("said", "", count=2, delay_s=rng.uniform(0, 8))
    return Moment("said", said, delay_s=rng.uniform(0, 8 if said == "prompting" else 0.3))


def _progress(rng: random.Random) -> Moment:
    if rng.random() < 0.3:
        return Moment("said", "prompting", delay_s=rng.uniform(0, 10))
    return Moment("done", rng.choice(["propose", "classify"]), count=rng.randint(1, IMAGES))


def _parts(rng: random.Random) -> Moment:
    delay_s = rng.uniform(0, 0.02)
    pattern = rng.choice(["_runs/.*/parts/", "images/.*parquet$", r"images/.*\.draft$"])
    return Moment("files", pattern, count=rng.randint(1, 3), delay_s=delay_s)


def _publication(rng: random.Random) -> Moment:
    pattern = rng.choice(["_manifest/.*json$", "_manifest/.*json$", "_manifest/"])
    return Moment("files", pattern, delay_s=rng.choice([0.0, 0.0, 0.005, 0.02]))


def _request(rng: random.Random) -> Moment:
    what, most = rng.choice(
        [
            ("PUT _manifest/", 1),
            ("PUT images/", 5),
            ("PUT _runs/.*/parts/", 4),
            ("PUT _runs/.*/todo/", 1),
            ("PUT _lock/", 4),
            ("DELETE _runs/.*/parts/", 3),
            ("DELETE images/", 3),
            ("GET images/", 4),
            ("GET _runs/", 4),
        ]
    )
    return Moment("request", what, count=rng.randint(1, most), after=rng.random() < 0.5)
