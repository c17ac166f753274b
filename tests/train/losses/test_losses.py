"""Losses of the three published systems: against plain Python and numpy, by gradcheck, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from knarr.train.losses.checks import LossError
from knarr.train.losses.emotion import EmotionLossSettings, emotion_loss
from knarr.train.losses.mskd import (
    HitReading,
    MskdLossSettings,
    hit_consistency,
    hits,
    mskd_loss,
    temporal_consistency,
)
from knarr.train.losses.terms import (
    clipped_kl,
    distillation_loss,
    feature_mse,
    label_loss,
    one_hot_mse,
    softened_kl,
    voting_mse,
)
from knarr.train.networks.emotion import (
    EmotionOutput,
    EmotionSettings,
    EmotionStudent,
    EmotionTeacher,
)
from knarr.train.networks.gsr import GsrStudentSettings, build_gsr_student, run_frames
from knarr.train.networks.heads import StepLogits, decide
from knarr.train.networks.mskd import (
    MskdStudentSettings,
    MskdTeacherSettings,
    SeenSettings,
    build_mskd_student,
    build_mskd_teacher,
)
from knarr.train.networks.spiking_emotions import (
    SpikingEmotionsSettings,
    build_voting_network,
    votes,
)

B, T, C, F = 5, 3, 4, 6
HIT_READINGS: tuple[HitReading, ...] = ("gated_kl", "hit_miss")
LABELS = torch.tensor([0, 3, 1, 2, 1])


def logits(*shape: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    made = np.random.default_rng(seed).normal(size=shape) * scale
    return torch.tensor(made, dtype=torch.float64)


STUDENT, TEACHER = logits(B, C, seed=1), logits(B, C, seed=2)
TEACHER[0, 0] += 9  # right
TEACHER[1, 3] += 9  # right
TEACHER[2, 0] += 9  # wrong: the label is 1
TEACHER[3, 2] += 9  # right
TEACHER[4, 3] += 9  # wrong
STUDENT_STEPS, TEACHER_STEPS = logits(B, T, C, seed=3), logits(B, T, C, seed=4)


# Numbers by plain Python, one clip at a time, without torch and without a stabilised softmax.
def chances(row: list[float], tau: float) -> list[float]:
    powers = [math.exp(z / tau) for z in row]
    return [p / sum(powers) for p in powers]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kl_rows(student: torch.Tensor, teacher: torch.Tensor, tau: float) -> list[float]:
    return [
        divergence(chances(t, tau), chances(s, tau))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]


def entropy_by_hand(z: torch.Tensor, labels: torch.Tensor) -> float:
    rows = zip(z.tolist(), labels.tolist(), strict=True)
    return sum(-math.log(chances(row, 1.0)[y]) for row, y in rows) / len(labels)


def gated_by_hand(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, tau: float
) -> float:
    right = [
        row.index(max(row)) == y for row, y in zip(teacher.tolist(), labels.tolist(), strict=True)
    ]
    rows = kl_rows(student, teacher, tau)
    return tau**2 * sum(kl for kl, h in zip(rows, right, strict=True) if h) / max(1, sum(right))


def hit_miss_by_hand(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, tau: float
) -> float:
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        q_s, q_t = chances(s, tau)[y], chances(t, tau)[y]
        total += divergence([q_t, 1 - q_t], [q_s, 1 - q_s])
    return tau**2 * total / len(labels)


def near(value: torch.Tensor, wanted: float, relative: float = 1e-12) -> None:
    assert value.shape == ()
    assert float(value) == pytest.approx(wanted, rel=relative, abs=1e-15)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_softened_divergence_by_hand(tau: float) -> None:
    wanted = tau**2 * sum(kl_rows(STUDENT, TEACHER, tau)) / B
    assert wanted > 0.1
    near(softened_kl(STUDENT, TEACHER, temperature=tau), wanted)
    steps = [
        tau**2 * sum(kl_rows(STUDENT_STEPS[:, t], TEACHER_STEPS[:, t], tau)) / B / T
        for t in range(T)
    ]
    near(softened_kl(STUDENT_STEPS, TEACHER_STEPS, temperature=tau), sum(steps))


def test_literal_numbers() -> None:
    """Two classes at 3:1 and 1:1: KL = .75 log 1.5 + .25 log .5, and the other way round another number."""
    third = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    even = torch.zeros(1, 2, dtype=torch.float64)
    near(softened_kl(even, third, temperature=1), 0.13081203594113694)
    near(softened_kl(third, even, temperature=1), 0.14384103622589045)
    near(clipped_kl(even, third), 0.13081203594113694)
    near(softened_kl(2 * even, 2 * third, temperature=2), 4 * 0.13081203594113694)
    near(label_loss(third, torch.tensor([1])), math.log(4))
    near(voting_mse(torch.tensor([[0.25, 0.5]], dtype=torch.float64), torch.tensor([0])), 0.40625)
    # With two classes hit and miss are the classes, so both readings of HCKD are one number where the teacher is right.
    label = torch.tensor([0])
    for reading in HIT_READINGS:
        near(
            hit_consistency(even, third, label, temperature=1, reading=reading), 0.13081203594113694
        )


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_hit_consistency_by_hand(tau: float) -> None:
    assert hits(TEACHER, LABELS).tolist() == [True, True, False, True, False]
    gated = gated_by_hand(STUDENT, TEACHER, LABELS, tau)
    binary = hit_miss_by_hand(STUDENT, TEACHER, LABELS, tau)
    assert abs(gated - binary) > 0.01
    near(hit_consistency(STUDENT, TEACHER, LABELS, temperature=tau), gated)
    near(hit_consistency(STUDENT, TEACHER, LABELS, temperature=tau, reading="hit_miss"), binary)


def test_a_wrong_teacher_teaches_hit_and_miss_alone() -> None:
    wrong = (TEACHER.argmax(1) + 1) % C
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    gated = hit_consistency(student, teacher, wrong, temperature=2)
    slopes = torch.autograd.grad(gated, [student, teacher])
    assert float(gated.detach()) == 0
    assert all(bool((slope == 0).all()) for slope in slopes)
    assert float(hit_consistency(STUDENT, TEACHER, wrong, temperature=2, reading="hit_miss")) > 0.01
    # One right clip is the mean over one, not over five.
    one = wrong.clone()
    one[3] = int(TEACHER[3].argmax())
    near(
        hit_consistency(STUDENT, TEACHER, one, temperature=2), 4 * kl_rows(STUDENT, TEACHER, 2.0)[3]
    )


def test_hit_and_miss_sees_the_label_alone() -> None:
    """Other classes' logits may trade places: hit_miss keeps its value, gated_kl does not."""
    labels = TEACHER.argmax(1)
    turned = STUDENT.clone()
    for row, y in zip(turned, labels.tolist(), strict=True):
        others = [c for c in range(C) if c != y]
        row[others] = row[others].roll(1)
    for reading, moves in zip(HIT_READINGS, (True, False), strict=True):
        before, after = (
            float(hit_consistency(s, TEACHER, labels, temperature=2, reading=reading))
            for s in (STUDENT, turned)
        )
        assert (abs(before - after) > 1e-3) is moves


