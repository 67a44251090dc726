"""The authors' checkpoints: their key layout (spec 1.2) to our networks, every key accounted for.

Structure is inferred from shapes; what shapes do not tell comes as `Untold`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.models.checkpoint_file import WeightsFile
from pipeline.models.maskformer import BackboneConfig, MaskFormer, MaskFormerConfig
from pipeline.models.per_pixel import PerPixel, PerPixelConfig
from schemas.errors import ModelError

Weights = dict[str, Tensor]

_PIXEL_DECODER: Final = "sem_seg_head.pixel_decoder."
_PREDICTOR: Final = "sem_seg_head.predictor."
_NO_OBJECT: Final = "clip_adapter.non_object_embedding"
_NAMED: Final = 12  # problems named in one message

# Known, and not part of any network: input statistics, the loss's class weights, counters, and the
# region head's no-object vector, whose column is dropped before anything reads it.
_UNUSED: Final = re.compile(
    r"pixel_(mean|std)|(_region_)?clip_adapter\.pixel_(mean|std)|criterion\.empty_weight"
    r"|_region_clip_adapter\.non_object_embedding|.*\.num_batches_tracked"
    r"|(_region_)?clip_adapter\.clip_model\.(input_resolution|context_length|vocab_size)"
)

# Our names to theirs, in this order.
_RENAMES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(backbone\..*)\.bn(\d)\.", r"\1.conv\2.norm."),
        (r"^(backbone\..*)\.downsample\.0\.", r"\1.shortcut."),
        (r"^(backbone\..*)\.downsample\.1\.", r"\1.shortcut.norm."),
        (r"^pixel_decoder\.mask_projection\.", f"{_PIXEL_DECODER}mask_features."),
        (r"^pixel_decoder\.fpn\.stem\.", f"{_PIXEL_DECODER}layer_4."),
        (r"^pixel_decoder\.fpn\.layers\.(\d)\.proj\.", f"{_PIXEL_DECODER}adapter_<\\1>."),
        (r"^pixel_decoder\.fpn\.layers\.(\d)\.block\.", f"{_PIXEL_DECODER}layer_<\\1>."),
        (r"^(.*pixel_decoder\.(?:layer|adapter)_\S+?)\.0\.", r"\1."),
        (r"^(.*pixel_decoder\.(?:layer|adapter)_\S+?)\.1\.", r"\1.norm."),
        (r"^input_projection\.", f"{_PREDICTOR}input_proj."),
        (r"^queries\.", f"{_PREDICTOR}query_embed."),
        (r"^decoder_norm\.", f"{_PREDICTOR}transformer.decoder.norm."),
        (r"^decoder_layers\.", f"{_PREDICTOR}transformer.decoder.layers."),
        (r"\.self_attn_layer_norm\.", ".norm1."),
        (r"\.encoder_attn_layer_norm\.", ".norm2."),
        (r"\.final_layer_norm\.", ".norm3."),
        (r"\.encoder_attn\.", ".multihead_attn."),
        (r"\.[qkv]_proj\.", ".in_proj_"),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.fc(\d)\.", r".linear\1."),
        (r"^mask_head\.(\d)\.0\.", f"{_PREDICTOR}mask_embed.layers.\\1."),
        (r"^query_head\.(\d)\.0\.", f"{_PREDICTOR}class_embed.layers.\\1."),
        (r"^no_object$", _NO_OBJECT),
        (r"^embed\.", _PREDICTOR),  # of a per-pixel network, the whole predictor
    )
)


@dataclass(frozen=True)
class Parts:
    """A checkpoint of the authors taken apart; a part that it lacks is empty."""

    proposer: Weights  # their full names, those of the pixel decoder in today's layout
    clip: Weights  # OpenAI's names
    prompt: Weights  # of the learned prompt; `prefix_prompt` and signals
    region_clip: Weights  # only of checkpoints with a separate region head
    region_prompt: Weights
    unused: Weights

    @property
    def num_seen(self) -> int | None:
        """How many classes it was trained on; None where the file does not tell."""
        weights = self.unused.get("criterion.empty_weight")
        return None if weights is None else len(weights) - 1


@dataclass(frozen=True)
class Untold:
    """What a checkpoint's shapes do not tell; the defaults are the paper's."""

    heads: int = 8
    res5_dilations: tuple[int, ...] | None = None  # None: 1, 2, 4 after three 3x3, else all 1
    stride_in_1x1: bool = False
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisibility: int | None = None  # None: as each network of the reference pads
    short_edge: int = 640
    long_edge: int = 2560
    seen_classes: tuple[str, ...] = ()
    licence: str = "unknown"
    provenance: str = ""


def take_apart(file: WeightsFile) -> Parts:
    """Sort every key into its part; raises ModelError that names the keys that fit none."""
    parts = Parts({}, {}, {}, {}, {}, {})
    prefixes = {
        "clip_adapter.clip_model.": parts.clip,
        "clip_adapter.prompt_learner.": parts.prompt,
        "_region_clip_adapter.clip_model.": parts.region_clip,
        "_region_clip_adapter.prompt_learner.": parts.region_prompt,
    }
    unknown = []
    for raw_name, value in file.weights.items():
        name = _modern_name(raw_name)
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if _UNUSED.fullmatch(name):
            parts.unused[name] = value
        elif prefix:
            prefixes[prefix][name.removeprefix(prefix)] = value
        elif name.startswith(("backbone.", "sem_seg_head.")) or name == _NO_OBJECT:
            if name in parts.proposer:
                raise ModelError(f"{file.path}: {raw_name} and another key both stand for {name}")
            parts.proposer[name] = value
        else:
            unknown.append(f"unexpected {raw_name}")
    if unknown:
        raise ModelError(f"{file.path} has keys of no known part: {_listed(unknown)}")
    return parts


def _modern_name(name: str) -> str:
    """Return today's name of a weight.

    The first layout had no `pixel_decoder.` in the head's names. Without module versions the
    reference takes every file for one of those and prefixes again, which loses the pixel decoder
    (spec B-1); here a name alone decides, and all three spellings mean the same weight.
    """
    name = name.removeprefix("module.")
    if name.startswith("sem_seg_head.") and not name.startswith(_PREDICTOR):
        return re.sub(r"^sem_seg_head\.(pixel_decoder\.)*", _PIXEL_DECODER, name)
    return name


def load_proposer(parts: Parts, untold: Untold, source: str) -> MaskFormer | PerPixel:
    """Return the network of a checkpoint, in fp32 and evaluation mode.

    A head that is a single 1x1 convolution is a per-pixel network's. Raises ModelError that names
    every missing, unexpected and misshapen key of `source`.
    """
    try:
        config = infer_config(parts.proposer, untold, source)
        model = PerPixel(config) if isinstance(config, PerPixelConfig) else MaskFormer(config)
    except ValidationError as error:
        raise ModelError(f"{source}: {error}") from None
    state, problems = _translate(parts.proposer, model.state_dict())
    if problems:
        raise ModelError(f"{source} does not fit the network it describes: {_listed(problems)}")
    model.load_state_dict(state)
    return model.eval()


def infer_config(
    weights: Weights, untold: Untold, source: str
) -> MaskFormerConfig | PerPixelConfig:
    """Return the structure that the shapes of the weights tell; raises ModelError."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ModelError(
                f"{source} is no checkpoint of a MaskFormer or per-pixel network with a ResNet in "
                f"the authors' layout: missing {name}"
            )
        return weights[name].shape

    embed = weights.get(f"{_PREDICTOR}weight")
    hidden = 0 if embed is not None else shape(f"{_PREDICTOR}query_embed.weight")[1]
    if hidden % untold.heads:
        raise ModelError(f"{source} has {hidden} hidden channels, not a multiple of {untold.heads}")
    mask_features = shape(f"{_PIXEL_DECODER}mask_features.weight")
    shared = {
        "backbone": _infer_backbone(weights, untold, source),
        "fpn_channels": mask_features[1],
        "mask_channels": mask_features[0],
        **_told(untold),
    }
    if embed is not None:
        return PerPixelConfig(**shared, embedding_dim=len(embed))
    layers = _numbers(weights, rf"{_PREDICTOR}transformer\.decoder\.layers\.(\d+)\.")
    head_layers = _numbers(weights, rf"{_PREDICTOR}class_embed\.layers\.(\d+)\.")
    shape(f"{_PREDICTOR}class_embed.layers.0.weight")
    return MaskFormerConfig(
        **shared,
        hidden_channels=hidden,
        heads=untold.heads,
        feedforward_channels=shape(f"{_PREDICTOR}transformer.decoder.layers.0.linear1.weight")[0],
        decoder_layers=layers,
        queries=shape(f"{_PREDICTOR}query_embed.weight")[0],
        query_head_channels=shape(f"{_PREDICTOR}class_embed.layers.0.weight")[0],
        query_head_layers=head_layers,
        embedding_dim=shape(f"{_PREDICTOR}class_embed.layers.{head_layers - 1}.weight")[0],
    )


