"""Fit a lowered network on in the chip's arithmetic, whoever it came from: a recipe's student
(`train_chip`) or a graph of any tool (`fine_tuning`).

Two terms are added to the loss, which keep sums and states in their registers and, where there is a
goal, synaptic accumulates (ACC) below it:

    loss = loss of the outputs + register_weight * penalty + acc_weight * max(0, ACC / aim - 1)

The aim is a little less than the goal, and still less where training clips meet it and validation
clips do not. The lowered network is a candidate too: where no epoch beats it on the validation
data, it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from knarr.hw_sim import ChipNetwork
from knarr.train.chip import ChipStudent, ChipStudentOutput, Limits, Surrogate
from knarr.train.clips import Batch, Clips, Indices, evaluation_batches
from knarr.train.datasets.arrays import AnyArray, Float64
from knarr.train.fitting.files import ACCUMULATES, ACCURACY, ERROR, METRICS, read_rows
from knarr.train.fitting.fit import Fitter, fit
from knarr.train.settings import ChipSettings, Fit, SettingsError
from knarr.train.systems.base import ChipLoss

CHIP: Final = "chip"
"""Stage: name of the checkpoint, and of the rows in metrics.csv."""
GOAL_MARGIN: Final = 0.95
"""Training aims at 95 % of the goal, because augmented clips cost a few percent less than
validation clips.
"""
REACHED_TOLERANCE: Final = 1.02
"""Training has reached its aim where it costs at most 2 % more."""


@dataclass(frozen=True)
class Validated:
    """Accuracy and cost of a chip network on validation clips.

    Args:
        clips: number of clips.
        correct: number of them that it decides rightly; None where labels are float targets.
        accumulates: synaptic accumulates per inference, a mean over the clips.
        input_accumulates: the part of them that the input's own events cost.
        mae: mean absolute error; None where labels are classes.
    """

    clips: int
    correct: int | None
    accumulates: float
    input_accumulates: float
    mae: float | None = None

    @property
    def quality(self) -> float:
        """Accuracy, or the error with a minus: the better of two networks has more of it."""
        if self.mae is not None:
            return -self.mae
        assert self.correct is not None, "one of both is measured"
        return self.correct / self.clips

    @property
    def in_words(self) -> str:
        """Its accuracy or its error, for people."""
        if self.mae is not None:
            return f"mean absolute error {self.mae:.4g} on {self.clips} validation clips"
        return f"{self.correct} of {self.clips} validation clips right"

    def to_json(self) -> dict[str, float | int]:
        """Return plain values, without the measure that the labels do not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class ChipFit:
    """Result of a fit in the chip's arithmetic.

    Args:
        network: the chosen network.
        epoch: the epoch that it was trained for; None for the network that the fit started from.
        goal: accumulates that an inference was to cost at most; None for no goal.
        start, kept: the first and the chosen network on the validation clips.
    """

    network: ChipNetwork
    epoch: int | None
    goal: float | None
    start: Validated
    kept: Validated


