"""Fit a network with Lightning, alone or with the other processes of `torchrun`.

A fit that was killed goes on after its last epoch and gives the numbers of an unbroken one.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassAccuracy

from knarr.ranks import local_world_size, rank, world_size
from knarr.train.clips import Batch, Clips, Epoch, Indices
from knarr.train.fitting.files import ACCURACY, ERROR, METRICS, AtomicCheckpoints, Best, CsvLog
from knarr.train.settings import Fit, RecipeError

# Lightning announces devices and tips at every fit; progress is reported by the callbacks that the caller gives.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

Loss = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]
"""(network, batch) -> (loss, (B, classes) logits or (B, k) values). The loss is a mean over clips,
or several processes cannot share a batch.
"""


def rank_slice(clips: int, rank: int, processes: int) -> slice:
    """Return the part of a batch that a process takes; sizes differ by at most one clip."""
    # Ceiling division: the first ranks take what is left over.
    first, end = (-(-clips * edge // processes) for edge in (rank, rank + 1))
    return slice(first, end)


class RankDataset(Dataset[Batch]):
    """A process's share of each batch of an epoch.

    Each process makes the whole batch and takes its share, so that augmentation, drawn for a whole
    batch, is the same however many they are; making batches costs little next to learning from
    them.
    """

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epoch)

    def __getitem__(self, number: int) -> Batch:
        whole = self.epoch[number]
        own = rank_slice(len(whole.labels), rank(), world_size())
        if own.start == own.stop:
            # A loss needs a clip, and the other processes wait for this one's gradients; `Fitter`
            # gives it the weight 0.
            own = slice(0, 1)
        teacher_inputs = tuple(tensor[own] for tensor in whole.teacher_inputs)
        return Batch(whole.inputs[own], teacher_inputs, whole.labels[own])


class Fitter(lightning.LightningModule):
    """A network, its loss, and how Lightning takes a step with them.

    Args:
        network: The network that is fitted.
        loss: See `Loss`.
        settings: Optimiser, schedule and the batch size of each process.
        classes: Number of classes; None where labels are float targets.
        train_count: How many clips are fitted on, over all processes.
        validation_count: How many clips are validated on, over all processes.

    Attributes:
        measured: Name of what epochs are compared by: accuracy, or the mean absolute error.
        same_output: Whether the network gave the same output for every clip of the last
            validation, as one without spikes does.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        settings: Fit,
        classes: int | None,
        train_count: int,
        validation_count: int,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.settings = network, loss, settings
        self.train_count, self.validation_count = train_count, validation_count
        self.batch_size = world_size() * settings.batch_size
        self.steps_per_epoch = math.ceil(train_count / self.batch_size)
        self.measure: MulticlassAccuracy | MeanAbsoluteError
        if classes is None:
            self.measured, self.measure = ERROR, MeanAbsoluteError()
        else:
            self.measured = ACCURACY
            self.measure = MulticlassAccuracy(num_classes=classes, average="micro")
        self.output: torch.Tensor | None = None
        self.range: tuple[torch.Tensor, torch.Tensor] | None = None
        self.same_output = False

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        """Return this process's term of the loss, and log it."""
        loss, _ = self.loss(self.network, batch)
        clips, own = self._shares(self.train_count, number)
        loss = self._weighted(loss, clips, own)
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=clips,
            sync_dist=world_size() > 1,
        )
        return loss

    def validation_step(self, batch: Batch, number: int) -> None:
        """Log loss and accuracy or error on a batch that is not augmented."""
        loss, logits = self.loss(self.network, batch)
        clips, own = self._shares(self.validation_count, number)
        if own:
            self.measure(logits, batch.labels)
        self._look_at(logits if self.output is None else self.output)
        loss = self._weighted(loss, clips, own)
        self.log("validation_loss", loss, batch_size=clips, sync_dist=world_size() > 1)
        self.log(self.measured, self.measure, prog_bar=True, batch_size=clips)

    def on_validation_epoch_start(self) -> None:
        """Forget the outputs of the epoch before."""
        self.range = None

    def on_validation_epoch_end(self) -> None:
        """Find out whether all clips got the same output."""
        low, high = self.range if self.range is not None else (None, None)
        alike = low is not None and high is not None and torch.equal(low, high)
        self.same_output = alike and self.validation_count > 1

    def _look_at(self, output: torch.Tensor) -> None:
        flat = output.detach().flatten(1)
        ends = flat.amin(0), flat.amax(0)
        if self.range is not None:
            ends = torch.minimum(ends[0], self.range[0]), torch.maximum(ends[1], self.range[1])
        self.range = ends

    def score(self, measured: Mapping[str, torch.Tensor]) -> tuple[float, ...]:
        """Return what the best epoch has most of: validation accuracy, or the least error, then the
        lowest loss.
        """
        sign = -1 if self.measured == ERROR else 1
        return sign * float(measured[self.measured]), -float(measured["validation_loss"])

    def _shares(self, count: int, number: int) -> tuple[int, int]:
        """Return how many clips batch `number` has over all processes, and how many of them are
        this process's.
        """
        clips = min(self.batch_size, count - number * self.batch_size)
        own = rank_slice(clips, rank(), world_size())
        return clips, own.stop - own.start

    def _weighted(self, loss: torch.Tensor, clips: int, own: int) -> torch.Tensor:
        """Weight a process's loss so that the plain mean over processes, which DDP takes, is that
        of the whole batch.
        """
        if world_size() == 1:
            return loss
        return loss * (world_size() * own / clips)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, with its schedule where there is one, as Lightning takes them."""
        settings = self.settings
        optimiser = self._optimiser()
        configured: dict[str, Any] = {"optimizer": optimiser}
        if settings.schedule == "exponential":
            by_epoch = torch.optim.lr_scheduler.ExponentialLR(optimiser, settings.decay)
            configured["lr_scheduler"] = {"scheduler": by_epoch, "interval": "epoch"}
        elif settings.schedule == "one_cycle":
            by_step = torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                settings.learning_rate,
                total_steps=settings.epochs * self.steps_per_epoch,
            )
            configured["lr_scheduler"] = {"scheduler": by_step, "interval": "step"}
        return configured

    def _optimiser(self) -> torch.optim.Optimizer:
        return new_optimiser(self.network, self.settings)


def new_optimiser(network: nn.Module, settings: Fit) -> torch.optim.Optimizer:
    """Return a new optimiser of all parameters of a network."""
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
        train: Callable[..., Epoch],
        validation: Epoch,
        seed: int,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.seed = train, validation, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        epoch = self.trainer.current_epoch
        # Dropout draws from the global generator: seeded per epoch, a resumed run draws what an
        # unbroken one does.
        torch.manual_seed(self._dropout_seed(epoch))
        return self._batches(self.train(epoch=epoch))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._batches(self.validation)

    def _dropout_seed(self, epoch: int) -> int:
        if world_size() == 1:
            return self.seed + epoch
        # Processes that drew the same would drop the same places in different clips.
        return int(np.random.SeedSequence([self.seed, epoch, rank()]).generate_state(1)[0])

    def _batches(self, batches: Epoch) -> DataLoader[Batch]:
        own = batches if world_size() == 1 else RankDataset(batches)
        # Without one of its own, a loader draws from the global generator, and Lightning makes more
        # iterators in later epochs than in a resumed one: dropout would differ.
        return DataLoader(own, batch_size=None, generator=torch.Generator())


def fit(
    network: nn.Module,
    loss: Loss,
    clips: Clips,
    train: Indices,
    validation: Indices,
    settings: Fit,
    *,
    network_name: str,
    classes: int | None,
    seed: int,
    run_folder: Path,
    validation_clips: Clips | None = None,
    module_class: Callable[..., Fitter] = Fitter,
    callbacks: tuple[Callback, ...] = (),
) -> int | None:
    """Fit a network in place; a run that was killed goes on after its last finished epoch.

    Under `torchrun` all processes call this alike. Together they see what one process with the
    batch size of them all sees, and learn the same up to the order of float sums: each has a share
    of every batch, and gradients are weighted by clips. Dropout is the exception: each process
    draws its own, so that two runs with it agree in distribution only.

    Args:
        network: The network that is fitted.
        loss: See `Loss`.
        clips: The clips that `train` chooses from.
        train: Indices of the clips to fit on.
        validation: Indices of the clips to validate on.
        settings: Epochs, optimiser and the batch size of each process.
        network_name: "teacher", "student" or "chip": names the checkpoint and the rows of
            metrics.csv.
        classes: Number of classes; None where labels are float targets.
        seed: Seed of batches, augmentation and dropout.
        run_folder: Gets checkpoints/<network_name>.ckpt and metrics.csv, each replaced in one move
            after every epoch, by rank 0.
        validation_clips: The clips that `validation` chooses from; None for `clips`.
        module_class: Makes the Lightning module, for losses that change more than the network.
        callbacks: More Lightning callbacks, such as a progress bar; rank 0 alone has them.

    Returns:
        The epoch whose weights were chosen; None where those of the last are kept.

    Raises:
        RecipeError: A checkpoint of another fit, or a network that several processes cannot share
            on this machine.
    """
    _assert_shareable(network)
    folder = run_folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        for leftover in folder.glob(f".{network_name}.ckpt.*.tmp"):
            leftover.unlink()  # of a run that was killed while it wrote
    # For several processes Lightning replaces batch-norms by those that torch synchronises, and
    # does not give back what was there.
    fitted = network if world_size() == 1 else copy.deepcopy(network)
    fitter = module_class(fitted, loss, settings, classes, len(train), len(validation))
    batches = partial(Epoch, batch_size=fitter.batch_size, seed=seed)
    validated_on = clips if validation_clips is None else validation_clips
    validated = batches(validated_on, validation, epoch=None)
    data = _Data(partial(batches, clips, train), validated, seed)
    chosen = _fit(fitter, data, network_name, run_folder, callbacks if rank() == 0 else ())
    if fitted is not network:
        network.load_state_dict(fitted.state_dict())
    network.cpu().eval()
    return chosen


def _assert_shareable(network: nn.Module) -> None:
    processes, gpus = local_world_size(), torch.cuda.device_count()
    if world_size() == 1:
        return
    if 0 < gpus < processes:
        raise RecipeError(
            f"fit: {processes} processes > {gpus} GPUs; start {gpus} of them (torchrun --nproc_per_node {gpus}), or hide the "
            "GPUs with CUDA_VISIBLE_DEVICES='' to train on the processor"
        )
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and not gpus:
            raise RecipeError(
                f"layer '{name}': {type(module).__name__} takes its statistics over the batch, which {world_size()} processes "
                "divide, and torch joins them on GPUs alone; train without torchrun, or on GPUs"
            )


def _fit(
    fitter: Fitter,
    data: _Data,
    network_name: str,
    run_folder: Path,
    callbacks: tuple[Callback, ...],
) -> int | None:
    settings, folder = fitter.settings, run_folder / "checkpoints"
    checkpoint = folder / f"{network_name}.ckpt"
    keeper = ModelCheckpoint(
        dirpath=folder,
        filename=network_name,
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    files = AtomicCheckpoints()
    best = Best(fitter.network, fitter.score)
    own: list[Callback] = [
        CsvLog(run_folder / METRICS, network_name, on_test=settings.select == "best_on_test")
    ]
    if settings.select != "last":
        own.append(best)
    if settings.patience is not None:
        mode = "min" if fitter.measured == ERROR else "max"
        patience = EarlyStopping(fitter.measured, mode=mode, patience=settings.patience)
        if checkpoint.is_file():
            found = files.load_checkpoint(checkpoint)
            if _load_finished(found, patience, fitter, best):
                return best.epoch if best.weights else None
        own.append(patience)
    mixed = settings.precision == "mixed" and torch.cuda.is_available()
    logger: TensorBoardLogger | bool = False
    if settings.tensorboard:
        # In one folder with those of the killed fit that this one resumes: TensorBoard joins them.
        logger = TensorBoardLogger(run_folder, name="tensorboard", version=network_name)
    trainer = lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator="auto",
        **_processes(),
        use_distributed_sampler=False,
        deterministic=True,
        logger=logger,
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
        # The other network's checkpoint lies there too, and our own when a run resumes.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        # Workers would not help two cores; batches are made faster than they are used.
        warnings.filterwarnings(
            "ignore", message="The '(train|val)_dataloader' does not have many workers"
        )
        # A process of several may have no clip to validate on; the accuracy is over all processes.
        warnings.filterwarnings(
            "ignore", message="The ``compute`` method of metric (Multiclass|MeanAbs).* was called"
        )
        # Unused parameters are looked for on purpose, see `_processes`.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        trainer.fit(fitter, datamodule=data, ckpt_path=checkpoint if checkpoint.is_file() else None)
    if not best.weights:
        return None
    fitter.network.load_state_dict(best.weights)
    return best.epoch


def _processes() -> dict[str, Any]:
    """Return the Trainer's settings for one process, or for all that torchrun has started."""
    if world_size() == 1:
        return {"devices": 1}
    # Without the search for unused parameters DDP adds gradients up in another order from its
    # second step on, thus in another order where a run resumes; the search also lets a network have
    # parameters that its loss does not use, as one process does.
    strategy = DDPStrategy(
        cluster_environment=TorchElasticEnvironment(), find_unused_parameters=True
    )
    return {
        "devices": local_world_size(),
        "num_nodes": world_size() // local_world_size(),
        "strategy": strategy,
        "sync_batchnorm": torch.cuda.is_available(),
    }


def _load_finished(
    checkpoint: dict[str, Any], patience: EarlyStopping, fitter: Fitter, best: Best
) -> bool:
    """Put the weights of a killed fit in place if it had lost its patience already, and return
    whether it had.

    Lightning keeps the count of a stop, not the stop, and would fit one more epoch at every start.
    """
    states = checkpoint["callbacks"]
    if states.get(patience.state_key, {}).get("wait_count", 0) < patience.patience:
        return False
    weights = {
        name.removeprefix("network."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("network.")
    }
    if best.state_key in states:
        best.load_state_dict(states[best.state_key])
    fitter.network.load_state_dict(best.weights or weights)
    return True
