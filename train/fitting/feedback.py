"""Fit a student whose teacher learns too: each step of the fit is one `adaptive_step`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from knarr.ranks import world_size
from knarr.train.clips import Batch, Epoch, Indices
from knarr.train.fitting.files import save_weights
from knarr.train.fitting.fit import Fitter, Loss
from knarr.train.losses.emotion import EmotionLossSettings, StudentOutput, TeacherOutput
from knarr.train.losses.feedback import FeedbackSettings, Learner, adaptive_step
from knarr.train.settings import RecipeError, SettingsError

FED_BACK: Final = "teacher_fed_back.safetensors"
"""File beside teacher.safetensors, which feedback does not change."""


@dataclass(frozen=True)
class FeedbackSetup:
    """Networks of a fit with feedback, and how they are run.

    Args:
        teacher: The teacher as it was fitted; it stays so, a copy of it learns.
        run_teacher: (teacher, *inputs) -> output, see `Learner`.
        run_student: (student, *inputs) -> output.
        to_batch: Makes of a batch what the two are run on: its inputs are those of `run_student`.
        student_loss: Makes of a teacher the loss that the student is validated by.
        settings: Settings of the loop.
        loss: Weights of the student's loss in it.
        heldout: Clips of the quiz where it is "heldout": none that are fitted on, validated on or
            tested.
        file: Gets the weights of the teacher as the fit left it; those of the last epoch, whichever
            student is kept.
    """

    teacher: nn.Module
    run_teacher: Callable[..., TeacherOutput]
    run_student: Callable[..., StudentOutput]
    to_batch: Callable[[Batch], Batch]
    student_loss: Callable[[nn.Module], Loss]
    settings: FeedbackSettings
    loss: EmotionLossSettings
    heldout: Indices
    file: Path


class FeedbackFitter(Fitter):
    """A student and a copy of its teacher. The copy, its optimiser and the student's travel in the
    checkpoint.

    Args:
        fitted: Positional arguments of `Fitter`, whose loss is not used: `setup` has its own.
        setup: The teacher, and how both are run.

    Raises:
        RecipeError: Several processes.
        SettingsError: A single batch, whose next one would be itself.
    """

    def __init__(self, *fitted: Any, setup: FeedbackSetup) -> None:
        super().__init__(*fitted)
        if world_size() > 1:
            raise RecipeError(
                f"student.feedback: steps two networks in turn, which {world_size()} processes cannot share; train without torchrun, "
                "or set it to null"
            )
        if setup.settings.quiz == "next" and self.steps_per_epoch < 2:
            raise SettingsError(
                "feedback.quiz: 'next' of 1 batch is itself; take a smaller batch_size or quiz 'heldout'"
            )
        # Lightning would step one optimiser for the loss of a step; here two are stepped in turn.
        self.automatic_optimization = False
        self.feedback = setup
        # A module of this one, so that its weights travel in the checkpoint.
        self.teacher = copy.deepcopy(setup.teacher).train().requires_grad_(True)
        self.loss = setup.student_loss(self.teacher)

    def on_train_start(self) -> None:
        """Keep dropout and batch-norms of the teacher still, see `adaptive_step`."""
        # Not before here, since Lightning warns of modules in eval mode.
        self.teacher.eval()

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        """Take a step with both networks, and return and log the student's loss."""
        setup = self.feedback
        quiz = None
        if setup.settings.due(self.current_epoch):
            quiz = setup.to_batch(self._quiz(number))
        student_optimiser, teacher_optimiser = self.optimizers()
        stepped = adaptive_step(
            Learner(self.teacher, setup.run_teacher),
            Learner(self.network, setup.run_student),
            setup.to_batch(batch),
            quiz,
            teacher_optimiser,
            student_optimiser,
            setup.settings,
            setup.loss,
        )
        # With optimisers that are stepped by hand, Lightning leaves the schedules alone too.
        if self.settings.schedule == "one_cycle":
            self.lr_schedulers().step()
        values = {"train_loss": stepped.student.total}
        if stepped.feedback is not None:
            values |= {
                "quiz_teacher": stepped.feedback.own,
                "quiz_student": stepped.feedback.student,
            }
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return stepped.student.total

    def on_train_epoch_end(self) -> None:
        """Step a schedule that goes by epochs."""
        if self.settings.schedule == "exponential":
            self.lr_schedulers().step()

    def on_fit_end(self) -> None:
        """Write the teacher as the last epoch left it."""
        save_weights(copy.deepcopy(self.teacher).cpu(), self.feedback.file)

    def configure_optimizers(self) -> Any:
        """Return the student's optimiser with its schedule, and the teacher's, in this order."""
        teacher_optimiser = torch.optim.Adam(
            self.teacher.parameters(), lr=self.feedback.settings.teacher_fb_lr
        )
        return super().configure_optimizers(), {"optimizer": teacher_optimiser}

    def _quiz(self, number: int) -> Batch:
        """Return batch `number` of the held-out clips, over and over, or the one after batch
        `number`, after the last the first.
        """
        # By number and not by an iterator: a resumed epoch asks what an unbroken one does.
        lessons: Epoch = self.trainer.train_dataloader.dataset
        if self.feedback.settings.quiz == "next":
            batch = lessons[(number + 1) % len(lessons)]
        else:
            heldout = Epoch(
                lessons.clips,
                self.feedback.heldout,
                lessons.batch_size,
                seed=lessons.seed,
                epoch=lessons.epoch,
            )
            batch = heldout[number % len(heldout)]
        # Lightning moves the batches of its loader alone.
        moved: Batch = self.transfer_batch_to_device(batch, self.device, 0)
        return moved
