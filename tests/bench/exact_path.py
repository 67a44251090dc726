"""The exact path against a straightforward eager loop of the same models, stage by stage.

    python -m tests.bench.exact_path [images] [rounds]

A MaskFormer with an R101c and a CLIP ViT-B/16, both of full size with random weights; photos of the
sample data with their shorter side at 640; 171 random class vectors, 156 of them seen. Masks of
random weights cover half an image each or nothing: each image gets 24 to 48 ellipses of log-uniform
size (one of them over the whole image, so that every pixel is covered) as mask logits, the rest of
the 100 queries lie below the threshold, and the network's own logits, standardised, are added, so
that boundaries are ragged and depend on what it computes. Query embeddings are drawn towards a
class of their own, so that an image has many segments. Both ways are given the same.

Everything runs in this process on one thread, one way after the other, `rounds` times; ratios are
medians over the rounds, of CPU seconds. CLIP's forward pass, the same work in both, is run in the
first round only. Half precision has a benchmark of its own, `tests.bench.bf16`.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

import pipeline.stages.label
from pipeline.masks import pack_logits
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.maskformer import BackboneConfig, LayerOutput, MaskFormer, MaskFormerConfig
from pipeline.resize import resize_image, resized_size
from pipeline.segments import decode_label_map
from pipeline.stages.propose import Propose
from pipeline.stages.rows import image_of
from schemas.annotation import DECODED, LABELLED, PROPOSED, table_from_rows
from tests.bench.eager import Eager, Vocabulary
from tests.bench.scenes import LabelMap, agreement, photo_files
from tests.bench.stopwatch import Stopwatch
from tests.classify import make_classify

CLASSES, SEEN, WEIGHT = 171, 156, 0.8
TIME_LIMIT_S = 420  # no round begins after that
NOT_CLIP = ("propose", "masks", "crops", "scores", "assembly", "segments")


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    images, rounds = counts + [3, 3][len(counts) :]
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(Path(folder), photos(images))
        figures = bench.pairs(rounds, until=started + TIME_LIMIT_S)
    print(json.dumps({"exact_path": figures}))


def photos(count: int) -> pa.Table:
    """Return DECODED rows of photos spread over the sample data, their shorter side at 640."""
    files = photo_files(needed=True)
    rows = []
    for file in files[:: len(files) // count][:count]:
        photo = Image.open(file).convert("RGB")
        size = resized_size((photo.height, photo.width), 640, 2560)
        rows.append(
            {
                "image_id": file.stem, "uri": str(file), "height": photo.height,
                "width": photo.width, "status": LABELLED, "image_height": size[0],
                "image_width": size[1], "image": resize_image(photo, size).tobytes(),
            }
        )  # fmt: skip
    return table_from_rows(rows, DECODED)


class Replayed(torch.nn.Module):
    """CLIP's image tower, whose outputs are kept so that later rounds need not compute them."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower, self.kept, self.position = tower, [], None

    def forward(self, crops_N3SS: Tensor) -> Tensor:
        if self.position is None:
            self.kept.append(self.tower(crops_N3SS))
            return self.kept[-1]
        self.position += 1
        return self.kept[self.position - 1]


