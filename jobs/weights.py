"""`segmill weights convert` and `segmill weights inspect`: the authors' checkpoints, and ours."""

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.models.checkpoint_file import WeightsFile, read_weights
from pipeline.models.checkpoints import Parts, Untold, infer_config, load_proposer, take_apart
from pipeline.models.clip_checkpoint import ClipUntold, infer_clip_config, save_clip
from pipeline.models.maskformer import NetworkConfig, load_config
from pipeline.models.model_directory import CONFIG_FILE, read_config
from pipeline.models.per_pixel import PerPixelConfig
from pipeline.prompts import LearnedPrompt
from schemas.errors import ModelError, OutputError, SegmillError
from schemas.vocabulary import read_vocabulary
from schemas.weights_config import WeightsConvertConfig, WeightsInspectConfig

_OPEN_CLIP_CONFIG: Final = "open_clip_config.json"


@dataclass(frozen=True)
class ConvertResult:
    """Where the parts of a checkpoint went; None for one that it does not have."""

    proposer: Path
    clip: Path | None = None
    prompt: Path | None = None
    region_clip: Path | None = None
    region_prompt: Path | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)  # per part
    unused: tuple[str, ...] = ()  # keys that no network has a use for, such as loss weights


@dataclass(frozen=True)
class InspectResult:
    """What a file holds, in the order of interest."""

    path: Path
    kind: str
    facts: Mapping[str, Any]
    parameters: Mapping[str, int]  # per part
    problems: tuple[str, ...] = ()  # why it would not convert or load


