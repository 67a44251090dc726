"""What one worker of `segmill train proposals` does: the paper's training loop (spec 3.1).

All that is random follows from the seed and the place in the run: the order of images, the view of
each (by its position in that order, whichever worker makes it) and dropout. So a run that goes on
from a checkpoint makes the steps that it would have made, and workers share a batch without
changing it. The reference groups pictures of a batch by their aspect ratio; here all views are
padded to one square, where that would save nothing, and the order is left alone.

Dimension key: L decoder layers, B images of a part, K seen classes, D embedding, C side of a view.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.models.maskformer import MaskFormer
from pipeline.models.maskformer_proposer import network_input
from pipeline.training import checkpoint, world
from pipeline.training.backbone_weights import load_backbone
from pipeline.training.proposal_training import DROPOUT, INITIAL, ProposalTraining, seed_of
from pipeline.training.run_log import RunLog
from pipeline.training.schedule import poly
from pipeline.training.set_loss import (
    Totals,
    named_losses,
    set_losses,
    total_loss,
)
from pipeline.training.targets import Targets, class_masks
from pipeline.training.views import View, Views
from schemas.errors import TrainingError

PROPOSER: Final = "proposer"  # directory of the trained weights in the output

_NAMED: Final = 8  # images named in one message

Report = Callable[[int, str], None]  # steps done, a note on them


def train(training: ProposalTraining, device: torch.device, report: Report) -> None:
    """Make the steps that are missing, as one of the workers, and write the weights.

    Raises TrainingError, in all workers at once, when a loss or a gradient is no finite number, or
    when a file cannot be read any more; the newest checkpoint is then of a step before.
    """
    worker = world.together(lambda: _Worker(training, device))
    first = worker.resume()
    if world.rank() == 0:
        with RunLog(training.config.output, first) as log:
            worker.run(first, log, report)
            worker.write_weights()
    else:
        worker.run(first, None, report)
    world.wait()


class _Worker:
    def __init__(self, training: ProposalTraining, device: torch.device) -> None:
        self._training = training
        self._config = training.config
        self._device = device
        self._model = _initial_model(training).to(device).to(memory_format=torch.channels_last)
        if world.size() > 1 and device.type == "cuda":
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
                self._model
            )
        self._model.train()
        self._optimizer = training.optimiser.build(self._model)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._text_KD = torch.from_numpy(training.text_KD).to(device)
        self._views = Views(training)
        self._logged = (0, 0.0)  # after which step, at what time

    def resume(self) -> int:
        """Go to the newest checkpoint; return after how many steps that is."""
        step = max(checkpoint.steps_saved(self._training.output), default=0)
        if step:
            checkpoint.load(self._training.output, step, self._model, self._optimizer)
        return step

    def run(self, first: int, log: RunLog | None, report: Report) -> None:
        """Make all steps from `first`; the one worker with a log writes and reports."""
        config = self._config
        network = DistributedDataParallel(self._model) if world.size() > 1 else self._model
        self._logged = (first, time.monotonic())
        for step, views in self._views.batches(first):
            losses_L3, norm, masks = self._step(network, step, views)
            done = step + 1
            if log is None:
                continue
            report(done, f"loss {float(total_loss(losses_L3, self._training.loss)):.3f}")
            if done % config.log_every == 0 or done == config.steps:
                self._log(log, done, losses_L3, norm=norm, masks=masks)
            if done % config.checkpoint_every == 0 or done == config.steps:
                checkpoint.save(
                    self._training.output, done, self._model, self._optimizer,
                    config.keep_checkpoints,
                )  # fmt: skip

    def _step(
        self, network: nn.Module, step: int, views: list[View] | Exception
    ) -> tuple[Tensor, float, int]:
        """Return the losses (L, 3) of the whole batch, the norm of the gradient and the masks."""
        config = self._config
        views, totals = self._agree(step, views)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * poly(step, config.steps, config.schedule_power)
        self._optimizer.zero_grad(set_to_none=True)
        share = len(views) // config.accumulation
        sums_L3 = torch.zeros(self._training.model.decoder_layers, 3, device=self._device)
        for part in range(config.accumulation):
            is_last = part == config.accumulation - 1
            # Gradients travel between workers once per step, with the last part.
            together = network if isinstance(network, DistributedDataParallel) else None
            with together.no_sync() if together and not is_last else nullcontext():
                torch.manual_seed(self._seed(DROPOUT, step, world.rank(), part))
                losses_L3 = self._losses(network, views[part * share :][:share], totals)
                # The workers' gradients are averaged, and their losses are to be added.
                loss = total_loss(losses_L3, self._training.loss) * world.size()
                torch.autograd.backward(loss)
            sums_L3 += losses_L3.detach()
        own_is_finite = bool(torch.isfinite(sums_L3).all())
        losses_L3 = world.total(sums_L3)
        if not torch.isfinite(losses_L3).all():
            self._refuse(step, "loss", [] if own_is_finite else views)
        norm = self._training.optimiser.step(self._optimizer)
        if not math.isfinite(norm):
            self._refuse(step, "gradient", views)
        return losses_L3, norm, totals.masks

    def _agree(self, step: int, views: list[View] | Exception) -> tuple[list[View], Totals]:
        """Return this worker's views, and the totals of all workers' views."""
        failure = views if isinstance(views, Exception) else None
        found = [] if isinstance(views, Exception) else views
        own = Totals.of([view.masks for view in found], self._training.model.queries)
        numbers = [own.masks, own.pairs, own.queries, int(failure is not None)]
        masks, pairs, queries, failures = world.total(
            torch.tensor(numbers, dtype=torch.float64, device=self._device)
        ).tolist()
        if failures:
            told = world.gathered([str(failure)] if failure is not None else [])
            raise TrainingError(f"step {step + 1}: {'; '.join(told)}")
        return found, Totals(round(masks), round(pairs), round(queries))

    def _losses(self, network: nn.Module, views: Sequence[View], totals: Totals) -> Tensor:
        side = self._config.crop_size
        images = [view.pixels_CC3 for view in views]
        pixels_B3CC = network_input(images, self._training.model, (side, side), self._device)
        targets = Targets.of(
            *zip(*(self._target(view.positions_CC) for view in views), strict=True)
        )
        lower = self._config.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=lower):
            output = network(pixels_B3CC.to(memory_format=torch.channels_last))
        layers = (*output.aux, output)
        return set_losses(layers, self._text_KD, targets, self._training.loss, totals)

    def _target(self, positions_CC: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        side = self._config.crop_size
        positions = torch.from_numpy(positions_CC).to(self._device)
        return class_masks(positions, self._training.data.num_seen, (side, side))

    def _refuse(self, step: int, what: str, views: Sequence[View]) -> None:
        names = world.gathered([view.pair.image for view in views])
        more = ", ..." if len(names) > _NAMED else ""
        raise TrainingError(
            f"the {what} of step {step + 1} is not finite (images {', '.join(names[:_NAMED])}"
            f"{more}); nothing of this step was kept: lower learning_rate, or leave bf16"
        )

    def _log(self, log: RunLog, done: int, losses_L3: Tensor, *, norm: float, masks: int) -> None:
        before, then = self._logged
        self._logged = (done, time.monotonic())
        seconds_per_step = (self._logged[1] - then) / (done - before)
        named = named_losses(losses_L3)
        log.write(
            done,
            {
                "loss": float(total_loss(losses_L3, self._training.loss)),
                **{name: named[name] for name in ("loss_ce", "loss_mask", "loss_dice")},
                "gradient_norm": norm,
                "learning_rate": self._optimizer.param_groups[-1]["lr"],
                "masks": masks,
                "images_per_s": self._config.batch_size / seconds_per_step,
                "seconds_per_step": seconds_per_step,
            },
        )

    def write_weights(self) -> None:
        """Write the proposer's directory, whole or not at all."""
        target = self._config.output / PROPOSER
        draft = self._config.output / f".{PROPOSER}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        self._model.save(draft)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)

    def _seed(self, *place: int) -> int:
        return seed_of(self._config.seed, *place)


def _initial_model(training: ProposalTraining) -> MaskFormer:
    config = training.config
    if config.initial_weights is not None:
        model = MaskFormer.load(config.initial_weights)
        model.config = training.model  # the same structure, and what is recorded of this training
        return model
    torch.manual_seed(seed_of(config.seed, INITIAL))
    model = MaskFormer(training.model)
    if config.backbone_weights is not None:
        load_backbone(model.backbone, Path(config.backbone_weights))
    return model