class ChipFitter(Fitter):
    """Fitter of a chip student; its accuracy is that of the chip's decisions, to the clip.

    Args:
        fitted: positional arguments of `Fitter`, whose loss is not used.
        chip_loss: the student's loss.
        chip: weights of the terms that are added to it.
        goal: accumulates that an inference may cost; None for no goal.
    """

    def __init__(
        self, *fitted: Any, chip_loss: ChipLoss, chip: ChipSettings, goal: float | None
    ) -> None:
        super().__init__(*fitted)
        self.loss = self._loss
        self.chip_loss = chip_loss
        self.chip = chip
        self.goal = goal
        self.training_costs: list[float] = []
        self.validation_costs: list[Tensor] = []
        self.aim: Tensor
        aim = GOAL_MARGIN * (goal or torch.inf)
        # A buffer, so that it travels in the checkpoint.
        self.register_buffer("aim", torch.tensor(aim, dtype=torch.float64))

    def on_train_epoch_start(self) -> None:
        """Forget the costs of the epoch before."""
        self.training_costs = []

    def on_validation_epoch_start(self) -> None:
        """Forget the costs of the epoch before."""
        super().on_validation_epoch_start()
        self.validation_costs = []

    def on_validation_epoch_end(self) -> None:
        """Lower the aim where training has reached it and validation clips still cost more than the
        goal.
        """
        super().on_validation_epoch_end()
        # A validation before any training has nothing to compare with.
        if self.goal is None or not self.training_costs:
            return
        found = float(torch.cat(self.validation_costs).mean())
        reached = np.mean(self.training_costs) <= REACHED_TOLERANCE * float(self.aim)
        if found > self.goal and reached:
            self.aim *= self.goal / found / REACHED_TOLERANCE

    def _loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, in training with the terms for registers and cost, and the
        chip's decisions or values; a validation logs its cost.
        """
        ran: ChipStudentOutput = network(batch.inputs)
        loss, _ = self.chip_loss(ran, batch)
        costs = torch.stack(ran.acc).sum(0)
        if not self.training:
            self.output = ran.integers.sum(1)
            self.validation_costs.append(costs)
            self.log(ACCUMULATES, costs.mean(), batch_size=len(costs))
            if self.measured == ERROR:
                found = chip_values(network, ran.integers)
                return loss, torch.from_numpy(found).to(batch.labels)
            return loss, ran.classes
        loss = loss + self.chip.register_weight * ran.penalty
        if self.goal is not None:
            cost = costs.mean()
            # Counts pass float32's 2**24, so they become float32 only as a share of the aim.
            beyond = (cost / self.aim - 1).clamp(min=0).float()
            loss = loss + self.chip.acc_weight * beyond
            self.training_costs.append(float(cost.detach()))
        return loss, ran.classes

    def score(self, measured: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Rank epochs within the goal first, by accuracy; those beyond it by how little they cost."""
        rank = _cost_rank(float(measured[ACCUMULATES]), self.goal)
        return *rank, *super().score(measured)

    def _optimiser(self) -> torch.optim.Optimizer:
        student: Any = self.network
        groups = student.groups(self.settings.weight_decay)
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate)


def chip_student(
    chip: ChipSettings,
    start: ChipNetwork,
    unrounded: Mapping[str, Float64] | None = None,
) -> ChipStudent:
    """Make a student that starts as a lowered network; see `ChipStudent.from_network`.

    Raises:
        SettingsError: it has no parameter of the kinds that are to be learned.
    """
    student = ChipStudent.from_network(
        start,
        limits=Limits.of_bits(chip.weight_bits),
        surrogate=Surrogate(kind=chip.surrogate, width=chip.surrogate_width),
        learn=chip.learn,
        unrounded=unrounded,
    )
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise SettingsError(
            f"chip.learn: the student has none of {', '.join(chip.learn)} that could be learned; add weights"
        )
    return student


