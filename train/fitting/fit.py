"""One step of a fit: the loss of a batch that several processes may share, optimiser and schedule.

Fitting with Lightning, so that a killed run goes on where its last epoch ended and gives the same numbers.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from knarr.train.clips import Batch, Clips, Epoch, Indices
from knarr.train.fitting.files import METRICS, AtomicCheckpoints, Best, CsvLog
from knarr.train.fitting.processes import in_processes
from knarr.train.fitting.share import Share, join_batch_norms
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
        self,
        network: nn.Module,
        loss: Loss,
        settings: Fit,
        classes: int,
        clips: int,
        validation_clips: int,
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
        by_step = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, settings.learning_rate, total_steps=steps
        )
        return {"scheduler": by_step, "interval": "step"}


def new_optimiser(network: nn.Module, settings: Fit) -> torch.optim.Optimizer:
    """What changes a network's parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=rate, momentum=settings.momentum, weight_decay=decay
        )
    kind = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return kind(network.parameters(), lr=rate, weight_decay=decay, amsgrad=settings.amsgrad)


class _Data(lightning.LightningDataModule):
    def __init__(
        self,
        clips: Clips,
        train: Indices,
        held: Clips,
        validation: Indices,
        settings: Fit,
        seed: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.clips, self.train, self.seed = clips, train, seed
        self.held, self.validation = held, validation
        self.rank, self.processes = rank, settings.processes
        self.batch_size = settings.processes * settings.batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        epoch = self.trainer.current_epoch
        # Dropout draws from the global generator: seeded per epoch, a resumed run draws what an unbroken one does.
        torch.manual_seed(self.seed + epoch if self.processes == 1 else self._own_seed(epoch))
        return self._batches(self.clips, self.train, epoch)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._batches(self.held, self.validation, None)

    def _own_seed(self, epoch: int) -> int:
        """Processes that drew the same would drop the same places in different clips."""
        return int(np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(1)[0])

    def _batches(self, clips: Clips, indices: Indices, epoch: int | None) -> DataLoader[Batch]:
        batches = Epoch(clips, indices, self.batch_size, seed=self.seed, epoch=epoch)
        own = batches if self.processes == 1 else Share(batches, self.rank, self.processes)
        # Without one of its own, a loader draws from the global generator, and Lightning makes more iterators in later epochs than in
        # a resumed one: dropout would differ.
        return DataLoader(own, batch_size=None, generator=torch.Generator())


def fit(
    network: nn.Module,
    loss: Loss,
    clips: Clips,
    train: Indices,
    validation: Indices,
    settings: Fit,
    *,
    stage: str,
    classes: int,
    seed: int,
    run_folder: Path,
    held: Clips | None = None,
    make: type[Fitter] | Callable[..., Fitter] = Fitter,
    callbacks: tuple[Callback, ...] = (),
) -> int | None:
    """Fit a network in place; a run that was killed goes on after its last finished epoch.

    Several processes see what one process with `processes` times the batch size sees, and learn the same up to the order of float
    sums: each has a part of every batch, batch-norms take their statistics over all of it, gradients are weighted by clips. Dropout
    is the exception: each process draws its own, so that two runs with it agree in distribution only.

    Args:
        network: what is fitted.
        loss: (network, batch) -> (loss, logits).
        clips: the data.
        train, validation: indices, into `clips` and into `held`.
        settings: epochs, batch size, optimiser, processes.
        stage: "teacher", "student" or "chip": names the checkpoint and the rows of metrics.csv.
        classes: number of classes.
        seed: of batches, augmentation and dropout.
        run_folder: gets checkpoints/<stage>.ckpt and metrics.csv, each replaced in one move after every epoch.
        held: what is validated on; None for `clips`.
        make: what takes a step, for losses that change more than the network.
        callbacks: more Lightning callbacks, a progress bar for one. Of several processes the first has them, and keeps what they keep.

    Returns:
        The epoch whose weights were chosen; None where those of the last are kept, or several processes fitted.

    Raises:
        RecipeError: a checkpoint of another fit, or settings.processes that this machine, process or network does not allow.
        FitError: one of several processes was killed or hung; the others have ended too.
    """
    folder = run_folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{stage}.ckpt.*.tmp"):
        leftover.unlink()  # of a run that was killed while it wrote

    def work(rank: int) -> int | None:
        data = _Data(
            clips, train, clips if held is None else held, validation, settings, seed, rank
        )
        fitter = make(network, loss, settings, classes, len(train), len(validation))
        return _fit(fitter, data, stage, run_folder, callbacks if rank == 0 else ())

    chosen = None
    if settings.processes == 1:
        chosen = work(0)
    else:
        with tempfile.TemporaryDirectory(
            prefix="knarr-fit-", ignore_cleanup_errors=True
        ) as scratch:
            fitted = Path(scratch) / "fitted.pt"

            def work_and_keep(rank: int) -> None:
                join_batch_norms(network)
                work(rank)
                if rank == 0:
                    torch.save(network.cpu().state_dict(), fitted)

            in_processes(work_and_keep, settings.processes, Path(scratch))
            network.load_state_dict(torch.load(fitted, weights_only=True))
    network.cpu().eval()
    return chosen


def _fit(
    fitter: Fitter, data: _Data, stage: str, run_folder: Path, callbacks: tuple[Callback, ...]
) -> int | None:
    settings, folder = fitter.settings, run_folder / "checkpoints"
    checkpoint = folder / f"{stage}.ckpt"
    keeper = ModelCheckpoint(
        dirpath=folder,
        filename=stage,
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    files = AtomicCheckpoints(settings.processes)
    best = Best(fitter.network, fitter.score)
    own: list[Callback] = [
        CsvLog(run_folder / METRICS, stage, on_test=settings.select == "best_on_test")
    ]
    own += [best] if settings.select != "last" else []
    if settings.patience is not None:
        patience = EarlyStopping("validation_accuracy", mode="max", patience=settings.patience)
        if checkpoint.is_file() and _at_its_end(
            files.load_checkpoint(checkpoint), patience, fitter, best
        ):
            return best.epoch if best.weights else None
        own.append(patience)
    mixed = settings.precision == "mixed" and torch.cuda.is_available()
    trainer = lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator="auto",
        devices=settings.processes,
        strategy="auto" if settings.processes == 1 else _together(data.rank),
        use_distributed_sampler=False,
        deterministic=True,
        logger=_tensorboard(run_folder, stage) if settings.tensorboard else False,
        precision="bf16-mixed" if mixed else "32-true",
        log_every_n_steps=1,  # epochs are all that is logged; Lightning warns of fits of fewer steps
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[*own, *callbacks, keeper],
        plugins=[files],
    )
    with warnings.catch_warnings():
        # The other stage's checkpoint lies there too, and our own when a run resumes.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Workers would not help two cores; batches are made faster than they are used.
        warnings.filterwarnings(
            "ignore", message="The '(train|val)_dataloader' does not have many workers"
        )
        # A process of several may have no clip to validate on; the accuracy is of what all of them have.
        warnings.filterwarnings(
            "ignore", message="The ``compute`` method of metric MulticlassAccuracy was called"
        )
        trainer.fit(fitter, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None)
    if not best.weights:
        return None
    fitter.network.load_state_dict(best.weights)
    return best.epoch


def _at_its_end(kept: dict[str, Any], patience: EarlyStopping, fitter: Fitter, best: Best) -> bool:
    """Whether a fit that was killed had lost its patience already; its weights are then in place.

    Lightning keeps the count of a stop, not the stop, and would fit one more epoch at every start.
    """
    states = kept["callbacks"]
    if states.get(patience.state_key, {}).get("wait_count", 0) < patience.patience:
        return False
    weights = {
        name.removeprefix("network."): value
        for name, value in kept["state_dict"].items()
        if name.startswith("network.")
    }
    if best.state_key in states:
        best.load_state_dict(states[best.state_key])
    fitter.network.load_state_dict(best.weights or weights)
    return True


def _tensorboard(run_folder: Path, stage: str) -> TensorBoardLogger:
    """Events of a resumed fit lie beside those of the killed one."""
    return TensorBoardLogger(run_folder, name="tensorboard", version=stage)


class _Place(LightningEnvironment):
    """Lightning in a process that was started and joined to the others already, see `knarr.train.processes`."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0

    def teardown(self) -> None:
        pass


def _together(rank: int) -> DDPStrategy:
    # Without it, gradients are added up in another order from the second step on, thus in another order where a run resumes; it also
    # lets a network have parameters that its loss does not use, as one process does.
    return DDPStrategy(cluster_environment=_Place(rank), find_unused_parameters=True)