def test_temporal_consistency_by_hand() -> None:
    wanted = (
        sum(16 * sum(kl_rows(STUDENT_STEPS[:, t], TEACHER_STEPS[:, t], 4.0)) / B for t in range(T))
        / T
    )
    near(temporal_consistency(STUDENT_STEPS, TEACHER_STEPS, temperature=4), wanted)
    s, t = STUDENT_STEPS.tolist(), TEACHER_STEPS.tolist()
    total = 0.0
    for b in range(B):
        for at in range(T - 1):
            for c in range(C):
                total += ((s[b][at + 1][c] - s[b][at][c]) - (t[b][at + 1][c] - t[b][at][c])) ** 2
    differences = total / (B * (T - 1) * C)
    assert abs(differences - wanted) > 0.01
    for tau in (1.0, 4.0):
        value = temporal_consistency(
            STUDENT_STEPS, TEACHER_STEPS, temperature=tau, reading="diff_mse"
        )
        near(value, differences)


def test_temporal_readings_see_other_things() -> None:
    """A constant per clip and class is no change over time, but other probabilities."""
    moved = TEACHER_STEPS + logits(B, 1, C, seed=9)
    near(temporal_consistency(moved, TEACHER_STEPS, temperature=2, reading="diff_mse"), 0)
    assert float(temporal_consistency(moved, TEACHER_STEPS, temperature=2)) > 0.1
    # The same number added to all classes of a step changes no probability, but is a change.
    lifted = TEACHER_STEPS + torch.arange(T, dtype=torch.float64)[None, :, None]
    near(temporal_consistency(lifted, TEACHER_STEPS, temperature=2), 0)
    near(temporal_consistency(lifted, TEACHER_STEPS, temperature=2, reading="diff_mse"), 1)
    # And the mean over time cannot tell steps that trade places; both readings can.
    turned = TEACHER_STEPS.roll(1, 1)
    assert torch.allclose(turned.mean(1), TEACHER_STEPS.mean(1))
    for reading in ("step_kl", "diff_mse"):
        assert (
            float(temporal_consistency(turned, TEACHER_STEPS, temperature=2, reading=reading)) > 0.1
        )


