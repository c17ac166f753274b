"""Networks run with parameters other than their own; parameters, gradients and batch-norm statistics stay as they are.

What a student's progress tells its teacher: EmotionKD's adaptive feedback through a temporary student.

    S'(T) = S - eta dL_S(S, T; lesson) / dS
    L_T   = CE(y, p_T) + CE(y, p_S'(T))                                        on a quiz
    dL_T / dT = dCE(y, p_T) / dT - eta (d^2 L_S / dT dS) dCE(y, p_S') / dS'

The paper draws: teach, copy the student, feed back, alternate [paper]; its code has L_T [code]. One plain gradient step and the
second derivative through it are after meta-distillation (Zhou et al., ACL 2022) [reconstruction].

EmotionKD's alternation: which quiz follows a lesson, and the one step that changes teacher and student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from torch.func import functional_call  # type: ignore[attr-defined]  # public, but not in its __all__

from knarr.train.losses.checks import LossError
from knarr.train.losses.emotion import (
    EmotionLoss,
    EmotionLossSettings,
    StudentOutput,
    TeacherOutput,
    emotion_loss,
    teacher_loss,
)
from knarr.train.settings import Count, Frozen, Positive, Rate

Output = TypeVar("Output")
Parameters = dict[str, torch.Tensor]
"""Name in the network -> value."""


def call(network: nn.Module, *inputs: torch.Tensor) -> Any:
    """The network's own forward."""
    return network(*inputs)


@dataclass(frozen=True)
class Learner(Generic[Output]):
    """A network and how it is run.

    Args:
        network: its parameters that require a gradient are what learns; its mode is kept.
        run: (network, *inputs) -> output; for a SequentialState a function over its steps, such as `run_gsr_student`.
    """

    network: nn.Module
    run: Callable[..., Output] = call


class _Bound(nn.Module):
    """A network whose forward is a Learner's run, so that parameters can be put in place for any way of running."""

    def __init__(self, learner: Learner[Any]) -> None:
        super().__init__()
        self.network, self.run = learner.network, learner.run

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.run(self.network, *inputs)


