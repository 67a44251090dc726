"""The picture of the benchmarks says what was found, and nothing where nothing was."""

from pathlib import Path
from typing import Any

from tests.bench.plot import draw

LABELS = {
    "exact": {"hiou": 0.72},
    "iou 0.6": {"hiou": 0.7},
    "one-pass 48 px 4 layers": {"hiou": 0.4},
}


def drawn(found: dict[str, Any], folder: Path) -> str:
    results = {
        name: {"cores": 2, "date": "2026-01-02", "found": one} for name, one in found.items()
    }
    draw(results, folder / "results.svg")
    return (folder / "results.svg").read_text()


def test_every_ratio_is_there_and_a_missed_goal_has_another_colour(tmp_path: Path) -> None:
    found = {"exact_path": {"stage_ratio": {"assembly": 1.83}}, "bf16": {"bf16_speedup": 2.01}}
    picture = drawn(found, tmp_path)
    assert all(text in picture for text in (">1.83<", ">2.01<", "2026-01-02"))
    assert picture.count("#e69f00") == 1 and picture.count("#0072b2") == 1


def test_variants_have_a_point_with_what_they_cost_and_keep(tmp_path: Path) -> None:
    approximate = {
        "labels": LABELS, "costs": {"one-pass": {"speedup": 3.0}},
        "pruning_speedups": {"iou 0.6": 1.5}, "one_pass_speedup": 3.0,
    }  # fmt: skip
    picture = drawn({"approximate": approximate}, tmp_path)
    assert all(f"{number} {name}" in picture for number, name in enumerate(("exact", "iou 0.6"), 1))


def test_without_the_sample_data_there_is_still_a_picture(tmp_path: Path) -> None:
    assert "<svg" in drawn(
        {"approximate": {"labels": LABELS, "costs": None}, "pipeline": {}}, tmp_path
    )


def test_equal_results_are_an_equal_file(tmp_path: Path) -> None:
    found = {"vocabulary": {"vocabulary_1000_over_10": 1.04}}
    assert drawn(found, tmp_path) == drawn(found, tmp_path)
