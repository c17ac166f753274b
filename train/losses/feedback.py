"""EmotionKD's adaptive feedback: a temporary student tells the teacher what a lesson did.

    S'(T) = S - eta dL_S(S, T; lesson) / dS
    L_T   = CE(y, p_T) + CE(y, p_S'(T))                                        on a quiz
    dL_T / dT = dCE(y, p_T) / dT - eta (d^2 L_S / dT dS) dCE(y, p_S') / dS'

The paper draws: teach, copy the student, feed back, alternate [paper]; its code has L_T with equal
weights [code]. One plain gradient step and the second derivative through it are after
meta-distillation (Zhou et al., ACL 2022) [reconstruction].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from knarr.train.clips import Batch
from knarr.train.losses.checks import LossError
from knarr.train.losses.emotion import (
    EmotionLoss,
    EmotionLossSettings,
    StudentOutput,
    TeacherOutput,
    emotion_loss,
)
from knarr.train.losses.terms import label_loss
from knarr.train.settings import Count, Frozen, Positive, Rate

Output = TypeVar("Output")
Parameters = dict[str, Tensor]
"""Name in the network -> value."""


def call(network: nn.Module, *inputs: Tensor) -> Any:
    """Run a network by its own forward."""
    return network(*inputs)


@dataclass(frozen=True)
class Learner(Generic[Output]):
    """A network and how it is run.

    Args:
        network: its parameters that require a gradient are what learns; its mode is kept.
        run: (network, *inputs) -> output; for a SequentialState a function over its steps, such as
            `run_gsr_student`.
    """

    network: nn.Module
    run: Callable[..., Output] = call


class _Bound(nn.Module):
    """A network whose forward is a Learner's run, since functional_call knows no other way to run
    it.
    """

    def __init__(self, learner: Learner[Any]) -> None:
        super().__init__()
        self.network = learner.network
        self.run = learner.run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self.network, *inputs)


def leaves(network: nn.Module, name: str = "network") -> Parameters:
    """Return the parameters that require a gradient as leaves of a new graph: same memory, own
    gradients.

    Args:
        network: where they are.
        name: what the error calls the network.

    Raises:
        LossError: none does.
    """
    found = {
        key: p.detach().requires_grad_() for key, p in network.named_parameters() if p.requires_grad
    }
    if not found:
        raise LossError(
            f"{name}: no parameter requires a gradient; call requires_grad_() on what learns"
        )
    return found


def run_with(learner: Learner[Output], parameters: Mapping[str, Tensor], *inputs: Tensor) -> Output:
    """Run a network with other parameters in place, differentiable in them; the network itself is
    not changed.

    Dropout draws from torch's global generator as always.

    Args:
        learner: network and how it is run.
        parameters: what to put in place; others stay the network's own.
        inputs: what `learner.run` takes.
    """
    # Batch-norms in training mode would move their running statistics: they move copies, thrown
    # away.
    buffers = {key: buffer.clone() for key, buffer in learner.network.named_buffers()}
    inside = {f"network.{key}": value for key, value in {**buffers, **parameters}.items()}
    return functional_call(_Bound(learner), inside, inputs)


class FeedbackSettings(Frozen):
    """Settings of the loop; all values are [reconstruction].

    Args:
        eta: learning rate of the temporary student's one step.
        teacher_fb_lr: learning rate for the teacher's optimiser, which the caller makes.
        fb_every_epochs: feedback changes the teacher in every so many epochs, the first included.
        quiz: batches on which the temporary student answers: "heldout" clips that nobody is fitted
            on, or the "next" batch.
        first_order: leave out the second derivative; the temporary student then cannot move the
            teacher.
    """

    eta: Positive = 1e-3
    teacher_fb_lr: Rate = 1e-6
    fb_every_epochs: Count = 1
    quiz: Literal["heldout", "next"] = "heldout"
    first_order: bool = False

    def due(self, epoch: int) -> bool:
        """Tell whether the teacher learns in this epoch, counted from 0."""
        return epoch % self.fb_every_epochs == 0


@dataclass(frozen=True)
class FeedbackOutcome:
    """Losses on a quiz and their gradients for the teacher; detached.

    Args:
        own, student: CE(y, p_T), CE(y, p_S') on the quiz, 0-d.
        own_gradient, student_gradient: gradient of each with respect to the teacher's parameters,
            by name.
        temporary: the temporary student's parameters, by name.
    """

    own: Tensor
    student: Tensor
    own_gradient: Parameters
    student_gradient: Parameters
    temporary: Parameters

    @property
    def loss(self) -> Tensor:
        """Return L_T."""
        return self.own + self.student

    @property
    def gradient(self) -> Parameters:
        """Return the gradient of L_T by the teacher's parameters."""
        return {key: own + self.student_gradient[key] for key, own in self.own_gradient.items()}


def temporary_student(
    student: Learner[StudentOutput],
    parameters: Parameters,
    taught: TeacherOutput,
    lesson: Batch,
    *,
    eta: float,
    loss: EmotionLossSettings,
    keep_graph: bool,
) -> Parameters:
    """Return S' = S - eta dL_S / dS as new tensors; student and `parameters` stay as they are.

    Args:
        student: network and how it is run.
        parameters: S, leaves that require gradients.
        taught: the teacher's output on the lesson.
        lesson: the batch of the step.
        eta: learning rate.
        loss: weights of L_S.
        keep_graph: whether S' stays differentiable in `parameters` and in `taught`; otherwise it is
            a leaf without gradient.

    Raises:
        LossError: what `emotion_loss` raises.
    """
    # A caller may have gradients off, as for a validation; this step needs its own all the same.
    with torch.set_grad_enabled(True):
        learned = run_with(student, parameters, lesson.inputs)
        total = emotion_loss(learned, taught, lesson.labels, loss).total
        slopes = _gradient(total, parameters, keep_graph=keep_graph)
    with torch.set_grad_enabled(keep_graph):
        return {key: value - eta * slopes[key] for key, value in parameters.items()}


def feedback(
    teacher: Learner[TeacherOutput],
    student: Learner[StudentOutput],
    lesson: Batch,
    quiz: Batch,
    settings: FeedbackSettings,
    loss: EmotionLossSettings,
) -> FeedbackOutcome:
    """Take L_T on the quiz and its gradient, after the lesson moved a temporary student. Changes
    neither network.

    First order gives the same losses, and a student_gradient of 0. Networks run in the mode that
    they are in: put the teacher in eval mode for targets without dropout; a student that trains
    drops on lesson and quiz, each drawn anew. For a spiking student the surrogate gradient is what
    is differentiated once more.

    Args:
        teacher, student: networks and how they are run; gradients are of the teacher's parameters
            that require one.
        lesson: the temporary student's step is taken on it.
        quiz: L_T is taken on it.
        settings: eta, first_order.
        loss: weights of the student's loss.

    Raises:
        LossError: no parameter of one requires a gradient, or what the losses raise: NaN of a
            temporary student asks for a smaller eta.
    """
    exact = not settings.first_order
    with torch.set_grad_enabled(True):
        teacher_leaves = leaves(teacher.network, "teacher")
        student_leaves = leaves(student.network, "student")
        moved = temporary_student(
            student,
            student_leaves,
            run_with(teacher, teacher_leaves, *lesson.teacher_inputs),
            lesson,
            eta=settings.eta,
            loss=loss,
            keep_graph=exact,
        )
        answers = run_with(teacher, teacher_leaves, *quiz.teacher_inputs).logits
        student_answers = run_with(student, moved, quiz.inputs).logits
        own = label_loss(answers, quiz.labels, name="teacher_logits")
        of_student = label_loss(student_answers, quiz.labels, name="temporary student's logits")
        own_gradient = _gradient(own, teacher_leaves)
        # Without the second derivative the temporary student does not depend on the teacher.
        student_gradient = {key: torch.zeros_like(p) for key, p in own_gradient.items()}
        if exact:
            student_gradient = _gradient(of_student, teacher_leaves)
    # Detached, or the outcome would keep both graphs alive.
    temporary = {key: value.detach() for key, value in moved.items()}
    return FeedbackOutcome(
        own.detach(), of_student.detach(), own_gradient, student_gradient, temporary
    )


def _gradient(value: Tensor, parameters: Parameters, *, keep_graph: bool = False) -> Parameters:
    """Return the gradient by name; 0 for a parameter that the value does not depend on."""
    # A parameter that the value does not depend on, such as one of an unused head, is no error.
    slopes = torch.autograd.grad(
        value, list(parameters.values()), create_graph=keep_graph, allow_unused=True
    )
    # materialize_grads would give zeros that require a gradient.
    pairs = zip(parameters.items(), slopes, strict=True)
    return {key: torch.zeros_like(p) if slope is None else slope for (key, p), slope in pairs}


class Stepped(NamedTuple):
    """Losses that a step took.

    Args:
        feedback: outcome before the teacher moved; None where there was no quiz.
        student: the student's loss, detached, after the teacher moved and before the student did.
    """

    feedback: FeedbackOutcome | None
    student: EmotionLoss


def adaptive_step(
    teacher: Learner[TeacherOutput],
    student: Learner[StudentOutput],
    lesson: Batch,
    quiz: Batch | None,
    teacher_optimiser: torch.optim.Optimizer,
    student_optimiser: torch.optim.Optimizer,
    settings: FeedbackSettings,
    loss: EmotionLossSettings,
) -> Stepped:
    """Take one step of the loop. CHANGES the teacher (by feedback), then the student (against the
    new teacher).

    The temporary student is thrown away [paper]. The teacher's batch-norm statistics never change
    here; the student's do, as training does. Gradients of both are cleared.

    Args:
        teacher, student: networks and how they are run; put the teacher in eval mode.
        lesson: the student learns on it.
        quiz: the teacher is fed back on it; without one it stays as it is, as in epochs where no
            feedback is due.
        teacher_optimiser, student_optimiser: over the parameters of each.
        settings: eta, first_order.
        loss: weights of the student's loss.

    Raises:
        LossError: what `feedback` and `emotion_loss` raise. Nothing has changed where feedback
            raised.
    """
    outcome = None
    if quiz is not None:
        outcome = feedback(teacher, student, lesson, quiz, settings, loss)
        teacher_optimiser.zero_grad()
        for key, slope in outcome.gradient.items():
            # The names are the network's own: `leaves` took them from there.
            teacher.network.get_parameter(key).grad = slope
        teacher_optimiser.step()
        # Gradients that stay would keep their memory until the next epoch in which feedback is due.
        teacher_optimiser.zero_grad()
    with torch.no_grad():
        # run_with, not run: a teacher in training mode must not move its batch-norm statistics.
        taught = run_with(teacher, {}, *lesson.teacher_inputs)
    learned = student.run(student.network, lesson.inputs)
    terms = emotion_loss(learned, taught, lesson.labels, loss)
    student_optimiser.zero_grad()
    torch.autograd.backward(terms.total)
    student_optimiser.step()
    student_optimiser.zero_grad()
    return Stepped(outcome, EmotionLoss(*(term.detach() for term in terms)))
