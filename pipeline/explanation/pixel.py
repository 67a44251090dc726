"""The terms by which one pixel got its label, made again from kept embeddings.

Dimension key: Q proposals, K class names, D embedding, h w grid at stride 4, I J two neighbouring
rows and columns of the resized image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.bilinear import bilinear_taps
from pipeline.fusion import LOGIT_SCALE, fuse, query_probs, region_probs
from pipeline.masks import boxes_around, mask_probs, unpack_grid
from pipeline.models.crops import expand_boxes
from pipeline.resize import Size, padded_size
from pipeline.stages.compact import is_compact, picture_logits, vectors
from pipeline.text_vectors import Texts
from schemas.vocabulary import Vocabulary

_STRIDE = 4  # of pixel embeddings, see pixels.py

Row = dict[str, Any]


@dataclass(frozen=True)
class ClassScore:
    """A class at the pixel: its share of the evidence, and the exponent of its query scores."""

    name: str
    score: float
    is_seen: bool
    query_exponent: float


@dataclass(frozen=True)
class ProposalTerm:
    """What one proposal adds to the winning class; `share` of all that the class got there."""

    proposal: int
    mask_prob: float  # of the pixel
    query_prob: float | None  # of the class; None: the proposer has no scores of its own
    void_prob: float | None  # of "no object"
    clip_prob: float | None  # of the class, 1 where there is no crop; None: CLIP was not asked
    fused: float
    share: float
    box: tuple[int, int, int, int] | None  # of the crop if any, XYXY half-open, resized image


@dataclass(frozen=True)
class PixelTerms:
    """Everything that decided a pixel."""

    image_size: Size  # of the resized image, in which crops are cut
    evidence: float  # sum of all masks at the pixel
    winner: str
    score: float
    classes: tuple[ClassScore, ...]  # the highest score first
    proposals: tuple[ProposalTerm, ...]  # the largest share first


@dataclass(frozen=True, eq=False)
class _Scores:
    query_QK: Tensor | None
    clip_QK: Tensor | None  # one where there is no crop
    fused_QK: Tensor
    valid_Q: Tensor
    masks_Q: Tensor


@torch.inference_mode()
def explain_pixel(
    row: Row, texts: Texts, vocabulary: Vocabulary, models: Mapping[str, Any], at: Size, top: int
) -> PixelTerms:
    """Return the terms of the pixel `at` (row, column) of the original image.

    `row` is one of EMBEDDINGS, `models` what the manifest records of the run.
    """
    scores = _scores(row, texts, vocabulary, models, at)
    evidence = scores.masks_Q.sum()
    class_scores_K = (scores.masks_Q @ scores.fused_QK) / evidence.clamp_min(1e-12)
    winner = int(class_scores_K.argmax())
    order = class_scores_K.argsort(descending=True, stable=True)[:top].tolist()
    exponents = _query_exponents(scores, vocabulary, models)
    return PixelTerms(
        image_size=(row["image_height"], row["image_width"]),
        evidence=float(evidence),
        winner=vocabulary.names[winner],
        score=float(class_scores_K[winner]),
        classes=tuple(
            ClassScore(
                vocabulary.names[index],
                float(class_scores_K[index]),
                bool(vocabulary.seen and vocabulary.seen[index]),
                exponents[index],
            )
            for index in order
        ),
        proposals=_proposal_terms(row, scores, winner, models, top),
    )


def _scores(
    row: Row, texts: Texts, vocabulary: Vocabulary, models: Mapping[str, Any], at: Size
) -> _Scores:
    query_KD, region_KD = torch.from_numpy(texts.query_KD), torch.from_numpy(texts.region_KD)
    size = (row["height"], row["width"])
    scale = LOGIT_SCALE if models["logit_scale"] == "paper" else texts.logit_scale
    clip_VK = None
    if row["clip_embeds"] is not None:
        clip_VK = region_probs(_floats(row, "clip_embeds", region_KD.shape[1]), region_KD, scale)
    query_QK = None
    if row["pixel_embeds"] is not None:
        embeds_D = _pixel_embedding(row, query_KD.shape[1], models, at, size)
        query_QK = region_probs(normalize(embeds_D, dim=0)[None], query_KD, LOGIT_SCALE)
        valid_Q, masks_Q = torch.ones(1, dtype=torch.bool), torch.ones(1)
    else:
        masks_Q = _mask_probs_at(row, models, at, size)
        valid_Q = torch.ones(row["n_proposals"], dtype=torch.bool)
        if row["valid"] is not None and clip_VK is not None:
            valid_Q = torch.from_numpy(np.frombuffer(row["valid"], dtype=np.bool_).copy())
        if row["query_embeds"] is not None:
            embeds_QD = _floats(row, "query_embeds", query_KD.shape[1])
            query_QK = query_probs(embeds_QD, query_KD, _floats(row, "void_logits", 1)[:, 0])
    seen_K = None if vocabulary.seen is None else torch.tensor(vocabulary.seen)
    keep_invalid = row["pixel_embeds"] is not None or models["invalid_proposals"] == "boosted"
    fused_QK = fuse(
        query_QK, clip_VK, valid_Q, seen_K, models["ensemble_weight"], keep_invalid=keep_invalid
    )
    clip_QK = None
    if clip_VK is not None:
        clip_QK = torch.ones(len(valid_Q), clip_VK.shape[1])
        clip_QK[valid_Q] = clip_VK
    return _Scores(query_QK, clip_QK, fused_QK, valid_Q, masks_Q)


def _query_exponents(
    scores: _Scores, vocabulary: Vocabulary, models: Mapping[str, Any]
) -> list[float]:
    """Return the exponent of every class's query score; that of CLIP is what is left to 1."""
    names = len(vocabulary)
    if scores.query_QK is None or scores.clip_QK is None:
        return [0.0 if scores.query_QK is None else 1.0] * names
    weight = models["ensemble_weight"]
    if weight <= 0:
        return [0.0] * names
    return [weight if is_seen else 1 - weight for is_seen in vocabulary.seen or [False] * names]


