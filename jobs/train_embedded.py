"""Train the embedded tiny models from nothing and write their quality.

    python -m jobs.train_embedded --seed 0 --output pipeline/embedded

World -> tokenizer -> CLIP -> its image tower -> proposer -> figures. Everything follows from the
seed; no file is read. About an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from pipeline.models.clip import Clip, ClipSource
from pipeline.models.maskformer import BackboneConfig, MaskFormer, MaskFormerConfig
from pipeline.models.maskformer_proposer import MaskFormerProposer
from pipeline.prompts import load_templates, text_classifier
from pipeline.synthetic import (
    TEST_SEED,
    TRAIN_SEEDS,
    VALIDATION_SEED,
    VOCABULARY,
    seen_flags,
)
from pipeline.training.captions import TEMPLATES, make_caption
from pipeline.training.clip import (
    ClipTraining,
    save_clip,
    train_clip,
    train_tokenizer,
    tune_image_tower,
)
from pipeline.training.pictures import Cut, make_pictures, make_scenes
from pipeline.training.proposer import ProposerTraining, train_proposer
from pipeline.training.quality import choose, classify, measure, propose
from schemas.vocabulary import Vocabulary, VocabularyClass

logger = logging.getLogger(__name__)

STAGES: Final = ("clip", "image-tower", "proposer", "quality")
WEIGHTS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
MASK_THRESHOLDS: Final = (0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class EmbeddedTraining:
    """All sizes of the run; the defaults made the committed weights."""

    seed: int = 0
    output: Path = Path("pipeline/embedded")
    clip_scenes: int = 6000
    proposer_scenes: int = 4000
    validation_scenes: int = 100
    test_scenes: int = 200
    prompts: str = "single"
    clip: ClipTraining = field(default_factory=ClipTraining)
    proposer: ProposerTraining = field(default_factory=ProposerTraining)


def proposer_config(seed: int) -> MaskFormerConfig:
    """Return the structure of the tiny MaskFormer."""
    return MaskFormerConfig(
        backbone=BackboneConfig(
            name="resnet18",
            options={
                "layers": [1, 1, 2, 1],
                "channels": [32, 64, 96, 128],
                "stem_type": "deep",
                "stem_width": 16,
                # At stride 32 the small pictures would leave 4 x 5 positions to attend to.
                "output_stride": 16,
            },
        ),
        fpn_channels=64,
        mask_channels=64,
        hidden_channels=128,
        heads=4,
        feedforward_channels=256,
        decoder_layers=3,
        dropout=0.0,
        queries=24,
        query_head_channels=256,
        embedding_dim=128,
        short_edge=128,
        long_edge=512,
        seen_classes=tuple(
            name for name, seen in zip(VOCABULARY, seen_flags(), strict=True) if seen
        ),
        licence="MIT",
        provenance=f"python -m jobs.train_embedded --seed {seed}; synthetic scenes only",
    )


def vocabulary() -> Vocabulary:
    """Return the world's classes with their seen flags."""
    return Vocabulary(
        classes=tuple(
            VocabularyClass(name=name, seen=seen)
            for name, seen in zip(VOCABULARY, seen_flags(), strict=True)
        )
    )


