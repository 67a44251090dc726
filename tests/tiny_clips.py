"""Every family of open_clip's architectures, from its own config, with few and narrow layers.

Towers of timm are built by timm's own entry of the family, registered here under another name with
smaller numbers: open_clip's configs can only name an entry.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model

from pipeline.models.embedded import EMBEDDED_CLIP

DIMS = 32
_TEXT = {"width": 32, "heads": 2, "layers": 1}
_VISION = {"width": 32, "layers": 1, "head_width": 16}

# open_clip's architecture: what makes its own image tower small.
NATIVE: dict[str, dict[str, Any]] = {
    "ViT-B-16": _VISION,
    "ViT-H-14-CLIPA": _VISION,  # mean pooling
    "coca_ViT-B-32": _VISION,  # attentional pooling, a class token in the text
    "RN50": {"width": 8, "layers": [1, 1, 1, 1]},
}
# open_clip's architecture: what makes timm's image tower small.
TIMM: dict[str, dict[str, Any]] = {
    "convnext_base_w": {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32)},
    "EVA02-B-16": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "ViT-B-16-SigLIP": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "ViT-B-16-SigLIP2": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "PE-Core-T-16-384": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "MobileCLIP-S1": {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)},
    "swin_base_patch4_window7_224": {"depths": (1,) * 4, "embed_dim": 8, "num_heads": (1, 2, 2, 2)},
}
# Its text tower is one of transformers.
ROBERTA = "roberta-ViT-B-32"
FAMILIES = (*NATIVE, *TIMM, ROBERTA)


def small_config(family: str, directory: Path | None = None) -> dict[str, Any]:
    """Return open_clip's model config of a family, made small; its tokenizer is a local one.

    A text tower of transformers is described by a file in `directory`.
    """
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(family))
    config["embed_dim"] = DIMS
    vision, text = config["vision_cfg"], config["text_cfg"]
    if family in TIMM:
        vision["timm_model_name"] = _small_timm(vision["timm_model_name"], TIMM[family])
    else:
        vision.update(NATIVE.get(family, _VISION))
    if "hf_model_name" in text:
        if directory is None:
            raise ValueError("a text tower of transformers needs a directory")
        text["hf_model_name"] = str(_save_roberta_config(directory / "text"))
    else:
        text.update(_TEXT)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"].update(_TEXT)
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = 439  # of the embedded tokenizer
    return config


def save_small_clip(family: str, directory: Path, **changes: Any) -> str:
    """Write a local directory with random weights and return its name for Segmill.

    `changes` update the image tower's config. Mean and deviation are those of the family's tags.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = small_config(family, directory)
    config["vision_cfg"].update(changes)
    if "hf_tokenizer_name" in config["text_cfg"]:
        save_tokenizer(directory)
    described = {"model_cfg": config, "preprocess_cfg": statistics_of(family)}
    (directory / "open_clip_config.json").write_text(json.dumps(described))
    save_file(random_weights(config), directory / "open_clip_model.safetensors")
    return f"local-dir:{directory}"


def random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of a model that was never trained, the same in every call."""
    torch.manual_seed(0)
    name = "segmill-small"
    open_clip.factory._MODEL_CONFIGS[name] = config
    try:
        model = open_clip.create_model(name, pretrained_text=False)
    finally:
        del open_clip.factory._MODEL_CONFIGS[name]
    return {name: _livelier(value).contiguous() for name, value in model.state_dict().items()}


def _livelier(value: torch.Tensor) -> torch.Tensor:
    """Return weights that keep the scale of what goes through them.

    Many families start from layers that are all but off; every image would have the same vector,
    and half precision nothing to hold on to.
    """
    if value.ndim > 1:
        return torch.randn(value.shape) * value[0].numel() ** -0.5
    is_off = value.is_floating_point() and value.ndim == 1 and 0 < float(value.abs().max()) < 1e-3
    return torch.ones_like(value) if is_off else value.clone()


def statistics_of(family: str) -> dict[str, Any]:
    """Return mean and deviation as open_clip records them for a published checkpoint."""
    tags = open_clip.list_pretrained_tags_by_model(family)
    if not tags:
        return {}
    published = open_clip.get_pretrained_cfg(family, tags[0])
    return {name: list(published[name]) for name in ("mean", "std")}


def _small_timm(entry: str, small: dict[str, Any]) -> str:
    name = f"segmill_small_{entry}"
    if not timm.is_model(name):

        def build(pretrained: bool = False, **settings: Any) -> torch.nn.Module:
            return timm.create_model(entry, pretrained=pretrained, **{**small, **settings})

        build.__name__ = name
        register_model(build)
    return name


def save_tokenizer(directory: Path) -> Path:
    """Write the embedded tokenizer, with a separator, which CLIPA's has and strips."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(EMBEDDED_CLIP / "tokenizer.json", directory)
    described = json.loads((EMBEDDED_CLIP / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(
        json.dumps({**described, "sep_token": described["eos_token"]})
    )
    return directory


def _save_roberta_config(directory: Path) -> Path:
    from transformers import RobertaConfig

    RobertaConfig(
        vocab_size=439,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        pad_token_id=0,
    ).save_pretrained(directory)
    return directory