def _proposal_terms(
    row: Row, scores: _Scores, winner: int, models: Mapping[str, Any], top: int
) -> tuple[ProposalTerm, ...]:
    added_Q = scores.fused_QK[:, winner] * scores.masks_Q
    total = float(added_Q.sum())
    terms = []
    for proposal in added_Q.argsort(descending=True, stable=True)[:top].tolist():
        query_QK, clip_QK = scores.query_QK, scores.clip_QK
        has_crop = (
            clip_QK is not None
            and models["classifier"] == "crops"
            and bool(scores.valid_Q[proposal])
        )
        terms.append(
            ProposalTerm(
                proposal=proposal,
                mask_prob=float(scores.masks_Q[proposal]),
                query_prob=None if query_QK is None else float(query_QK[proposal, winner]),
                void_prob=None if query_QK is None else 1 - float(query_QK[proposal].sum()),
                clip_prob=None if clip_QK is None else float(clip_QK[proposal, winner]),
                fused=float(scores.fused_QK[proposal, winner]),
                share=float(added_Q[proposal]) / total if total else 0.0,
                box=_crop_box(row, proposal, models) if has_crop else None,
            )
        )
    return tuple(terms)


def _crop_box(row: Row, proposal: int, models: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return what of the resized image CLIP was shown."""
    size = (row["image_height"], row["image_width"])
    if row["pixel_embeds"] is not None:
        return 0, 0, size[1], size[0]
    logits_1hw = _mask_logits(row, models)[proposal, None]
    mask_1HW = mask_probs(logits_1hw, padded_size(size, models["divisor"]), size)
    binary_1HW = mask_1HW > models["mask_threshold"]
    box_14 = boxes_around(binary_1HW.any(dim=2), binary_1HW.any(dim=1))
    left, top, right, bottom = expand_boxes(box_14, models["mask_expand_ratio"], size)[0].tolist()
    return left, top, right, bottom


def _mask_probs_at(row: Row, models: Mapping[str, Any], at: Size, size: Size) -> Tensor:
    """Return every soft mask (Q,) at a pixel of the original image."""
    image_size = (row["image_height"], row["image_width"])
    logits_Qhw = _mask_logits(row, models)
    padded = padded_size(image_size, models["divisor"])
    logits_QIJ, weights = _around(logits_Qhw, padded, image_size, size, at)
    return _blended(logits_QIJ.sigmoid(), weights)


def _pixel_embedding(
    row: Row, num_dims: int, models: Mapping[str, Any], at: Size, size: Size
) -> Tensor:
    """Return the embedding (D,) at a pixel of the original image."""
    embeds_Dhw = _grid(row, "pixel_embeds", num_dims, models)
    enlarged = (embeds_Dhw.shape[1] * _STRIDE, embeds_Dhw.shape[2] * _STRIDE)
    image_size = (row["image_height"], row["image_width"])
    return _blended(*_around(embeds_Dhw, enlarged, image_size, size, at))


def _around(
    grid_Chw: Tensor, enlarged: Size, image_size: Size, size: Size, at: Size
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return a grid, enlarged bilinearly, at the 2 x 2 pixels of the resized image around a pixel
    of the original, and the weights of the lower and the right one.
    """
    values, weights = grid_Chw, []
    for axis in (0, 1):
        lower, upper, weight = (
            tap[at[axis]] for tap in bilinear_taps(image_size[axis], size[axis], grid_Chw.device)
        )
        needed = torch.stack([lower, upper])
        first, second, blend = (
            tap[needed]
            for tap in bilinear_taps(grid_Chw.shape[1 + axis], enlarged[axis], grid_Chw.device)
        )
        blend = blend[None, :, None] if axis == 0 else blend[None, None, :]
        values = torch.lerp(
            values.index_select(1 + axis, first), values.index_select(1 + axis, second), blend
        )
        weights.append(weight)
    return values, (weights[0], weights[1])


def _blended(values_CIJ: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    rows_CJ = torch.lerp(values_CIJ[:, 0], values_CIJ[:, 1], weights[0])
    return torch.lerp(rows_CJ[:, 0], rows_CJ[:, 1], weights[1])


def _mask_logits(row: Row, models: Mapping[str, Any]) -> Tensor:
    if is_compact(row):
        return torch.from_numpy(picture_logits(row))
    return _grid(row, "mask_logits", row["n_proposals"], models)


def _grid(row: Row, column: str, channels: int, models: Mapping[str, Any]) -> Tensor:
    shape = (channels, row["mask_height"], row["mask_width"])
    return unpack_grid(row[column], shape, models["mask_precision"], "cpu")


def _floats(row: Row, name: str, columns: int) -> Tensor:
    return torch.from_numpy(vectors(row, name)).reshape(-1, columns)