def convert(config: WeightsConvertConfig) -> ConvertResult:
    """Write `proposer/`, `clip/` and `prompt.safetensors` of a checkpoint, whole or not at all.

    Raises ModelError that names every key that is missing, unexpected or misshapen.
    """
    if config.output.exists():
        raise OutputError(f"{config.output} exists already; name a directory that does not")
    source = config.checkpoint
    parts = take_apart(read_weights(source))
    proposer = load_proposer(parts, _untold(config, parts), str(source))
    part = config.output.with_name(f".{config.output.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        proposer.save(part / "proposer")
        _write_clips(config, parts, part, proposer.config.embedding_dim)
        for name, arrays in (("prompt", parts.prompt), ("region-prompt", parts.region_prompt)):
            if arrays:
                _prompt(arrays, str(source)).save(part / f"{name}.safetensors")
        os.replace(part, config.output)
    except OSError as error:
        raise OutputError(f"cannot write {config.output}: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)

    def written(name: str) -> Path | None:
        path = config.output / name
        return path if path.exists() else None

    return ConvertResult(
        proposer=config.output / "proposer",
        clip=written("clip"),
        prompt=written("prompt.safetensors"),
        region_clip=written("region-clip"),
        region_prompt=written("region-prompt.safetensors"),
        parameters=_parameters(parts),
        unused=tuple(sorted(parts.unused)),
    )


def _untold(config: WeightsConvertConfig, parts: Parts) -> Untold:
    seen: tuple[str, ...] = ()
    if config.vocabulary is not None:
        vocabulary = read_vocabulary(config.vocabulary)
        flags = vocabulary.seen or (True,) * len(vocabulary)
        seen = tuple(name for name, flag in zip(vocabulary.names, flags, strict=True) if flag)
        if parts.num_seen not in (None, len(seen)):
            raise ModelError(
                f"{config.checkpoint} was trained on {parts.num_seen} classes, {config.vocabulary} "
                f"has {len(seen)} seen ones; they must be equal"
            )
    return Untold(
        heads=config.heads,
        res5_dilations=config.res5_dilations,
        stride_in_1x1=config.stride_in_1x1,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        size_divisibility=config.size_divisibility,
        short_edge=config.short_edge,
        long_edge=config.long_edge,
        seen_classes=seen,
        licence=config.licence,
        provenance=f"converted from {config.checkpoint.name}",
    )


def _write_clips(
    config: WeightsConvertConfig, parts: Parts, directory: Path, embedding_dim: int
) -> None:
    """Write the CLIP, and that of a separate region head where it is another one."""
    source, donor = config.checkpoint, parts
    if config.clip_checkpoint is not None:
        if parts.clip:
            raise ModelError(f"{source} has its own CLIP; clip_checkpoint must be absent")
        source = config.clip_checkpoint
        donor = take_apart(read_weights(source))
        if not donor.clip:
            raise ModelError(f"{source} holds no clip_adapter.clip_model")
    for name, weights in (("clip", donor.clip), ("region-clip", donor.region_clip)):
        if not weights or (name == "region-clip" and _equal(weights, donor.clip)):
            continue
        told = _clip_untold(config, donor)
        found = save_clip(weights, told, directory / name, str(source))
        if found["embed_dim"] != embedding_dim:
            raise ModelError(
                f"the query head of {config.checkpoint} gives {embedding_dim} dimensions, the CLIP "
                f"of {source} {found['embed_dim']}; they must be equal"
            )


def _clip_untold(config: WeightsConvertConfig, parts: Parts) -> ClipUntold:
    usual = ClipUntold(config.clip_text_heads, config.clip_vision_heads)
    stored = [parts.unused.get(f"clip_adapter.pixel_{name}") for name in ("mean", "std")]
    values = [
        usual_values if value is None else _per_channel(value, usual_values)
        for value, usual_values in zip(stored, (usual.pixel_mean, usual.pixel_std), strict=True)
    ]
    return ClipUntold(config.clip_text_heads, config.clip_vision_heads, *values)


def _per_channel(stored: Tensor, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Return statistics of images in [0, 1]; the usual ones where fp32 hides their last digits."""
    values = (stored.double().flatten() / 255.0).tolist()
    if len(values) == len(usual) and all(
        abs(value - known) < 1e-6 for value, known in zip(values, usual, strict=True)
    ):
        return usual
    return tuple(values)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value.float(), second[name].float()) for name, value in first.items()
    )


def _prompt(weights: Mapping[str, Tensor], source: str) -> LearnedPrompt:
    return LearnedPrompt.of(
        {name: value.float().numpy() for name, value in weights.items()}, source
    )


def _parameters(parts: Parts) -> dict[str, int]:
    return {
        name: sum(value.numel() for value in weights.values())
        for name, weights in vars(parts).items()
        if weights
    }


def inspect(config: WeightsInspectConfig) -> InspectResult:
    """Return what a file or directory holds; raises ModelError when it can not be read at all."""
    path = config.weights
    if path.is_dir():
        return _inspect_directory(path)
    file = read_weights(path)
    names = {name.rpartition(".")[2] for name in file.weights}
    if "prefix_prompt" in names and not any(name.startswith("backbone.") for name in file.weights):
        return _inspect_prompt(file)
    if any("sem_seg_head." in name for name in file.weights):
        return _inspect_reference(file)
    groups: Counter[str] = Counter()
    for name, value in file.weights.items():
        groups[name.partition(".")[0]] += value.numel()
    return InspectResult(path, "weights of an unknown layout", _file_facts(file), dict(groups))


def _inspect_reference(file: WeightsFile) -> InspectResult:
    facts, problems = _file_facts(file), []
    try:
        parts = take_apart(file)
    except ModelError as error:
        return InspectResult(file.path, "checkpoint of the authors", facts, {}, (str(error),))
    # What the heads are is not told by the file; one head divides every width.
    untold, clip_untold = Untold(heads=1), ClipUntold(1, 1)
    try:
        proposer = infer_config(parts.proposer, untold, str(file.path))
        load_proposer(parts, untold, str(file.path))
        facts["backbone"] = proposer.backbone.options
        told = {"mask_channels", "embedding_dim"}
        if isinstance(proposer, PerPixelConfig):
            told |= {"architecture"}
        else:
            told |= {"queries", "hidden_channels", "decoder_layers"}
        facts |= proposer.model_dump(include=told)
    except SegmillError as error:
        problems.append(str(error))
    for name, weights in (("clip", parts.clip), ("region_clip", parts.region_clip)):
        if weights:
            try:
                facts[name] = _clip_facts(infer_clip_config(weights, clip_untold, str(file.path)))
            except SegmillError as error:
                problems.append(str(error))
    for name, prompt in (("prompt", parts.prompt), ("region_prompt", parts.region_prompt)):
        if "prefix_prompt" in prompt:
            facts[name] = f"{len(prompt['prefix_prompt'])} prefix vectors"
    facts["seen_classes"] = parts.num_seen
    kind = "checkpoint of the authors"
    return InspectResult(file.path, kind, facts, _parameters(parts), tuple(problems))


def _inspect_prompt(file: WeightsFile) -> InspectResult:
    facts = {name: tuple(value.shape) for name, value in file.weights.items()}
    count = sum(value.numel() for value in file.weights.values())
    return InspectResult(file.path, "learned prompt", facts, {"prompt": count})


def _inspect_directory(path: Path) -> InspectResult:
    if (path / _OPEN_CLIP_CONFIG).is_file():
        described = json.loads((path / _OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
        weights = read_weights(path / "open_clip_model.safetensors").weights
        count = sum(value.numel() for value in weights.values())
        facts = _clip_facts(described["model_cfg"])
        return InspectResult(path, "open_clip model", facts, {"clip": count})
    if (path / CONFIG_FILE).is_file():
        proposer = _proposer_config(path).model_dump(mode="json")
        weights = read_weights(path / "model.safetensors").weights
        count = sum(value.numel() for value in weights.values())
        return InspectResult(path, "proposer", proposer, {"proposer": count})
    raise ModelError(f"{path} has neither {CONFIG_FILE} nor {_OPEN_CLIP_CONFIG}")


def _proposer_config(directory: Path) -> NetworkConfig:
    """Read the config of whichever network of ours a directory holds."""
    described = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    if "architecture" in described:
        return read_config(directory, PerPixelConfig)
    return load_config(directory)


def _clip_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    return {
        "embedding_dim": config["embed_dim"],
        "image_size": vision.get("image_size"),
        "vision": f"{vision.get('layers')} layers, {vision.get('width')} wide",
        "text": f"{text.get('layers')} layers, {text.get('width')} wide",
    }


def _file_facts(file: WeightsFile) -> dict[str, Any]:
    types = Counter(str(value.dtype).removeprefix("torch.") for value in file.weights.values())
    facts: dict[str, Any] = {
        "tensors": len(file.weights),
        "types": ", ".join(f"{kind} {count}" for kind, count in types.most_common()),
        "module_versions": file.has_versions,
    }
    if file.iteration is not None:
        facts["iteration"] = file.iteration
    if file.entries:
        facts["beside_the_weights"] = ", ".join(file.entries)
    return facts
