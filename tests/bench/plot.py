"""Draws what `make bench` found, from its results.json.

    python -m tests.bench.plot

Left: ratios, with the goal of each as a bar across. Right: what the approximate paths cost and
keep, a point per variant: CPU time against the exact path's, and hIoU on synthetic scenes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS: Final = Path(__file__).with_name("results.json")
_OURS, _BELOW, _GOAL = "#0072b2", "#e69f00", "#000000"  # Okabe and Ito's: told apart by all eyes

# Label, benchmark, path of the figure in what it found, goal.
_RATIOS: Final[tuple[tuple[str, str, tuple[str, ...], float], ...]] = (
    ("masks and crops, eager loop / ours", "exact_path", ("stage_ratio", "masks and crops"), 5),
    ("assembly, eager loop / ours", "exact_path", ("stage_ratio", "assembly"), 5),
    ("RLE, eager loop / ours", "exact_path", ("stage_ratio", "segments"), 5),
    ("all but the networks, eager loop / ours", "exact_path", ("exact_non_network_speedup",), 5),
    ("all but CLIP, eager loop / ours", "exact_path", ("exact_non_clip_speedup",), 5),
    ("fp32 / bf16, end to end", "bf16", ("bf16_speedup",), 1.8),
    ("exact / one-pass, 24 masks", "approximate", ("one_pass_speedup",), 8),
    ("exact / one-pass, 100 masks", "approximate", ("one_pass_speedup_100_masks",), 8),
    ("images/s of a run / of its bare stages", "pipeline", ("pipeline_over_bare_stages",), 0.95),
    ("time of a plain Ray Data script / ours", "pipeline", ("naive_ray_ratio",), 1),
    ("1,000 names / 10 names (less is better)", "vocabulary", ("vocabulary_1000_over_10",), 1.05),
)


def draw(results: Mapping[str, Any], target: Path) -> None:
    """Write the picture as SVG, its letters as letters."""
    found = {module: result["found"] for module, result in results.items()}
    dates = sorted({result["date"] for result in results.values()})
    cores = max((result["cores"] for result in results.values()), default=0)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_ratios(left, found)
    _draw_trade(right, found.get("approximate") or {})
    figure.suptitle(
        f"make bench, {cores} cores, {' to '.join(dates[:1] + dates[1:][-1:])}", fontsize=10
    )
    # Neither the time nor random ids: the same results are the same file.
    style = {"svg.fonttype": "none", "svg.hashsalt": "segmill"}
    with rc_context(style):
        figure.savefig(target, format="svg", metadata={"Date": None})


def _draw_ratios(axes: Axes, found: Mapping[str, Any]) -> None:
    shown = []
    for label, module, path, goal in _RATIOS:
        value: Any = found.get(module)
        for name in path:
            value = value.get(name) if value else None
        if value is not None:
            shown.append((label, float(value), goal))
    for place, (label, value, goal) in enumerate(shown):
        is_met = value <= goal if "less is better" in label else value >= goal
        axes.barh(place, value - 0.5, left=0.5, height=0.6, color=_OURS if is_met else _BELOW)
        axes.annotate(
            f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center"
        )
        axes.plot([goal, goal], [place - 0.4, place + 0.4], color=_GOAL, linewidth=2)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_xlim(0.5, 14)
    axes.axvline(1, color="grey", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
    axes.invert_yaxis()
    axes.set_title("times; black: goal; orange: missed", fontsize=10)


def _draw_trade(axes: Axes, found: Mapping[str, Any]) -> None:
    labels = found.get("labels")
    if not labels:
        return
    speedups = {"exact": 1.0, **found.get("pruning_speedups", {})}
    if costs := found.get("costs"):
        one_pass = next((name for name in labels if name.startswith("one-pass 48")), None)
        if one_pass is not None:
            speedups[one_pass] = costs["one-pass"]["speedup"]
    for number, (name, speedup) in enumerate(speedups.items(), start=1):
        point = (speedup, labels[name]["hiou"])
        axes.plot(*point, marker="o", color=_OURS)
        axes.annotate(str(number), point, (3, 3), textcoords="offset points", fontsize=8)
    legend = [f"{number} {name}" for number, name in enumerate(speedups, start=1)]
    axes.text(0.02, 0.02, "\n".join(legend), transform=axes.transAxes, fontsize=7, va="bottom")
    axes.set_xlabel("times faster than the exact path, end to end")
    axes.set_ylabel("hIoU on synthetic scenes")
    axes.set_title("approximate paths", fontsize=10)


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text()), RESULTS.with_suffix(".svg"))
