"""The classify stage with settings that tests and benchmarks change one by one."""

from typing import Any

from pipeline.fingerprints import Fingerprints
from pipeline.models.clip import ClipSource
from pipeline.models.crops import CropSettings
from pipeline.stages.classify import Classify
from pipeline.stages.embed import Embed
from pipeline.stages.label import Label

FINGERPRINTS = Fingerprints(decode="d", proposal="p", embedding="e", label="l")


def make_classify(
    clip: ClipSource, text_KD: Any, names: tuple[str, ...], **changes: Any
) -> Classify:
    """Return the stage; one text matrix serves both heads unless `changes` names others."""
    shared: dict[str, Any] = {"divisor": 32, "precision": "float16"}
    embed: dict[str, Any] = {
        "classifier": "crops", "clip": clip, "regions": CropSettings(), "crop_batch": 16,
        "asks_clip": changes.get("oracle_truth") is None,
    }  # fmt: skip
    label: dict[str, Any] = {
        "names": names, "seen": None, "query_text_KD": text_KD, "region_text_KD": text_KD,
        "logit_scale": 100.0, "keep_invalid": True, "ensemble_weight": 0.8, "min_score": 0.0,
        "oracle_truth": None, "fingerprints": FINGERPRINTS, "run_id": "run",
    }  # fmt: skip
    keep = changes.pop("keep_embeddings", None)
    for settings in (shared, embed, label):
        settings |= {name: changes.pop(name) for name in tuple(changes) if name in settings}
    if changes:
        raise TypeError(f"no settings of the stage: {', '.join(changes)}")
    return Classify(Embed(**embed, **shared), Label(**label, **shared), keep)
