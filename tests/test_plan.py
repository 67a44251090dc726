"""`segmill plan`: what is predicted from a probe, what it leaves behind, and how wrong it was."""

import json

import pyarrow as pa
import pytest
from PIL import Image

from jobs.annotation_pools import planned_pools
from jobs.cli import main
from jobs.plan_probe import waited_for
from pipeline.meter import Spent
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.plan_records import check_plan, read_plan, write_plan
from pipeline.pool_sizes import Pool
from pipeline.prediction import Machines, predict
from pipeline.synthetic import make_scene
from schemas.annotation import image_id
from schemas.meter import RunMeter
from schemas.plan import PlanRecord
from tests.test_planner import Plan, images, inventory, row

RECORD = PlanRecord(
    created="2026-01-01T00:00:00+00:00",
    fingerprint="f",
    keep_embeddings=None,
    images=100,
    start_up_s=10.0,
    seconds_per_image=0.5,
    bytes_per_image=1000.0,
)


def spent(seconds, cpu_s=0.0, images=10):
    return Spent(images, 0, seconds * images, cpu_s * images)


def machines(cpus, gpus=0, **other):
    values = {"actor_cpus": 1, "is_one_machine": False, "cpu_hour_price": 0.1}
    return Machines(cpus=cpus, gpus=gpus, gpu_hour_price=2.0, **{**values, **other})


STEPS = {
    "fetch": spent(0.02),
    "decode": spent(0.02, 0.02),
    "propose": spent(0.1, 0.01),
    "classify": spent(0.5, 0.01),
    "write": spent(0.01),
}


@pytest.mark.parametrize("fetch_s, waited_s", [(0.05, 0.03), (0.01, 0.0)], ids=["slow", "fast"])
def test_of_fetching_a_plan_counts_what_decoding_does_not_hide(fetch_s, waited_s):
    waited = waited_for(spent(fetch_s, 0.004), spent(0.02, 0.02))
    assert waited.busy_s == pytest.approx(waited_s * 10)
    assert (waited.images, waited.cpu_s) == (10, pytest.approx(0.04))


def test_a_cluster_is_predicted_from_its_slowest_pool():
    pools = {"propose": Pool(0.0, gpus=1.0), "classify": Pool(0.0, gpus=1.0)}
    found = predict(36_000, STEPS, 6.0, machines(64, 6), pools)
    assert (found.sizes, found.flow.binds) == ({"propose": 1, "classify": 5}, "propose")
    assert found.seconds == pytest.approx(20.0 + 3600)
    assert found.gpu_hours == pytest.approx(6 * found.seconds / 3600)
    assert found.cost == pytest.approx(6 * 2.0 * found.seconds / 3600 + 6.4 * found.seconds / 3600)
    # Twice the images: twice the time, but for the start.
    more = predict(72_000, STEPS, 6.0, machines(64, 6), pools)
    assert more.seconds - 20.0 == pytest.approx(2 * (found.seconds - 20.0))


def test_pools_that_share_the_only_gpu_do_not_both_have_all_of_it():
    steps = {**STEPS, "propose": spent(0.1, 0.1), "classify": spent(0.1, 0.1)}
    for count, rate, binds in ((1, 5.0, "gpus"), (2, 10.0, "propose")):
        pools = planned_pools(machines(64, count), (None, None), (None, None))
        found = predict(36_000, steps, 6.0, machines(64, count), pools)
        assert found.sizes == {"propose": 1, "classify": 1}
        assert (found.images_per_s, found.binds) == (pytest.approx(rate), binds)
        assert found.seconds == pytest.approx(20.0 + 36_000 / rate)
        assert sum(found.sizes[name] * pool.gpus for name, pool in pools.items()) == count


def test_on_one_machine_the_cores_are_shared():
    steps = {**STEPS, "propose": spent(0.1, 0.2), "classify": spent(0.1, 0.2)}
    here = machines(2, actor_cpus=1, is_one_machine=True)
    found = predict(100, steps, 0.0, here, {"propose": Pool(0.0), "classify": Pool(0.0)})
    assert found.sizes == {"propose": 1, "classify": 1}
    # An actor of one core takes 0.2 s; both and the decoder together 0.42 s of two cores.
    assert found.flow.binds == "cores" and found.seconds_per_image == pytest.approx(0.21)