class Bench:
    """The two ways over the same photos."""

    def __init__(self, folder: Path, images: pa.Table) -> None:
        torch.manual_seed(0)
        self.images = images
        self.text_KD = text_vectors()
        self.seen_K = torch.arange(CLASSES) < SEEN
        self.proposer = str(folder / "proposer")
        save_proposer(self.proposer)
        self.clip = str(folder / "clip.safetensors")
        save_file(open_clip.create_model("ViT-B-16").state_dict(), self.clip)

    @cached_property
    def eager(self) -> Eager:
        """The straightforward way."""
        clip = Clip.load(ClipSource("ViT-B-16", self.clip))
        eager = Eager(
            MaskFormer.load(self.proposer),
            clip.model,
            clip.mean,
            clip.std,
            Vocabulary(self.text_KD, self.seen_K, WEIGHT),
            Stopwatch(),
        )
        clip.model.visual = Replayed(clip.model.visual)
        return eager

    @cached_property
    def exact(self) -> "Exact":
        """The pipeline's."""
        return self.path("fp32")

    def path(self, precision: str) -> "Exact":
        """Return the pipeline's stages with both networks in a precision."""
        classify = make_classify(
            ClipSource("ViT-B-16", self.clip, precision), self.text_KD.numpy(),
            tuple(f"class {index}" for index in range(CLASSES)), precision="float32",
            seen=tuple(self.seen_K.tolist()), ensemble_weight=WEIGHT, crop_batch=None,
        )  # fmt: skip
        return Exact(
            Propose("maskformer", self.proposer, 32, "float32", arithmetic=precision), classify
        )

    def pairs(self, rounds: int, until: float) -> dict[str, Any]:
        """Return ratios of the exact path to the eager loop."""
        eager_seconds, eager_maps = self.run_eager(replay=False)
        exact_seconds, exact_maps = self.exact.run(self.images, replay=False)
        seconds = [(eager_seconds, exact_seconds)]
        while len(seconds) < rounds and time.monotonic() < until:
            eager_seconds, _ = self.run_eager(replay=True)
            seconds.append((eager_seconds, self.exact.run(self.images, replay=True)[0]))
            print(*map(rounded, seconds[-1]), file=sys.stderr)
        first_eager, first_exact = seconds[0]
        return {
            "images": len(self.images),
            "rounds": len(seconds),
            "crops_per_image": crops_of(self.images),
            "segments_per_image": sum(len(np.unique(one)) for one in exact_maps) / len(exact_maps),
            "eager_s_per_image": self.per_image(first_eager),
            "exact_s_per_image": self.per_image(first_exact),
            "stage_ratio": stage_ratios(seconds),
            "exact_non_clip_speedup": ratio(seconds, NOT_CLIP),
            "exact_non_network_speedup": ratio(seconds, NOT_CLIP[1:]),
            "exact_speedup": round(first_eager.total() / first_exact.total(), 3),
            "exact_pixel_agreement": agreement(eager_maps, exact_maps),
        }

    def per_image(self, seconds: Any) -> dict[str, float]:
        return {name: round(value / len(self.images), 4) for name, value in seconds.items()}

    def run_eager(self, replay: bool) -> tuple[Any, list[LabelMap]]:
        eager = self.eager
        eager.watch.seconds.clear()
        eager.clip.visual.position = 0 if replay else None
        maps = []
        for index, row in enumerate(self.images.to_pylist()):
            found = eager.propose(image_of(row))
            logits_BQhw = shape(found.mask_logits_BQhw[0], index)[None]
            embeds_BQD = draw_to_classes(found.query_embeds_BQD[0], index)[None]
            found = LayerOutput(logits_BQhw, embeds_BQD, found.void_logits_BQ)
            size = (row["height"], row["width"])
            maps.append(decode_label_map(eager.label(image_of(row), found, size), size))
        return eager.watch.seconds.copy(), maps


class Exact:
    """The stages of the pipeline, called as the pipeline calls them."""

    def __init__(self, propose: Propose, classify: Any) -> None:
        self.propose, self.classify, self.watch = propose, classify, Stopwatch()
        visual = Replayed(classify.embed.embedder._clip.model.visual)
        classify.embed.embedder._clip.model.visual = visual
        self.watch.follow(visual, "clip")
        self.visual = visual
        _ = propose.model  # loaded before anything is timed

    def run(self, images: pa.Table, replay: bool) -> tuple[Any, list[LabelMap]]:
        watch, stage = self.watch, pipeline.stages.label
        watch.seconds.clear()
        self.visual.position = 0 if replay else None
        with watch("propose"):
            proposed = self.propose(images)
        proposed = shaped_table(proposed)
        with watch("crops"):
            embedded = self.classify.embed(proposed)
        with (
            watch.wrapped(stage, "label_map", "assembly"),
            watch.wrapped(stage, "encode_kept", "segments"),
            watch("scores"),
        ):
            rows = self.classify.label(embedded).to_pylist()
        assert all(row["status"] == LABELLED for row in rows), rows[0]["error"]
        maps = [decode_label_map(row["segments"], (row["height"], row["width"])) for row in rows]
        return watch.seconds.copy(), maps


def save_proposer(directory: str) -> None:
    """Write an R101c MaskFormer of the paper's size with random weights.

    The last norm of every residual block has a small weight, as in trained networks: with frozen
    statistics of a mean of 0 and a variance of 1 features would otherwise grow without bound.
    """
    config = MaskFormerConfig(backbone=BackboneConfig(kind="resnet", name="r101c"))
    model = MaskFormer(config)
    for name, buffer in model.backbone.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)
    model.save(directory)


