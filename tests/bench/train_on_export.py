"""A small network trained on an export: do the pseudo-labels teach what they know?

    python -m tests.bench.train_on_export [--images 400] [--seconds 90] [--classes colours|all]

Draws scenes, annotates them with the embedded models, exports semantic PNG (a quarter of the images
is `val`), and trains a convolutional network for some seconds of processor time on what lies in the
export, read with Pillow alone. On
the held-out scenes it prints three mean IoUs: of the network against the truth, of the
pseudo-labels of those same scenes against the truth, and of the network against the pseudo-labels.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from jobs.annotate import annotate
from jobs.demo import EMBEDDED_QUALITY, chosen_settings, write_scenes
from jobs.export import export
from pipeline.metrics import Confusion
from pipeline.models.embedded import EMBEDDED_VOCABULARY
from pipeline.synthetic import GROUND, class_names
from schemas.annotate_config import AnnotateConfig
from schemas.export_config import ExportConfig

SEED = 40  # of the scenes: neither training nor tuning of the embedded models saw them
BATCH = 8
SIDE = 128  # of crops; a scene of any size holds one

Example = tuple[Tensor, Tensor]  # image (3, H, W) in [0, 1], labels (H, W)


class Net(nn.Module):
    """Three scales down, the same up again with what was seen on the way."""

    def __init__(self, num_classes: int, width: int = 24) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width]
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip([3, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _block(coarse + fine, fine)
            for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        kept = []
        features = image_B3HW - 0.5
        for number, block in enumerate(self.down):
            if number:
                features = nn.functional.max_pool2d(features, 2, ceil_mode=True)
            features = block(features)
            kept.append(features)
        for block, fine in zip(self.up, kept[-2::-1], strict=True):
            features = interpolate(features, size=fine.shape[-2:])
            features = block(torch.cat([features, fine], dim=1))
        return self.head(features)


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--classes", choices=("colours", "all"), default="colours")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names, new_of = make_export(root, given.images, given.classes)
        train = examples(root / "export", "train")
        net = Net(len(names))
        steps, losses = fit(net, train, given.seconds)
        figures = measure(net, root, new_of)
    print(
        json.dumps(
            {
                "images": {"train": len(train), "held_out": given.images - len(train)},
                "classes": len(names),
                "steps": steps,
                "loss": {"start": round(losses[0], 3), "end": round(losses[1], 3)},
                **{name: round(value, 4) for name, value in figures.items()},
            }
        )
    )


def make_export(root: Path, count: int, classes: str) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Write scenes, truth, labels and export below `root`; return class names and mapping (K,)."""
    write_scenes(root / "scenes", root / "truth", count, SEED)
    annotate(
        AnnotateConfig(
            source=str(root / "scenes"),
            vocabulary=EMBEDDED_VOCABULARY,
            output=str(root / "labels"),
            **chosen_settings(EMBEDDED_QUALITY),
        )
    )
    mapping = None
    if classes == "colours":
        mapping = root / "classes.yaml"
        mapping.write_text(yaml.safe_dump({name: joined(name) for name in class_names()}))
    result = export(
        ExportConfig(
            dataset=str(root / "labels"), format="semantic-png", output=str(root / "export"),
            val_fraction=0.25, classes=mapping, images_per_shard=100,
        )
    )  # fmt: skip
    names = result.manifest.classes
    new_names = class_names() if mapping is None else map(joined, class_names())
    return names, np.array([names.index(name) for name in new_names])


def joined(name: str) -> str:
    """Things by colour alone, and one class for every ground."""
    return GROUND if name.endswith(GROUND) else name.split()[0]


def examples(export_root: Path, split: str) -> list[Example]:
    found = []
    for name in (export_root / f"{split}.txt").read_text().split():
        image = np.asarray(Image.open(export_root / "images" / split / f"{name}.png"))
        labels = np.asarray(Image.open(export_root / "masks" / split / f"{name}.png"))
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        found.append((pixels, torch.from_numpy(labels.astype(np.int64))))
    return found


def fit(net: Net, train: list[Example], seconds: float) -> tuple[int, tuple[float, float]]:
    """Train for so much processor time; return the steps, and the loss of the first and last 20."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    started = time.process_time()
    losses: list[float] = []
    while (spent := time.process_time() - started) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - spent / seconds)
        crops = [crop(train[index], rng) for index in rng.integers(len(train), size=BATCH)]
        images, labels = (torch.stack(list(parts)) for parts in zip(*crops, strict=True))
        loss = cross_entropy(net(images), labels, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return len(losses), (float(np.mean(losses[:20])), float(np.mean(losses[-20:])))


def crop(example: Example, rng: np.random.Generator) -> Example:
    image, labels = example
    top, left = (int(rng.integers(side - SIDE + 1)) for side in labels.shape)
    window = slice(top, top + SIDE), slice(left, left + SIDE)
    image, labels = image[:, *window], labels[window]
    if rng.random() < 0.5:
        image, labels = image.flip(-1), labels.flip(-1)
    return image, labels


@torch.no_grad()
def measure(net: Net, root: Path, new_of: NDArray[Any]) -> dict[str, float]:
    """Return the three mean IoUs on the held-out scenes."""
    net.eval()
    num_classes = int(new_of.max()) + 1
    totals = {
        name: Confusion.zero(num_classes)
        for name in ("net_against_truth", "labels_against_truth", "net_against_labels")
    }
    names = (root / "export" / "val.txt").read_text().split()
    for name, (image, labels) in zip(names, examples(root / "export", "val"), strict=True):
        scene = name.rpartition("-")[0]
        truth = new_of[np.asarray(Image.open(root / "truth" / f"{scene}.png"))]
        predicted = net(image[None])[0].argmax(dim=0).numpy()
        pseudo = labels.numpy()
        for total, pair in zip(
            totals, ((predicted, truth), (pseudo, truth), (predicted, pseudo)), strict=True
        ):
            totals[total] += Confusion.of(*pair, num_classes, ignore=255)
    return {f"{name}_miou": total.miou() for name, total in totals.items()}


if __name__ == "__main__":
    main()