def fit_lowered(
    start: ChipNetwork,
    loss: ChipLoss,
    clips: Clips,
    train: Indices,
    validation: Indices,
    chip: ChipSettings,
    settings: Fit,
    *,
    classes: int | None,
    seed: int,
    run_folder: Path,
    unrounded: Mapping[str, Float64] | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> ChipFit:
    """Fit a lowered network further; a killed fit goes on after its last epoch.

    Args:
        start: the network as it was lowered, with `chip.weight_bits`.
        loss: loss of its outputs.
        clips: clips as the chip takes them.
        train, validation: indices of the clips to fit on, and of those that choose the epoch.
        chip: what is learned, and the terms that are added to the loss.
        settings: epochs, batches and rates, see `ChipSettings.fit`.
        classes: number of classes; None where labels are float targets.
        seed: seed of batches and augmentation.
        run_folder: gets the checkpoint and the rows "chip" of metrics.csv.
        unrounded: weights before they were rounded, by layer (`knarr.deploy.unrounded_weights`).
        callbacks: more Lightning callbacks.

    Raises:
        SettingsError: a goal that no network can meet, or nothing to learn.
        ChipError: integers that no chip holds.
    """
    student = chip_student(chip, start, unrounded)
    before = validate(student, clips, validation)
    student.train()
    goal = goal_of(chip, before)
    module_class = partial(ChipFitter, chip_loss=loss, chip=chip, goal=goal)
    epoch = fit(
        student,
        _no_loss,
        clips,
        train,
        validation,
        settings,
        network_name=CHIP,
        classes=classes,
        seed=seed,
        run_folder=run_folder,
        module_class=module_class,
        callbacks=callbacks,
    )
    after = validate(student, clips, validation)
    rank_before = (*_cost_rank(before.accumulates, goal), before.quality)
    rank_after = (*_cost_rank(after.accumulates, goal), after.quality)
    # Of equals the lowered network stays: nothing was gained by the fit.
    if rank_before >= rank_after:
        return ChipFit(start, None, goal, before, before)
    assert epoch is not None, "a fit that selects has selected"
    _check_log(run_folder, epoch, after)
    return ChipFit(student.to_network(), epoch, goal, before, after)


def goal_of(chip: ChipSettings, before: Validated) -> float | None:
    """Return the accumulates that an inference may cost on validation clips, or None.

    Raises:
        SettingsError: the goal is less than the input's own events cost.
    """
    name = "acc_per_inference"
    goal = chip.acc_per_inference
    if chip.acc_share is not None:
        name = "acc_share"
        goal = chip.acc_share * before.accumulates
    if goal is not None and goal <= before.input_accumulates:
        raise SettingsError(
            f"chip.{name}: {goal:,.0f} ACC, but the input's own events cost {before.input_accumulates:,.0f}, which no training changes; "
            f"ask for more of the {before.accumulates:,.0f}, or cut chip.timesteps"
        )
    return goal


def validate(student: ChipStudent, clips: Clips, chosen: Indices) -> Validated:
    """Run the student as it is on clips that are not augmented; leaves it in eval mode."""
    student.eval()
    seen = []
    accumulates = 0.0
    of_input = 0.0
    labels = clips.labels[chosen]
    with torch.no_grad():
        for batch in evaluation_batches(clips, chosen):
            ran: ChipStudentOutput = student(batch.inputs)
            values = labels.dtype.kind == "f"
            seen.append(chip_values(student, ran.integers) if values else ran.classes.numpy())
            accumulates += float(torch.stack(ran.acc).sum())
            of_input += float(ran.input_acc.sum())
    costs = accumulates / len(chosen), of_input / len(chosen)
    found = np.concatenate(seen)
    if labels.dtype.kind == "f":
        return Validated(len(chosen), None, *costs, mae=mean_absolute_error(found, labels))
    return Validated(len(chosen), int((found == labels).sum()), *costs)


def chip_values(student: nn.Module, integers: Tensor) -> Float64:
    """Return (B, k) values of a chip student's output integers (B, T, outputs), as
    `ChipNetwork.values` gives them for the same network.
    """
    last: Any = student.layers[-1]  # type: ignore[index]  # a ModuleList
    start: Any = student.start
    values: Float64 = start.readout.values(integers.cpu().numpy(), last.to_layer().scale)
    return values


def mean_absolute_error(found: AnyArray, labels: AnyArray) -> float:
    """Return the mean over clips and targets of |found - label|."""
    return float(np.abs(found.astype(np.float64) - labels.astype(np.float64)).mean())


def _cost_rank(accumulates: float, goal: float | None) -> tuple[float, float]:
    """Return a rank of which more is better: within the goal all are alike, beyond it lower costs
    are better.
    """
    if goal is None or accumulates <= goal:
        return 1.0, 0.0
    return 0.0, -accumulates


def _check_log(run_folder: Path, epoch: int, kept: Validated) -> None:
    """Check that the log says of the chosen network what was found.

    Raises:
        RuntimeError: it says something else.
    """
    rows = read_rows(run_folder / METRICS)
    row = next(row for row in rows if (row["stage"], row["epoch"]) == (CHIP, str(epoch)))
    if kept.mae is not None:
        # torchmetrics adds up in float32 and the log has six decimals; another network differs more.
        same = abs(float(row[ERROR]) - kept.mae) <= 1e-4 * max(1.0, kept.mae)
    else:
        # torchmetrics divides in float32, so the log's decimals are compared as the clips that they
        # stand for.
        same = round(float(row[ACCURACY]) * kept.clips) == kept.correct
    if not same:
        raise RuntimeError(
            f"{run_folder / METRICS}: says {row[ERROR if kept.mae is not None else ACCURACY]} of the network that is kept, which "
            f"has {kept.in_words}; this is a fault in knarr, report it"
        )


def _no_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    raise AssertionError("a chip student is fitted by its own loss")
