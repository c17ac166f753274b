"""EmotionKD: what is felt, or stress, from skin conductance alone, taught by EEG and skin or by heart rate and skin.

Networks in `networks.emotion_net`, `gsr_student` and `stress_teacher`, losses and feedback in `losses.emotion` and `feedback`, data in
`physio_data` and `stress_data`. The teacher hears what a wrist or a finger cannot give; the student is what is worn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import norse.torch as snn
import torch
import torch.nn.functional as F
from torch import nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Indices, split_validation
from knarr.train.datasets.physio.windows import PhysioWindows
from knarr.train.fitting.feedback import FED_BACK, FeedbackFitter, FeedbackSetup
from knarr.train.fitting.fit import Loss
from knarr.train.losses.emotion import StudentOutput, TeacherOutput, emotion_loss
from knarr.train.losses.feedback import DistillationBatch
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.emotion import EmotionOutput, EmotionStudent, EmotionTeacher, conv_l2
from knarr.train.networks.gsr import (
    GsrOutput,
    GsrRepeat,
    GsrStudentSettings,
    build_gsr_student,
    run_gsr_student,
)
from knarr.train.networks.stress import StressTeacher
from knarr.train.settings import RecipeError, SettingsError
from knarr.train.systems.base import ChipLoss, Progress, RunData, System
from knarr.train.systems.emotionkd_data import (
    load_physio,
    load_stress,
    physio_folds,
    read_physio,
    read_stress,
    stress_folds,
)
from knarr.train.systems.emotionkd_recipe import (
    AnnStudent,
    EmotionRecipe,
    FramesStudent,
    PhysioData,
    StressTeacherRecipe,
)

QUIZ_SEED: Final = 500_000
"""Added to the run's: who is set aside for the quiz is no second draw of who validates."""


class _NoTeacherOutput(NamedTuple):
    """In place of a teacher of whom no loss asks anything."""

    logits: torch.Tensor
    matched: torch.Tensor


