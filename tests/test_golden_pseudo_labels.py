"""Golden: every pseudo label equals the reference's self-training label writer (spec 4)."""

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.metrics import Confusion, summarise
from pipeline.pseudo_labels import PseudoLabelSettings, pseudo_labels
from tests.golden import ROOT

FOLDER = ROOT / "pseudo-labels"


def records() -> dict[str, Any]:
    file = FOLDER / "pseudo.json"
    return json.loads(file.read_text()) if file.is_file() else {}


MODES = [name for name, record in records().items() if "with_prior" in record]

pytestmark = pytest.mark.skipif(not MODES, reason=f"no golden pseudo labels at {FOLDER}")


@cache
def arrays() -> dict[str, Tensor]:
    with np.load(FOLDER / "pseudo.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored}


def indices() -> range:
    return range(sum(re.fullmatch(r"score\d+", name) is not None for name in arrays()))


def written(mode: str, index: int) -> Tensor:
    record, about = records()[mode], records()["_about"]
    settings = PseudoLabelSettings(
        prior="unseen" if record["with_prior"] else "none",
        min_score=record["reject_threshold"],
        rejected_index=record["rejected_index"],
    )
    seen_K = torch.tensor(about["seen_flags"], dtype=torch.bool)
    return pseudo_labels(arrays()[f"score{index}"], arrays()[f"gt{index}"], seen_K, settings)


@pytest.mark.parametrize("mode", MODES)
def test_golden_pseudo_labels(mode):
    record = records()[mode]
    for index, rejected in zip(indices(), record["rejected_pixels"], strict=True):
        labels_HW = written(mode, index)
        assert torch.equal(labels_HW, arrays()[f"{mode}.label{index}"].long())
        assert (labels_HW == record["rejected_index"]).sum() == rejected


@pytest.mark.parametrize("mode", MODES)
def test_golden_metrics_of_pseudo_labels(mode):
    about, expected = records()["_about"], records()[mode].get("result")
    if expected is None:
        pytest.skip("no metrics are stored")
    seen = about["seen_flags"]
    total = Confusion.zero(len(seen))
    for index in indices():
        labels_HW = written(mode, index)
        # The reference's evaluator leaves pixels of index K out of the truth; ours counts them as
        # missed.
        truth_HW = arrays()[f"gt{index}"].masked_fill(labels_HW >= len(seen), about["ignore"])
        total += Confusion.of(labels_HW.numpy(), truth_HW.numpy(), len(seen), about["ignore"])
    base = [index for index, flag in enumerate(seen) if flag]
    metrics = summarise(total, [str(index) for index in range(len(seen))], {"base": base})
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value) / 100, rel=1e-12, nan_ok=True), name
