"""Files of a fit, each whole or not at all: checkpoints, metrics.csv, and weights as safetensors.

Nothing is unpickled, and only a state that fits is loaded.
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
ACCURACY, ERROR = "validation_accuracy", "validation_mae"
"""Share of validation clips that are right, of classes; mean absolute error, of float targets."""
MEASURED = ("train_loss", "validation_loss", ACCURACY)
ACCUMULATES = "validation_accumulates"
"""Synaptic accumulates per inference, of fits in the chip's arithmetic alone; other rows are empty
there.
"""
OUTPUT, SAME_OUTPUT = "validation_output", "the same for every clip"
"""Column that is empty where outputs differ between clips, as they do in a network that works."""
VALIDATED_ON = "validated_on"
"""`TEST` where what is called validation is the test data; other rows are empty there."""
TEST = "test"
ALWAYS = ("stage", "epoch", *MEASURED)
"""Columns of every metrics.csv; "stage" is the network's name."""
FIELDS = (*ALWAYS, ERROR, ACCUMULATES, OUTPUT, VALIDATED_ON)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that a kill cannot cut in half; Lightning moves its own across file systems."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint in one move, with the number of processes that fit."""
        # OneCycleLR keeps a function in its state, which weights_only rightly refuses; a new one
        # has its own.
        schedulers = []
        for state in checkpoint["lr_schedulers"]:
            schedulers.append({key: value for key, value in state.items() if not callable(value)})
        checkpoint = {**checkpoint, "lr_schedulers": schedulers}
        if world_size() > 1:
            checkpoint["processes"] = world_size()
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of this fit.

        Raises:
            RecipeError: A damaged or foreign file, or one of a fit by another number of processes.
        """
        foreign = f"{path}: not a checkpoint of this fit; remove it to train again"
        try:
            checkpoint: dict[str, Any] = torch.load(
                path, map_location=map_location, weights_only=True
            )
        # torch's restricted unpickler raises whatever a damaged file makes it meet.
        except Exception as error:
            raise RecipeError(foreign) from error
        if not {"epoch", "loops", "state_dict", "optimizer_states"} <= set(checkpoint):
            raise RecipeError(foreign)
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
    """Writes one row per epoch to metrics.csv. The rows travel in the checkpoint: Lightning's
    CSVLogger starts anew on resume.

    Args:
        path: The file; rows of other networks in it stay.
        network_name: Value of the column "stage".
        on_test: Whether what is called validation is the test data.
    """

    def __init__(self, path: Path, network_name: str, *, on_test: bool = False) -> None:
        self.path, self.network_name, self.on_test = path, network_name, on_test
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, for the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of a checkpoint; the file's later rows are written over."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Add the epoch's row, and write the file on rank 0."""
        found = trainer.callback_metrics
        wanted = (*MEASURED, ERROR)
        measured = {field: f"{float(found[field]):.6f}" for field in wanted if field in found}
        if ACCUMULATES in found:
            measured[ACCUMULATES] = f"{float(found[ACCUMULATES]):.1f}"
        if getattr(pl_module, "same_output", False):
            measured[OUTPUT] = SAME_OUTPUT
        if self.on_test:
            measured[VALIDATED_ON] = TEST
        self.rows.append({"stage": self.network_name, "epoch": trainer.current_epoch, **measured})
        if not trainer.is_global_zero:
            return
        others = [row for row in read_rows(self.path) if row["stage"] != self.network_name]
        text = io.StringIO()
        rows = [*others, *self.rows]
        # A column that no row has a value for is left out.
        fields = [name for name in FIELDS if name in ALWAYS or any(row.get(name) for row in rows)]
        writer = csv.DictWriter(
            text, fields, restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a metrics.csv as text by column; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Best(Callback):
    """Keeps the weights of the best epoch, the first of equals. They travel in the checkpoint.

    Args:
        network: The network that is fitted.
        score: Gives what the best epoch has most of, see `Fitter.score`.
    """

    def __init__(
        self, network: nn.Module, score: Callable[[Mapping[str, torch.Tensor]], tuple[float, ...]]
    ) -> None:
        self.network, self.score_of = network, score
        self.score: tuple[float, ...] | None = None
        self.epoch = -1
        self.weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far, for the checkpoint."""
        return {"score": self.score, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best epoch of a checkpoint."""
        score = state_dict["score"]
        self.score = None if score is None else tuple(map(float, score))
        self.epoch, self.weights = state_dict["epoch"], dict(state_dict["weights"])

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Copy the weights where no epoch before was as good."""
        score = self.score_of(trainer.callback_metrics)
        if self.score is None or score > self.score:
            self.score, self.epoch = score, trainer.current_epoch
            # A copy, also where they are on the processor already: the next step changes them in
            # place.
            state = self.network.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state as safetensors."""
    # safetensors refuses views, such as transposed weights.
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(state))


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state of exactly this module's names, shapes and dtypes, and put it in eval mode.

    Raises:
        RecipeError: The file is not safetensors or holds something else.
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
        # torch would broadcast or cast what does not fit, and say nothing of it.
        if ours is None or theirs is None or _form(ours) != _form(theirs):
            raise RecipeError(
                f"{path}: tensor '{name}' does not fit the recipe's network; remove the file and train again"
            )
    module.load_state_dict(state)
    module.eval()


def _form(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
