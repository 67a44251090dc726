"""The Ray side: workers that die, errors that cross processes, parts that are written."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pytest

import pipeline.runtime.flow
from pipeline import runtime
from pipeline.meter import Spent
from pipeline.parts import recorded_parts
from pipeline.runtime import board
from pipeline.runtime.board import TASKS, Board, Crew
from pipeline.runtime.metrics import FlowMetrics
from pipeline.stages.rows import is_quarantined
from schemas.annotation import ANNOTATED, DECODED, LABELLED, image_id, table_from_rows
from schemas.errors import ModelError, SegmillError
from tests.dataset_checks import check_rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@dataclass(frozen=True)
class Names:
    """Units -> rows named by the unit's image_ids."""

    name: ClassVar[str] = "decode"
    steps: ClassVar[tuple[str, ...]] = ("decode",)
    schema: ClassVar[pa.Schema] = DECODED

    def __call__(self, unit: dict[str, Any], /) -> Iterator[pa.Table]:
        rows = [
            {"image_id": image_id(uri), "uri": uri, "status": LABELLED, "height": 2, "width": 2}
            for uri in unit["image_ids"]
        ]
        yield table_from_rows(rows, DECODED)


@dataclass(frozen=True)
class Mark:
    """DECODED -> ANNOTATED; some names kill the worker or raise, every time or only once."""

    name: ClassVar[str] = "mark"
    schema: ClassVar[pa.Schema] = ANNOTATED

    log: str
    without_model: bool = False

    def warm_up(self) -> None:
        if self.without_model:
            raise ModelError("the model does not load")

    def __call__(self, images: pa.Table, /) -> pa.Table:
        rows = images.to_pylist()
        for row in rows:
            if not is_quarantined(row):
                self._meet(row["uri"])
        kept = {
            "fingerprint": "f",
            "run_id": "run",
            "annotator": "model",
            "n_proposals": 0,
            "coverage": 0.0,
        }
        return table_from_rows(
            [
                {"segments": [], **kept, **{k: v for k, v in row.items() if k in ANNOTATED.names}}
                for row in rows
            ],
            ANNOTATED,
        )

    def _meet(self, uri: str) -> None:
        log = Path(self.log)
        if uri.startswith(("deadly", "once")):
            met = log.read_text().splitlines() if log.exists() else []
            if uri.startswith("deadly") or uri not in met:
                with log.open("a") as file:
                    print(uri, file=file)
                os.kill(os.getpid(), signal.SIGKILL)
        if uri == "model":
            raise ModelError("there is no model")
        if uri == "bug":
            raise ZeroDivisionError("secret of s3://key:hidden@bucket/x")


def run(
    tmp_path: Path,
    units: list[list[str]],
    rows_per_part: int = 4,
    actors: int = 1,
    sizes_tried: tuple[int, ...] = (),
) -> str:
    dataset = str(tmp_path / "labels")
    table = pa.Table.from_pylist(
        [{"path": "", "row_group": 0, "image_ids": names} for names in units]
    )
    mark = Mark(str(tmp_path / "log"))
    stage = runtime.Placement(mark, batch_size=4, actors=actors, sizes_tried=sizes_tried)
    flow = runtime.Flow(table, sum(map(len, units)), Names(), [stage])
    seen: list[dict[str, int]] = []
    result = runtime.run_flow(
        flow, dataset, "run", rows_per_part, lambda done: seen.append(dict(done))
    )
    parts, meter = result.parts, result.meter
    assert meter is not None and meter.seconds > 0 and meter.start_up_s > 0
    assert [stage.name for stage in meter.stages] == ["decode", "mark", "write"]
    assert [stage.pool for stage in meter.stages] == ["tasks", "mark", "tasks"]
    assert meter.images == meter.stages[-1].images == sum(map(len, units))
    assert meter.stages[1].workers == actors and meter.stages[1].busy_s > 0
    assert set(meter.stages[1].tried_s) == set(sizes_tried)
    assert all(seconds > 0 for seconds in meter.stages[1].tried_s.values())
    assert meter.stages[-1].size_bytes == sum(part.size_bytes for part in parts)
    assert meter.ceiling > 0 and meter.binds is not None
    assert sorted(parts, key=str) == sorted(recorded_parts(dataset).values(), key=str)
    total = sum(map(len, units))
    assert sum(part.images.rows for part in parts) == total
    assert seen[-1]["write"] == total
    return dataset


@dataclass(frozen=True)
class Slow(Mark):
    """A stage that takes its time."""

    def __call__(self, images: pa.Table, /) -> pa.Table:
        time.sleep(0.2)
        return super().__call__(images)


def test_a_cluster_that_grows_while_a_flow_runs_is_metered_by_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A head alone at the start.
    sizes = chain([(1, 1)], repeat((7, 9)))
    monkeypatch.setattr(pipeline.runtime.flow, "_size", lambda flow: next(sizes))
    monkeypatch.setattr(pipeline.runtime.flow, "started_here", lambda: False)
    table = pa.Table.from_pylist(
        [{"path": "", "row_group": 0, "image_ids": [f"{unit}"]} for unit in range(8)]
    )
    stage = runtime.Placement(Slow(str(tmp_path / "log")), batch_size=1, actors=1)
    flow = runtime.Flow(table, 8, Names(), [stage])
    result = runtime.run_flow(flow, str(tmp_path / "labels"), "run", 4, lambda done: None)
    assert result.meter is not None
    assert result.meter.cores > 1
    assert [stage.workers > 1 for stage in result.meter.stages] == [True, False, True]