def clipped_by_numpy(student: torch.Tensor, teacher: torch.Tensor, clip: float) -> float:
    p_s, p_t = (
        np.clip(np.array([chances(row, 1.0) for row in z.tolist()]), clip, 1)
        for z in (student, teacher)
    )
    return float(np.mean(np.sum(p_t * np.log(p_t / p_s), axis=1)))


def test_clipped_divergence_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    near(clipped_kl(STUDENT, TEACHER), clipped_by_numpy(STUDENT, TEACHER, 1e-7))
    near(clipped_kl(STUDENT, TEACHER), float(softened_kl(STUDENT, TEACHER, temperature=1)))
    plain = float(clipped_kl(STUDENT, TEACHER))
    monkeypatch.setattr("knarr.train.losses.terms.KERAS_CLIP", 0.2)
    assert float(clipped_kl(STUDENT, TEACHER)) != pytest.approx(plain, rel=0.01)
    near(clipped_kl(STUDENT, TEACHER), clipped_by_numpy(STUDENT, TEACHER, 0.2))


def test_clipping_hides_a_sure_wrong_student() -> None:
    """At 40 logits apart the clipped divergence stays at log 1e7 and teaches nothing; the other one does."""
    teacher = torch.tensor([[40.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 40.0]], dtype=torch.float64, requires_grad=True)
    clipped = clipped_kl(student, teacher)
    softened = softened_kl(student, teacher, temperature=1)
    # The other class adds 1e-7 log 1e-7 where it is clipped, and 40 exp(-40) where it is not.
    assert float(clipped.detach()) == pytest.approx(math.log(1e7), rel=1e-5)
    assert float(softened.detach()) == pytest.approx(40, rel=1e-5)
    (of_clipped,) = torch.autograd.grad(clipped, student)
    (of_softened,) = torch.autograd.grad(softened, student)
    assert float(of_clipped.abs().max()) < 1e-12
    assert of_softened.tolist() == [[pytest.approx(-1), pytest.approx(1)]]


