"""MSKD's loss, L = (1 - alpha) L_cls + alpha L_HCKD + alpha L_TCKD, one alpha for both [paper].

The paper names hit and temporal consistency [paper], its formulas are not public: all readings here
are ours [reconstruction]. p(z) = softmax(z / tau), [q, 1 - q] with q = p(z)[y] is the probability
of hit and miss.

hit       gated_kl   tau^2 sum_i h_i KL(p(z_T) || p(z_S)) / max(1, sum h)
          hit_miss   tau^2 (1/B) sum_i KL([q, 1 - q] of T || of S)
temporal  step_kl    tau^2 (1/x) sum_t KL(p(z_T[t]) || p(z_S[t])), a mean over the batch
          diff_mse   mean over clips, steps, classes of (dz_S - dz_T)^2, without tau

where h_i is 1 where the teacher is right, and dz[t] = z[t + 1] - z[t].

gated_kl asks for all of a right teacher's probabilities and nothing of a wrong one; hit_miss for
the label's alone, right or wrong. step_kl fixes every step's probabilities; diff_mse their changes:
a constant added to a student's logits costs nothing.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from knarr.train.losses.checks import (
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    LossError,
    check_distilled,
    check_labels,
    check_temperature,
)
from knarr.train.losses.terms import label_loss, softened_kl
from knarr.train.networks.heads import StepLogits
from knarr.train.settings import Frozen

HitReading = Literal["gated_kl", "hit_miss"]
TemporalReading = Literal["step_kl", "diff_mse"]


class MskdLossSettings(Frozen):
    """Weights and readings of the terms; their values are [reconstruction].

    Args:
        alpha: share of the teacher's terms, 0..1; 0 trains on labels alone.
        temperature: tau of both terms. Membranes are small, so look whether the softmax is flat.
        hckd, tckd: readings of the two consistencies, see the module; "off" leaves a term out, for
            ablations.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=4.0, ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)
    hckd: Literal["gated_kl", "hit_miss", "off"] = "gated_kl"
    tckd: Literal["step_kl", "diff_mse", "off"] = "step_kl"

    @model_validator(mode="after")
    def _something_to_weigh(self) -> MskdLossSettings:
        if self.alpha > 0 and self.hckd == self.tckd == "off":
            raise ValueError(
                f"alpha: {self.alpha} of a teacher without terms only scales the loss; set it to 0"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        """Tell whether some term with a weight reads the teacher."""
        return self.alpha > 0


class MskdLoss(NamedTuple):
    """The sum and its terms before weighting, 0-d each; terms left out are 0.

    Args:
        total: what is minimised.
        label, hit, temporal: L_cls, L_HCKD, L_TCKD.
    """

    total: Tensor
    label: Tensor
    hit: Tensor
    temporal: Tensor


def mskd_loss(
    student: StepLogits,
    teacher: StepLogits | None,
    labels: Tensor,
    settings: MskdLossSettings,
) -> MskdLoss:
    """Return MSKD's loss; with alpha 0 it is the cross entropy, and no term reads the teacher.

    Args:
        student, teacher: outputs for the same clips; no teacher where alpha is 0.
        labels: (B,) int64.
        settings: weights and readings.

    Raises:
        LossError: a teacher is missing, or what the terms raise.
    """
    label = label_loss(student.logits, labels, name="student_logits")
    hit = temporal = torch.zeros_like(label)
    if not settings.needs_teacher:
        return MskdLoss(label, label, hit, temporal)
    if teacher is None:
        raise LossError(f"teacher: missing, alpha is {settings.alpha}; give one, or set alpha to 0")
    tau = settings.temperature
    if settings.hckd != "off":
        hit = hit_consistency(
            student.logits, teacher.logits, labels, temperature=tau, reading=settings.hckd
        )
    if settings.tckd != "off":
        temporal = temporal_consistency(
            student.step_logits, teacher.step_logits, temperature=tau, reading=settings.tckd
        )
    total = (1 - settings.alpha) * label + settings.alpha * hit + settings.alpha * temporal
    return MskdLoss(total, label, hit, temporal)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Mark the clips whose largest logit is the label's, (B,) bool; of equal logits the first
    counts.
    """
    return logits.argmax(1) == labels


def hit_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    reading: HitReading = "gated_kl",
) -> Tensor:
    """Return L_HCKD, 0-d. gated_kl is 0, with gradients of 0, where the teacher is never right.

    Args:
        student_logits, teacher_logits: decisions on whole clips, (B, classes).
        labels: (B,) int64.
        temperature: tau, 0.01..100.
        reading: name of the formula, see the module.

    Raises:
        LossError: wrong shapes or labels, logits not finite, tau out of range, an unknown reading.
    """
    _check_reading("hckd", reading, get_args(HitReading))
    check_temperature(temperature)
    check_distilled(student_logits, teacher_logits)
    check_labels(labels, student_logits)
    if reading == "hit_miss":
        student = _hit_miss(student_logits, labels, temperature)
        teacher = _hit_miss(teacher_logits, labels, temperature)
        return softened_kl(student, teacher, temperature=temperature)
    right = hits(teacher_logits, labels)
    if not bool(right.any()):
        # Zeros that keep their gradients: a loss of this term alone can be differentiated in any
        # batch.
        return (student_logits - student_logits).sum() + (teacher_logits - teacher_logits).sum()
    return softened_kl(student_logits[right], teacher_logits[right], temperature=temperature)


def temporal_consistency(
    student_step_logits: Tensor,
    teacher_step_logits: Tensor,
    *,
    temperature: float,
    reading: TemporalReading = "step_kl",
) -> Tensor:
    """Return L_TCKD, 0-d. Step t of the student pairs with step t of the teacher.

    Args:
        student_step_logits, teacher_step_logits: (B, T, classes), of one T.
        temperature: tau, 0.01..100; diff_mse does not use it.
        reading: name of the formula, see the module; diff_mse needs two steps.

    Raises:
        LossError: other shapes, logits not finite, tau out of range, one step for diff_mse, an
            unknown reading.
    """
    _check_reading("tckd", reading, get_args(TemporalReading))
    check_temperature(temperature)
    cure = "run both on one draw of as many steps"
    check_distilled(student_step_logits, teacher_step_logits, "step_", 3, cure)
    if reading == "step_kl":
        return softened_kl(student_step_logits, teacher_step_logits, temperature=temperature)
    if student_step_logits.shape[1] < 2:
        raise LossError(
            "step_logits: 1 step has no change over time; give two, or take reading 'step_kl'"
        )
    student_changes = student_step_logits.diff(dim=1)
    return (student_changes - teacher_step_logits.diff(dim=1)).square().mean()


def _hit_miss(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return (B, 2) logits whose softmax at tau is [q, 1 - q]."""
    scaled = logits / temperature
    label = labels.unsqueeze(1)
    # logsumexp of all classes but the label's; with 1 - q itself a sure network would lose its
    # digits.
    others = scaled.scatter(1, label, -torch.inf).logsumexp(1)
    own = scaled.gather(1, label)[:, 0]
    # The softmax divides by tau once more, so multiply by it here.
    return temperature * torch.stack([own, others], 1)


def _check_reading(name: str, reading: str, known: tuple[str, ...]) -> None:
    if reading not in known:
        raise LossError(f"{name}: reading {reading!r} is unknown; choose one of {', '.join(known)}")