def test_workers_of_tasks_count_for_as_long_as_they_were_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, planned = [0.0], []

    class Metrics(FlowMetrics):
        def plan(self, workers: Mapping[str, int], images: int) -> None:
            planned.append((dict(workers), images))

    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(board, "FlowMetrics", Metrics)
    pool_of = {"decode": TASKS, "mark": "mark", "write": TASKS}
    flow_board = Board(Crew("run", 40, pool_of, {"mark": 2, TASKS: 1}, cores=1))
    for at, size in ((0.5, (1, 1)), (15.0, (9, 12)), (16.0, (9, 12))):
        now[0] = at
        flow_board.resize(*size)
    for at, step, busy_s in ((11.0, "decode", 1.0), (20.0, "decode", 40.0), (20.0, "write", 5.0)):
        now[0] = at
        flow_board.add({step: Spent(20, 0, busy_s, busy_s)})
    meter = flow_board.meter()
    assert meter is not None
    # One for five seconds, then nine for five; 6.5 cores.
    decode, write = meter.stages
    assert (decode.workers, write.workers, meter.cores) == (5, 5, 7)
    assert decode.worker_s == write.worker_s == 50.0
    assert planned == [
        ({"decode": 1, "mark": 2, "write": 1}, 40),
        ({"decode": 9, "mark": 2, "write": 9}, 40),
    ]


def rows_of_parts(dataset: str) -> dict[str, dict[str, Any]]:
    import pyarrow.parquet as pq

    rows = []
    for part in recorded_parts(dataset).values():
        rows += pq.ParquetFile(f"{dataset}/{part.images.path}").read().to_pylist()
    check_rows(rows, whole=False)
    return {row["uri"]: row for row in rows}


def test_an_image_that_kills_its_worker_is_quarantined_and_no_other(tmp_path: Path) -> None:
    units = [["a", "b", "deadly", "c"], ["d", "e", "f"]]
    rows = rows_of_parts(run(tmp_path, units))
    assert len(rows) == 7
    error = rows.pop("deadly")["error"]
    assert (error["stage"], error["code"]) == ("mark", "worker_died")
    assert {row["status"] for row in rows.values()} == {LABELLED}
    # Once in its batch, three times alone, and never again.
    assert (tmp_path / "log").read_text().splitlines() == ["deadly"] * 4


def test_sizes_of_batches_are_tried_in_turn_and_lose_no_image(tmp_path: Path) -> None:
    names = [f"image-{number}" for number in range(32)]
    # Batches of four, cut into calls of 1, 2 and 4; the first of each only warms up.
    rows = rows_of_parts(run(tmp_path, [names], sizes_tried=(1, 2, 4)))
    assert set(rows) == set(names)


def test_a_worker_that_dies_for_another_reason_costs_no_image(tmp_path: Path) -> None:
    units = [["a", "once-1", "b", "c"], ["d", "once-2"], ["e", "f", "g"]]
    rows = rows_of_parts(run(tmp_path, units, actors=2))
    assert len(rows) == 9
    assert {row["status"] for row in rows.values()} == {LABELLED}


def test_parts_are_about_as_large_as_asked(tmp_path: Path) -> None:
    dataset = run(tmp_path, [[f"{n}-{k}" for k in range(6)] for n in range(8)], rows_per_part=8)
    sizes = [part.images.rows for part in recorded_parts(dataset).values()]
    assert sum(sizes) == 48 and max(sizes) <= 16


def test_our_own_error_comes_out_of_a_worker_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        run(tmp_path, [["a", "model"]])
    assert str(caught.value) == "there is no model"


def test_a_model_that_does_not_load_is_no_fault_of_an_image(tmp_path: Path) -> None:
    stage = runtime.Placement(Mark(str(tmp_path / "log"), without_model=True), 4, actors=1)
    table = pa.Table.from_pylist([{"path": "", "row_group": 0, "image_ids": ["a"]}])
    flow = runtime.Flow(table, 1, Names(), [stage])
    with pytest.raises(ModelError, match="the model does not load"):
        runtime.run_flow(flow, str(tmp_path / "labels"), "run", 4, lambda done: None)
    assert not recorded_parts(str(tmp_path / "labels"))


def test_any_other_error_is_one_line_without_secrets(tmp_path: Path) -> None:
    with pytest.raises(SegmillError) as caught:
        run(tmp_path, [["a", "b"], ["bug"]])
    text = str(caught.value)
    assert "ZeroDivisionError" in text and "run again to go on" in text
    assert "hidden" not in text and "\n" not in text


def test_work_is_mapped_over_the_cluster_in_order() -> None:
    assert runtime.map_tasks(str.upper, ["a", "b", "c"]) == ["A", "B", "C"]