def test_label_losses_by_numpy() -> None:
    near(label_loss(STUDENT, LABELS), entropy_by_hand(STUDENT, LABELS))
    one_hot = np.eye(C)[LABELS.numpy()]
    near(one_hot_mse(STUDENT, LABELS), float(np.mean((STUDENT.numpy() - one_hot) ** 2)))
    rates = torch.tensor(np.random.default_rng(5).random((B, C)))
    near(voting_mse(rates, LABELS), float(np.mean((rates.numpy() - one_hot) ** 2)))
    near(voting_mse(torch.tensor(one_hot), LABELS), 0)
    near(voting_mse(torch.tensor(1 - one_hot), LABELS), 1)
    a, b = logits(B, F, seed=6), logits(B, F, seed=7)
    near(
        feature_mse(a, b),
        sum((x - y) ** 2 for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
        / (B * F),
    )


GIVEN: dict[str, tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]] = {
    "softened": (lambda s, t: softened_kl(s, t, temperature=3.0), STUDENT, TEACHER),
    "clipped": (clipped_kl, STUDENT, TEACHER),
    "gated_kl": (lambda s, t: hit_consistency(s, t, LABELS, temperature=3.0), STUDENT, TEACHER),
    "hit_miss": (
        lambda s, t: hit_consistency(s, t, LABELS, temperature=3.0, reading="hit_miss"),
        STUDENT,
        TEACHER,
    ),
    "step_kl": (
        lambda s, t: temporal_consistency(s, t, temperature=3.0),
        STUDENT_STEPS,
        TEACHER_STEPS,
    ),
    "diff_mse": (
        lambda s, t: temporal_consistency(s, t, temperature=3.0, reading="diff_mse"),
        STUDENT_STEPS,
        TEACHER_STEPS,
    ),
    "feature": (feature_mse, STUDENT, TEACHER),
}
"""Losses between student and teacher."""


@pytest.mark.parametrize("name", GIVEN)
def test_gradients_of_both_sides(name: str) -> None:
    loss, student, teacher = GIVEN[name]
    sides = (student.clone().requires_grad_(), (teacher / 3).requires_grad_())
    assert gradcheck(loss, sides)
    assert gradgradcheck(loss, sides)


def test_gradients_of_label_losses() -> None:
    leaf = STUDENT.clone().requires_grad_()
    for loss in (label_loss, one_hot_mse):
        assert gradcheck(lambda z, f=loss: f(z, LABELS), leaf)
        assert gradgradcheck(lambda z, f=loss: f(z, LABELS), leaf)
    rates = STUDENT.sigmoid().requires_grad_()
    assert gradcheck(lambda z: voting_mse(z, LABELS), rates)


@pytest.mark.parametrize("name", GIVEN)
def test_zero_and_flat_where_student_equals_teacher(name: str) -> None:
    loss, _, teacher = GIVEN[name]
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher)
    (slope,) = torch.autograd.grad(value, student)
    assert abs(float(value)) < 1e-14
    assert float(slope.abs().max()) < 1e-14


@pytest.mark.parametrize("name", GIVEN)
def test_a_worse_student_costs_more(name: str) -> None:
    loss, student, teacher = GIVEN[name]
    values = [
        float(loss(teacher + far * (student - teacher), teacher)) for far in (0, 0.25, 0.5, 1, 1.5)
    ]
    assert values == sorted(values)
    assert values[-1] > values[1] > 0
    # A step against the gradient brings the student nearer.
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher)
    (slope,) = torch.autograd.grad(value, leaf)
    assert float(loss(student - 0.01 * slope, teacher)) < float(value)


@pytest.mark.parametrize("name", GIVEN)
def test_order_of_clips_and_dtype_and_purity(name: str) -> None:
    loss, student, teacher = GIVEN[name]
    kept = (student.clone(), teacher.clone())
    value = loss(student, teacher)
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])
    single = loss(student.float(), teacher.float())
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(value), rel=1e-5)
    if name not in ("gated_kl", "hit_miss"):
        near(loss(student.flip(0), teacher.flip(0)), float(value))


