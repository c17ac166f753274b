"""What a fit leaves on disk, each file whole or not at all: checkpoints, metrics.csv, the best weights.

Weights as safetensors: nothing is unpickled, and only a state that fits is loaded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from knarr.files import write_atomic
from knarr.ranks import world_size
from knarr.train.settings import RecipeError

METRICS = "metrics.csv"
MEASURED = ("train_loss", "validation_loss", "validation_accuracy")
ACCUMULATES = "validation_accumulates"
"""Synaptic accumulates per inference, of fits in the chip's arithmetic alone; other rows are empty there."""
VALIDATED_ON = "validated_on"
"""`TEST` where what is called validation is the test data; other rows are empty there."""
TEST = "test"
ALWAYS = ("stage", "epoch", *MEASURED)
FIELDS = (*ALWAYS, ACCUMULATES, VALIDATED_ON)


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's own moves a file across file systems, which a kill can cut in half; and nothing is unpickled here."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        # OneCycleLR keeps a function in its state, which weights_only rightly refuses; a new one has its own.
        schedulers = [
            {k: v for k, v in state.items() if not callable(v)}
            for state in checkpoint["lr_schedulers"]
        ]
        checkpoint = {**checkpoint, "lr_schedulers": schedulers}
        if world_size() > 1:
            checkpoint["processes"] = world_size()
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = torch.load(
                path, map_location=map_location, weights_only=True
            )
        except (
            Exception
        ) as error:  # torch's restricted unpickler raises whatever a damaged file makes it meet
            raise RecipeError(
                f"{path}: not a checkpoint of this fit; remove it to train again"
            ) from error
        if not {"epoch", "loops", "state_dict", "optimizer_states"} <= set(checkpoint):
            raise RecipeError(f"{path}: not a checkpoint of this fit; remove it to train again")
        processes = checkpoint.pop("processes", 1)
        if processes != world_size():
            # Batches, dropout and the order of sums would change in mid-run.
            cure = (
                f"with torchrun and {processes} processes" if processes > 1 else "without torchrun"
            )
            raise RecipeError(
                f"{path}: checkpoint of a fit by {processes} process(es), not {world_size()}; go on {cure}, or remove it to train "
                "again"
            )
        return checkpoint


class CsvLog(Callback):
    """One row per epoch. The rows travel in the checkpoint, since Lightning's CSVLogger starts anew on resume."""

    def __init__(self, path: Path, stage: str, *, on_test: bool = False) -> None:
        self.path, self.stage, self.on_test = path, stage, on_test
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        found = trainer.callback_metrics
        measured = {field: f"{float(found[field]):.6f}" for field in MEASURED}
        if ACCUMULATES in found:
            measured[ACCUMULATES] = f"{float(found[ACCUMULATES]):.1f}"
        if self.on_test:
            measured[VALIDATED_ON] = TEST
        self.rows.append({"stage": self.stage, "epoch": trainer.current_epoch, **measured})
        if not trainer.is_global_zero:
            return
        others = [row for row in read_rows(self.path) if row["stage"] != self.stage]
        text = io.StringIO()
        rows = [*others, *self.rows]
        # Only the fits that have such a column make one.
        fields = [name for name in FIELDS if name in ALWAYS or any(row.get(name) for row in rows)]
        writer = csv.DictWriter(
            text, fields, restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Best(Callback):
    """The weights of the best epoch by `Fitter.score`, the first of equals. They travel in the checkpoint."""

    def __init__(
        self, network: nn.Module, score: Callable[[Mapping[str, torch.Tensor]], tuple[float, ...]]
    ) -> None:
        self.network, self.score_of = network, score
        self.score: tuple[float, ...] | None = None
        self.epoch = -1
        self.weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score = state_dict["score"]
        self.score = None if score is None else tuple(map(float, score))
        self.epoch, self.weights = state_dict["epoch"], dict(state_dict["weights"])

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        score = self.score_of(trainer.callback_metrics)
        if self.score is None or score > self.score:
            self.score, self.epoch = score, trainer.current_epoch
            self.weights = {
                name: value.detach().cpu().clone()
                for name, value in self.network.state_dict().items()
            }


def save_weights(module: nn.Module, path: Path) -> None:
    """A module's state as safetensors, written whole or not at all."""
    write_atomic(
        path, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state of exactly this module's names, shapes and dtypes; leaves the module in eval mode.

    Raises:
        RecipeError: the file is not safetensors or holds something else.
    """
    try:
        state = load(path.read_bytes())
    except SafetensorError as error:
        raise RecipeError(
            f"{path}: not a safetensors file ({error}); remove it and train again"
        ) from error
    wanted = module.state_dict()
    for name in sorted(set(state) | set(wanted)):
        ours, theirs = wanted.get(name), state.get(name)
        if (
            ours is None
            or theirs is None
            or ours.shape != theirs.shape
            or ours.dtype != theirs.dtype
        ):
            raise RecipeError(
                f"{path}: tensor '{name}' does not fit the recipe's network; remove the file and train again"
            )
    module.load_state_dict(state)
    module.eval()
