"""Fitting with Lightning, so that a killed run goes on where its last epoch ended and gives the same numbers."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from knarr.train.clips import Batch, Clips, Epoch, Indices
from knarr.train.processes import in_processes
from knarr.train.recipe import Fit, RecipeError
from knarr.train.share import Share, join_batch_norms

METRICS = "metrics.csv"
FIELDS = ("stage", "epoch", "train_loss", "validation_loss", "validation_accuracy")

Loss = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
"""(network, batch) -> (loss, (B, classes) logits). The loss is a mean over clips, or several processes cannot share a batch."""


class _Fitter(lightning.LightningModule):
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
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.settings.learning_rate, total_steps=self.settings.epochs * self.steps_per_epoch
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Data(lightning.LightningDataModule):
    def __init__(
        self, clips: Clips, train: Indices, validation: Indices, settings: Fit, seed: int, rank: int
    ) -> None:
        super().__init__()
        self.clips, self.train, self.validation, self.seed = clips, train, validation, seed
        self.rank, self.processes = rank, settings.processes
        self.batch_size = settings.processes * settings.batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        epoch = self.trainer.current_epoch
        # Dropout draws from the global generator: seeded per epoch, a resumed run draws what an unbroken one does.
        torch.manual_seed(self.seed + epoch if self.processes == 1 else self._own_seed(epoch))
        return self._batches(self.train, epoch)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._batches(self.validation, None)

    def _own_seed(self, epoch: int) -> int:
        """Processes that drew the same would drop the same places in different clips."""
        return int(np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(1)[0])

    def _batches(self, indices: Indices, epoch: int | None) -> DataLoader[Batch]:
        batches = Epoch(self.clips, indices, self.batch_size, seed=self.seed, epoch=epoch)
        own = batches if self.processes == 1 else Share(batches, self.rank, self.processes)
        return DataLoader(own, batch_size=None)


class _AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's own moves a file across file systems, which a kill can cut in half; and nothing is unpickled here."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.processes = processes

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        # OneCycleLR keeps a function in its state, which weights_only rightly refuses; a new one has its own.
        schedulers = [
            {k: v for k, v in state.items() if not callable(v)} for state in checkpoint["lr_schedulers"]
        ]
        checkpoint = {**checkpoint, "lr_schedulers": schedulers}
        if self.processes > 1:
            checkpoint["processes"] = self.processes
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        except (
            Exception
        ) as error:  # torch's restricted unpickler raises whatever a damaged file makes it meet
            raise RecipeError(f"{path}: not a checkpoint of this fit; remove it to train again") from error
        if not {"epoch", "loops", "state_dict", "optimizer_states"} <= set(checkpoint):
            raise RecipeError(f"{path}: not a checkpoint of this fit; remove it to train again")
        processes = checkpoint.pop("processes", 1)
        if processes != self.processes:
            # Dropout and the order of sums would change in mid-run.
            raise RecipeError(
                f"{path}: of a fit with processes {processes}, not {self.processes}; set processes to {processes}, or "
                "remove it to train again"
            )
        return checkpoint


class _CsvLog(Callback):
    """One row per epoch. The rows travel in the checkpoint, since Lightning's CSVLogger starts anew on resume."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        measured = {field: f"{float(trainer.callback_metrics[field]):.6f}" for field in FIELDS[2:]}
        self.rows.append({"stage": self.stage, "epoch": trainer.current_epoch, **measured})
        if not trainer.is_global_zero:
            return
        others = [row for row in _read_rows(self.path) if row["stage"] != self.stage]
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*others, *self.rows])
        write_atomic(self.path, text.getvalue().encode())


def _read_rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file to a temporary name beside it, flush it to disk and rename: all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk names no file by itself.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


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
    callbacks: tuple[Callback, ...] = (),
) -> None:
    """Fit a network in place; a run that was killed goes on after its last finished epoch.

    Several processes see what one process with `processes` times the batch size sees, and learn the same up to the order of float
    sums: each has a part of every batch, batch-norms take their statistics over all of it, gradients are weighted by clips. Dropout
    is the exception: each process draws its own, so that two runs with it agree in distribution only.

    Args:
        network: what is fitted.
        loss: (network, batch) -> (loss, logits).
        clips: the data.
        train, validation: indices into it.
        settings: epochs, batch size, optimiser, processes.
        stage: "teacher" or "student": names the checkpoint and the rows of metrics.csv.
        classes: number of classes.
        seed: of batches, augmentation and dropout.
        run_folder: gets checkpoints/<stage>.ckpt and metrics.csv, each replaced in one move after every epoch.
        callbacks: more Lightning callbacks, a progress bar for one. Of several processes the first has them, and keeps what they keep.

    Raises:
        RecipeError: a checkpoint of another fit, or settings.processes that this machine, process or network does not allow.
        FitError: one of several processes was killed or hung; the others have ended too.
    """
    folder = run_folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{stage}.ckpt.*.tmp"):
        leftover.unlink()  # of a run that was killed while it wrote

    def work(rank: int) -> None:
        data = _Data(clips, train, validation, settings, seed, rank)
        fitter = _Fitter(network, loss, settings, classes, len(train), len(validation))
        _fit(fitter, data, stage, run_folder, callbacks if rank == 0 else ())

    if settings.processes == 1:
        work(0)
    else:
        with tempfile.TemporaryDirectory(prefix="knarr-fit-", ignore_cleanup_errors=True) as scratch:
            fitted = Path(scratch) / "fitted.pt"

            def work_and_keep(rank: int) -> None:
                join_batch_norms(network)
                work(rank)
                if rank == 0:
                    torch.save(network.cpu().state_dict(), fitted)

            in_processes(work_and_keep, settings.processes, Path(scratch))
            network.load_state_dict(torch.load(fitted, weights_only=True))
    network.cpu().eval()


def _fit(fitter: _Fitter, data: _Data, stage: str, run_folder: Path, callbacks: tuple[Callback, ...]) -> None:
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
    trainer = lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator="auto",
        devices=settings.processes,
        strategy="auto" if settings.processes == 1 else _together(data.rank),
        use_distributed_sampler=False,
        deterministic=True,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[_CsvLog(run_folder / METRICS, stage), *callbacks, keeper],
        plugins=[_AtomicCheckpoints(settings.processes)],
    )
    with warnings.catch_warnings():
        # The other stage's checkpoint lies there too, and our own when a run resumes.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Workers would not help two cores; batches are made faster than they are used.
        warnings.filterwarnings("ignore", message="The '(train|val)_dataloader' does not have many workers")
        # A process of several may have no clip to validate on; the accuracy is of what all of them have.
        warnings.filterwarnings(
            "ignore", message="The ``compute`` method of metric MulticlassAccuracy was called"
        )
        trainer.fit(fitter, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None)


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
