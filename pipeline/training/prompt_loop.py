"""What one worker of `segmill train prompts` does: image vectors, then its seeds (spec 3.2).

A step costs what the text tower costs for all class names, however few regions are in the batch.
So workers share out the seeds, not the batch: what is learned does not depend on their number.

Dimension key: B regions, K classes, D embedding.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.files import read_bytes, write_bytes
from pipeline.fusion import LOGIT_SCALE
from pipeline.models.clip import Clip
from pipeline.training import checkpoint, prompt_vectors, world
from pipeline.training.labelled_images import Sampler
from pipeline.training.prompt_text import ClassTexts, Context
from pipeline.training.prompt_training import FIGURES_FILE, PROMPT_FILE, PromptTraining
from pipeline.training.run_log import RunLog
from pipeline.training.schedule import clipped_step, held_cosine
from schemas.errors import TrainingError

Report = Callable[[int, str], None]  # steps done over all seeds, a note on them


def train(training: PromptTraining, device: torch.device, report: Report) -> None:
    """Compute what is missing of the vectors, then learn from this worker's seeds.

    Raises TrainingError when a region, a loss or a gradient is no finite number, or when a file
    cannot be read any more; the newest checkpoint is then of a step before.
    """
    clip = world.together(lambda: Clip.load(training.clip, str(device)))
    prompt_vectors.compute(training, clip, lambda note: report(0, note))
    texts = ClassTexts(clip, training.seen, training.config.vectors)
    steps, seeds = training.config.steps, training.config.seeds
    own = seeds[world.rank() :: world.size()]
    for turn, seed in enumerate(own):
        before = turn * steps

        def report_seed(done: int, note: str, before: int = before) -> None:
            # As far as this worker is, so far all are taken to be.
            report((before + done) * len(seeds) // len(own), note)

        _Seed(training, clip, texts, seed).run(report_seed)


def figures_of(embeds_ND: Tensor, texts_KD: Tensor, classes_N: Tensor) -> dict[str, float]:
    """Return mean accuracy over classes and mean loss over regions; of no regions, nothing."""
    if not len(classes_N):
        return {}
    logits_NK = LOGIT_SCALE * embeds_ND @ texts_KD.T
    right_N = (logits_NK.argmax(1) == classes_N).double()
    found = [float(right_N[classes_N == index].mean()) for index in set(classes_N.tolist())]
    loss = float(cross_entropy(logits_NK, classes_N))
    return {"accuracy": sum(found) / len(found), "loss": loss}


def held_out_figures(training: PromptTraining, texts_KD: NDArray[np.float32]) -> dict[str, float]:
    """Return the figures of given unit text vectors on the regions that were held out."""
    embeds_ND, classes_N = _held_out(training)
    return figures_of(embeds_ND, torch.from_numpy(texts_KD), classes_N)


def read_figures(training: PromptTraining, seed: int) -> dict[str, Any]:
    """Return what a finished seed came to; FileNotFoundError for another."""
    found: dict[str, Any] = json.loads(read_bytes(training.output_of(seed), FIGURES_FILE))
    return found


def _held_out(training: PromptTraining) -> tuple[Tensor, Tensor]:
    classes_N = torch.tensor([sample.position for sample in training.held_out], dtype=torch.int64)
    if not len(classes_N):
        return torch.zeros(0, 0), classes_N
    vectors = prompt_vectors.StoredVectors(training, prompt_vectors.HELD_OUT)
    return torch.from_numpy(vectors.all()), classes_N


class _Seed:
    """One seed: its first vectors and its order of regions; the views are those of all seeds."""

    def __init__(self, training: PromptTraining, clip: Clip, texts: ClassTexts, seed: int) -> None:
        config = training.config
        self._training, self._config, self._seed = training, config, seed
        self._output = training.output_of(seed)
        self._device, self._texts = clip.device, texts
        self._context = Context(config.vectors, texts.width, seed).to(clip.device)
        self._optimizer = torch.optim.SGD(
            self._context.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self._vectors = prompt_vectors.StoredVectors(training, prompt_vectors.LEARNED)
        self._classes_N = np.array([sample.position for sample in training.samples], np.int64)
        self._sampler = Sampler(len(training.samples), seed)

    def run(self, report: Report) -> None:
        """Make the steps that are missing, then write the prompt and its figures."""
        if self._training.is_done(self._seed):
            report(self._config.steps, f"seed {self._seed}: done")
            return
        first = max(checkpoint.steps_saved(self._output), default=0)
        if first:
            checkpoint.load(self._output, first, self._context, self._optimizer)
        with RunLog(Path(self._output), first) as log:
            self._steps(first, log, report)
        self._finish()

    def _steps(self, first: int, log: RunLog, report: Report) -> None:
        config = self._config
        losses: list[float] = []
        then = time.monotonic()
        for step in range(first, config.steps):
            loss, norm = self._step(step)
            losses.append(loss)
            done = step + 1
            report(done, f"seed {self._seed}: loss {loss:.3f}")
            if done % config.log_every == 0 or done == config.steps:
                now = time.monotonic()
                log.write(
                    done,
                    {
                        # The mean since the line before: a batch is small.
                        "loss": sum(losses) / len(losses),
                        "gradient_norm": norm,
                        "learning_rate": self._optimizer.param_groups[0]["lr"],
                        "seconds_per_step": (now - then) / len(losses),
                    },
                )
                losses, then = [], now
            if done % config.checkpoint_every == 0 or done == config.steps:
                checkpoint.save(
                    self._output, done, self._context, self._optimizer, config.keep_checkpoints
                )

    def _step(self, step: int) -> tuple[float, float]:
        """Return loss and norm of the gradient of one step."""
        config = self._config
        factor = held_cosine(step, config.steps, config.warmup_steps, config.warmup_factor)
        self._optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        samples, embeds_BD = self._batch(step)
        classes_B = torch.from_numpy(self._classes_N[samples]).to(self._device)
        loss = self._texts.step(self._context, embeds_BD, classes_B, config.accumulation)
        if not math.isfinite(loss):
            self._refuse(step, "loss")
        norm = clipped_step(self._optimizer, config.max_norm)
        if not math.isfinite(norm):
            self._refuse(step, "gradient")
        return loss, norm

    def _batch(self, step: int) -> tuple[NDArray[np.int64], Tensor]:
        """Return the numbers of a batch's samples, and the vectors of their views (B, D)."""
        size = self._config.batch_size
        places = np.arange(step * size, (step + 1) * size)
        samples = np.array([self._sampler.index(int(place)) for place in places])
        embeds_BD = self._vectors[samples, self._training.views(places)]
        return samples, torch.from_numpy(embeds_BD).to(self._device)

    def _refuse(self, step: int, what: str) -> None:
        raise TrainingError(
            f"the {what} of step {step + 1} of seed {self._seed} is not finite; nothing of this "
            "step was kept: lower learning_rate"
        )

    def _finish(self) -> None:
        """Write the prompt, then the figures, which say that the seed is done."""
        prompt = self._context.prompt()
        with torch.no_grad():
            texts_KD = self._texts.vectors(self._texts.words(self._context.vectors_PW)).cpu()
        draft = f"{self._output}/.{PROMPT_FILE}.draft"
        prompt.save(draft)
        os.replace(draft, f"{self._output}/{PROMPT_FILE}")
        figures: Mapping[str, float] = {
            **held_out_figures(self._training, texts_KD.numpy()),
            "train_loss": self._train_loss(texts_KD),
        }
        write_bytes(self._output, FIGURES_FILE, json.dumps(figures).encode())

    def _train_loss(self, texts_KD: Tensor) -> float:
        """Return the loss on the first view of every sample that was learned from."""
        embeds_ND = torch.from_numpy(self._vectors.all())
        return figures_of(embeds_ND, texts_KD, torch.from_numpy(self._classes_N))["loss"]
