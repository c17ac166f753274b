"""EmotionKD's feedback through a temporary student: finite differences, closed forms, and that nothing else changes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from knarr.train.clips import Batch
from knarr.train.losses.checks import LossError
from knarr.train.losses.emotion import EmotionLossSettings, emotion_loss
from knarr.train.losses.feedback import (
    FeedbackOutcome,
    FeedbackSettings,
    Learner,
    adaptive_step,
    feedback,
    leaves,
    run_with,
    temporary_student,
)
from knarr.train.networks.emotion import EmotionSettings, EmotionStudent, EmotionTeacher
from knarr.train.networks.gsr import GsrStudentSettings, build_gsr_student, run_frames

ETA = 0.3
Array = NDArray[np.float64]
ALL = EmotionLossSettings(ce=0.7, kl=0.9, feature=0.8)


class Out(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor

    @property
    def matched(self) -> torch.Tensor:
        return self.features


class Linear(nn.Module):
    """Logits and features are one matrix times the input."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight, dtype=torch.float64).clone())

    def forward(self, x: torch.Tensor) -> Out:
        z = x @ self.weight.T
        return Out(z, z)


class Tiny(nn.Module):
    """Smooth, with a batch-norm, a parameter that nothing uses and one that does not learn."""

    def __init__(self, inputs: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.norm, self.last = nn.Linear(inputs, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.unused = nn.Parameter(torch.ones(2))
        self.fixed = nn.Parameter(torch.tensor(0.9), requires_grad=False)
        self.double()

    def forward(self, x: torch.Tensor) -> Out:
        features = torch.tanh(self.norm(self.first(x))) * self.fixed
        return Out(self.last(features), features)


def linear(weight: Any) -> Learner[Any]:
    return Learner(Linear(weight))


def lesson(seed: int, clips: int = 5, teacher_inputs: int = 4, student_inputs: int = 3) -> Batch:
    draw = np.random.default_rng(seed)
    taught = torch.tensor(draw.normal(size=(clips, teacher_inputs)))
    inputs = torch.tensor(draw.normal(size=(clips, student_inputs)))
    return Batch(inputs, (taught,), torch.tensor(draw.integers(0, 2, clips)))


LESSON, QUIZ = lesson(1), lesson(2, clips=6)


def tiny() -> tuple[Learner[Any], Learner[Any]]:
    return Learner(Tiny(4, 1)), Learner(Tiny(3, 2))


def settings(
    loss: EmotionLossSettings = ALL, eta: float = ETA, first_order: bool = False
) -> tuple[FeedbackSettings, EmotionLossSettings]:
    """The last two arguments of `feedback` and `adaptive_step`."""
    return FeedbackSettings(eta=eta, first_order=first_order), loss


def entropy(logits: Array, labels: Array) -> float:
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-np.log(chances[np.arange(len(labels)), labels]).mean())


def by_optimiser(
    teacher: nn.Module, student: nn.Module, loss: EmotionLossSettings
) -> tuple[float, float]:
    """CE of teacher and of temporary student on the quiz: copies, backward(), torch's SGD; in no way differentiable."""
    teacher, pupil = copy.deepcopy(teacher), copy.deepcopy(student)
    taught = teacher(*LESSON.teacher_inputs)
    total = emotion_loss(pupil(LESSON.inputs), taught, LESSON.labels, loss).total
    torch.autograd.backward(total)
    torch.optim.SGD(pupil.parameters(), lr=ETA).step()
    labels = QUIZ.labels.numpy()
    with torch.no_grad():
        own, of_pupil = teacher(*QUIZ.teacher_inputs).logits, pupil(QUIZ.inputs).logits
    return entropy(own.numpy(), labels), entropy(of_pupil.numpy(), labels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "loss",
    [
        ALL,
        EmotionLossSettings(),
        EmotionLossSettings(ce=0, kl=1, feature=0, divergence="softened", temperature=2),
    ],
    ids=["all", "published", "softened"],
)
def test_gradient_by_finite_differences(loss: EmotionLossSettings, training: bool) -> None:
    """Of every number of the teacher, through the student's step and its batch-norm."""
    teacher, student = tiny()
    teacher.network.train(training)
    student.network.train(training)
    heard = feedback(teacher, student, LESSON, QUIZ, *settings(loss))
    own, pupil = by_optimiser(teacher.network, student.network, loss)
    assert float(heard.own) == pytest.approx(own, rel=1e-12)
    assert float(heard.student) == pytest.approx(pupil, rel=1e-12)
    assert float(heard.loss) == pytest.approx(own + pupil, rel=1e-12)

    step, seen = 1e-5, 0
    for name, p in teacher.network.named_parameters():
        if not p.requires_grad:
            assert name not in heard.gradient
            continue
        for at in range(p.numel()):
            pair = []
            for sign in (1, -1):
                moved = copy.deepcopy(teacher.network)
                with torch.no_grad():
                    moved.get_parameter(name).view(-1)[at] += sign * step
                pair.append(by_optimiser(moved, student.network, loss))
            slopes = [(up - down) / (2 * step) for up, down in zip(*pair, strict=True)]
            of_pupil = float(heard.student_gradient[name].view(-1)[at])
            assert float(heard.own_gradient[name].view(-1)[at]) == pytest.approx(
                slopes[0], rel=1e-5, abs=1e-9
            )
            assert of_pupil == pytest.approx(slopes[1], rel=1e-4, abs=1e-9)
            assert float(heard.gradient[name].view(-1)[at]) == pytest.approx(
                sum(slopes), rel=1e-4, abs=2e-9
            )
            seen += abs(of_pupil) > 1e-5
    assert seen > 12
    assert heard.gradient["unused"].tolist() == [0, 0]


def test_temporary_student_is_one_plain_step() -> None:
    teacher, student = tiny()
    heard = feedback(teacher, student, LESSON, QUIZ, *settings())
    copied = copy.deepcopy(student.network)
    taught = copy.deepcopy(teacher.network)(*LESSON.teacher_inputs)
    emotion_loss(copied(LESSON.inputs), taught, LESSON.labels, ALL).total.backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(copied.parameters(), lr=ETA).step()
    assert set(heard.temporary) == {n for n, p in copied.named_parameters() if p.requires_grad}
    for name, value in heard.temporary.items():
        assert torch.allclose(value, copied.get_parameter(name), rtol=0, atol=1e-15)
        assert not value.requires_grad
    assert not torch.equal(
        heard.temporary["last.weight"], student.network.get_parameter("last.weight")
    )


@pytest.mark.parametrize("outer", [True, False])
def test_temporary_student_keeps_its_graph_where_asked(outer: bool) -> None:
    """Wherever it is called: as a function of S it is S - eta dL/dS, and of what the teacher gave."""
    teacher, student = tiny()
    start = leaves(student.network)
    logits, features = (
        part.detach().requires_grad_() for part in teacher.network(*LESSON.teacher_inputs)
    )
    made = partial(
        temporary_student, student, start, Out(logits, features), LESSON, eta=ETA, loss=ALL
    )
    with torch.set_grad_enabled(outer):
        kept, plain = made(keep_graph=True), made(keep_graph=False)
    assert all(torch.equal(value, plain[key]) for key, value in kept.items())
    assert not any(value.requires_grad for value in plain.values())
    summed = torch.stack([value.sum() for value in kept.values()]).sum()
    slopes = torch.autograd.grad(summed, [logits, features, start["first.weight"]])
    assert all(bool(slope.any()) for slope in slopes)


def softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


W_T = np.random.default_rng(8).normal(size=(2, 4)) * 0.7
W_S = np.random.default_rng(9).normal(size=(2, 3)) * 0.7
U, X = (part.numpy() for part in (*LESSON.teacher_inputs, LESSON.inputs))
U_QUIZ, X_QUIZ = (part.numpy() for part in (*QUIZ.teacher_inputs, QUIZ.inputs))
HOT, HOT_QUIZ = (np.eye(2)[part.labels.numpy()] for part in (LESSON, QUIZ))


def linear_by_hand(loss: EmotionLossSettings) -> tuple[Array, Array, Array]:
    """S', and the gradients of own and pupil term, for z_T = W_T u, z_S = W_S x, features the logits.

    dL_S/dW_S = (1/B) [ce (p_S - y) + kl (p_S - p_T) + feature (2/C)(z_S - z_T)]' x
    V = dCE/dW_S' = (1/B_q) (p_S' - y_q)' x_q
    pupil: (eta/B) sum_i [kl (diag p_T - p_T p_T') + feature (2/C) I] V x_i u_i'
    """
    z_t, z_s = U @ W_T.T, X @ W_S.T
    p_t, p_s = softmax(z_t), softmax(z_s)
    clips, classes = z_s.shape
    slope = loss.ce * (p_s - HOT) + loss.kl * (p_s - p_t) + loss.feature * 2 / classes * (z_s - z_t)
    moved = W_S - ETA * slope.T @ X / clips
    v = (softmax(X_QUIZ @ moved.T) - HOT_QUIZ).T @ X_QUIZ / len(X_QUIZ)
    pupil = np.zeros_like(W_T)
    for x, u, p in zip(X, U, p_t, strict=True):
        inner = loss.kl * (np.diag(p) - np.outer(p, p)) + loss.feature * 2 / classes * np.eye(
            classes
        )
        pupil += ETA / clips * np.outer(inner @ v @ x, u)
    own = (softmax(U_QUIZ @ W_T.T) - HOT_QUIZ).T @ U_QUIZ / len(U_QUIZ)
    return moved, own, pupil


@pytest.mark.parametrize("divergence", ["clipped", "softened"])
@pytest.mark.parametrize("weights", [(0, 0, 1), (0, 1, 0), (1, 0.1, 1), (0.7, 0.9, 0.8)])
def test_closed_form_of_linear_networks(weights: tuple[float, ...], divergence: Any) -> None:
    loss = EmotionLossSettings(
        ce=weights[0], kl=weights[1], feature=weights[2], divergence=divergence
    )
    moved, own, pupil = linear_by_hand(loss)
    assert np.abs(pupil).max() > 1e-3
    heard = feedback(linear(W_T), linear(W_S), LESSON, QUIZ, *settings(loss))
    np.testing.assert_allclose(heard.temporary["weight"].numpy(), moved, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(heard.own_gradient["weight"].numpy(), own, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        heard.student_gradient["weight"].numpy(), pupil, rtol=1e-11, atol=1e-14
    )


def test_first_order_has_the_losses_but_not_the_pupils_gradient() -> None:
    teacher, student = linear(W_T), linear(W_S)
    exact = feedback(teacher, student, LESSON, QUIZ, *settings())
    first = feedback(teacher, student, LESSON, QUIZ, *settings(first_order=True))
    assert float(first.own) == float(exact.own)
    assert float(first.student) == pytest.approx(float(exact.student), rel=1e-14)
    np.testing.assert_allclose(first.temporary["weight"], exact.temporary["weight"], rtol=1e-14)
    _, own, pupil = linear_by_hand(ALL)
    assert first.student_gradient["weight"].tolist() == [[0.0] * 4] * 2
    np.testing.assert_allclose(first.gradient["weight"], own, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(exact.gradient["weight"], own + pupil, rtol=1e-11, atol=1e-14)
    # A student taught by labels alone carries nothing of its teacher.
    alone = feedback(
        teacher, student, LESSON, QUIZ, *settings(EmotionLossSettings(kl=0, feature=0))
    )
    assert not alone.student_gradient["weight"].any()


def test_feedback_moves_the_teacher_to_where_the_student_answers_better() -> None:
    """A step against the pupil's gradient alone lowers the pupil's loss by what the gradient promises."""
    heard = feedback(linear(W_T), linear(W_S), LESSON, QUIZ, *settings())
    slope = heard.student_gradient["weight"].numpy()
    far = 1e-3 / np.abs(slope).max()
    better = feedback(linear(W_T - far * slope), linear(W_S), LESSON, QUIZ, *settings())
    assert float(heard.student - better.student) == pytest.approx(far * (slope**2).sum(), rel=1e-2)
    # Half the step of the student, about half of its say: the pupil's gradient is eta times a smooth function of eta.
    tenth, hundredth = (
        feedback(linear(W_T), linear(W_S), LESSON, QUIZ, *settings(eta=eta)).student_gradient[
            "weight"
        ]
        for eta in (1e-5, 1e-6)
    )
    assert torch.allclose(tenth, 10 * hundredth, rtol=1e-4)


def frozen_state(network: nn.Module) -> dict[str, Any]:
    """All that a side effect could touch."""
    return {
        "values": {key: value.clone() for key, value in network.state_dict().items()},
        "places": {key: value.data_ptr() for key, value in network.state_dict().items()},
        "gradients": {name: p.grad for name, p in network.named_parameters()},
        "learns": {name: p.requires_grad for name, p in network.named_parameters()},
        "leaf": all(p.is_leaf for p in network.parameters()),
        "modes": {name: module.training for name, module in network.named_modules()},
    }


def assert_untouched(network: nn.Module, before: dict[str, Any]) -> None:
    after = frozen_state(network)
    values, kept = after.pop("values"), dict(before)
    assert all(torch.equal(value, kept["values"][key]) for key, value in values.items())
    del kept["values"]
    assert after == kept


@pytest.mark.parametrize("first_order", [True, False])
def test_nothing_changes(first_order: bool) -> None:
    """Batch-norms are in training mode, where their own call would move the running statistics."""
    teacher, student = tiny()
    before = [frozen_state(teacher.network), frozen_state(student.network)]
    feedback(teacher, student, LESSON, QUIZ, *settings(first_order=first_order))
    run_with(student, {}, LESSON.inputs)
    of_student = leaves(student.network)
    kept = {key: value.detach().clone() for key, value in of_student.items()}
    taught = run_with(teacher, {}, *LESSON.teacher_inputs)
    temporary_student(
        student, of_student, taught, LESSON, eta=1, loss=ALL, keep_graph=not first_order
    )
    assert all(
        torch.equal(value, kept[key]) and value.grad is None for key, value in of_student.items()
    )
    assert_untouched(teacher.network, before[0])
    assert_untouched(student.network, before[1])
    # The plain call does move them, so the test above can fail.
    student.network(LESSON.inputs)
    with pytest.raises(AssertionError):
        assert_untouched(student.network, before[1])


def test_nothing_changes_when_it_raises() -> None:
    teacher, student = tiny()
    before = [frozen_state(teacher.network), frozen_state(student.network)]
    broken = QUIZ._replace(labels=QUIZ.labels + 1)
    with pytest.raises(LossError, match=r"labels: 1..2, needs 0..1"):
        feedback(teacher, student, LESSON, broken, *settings())
    assert_untouched(teacher.network, before[0])
    assert_untouched(student.network, before[1])


def test_same_answer_where_gradients_are_off() -> None:
    teacher, student = tiny()
    wanted = feedback(teacher, student, LESSON, QUIZ, *settings()).gradient
    with torch.no_grad():
        found = feedback(teacher, student, LESSON, QUIZ, *settings()).gradient
        assert not torch.is_grad_enabled()
    assert all(
        torch.equal(found[key], value) and not value.requires_grad for key, value in wanted.items()
    )


def test_a_network_without_parameters_that_learn() -> None:
    teacher, student = tiny()
    teacher.network.requires_grad_(False)
    with pytest.raises(
        LossError, match=r"teacher: no parameter requires a gradient; call requires_grad_\(\)"
    ):
        feedback(teacher, student, LESSON, QUIZ, *settings())
    teacher.network.requires_grad_(True)
    student.network.requires_grad_(False)
    with pytest.raises(LossError, match="student: no parameter requires a gradient"):
        feedback(teacher, student, LESSON, QUIZ, *settings())


def test_a_temporary_student_that_flies_off() -> None:
    teacher, student = linear(W_T), linear(W_S)
    for first_order in (True, False):
        with pytest.raises(
            LossError, match=r"^temporary student's logits: \d+ of 12 values are NaN or inf"
        ):
            feedback(
                teacher,
                student,
                LESSON,
                QUIZ,
                *settings(eta=float("1.7e308"), first_order=first_order),
            )


SIZES = EmotionSettings(
    eeg_channels=3, samples=64, width=8, kernel=16, heads=2, head_width=4, positions=8, classifier=8
)
GSR = GsrStudentSettings(samples=64, kernel=16, hidden=8)


def windows(seed: int) -> Batch:
    torch.manual_seed(seed)
    eeg, gsr = torch.randn(6, 3, 64).double(), torch.randn(6, 1, 64).double()
    return Batch(gsr, (eeg, gsr), torch.tensor([0, 1, 1, 0, 1, 0]))


def emotion_networks(spiking: bool) -> tuple[Learner[Any], Learner[Any]]:
    torch.manual_seed(4)
    teacher: Learner[Any] = Learner(EmotionTeacher(SIZES).double().eval())
    if spiking:
        return teacher, Learner(
            build_gsr_student(GSR).double(),
            lambda network, gsr: run_frames(
                network, gsr[:, 0].unfold(1, GSR.kernel, GSR.stride), GSR
            ),
        )
    return teacher, Learner(EmotionStudent(SIZES).double().eval())


@pytest.mark.parametrize("spiking", [False, True])
def test_emotion_networks_hear_their_students(spiking: bool) -> None:
    """Along a random direction, by finite differences of what the gradient contracts: v' S'(T), v = dCE/dS' held still.

    That is smooth even where the pupil's own loss jumps with its spikes.
    """
    teacher, student = emotion_networks(spiking)
    before = [frozen_state(teacher.network), frozen_state(student.network)]
    taught_on, asked_on, far = windows(1), windows(2), 1e-6
    heard = feedback(
        teacher, student, taught_on, asked_on, *settings(EmotionLossSettings(), eta=0.05)
    )
    assert max(float(slope.abs().max()) for slope in heard.student_gradient.values()) > 1e-6
    assert_untouched(teacher.network, before[0])
    assert_untouched(student.network, before[1])

    pupil = copy.deepcopy(student.network)
    with torch.no_grad():
        for name, value in heard.temporary.items():
            pupil.get_parameter(name).copy_(value)
    answers = student.run(pupil, asked_on.inputs)
    nn.functional.cross_entropy(answers.logits, asked_on.labels).backward()  # type: ignore[no-untyped-call]
    v = {name: p.grad for name, p in pupil.named_parameters()}
    assert all(slope is not None for slope in v.values())

    torch.manual_seed(5)
    direction = {name: torch.randn_like(p) for name, p in teacher.network.named_parameters()}
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(teacher)
        with torch.no_grad():
            for name, p in moved.network.named_parameters():
                p.add_(sign * far * direction[name])
        there = feedback(
            moved,
            student,
            taught_on,
            asked_on,
            *settings(EmotionLossSettings(), 0.05, first_order=True),
        )
        ends.append(sum(float((v[name] * value).sum()) for name, value in there.temporary.items()))
    found = sum(float((heard.student_gradient[name] * d).sum()) for name, d in direction.items())
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * far), rel=1e-5, abs=1e-12)
    assert abs(found) > 1e-7


def sgd(network: nn.Module, lr: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=lr)


@pytest.mark.parametrize("first_order", [True, False])
def test_step_teaches_by_the_new_teacher(first_order: bool) -> None:
    teacher, student = Linear(W_T), Linear(W_S)
    how = settings(first_order=first_order)
    seen = adaptive_step(
        Learner(teacher), Learner(student), LESSON, QUIZ, sgd(teacher, 0.5), sgd(student, 0.1), *how
    )
    _, own, pupil = linear_by_hand(ALL)
    new = W_T - 0.5 * (own + (0 if first_order else pupil))
    np.testing.assert_allclose(teacher.weight.detach(), new, rtol=1e-11)
    z_t, z_s = U @ new.T, X @ W_S.T
    p_t, p_s = softmax(z_t), softmax(z_s)
    slope = ALL.ce * (p_s - HOT) + ALL.kl * (p_s - p_t) + ALL.feature * (z_s - z_t)  # 2 / C is 1
    np.testing.assert_allclose(
        student.weight.detach(), W_S - 0.1 * slope.T @ X / len(X), rtol=1e-11
    )
    assert float(seen.student.feature) == pytest.approx(float(((z_s - z_t) ** 2).mean()), rel=1e-12)
    assert isinstance(seen.feedback, FeedbackOutcome)
    assert not seen.student.total.requires_grad
    assert teacher.weight.grad is None
    assert student.weight.grad is None


def test_step_without_quiz_leaves_the_teacher() -> None:
    teacher, student = tiny()
    before = frozen_state(teacher.network)
    moved = frozen_state(student.network)["values"]
    optimisers = sgd(teacher.network, 1), sgd(student.network, 0.1)
    assert adaptive_step(teacher, student, LESSON, None, *optimisers, *settings()).feedback is None
    assert_untouched(teacher.network, before)
    after = student.network.state_dict()
    assert not torch.equal(after["norm.running_mean"], moved["norm.running_mean"])
    assert not torch.equal(after["last.weight"], moved["last.weight"])
    # With a quiz its parameters move, its batch-norm statistics still do not.
    adaptive_step(teacher, student, LESSON, QUIZ, *optimisers, *settings())
    after = teacher.network.state_dict()
    assert not torch.equal(after["last.weight"], before["values"]["last.weight"])
    assert torch.equal(after["norm.running_mean"], before["values"]["norm.running_mean"])
    assert int(after["norm.num_batches_tracked"]) == 0
    assert torch.equal(after["fixed"], before["values"]["fixed"])


def test_loop_lowers_both_losses() -> None:
    teacher, student = tiny()
    optimisers = sgd(teacher.network, 0.1), sgd(student.network, 0.1)
    seen = [
        adaptive_step(teacher, student, LESSON, QUIZ, *optimisers, *settings()) for _ in range(80)
    ]
    first, last = seen[0].feedback, seen[-1].feedback
    assert first is not None
    assert last is not None
    assert float(last.loss) < 0.8 * float(first.loss)
    assert float(seen[-1].student.total) < 0.9 * float(seen[0].student.total)


def test_settings() -> None:
    made = FeedbackSettings(fb_every_epochs=3)
    assert [epoch for epoch in range(8) if made.due(epoch)] == [0, 3, 6]
    assert (made.eta, made.teacher_fb_lr, made.quiz, made.first_order) == (
        1e-3,
        1e-6,
        "heldout",
        False,
    )
    for wrong in (
        {"eta": 0},
        {"eta": float("nan")},
        {"fb_every_epochs": 0},
        {"quiz": "test"},
        {"lr": 1},
    ):
        with pytest.raises(ValidationError):
            FeedbackSettings(**wrong)
    with pytest.raises(ValidationError, match="frozen"):
        made.eta = 1.0