def test_order_of_clips_with_labels() -> None:
    for reading in ("gated_kl", "hit_miss"):
        near(
            hit_consistency(
                STUDENT.flip(0), TEACHER.flip(0), LABELS.flip(0), temperature=2, reading=reading
            ),
            float(hit_consistency(STUDENT, TEACHER, LABELS, temperature=2, reading=reading)),
        )


def test_extremes_of_temperature() -> None:
    difference = (STUDENT - TEACHER).numpy()
    centred = difference - difference.mean(1, keepdims=True)
    hot = float((centred**2).sum(1).mean() / (2 * C))
    assert float(softened_kl(STUDENT, TEACHER, temperature=100)) == pytest.approx(hot, rel=0.05)
    small = 0.01 * float(
        np.mean(
            [
                max(s) - s[t.index(max(t))]
                for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)
            ]
        )
    )
    assert small > 0
    assert float(softened_kl(STUDENT, TEACHER, temperature=0.01)) == pytest.approx(small, rel=0.05)
    # In float32 both ends still carry value and gradient.
    for tau, relative in ((0.01, 1e-4), (100.0, 2e-2)):
        losses: list[Callable[..., torch.Tensor]] = [
            lambda s, t, tau=tau: softened_kl(s, t, temperature=tau),
            lambda s, t, tau=tau: hit_consistency(
                s, t, LABELS, temperature=tau, reading="hit_miss"
            ),
        ]
        for loss in losses:
            leaf = STUDENT.float().requires_grad_()
            value = loss(leaf, TEACHER.float())
            (slope,) = torch.autograd.grad(value, leaf)
            assert float(value) == pytest.approx(float(loss(STUDENT, TEACHER)), rel=relative)
            assert bool(torch.isfinite(slope).all())
            assert float(slope.abs().max()) > 1e-4


@pytest.mark.parametrize("tau", [0.0, -1.0, 0.009, 101.0, math.inf, math.nan])
def test_temperatures_refused(tau: float) -> None:
    losses: list[Callable[[], torch.Tensor]] = [
        lambda: softened_kl(STUDENT, TEACHER, temperature=tau),
        lambda: hit_consistency(STUDENT, TEACHER, LABELS, temperature=tau),
        lambda: temporal_consistency(STUDENT_STEPS, TEACHER_STEPS, temperature=tau),
    ]
    for loss in losses:
        with pytest.raises(LossError, match=r"temperature: .*needs 0.01..100; 1 leaves"):
            loss()
    for settings in (MskdLossSettings, EmotionLossSettings):
        with pytest.raises(ValidationError):
            settings(temperature=tau)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", GIVEN)
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    """In every row: gated_kl would leave out a row whose teacher is NaN."""
    loss, student, teacher = GIVEN[name]
    for row in range(B):
        broken = student.clone()
        broken[row].view(-1)[1] = bad
        with pytest.raises(
            LossError, match=r"student.*: 1 of \d+ values are NaN or infinite, the first at"
        ):
            loss(broken, teacher)
        broken = teacher.clone()
        broken[row].view(-1)[1] = bad
        with pytest.raises(
            LossError, match=rf"teacher.*NaN or infinite, the first at \[{row}, .*lower the"
        ):
            loss(student, broken)


def test_values_of_label_losses_that_are_not_finite() -> None:
    broken = STUDENT.clone()
    broken[2, 1] = math.nan
    for loss, name in ((label_loss, "logits"), (one_hot_mse, "outputs"), (voting_mse, "rates")):
        with pytest.raises(LossError, match=rf"^{name}: 1 of 20 values are NaN .* \[2, 1\]"):
            loss(broken, LABELS)
        with pytest.raises(
            LossError, match=rf"^{name}: dtype torch.int64, needs a floating one; convert"
        ):
            loss(torch.ones(B, C, dtype=torch.int64), LABELS)


