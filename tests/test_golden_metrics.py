"""Golden: every metric of every case equals the reference's evaluator (spec 5.2)."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.metrics import Confusion, summarise
from tests.golden import ROOT

FOLDER = ROOT / "metrics"


def cases() -> dict[str, Any]:
    file = FOLDER / "metrics.json"
    records = json.loads(file.read_text()) if file.is_file() else {}
    return {name: record for name, record in records.items() if "result" in record}


pytestmark = pytest.mark.skipif(not cases(), reason=f"no golden metrics at {FOLDER}")


def expected_of(case: str) -> dict[str, float]:
    """Return the stored result as fractions; what is not finite is stored as text."""
    return {name: float(value) / 100 for name, value in cases()[case]["result"].items()}


def names_of(case: str) -> list[str]:
    return [key.removeprefix("IoU-") for key in expected_of(case) if key.startswith("IoU-")]


def total_of(case: str) -> Confusion:
    num_classes = len(names_of(case))
    total = Confusion.zero(num_classes)
    with np.load(FOLDER / "maps.npz") as maps:
        for index in range(cases()[case]["images"]):
            total += Confusion.of(
                maps[f"{case}.pred{index}"], maps[f"{case}.gt{index}"], num_classes
            )
    return total


@pytest.mark.parametrize("case", cases())
def test_golden_confusion_is_that_of_the_reference(case):
    with np.load(FOLDER / "maps.npz") as maps:
        stored = maps[f"{case}.confusion"]
    # The reference's last column counts ignored pixels, which we leave out.
    np.testing.assert_array_equal(total_of(case).counts, stored[:, :-1])


@pytest.mark.parametrize("case", cases())
def test_golden_metrics_are_those_of_the_reference(case):
    metrics = summarise(total_of(case), names_of(case), cases()[case]["sets"])
    expected = expected_of(case)
    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("case", cases())
def test_golden_result_tells_the_two_protocols_apart(case):
    metrics = summarise(total_of(case), names_of(case), None, "detectron2")
    expected = expected_of(case)
    in_truth = [value for key, value in expected.items() if key.startswith("IoU-")]
    assert metrics["mIoU"] == pytest.approx(np.nanmean(in_truth))
    only_predicted = ((total_of(case).predicted > 0) & (total_of(case).truth == 0)).any()
    assert (metrics["mIoU"] > expected["mIoU"] + 1e-12) == only_predicted
