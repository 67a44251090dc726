"""Prometheus metrics of a flow, through Ray's own metrics agent, which puts `ray_` before names.

The board alone sets them, so that there is one series per stage and run, whatever the workers.
"""

from collections.abc import Mapping
from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.meter import Spent

PREFIX: Final = "segmill_"
TAGS: Final = ("stage", "run")
_BOUNDS_S: Final = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]

COUNTERS: Final[Mapping[str, str]] = {
    "images": "images that left the stage",
    "bytes": "bytes that the stage read, handed on, or wrote",
    "busy_seconds": "time that workers of the stage were at work, model loads apart",
    "cpu_seconds": "processor time of the stage",
    "start_up_seconds": "time that workers took to load their models",
    "quarantined_images": "images that were given up, counted where they are written",
}
GAUGES: Final[Mapping[str, str]] = {
    "workers": "workers that the stage may use; those of tasks are shared",
    "images_planned": "images that the flow has to do",
}
HISTOGRAMS: Final[Mapping[str, str]] = {
    "image_seconds": "busy time per image, call by call",
}


def exported_names() -> frozenset[str]:
    """Return the names that a scrape shows, as Ray's agent makes them of ours."""
    counters = [f"ray_{PREFIX}{name}_total" for name in COUNTERS]
    gauges = [f"ray_{PREFIX}{name}" for name in GAUGES]
    parts = ("bucket", "sum", "count")
    histograms = [f"ray_{PREFIX}{name}_{part}" for name in HISTOGRAMS for part in parts]
    return frozenset([*counters, *gauges, *histograms])


class FlowMetrics:
    """The metrics of one run in one process."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._counters = {
            name: Counter(f"{PREFIX}{name}", text, TAGS) for name, text in COUNTERS.items()
        }
        self._gauges = {name: Gauge(f"{PREFIX}{name}", text, TAGS) for name, text in GAUGES.items()}
        self._histograms = {
            name: Histogram(f"{PREFIX}{name}", text, _BOUNDS_S, TAGS)
            for name, text in HISTOGRAMS.items()
        }

    def plan(self, workers: Mapping[str, int], images: int) -> None:
        """Set how many workers each stage has, and how many images there are to do."""
        for stage, count in workers.items():
            self._gauges["workers"].set(count, self._tags(stage))
        self._gauges["images_planned"].set(images, self._tags("write"))

    def warm(self, stage: str, seconds: float) -> None:
        """Count the start of a worker."""
        self._count("start_up_seconds", stage, seconds)

    def add(self, spent: Mapping[str, Spent], quarantined: int) -> None:
        """Count one call of a stage, by step."""
        for stage, what in spent.items():
            self._count("images", stage, what.images)
            self._count("bytes", stage, what.size_bytes)
            self._count("busy_seconds", stage, what.busy_s)
            self._count("cpu_seconds", stage, what.cpu_s)
            if what.images:
                seconds = what.busy_s / what.images
                self._histograms["image_seconds"].observe(seconds, self._tags(stage))
        self._count("quarantined_images", "write", quarantined)

    def _count(self, name: str, stage: str, amount: float) -> None:
        if amount > 0:
            self._counters[name].inc(amount, self._tags(stage))

    def _tags(self, stage: str) -> dict[str, str]:
        return {"stage": stage, "run": self._run_id}
