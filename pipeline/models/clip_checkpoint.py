"""A CLIP under OpenAI's key names to a directory that open_clip loads."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from open_clip import CLIP
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file
from torch import Tensor

from schemas.errors import ModelError

_HEAD_WIDTH: Final = 64  # in every CLIP of OpenAI, in both towers


@dataclass(frozen=True)
class ClipUntold:
    """What shapes do not tell of a CLIP; None takes OpenAI's rule."""

    text_heads: int | None = None
    vision_heads: int | None = None
    pixel_mean: tuple[float, ...] = OPENAI_DATASET_MEAN  # of images in [0, 1]
    pixel_std: tuple[float, ...] = OPENAI_DATASET_STD


def save_clip(
    weights: Mapping[str, Tensor], untold: ClipUntold, directory: Path, source: str
) -> dict[str, Any]:
    """Write an open_clip directory in fp32 and return its model config.

    Raises ModelError that names every missing, unexpected and misshapen key of `source`.
    """
    config = infer_clip_config(weights, untold, source)
    with torch.device("meta"):
        expected = CLIP(**config).state_dict()
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        raise ModelError(f"the CLIP of {source} does not fit its own shapes: {'; '.join(problems)}")
    directory.mkdir(parents=True, exist_ok=True)
    described = {
        "model_cfg": config,
        "preprocess_cfg": {
            "mean": list(untold.pixel_mean),
            "std": list(untold.pixel_std),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    text = json.dumps(described, indent=2) + "\n"
    (directory / "open_clip_config.json").write_text(text, encoding="utf-8")
    tensors = {
        name: (value.float() if value.is_floating_point() else value).contiguous().clone()
        for name, value in weights.items()
    }
    save_file(tensors, directory / "open_clip_model.safetensors")
    return config


def infer_clip_config(
    weights: Mapping[str, Tensor], untold: ClipUntold, source: str
) -> dict[str, Any]:
    """Return open_clip's model config of OpenAI's architecture; raises ModelError."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ModelError(f"the CLIP of {source} is not in OpenAI's layout: missing {name}")
        return weights[name].shape

    def blocks(prefix: str) -> int:
        numbers = {
            name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)
        }
        return len(numbers)

    width = shape("ln_final.weight")[0]
    text = {
        "context_length": shape("positional_embedding")[0],
        "vocab_size": shape("token_embedding.weight")[0],
        "width": width,
        "heads": _heads(width, untold.text_heads, "text", source),
        "layers": blocks("transformer.resblocks."),
        "mlp_ratio": shape("transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
    }
    if "visual.proj" in weights:
        vision_width, _, _, patch = shape("visual.conv1.weight")
        heads = _heads(vision_width, untold.vision_heads, "vision", source)
        vision: dict[str, Any] = {
            "image_size": patch * _side(shape("visual.positional_embedding")[0]),
            "patch_size": patch,
            "width": vision_width,
            "layers": blocks("visual.transformer.resblocks."),
            "head_width": vision_width // heads,
            "mlp_ratio": shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0] / vision_width,
        }
    else:
        vision_width = shape("visual.layer1.0.conv1.weight")[0]
        heads = _heads(vision_width * 32, untold.vision_heads, "vision", source)
        vision = {
            "image_size": 32 * _side(shape("visual.attnpool.positional_embedding")[0]),
            "width": vision_width,
            "layers": [blocks(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
            "head_width": vision_width * 32 // heads,
        }
    return {
        "embed_dim": shape("text_projection")[1],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def _side(positions: int) -> int:
    """Return the side of the square grid whose positions follow one class token."""
    return math.isqrt(positions - 1)


def _heads(width: int, given: int | None, tower: str, source: str) -> int:
    heads = given or width // _HEAD_WIDTH
    if not heads or width % heads:
        raise ModelError(
            f"the {tower} tower of the CLIP of {source} is {width} wide, which {heads or 'no'} "
            f"heads do not divide; give clip_{tower}_heads"
        )
    return heads
