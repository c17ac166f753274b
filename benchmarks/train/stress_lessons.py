"""Ways to teach the student of Stress-Predict that stress_predict.py did not try: a smaller share, features, feedback."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from stress_others import TEACHER_EPOCHS, TEACHER_FOLDS, balanced_draw
from stress_student import BATCH, LEARNING_RATE, WEIGHT_DECAY

from knarr.train.clips import split_validation
from knarr.train.datasets.splits import Indices, subject_folds
from knarr.train.datasets.stress_code import DT_S, STEP, Codes
from knarr.train.datasets.stress_windows import StressWindows
from knarr.train.losses.emotion import EmotionLossSettings, emotion_loss
from knarr.train.losses.feedback import FeedbackSettings, Lesson
from knarr.train.losses.functional import Learner, call
from knarr.train.losses.loop import adaptive_step
from knarr.train.networks.emotion_net import EmotionOutput
from knarr.train.networks.gsr_student import GsrStudentSettings, build_gsr_student
from knarr.train.networks.stress_teacher import StressTeacher, StressTeacherSettings
from knarr.train.systems.emotionkd import run_frames
from knarr.train.systems.stress_data import LOUDEST

HIDDEN: Final = 32
"""Of the student's layers and of the teacher's tokens, so that features can be matched."""
EPOCHS: Final = 30
STUDENT: Final = GsrStudentSettings(samples=240, kernel=STEP, stride=STEP, hidden=HIDDEN, depth=1, dt_s=DT_S)
QUIZ: Final = 0.2
"""Of the people fitted on, where the quiz is held out."""


class Way(NamedTuple):
    """One way to teach.

    Args:
        family: what it is compared within.
        loss: of the student.
        crossed: the teacher's logits are those of teachers that were not fitted on the person.
        feedback: its loss is `loss`.
    """

    family: str
    loss: EmotionLossSettings
    crossed: bool = False
    feedback: FeedbackSettings | None = None

    @property
    def name(self) -> str:
        """All of it, short."""
        loss, parts = self.loss, []
        if loss.kl:
            parts.append(f"KL {loss.kl:g}, tau {loss.temperature:g}" + (", crossed" if self.crossed else ""))
        if loss.feature:
            parts.append(f"feature {loss.feature:g}")
        if self.feedback:
            parts.append(f"feedback {self.feedback.quiz}, rate {self.feedback.teacher_fb_lr:g}")
        return "; ".join(parts) or "labels alone"


def _share(alpha: float, temperature: float) -> EmotionLossSettings:
    return EmotionLossSettings(
        ce=1 - alpha, kl=alpha, feature=0, divergence="softened", temperature=temperature
    )


def _fed_back(quiz: str, rate: float, loss: EmotionLossSettings) -> Way:
    settings = FeedbackSettings(eta=LEARNING_RATE, teacher_fb_lr=rate, quiz=quiz, loss=loss)  # type: ignore[arg-type]
    return Way("feedback", loss, feedback=settings)


_MATCHED: Final = EmotionLossSettings(ce=1, kl=0.1, feature=1, divergence="softened")
UNTAUGHT: Final = Way("untaught", EmotionLossSettings(ce=1, kl=0, feature=0))
WAYS: Final = (
    UNTAUGHT,
    *(Way("KL", _share(a, t), crossed=True) for a, t in ((0.1, 1), (0.1, 4), (0.3, 1), (0.3, 4))),
    Way("KL", _share(0.3, 2)),
    *(Way("feature", EmotionLossSettings(ce=1, kl=0, feature=weight)) for weight in (0.03, 0.3)),
    Way("feature", _MATCHED),
    _fed_back("next", 1e-3, _share(0.3, 2)),
    _fed_back("heldout", 1e-3, _share(0.3, 2)),
)
"""Fixed before any was run. The weights of `_MATCHED` are the published code's."""


def both(windows: StressWindows, indices: Indices) -> torch.Tensor:
    """(B, 2, 240), what the teacher hears."""
    return torch.from_numpy(windows.eda_hr[indices].clip(-LOUDEST, LOUDEST))


def fit_teacher(windows: StressWindows, train: Indices, seed: int) -> StressTeacher:
    """As stress_others.fit_teacher, with a token for each step of the student."""
    torch.manual_seed(seed)
    network = StressTeacher(StressTeacherSettings(width=HIDDEN))
    inputs, labels = both(windows, train), windows.labels[train]
    classes = torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for epoch in range(TEACHER_EPOCHS):
        order = torch.from_numpy(balanced_draw(labels, np.random.default_rng([seed, epoch])))
        for chosen in order.split(128):
            optimiser.zero_grad()
            F.cross_entropy(network(inputs[chosen]).logits, classes[chosen]).backward()
            optimiser.step()
    return network.eval()