@pytest.mark.parametrize("name", GIVEN)
def test_shapes_refused(name: str) -> None:
    """Those that torch would broadcast among them."""
    loss, student, teacher = GIVEN[name]
    for wrong in (teacher[:1], teacher[..., :1], teacher[:, :2]):
        if wrong.shape != teacher.shape:
            with pytest.raises(
                LossError, match=r"the student's have shape \(5, .* the teacher's \(.*; "
            ):
                loss(student, wrong)
    for wrong in (student[:0], student[0], student[..., 0].reshape(B, -1, 1, 1)):
        with pytest.raises(LossError, match=r"student.*: shape \(.*\), needs \(B, .*; "):
            loss(wrong, wrong)


def test_single_steps_and_classes_refused() -> None:
    with pytest.raises(
        LossError, match="step_logits: 1 step has no change over time; give two, or take"
    ):
        temporal_consistency(
            STUDENT_STEPS[:, :1], TEACHER_STEPS[:, :1], temperature=1, reading="diff_mse"
        )
    near(
        temporal_consistency(STUDENT_STEPS[:, :1], TEACHER_STEPS[:, :1], temperature=1),
        sum(kl_rows(STUDENT_STEPS[:, 0], TEACHER_STEPS[:, 0], 1.0)) / B,
    )
    with pytest.raises(LossError, match="run both on one draw of as many steps"):
        temporal_consistency(STUDENT_STEPS, TEACHER_STEPS[:, :2], temperature=1)
    with pytest.raises(LossError, match="with 2 classes or more"):
        softened_kl(STUDENT[:, :1], TEACHER[:, :1], temperature=1)
    reading: Any = "both"
    with pytest.raises(
        LossError, match="hckd: reading 'both' is unknown; choose one of gated_kl, hit_miss"
    ):
        hit_consistency(STUDENT, TEACHER, LABELS, temperature=1, reading=reading)
    with pytest.raises(
        LossError, match="tckd: reading 'both' is unknown; choose one of step_kl, diff_mse"
    ):
        temporal_consistency(STUDENT_STEPS, TEACHER_STEPS, temperature=1, reading=reading)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([0, 1, 2, 3, 4]), r"labels: 0..4, needs 0..3; drop clips"),
        (torch.tensor([0, 1, 2, 3, -100]), r"labels: -100..3, needs 0..3"),
        (torch.tensor([0, 1]), r"labels: shape \(2,\) of torch.int64, needs \(5,\)"),
        (LABELS.float(), r"of torch.float32, needs \(5,\) of torch.int64; give class numbers"),
        (torch.eye(C, dtype=torch.int64)[LABELS], r"labels: shape \(5, 4\)"),
    ],
)
def test_labels_refused(labels: torch.Tensor, match: str) -> None:
    for loss in (
        label_loss,
        one_hot_mse,
        lambda z, y: hit_consistency(z, TEACHER, y, temperature=1),
    ):
        with pytest.raises(LossError, match=match):
            loss(STUDENT, labels)
    with pytest.raises(LossError, match=match):
        voting_mse(STUDENT.sigmoid(), labels)


def test_counts_are_no_rates() -> None:
    with pytest.raises(
        LossError, match=r"rates: 0..30, needs 0..1; give mean rates of voters, or use one_hot"
    ):
        voting_mse(torch.tensor([[0.0, 30.0]]), torch.tensor([1]))
    with pytest.raises(LossError, match=r"rates: -0.5..1, needs 0..1"):
        voting_mse(torch.tensor([[-0.5, 1.0]]), torch.tensor([1]))


def steps_of(z: torch.Tensor, steps: torch.Tensor) -> StepLogits:
    return StepLogits(z, steps, ())


MSKD = (steps_of(STUDENT, STUDENT_STEPS), steps_of(TEACHER, TEACHER_STEPS))