def leaves(network: nn.Module, name: str = "network") -> Parameters:
    """The parameters that require a gradient, as leaves of a new graph: same memory, own gradients.

    Args:
        network: where they are.
        name: of the network, for the error.

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


def run_with(
    learner: Learner[Output], parameters: Mapping[str, torch.Tensor], *inputs: torch.Tensor
) -> Output:
    """The output with other parameters in place, differentiable in them; the network itself is not changed.

    Batch-norms in training mode use the batch's statistics and move a copy of their running ones, which is thrown away. Dropout
    draws from torch's global generator as always.

    Args:
        learner: network and how it is run.
        parameters: what to put in place; others stay the network's own.
        inputs: of `learner.run`.
    """
    buffers = {key: buffer.clone() for key, buffer in learner.network.named_buffers()}
    inside = {f"network.{key}": value for key, value in {**buffers, **parameters}.items()}
    output: Output = functional_call(_Bound(learner), inside, inputs)
    return output


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
class DistillationBatch:
    """A batch.

    Args:
        teacher_inputs, student_inputs: of their `run`, batch first: (eeg, gsr) and (gsr,).
        labels: (B,) int64.
    """

    teacher_inputs: tuple[torch.Tensor, ...]
    student_inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor


@dataclass(frozen=True)
class FeedbackOutcome:
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
    student: Learner[StudentOutput],
    parameters: Parameters,
    taught: TeacherOutput,
    lesson: DistillationBatch,
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
    teacher: Learner[TeacherOutput],
    student: Learner[StudentOutput],
    lesson: DistillationBatch,
    quiz: DistillationBatch,
    settings: FeedbackSettings,
) -> FeedbackOutcome:
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
        of_teacher, of_student = (
            leaves(teacher.network, "teacher"),
            leaves(student.network, "student"),
        )
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
    return FeedbackOutcome(
        terms.own.detach(),
        terms.pupil.detach(),
        own_gradient,
        pupil_gradient,
        {key: value.detach() for key, value in moved.items()},
    )


def _gradient(
    value: torch.Tensor, parameters: Parameters, *, keep_graph: bool = False
) -> Parameters:
    """By name; 0 of a parameter that the value does not depend on."""
    slopes = torch.autograd.grad(
        value, list(parameters.values()), create_graph=keep_graph, allow_unused=True
    )
    # materialize_grads would give zeros that require a gradient.
    pairs = zip(parameters.items(), slopes, strict=True)
    return {key: torch.zeros_like(p) if slope is None else slope for (key, p), slope in pairs}


class Stepped(NamedTuple):
    """What a step saw.

    Args:
        feedback: before the teacher moved; none where there was no quiz.
        student: the student's loss, detached, after the teacher moved and before the student did.
    """

    feedback: FeedbackOutcome | None
    student: EmotionLoss


def quizzed(
    lessons: Iterable[DistillationBatch],
    settings: FeedbackSettings,
    heldout: Iterable[DistillationBatch] | None = None,
) -> Iterator[tuple[DistillationBatch, DistillationBatch]]:
    """Each lesson with its quiz.

    Args:
        lessons: of an epoch.
        settings: quiz="heldout" takes `heldout` in order, over and over; "next" the lesson that follows, after the last the first.
        heldout: read again from its start when it ends; never part of what the student is tested on.

    Raises:
        LossError: no held-out lesson, or a single one whose next would be itself.
    """
    if settings.quiz == "heldout":
        for lesson, quiz in zip(lessons, _endless(heldout), strict=False):
            yield lesson, quiz
        return
    rest = iter(lessons)
    first = before = next(rest, None)
    if first is None or before is None:
        return
    after = next(rest, None)
    if after is None:
        raise LossError("quiz: 'next' of 1 lesson is itself; give two, or take quiz 'heldout'")
    for lesson in chain((after,), rest, (first,)):
        yield before, lesson
        before = lesson


def adaptive_step(
    teacher: Learner[TeacherOutput],
    student: Learner[StudentOutput],
    lesson: DistillationBatch,
    quiz: DistillationBatch | None,
    teacher_optimiser: torch.optim.Optimizer,
    student_optimiser: torch.optim.Optimizer,
    settings: FeedbackSettings,
) -> Stepped:
    """One step of the loop. CHANGES the teacher (by feedback), then the student (against the teacher as it then is).

    The temporary student is thrown away [paper]. The teacher's batch-norm statistics never change here; the student's do, as
    training does. Gradients of both are cleared.

    Args:
        teacher, student: networks and how they are run; put the teacher in eval mode.
        lesson: the student learns on it.
        quiz: the teacher hears of it; without one it stays as it is, as in epochs where no feedback is due.
        teacher_optimiser, student_optimiser: over the parameters of each.
        settings: eta, first_order, loss.

    Raises:
        LossError: what `feedback` and `emotion_loss` raise. Nothing has changed where feedback raised.
    """
    heard = None
    if quiz is not None:
        heard = feedback(teacher, student, lesson, quiz, settings)
        teacher_optimiser.zero_grad()
        for key, slope in heard.gradient.items():
            teacher.network.get_parameter(key).grad = slope
        teacher_optimiser.step()
        teacher_optimiser.zero_grad()
    with torch.no_grad():
        taught = run_with(teacher, {}, *lesson.teacher_inputs)
    learned = student.run(student.network, *lesson.student_inputs)
    loss = emotion_loss(learned, taught, lesson.labels, settings.loss)
    student_optimiser.zero_grad()
    torch.autograd.backward(loss.total)
    student_optimiser.step()
    student_optimiser.zero_grad()
    return Stepped(heard, EmotionLoss(*(term.detach() for term in loss)))


def _endless(heldout: Iterable[DistillationBatch] | None) -> Iterator[DistillationBatch]:
    while True:
        empty = True
        for lesson in heldout or ():
            empty = False
            yield lesson
        if empty:
            raise LossError(
                "heldout: no lesson to quiz on; give a list or a loader that can be read again, or take quiz 'next'"
            )