def test_a_plan_is_compared_with_runs_of_its_settings_alone(tmp_path):
    dataset = str(tmp_path / "labels")
    assert read_plan(dataset) is None
    write_plan(dataset, RECORD)
    meter = RunMeter(images=60, seconds=50.0, size_bytes=66_000, flows=())
    check = check_plan(read_plan(dataset), meter, "f", None)
    assert (check.predicted_s, check.actual_s) == (40.0, 50.0)
    assert (check.predicted_bytes, check.actual_bytes) == (60_000, 66_000)
    assert check_plan(RECORD, meter, "other", None) is None
    assert check_plan(RECORD, meter, "f", "exact") is None
    assert check_plan(None, meter, "f", None) is None
    (tmp_path / "labels" / "_runs" / "plan.json").write_text("{}")
    assert read_plan(dataset) is None


def test_a_preview_counts_what_is_left_and_writes_nothing(tmp_path, planner_of):
    dataset = str(tmp_path / "labels")
    listed = inventory(a="1", b="1", c="2", d="1")
    plan = planner_of(dataset, listed).done(images(dataset, row("a"), row("c")))
    before = sorted(tmp_path.rglob("*"))
    preview = plan.planner.preview(2)
    assert (preview.fetch, preview.reclassify, preview.relabel) == (3, 0, 0)
    assert len(preview.sample) == 2
    assert plan.planner.preview(2).sample.equals(preview.sample)
    everything = plan.planner.preview(9).sample["image_id"].to_pylist()
    assert set(everything) == set(map(image_id, "bcd"))
    assert isinstance(preview.sample, pa.Table) and sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def planner_of():
    from pipeline.planner import Planner
    from tests.classify import FINGERPRINTS

    opened = []

    def make(dataset, listed):
        planner = Planner(FINGERPRINTS, 64, 1)
        opened.append(planner.__enter__())
        return Plan(dataset, planner, listed)

    yield make
    for planner in opened:
        planner.__exit__(None, None, None)


def test_a_plan_probes_predicts_and_publishes_nothing(tmp_path, capsys):
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for index in range(3):
        Image.fromarray(make_scene(5_000, index).image_HW3).save(scenes / f"{index}.png")
    (scenes / "bad.png").write_text("no image")
    labels = tmp_path / "labels"
    arguments = ["plan", str(scenes), "--vocabulary", str(EMBEDDED_VOCABULARY)]
    arguments += ["--output", str(labels), "--cpu-hour-price", "0.05"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["inventory"], told["images"], told["probe_images"]) == (4, 4, 4)
    assert told["probe_quarantined"] == 1 and told["findings"] == []
    assert list(told["stages"]) == ["fetch", "decode", "propose", "classify", "write"]
    assert told["row_bytes"] > 0 and told["embeddings_bytes"] == 0
    assert told["seconds"] > told["start_up_seconds"] > 0 and told["cost"] > 0
    written = [path.name for path in labels.rglob("*") if path.is_file()]
    assert written == ["plan.json"]
    # Without a GPU nothing can be said of GPUs.
    assert main([*arguments, "--gpus", "8"]) == 2
    assert "gpus is 8, but this machine has no GPU to measure on" in capsys.readouterr().err


def test_a_plan_that_cannot_be_recorded_is_told_all_the_same(tmp_path, capsys):
    scenes, labels = tmp_path / "scenes", tmp_path / "labels"
    scenes.mkdir()
    Image.fromarray(make_scene(5_000, 0).image_HW3).save(scenes / "0.png")
    (labels / "_runs" / "plan.json").mkdir(parents=True)
    arguments = ["plan", str(scenes), "--vocabulary", str(EMBEDDED_VOCABULARY)]
    assert main([*arguments, "--output", str(labels)]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out.splitlines()[-1])
    assert told["seconds"] > 0 and told["not_recorded"].startswith(f"cannot write to {labels}: ")
    assert "no run will be compared with this plan" in printed.err
