"""Fitting with Lightning, so that a killed run goes on where its last epoch ended and gives the same numbers."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from knarr.train.clips import Batch, Clips, Epoch, Indices
from knarr.train.recipe import Fit, RecipeError

METRICS = "metrics.csv"
FIELDS = ("stage", "epoch", "train_loss", "validation_loss", "validation_accuracy")

Loss = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
"""(network, batch) -> (loss, (B, classes) logits)."""


class _Fitter(lightning.LightningModule):
    def __init__(
        self, network: nn.Module, loss: Loss, settings: Fit, classes: int, steps_per_epoch: int
    ) -> None:
        super().__init__()
        self.network, self.loss, self.settings, self.steps_per_epoch = (
            network,
            loss,
            settings,
            steps_per_epoch,
        )
        self.accuracy = MulticlassAccuracy(num_classes=classes, average="micro")

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        loss, _logits = self.loss(self.network, batch)
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.labels)
        )
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        loss, logits = self.loss(self.network, batch)
        self.accuracy(logits, batch.labels)
        self.log("validation_loss", loss, batch_size=len(batch.labels))
        self.log("validation_accuracy", self.accuracy, prog_bar=True, batch_size=len(batch.labels))

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.settings.learning_rate, total_steps=self.settings.epochs * self.steps_per_epoch
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Data(lightning.LightningDataModule):
    def __init__(self, clips: Clips, train: Indices, validation: Indices, batch_size: int, seed: int) -> None:
        super().__init__()
        self.clips, self.train, self.validation, self.batch_size, self.seed = (
            clips,
            train,
            validation,
            batch_size,
            seed,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        epoch = self.trainer.current_epoch
        # Dropout draws from the global generator: seeded per epoch, a resumed run draws what an unbroken one does.
        torch.manual_seed(self.seed + epoch)
        return DataLoader(
            Epoch(self.clips, self.train, self.batch_size, seed=self.seed, epoch=epoch), batch_size=None
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(
            Epoch(self.clips, self.validation, self.batch_size, seed=self.seed, epoch=None), batch_size=None
        )


class _AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's own moves a file across file systems, which a kill can cut in half; and nothing is unpickled here."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        # OneCycleLR keeps a function in its state, which weights_only rightly refuses; a new one has its own.
        schedulers = [
            {k: v for k, v in state.items() if not callable(v)} for state in checkpoint["lr_schedulers"]
        ]
        checkpoint = {**checkpoint, "lr_schedulers": schedulers}
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

    Args:
        network: what is fitted.
        loss: (network, batch) -> (loss, logits).
        clips: the data.
        train, validation: indices into it.
        settings: epochs, batch size, optimiser.
        stage: "teacher" or "student": names the checkpoint and the rows of metrics.csv.
        classes: number of classes.
        seed: of batches, augmentation and dropout.
        run_folder: gets checkpoints/<stage>.ckpt and metrics.csv, each replaced in one move after every epoch.
        callbacks: more Lightning callbacks, a progress bar for one.
    """
    data = _Data(clips, train, validation, settings.batch_size, seed)
    steps_per_epoch = len(Epoch(clips, train, settings.batch_size, seed=seed, epoch=None))
    fitter = _Fitter(network, loss, settings, classes, steps_per_epoch)
    folder = run_folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f".{stage}.ckpt.*.tmp"):
        leftover.unlink()  # of a run that was killed while it wrote
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
        devices=1,
        deterministic=True,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[_CsvLog(run_folder / METRICS, stage), *callbacks, keeper],
        plugins=[_AtomicCheckpoints()],
    )
    with warnings.catch_warnings():
        # The other stage's checkpoint lies there too, and our own when a run resumes.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Workers would not help two cores; batches are made faster than they are used.
        warnings.filterwarnings("ignore", message="The '(train|val)_dataloader' does not have many workers")
        trainer.fit(fitter, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None)
    network.cpu().eval()
