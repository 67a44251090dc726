"""Images a second on a machine with one GPU: bare stages, and whole runs of `annotate`.

    python -m tests.bench.gpu [images] [photos]

The models of tests.bench.exact_path, of full size with random weights: a MaskFormer R101c and a
CLIP ViT-B/16. Copies of photos of the sample data, their shorter side at 640; masks are ellipses
with the network's own logits added, 24 to 48 an image, 36 on average; 171 classes.

`bare` is milliseconds: of the networks alone, batches on the GPU before the clock starts, of all
that the GPU does for an image, and of the stages as they are, one after the other in this process.
`forward_ceiling` is images a second if only the forward passes of both networks, in bf16, were ever
waited for. `runs` are whole runs through Ray, from warm pools to the last write, by the meter. The
GPU's utilisation is NVML's, once a second: the share of time in which a kernel was running.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from jobs import annotation_flows
from jobs.annotate import annotate
from pipeline.models import Proposals
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings
from pipeline.models.device import PRECISIONS, pick_device
from pipeline.models.half_precision import lower
from pipeline.models.maskformer import MaskFormer
from pipeline.models.maskformer_proposer import padded_batch
from pipeline.models.whole_image import WholeImageSettings
from pipeline.resize import padded_size
from pipeline.stages.propose import Propose
from pipeline.stages.rows import image_of
from schemas.annotate_config import AnnotateConfig
from tests.bench import exact_path
from tests.bench.exact_path import CLASSES, SEEN
from tests.bench.scenes import write_copies
from tests.classify import make_classify

DIVISOR, VARIANTS_OF_MASKS = 32, 4
BATCHES = (1, 8, 32)  # of the proposer
PROPOSE_BATCH, CLASSIFY_BATCH = 32, 16
CROP_BATCH = 512
# Name, settings of a run, and actors of both pools; they share the GPU.
RUNS: dict[str, tuple[dict[str, Any], int, int]] = {
    "exact fp32": ({"proposer_precision": "fp32", "clip_precision": "fp32"}, 1, 2),
    "exact bf16": ({}, 2, 4),
    "exact bf16, one actor a pool": ({}, 1, 1),
    "one-pass bf16": ({"classifier": "one-pass"}, 3, 5),
}


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    images, photos = counts + [2_000, 64][len(counts) :]
    with tempfile.TemporaryDirectory(prefix="gpu-") as directory:
        folder = Path(directory)
        table = exact_path.photos(photos)
        save_models(folder)
        result = {"device": device_name(), "bare": Bare(folder, table).figures()}
        print(json.dumps(result), file=sys.stderr, flush=True)
        files = [Path(uri).read_bytes() for uri in table["uri"].to_pylist()]
        write_copies(folder / "photos", files, images)
        result["runs"] = {}
        for name, (settings, propose, classify) in RUNS.items():
            result["runs"][name] = run(folder, name, settings, propose, classify)
            print(name, json.dumps(result["runs"][name]), file=sys.stderr, flush=True)
        best = result["runs"]["exact bf16"]["images_per_s"]
        result["exact_over_forward_ceiling"] = round(best / result["bare"]["forward_ceiling"], 3)
        print(json.dumps({"gpu": result}))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def save_models(folder: Path) -> None:
    torch.manual_seed(0)
    exact_path.save_proposer(str(folder / "proposer"))
    save_file(open_clip.create_model("ViT-B-16").state_dict(), folder / "clip.safetensors")
    names = "\n".join(
        f"  - name: class {n}\n    seen: {str(n < SEEN).lower()}" for n in range(CLASSES)
    )
    (folder / "classes.yaml").write_text(f"classes:\n{names}\n")


@dataclass
class Shaped:
    """A proposer whose masks and queries are drawn towards something, see exact_path."""

    proposer: Any
    _kept: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _count: int = 0

    def propose(self, images: list[NDArray[np.uint8]]) -> list[Proposals]:
        return [self._shaped(found) for found in self.proposer.propose(images)]

    def _shaped(self, found: Proposals) -> Proposals:
        self._count += 1
        logits, embeds = found.mask_logits_Qhw, found.query_embeds_QD
        key = (self._count % VARIANTS_OF_MASKS, *logits.shape)
        if key not in self._kept:
            shapes = exact_path.drawn_shapes(logits.shape, key[0])
            drawn = exact_path.drawn_classes(len(embeds), key[0])
            self._kept[key] = shapes.to(logits.device), drawn.to(logits.device)
        shapes, drawn = self._kept[key]
        mixed = torch.nn.functional.normalize(embeds.float() + drawn, dim=1)
        return Proposals(exact_path.standardised(logits) + shapes, mixed, found.void_logits_Q)


@dataclass(frozen=True)
class ShapedPropose(Propose):
    """The stage with such a proposer."""

    @cached_property
    def model(self) -> Any:
        return Shaped(Propose.model.func(self))  # type: ignore[attr-defined]


class Bare:
    """The stages in this process, one after the other."""

    def __init__(self, folder: Path, images: pa.Table) -> None:
        self.folder, self.images = folder, images
        self.device = pick_device()
        sizes = [
            padded_size((r["image_height"], r["image_width"]), DIVISOR) for r in images.to_pylist()
        ]
        self.padded = max(set(sizes), key=sizes.count)
        self.places = [index for index, size in enumerate(sizes) if size == self.padded]

    def alike(self, count: int) -> pa.Table:
        """Return images of one padded size, again and again."""
        return self.images.take([self.places[n % len(self.places)] for n in range(count)])

    def figures(self) -> dict[str, Any]:
        with torch.inference_mode():
            network = {name: self.network(name) for name in ("fp32", "bf16")}
            clip = {name: self.clip(name) for name in ("fp32", "bf16")}
            stages, crops = self.stages()
        forward = min(network["bf16"].values()) + crops * clip["bf16"]
        return {
            "padded": self.padded,
            "crops_per_image": crops,
            "proposer_ms_by_batch": network,
            "clip_ms_per_crop": clip,
            "stages_ms_per_image": stages,
            "forward_ceiling": round(1000 / forward, 1),
        }

    def network(self, precision: str) -> dict[int, float]:
        """Milliseconds of an image in the proposer's network, by images a batch."""
        model = MaskFormer.load(self.folder / "proposer").to(self.device).requires_grad_(False)
        dtype = PRECISIONS[precision]
        if precision != "fp32":
            lower(model, dtype)

        def forward(batch: torch.Tensor) -> None:
            with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
                model(batch)

        found = {}
        for count in BATCHES:
            images = [image_of(row) for row in self.alike(count).to_pylist()]
            batch = padded_batch(images, model.config, torch.device(self.device))
            found[count] = milliseconds(partial(forward, batch), count)
        return found

    def clip(self, precision: str) -> float:
        """Milliseconds of a crop in CLIP."""
        clip = Clip.load(
            ClipSource("ViT-B-16", str(self.folder / "clip.safetensors"), precision), self.device
        )
        number = CROP_BATCH if self.device == "cuda" else 8
        crops = torch.randn(number, 3, clip.side, clip.side, device=self.device)
        return milliseconds(lambda: clip.encode_crops(crops, number), number)

    def stages(self) -> tuple[dict[str, Any], float]:
        """Milliseconds of an image in the stages, in bf16; and crops an image."""
        found: dict[str, Any] = {}
        for name in ("fp32", "bf16"):
            propose = ShapedPropose(
                "maskformer", str(self.folder / "proposer"), DIVISOR, "float16", arithmetic=name
            )
            images = self.alike(PROPOSE_BATCH)
            found[f"propose {name}"] = milliseconds(partial(propose, images), PROPOSE_BATCH)
        proposed = propose(self.alike(CLASSIFY_BATCH))
        crops = 0.0
        for classifier, regions in (("crops", CropSettings()), ("one-pass", WholeImageSettings())):
            source = ClipSource("ViT-B-16", str(self.folder / "clip.safetensors"), "bf16")
            classify = make_classify(
                source, exact_path.text_vectors().numpy(),
                tuple(f"class {index}" for index in range(CLASSES)), precision="float16",
                seen=tuple((torch.arange(CLASSES) < SEEN).tolist()), ensemble_weight=0.8,
                crop_batch=CROP_BATCH, classifier=classifier, regions=regions,
            )  # fmt: skip
            embedded = classify.embed(proposed)
            crops = crops or mean(sum(map(int, row["valid"])) for row in embedded.to_pylist())
            found[f"embed {classifier}"] = milliseconds(
                partial(classify.embed, proposed), CLASSIFY_BATCH
            )
            found["label"] = milliseconds(partial(classify.label, embedded), CLASSIFY_BATCH)
        return found, crops


