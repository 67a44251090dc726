"""`segmill explain`: why one pixel has its label, from what a dataset holds."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.dataset import read_manifest
from pipeline.explanation.lookup import Row, find_image, find_rows
from pipeline.explanation.pixel import PixelTerms, explain_pixel
from pipeline.pages import shown_uri
from pipeline.run_lengths import decode_runs
from pipeline.storage import hide_secrets
from pipeline.text_vectors import read_texts
from schemas.annotation import HUMAN, QUARANTINED
from schemas.errors import OutputError, SettingsError
from schemas.explain_config import ExplainConfig
from schemas.manifest import Manifest

_THRESHOLDS: Final = (
    "min_score", "mask_threshold", "ensemble", "ensemble_weight", "invalid_proposals",
    "logit_scale", "classifier", "mask_expand_ratio", "mask_fill", "image_side", "one_pass_layers",
    "prune_min_area", "prune_min_stability", "prune_min_won", "prune_iou", "oracle_truth",
)  # fmt: skip
_WEIGHTS: Final = ("proposer", "proposer_weights_sha256", "clip", "clip_weights_sha256")
_FACTS: Final = (
    "segment_id", "label", "score", "margin", "disagreement", "stability", "area",
)  # fmt: skip
_NEEDED: Final = ("embedding_fingerprint", "divisor", "mask_precision")


@dataclass(frozen=True)
class SegmentFacts:
    """The segment that holds the pixel."""

    segment_id: int
    label: str
    score: float
    margin: float | None  # None, as the two that follow: see SEGMENT
    disagreement: float | None
    stability: float | None
    area: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ExplainResult:
    """All that is known of the pixel; `unknown` says what is not, and why."""

    dataset: str
    version: int
    image_id: str
    uri: str
    size: tuple[int, int]  # (height, width)
    at: tuple[int, int]  # (column, row)
    run_id: str
    annotator: str
    status: str
    error: Mapping[str, str] | None
    segment: SegmentFacts | None  # None: the pixel carries no label
    terms: PixelTerms | None
    unknown: str | None
    thresholds: Mapping[str, Any]
    weights: Mapping[str, Any]
    seconds: float

    @property
    def is_below_min_score(self) -> bool:
        """Whether the pixel has no label because its score is under the threshold."""
        return self.terms is not None and self.terms.score < self.thresholds.get("min_score", 0)


def explain(config: ExplainConfig) -> ExplainResult:
    """Find the image and the pixel, and make the terms of its label again where they were kept.

    Raises SettingsError when there is no such version, image or pixel.
    """
    started = time.monotonic()
    manifest = read_manifest(config.dataset, config.version)
    row = find_image(config.dataset, manifest, config.image)
    segment, terms, unknown = None, None, None
    if row["status"] == QUARANTINED:
        unknown = "the image was quarantined and has no labels"
    else:
        segment = _segment_at(row, config.at)
        if row["annotator"] == HUMAN:
            unknown = "a person corrected the labels of this image: no scores decided them"
        else:
            terms, unknown = _terms(config, manifest, row)
    return ExplainResult(
        dataset=hide_secrets(config.dataset),
        version=manifest.version,
        image_id=row["image_id"],
        uri=shown_uri(row["uri"]),
        size=(row["height"], row["width"]),
        at=config.at,
        run_id=row["run_id"],
        annotator=row["annotator"],
        status=row["status"],
        error=row["error"],
        segment=segment,
        terms=terms,
        unknown=unknown,
        thresholds={name: manifest.models[name] for name in _THRESHOLDS if name in manifest.models},
        weights={name: manifest.models[name] for name in _WEIGHTS if name in manifest.models},
        seconds=time.monotonic() - started,
    )


def _segment_at(row: Row, at: tuple[int, int]) -> SegmentFacts | None:
    """Return the segment whose runs hold the pixel; no mask is decoded."""
    column, line = at
    if not (0 <= column < row["width"] and 0 <= line < row["height"]):
        raise SettingsError(
            f"at is {column},{line}; columns of {shown_uri(row['uri'])} go from 0 to "
            f"{row['width'] - 1}, rows from 0 to {row['height'] - 1}"
        )
    place = column * row["height"] + line
    try:
        runs = decode_runs([segment["counts"] for segment in row["segments"]])
    except ValueError as error:
        raise OutputError(f"labels of {shown_uri(row['uri'])}: {error}") from None
    holding = ((runs.starts_R <= place) & (place < runs.ends_R)).nonzero()[0]
    if not len(holding):
        return None
    segment = row["segments"][int(runs.masks_R[holding[0]])]
    x0, y0, x1, y1 = segment["box"]
    return SegmentFacts(**{name: segment[name] for name in _FACTS}, box=(x0, y0, x1, y1))


def _terms(
    config: ExplainConfig, manifest: Manifest, row: Row
) -> tuple[PixelTerms | None, str | None]:
    """Return the terms of the label, or in words why they are not known."""
    models = manifest.models
    if models.get("oracle_truth") is not None:
        return None, "the label comes from a truth (oracle_truth), not from scores"
    again = "proposals, crops and class scores are not known: "
    if not manifest.embeddings or not set(_NEEDED) <= models.keys():
        return None, f"{again}this version keeps none; annotate with --keep-embeddings"
    texts = read_texts(config.dataset, manifest.fingerprint)
    if texts is None:
        return None, f"{again}the text vectors of this version were not kept"
    # After compact ones exact ones may have been kept: labels are made of the best.
    files = sorted(manifest.embeddings, key=lambda file: file.encoding == "compact")
    kept = find_rows(
        config.dataset,
        [file.path for file in files],
        row["image_id"],
        lambda found: (
            found["etag"] == row["etag"]
            and found["embedding_fingerprint"] == models["embedding_fingerprint"]
        ),
    )
    if not kept:
        return None, f"{again}those of this image were not kept"
    at = (config.at[1], config.at[0])
    return explain_pixel(kept[0], texts, manifest.vocabulary, models, at, config.top), None
