"""Small data sets and networks to train on: scenes on disk, a MaskFormer of little weight."""

from pathlib import Path

import fsspec
import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save

from pipeline.models.maskformer import BackboneConfig, MaskFormerConfig
from pipeline.models.model_directory import CONFIG_FILE
from pipeline.synthetic import VOCABULARY, make_scene, seen_flags

SEED = 6_000  # scenes of no training, validation or test range
CROP = 96

# Norms that do not see the batch, and no dropout: parts of a batch then add up to the batch.
SMALL = MaskFormerConfig(
    backbone=BackboneConfig(
        kind="resnet",
        name="r50",
        options={
            "stem_channels": 16,
            "blocks": [1, 1, 1, 1],
            "bottleneck_channels": [8, 8, 16, 16],
            "out_channels": [32, 32, 64, 64],
            "res5_dilations": [1],
        },
    ),
    fpn_channels=32,
    mask_channels=32,
    hidden_channels=32,
    heads=4,
    feedforward_channels=64,
    decoder_layers=2,
    dropout=0.0,
    queries=12,
    query_head_channels=64,
    embedding_dim=128,
)


def write_dataset(root: Path, count: int) -> Path:
    """Write scenes as `segmill datasets prepare` would: images/train, masks/train, vocabulary."""
    for index in range(count):
        scene = make_scene(SEED, index)
        add(root, f"{index:03}", scene.image_HW3, scene.label_map_HW)
    write_vocabulary(root / "vocabulary.yaml", VOCABULARY, seen_flags())
    return root


def write_vocabulary(file, names, seen):
    classes = [{"name": name, "seen": flag} for name, flag in zip(names, seen, strict=True)]
    file.write_text(yaml.safe_dump({"classes": classes}, sort_keys=False))


def add(root: Path, name: str, image_HW3, labels_HW) -> None:
    for kind, array in (("images", image_HW3), ("masks", labels_HW)):
        folder = root / kind / "train"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(array, np.uint8)).save(folder / f"{name}.png")


def store_clip() -> dict[str, str]:
    """Put what looks like the weights of a CLIP into a store; return the settings that name it."""
    weights = save({"x": np.zeros(1, np.float32)})
    fsspec.filesystem("memory").pipe_file("/clips/clip.safetensors", weights)
    return {"clip": "ViT-B-32", "clip_weights": "memory://clips/clip.safetensors"}


def write_architecture(directory: Path, config: MaskFormerConfig = SMALL) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / CONFIG_FILE
    file.write_text(config.model_dump_json())
    return file
