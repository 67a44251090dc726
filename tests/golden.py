"""Golden sets: the authors' reference, stage by stage, read from the directory SEGMILL_GOLDEN."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