def _told(untold: Untold) -> dict[str, Any]:
    """Return what a config takes over as it was told."""
    names = "pixel_mean pixel_std short_edge long_edge seen_classes licence provenance"
    told = {name: getattr(untold, name) for name in names.split()}
    if untold.size_divisibility is not None:
        told["size_divisibility"] = untold.size_divisibility
    return told


def _infer_backbone(weights: Weights, untold: Untold, source: str) -> BackboneConfig:
    is_deeplab = "backbone.stem.conv3.weight" in weights
    stem = f"backbone.stem.conv{3 if is_deeplab else 1}.weight"
    blocks = [_numbers(weights, rf"backbone\.res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5)]
    firsts = [
        f"backbone.res{stage}.0.conv{conv}.weight" for conv in (1, 3) for stage in (2, 3, 4, 5)
    ]
    missing = [f"missing {name}" for name in (stem, *firsts) if name not in weights]
    if missing:
        raise ModelError(f"the backbone of {source} is no bottleneck ResNet: {_listed(missing)}")
    widths = [weights[name].shape[0] for name in firsts]
    multi_grid = (1, 2, 4) if is_deeplab and blocks[3] == 3 else (1,) * blocks[3]
    return BackboneConfig(
        kind="resnet",
        name="r101c" if is_deeplab else "r50",
        options={
            "stem": "deeplab" if is_deeplab else "basic",
            "stem_channels": weights[stem].shape[0],
            "blocks": blocks,
            "bottleneck_channels": widths[:4],
            "out_channels": widths[4:],
            "res5_dilations": untold.res5_dilations or multi_grid,
            "stride_in_1x1": untold.stride_in_1x1,
        },
    )


def _numbers(weights: Weights, pattern: str) -> int:
    """Return one more than the largest number that the pattern's group takes; 0 for none."""
    found = (re.match(pattern, name) for name in weights)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _translate(found: Weights, expected: Mapping[str, Tensor]) -> tuple[Weights, list[str]]:
    """Return our weights, and what is missing, unexpected or misshapen, in their names."""
    state: Weights = {}
    problems: dict[str, None] = {}
    used = set()
    for ours, like in expected.items():
        theirs = their_name(ours)
        if theirs not in found:
            problems[f"missing {theirs}"] = None
            continue
        used.add(theirs)
        value = found[theirs].float()
        if part := re.search(r"\.([qkv])_proj\.", ours):
            value = value.tensor_split(3)["qkv".index(part[1])]
        elif ours == "no_object":
            value = value.reshape(-1)
        if value.shape == like.shape:
            state[ours] = value.clone()
        else:
            got, want = tuple(found[theirs].shape), tuple(like.shape)
            problems[f"{theirs} has shape {got}, which does not give {ours} {want}"] = None
    problems |= dict.fromkeys(f"unexpected {name}" for name in sorted(found.keys() - used))
    return state, list(problems)


def their_name(ours: str) -> str:
    """Return the authors' name of a weight of our networks; q, k and v share one."""
    name = ours
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    # Ours counts the FPN's levels from the coarsest, theirs from the finest.
    return re.sub(r"<(\d)>", lambda match: str(3 - int(match[1])), name)


def _listed(problems: list[str]) -> str:
    more = len(problems) - _NAMED
    return "; ".join(problems[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
