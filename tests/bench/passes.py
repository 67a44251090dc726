"""What it saves a CPU to give its networks a few images at a time, and each core its own.

    python -m tests.bench.passes [rounds]

Networks of full size with random weights on all cores: 64 crops through CLIP's ViT-B/16 and 256
through its ViT-B/32, noise of the size of four photos through an R101c MaskFormer: at once, in
passes that share all cores, and as classifier and proposer do it, in passes side by side. By turns;
figures are medians of seconds, and of how many of them the kernel took (of all cores).
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from pipeline.cores import cores
from pipeline.models.maskformer import MaskFormer
from pipeline.models.passes import crops_per_pass, images_per_pass, in_passes, passes_at_once
from tests.bench.exact_path import save_proposer

SIZE = (640, 864)
IMAGES = 4
CROPS = {"ViT-B-16": 64, "ViT-B-32": 256}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    with torch.inference_mode():
        found = {name: clip(name, count, rounds) for name, count in CROPS.items()}
        found["MaskFormer R101c"] = proposer(rounds)
    print(json.dumps({"passes": {"cores": cores(), "rounds": rounds, **found}}))


def clip(name: str, count: int, rounds: int) -> dict[str, Any]:
    tower = open_clip.create_model(name).eval().requires_grad_(False).visual
    crops = torch.randn(count, 3, 224, 224)
    few = crops_per_pass(tower, crops[:1])
    return {"crops": count, "per pass": few, **compared(tower, crops, few, rounds)}


def proposer(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save_proposer(folder)
        network = MaskFormer.load(folder).requires_grad_(False)
    images = torch.randn(IMAGES, 3, *SIZE)
    few = images_per_pass(SIZE)
    return {"images": IMAGES, "per pass": few, **compared(network, images, few, rounds)}


def compared(network: nn.Module, images: Tensor, few: int, rounds: int) -> dict[str, Any]:
    ways: dict[str, Callable[[], object]] = {
        "at once": lambda: network(images),
        "in passes": lambda: in_passes(network, images, few, 1),
        "side by side": lambda: in_passes(network, images, few, passes_at_once("cpu")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    kernel: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started, before = time.perf_counter(), _kernel_s()
            way()
            if number:  # not the first, in which kernels are chosen
                seconds[name].append(time.perf_counter() - started)
                kernel[name].append(_kernel_s() - before)
    once, *others = (median(found) for found in seconds.values())
    return {
        "speedup": [round(once / other, 2) for other in others],
        "seconds": {name: round(median(found), 2) for name, found in seconds.items()},
        "kernel_s": {name: round(median(found), 2) for name, found in kernel.items()},
    }


def _kernel_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


if __name__ == "__main__":
    main()