def test_mskd_sum_by_hand() -> None:
    cls = entropy_by_hand(STUDENT, LABELS)
    hit, temporal = gated_by_hand(STUDENT, TEACHER, LABELS, 4.0), 0.0
    for t in range(T):
        temporal += 16 * sum(kl_rows(STUDENT_STEPS[:, t], TEACHER_STEPS[:, t], 4.0)) / B / T
    terms = mskd_loss(*MSKD, LABELS, MskdLossSettings(alpha=0.3))
    near(terms.label, cls)
    near(terms.hit, hit)
    near(terms.temporal, temporal)
    near(terms.total, 0.7 * cls + 0.3 * hit + 0.3 * temporal)
    hit_only = mskd_loss(*MSKD, LABELS, MskdLossSettings(alpha=0.3, tckd="off"))
    near(hit_only.total, 0.7 * cls + 0.3 * hit)
    near(hit_only.temporal, 0)
    near(mskd_loss(*MSKD, LABELS, MskdLossSettings(hckd="off")).total, 0.5 * cls + 0.5 * temporal)
    other = mskd_loss(*MSKD, LABELS, MskdLossSettings(hckd="hit_miss", tckd="diff_mse"))
    near(other.hit, hit_miss_by_hand(STUDENT, TEACHER, LABELS, 4.0))
    assert abs(float(other.temporal) - temporal) > 0.01
    near(other.total, (cls + float(other.hit) + float(other.temporal)) / 2)


def test_mskd_with_a_teacher_that_is_always_right_is_plain_distillation() -> None:
    labels = TEACHER.argmax(1)
    for alpha in (0.2, 1.0):
        wanted = float(distillation_loss(STUDENT, TEACHER, labels, alpha=alpha, temperature=3))
        near(
            mskd_loss(
                *MSKD, labels, MskdLossSettings(alpha=alpha, temperature=3, tckd="off")
            ).total,
            wanted,
        )


def test_mskd_without_teacher() -> None:
    alone = MskdLossSettings(alpha=0, hckd="off", tckd="off")
    assert not alone.needs_teacher
    near(mskd_loss(MSKD[0], None, LABELS, alone).total, entropy_by_hand(STUDENT, LABELS))
    near(
        mskd_loss(MSKD[0], None, LABELS, MskdLossSettings(alpha=0)).total,
        entropy_by_hand(STUDENT, LABELS),
    )
    with pytest.raises(
        LossError, match=r"teacher: missing, alpha is 0.5; give one, or set alpha to 0"
    ):
        mskd_loss(MSKD[0], None, LABELS, MskdLossSettings())
    with pytest.raises(
        ValidationError, match=r"alpha: 0.5 of a teacher without terms only scales the loss"
    ):
        MskdLossSettings(hckd="off", tckd="off")


def emotion(seed: int) -> EmotionOutput:
    features = logits(B, F, seed=seed + 20)
    return EmotionOutput(logits(B, 2, seed=seed), torch.cat([features, features], 1), features)


def test_emotion_sum_by_hand() -> None:
    s, t = emotion(1), emotion(2)
    student, labels = EmotionOutput(s.logits, s.matched, s.matched), LABELS % 2
    ce = entropy_by_hand(s.logits, labels)
    kl = clipped_by_numpy(s.logits, t.logits, 1e-7)
    feature = float(np.mean((s.matched.numpy() - t.matched.numpy()) ** 2))
    terms = emotion_loss(student, t, labels, EmotionLossSettings())
    near(terms.ce, ce)
    near(terms.kl, kl)
    near(terms.feature, feature)
    near(terms.total, ce + 0.1 * kl + 1.0 * feature)
    weighed = EmotionLossSettings(ce=0.5, kl=2, feature=0.25, divergence="softened", temperature=3)
    softened = 9 * sum(kl_rows(s.logits, t.logits, 3.0)) / B
    assert abs(softened - kl) > 0.01
    near(emotion_loss(student, t, labels, weighed).total, 0.5 * ce + 2 * softened + 0.25 * feature)
    only = emotion_loss(student, t, labels, EmotionLossSettings(kl=0, feature=0))
    near(only.total, ce)
    near(only.kl, 0)
    near(only.feature, 0)
    with pytest.raises(
        LossError, match=r"features: .*\(5, 12\), the teacher's \(5, 6\); .*`matched`"
    ):
        emotion_loss(
            EmotionOutput(s.logits, s.features, s.matched), t, labels, EmotionLossSettings()
        )


