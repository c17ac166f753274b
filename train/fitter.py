"""One step of a fit: the loss of a batch that several processes may share, optimiser and schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from knarr.train.clips import Batch
from knarr.train.settings import Fit
from knarr.train.systems.base import Loss


class Fitter(lightning.LightningModule):
    """A network and its loss.

    Args:
        network: what is fitted.
        loss: see `Loss`.
        settings: of the optimiser, and how many processes share a batch.
        classes: number of classes.
        clips, validation_clips: of the two sets, over all processes.
    """

    def __init__(
        self, network: nn.Module, loss: Loss, settings: Fit, classes: int, clips: int, validation_clips: int
    ) -> None:
        super().__init__()
        self.network, self.loss, self.settings = network, loss, settings
        self.clips, self.validation_clips = clips, validation_clips
        self.batch_size = settings.processes * settings.batch_size
        self.steps_per_epoch = math.ceil(clips / self.batch_size)
        if settings.processes > 1:
            # Looking for parameters without use (see _together), torch warns where it finds none.
            self.without_use = nn.Parameter(torch.zeros(1))
        self.accuracy = MulticlassAccuracy(num_classes=classes, average="micro")

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        loss, logits = self.loss(self.network, batch)
        loss, clips = self._joined(loss, logits, batch, self.clips, number)
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=clips,
            sync_dist=self.settings.processes > 1,
        )
        return loss

    def validation_step(self, batch: Batch, number: int) -> None:
        loss, logits = self.loss(self.network, batch)
        if len(batch.labels):
            self.accuracy(logits, batch.labels)
        loss, clips = self._joined(loss, logits, batch, self.validation_clips, number)
        self.log("validation_loss", loss, batch_size=clips, sync_dist=self.settings.processes > 1)
        self.log("validation_accuracy", self.accuracy, prog_bar=True, batch_size=clips)

    def score(self, measured: Mapping[str, torch.Tensor]) -> tuple[float, ...]:
        """What the best epoch has most of: validation accuracy, then the lowest loss."""
        return float(measured["validation_accuracy"]), -float(measured["validation_loss"])

    def _joined(
        self, loss: torch.Tensor, logits: torch.Tensor, batch: Batch, of: int, number: int
    ) -> tuple[torch.Tensor, int]:
        """The term of a process whose plain mean over processes is the loss of the whole batch, and that batch's clips."""
        own, processes = len(batch.labels), self.settings.processes
        if processes == 1:
            return loss, own
        if not own:
            # A mean over no clips is not a number; this 0 has gradients, which the other processes wait for.
            loss = logits.sum()
        clips = min(self.batch_size, of - number * self.batch_size)
        return loss * (processes * own / clips), clips

    def configure_optimizers(self) -> Any:
        optimiser = self._optimiser()
        schedule = self._schedule(optimiser)
        return optimiser if schedule is None else {"optimizer": optimiser, "lr_scheduler": schedule}

    def _optimiser(self) -> torch.optim.Optimizer:
        return new_optimiser(self.network, self.settings)

    def _schedule(self, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
        settings = self.settings
        if settings.schedule == "constant":
            return None
        if settings.schedule == "exponential":
            by_epoch = torch.optim.lr_scheduler.ExponentialLR(optimiser, settings.decay)
            return {"scheduler": by_epoch, "interval": "epoch"}
        steps = settings.epochs * self.steps_per_epoch
        by_step = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=steps)
        return {"scheduler": by_step, "interval": "step"}


def new_optimiser(network: nn.Module, settings: Fit) -> torch.optim.Optimizer:
    """What changes a network's parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), lr=rate, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(network.parameters(), lr=rate, weight_decay=decay, amsgrad=settings.amsgrad)
