"""Some images through the stages of `annotate`, in this process, into a folder that is deleted."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from jobs.annotation_flows import Stages
from pipeline.fetching import IN_FLIGHT
from pipeline.meter import Spent, add_to, timed
from pipeline.parts import write_part
from pipeline.stages.fetch import FETCH
from pipeline.stages.rows import slices
from schemas.annotation import QUARANTINED, conform

_RUN: Final = "probe"
_ROWS_PER_PART: Final = 64
# The first images fill caches and start the decoder: they are left out where there are others.
_WARMING_ROUNDS: Final = 1
_LEAST_ROUNDS: Final = 4


class Step(Protocol):
    """What fetching and the stages have in common."""

    @property
    def name(self) -> str:
        """The step of the meter."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of the result."""

    def __call__(self, images: pa.Table, /) -> pa.Table:
        """Return one row per row of `images`."""


@dataclass
class Probe:
    """What the images took, by step, and how many bytes they became."""

    images: int = 0
    quarantined: int = 0
    warm_up_s: float = 0.0
    row_bytes: int = 0
    embeddings_bytes: int = 0
    spent: dict[str, Spent] = field(default_factory=dict)


def probe(
    stages: Stages, images: pa.Table, batches: tuple[int, int], on_progress: Callable[[int], None]
) -> Probe:
    """Return what INVENTORY rows take; `batches` are those of the two pools.

    Fetching asks the store that the images are in; writing goes to a disk of this machine. Raises
    StoreUnavailableError where none of some images can be fetched.
    """
    result = Probe(images=len(images))
    started = time.monotonic()
    stages.propose.warm_up()
    stages.classify.warm_up()
    result.warm_up_s = time.monotonic() - started
    rounds, waiting = [], []
    with TemporaryDirectory(prefix="segmill-probe-") as folder:
        for share in slices(images, max(IN_FLIGHT, *batches)):
            spent, annotated = _round(stages, share, batches)
            rounds.append(spent)
            waiting.append(annotated)
            result.quarantined += pc.sum(pc.equal(annotated["status"], QUARANTINED)).as_py()
            if sum(map(len, waiting)) >= _ROWS_PER_PART:
                rounds.append(_write(folder, pa.concat_tables(waiting), result))
                waiting = []
            on_progress(len(share))
        if waiting:
            rounds.append(_write(folder, pa.concat_tables(waiting), result))
    for spent in rounds[_WARMING_ROUNDS if len(rounds) >= _LEAST_ROUNDS else 0 :]:
        add_to(result.spent, spent)
    if rounds:
        result.spent[FETCH] = waited_for(result.spent[FETCH], result.spent[stages.fetch.name])
    return result


def waited_for(fetching: Spent, decoding: Spent) -> Spent:
    """Return what of fetching a task waits for: images are fetched while others are decoded."""
    return replace(fetching, busy_s=max(0.0, fetching.busy_s - decoding.busy_s))


def _round(
    stages: Stages, images: pa.Table, batches: tuple[int, int]
) -> tuple[dict[str, Spent], pa.Table]:
    spent: dict[str, Spent] = {FETCH: Spent()}  # the first of the steps
    steps: tuple[tuple[Step, int], ...] = (
        (stages.fetch, IN_FLIGHT),
        (stages.propose, batches[0]),
        (stages.classify, batches[1]),
    )
    for stage, rows in steps:
        done = []
        for batch in slices(images, rows):
            with timed(stage.name) as section:
                done.append(conform(stage(batch), stage.schema))
                section.count(len(batch), done[-1].nbytes)
            add_to(spent, section.spent)
        images = pa.concat_tables(done)
    return spent, images


def _write(folder: str, rows: pa.Table, result: Probe) -> dict[str, Spent]:
    with timed("write") as section:
        part = write_part(folder, _RUN, rows)
        section.count(len(rows), part.size_bytes)
    result.row_bytes += part.images.size_bytes
    result.embeddings_bytes += part.size_bytes - part.images.size_bytes
    return section.spent
