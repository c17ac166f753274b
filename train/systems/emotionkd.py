"""EmotionKD: emotion, or stress, from skin conductance alone, taught by EEG and skin or by heart
rate and skin.

Networks are in `networks.emotion`, `gsr` and `stress`, losses and feedback in `losses.emotion` and
`losses.feedback`, settings in `emotionkd_recipe` and data in `emotionkd_data`. The teacher is given
what a wrist or a finger cannot measure; the student is worn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import norse.torch as snn
import torch
from torch import Tensor, nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Indices, split_validation
from knarr.train.fitting.feedback import FED_BACK, FeedbackFitter, FeedbackSetup
from knarr.train.fitting.fit import Fitter, Loss
from knarr.train.losses.emotion import StudentOutput, emotion_loss
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.emotion import EmotionOutput, EmotionStudent, EmotionTeacher, conv_l2
from knarr.train.networks.gsr import GsrOutput, GsrRepeat, build_gsr_student, run_frames
from knarr.train.networks.stress import StressTeacher
from knarr.train.settings import RecipeError, SettingsError
from knarr.train.systems.base import ChipLoss, OneTensor, Progress, RunData, Scored, System
from knarr.train.systems.emotionkd_data import load_physio, load_stress
from knarr.train.systems.emotionkd_recipe import (
    AnnStudent,
    EmotionRecipe,
    FramesStudent,
    PhysioData,
    StressTeacherRecipe,
)

QUIZ_SEED: Final = 500_000
"""Added to the run's seed: who is set aside for the quiz is no second draw of who validates."""


