"""What the approximate paths cost and keep: one-pass, pooling, pruning, against the exact path.

    python -m tests.bench.approximate [scenes] [photos]

Labels: the embedded models on scenes of the test seed, ensemble of weight 0.7 and threshold 0.6,
all variants on equal proposals. `agreement` is the share of pixels that have the label of the exact
path; seen, unseen mIoU and hIoU are against the truth. `crops` is what pruning leaves of the
forward passes of CLIP. The embedded CLIP learned from masked crops, one thing on a plain ground
each: it never saw a scene, which is what one-pass shows it. The table is on stderr.

Cost: a MaskFormer R101c and a CLIP ViT-B/16 (or ConvNeXt-B) of full size with random weights,
photos of the sample data with their shorter side at 640, masks as in exact_path (24 to 40 of three
photos) and as many as the paper's 100 queries. On one thread, in CPU seconds. Every photo goes
through all variants, one after the other; ratios to the exact path, from the pixels to the encoded
segments, are medians over the photos. The proposer, the same work in all of them, is run once for a
photo. `embed_speedup` is of crops and CLIP alone, `ceiling` what the ratio would be if they cost
nothing. Of pruning the ratio is computed: crops and CLIP of the exact path times the share that is
left.

Without the sample data there are no costs.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from safetensors.torch import save_file

from pipeline.metrics import Confusion, harmonic_iou
from pipeline.models import Proposals, find_classifier
from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings
from pipeline.models.shared_vectors import owners_of
from pipeline.models.whole_image import WholeImageSettings
from pipeline.pruning import PruneSettings
from pipeline.resize import Size
from pipeline.stages.classify import Classify
from pipeline.stages.propose import Propose
from pipeline.stages.soft_masks import masks_of
from pipeline.synthetic import TEST_SEED, VOCABULARY, make_scene, seen_flags
from schemas.annotation import LABELLED
from tests.bench import exact_path
from tests.bench.scenes import LabelMap, agreement, decoded, embedded_classify, label_maps
from tests.bench.stopwatch import Stopwatch
from tests.classify import make_classify

THRESHOLD = 0.6  # of the embedded models
DIVISOR = 32
DEFAULT_SIDE, DEFAULT_LAYERS = 48, 4  # of one-pass on the embedded CLIP: its own, all of them
SIDES, LAYERS = (48, 64, 96), (1, 2, 3, 4)
NEVER = 1e-9  # a share that any cell exceeds
# Limits of PruneSettings, and the IoU from which masks share a crop.
PRUNINGS: Sequence[Mapping[str, float]] = (
    *({"min_area": value} for value in (NEVER, 0.002, 0.01)),
    *({"min_won": value} for value in (NEVER, 0.002, 0.01)),
    *({"min_stability": value} for value in (0.5, 0.7, 0.85)),
    *({"iou": value} for value in (0.95, 0.8, 0.6)),
    {"min_area": 0.01, "iou": 0.6},
    {"min_area": 0.01, "min_stability": 0.5, "iou": 0.6},
)


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    scenes, photos = counts + [200, 3][len(counts) :]
    torch.set_num_threads(1)
    with torch.inference_mode():
        labels = Labels(scenes).figures()
        for name, figures in labels.items():
            print(f"{name:<24}", figures, file=sys.stderr)
        costs = cost_figures(photos)
    default = labels[one_pass_name(DEFAULT_SIDE, DEFAULT_LAYERS)]
    result = {
        "one_pass_speedup": costs["one-pass"]["speedup"] if costs else None,
        "one_pass_speedup_100_masks": costs["one-pass 100 masks"]["speedup"] if costs else None,
        "one_pass_agreement": default["agreement"],
        "one_pass_hiou": default["hiou"],
        "exact_hiou": labels["exact"]["hiou"],
        "scenes": scenes,
        "labels": labels,
        "costs": costs,
    }
    if costs:
        result["pruning_speedups"] = pruning_speedups(labels, costs["exact"])
    print(json.dumps({"approximate": result}))


def one_pass_name(side: int, layers: int) -> str:
    return f"one-pass {side} px {layers} layers"


@dataclass(frozen=True)
class Kept:
    """Proposals by uri, as a proposer that looks them up: the stage prunes them as any."""

    by_uri: Mapping[str, Proposals]

    def look_up(self, uri: str, size: Size, image_size: Size) -> Proposals:
        return self.by_uri[uri]


class Labels:
    """The embedded models on scenes, and what each variant makes of them."""

    def __init__(self, count: int) -> None:
        self.images = decoded(TEST_SEED, count)
        self.proposed = Propose("maskformer", None, DIVISOR, "float32")(self.images)
        self.kept = Kept({row["uri"]: proposals_of(row) for row in self.proposed.to_pylist()})
        self.truths = [make_scene(TEST_SEED, index).label_map_HW for index in range(count)]
        self.exact_maps = label_maps(embedded_classify(), self.proposed)

    def figures(self) -> dict[str, Any]:
        found = {"exact": self.figures_of(self.exact_maps)}
        for side, layers in [(side, DEFAULT_LAYERS) for side in SIDES] + [
            (DEFAULT_SIDE, layers) for layers in LAYERS if layers != DEFAULT_LAYERS
        ]:
            classify = embedded_classify(
                classifier="one-pass", regions=WholeImageSettings(THRESHOLD, side, layers)
            )
            maps = label_maps(classify, self.proposed)
            found[one_pass_name(side, layers)] = self.figures_of(maps)
        crops = self.crops(self.proposed, None)
        for chosen in PRUNINGS:
            limits = {name: value for name, value in chosen.items() if name != "iou"}
            iou = chosen.get("iou")
            proposed = self.pruned(PruneSettings(THRESHOLD, **limits) if limits else None)
            settings = CropSettings(THRESHOLD, min_shared_iou=iou)
            maps = label_maps(embedded_classify(regions=settings), proposed)
            left = self.crops(proposed, iou) / crops
            name = " ".join(f"{limit} {value:g}" for limit, value in chosen.items())
            found[name] = {**self.figures_of(maps), "crops": round(left, 4)}
        return found

    def pruned(self, pruning: PruneSettings | None) -> pa.Table:
        stage = Propose("maskformer", None, DIVISOR, "float32", (), pruning)
        stage.__dict__["model"] = self.kept
        return stage(self.images)

    def crops(self, proposed: pa.Table, iou: float | None) -> int:
        """Return how many crops CLIP is shown."""
        total = 0
        for row in proposed.to_pylist():
            masks = masks_of(row, "float32", DIVISOR)
            shown_Q = masks.hold_pixels(THRESHOLD)
            if iou is not None:
                owner_Q = owners_of(masks, iou, THRESHOLD)
                shown_Q &= owner_Q == torch.arange(len(owner_Q))
            total += int(shown_Q.sum())
        return total

    def figures_of(self, maps: list[LabelMap]) -> dict[str, float]:
        total = Confusion.zero(len(VOCABULARY))
        for labels_HW, truth_HW in zip(maps, self.truths, strict=True):
            total = total + Confusion.of(labels_HW, truth_HW, len(VOCABULARY))
        seen, unseen = (total.miou([f is kind for f in seen_flags()]) for kind in (True, False))
        values = {"seen": seen, "unseen": unseen, "hiou": harmonic_iou(seen, unseen)}
        values["agreement"] = agreement(self.exact_maps, maps)
        return {name: round(value, 4) for name, value in values.items()}


def proposals_of(row: dict[str, Any]) -> Proposals:
    def floats(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(row[name], np.float32).copy()).reshape(shape)

    return Proposals(
        floats("mask_logits", row["n_proposals"], row["mask_height"], row["mask_width"]),
        floats("query_embeds", row["n_proposals"], -1),
        floats("void_logits", -1),
    )


def pruning_speedups(labels: Mapping[str, Any], exact: Mapping[str, float]) -> dict[str, float]:
    """Return end to end what the share of crops that is left would make of the exact path."""
    per_crop, total = exact["embed"], exact["total"]
    shares = {name: found["crops"] for name, found in labels.items() if "crops" in found}
    return {
        name: round(total / (total - (1 - left) * per_crop), 2) for name, left in shares.items()
    }


# Name of a variant: architecture of CLIP, classifier, its settings, precision, masks an image.
VARIANTS: Mapping[str, tuple[str, str, Any, str, int | None]] = {
    "exact": ("ViT-B-16", "crops", CropSettings(), "fp32", None),
    "one-pass": ("ViT-B-16", "one-pass", WholeImageSettings(), "fp32", None),
    "one-pass 4 layers": ("ViT-B-16", "one-pass", WholeImageSettings(layers=4), "fp32", None),
    "one-pass 448 px": ("ViT-B-16", "one-pass", WholeImageSettings(side=448), "fp32", None),
    "exact bf16": ("ViT-B-16", "crops", CropSettings(), "bf16", None),
    "one-pass bf16": ("ViT-B-16", "one-pass", WholeImageSettings(), "bf16", None),
    "exact 100 masks": ("ViT-B-16", "crops", CropSettings(), "fp32", 100),
    "one-pass 100 masks": ("ViT-B-16", "one-pass", WholeImageSettings(), "fp32", 100),
    "exact ConvNeXt": ("convnext_base", "crops", CropSettings(), "fp32", None),
    "pooling": ("convnext_base", "pooling", WholeImageSettings(), "fp32", None),
    "pooling 640 px": ("convnext_base", "pooling", WholeImageSettings(side=640), "fp32", None),
}
EXACT_OF: Mapping[str, str] = {
    "exact 100 masks": "exact 100 masks",
    "exact ConvNeXt": "exact ConvNeXt",
    "one-pass bf16": "exact bf16",
    "one-pass 100 masks": "exact 100 masks",
    "pooling": "exact ConvNeXt",
    "pooling 640 px": "exact ConvNeXt",
}


def cost_figures(count: int) -> dict[str, Any] | None:
    """Return CPU seconds an image by stage, and the ratio to the exact path, of every variant."""
    try:
        images = exact_path.photos(count)
    except SystemExit as missing:
        print(missing, file=sys.stderr)
        return None
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        costs = Costs(Path(folder))
        _ = costs.propose(images)  # the first call of a network takes longer
        for number in range(count):
            for name, found in costs.of(images.slice(number, 1), number):
                seconds[name].append(found)
                print(number, name, found, file=sys.stderr, flush=True)
    return {name: summary(seconds, name) for name in VARIANTS}


def summary(seconds: Mapping[str, list[dict[str, float]]], name: str) -> dict[str, float]:
    own, exact = seconds[name], seconds[EXACT_OF.get(name, "exact")]
    stages = {stage: median(one[stage] for one in own) for stage in own[0]}
    pairs = list(zip(exact, own, strict=True))
    return {
        **{stage: round(value, 3) for stage, value in stages.items()},
        "speedup": round(median(one["total"] / other["total"] for one, other in pairs), 2),
        "ceiling": round(median(one["total"] / (one["total"] - one["embed"]) for one in exact), 2),
        "embed_speedup": round(median(one["embed"] / other["embed"] for one, other in pairs), 2),
    }


class Costs:
    """Full-size models with random weights; a variant's are loaded when its turn comes."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.text_KD = folder, exact_path.text_vectors().numpy()
        exact_path.save_proposer(str(folder / "proposer"))
        self.propose = Propose("maskformer", str(folder / "proposer"), DIVISOR, "float32")
        self.clips: dict[tuple[str, str], Clip] = {}

    def of(self, image: pa.Table, number: int) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield the CPU seconds of every variant on one photo."""
        watch = Stopwatch()
        with watch("propose"):
            proposed = self.propose(image)
        for name, (_, _, _, _, masks) in VARIANTS.items():
            shaped = exact_path.shaped_table(proposed, number, masks)
            classify = self.stage(name)
            own = Stopwatch()
            own.seconds["propose"] = watch.seconds["propose"]
            with own("embed"):
                embedded = classify.embed(shaped)
            with own("label"):
                rows = classify.label(embedded).to_pylist()
            assert rows[0]["status"] == LABELLED, rows[0]["error"]
            yield name, {**own.seconds, "total": own.seconds.total()}

    def stage(self, name: str) -> Classify:
        architecture, classifier, regions, precision, _ = VARIANTS[name]
        source = ClipSource(
            architecture, str(self.folder / f"{architecture}.safetensors"), precision
        )
        classify = make_classify(
            source, self.text_KD, tuple(f"class {index}" for index in range(exact_path.CLASSES)),
            precision="float32", ensemble_weight=exact_path.WEIGHT,
            seen=tuple(index < exact_path.SEEN for index in range(exact_path.CLASSES)),
        )  # fmt: skip
        embedder = find_classifier(classifier).load(self.clip(source), regions, 32)
        classify.embed.__dict__["embedder"] = embedder
        return classify

    def clip(self, source: ClipSource) -> Clip:
        """Load a CLIP once, whatever classifiers use it."""
        key = (source.name, source.precision)
        if key not in self.clips:
            if not Path(str(source.weights)).exists():
                model = open_clip.create_model(source.name)
                save_file(model.state_dict(), str(source.weights))
            self.clips[key] = Clip.load(source)
        return self.clips[key]


if __name__ == "__main__":
    main()
