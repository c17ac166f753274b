"""How far a student's class probabilities are from its teacher's: softened logits, or probabilities clipped as Keras does."""

from __future__ import annotations

import torch

from knarr.train.distill import soft_label_loss
from knarr.train.losses.checks import check_logits, check_pair, check_temperature

KERAS_CLIP = 1e-7
"""Keras's epsilon, below which its divergence sees no probability [code]."""


def softened_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), mean over the batch, and over steps where there are any; 0-d.

    `soft_label_loss` behind checks. With its factor tau^2 a large tau gives (1 / 2C) sum_c (d_c - mean d)^2 of d = z_S - z_T,
    a small one approaches tau * (max z_S - z_S[argmax z_T]).

    Args:
        student_logits, teacher_logits: z, (B, classes) or (B, T, classes).
        temperature: tau, 0.01..100.

    Raises:
        LossError: shapes that differ or are none of these, logits not finite, tau out of range.
    """
    check_temperature(temperature)
    dims = 3 if student_logits.dim() == 3 else 2
    check_logits("student_logits", student_logits, dims)
    check_pair("logits", student_logits, teacher_logits)
    check_logits("teacher_logits", teacher_logits, dims)
    classes = student_logits.shape[-1]
    return soft_label_loss(
        student_logits.reshape(-1, classes), teacher_logits.reshape(-1, classes), temperature
    )


def clipped_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, *, clip: float = KERAS_CLIP
) -> torch.Tensor:
    """(1/B) sum_i sum_c p_T log(p_T / p_S), p = max(softmax(z), clip), 0-d: EmotionKD's divergence [code].

    What is clipped gives no gradient: a student that is sure and wrong learns nothing here, where `softened_kl` teaches it. It
    can fall below 0 by about classes * clip, since clipped probabilities do not sum to 1.

    Args:
        student_logits, teacher_logits: z, (B, classes).
        clip: least probability.

    Raises:
        LossError: shapes that differ or are no (B, classes), logits not finite.
    """
    check_logits("student_logits", student_logits)
    check_pair("logits", student_logits, teacher_logits)
    check_logits("teacher_logits", teacher_logits)
    p_student, p_teacher = (z.softmax(1).clamp_min(clip) for z in (student_logits, teacher_logits))
    return (p_teacher * (p_teacher.log() - p_student.log())).sum(1).mean()
