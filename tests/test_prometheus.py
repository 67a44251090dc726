"""The metrics of a run: what Prometheus is given, and that the dashboard asks for nothing else."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.metrics import COUNTERS, GAUGES, HISTOGRAMS, exported_names

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "jobs" / "deploy" / "grafana.json"

# In a process and a Ray of its own: the port is chosen at Ray's start.
SCRIPT = r"""
import re, sys, time, urllib.request
from contextlib import suppress
import pyarrow as pa, ray
from pipeline import runtime
from tests.test_runtime import Mark, Names

port, folder = int(sys.argv[1]), sys.argv[2]
url = f"http://127.0.0.1:{port}/metrics"
ray.init(
    address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
    object_store_memory=100 * 2**20, _metrics_export_port=port,
    _system_config={"metrics_report_interval_ms": 500},
)
table = pa.Table.from_pylist([{"path": "", "row_group": 0, "image_ids": ["a", "b", "c"]}])
stage = runtime.Placement(Mark(f"{folder}/log"), 4, actors=1)
page = ""

def scrape(done):
    # While the flow is at work: its metrics go with its board.
    global page
    end = time.monotonic() + 60
    told = r'segmill_images_total{[^}]*stage="write"'
    while done.get("write") and not re.search(told, page) and time.monotonic() < end:
        time.sleep(0.5)
        with suppress(OSError):
            page = urllib.request.urlopen(url, timeout=10).read().decode()

runtime.run_flow(runtime.Flow(table, 3, Names(), [stage]), f"{folder}/labels", "run-7", 4, scrape)
print("\n".join(line for line in page.splitlines() if "segmill_" in line))
"""


@pytest.mark.ray
def test_a_scrape_of_rays_metrics_shows_a_run(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(port), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    for stage in ("decode", "mark", "write"):
        (line,) = [
            line for line in lines
            if line.startswith("ray_segmill_images_total{") and f'stage="{stage}"' in line
        ]  # fmt: skip
        assert 'run="run-7"' in line and float(line.rpartition(" ")[2]) == 3
    names = {re.match(r"\w+", line)[0] for line in lines}  # type: ignore[index]
    # Nothing was quarantined; everything else was told.
    assert exported_names() - names == {"ray_segmill_quarantined_images_total"}


def test_the_dashboard_asks_for_registered_metrics_alone() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\w*segmill\w+", query)}
    assert asked <= exported_names()
    # Every figure is shown somewhere; of the histogram the buckets are.
    registered = {*COUNTERS, *GAUGES, *HISTOGRAMS}
    assert {name for name in registered if not any(name in one for one in asked)} == set()


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels:
        assert panel["title"] and panel["type"] in ("timeseries", "stat", "bargauge")
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*variables, "__rate_interval"}
            for opening, closing in ("()", "[]", "{}"):
                assert target["expr"].count(opening) == target["expr"].count(closing)
