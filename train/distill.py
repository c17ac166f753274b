"""Losses of knowledge distillation on labels and softened teacher logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_label_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
) -> torch.Tensor:
    """tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)), mean over the batch.

    The factor tau^2 keeps the gradient's size independent of tau (Hinton et al. 2015, arXiv 1503.02531, section 2.1).

    Args:
        student_logits, teacher_logits: (B, classes).
        temperature: tau, above 0.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """(1 - alpha) * cross entropy with the labels + alpha * soft-label loss.

    Args:
        student_logits, teacher_logits: (B, classes).
        labels: (B,) classes.
        alpha: share of the teacher, 0..1.
        temperature: of both softmaxes, above 0.
    """
    hard = F.cross_entropy(student_logits, labels)
    return (1 - alpha) * hard + alpha * soft_label_loss(student_logits, teacher_logits, temperature)