def milliseconds(work: Callable[[], Any], items: int, times: int = 5) -> float:
    """Return the median milliseconds per item, after a warm-up."""
    cuda = torch.cuda.is_available()
    seconds = []
    for _ in range(times + 2 if cuda else 2):
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return round(1000 * median(seconds[2:] or seconds[1:]) / items, 3)


def run(folder: Path, name: str, settings: dict[str, Any], propose: int, classify: int) -> Any:
    """Return the figures of a run through Ray."""
    annotation_flows.Propose = ShapedPropose  # type: ignore[misc]
    gpus = {"propose_gpus": 0.1, "classify_gpus": 0.1} if torch.cuda.is_available() else {}
    config = AnnotateConfig.model_validate(
        {
            "source": str(folder / "photos"), "vocabulary": folder / "classes.yaml",
            "output": str(folder / name.replace(" ", "-")), "proposer": "maskformer",
            "proposer_weights": str(folder / "proposer"), "clip": "ViT-B-16",
            "clip_weights": str(folder / "clip.safetensors"), "proposer_precision": "bf16",
            "clip_precision": "bf16", "propose_actors": propose, "classify_actors": classify,
            "propose_batch": PROPOSE_BATCH, "classify_batch": CLASSIFY_BATCH,
            "crop_batch": CROP_BATCH, "short_edge": 640, **gpus, **settings,
        }
    )  # fmt: skip
    with utilisation() as busy:
        result = annotate(config)
    assert result.meter is not None and result.counts.labelled == result.counts.inventory
    flow = max(result.meter.flows, key=lambda one: one.images)
    return {
        "images": flow.images, "images_per_s": round(flow.images_per_s, 1),
        "actors": [propose, classify], "ceiling": round(flow.ceiling, 1), "binds": flow.binds,
        "limits": {name: round(limit, 1) for name, limit in flow.limits.items()},
        "utilisation": {stage.name: round(stage.utilisation, 3) for stage in flow.stages},
        "cpu_ms": {stage.name: round(1000 * stage.cpu_service_s, 2) for stage in flow.stages},
        "ms": {stage.name: round(1000 * stage.service_s, 2) for stage in flow.stages},
        "gpu_busy": round(median(busy), 1) if busy else None,
        "gpu_busy_top": round(mean(sorted(busy)[-10:]), 1) if busy else None,
        "seconds": round(result.seconds, 1),
    }  # fmt: skip


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Collect the GPU's utilisation in per cent, once a second, while it is at work at all."""
    seen: list[float] = []
    stop = threading.Event()
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]

    def look() -> None:
        while not stop.wait(1.0):
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
            if said.strip() and float(said.split()[0]) > 0:
                seen.append(float(said.split()[0]))

    thread = threading.Thread(target=look, daemon=True)
    if torch.cuda.is_available():
        thread.start()
    try:
        yield seen
    finally:
        stop.set()


if __name__ == "__main__":
    main()