def said(teacher: StressTeacher, windows: StressWindows, indices: Indices) -> EmotionOutput:
    """What it says of windows."""
    with torch.no_grad():
        output: EmotionOutput = teacher(both(windows, indices))
    return output


def crossed(windows: StressWindows, train: Indices, seed: int) -> torch.Tensor:
    """(len(train), 2) logits: each person's of a teacher that was fitted on others."""
    logits = torch.empty(len(train), 2)
    for fold in subject_folds(windows.subjects[train], TEACHER_FOLDS, seed=0):
        teacher = fit_teacher(windows, train[fold.train], seed)
        logits[fold.test] = said(teacher, windows, train[fold.test]).logits
    return logits


class Taught(NamedTuple):
    """What a teacher of a fold and seed gives, made once for all ways.

    Args:
        teacher: fitted on all of `train`.
        plain: what it says of `train`.
        crossed: see `crossed`.
    """

    teacher: StressTeacher
    plain: EmotionOutput
    crossed: torch.Tensor


def prepare(windows: StressWindows, train: Indices, seed: int) -> Taught:
    """The teachers of a fold and seed."""
    teacher = fit_teacher(windows, train, seed)
    return Taught(teacher, said(teacher, windows, train), crossed(windows, train, seed))


def fit_student(
    windows: StressWindows, codes: Codes, train: Indices, way: Way, seed: int, taught: Taught
) -> snn.SequentialState:
    """A student in eval mode; the same start for all ways, and the same batches for all but those with a held-out quiz."""
    torch.manual_seed(seed)
    network = build_gsr_student(STUDENT)
    inputs = torch.from_numpy(codes.integers[train].astype(np.float32) / np.float32(codes.units))
    signals, labels = both(windows, train), torch.from_numpy(windows.labels[train])
    plain = taught.plain
    logits = taught.crossed if way.crossed else plain.logits

    lessons, quiz = np.arange(len(train)), np.arange(len(train))
    if way.feedback and way.feedback.quiz == "heldout":
        lessons, quiz = split_validation(windows.subjects[train], QUIZ, seed)
    teacher = _copy(taught.teacher)
    of_teacher = torch.optim.Adam(
        teacher.parameters(), lr=way.feedback.teacher_fb_lr if way.feedback else 0.0
    )
    of_student = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-2 * (len(lessons) // 2) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(of_student, LEARNING_RATE, total_steps=steps)
    pupil = Learner(cast(Any, network), _run)

    def lesson(chosen: Indices) -> Lesson:
        return Lesson((signals[chosen],), (inputs[chosen],), labels[chosen])

    for epoch in range(EPOCHS):
        drawn = _batches(lessons[balanced_draw(labels.numpy()[lessons], _rng(seed, epoch))])
        asked = drawn[1:] + drawn[:1]
        if way.feedback and way.feedback.quiz == "heldout":
            own = _batches(quiz[balanced_draw(labels.numpy()[quiz], _rng(seed, epoch))])
            asked = [own[number % len(own)] for number in range(len(drawn))]
        for chosen, other in zip(drawn, asked, strict=True):
            if way.feedback:
                adaptive_step(
                    Learner(teacher, call),
                    pupil,
                    lesson(chosen),
                    lesson(other),
                    of_teacher,
                    of_student,
                    way.feedback,
                )
            else:
                heard = EmotionOutput(logits[chosen], plain.features[chosen], plain.matched[chosen])
                loss = emotion_loss(_run(network, inputs[chosen]), heard, labels[chosen], way.loss).total
                of_student.zero_grad()
                loss.backward()
                of_student.step()
            schedule.step()
    return network.eval()


def classes(network: snn.SequentialState, codes: Codes, indices: Indices) -> npt.NDArray[np.int64]:
    """(len(indices),) what it decides."""
    inputs = torch.from_numpy(codes.integers[indices].astype(np.float32) / np.float32(codes.units))
    with torch.no_grad():
        return np.asarray(_run(network, inputs).logits.argmax(dim=1).numpy())


def _run(network: snn.SequentialState, heard: torch.Tensor) -> Any:
    return run_frames(network, heard, STUDENT)


def _rng(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


def _batches(order: Indices) -> list[Indices]:
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def _copy(teacher: StressTeacher) -> StressTeacher:
    fresh = StressTeacher(teacher.settings)
    fresh.load_state_dict(teacher.state_dict())
    return fresh.eval()