class EmotionKd(System[EmotionRecipe]):
    """See above."""

    recipe_class = EmotionRecipe

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        settings = self.recipe.data
        if isinstance(settings, PhysioData):
            return load_physio(settings, root, self.recipe.seed, cache, progress)
        return load_stress(settings, root)

    # --- networks

    def teacher(self, data: RunData) -> nn.Module:
        settings = self.recipe.teacher
        if isinstance(settings, StressTeacherRecipe):
            return StressTeacher(settings.network)
        return (EmotionTeacher if settings.kind == "emotion_net" else EmotionStudent)(
            settings.network
        )

    def teacher_loss(self) -> Loss:
        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.teacher_logits(network, batch)
            return F.cross_entropy(logits, batch.labels) + _penalty(network), logits

        return loss

    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        return self._teach(teacher, *batch.teacher_inputs).logits

    def student(self, data: RunData) -> nn.Module:
        settings = self.recipe.student
        if isinstance(settings, FramesStudent):
            return build_gsr_student(settings.network)
        if isinstance(settings, AnnStudent):
            return EmotionStudent(settings.network)
        return GsrRepeat(settings.network)

    def student_loss(self, teacher: nn.Module) -> Loss:
        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            learned = self._learn(network, *self._heard(batch))
            return self._distil(learned, teacher, batch) + _penalty(network), learned.logits

        return loss

    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        recipe = self.recipe
        settings = recipe.student
        if not isinstance(settings, FramesStudent):
            raise RecipeError(
                f"chip: student.kind '{settings.kind}' cannot run on a chip; train 'frames', or leave chip out"
            )
        if recipe.chip is not None and recipe.chip.timesteps is not None and settings.loss.feature:
            raise SettingsError(
                "chip.timesteps: F_S of fewer steps has no F_T to be compared with; set student.loss.feature to 0, or leave it out"
            )
        spikes = settings.network.feature == "spike"

        def loss(ran: ChipStudentOutput, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            depths = ran.fired[1:] if spikes else [volts() for volts in ran.peaks[1:]]
            volts = ran.step_logits
            learned = GsrOutput(
                volts.mean(1), torch.stack(list(depths)).sum(0).flatten(1), volts, ran.rates
            )
            return self._distil(learned, teacher, batch), learned.logits

        return loss

    def _distil(self, learned: StudentOutput, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        settings = self.recipe.student.loss
        taught: TeacherOutput = _NoTeacherOutput(learned.logits, learned.features)
        if settings.kl or settings.feature:
            with torch.no_grad():
                taught = self._teach(teacher, *batch.teacher_inputs)
        return emotion_loss(learned, taught, batch.labels, settings).total

    def student_logits(self, kept: nn.Module, batch: Batch) -> torch.Tensor:
        return self._learn(kept, *self._heard(batch)).logits

    def student_fitter(
        self, teacher: nn.Module, data: RunData, train: Indices, run_folder: Path
    ) -> tuple[Indices, Callable[..., Any]] | None:
        """Feedback, where the recipe asks for it; the quiz's people are no longer fitted on.

        Its loop minimises `emotion_loss` alone: the penalty on convolution kernels of "ann" and "repeat" is left out.

        Raises:
            SettingsError: too few groups to set one aside.
        """
        feedback = self.recipe.student.feedback
        if feedback is None:
            return None
        heldout = train[:0]
        if feedback.quiz == "heldout":
            lessons, quiz = split_validation(
                data.groups[train],
                feedback.quiz_fraction,
                self.recipe.seed + QUIZ_SEED,
                setting="student.feedback.quiz_fraction",
            )
            train, heldout = train[lessons], train[quiz]
        school = FeedbackSetup(
            teacher,
            self._teach,
            self._learn,
            self.lesson,
            self.student_loss,
            feedback,
            heldout,
            run_folder / FED_BACK,
        )
        return train, partial(FeedbackFitter, school=school)

    def deployable(self, kept: nn.Module) -> snn.SequentialState:
        settings = self.recipe.student
        if not isinstance(settings, FramesStudent):
            raise RecipeError(
                f"student.kind: {settings.kind} has softmax attention, which no graph or chip holds; train student.kind 'frames' to "
                "deploy it"
            )
        return chip_form(cast(snn.SequentialState, kept), snap=True)

    # --- how they are run

    def lesson(self, batch: Batch) -> DistillationBatch:
        """A batch as feedback takes it."""
        return DistillationBatch(batch.teacher_inputs, self._heard(batch), batch.labels)

    def _heard(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """By the student: coded frames, or the skin conductance that the teacher hears."""
        return (
            batch.inputs
            if isinstance(self.recipe.student, FramesStudent)
            else batch.teacher_inputs[1],
        )

    def _teach(self, teacher: nn.Module, *signals: torch.Tensor) -> EmotionOutput:
        """EEG, if asked for, and skin; or heart and skin as one."""
        output: EmotionOutput = teacher(
            *(signals[1:] if self.recipe.teacher.kind == "gsr_net" else signals)
        )
        return output

    def _learn(self, student: nn.Module, heard: torch.Tensor) -> StudentOutput:
        settings = self.recipe.student
        if isinstance(settings, FramesStudent):
            return run_frames(cast(snn.SequentialState, student), heard, settings.network)
        output: EmotionOutput = student(heard)
        return output

    # --- the baseline that energy is compared with

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module:
        """Its inputs are (B, 29, samples), EEG above skin; skin alone (B, 1, samples); or heart and skin (B, 2, samples)."""
        return _Packed(teacher, split=self.recipe.teacher.kind == "emotion_net").eval()

    def baseline_inputs(self, batch: Batch) -> torch.Tensor:
        signals = batch.teacher_inputs
        return torch.cat(signals[1:] if self.recipe.teacher.kind == "gsr_net" else signals, dim=1)


class _Packed(nn.Module):
    """A teacher of one tensor that gives logits alone."""

    def __init__(self, teacher: nn.Module, *, split: bool) -> None:
        super().__init__()
        self.teacher, self.split = teacher, split

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        parts = (signals[:, :-1], signals[:, -1:]) if self.split else (signals,)
        logits: torch.Tensor = self.teacher(*parts).logits
        return logits


def run_frames(
    student: snn.SequentialState, heard: torch.Tensor, settings: GsrStudentSettings
) -> GsrOutput:
    """`run_gsr_student` on (B, T, inputs) that are frames already: laid end to end, they are cut again as they were."""
    steps, inputs = heard.shape[1:]
    end_to_end = settings.model_copy(
        update={"samples": steps * inputs, "kernel": inputs, "stride": inputs}
    )
    return run_gsr_student(student, heard.flatten(1).unsqueeze(1), end_to_end)


def fold_count(recipe: EmotionRecipe, root: Path, *, cache: Path | None = None) -> int:
    """How many folds a recipe's data give: `data.folds`, or as many as there are people, who are then read.

    Args:
        recipe: of this system.
        root, cache: of the data, as of `System.load`.

    Raises:
        DataError, RecipeError: data that cannot be read or parted so.
    """
    settings = recipe.data
    if settings.split != "loso":
        return settings.folds
    if isinstance(settings, PhysioData):
        windows = PhysioWindows(read_physio(settings, root, cache, None), settings.windowing)
        return len(physio_folds(windows, settings))
    return len(stress_folds(read_stress(settings, root), settings))


def _penalty(network: nn.Module) -> torch.Tensor | float:
    """The published code's on convolution kernels, of the networks that have them."""
    if isinstance(network, GsrRepeat):
        network = network.student
    return conv_l2(network) if isinstance(network, (EmotionTeacher, EmotionStudent)) else 0.0
