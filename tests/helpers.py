"""What several tests share: masks drawn as text, a whole inventory, a tiny random CLIP."""

import json
from dataclasses import dataclass

import numpy as np
import open_clip
import pyarrow as pa
import torch
from safetensors.torch import save_file

from pipeline.sources import Listing
from schemas.annotation import INVENTORY

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Inventory:
    images: pa.Table
    ignored: int
    repeated: int


def take_inventory(source, extensions, *rules):
    """Return all images of a source in one table, in order of uri and each once."""
    listing = Listing(source, extensions, *rules)
    rows = [row for table in listing for row in table.to_pylist()]
    unique = {row["uri"]: row for row in rows}
    images = pa.Table.from_pylist([unique[uri] for uri in sorted(unique)], schema=INVENTORY)
    return Inventory(images, listing.ignored, len(rows) - len(unique))


def draw(*rows):
    """Return the boolean mask (H, W) of rows of text: `#` is inside."""
    return np.array([[mark == "#" for mark in row] for row in rows])


def draw_classes(*rows):
    """Return the label map (H, W) of rows of digits: `.` is no label."""
    return np.array([[-1 if mark == "." else int(mark) for mark in row] for row in rows])


def save_tiny_clip(directory, seed=0):
    """Write an open_clip local directory with random weights and return its name for Segmill."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**TINY_CLIP)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": TINY_CLIP,
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    return f"local-dir:{directory}"