def test_settings_are_frozen_and_checked() -> None:
    for settings in (MskdLossSettings(), EmotionLossSettings()):
        with pytest.raises(ValidationError, match="frozen"):
            settings.temperature = 2.0
    for wrong in ({"alpha": 1.1}, {"alpha": -0.1}, {"alpha": math.nan}, {"tau": 4}, {"hckd": "kl"}):
        with pytest.raises(ValidationError):
            MskdLossSettings(**wrong)
    for weights in ({"kl": -0.1}, {"ce": math.inf}, {"feature": math.nan}, {"divergence": "kl"}):
        with pytest.raises(ValidationError):
            EmotionLossSettings(**weights)
    with pytest.raises(ValidationError, match="all 0, nothing is left to minimise"):
        EmotionLossSettings(ce=0, kl=0, feature=0)
    assert EmotionLossSettings().model_dump() == {
        "ce": 1.0,
        "kl": 0.1,
        "feature": 1.0,
        "divergence": "clipped",
        "temperature": 1.0,
    }


def idle(network: torch.nn.Module) -> list[str]:
    return [
        name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]


def test_the_networks_themselves_learn_from_them() -> None:
    """Each system's own networks, small: the loss is finite and reaches the student, never the frozen teacher."""
    torch.manual_seed(3)
    labels = torch.tensor([0, 1, 2, 1])
    seen = SeenSettings(side_px=16, classes=3, widths=(4, 4, 4, 8))
    teacher = (
        build_mskd_teacher(MskdTeacherSettings(kind="frame_per_step", seen=seen))
        .eval()
        .requires_grad_(False)
    )
    student = build_mskd_student(
        MskdStudentSettings(side_px=16, classes=3, width=0.25, readout="li", norm=True)
    )
    frames, events = torch.rand(4, 3, 3, 16, 16), (torch.rand(4, 3, 3, 16, 16) > 0.5).float()
    for settings in (MskdLossSettings(), MskdLossSettings(hckd="hit_miss", tckd="diff_mse")):
        student.zero_grad()
        terms = mskd_loss(decide(student, frames), teacher(events, frames), labels, settings)
        torch.autograd.backward(terms.total)
        assert idle(student) == []
        assert all(p.grad is None for p in teacher.parameters())

    sizes = EmotionSettings(
        eeg_channels=3,
        samples=64,
        width=8,
        kernel=16,
        heads=2,
        head_width=4,
        positions=8,
        classifier=8,
    )
    tutor, pupil = EmotionTeacher(sizes).eval().requires_grad_(False), EmotionStudent(sizes)
    eeg, gsr = torch.randn(4, 3, 64), torch.randn(4, 1, 64)
    ours = GsrStudentSettings(samples=64, kernel=16, hidden=8)
    spiking = build_gsr_student(ours)
    taught = tutor(eeg, gsr)
    frames = gsr[:, 0].unfold(1, ours.kernel, ours.stride)
    for output in (pupil(gsr), run_frames(spiking, frames, ours)):
        torch.autograd.backward(
            emotion_loss(output, taught, labels % 2, EmotionLossSettings()).total
        )
    # The classifier's chain and every layer of the spiking student; a key's bias cannot matter to a softmax.
    assert not [name for name in idle(pupil) if "key.bias" not in name]
    assert idle(spiking) == []

    voting = SpikingEmotionsSettings(size_px=24, blocks=1, width=4, hidden=8, v_th=0.05, dropout=0)
    voters = build_voting_network(voting)
    ran = votes(voters, torch.rand(4, 5, 2, 24, 24), voting)
    torch.autograd.backward(voting_mse(ran.logits, labels % 2))
    assert idle(voters) == []