class EmotionKd(System[EmotionRecipe]):
    """EmotionKD with a recipe's settings."""

    recipe_class = EmotionRecipe

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        """Read one fold; see `System.load`."""
        settings = self.recipe.data
        if isinstance(settings, PhysioData):
            return load_physio(settings, root, self.recipe.seed, cache, progress)
        return load_stress(settings, root)

    # --- networks

    def teacher(self, data: RunData) -> nn.Module:
        """Return a new teacher of the recipe's kind."""
        settings = self.recipe.teacher
        if isinstance(settings, StressTeacherRecipe):
            return StressTeacher(settings.network)
        if settings.kind == "emotion_net":
            return EmotionTeacher(settings.network)
        return EmotionStudent(settings.network)

    def teacher_loss(self) -> Loss:
        """Return the cross entropy, and the published penalty on convolutions."""
        return _penalised(super().teacher_loss())

    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> Tensor:
        """Return the teacher's logits, (B, classes)."""
        return self._run_teacher(teacher, *batch.teacher_inputs).logits

    def student(self, data: RunData) -> nn.Module:
        """Return a new student of the recipe's kind."""
        settings = self.recipe.student
        if isinstance(settings, FramesStudent):
            return build_gsr_student(settings.network)
        if isinstance(settings, AnnStudent):
            return EmotionStudent(settings.network)
        return GsrRepeat(settings.network)

    def student_loss(self, teacher: nn.Module) -> Loss:
        """Return EmotionKD's loss, and the published penalty on convolutions."""
        return _penalised(super().student_loss(teacher))

    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        """Return EmotionKD's loss for a chip student's spikes or voltages.

        Raises:
            RecipeError: A student that no chip runs, or features of fewer steps than the teacher's.
        """
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
        return super().chip_loss(teacher)

    def student_output(self, student: nn.Module, batch: Batch) -> StudentOutput:
        """Return the student's logits and features."""
        return self._run_student(student, self._as_heard(batch).inputs)

    def chip_output(self, output: ChipStudentOutput) -> GsrOutput:
        """Return a chip student's logits and features, of its spikes or voltages."""
        network: Any = self.recipe.student.network
        # The first layer that fires is the head; F_S is of the depths after it.
        if network.feature == "spike":
            depths = list(output.fired[1:])
        else:
            depths = [peak() for peak in output.peaks[1:]]
        volts = output.step_logits
        features = torch.stack(depths).sum(0).flatten(1)
        return GsrOutput(volts.mean(1), features, volts, output.rates)

    def distil(self, output: StudentOutput, teacher: nn.Module, batch: Batch) -> Scored:
        """Return EmotionKD's loss, and the logits."""
        settings = self.recipe.student.loss
        # A loss of labels alone reads nothing of the teacher, which then is not run; the student's
        # own output fills its place.
        teacher_output = EmotionOutput(output.logits, output.features, output.features)
        if settings.kl or settings.feature:
            with torch.no_grad():
                teacher_output = self._run_teacher(teacher, *batch.teacher_inputs)
        return emotion_loss(output, teacher_output, batch.labels, settings).total, output.logits

    def student_fitter(
        self, teacher: nn.Module, data: RunData, train: Indices, run_folder: Path
    ) -> tuple[Indices, Callable[..., Fitter]]:
        """Return a fit with feedback, where the recipe asks for it; the quiz's people are no longer
        fitted on.

        Its loop minimises `emotion_loss` alone: the penalty on convolution kernels of "ann" and
        "repeat" is left out.

        Raises:
            SettingsError: Too few groups to set one aside.
        """
        feedback = self.recipe.student.feedback
        if feedback is None:
            return super().student_fitter(teacher, data, train, run_folder)
        heldout = train[:0]  # a quiz on the next batch sets nobody aside
        if feedback.quiz == "heldout":
            lessons, quiz = split_validation(
                data.groups[train],
                feedback.quiz_fraction,
                self.recipe.seed + QUIZ_SEED,
                setting="student.feedback.quiz_fraction",
            )
            train, heldout = train[lessons], train[quiz]
        setup = FeedbackSetup(
            teacher=teacher,
            run_teacher=self._run_teacher,
            run_student=self._run_student,
            to_batch=self._as_heard,
            student_loss=self.student_loss,
            settings=feedback,
            loss=self.recipe.student.loss,
            heldout=heldout,
            file=run_folder / FED_BACK,
        )
        return train, partial(FeedbackFitter, setup=setup)

    def deployable(self, student: nn.Module) -> snn.SequentialState:
        """Return the student of frames with its decays on the chip's grid."""
        settings = self.recipe.student
        if not isinstance(settings, FramesStudent):
            raise RecipeError(
                f"student.kind: {settings.kind} has softmax attention, which no graph or chip holds; train student.kind 'frames' to "
                "deploy it"
            )
        return chip_form(student, snap=True)

    # --- how they are run

    def _as_heard(self, batch: Batch) -> Batch:
        """Return a batch whose inputs are those of the recipe's student."""
        if isinstance(self.recipe.student, FramesStudent):
            return batch
        # The other students take skin conductance as the teacher does, which stands behind the EEG.
        return batch._replace(inputs=batch.teacher_inputs[1])

    def _teacher_signals(self, signals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # `gsr_net` takes skin conductance without the EEG; Stress-Predict's two signals are one
        # tensor.
        return signals[1:] if self.recipe.teacher.kind == "gsr_net" else signals

    def _run_teacher(self, teacher: nn.Module, *signals: Tensor) -> EmotionOutput:
        return teacher(*self._teacher_signals(signals))

    def _run_student(self, student: nn.Module, inputs: Tensor) -> StudentOutput:
        settings = self.recipe.student
        if isinstance(settings, FramesStudent):
            return run_frames(student, inputs, settings.network)
        return student(inputs)

    # --- the baseline that energy is compared with

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module:
        """Return the teacher for one tensor: (B, 29, samples), EEG above skin; skin alone (B, 1,
        samples); or heart and skin (B, 2, samples).
        """
        both = self.recipe.teacher.kind == "emotion_net"
        return OneTensor(
            teacher, lambda signals: (signals[:, :-1], signals[:, -1:]) if both else (signals,)
        ).eval()

    def baseline_inputs(self, batch: Batch) -> Tensor:
        """Return the teacher's signals above each other."""
        return torch.cat(self._teacher_signals(batch.teacher_inputs), dim=1)


def _penalised(plain: Loss) -> Loss:
    """Return a loss with the published code's L2 of convolution kernels, which networks that are
    not its own do not have.
    """

    def loss(network: nn.Module, batch: Batch) -> Scored:
        value, logits = plain(network, batch)
        published = network.student if isinstance(network, GsrRepeat) else network
        if isinstance(published, (EmotionTeacher, EmotionStudent)):
            value = value + conv_l2(published)
        return value, logits

    return loss
