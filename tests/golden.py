"""Golden sets: the authors' reference, stage by stage, read from the directory SEGMILL_GOLDEN."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.checkpoint_file import read_weights
from pipeline.models.checkpoints import (
    Parts,
    Untold,
    load_proposer,
    take_apart,
    their_name,
)
from pipeline.models.clip import Clip, ClipSource, text_vectors
from pipeline.models.clip_checkpoint import ClipUntold, save_clip
from pipeline.models.maskformer import MaskFormer
from pipeline.prompts import Prompts, load_prompts
from schemas.vocabulary import Vocabulary

ROOT = Path(
    os.environ.get("SEGMILL_GOLDEN", Path(__file__).resolve().parents[2] / "shared" / "golden")
)


@dataclass(frozen=True)
class Network:
    """One folder of a network; everything that can differ between sets is read from its files."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def stages(self) -> dict[str, NDArray[Any]]:
        return dict(np.load(self.folder / "stages.npz"))

    @cached_property
    def vocabulary(self) -> dict[str, Any]:
        return json.loads((self.folder / "vocabulary.json").read_text())

    @cached_property
    def texts(self) -> dict[str, NDArray[Any]]:
        """Empty where the folder has none."""
        file = self.folder / "texts.npz"
        return dict(np.load(file)) if file.is_file() else {}

    def has(self, image: int, name: str) -> bool:
        return f"img{image}.{name}" in self.stages

    def run(self, name: str) -> dict[str, NDArray[Any]]:
        return dict(np.load(self.folder / self.config["runs"][name]["file"]))

    def stage(self, image: int, name: str) -> Tensor:
        return torch.from_numpy(self.stages[f"img{image}.{name}"].copy())

    def size(self, image: int, name: str) -> tuple[int, int]:
        height, width = self.stages[f"img{image}.{name}"].tolist()
        return height, width


def networks() -> list[Network]:
    """All network folders of the golden directory; empty where there is none."""
    return [Network(file.parent) for file in sorted(ROOT.glob("*/config.json"))]


def cases() -> list[tuple[Network, str, int]]:
    """Every (network, run, image)."""
    found = []
    for network in networks():
        indices = {entry["name"]: entry["index"] for entry in network.config["images"]}
        for run, settings in network.config["runs"].items():
            found += [(network, run, indices[name]) for name in settings["images"]]
    return found


def images() -> list[tuple[Network, int]]:
    """Every (network, image)."""
    return [
        (network, entry["index"]) for network in networks() for entry in network.config["images"]
    ]


def untold(network: Network) -> Untold:
    """What the network's weights do not tell, from its config.json."""
    config = network.config
    return Untold(
        heads=config["transformer"]["heads"],
        res5_dilations=tuple(config["backbone"]["res5_dilation_per_block"]),
        stride_in_1x1="1x1" in config["backbone"]["stride_on"],
        pixel_mean=tuple(config["input"]["mean"]),
        pixel_std=tuple(config["input"]["std"]),
        size_divisibility=config["input"]["pad_multiple"],
        short_edge=config["input"]["short_edge"],
        long_edge=config["input"]["long_edge"],
    )


@cache
def parts(network: Network) -> Parts:
    return take_apart(read_weights(network.folder / network.config["weights"]["file"]))


@cache
def proposer(network: Network) -> MaskFormer:
    """The network's MaskFormer, from its checkpoint."""
    return load_proposer(parts(network), untold(network), network.folder.name).requires_grad_(False)


def in_their_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of our MaskFormer, or as many gradients, under the authors' names; q, k, v joined."""
    parts_of: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for ours, value in weights.items():
        projection = re.search(r"\.([qkv])_proj\.", ours)
        parts_of[their_name(ours)][projection[1] if projection else ""] = value
    return {
        theirs: torch.cat([found[part] for part in ("q", "k", "v") if part in found])
        if "q" in found
        else found[""]
        for theirs, found in parts_of.items()
    }


def donor_of_clip(network: Network) -> Network:
    """The network itself, or where its weights leave CLIP out, the one that they name."""
    if parts(network).clip:
        return network
    named = re.search(r"\.\./([\w.-]+)/", network.config["weights"]["note"])
    folder = named[1] if named else ""
    return next(other for other in networks() if other.folder.name == folder)


@cache
def clip(network: Network) -> Clip:
    """The network's CLIP, by way of a directory that open_clip loads."""
    donor = donor_of_clip(network)
    settings = network.config["clip"]
    told = ClipUntold(
        settings["text"]["heads"],
        settings["vision"]["heads"],
        tuple(settings["image_mean"]),
        tuple(settings["image_std"]),
    )
    with TemporaryDirectory() as directory:
        save_clip(parts(donor).clip, told, Path(directory), donor.folder.name)
        return Clip.load(ClipSource(f"local-dir:{directory}"))


def prompts(network: Network, name: str) -> Prompts:
    """The prompts of a name of config.json: a learned file or a template list."""
    described = network.config["prompts"].get(name, "")
    if file := re.search(r"\S+\.safetensors", described):
        return load_prompts(str(network.folder / file[0]))
    literal = (described,) if "{}" in described else ()
    return Prompts(tuple(network.vocabulary["templates"].get(name, literal)))


@cache
def text_of(network: Network, name: str) -> Tensor:
    """Text vectors (K, D) of the network's names, made by our code."""
    vocabulary = Vocabulary.of(network.vocabulary["names"])
    return torch.from_numpy(text_vectors(clip(network), vocabulary, prompts(network, name)))


def noise(network: Network, tensor: str, times: float = 3.0) -> float:
    """Tolerance end to end: a small multiple of the reference's own noise in fp32."""
    known = network.config["numerical_noise"]["tensors"].get(tensor, {})
    return times * known.get("max_abs_difference", 1e-4)
