"""Fine-tuning in the chip's arithmetic: the integers that are validated are those that the file holds and the chip runs.

The student starts as lowering left it, weights not yet rounded, and keeps its teacher and its loss. What is added to the loss keeps
sums and states in their registers and, where there is a goal, synaptic accumulates below it:

    loss = student's loss + register_weight * penalty + acc_weight * max(0, ACC / aim - 1)

The aim is a little less than the goal, and still less where training clips meet it and validation clips do not.

The lowered network takes part in the choice of what is kept: where no epoch beats it on the validation data, it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from knarr.hw_sim import ChipNetwork
from knarr.train.chip import ChipStudent, ChipStudentOutput, Limits, Surrogate
from knarr.train.clips import Batch, Clips, Indices, truncate_timesteps
from knarr.train.fitting.files import ACCUMULATES, METRICS, read_rows
from knarr.train.fitting.fit import Fitter, Loss, fit
from knarr.train.settings import ChipSettings, Fit, Recipe, SettingsError
from knarr.train.systems.base import ChipLoss, RunData
from knarr.train.systems.registry import system_of
from knarr.train.train import evaluation_batches, train_validation_split

CHIP: Final = "chip"
"""Stage: name of the checkpoint, and of the rows in metrics.csv."""
FIT_SEED: Final = 2_000_000
GOAL_MARGIN: Final = 0.95
"""Of a goal, which training aims at: its own clips are moved about and cost a few percent less than those that are validated on."""
REACHED_TOLERANCE: Final = 1.02
"""Of an aim: training that is as near as this has reached it."""


@dataclass(frozen=True)
class Validated:
    """A chip network on validation clips.

    Args:
        clips: how many. correct: how many of them it decides rightly.
        accumulates: synaptic, per inference, mean over the clips.
        input_accumulates: the part of them that the input's own events cost.
    """

    clips: int
    correct: int
    accumulates: float
    input_accumulates: float


@dataclass(frozen=True, eq=False)
class ChipFit:
    """What a fit in the chip's arithmetic gave.

    Args:
        network: what is kept.
        epoch: whose it is; None for the network that the fit started from.
        start, kept: both on the validation clips.
        goal: accumulates that an inference was to cost at most; None for no goal.
    """

    network: ChipNetwork
    epoch: int | None
    goal: float | None
    start: Validated
    kept: Validated


class ChipFitter(Fitter):
    """A chip student and its loss; its accuracy is that of the chip's decisions, to the clip.

    Args:
        network, settings, classes, clips, validation_clips: see `Fitter`.
        loss: of systems without a chip, not used.
        chip_loss: what is minimised beside the terms above.
        chip: weights of these.
        goal: accumulates that an inference may cost; None for no goal.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        settings: Fit,
        classes: int,
        clips: int,
        validation_clips: int,
        *,
        chip_loss: ChipLoss,
        chip: ChipSettings,
        goal: float | None,
    ) -> None:
        super().__init__(network, loss, settings, classes, clips, validation_clips)
        self.chip_loss = chip_loss
        self.chip = chip
        self.goal = goal
        self.spent: list[float] = []
        self.judged: list[Tensor] = []
        self.aim: Tensor
        # A buffer, so that it travels in the checkpoint.
        self.register_buffer(
            "aim", torch.tensor(GOAL_MARGIN * (goal or torch.inf), dtype=torch.float64)
        )

    def on_train_epoch_start(self) -> None:
        self.spent = []

    def on_validation_epoch_start(self) -> None:
        self.judged = []

    def on_validation_epoch_end(self) -> None:
        """Where the margin was too small: the goal is judged by validation clips."""
        if self.goal is None or not self.spent:
            return
        found = float(torch.cat(self.judged).mean())
        if found > self.goal and np.mean(self.spent) <= REACHED_TOLERANCE * float(self.aim):
            self.aim *= self.goal / found / REACHED_TOLERANCE

    def training_step(self, batch: Batch, number: int) -> Tensor:
        ran: ChipStudentOutput = self.network(batch.inputs)
        loss, _ = self.chip_loss(ran, batch)
        loss = loss + self.chip.register_weight * ran.penalty
        if self.goal is not None:
            cost = torch.stack(ran.acc).sum(0).mean()
            loss = loss + self.chip.acc_weight * (cost / self.aim - 1).clamp(min=0).float()
            self.spent.append(float(cost.detach()))
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch.labels),
        )
        return loss

    def validation_step(self, batch: Batch, number: int) -> None:
        ran: ChipStudentOutput = self.network(batch.inputs)
        loss, _ = self.chip_loss(ran, batch)
        clips = len(batch.labels)
        self.accuracy(ran.classes, batch.labels)
        self.log("validation_loss", loss, batch_size=clips)
        self.log("validation_accuracy", self.accuracy, prog_bar=True, batch_size=clips)
        cost = torch.stack(ran.acc).sum(0)
        self.judged.append(cost)
        self.log(ACCUMULATES, cost.mean(), batch_size=clips)

    def score(self, measured: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Within the goal first, and there the most often right; what costs too much by how little."""
        return *_cost(float(measured[ACCUMULATES]), self.goal), *super().score(measured)

    def _optimiser(self) -> torch.optim.Optimizer:
        student: Any = self.network
        groups = [group for group in student.groups(self.settings.weight_decay) if group["params"]]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate)


def chip_student(
    chip: ChipSettings,
    start: ChipNetwork,
    unrounded: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> ChipStudent:
    """A student that starts as a lowered network; see `ChipStudent.from_network`.

    Raises:
        SettingsError: it has nothing of what is to be learned.
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


def train_chip(
    recipe: Recipe,
    data: RunData,
    teacher: nn.Module,
    start: ChipNetwork,
    run_folder: Path,
    *,
    unrounded: Mapping[str, npt.NDArray[np.float64]] | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> ChipFit:
    """Fit a lowered network on; a killed fit goes on after its last epoch, a finished one is not fitted again.

    Args:
        recipe, data, run_folder: of the run; `recipe.chip` is set.
        teacher: finished.
        start: the student as it was lowered, with `recipe.chip.weight_bits`.
        unrounded: its weights before they were rounded, by layer (`knarr.deploy.unrounded_weights`).
        callbacks: more Lightning callbacks.

    Raises:
        RecipeError: settings that this system's chip students do not take, or a goal that none can meet.
        ChipError: integers that no chip holds.
    """
    chip = recipe.chip
    assert chip is not None, "a recipe without chip has nothing to fit here"
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed + 2)
    student = chip_student(chip, start, unrounded)
    loss = system_of(recipe).chip_loss(teacher.eval().requires_grad_(False))
    clips, (train, validation) = (
        truncate_timesteps(recipe, data.train),
        train_validation_split(recipe, data),
    )
    before = validate(student, clips, validation)
    student.train()

    def beside(ran: ChipStudentOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        teacher.to(batch.inputs.device)
        return loss(ran, batch)

    goal = goal_of(chip, before)
    module_class = partial(ChipFitter, chip_loss=beside, chip=chip, goal=goal)
    epoch = fit(
        student,
        _no_loss,
        clips,
        train,
        validation,
        chip.fit(recipe.student.fit),
        network_name=CHIP,
        classes=len(data.class_names),
        seed=recipe.seed + FIT_SEED,
        run_folder=run_folder,
        module_class=module_class,
        callbacks=callbacks,
    )
    teacher.cpu()
    after = validate(student, clips, validation)
    if (*_cost(before.accumulates, goal), before.correct) >= (
        *_cost(after.accumulates, goal),
        after.correct,
    ):
        return ChipFit(start, None, goal, before, before)
    assert epoch is not None, "a fit that selects has selected"
    _check_log(run_folder, epoch, after)
    return ChipFit(student.to_network(), epoch, goal, before, after)


def goal_of(chip: ChipSettings, before: Validated) -> float | None:
    """Accumulates per inference on validation clips.

    Raises:
        SettingsError: less than the input's own events cost.
    """
    goal = chip.acc_per_inference if chip.acc_share is None else chip.acc_share * before.accumulates
    if goal is not None and goal <= before.input_accumulates:
        name = "acc_per_inference" if chip.acc_share is None else "acc_share"
        raise SettingsError(
            f"chip.{name}: {goal:,.0f} ACC, but the input's own events cost {before.input_accumulates:,.0f}, which no training changes; "
            f"ask for more of the {before.accumulates:,.0f}, or cut chip.timesteps"
        )
    return goal


def validate(student: ChipStudent, clips: Clips, chosen: Indices) -> Validated:
    """The student as it is, on clips that are not augmented."""
    student.eval()
    correct = 0
    accumulates = 0.0
    own = 0.0
    with torch.no_grad():
        for batch in evaluation_batches(clips, chosen):
            ran: ChipStudentOutput = student(batch.inputs)
            correct += int((ran.classes == batch.labels).sum())
            accumulates += float(torch.stack(ran.acc).sum())
            own += float(ran.input_acc.sum())
    return Validated(len(chosen), correct, accumulates / len(chosen), own / len(chosen))


def _cost(accumulates: float, goal: float | None) -> tuple[float, float]:
    """More of it is better: within the goal, all are alike; beyond it, what costs less."""
    return (1.0, 0.0) if goal is None or accumulates <= goal else (0.0, -accumulates)


def _check_log(run_folder: Path, epoch: int, kept: Validated) -> None:
    """What the log says of the network that is kept is what was found."""
    row = next(
        row
        for row in read_rows(run_folder / METRICS)
        if (row["stage"], row["epoch"]) == (CHIP, str(epoch))
    )
    # torchmetrics divides in float32, so the log's decimals are compared as the clips that they stand for.
    if round(float(row["validation_accuracy"]) * kept.clips) != kept.correct:
        raise RuntimeError(
            f"{run_folder / METRICS}: says {row['validation_accuracy']} of the network that is kept, which is right on {kept.correct} "
            f"of {kept.clips}; this is a fault in knarr, report it"
        )


def _no_loss(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    raise AssertionError("a chip student is fitted by its own loss")
