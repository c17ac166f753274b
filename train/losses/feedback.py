"""What a student's progress tells its teacher: EmotionKD's adaptive feedback through a temporary student.

    S'(T) = S - eta dL_S(S, T; lesson) / dS
    L_T   = CE(y, p_T) + CE(y, p_S'(T))                                        on a quiz
    dL_T / dT = dCE(y, p_T) / dT - eta (d^2 L_S / dT dS) dCE(y, p_S') / dS'

The paper draws: teach, copy the student, feed back, alternate [paper]; its code has L_T [code]. One plain gradient step and the
second derivative through it are after meta-distillation (Zhou et al., ACL 2022) [reconstruction].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from knarr.train.losses.emotion import EmotionLossSettings, Learned, Taught, emotion_loss, teacher_loss
from knarr.train.losses.functional import Learner, Parameters, leaves, run_with
from knarr.train.settings import Count, Frozen, Positive, Rate


class FeedbackSettings(Frozen):
    """The loop; all values [reconstruction] but the loss's.

    Args:
        eta: learning rate of the temporary student's one step.
        teacher_fb_lr: learning rate for the teacher's optimiser, which the caller makes.
        fb_every_epochs: the teacher is fed back to in every so many epochs, the first included.
        quiz: batches on which the temporary student answers, see `loop.quizzed`.
        first_order: leave out the second derivative; the temporary student then cannot move the teacher.
        loss: the student's.
    """

    eta: Positive = 1e-3
    teacher_fb_lr: Rate = 1e-6
    fb_every_epochs: Count = 1
    quiz: Literal["heldout", "next"] = "heldout"
    first_order: bool = False
    loss: EmotionLossSettings = EmotionLossSettings()

    def due(self, epoch: int) -> bool:
        """The teacher learns in this epoch, counted from 0."""
        return epoch % self.fb_every_epochs == 0


@dataclass(frozen=True)
class Lesson:
    """A batch.

    Args:
        teacher_inputs, student_inputs: of their `run`, batch first: (eeg, gsr) and (gsr,).
        labels: (B,) int64.
    """

    teacher_inputs: tuple[torch.Tensor, ...]
    student_inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor


@dataclass(frozen=True)
class Feedback:
    """What the teacher hears; detached.

    Args:
        own, pupil: CE(y, p_T), CE(y, p_S') on the quiz, 0-d.
        own_gradient, pupil_gradient: of each with respect to the teacher's parameters, by name.
        temporary: the temporary student's parameters, by name.
    """

    own: torch.Tensor
    pupil: torch.Tensor
    own_gradient: Parameters
    pupil_gradient: Parameters
    temporary: Parameters

    @property
    def loss(self) -> torch.Tensor:
        """L_T."""
        return self.own + self.pupil

    @property
    def gradient(self) -> Parameters:
        """Of L_T."""
        return {key: own + self.pupil_gradient[key] for key, own in self.own_gradient.items()}


def temporary_student(
    student: Learner[Learned],
    parameters: Parameters,
    taught: Taught,
    lesson: Lesson,
    *,
    eta: float,
    loss: EmotionLossSettings,
    keep_graph: bool,
) -> Parameters:
    """S' = S - eta dL_S / dS as new tensors; student and `parameters` stay as they are.

    Args:
        student: network and how it is run.
        parameters: S, leaves that require gradients.
        taught: the teacher's output on the lesson.
        lesson: the batch.
        eta: learning rate.
        loss: weights of L_S.
        keep_graph: S' stays differentiable in `parameters` and in `taught`; otherwise it is a leaf without gradient.

    Raises:
        LossError: what `emotion_loss` raises.
    """
    with torch.set_grad_enabled(True):
        learned = run_with(student, parameters, *lesson.student_inputs)
        total = emotion_loss(learned, taught, lesson.labels, loss).total
        slopes = _gradient(total, parameters, keep_graph=keep_graph)
        if keep_graph:
            return {key: value - eta * slopes[key] for key, value in parameters.items()}
    return {key: value.detach() - eta * slopes[key] for key, value in parameters.items()}


def feedback(
    teacher: Learner[Taught],
    student: Learner[Learned],
    lesson: Lesson,
    quiz: Lesson,
    settings: FeedbackSettings,
) -> Feedback:
    """L_T on the quiz and its gradient, after the lesson moved a temporary student. Changes neither network.

    First order gives the same losses, and a pupil_gradient of 0. Networks run in the mode that they are in: put the teacher in eval
    mode for targets without dropout; a student that trains drops on lesson and quiz, each drawn anew. Of a spiking student the
    surrogate gradient is what is differentiated once more.

    Args:
        teacher, student: what is run; gradients are of the teacher's parameters that require one.
        lesson: the temporary student's step is taken on it.
        quiz: L_T is taken on it.
        settings: eta, first_order, loss.

    Raises:
        LossError: no parameter of one requires a gradient, or what the losses raise: NaN of a temporary student asks for a
            smaller eta.
    """
    exact = not settings.first_order
    with torch.set_grad_enabled(True):
        of_teacher, of_student = leaves(teacher.network, "teacher"), leaves(student.network, "student")
        taught = run_with(teacher, of_teacher, *lesson.teacher_inputs)
        moved = temporary_student(
            student,
            of_student,
            taught,
            lesson,
            eta=settings.eta,
            loss=settings.loss,
            keep_graph=exact,
        )
        answers = run_with(teacher, of_teacher, *quiz.teacher_inputs)
        pupil = run_with(student, moved, *quiz.student_inputs)
        terms = teacher_loss(answers.logits, pupil.logits, quiz.labels)
        own_gradient = _gradient(terms.own, of_teacher)
        if exact:
            pupil_gradient = _gradient(terms.pupil, of_teacher)
        else:
            pupil_gradient = {key: torch.zeros_like(value) for key, value in own_gradient.items()}
    return Feedback(
        terms.own.detach(),
        terms.pupil.detach(),
        own_gradient,
        pupil_gradient,
        {key: value.detach() for key, value in moved.items()},
    )


def _gradient(value: torch.Tensor, parameters: Parameters, *, keep_graph: bool = False) -> Parameters:
    """By name; 0 of a parameter that the value does not depend on."""
    slopes = torch.autograd.grad(value, list(parameters.values()), create_graph=keep_graph, allow_unused=True)
    # materialize_grads would give zeros that require a gradient.
    pairs = zip(parameters.items(), slopes, strict=True)
    return {key: torch.zeros_like(p) if slope is None else slope for (key, p), slope in pairs}
