"""How far labels and image vectors move when the networks compute in half precision.

    python -m tests.bench.half_precision [scenes] [photos]

Labels: the embedded models on scenes of the test seed, each precision of CLIP, and of CLIP and the
proposer (`both`), against fp32, pixel by pixel. Vectors: a ViT-B/16 of full size with random
weights on real photos, where the sample data is beside the checkout; `spread` is the mean distance
between the vectors of two photos, what a difference has to be small against. Distances are
1 - cosine.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.clip import Clip, ClipSource
from pipeline.models.crops import CropSettings, crop_regions
from pipeline.models.device import PRECISIONS
from pipeline.stages.propose import Propose
from pipeline.synthetic import TEST_SEED, make_scene
from tests.bench.scenes import agreement, decoded, embedded_classify, label_maps, photo_files

HALF = [name for name in PRECISIONS if name != "fp32"]


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    scenes, photos = counts + [200, 16][len(counts) :]
    print(json.dumps({"labels": labels(scenes), "vit_b_16": vectors(photos)}))


def labels(count: int) -> dict[str, Any]:
    """Agreement with fp32, and accuracy against the truth, as shares of all pixels."""
    proposed = Propose("maskformer", None, 32, "float32")(decoded(TEST_SEED, count))
    maps = {name: label_maps(embedded_classify(name), proposed) for name in PRECISIONS}
    for name in HALF:
        propose = Propose("maskformer", None, 32, "float32", arithmetic=name)
        images = decoded(TEST_SEED, count)
        maps[f"both {name}"] = label_maps(embedded_classify(name), propose(images))
    truths = [make_scene(TEST_SEED, index).label_map_HW for index in range(count)]
    return {
        "scenes": count,
        "agreement": {
            name: round(agreement(maps["fp32"], found), 6) for name, found in maps.items()
        },
        "pixel_accuracy": {
            name: round(agreement(truths, found), 5) for name, found in maps.items()
        },
    }


def vectors(count: int) -> dict[str, Any] | None:
    """Distances of image vectors from those of fp32; None without photos."""
    files = photo_files()[:count]
    if not files:
        return None
    with tempfile.TemporaryDirectory() as directory:
        weights = str(Path(directory) / "random.safetensors")
        torch.manual_seed(0)
        save_file(open_clip.create_model("ViT-B-16").state_dict(), weights)
        found = {
            name: encode(Clip.load(ClipSource("ViT-B-16", weights, name)), files)
            for name in PRECISIONS
        }
    full_ND = found["fp32"]
    cosines_NN = full_ND @ full_ND.T
    pairs = len(files) * (len(files) - 1)
    return {
        "photos": len(files),
        "spread": round(1.0 - float(cosines_NN.sum() - cosines_NN.trace()) / pairs, 6),
        "largest_distance": {
            name: float(f"{(1.0 - (full_ND * found[name]).sum(dim=1)).max():.2g}") for name in HALF
        },
    }


def encode(clip: Clip, files: list[Path]) -> Tensor:
    """The vectors (N, D) of whole photos, in float64 so that their cosines have enough digits."""
    crops = []
    for file in files:
        pixels_HW3 = np.asarray(Image.open(file).convert("RGB"))
        image_3HW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)
        everywhere_1HW = torch.ones((1, *image_3HW.shape[1:]))
        crops.append(
            crop_regions(
                image_3HW,
                everywhere_1HW,
                CropSettings(),
                side=clip.side,
                mean=clip.mean,
                std=clip.std,
            ).crops_V3SS
        )
    return torch.nn.functional.normalize(clip.encode_crops(torch.cat(crops), 8).double(), dim=1)


if __name__ == "__main__":
    main()
