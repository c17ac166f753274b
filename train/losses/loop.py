"""EmotionKD's alternation: which quiz follows a lesson, and the one step that changes teacher and student."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch

from knarr.train.losses.checks import LossError
from knarr.train.losses.emotion import EmotionLoss, Learned, Taught, emotion_loss
from knarr.train.losses.feedback import Feedback, FeedbackSettings, Lesson, feedback
from knarr.train.losses.functional import Learner, run_with


class Stepped(NamedTuple):
    """What a step saw.

    Args:
        feedback: before the teacher moved; none where there was no quiz.
        student: the student's loss, detached, after the teacher moved and before the student did.
    """

    feedback: Feedback | None
    student: EmotionLoss


def quizzed(
    lessons: Iterable[Lesson], settings: FeedbackSettings, heldout: Iterable[Lesson] | None = None
) -> Iterator[tuple[Lesson, Lesson]]:
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
    teacher: Learner[Taught],
    student: Learner[Learned],
    lesson: Lesson,
    quiz: Lesson | None,
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


def _endless(heldout: Iterable[Lesson] | None) -> Iterator[Lesson]:
    while True:
        empty = True
        for lesson in heldout or ():
            empty = False
            yield lesson
        if empty:
            raise LossError(
                "heldout: no lesson to quiz on; give a list or a loader that can be read again, or take quiz 'next'"
            )
