"""The paper's claims on the synthetic world, by the commands themselves, over several seeds.

    python -m tests.bench.ablations [--seeds 3] [--small] [--keep DIRECTORY]

Learned prompts beat the single template, the ensemble beats its parts, self-training raises unseen
IoU and hIoU. Ends with one line of JSON: means over the seeds, and under KEY_spread the standard
deviation over them (n - 1); "claims" counts in how many seeds each came out. Progress is on stderr.

A seed has its own scenes (of training, whose maps hide the unseen classes, and of test) and its own
training randomness; the CLIP and the first proposer are the embedded ones, which never saw an
unseen class. What is measured is what the paper compares:

single_prompt, learned_prompt   CLIP alone with either prompt, on equal proposals
query_only, clip_only, ensemble the query head, CLIP with the learned prompt, and both
self_trained                    the ensemble with the proposer of the second round

The query head keeps the single template in all of them, with which it was trained (as in the
paper's VOC configuration): the learned prompt is the region classifier's.

Settings, none of them chosen on a test scene: weight 0.7 and threshold 0.6 are the embedded
models' (`pipeline/embedded/quality.json`), the rest was tried on 100 scenes of VALIDATION_SEED.

Prompts: regions as annotate cuts them (mean fill, whole, square). With the paper's augmentation,
which may show a twelfth of a region, shapes cannot be told apart: CLIP alone then has hIoU 0.665,
without it 0.686. Learning rates 0.05, 0.1 and 2.0, 4 vectors, 64 regions of a class and 1,000 steps
were no better. The single template has 0.693, and no prompt has anything to gain here: this CLIP
learned from captions of 36 templates, and with these, with names alone and with templates that it
never met ("a tattoo of a {}.") it names 83 to 85 % of roughly cut seen and unseen regions alike.
Learned vectors fit the exact masks that they are shown.

Second round: a short one from the embedded proposer, all layers at one rate (the factor 0.1 is for
backbones that come from ImageNet). On 300 other validation scenes the first proposer has unseen
0.681, hIoU 0.714. 300 to 800 steps on 200 scenes gained up to 0.007 and 0.008 where views were
squares of 128 pixels, because the masks then suffer by what the classes gain: CLIP alone falls from
0.708 to 0.70. Views of 160, which hold most scenes whole as annotate does (500 steps), gained 0.017
and 0.014; 600 scenes instead of 200 gained 0.027 and 0.019. Rates of 2e-4 and 4e-4, and eight times
the weight on the class loss, were worse. The weight after is 0.5: by then the query head has
learned all classes, and with 0.7 the unseen ones would get the smaller exponent, and so the larger
score, for probabilities that no longer need it (hIoU 0.713 instead of 0.728).
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Console

from jobs.annotate import annotate
from jobs.demo import EMBEDDED_QUALITY, chosen_settings
from jobs.evaluate import evaluate
from jobs.progress import TerminalProgress
from jobs.train_prompts import train_prompts
from jobs.train_self_training import train_self_training
from pipeline import runtime
from pipeline.cores import cores
from pipeline.evaluation.result import MeanIoUs
from pipeline.synthetic import TEST_SEED, VOCABULARY, make_scene, seen_flags
from schemas.annotate_config import AnnotateConfig
from schemas.evaluate_config import EvaluateConfig
from schemas.prompt_training_config import TrainPromptsConfig
from schemas.self_training_config import TrainSelfTrainingConfig

_FIRST_TRAIN_SEED = 100  # below it are those of the embedded models
# The demo shows TEST_SEED and its neighbours; 100 to 102 were read with earlier settings.
_FIRST_TEST_SEED = TEST_SEED + 200
_IGNORE = 255

_PROMPTS: dict[str, Any] = {
    "region_fill": "mean",
    "region_shape": "square",
    "augment": False,
    "samples_per_class": 16,
    "repeat_samples": False,
    "learning_rate": 0.5,
    "steps": 600,
    "warmup_steps": 20,
}
_SECOND_ROUND: dict[str, Any] = {
    "steps": 500,
    "batch_size": 8,
    "crop_size": 160,
    "short_edges": (128,),
    "max_long_edge": 512,
    "colour_jitter": False,
    "learning_rate": 1e-4,
    "backbone_factor": 1.0,
    "ensemble_weight_after": 0.5,
}


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    train_scenes: int = 500
    test_scenes: int = 160
    prompts: dict[str, Any] | None = None
    second_round: dict[str, Any] | None = None


SMALL = Sizes(8, 4, {"steps": 4, "samples_per_class": 2}, {"steps": 2})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a trial of a minute; means nothing")
    parser.add_argument("--keep", type=Path, help="work in this directory; run again, it goes on")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    sizes = SMALL if options.small else Sizes()
    started = time.monotonic()
    # One Ray for all commands: each would start its own, which takes longer than some of them.
    with _directory(options.keep) as root, runtime.cluster("local", None, cores()):
        found = [measure(root / f"seed-{seed}", seed, sizes) for seed in range(options.seeds)]
    seconds = round(time.monotonic() - started)
    print(json.dumps({**summary(found), "seeds": options.seeds, "seconds": seconds}))


def measure(root: Path, seed: int, sizes: Sizes) -> dict[str, float]:
    """Return the figures of one seed, under the names of the last line."""
    figures: dict[str, float] = {}
    say(f"seed {seed}: scenes")
    write_scenes(root / "set", "train", _FIRST_TRAIN_SEED + seed, sizes.train_scenes)
    write_scenes(root / "set", "test", _FIRST_TEST_SEED + seed, sizes.test_scenes)
    say(f"seed {seed}: learning prompts")
    settings = {**_PROMPTS, **(sizes.prompts or {})}
    prompts = train_prompts(
        TrainPromptsConfig(
            dataset=root / "set", output=root / "prompts", seeds=(seed,), gpus_per_worker=0,
            **settings,
        ),
        progress(),
    )  # fmt: skip
    learned = {"region_prompts": str(prompts.prompt)}
    # One dataset: what changes no mask and no crop is labelled from the kept embeddings.
    for name, changes in (
        ("ensemble", learned),
        ("learned_prompt", {"ensemble_weight": 0.0, **learned}),
        ("single_prompt", {"ensemble_weight": 0.0}),
        ("query_only", {"ensemble": False}),
    ):
        say(f"seed {seed}: {name}")
        figures |= named(name, labelled(root, "test", "labels-test", changes))
    figures["clip_only_hiou"] = figures["learned_prompt_hiou"]
    figures["unseen_miou"] = figures["ensemble_unseen_miou"]
    say(f"seed {seed}: labels of the training scenes")
    annotate(annotation(root, "train", "labels-train", learned), progress())
    say(f"seed {seed}: self-training")
    again = train_self_training(
        TrainSelfTrainingConfig(
            labels=str(root / "labels-train"), dataset=root / "set", eval_split="test",
            output=root / "self-training", seed=seed, gpus_per_worker=0,
            **{**_SECOND_ROUND, **(sizes.second_round or {})},
        ),
        progress(),
    )  # fmt: skip
    figures |= named("self_trained", again.after)
    say(f"seed {seed}: {json.dumps({name: round(value, 4) for name, value in figures.items()})}")
    return figures


def write_scenes(root: Path, split: str, seed: int, count: int) -> None:
    """Write scenes as a prepared data set; the maps of training do not show unseen classes."""
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    is_seen_K = np.asarray(seen_flags())
    for index in range(count):
        scene = make_scene(seed, index)
        labels_HW = scene.label_map_HW
        if split == "train":
            labels_HW = np.where(is_seen_K[labels_HW], labels_HW, np.uint8(_IGNORE))
        # Images are written once: a changed time would be a changed image to annotate.
        if not (root / "images" / split / f"{index:05}.png").exists():
            Image.fromarray(labels_HW).save(root / "masks" / split / f"{index:05}.png")
            Image.fromarray(scene.image_HW3).save(root / "images" / split / f"{index:05}.png")
    classes = [
        {"name": name, "seen": seen} for name, seen in zip(VOCABULARY, seen_flags(), strict=True)
    ]
    text = yaml.safe_dump({"classes": classes}, sort_keys=False)
    (root / "vocabulary.yaml").write_text(text)


def annotation(root: Path, split: str, output: str, changes: dict[str, Any]) -> AnnotateConfig:
    """Return the settings by which scenes are labelled."""
    return AnnotateConfig(
        source=str(root / "set" / "images" / split),
        vocabulary=root / "set" / "vocabulary.yaml",
        output=str(root / output),
        keep_embeddings="exact",
        **{**chosen_settings(EMBEDDED_QUALITY), **changes},
    )


def labelled(root: Path, split: str, output: str, changes: dict[str, Any]) -> MeanIoUs:
    """Label scenes with the embedded proposer, and return the means over their classes."""
    annotate(annotation(root, split, output, changes), progress())
    truth = str(root / "set" / "masks" / split)
    return evaluate(EvaluateConfig(dataset=str(root / output), truth=truth)).headline


def named(name: str, means: MeanIoUs) -> dict[str, float]:
    """Return what is told of one way of labelling."""
    values = {"hiou": means.hiou, "seen_miou": means.seen_miou, "unseen_miou": means.unseen_miou}
    return {f"{name}_{kind}": float(value) for kind, value in values.items() if value is not None}


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """Return means and spreads over seeds, and in how many each claim came out."""
    result: dict[str, Any] = {}
    for name in found[0]:
        values = [figures[name] for figures in found]
        result[name] = round(statistics.fmean(values), 4)
        result[f"{name}_spread"] = round(statistics.stdev(values), 4) if len(values) > 1 else 0.0
    claims = {
        "learned_prompt_beats_single": ("learned_prompt_hiou", "single_prompt_hiou"),
        "ensemble_beats_clip": ("ensemble_hiou", "clip_only_hiou"),
        "ensemble_beats_query": ("ensemble_hiou", "query_only_hiou"),
        "self_training_raises_unseen": ("self_trained_unseen_miou", "unseen_miou"),
        "self_training_raises_hiou": ("self_trained_hiou", "ensemble_hiou"),
    }
    result["claims"] = {
        claim: sum(figures[better] > figures[worse] for figures in found)
        for claim, (better, worse) in claims.items()
    }
    return result


def progress() -> TerminalProgress:
    """Return what the commands report to, on stderr."""
    return TerminalProgress(Console(stderr=True))


def say(what: str) -> None:
    """Announce the next step."""
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


@contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