def train_embedded(settings: EmbeddedTraining, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """Run the stages in order; a left-out stage's files must be there. Returns the last result."""
    if settings.seed not in TRAIN_SEEDS:
        raise ValueError(f"seed {settings.seed} is not in {TRAIN_SEEDS}, kept for training")
    settings.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for stage in stages:
        started = time.monotonic()
        result = _STAGES[stage](settings)
        logger.info("%s took %.0f s", stage, time.monotonic() - started)
    return result


def _train_clip(settings: EmbeddedTraining) -> dict[str, Any]:
    entries = [{"name": entry.name, "seen": entry.seen} for entry in vocabulary().classes]
    text = yaml.safe_dump({"classes": entries}, sort_keys=False)
    (settings.output / "vocabulary.yaml").write_text(text)
    pictures = make_pictures(settings.seed, settings.clip_scenes, Cut())
    logger.info("%d pictures of %d scenes", len(pictures.class_indices_N), settings.clip_scenes)
    rng = np.random.default_rng([settings.seed, 4])
    corpus = [make_caption(rng, int(index))[0] for index in pictures.class_indices_N[:20000]]
    tokenizer = train_tokenizer(corpus, settings.clip.vocab_size)
    model = train_clip(pictures, tokenizer, settings.clip)
    save_clip(model, tokenizer, settings.output / "clip")
    return {}


def _tune_clip(settings: EmbeddedTraining) -> dict[str, Any]:
    directory = settings.output / "clip"
    model = open_clip.create_model(f"local-dir:{directory}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory))
    pictures = make_pictures(settings.seed, settings.clip_scenes, Cut(recoloured=2))
    tune_image_tower(model, pictures, tokenizer, settings.clip)
    save_clip(model, tokenizer, directory)
    return {}


def _train_proposer(settings: EmbeddedTraining) -> dict[str, Any]:
    clip = _load_clip(settings)
    seen_indices = [index for index, seen in enumerate(seen_flags()) if seen]
    classes = Vocabulary(classes=tuple(vocabulary().classes[index] for index in seen_indices))
    text_TKD = torch.from_numpy(
        np.stack([text_classifier(clip.encode_text, classes, [template]) for template in TEMPLATES])
    )
    scenes = make_scenes(settings.seed, settings.proposer_scenes, classes="seen")
    config = proposer_config(settings.seed)
    model = train_proposer(scenes, config, text_TKD, seen_indices, settings.proposer)
    model.save(settings.output / "proposer", dtype=torch.float16)
    return {}


def _measure_quality(settings: EmbeddedTraining) -> dict[str, Any]:
    """Choose weight and threshold on validation scenes, then report test scenes once."""
    clip = _load_clip(settings)
    model = MaskFormer.load(settings.output / "proposer")
    templates = load_templates(settings.prompts)
    text_KD = torch.from_numpy(text_classifier(clip.encode_text, vocabulary(), templates))
    proposer = MaskFormerProposer(model)
    validation, test = (
        propose(proposer, model.config, text_KD, make_scenes(seed, count, classes="all"))
        for seed, count in (
            (VALIDATION_SEED, settings.validation_scenes),
            (TEST_SEED, settings.test_scenes),
        )
    )
    choice, search = choose(clip, text_KD, validation, WEIGHTS, MASK_THRESHOLDS)
    classified = classify(clip, text_KD, test, choice.mask_threshold)
    quality = {
        "prompts": settings.prompts,
        "chosen_on_validation": asdict(choice),
        "test_scenes": settings.test_scenes,
        "ensemble": asdict(measure(test, classified, choice.weight)),
        "query_only": asdict(measure(test, None, choice.weight)),
        "clip_only": asdict(measure(test, classified, 0.0)),
        "validation_search": search,
    }
    (settings.output / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
    return quality


def _load_clip(settings: EmbeddedTraining) -> Clip:
    clip = Clip.load(ClipSource(f"local-dir:{settings.output / 'clip'}"))
    logging.getLogger().setLevel(logging.INFO)  # loading silences open_clip by raising it
    return clip


_STAGES: Final = {
    "clip": _train_clip,
    # The next two read what `clip` wrote and not each other's: they may run side by side.
    "image-tower": _tune_clip,
    "proposer": _train_proposer,
    "quality": _measure_quality,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, and print the quality as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=EmbeddedTraining.output)
    # Small layers gain little from a second thread, and where cores are shared the threads spend
    # their time waiting for each other: a step then costs eight times as much.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = EmbeddedTraining(
        seed=chosen.seed,
        output=chosen.output,
        clip=ClipTraining(seed=chosen.seed),
        proposer=ProposerTraining(seed=chosen.seed),
    )
    result = train_embedded(settings, chosen.stages)
    result.pop("validation_search", None)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
