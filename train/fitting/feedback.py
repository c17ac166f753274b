"""Fitting a student whose teacher learns too: each step of a fit is one `adaptive_step`, and a killed one resumes with both."""

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
from knarr.train.fitting.fit import Fitter, Loss, new_optimiser
from knarr.train.losses.emotion import StudentOutput, TeacherOutput
from knarr.train.losses.feedback import DistillationBatch, FeedbackSettings, Learner, adaptive_step
from knarr.train.settings import Fit, RecipeError, SettingsError

FED_BACK: Final = "teacher_fed_back.safetensors"
"""Beside teacher.safetensors, which feedback does not change."""


@dataclass(frozen=True)
class FeedbackSetup:
    """Who teaches whom.

    Args:
        teacher: as it was fitted; it stays so, a copy of it learns.
        teach, learn: how teacher and student are run, see `Learner`.
        lesson: a batch as they hear it.
        loss: of a teacher: what the student is validated by beside it.
        feedback: of the loop.
        heldout: clips of the quiz where it is "heldout": none that are fitted on, validated on or tested.
        file: gets the weights of the teacher as the fit left it; those of the last epoch, whichever student is kept.
    """

    teacher: nn.Module
    teach: Callable[..., TeacherOutput]
    learn: Callable[..., StudentOutput]
    lesson: Callable[[Batch], DistillationBatch]
    loss: Callable[[nn.Module], Loss]
    feedback: FeedbackSettings
    heldout: Indices
    file: Path


class FeedbackFitter(Fitter):
    """A student and a copy of its teacher. The copy, its optimiser and the student's travel in the checkpoint.

    Args:
        network, loss, settings, classes, clips, validation_clips: see `Fitter`; `loss` is not used, the school has its own.
        school: see there.

    Raises:
        RecipeError: several processes.
        SettingsError: a single batch, whose next one would be itself.
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
        school: FeedbackSetup,
    ) -> None:
        super().__init__(network, loss, settings, classes, clips, validation_clips)
        if world_size() > 1:
            raise RecipeError(
                f"student.feedback: steps two networks in turn, which {world_size()} processes cannot share; train without torchrun, "
                "or set it to null"
            )
        if school.feedback.quiz == "next" and self.steps_per_epoch < 2:
            raise SettingsError(
                "feedback.quiz: 'next' of 1 batch is itself; take a smaller batch_size or quiz 'heldout'"
            )
        self.automatic_optimization = False
        self.school = school
        self.teacher = copy.deepcopy(school.teacher).train().requires_grad_(True)
        self.loss = school.loss(self.teacher)

    def on_train_start(self) -> None:
        # Its dropout and batch-norms stay still, see `adaptive_step`; not before here, since Lightning warns of modules in eval mode.
        self.teacher.eval()

    def training_step(self, batch: Batch, number: int) -> torch.Tensor:
        school = self.school
        quiz = (
            school.lesson(self._quiz(number)) if school.feedback.due(self.current_epoch) else None
        )
        of_student, of_teacher = self.optimizers()
        stepped = adaptive_step(
            Learner(self.teacher, school.teach),
            Learner(self.network, school.learn),
            school.lesson(batch),
            quiz,
            of_teacher,
            of_student,
            school.feedback,
        )
        if self.settings.schedule == "one_cycle":
            self.lr_schedulers().step()
        values = {"train_loss": stepped.student.total}
        if stepped.feedback is not None:
            values |= {"quiz_teacher": stepped.feedback.own, "quiz_pupil": stepped.feedback.student}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return stepped.student.total

    def on_train_epoch_end(self) -> None:
        if self.settings.schedule == "exponential":
            self.lr_schedulers().step()

    def on_fit_end(self) -> None:
        save_weights(copy.deepcopy(self.teacher).cpu(), self.school.file)

    def configure_optimizers(self) -> Any:
        of_student = new_optimiser(self.network, self.settings)
        of_teacher = torch.optim.Adam(
            self.teacher.parameters(), lr=self.school.feedback.teacher_fb_lr
        )
        schedule = self._schedule(of_student)
        student = (
            {"optimizer": of_student}
            if schedule is None
            else {"optimizer": of_student, "lr_scheduler": schedule}
        )
        return student, {"optimizer": of_teacher}

    def _quiz(self, number: int) -> Batch:
        """Batch `number` of the held-out clips, over and over, or the one after the lesson, after the last the first.

        It goes by number, so that a resumed epoch asks what an unbroken one does.
        """
        lessons = self._lessons
        if self.school.feedback.quiz == "next":
            batch = lessons[(number + 1) % len(lessons)]
        else:
            own = Epoch(
                lessons.clips,
                self.school.heldout,
                lessons.batch_size,
                seed=lessons.seed,
                epoch=lessons.epoch,
            )
            batch = own[number % len(own)]
        moved: Batch = self.transfer_batch_to_device(batch, self.device, 0)
        return moved

    @property
    def _lessons(self) -> Epoch:
        """The batches of this epoch, as its loader has them."""
        lessons: Epoch = self.trainer.train_dataloader.dataset
        return lessons
