"""Hit and temporal consistency of MSKD. The paper names both [paper], its formulas are not public: all readings here are ours
[reconstruction].

p(z) = softmax(z / tau), [q, 1 - q] with q = p(z)[y] is the probability of hit and miss.

hit       gated_kl   tau^2 sum_i h_i KL(p(z_T) || p(z_S)) / max(1, sum h)    h_i = 1 where the teacher is right
          hit_miss   tau^2 (1/B) sum_i KL([q, 1 - q] of T || of S)
temporal  step_kl    tau^2 (1/x) sum_t KL(p(z_T[t]) || p(z_S[t]))            mean over the batch
          diff_mse   mean over clips, steps, classes of (dz_S - dz_T)^2      dz[t] = z[t + 1] - z[t], no tau

gated_kl asks for all of a right teacher's probabilities and nothing of a wrong one; hit_miss for the label's alone, right or wrong.
step_kl fixes every step's probabilities; diff_mse their changes: a constant added to a student's logits costs nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from knarr.train.losses.checks import (
    LossError,
    check_labels,
    check_logits,
    check_pair,
    check_temperature,
)
from knarr.train.losses.label import soft_label_loss, softened_kl

HitReading = Literal["gated_kl", "hit_miss"]
TemporalReading = Literal["step_kl", "diff_mse"]


def hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) bool: the largest of (B, classes) logits is the label's; of equal ones the first counts."""
    return logits.argmax(1) == labels


def hit_consistency(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    reading: HitReading = "gated_kl",
) -> torch.Tensor:
    """HCKD, 0-d; formulas above. gated_kl is 0, with gradients of 0, where the teacher is never right.

    Args:
        student_logits, teacher_logits: of whole clips, (B, classes).
        labels: (B,) int64.
        temperature: tau, 0.01..100.
        reading: which formula.

    Raises:
        LossError: wrong shapes or labels, logits not finite, tau out of range, an unknown reading.
    """
    _check_reading("hckd", reading, get_args(HitReading))
    check_temperature(temperature)
    check_logits("student_logits", student_logits)
    check_pair("logits", student_logits, teacher_logits)
    check_logits("teacher_logits", teacher_logits)
    check_labels(labels, student_logits)
    if reading == "hit_miss":
        student, teacher = (
            _hit_miss(z, labels, temperature) for z in (student_logits, teacher_logits)
        )
        return soft_label_loss(student, teacher, temperature)
    right = hits(teacher_logits, labels)
    if not bool(right.any()):
        return (student_logits - student_logits).sum() + (teacher_logits - teacher_logits).sum()
    return soft_label_loss(student_logits[right], teacher_logits[right], temperature)


def temporal_consistency(
    student_step_logits: torch.Tensor,
    teacher_step_logits: torch.Tensor,
    *,
    temperature: float,
    reading: TemporalReading = "step_kl",
) -> torch.Tensor:
    """TCKD, 0-d; formulas above. Step t of the student pairs with step t of the teacher.

    Args:
        student_step_logits, teacher_step_logits: (B, T, classes), of one T.
        temperature: tau, 0.01..100; diff_mse does not use it.
        reading: which formula; diff_mse needs two steps.

    Raises:
        LossError: other shapes, logits not finite, tau out of range, one step for diff_mse, an unknown reading.
    """
    _check_reading("tckd", reading, get_args(TemporalReading))
    check_temperature(temperature)
    check_logits("student_step_logits", student_step_logits, 3)
    check_pair(
        "step_logits",
        student_step_logits,
        teacher_step_logits,
        "run both on one draw of as many steps",
    )
    check_logits("teacher_step_logits", teacher_step_logits, 3)
    if reading == "step_kl":
        return softened_kl(student_step_logits, teacher_step_logits, temperature=temperature)
    if student_step_logits.shape[1] < 2:
        raise LossError(
            "step_logits: 1 step has no change over time; give two, or take reading 'step_kl'"
        )
    return (student_step_logits.diff(dim=1) - teacher_step_logits.diff(dim=1)).square().mean()


def _hit_miss(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, 2) logits whose softmax at tau is [q, 1 - q]: tau * (z_y / tau, logsumexp of the other z / tau)."""
    scaled = logits / temperature
    label = labels.unsqueeze(1)
    others = scaled.scatter(1, label, -torch.inf).logsumexp(1)
    return temperature * torch.stack([scaled.gather(1, label)[:, 0], others], 1)


def _check_reading(name: str, reading: str, known: tuple[str, ...]) -> None:
    if reading not in known:
        raise LossError(f"{name}: reading {reading!r} is unknown; choose one of {', '.join(known)}")