def shape(logits_Qhw: Tensor, image: int, count: int | None = None) -> Tensor:
    """Return mask logits of ellipses, with the network's own, standardised, added.

    There are `count` ellipses, or as many as the image's number says.
    """
    return drawn_shapes(logits_Qhw.shape, image, count) + standardised(logits_Qhw)


def standardised(logits_Qhw: Tensor) -> Tensor:
    spread_Q = logits_Qhw.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    return ((logits_Qhw - logits_Qhw.mean(dim=(1, 2), keepdim=True)) / spread_Q).clamp(-4, 4)


def drawn_shapes(grid: Sequence[int], image: int, count: int | None = None) -> Tensor:
    """Return logits (Q, h, w) of the ellipses of an image, and of nothing in the other queries."""
    shapes_Qhw = torch.full(tuple(grid), -8.0)
    ellipses_Nhw = ellipses(count or number_of_crops(image), *grid[1:], image)
    shapes_Qhw[: len(ellipses_Nhw)] = ellipses_Nhw
    return shapes_Qhw


@cache
def text_vectors() -> Tensor:
    """Return random unit vectors (K, D)."""
    random = torch.Generator().manual_seed(0)
    return normalize(torch.randn(CLASSES, 512, generator=random), dim=1)


def draw_to_classes(embeds_QD: Tensor, image: int) -> Tensor:
    """Return unit embeddings half of the network's and half of a class drawn for each query."""
    return normalize(embeds_QD + drawn_classes(len(embeds_QD), image), dim=1)


def drawn_classes(queries: int, image: int) -> Tensor:
    """Return the text vector (Q, D) of a class drawn for each query."""
    random = torch.Generator().manual_seed(image)
    return text_vectors()[torch.randint(0, CLASSES, (queries,), generator=random)]


def number_of_crops(image: int) -> int:
    return 24 + 8 * (image % 4)


def ellipses(count: int, height: int, width: int, seed: int) -> Tensor:
    """Return logits (N, h, w): 5 at the centre of an ellipse, 0 at its edge, at least -8."""
    random = np.random.default_rng(seed)
    axes = height * np.exp(random.uniform(np.log(0.04), np.log(0.7), (count, 2)))
    axes[0] = 4 * max(height, width)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    centres = random.uniform((0, 0), (width, height), (count, 2))
    fields = [
        5 * (1 - ((x - cx) / ax) ** 2 - ((y - cy) / ay) ** 2)
        for (cx, cy), (ax, ay) in zip(centres, axes, strict=True)
    ]
    return torch.from_numpy(np.clip(fields, -8, 5).astype(np.float32))


def shaped_table(proposed: pa.Table, first: int = 0, count: int | None = None) -> pa.Table:
    """Return PROPOSED rows with masks and queries of images numbered from `first`, see `shape`."""
    rows = proposed.to_pylist()
    for index, row in enumerate(rows, start=first):
        grid = (row["n_proposals"], row["mask_height"], row["mask_width"])
        logits = np.frombuffer(row["mask_logits"], dtype=np.float32).reshape(grid)
        shaped = shape(torch.from_numpy(logits.copy()), index, count)
        row["mask_logits"] = pack_logits(shaped, "float32").tobytes()
        embeds_QD = torch.frombuffer(bytearray(row["query_embeds"]), dtype=torch.float32)
        embeds_QD = draw_to_classes(embeds_QD.reshape(row["n_proposals"], -1), index)
        row["query_embeds"] = embeds_QD.numpy().tobytes()
    return table_from_rows(rows, PROPOSED)


def crops_of(images: pa.Table) -> float:
    return sum(map(number_of_crops, range(len(images)))) / len(images)


def stage_ratios(seconds: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """Return eager / exact by step; masks, which the exact path never makes whole, join crops."""
    steps = {"masks and crops": ("masks", "crops")}
    steps |= {name: (name,) for name in ("propose", "scores", "assembly", "segments")}
    found = {name: ratio(seconds, members) for name, members in steps.items()}
    return {**found, "clip": ratio(seconds[:1], ("clip",))}


def ratio(seconds: Sequence[tuple[Any, Any]], steps: Sequence[str]) -> float:
    return round(
        median(
            sum(eager[step] for step in steps) / sum(exact[step] for step in steps)
            for eager, exact in seconds
        ),
        3,
    )


def rounded(seconds: Any) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


if __name__ == "__main__":
    main()
