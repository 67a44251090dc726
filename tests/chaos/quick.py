"""Fast deterministic stages in the place of the two models.

A schedule is mostly start-up, and that is mostly the import of model libraries in five processes.
With these stages it costs less than half; all else of the command is as it is. Labels come from the
pixels, so that a wrong, stale or exchanged image shows in its row.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from pipeline.fingerprints import Fingerprints
from pipeline.segments import encode_segments
from pipeline.stages.rows import Row, image_of, is_quarantined
from schemas.annotation import ANNOTATED, MODEL, PROPOSED, table_from_rows

# About what the tiny models take; strikes at the n-th image need a time to hit.
_SECONDS_PER_IMAGE: Final = 0.03
_LEVELS: Final = 4


@dataclass(frozen=True)
class QuickPropose:
    """DECODED -> PROPOSED: one region, brighter where the image is."""

    name: ClassVar[str] = "propose"
    schema: ClassVar[pa.Schema] = PROPOSED

    seconds_per_image: float

    def warm_up(self) -> None:
        pass

    def __call__(self, images: pa.Table, /) -> pa.Table:
        return table_from_rows([self._propose(row) for row in images.to_pylist()], PROPOSED)

    def _propose(self, row: Row) -> Row:
        if is_quarantined(row):
            return {**row, "n_proposals": 0}
        time.sleep(self.seconds_per_image)
        grid = image_of(row)[::4, ::4].mean(axis=2).astype(np.uint8)
        return {
            **row,
            "n_proposals": 1,
            "mask_logits": grid.tobytes(),
            "mask_height": grid.shape[0],
            "mask_width": grid.shape[1],
        }


@dataclass(frozen=True)
class QuickClassify:
    """PROPOSED -> ANNOTATED: a class per level of brightness, scored by the proposed region."""

    name: ClassVar[str] = "classify"
    schema: ClassVar[pa.Schema] = ANNOTATED

    names: tuple[str, ...]
    fingerprints: Fingerprints
    run_id: str
    seconds_per_image: float

    def warm_up(self) -> None:
        pass

    def __call__(self, images: pa.Table, /) -> pa.Table:
        return table_from_rows([self._classify(row) for row in images.to_pylist()], ANNOTATED)

    def _classify(self, row: Row) -> Row:
        kept = {name: row[name] for name in ANNOTATED.names if name in row}
        row_of_run = {"segments": [], **kept, "run_id": self.run_id, "annotator": MODEL}
        if is_quarantined(row):
            return {
                **row_of_run,
                "fingerprint": self.fingerprints.of_failure(row["error"]["stage"]),
            }
        time.sleep(self.seconds_per_image)
        image_HW3 = image_of(row)
        grid = np.frombuffer(row["mask_logits"], np.uint8)
        grid = grid.reshape(row["mask_height"], row["mask_width"])
        scores = np.kron(grid, np.ones((4, 4), np.uint8)).astype(np.float32) / np.float32(255)
        height, width = image_HW3.shape[:2]
        segments = encode_segments(
            image_HW3.mean(axis=2).astype(np.int32) * _LEVELS // 256,
            scores[:height, :width],
            self.names,
            min_score=0.05,
        )
        area = sum(segment["area"] for segment in segments)
        return {
            **row_of_run,
            "fingerprint": self.fingerprints.label,
            "coverage": area / (height * width),
            "mean_score": float(scores.mean()),
            "segments": segments,
        }


def without_model_libraries() -> None:
    """Put a module with the one function that a run without models needs in open_clip's place."""

    def get_model_config(name: str) -> Any:
        path = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
        return json.loads(path.read_text())["model_cfg"]

    module = ModuleType("open_clip")
    module.get_model_config = get_model_config  # type: ignore[attr-defined]
    sys.modules["open_clip"] = module


def install(propose_s: float = _SECONDS_PER_IMAGE, classify_s: float = _SECONDS_PER_IMAGE) -> None:
    """Let the flows of an annotation use these stages; call `without_model_libraries` before.

    They take that many seconds per image.
    """
    from jobs import annotation_flows as flows
    from pipeline.text_vectors import Texts

    def classify(_embed: Any, label: Any, keep_embeddings: Any) -> QuickClassify:
        if keep_embeddings:
            raise AssertionError("the quick stages make no embeddings to keep")
        names = label.names[:_LEVELS]
        return QuickClassify(names, label.fingerprints, label.run_id, classify_s)

    def texts(plan: Any, _device: Any) -> Texts:
        vectors_KD = np.zeros((len(plan.vocabulary), 1), np.float32)
        return Texts(vectors_KD, vectors_KD, 1.0)

    for name, stand_in in (
        ("Propose", lambda *_settings: QuickPropose(propose_s)),
        ("Classify", classify),
        ("run_texts", texts),
    ):
        setattr(flows, name, stand_in)
