"""Single terms of losses: distances from labels, and distances of a student from its teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from knarr.train.losses.checks import (
    LossError,
    check_distilled,
    check_finite,
    check_labels,
    check_logits,
    check_temperature,
)

KERAS_CLIP = 1e-7
"""Keras's epsilon, below which its divergence sees no probability [code]."""


def label_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    name: str = "logits",
) -> Tensor:
    """Return the cross entropy with the labels, 0-d: -(1/B) sum_i log softmax(z_i)[y_i].

    SEEN trains with it on the mean membrane [code]; its paper divides by the 7 classes as well
    [paper], which this does not. EmotionKD's code takes it of probabilities; ours takes logits,
    where Keras would clip [reconstruction].

    Args:
        logits: z, (B, classes).
        labels: y, (B,) int64.
        name: what errors call the logits.

    Raises:
        LossError: wrong shapes or labels, logits not finite.
    """
    check_logits(name, logits)
    check_labels(labels, logits)
    return F.cross_entropy(logits, labels)


def one_hot_mse(outputs: Tensor, labels: Tensor, *, name: str = "outputs") -> Tensor:
    """Return the mean square error of one-hot labels, 0-d: (1 / (B C)) sum (o_ic - [c = y_i])^2.

    Args:
        outputs: o, (B, C).
        labels: y, (B,) int64.
        name: what errors call the outputs.

    Raises:
        LossError: wrong shapes or labels, outputs not finite.
    """
    check_logits(name, outputs)
    check_labels(labels, outputs)
    wanted = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    return (outputs - wanted).square().mean()


def voting_mse(rates: Tensor, labels: Tensor) -> Tensor:
    """Return `one_hot_mse` of the voters' mean rates: Spiking Emotions' loss [paper], 0-d.

    The paper does not say whether it sums or averages over classes; this averages, as PLIF's code
    does [reconstruction].

    Args:
        rates: mean spikes per voter and step, (B, classes), 0..1: logits of
            `spiking_emotions.votes`.
        labels: (B,) int64.

    Raises:
        LossError: wrong shapes or labels, or rates outside 0..1, which are counts or logits.
    """
    # Counts and logits have the same shape; only their range gives them away.
    check_logits("rates", rates)
    low = float(rates.detach().min())
    high = float(rates.detach().max())
    if low < 0 or high > 1:
        raise LossError(
            f"rates: {low:g}..{high:g}, needs 0..1; give mean rates of voters, or use one_hot_mse for other outputs"
        )
    return one_hot_mse(rates, labels, name="rates")


def feature_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return EmotionKD's feature loss, 0-d: (1 / (B F)) sum (F_S - F_T)^2 over clips and features
    [code].

    Args:
        student_features, teacher_features: (B, F), the teacher's in the student's size.

    Raises:
        LossError: other shapes, or values that are not finite.
    """
    shape = tuple(student_features.shape)
    if len(shape) != 2 or 0 in shape:
        raise LossError(
            f"student_features: shape {shape}, needs (B, features), none 0; flatten them"
        )
    # torch would broadcast other shapes against each other without a word.
    if student_features.shape != teacher_features.shape:
        raise LossError(
            f"features: the student's have shape {shape}, the teacher's {tuple(teacher_features.shape)}; give the "
            "teacher's in the student's size (`matched`)"
        )
    check_finite("student_features", student_features)
    check_finite("teacher_features", teacher_features)
    return (student_features - teacher_features).square().mean()


def softened_kl(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), a mean over clips and steps, 0-d.

    The factor tau^2 keeps the gradient's size independent of tau (Hinton et al. 2015, arXiv
    1503.02531, section 2.1). With it a large tau gives (1 / 2C) sum_c (d_c - mean d)^2 of
    d = z_S - z_T, a small one approaches tau * (max z_S - z_S[argmax z_T]).

    Args:
        student_logits, teacher_logits: z, (B, classes) or (B, T, classes).
        temperature: tau, 0.01..100.

    Raises:
        LossError: shapes that differ or are none of these, logits not finite, tau out of range.
    """
    check_temperature(temperature)
    check_distilled(student_logits, teacher_logits, dims=3 if student_logits.dim() == 3 else 2)
    classes = student_logits.shape[-1]
    # Steps become rows, so that "batchmean" divides by clips and steps alike; log_target keeps the
    # digits of probabilities near 0.
    return temperature**2 * F.kl_div(
        F.log_softmax(student_logits.reshape(-1, classes) / temperature, dim=1),
        F.log_softmax(teacher_logits.reshape(-1, classes) / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def clipped_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return EmotionKD's divergence, 0-d: (1/B) sum p_T log(p_T / p_S), p = max(softmax(z), 1e-7)
    [code].

    Args:
        student_logits, teacher_logits: z, (B, classes).

    Raises:
        LossError: shapes that differ or are no (B, classes), logits not finite.
    """
    check_distilled(student_logits, teacher_logits)
    # A clipped probability passes no gradient: a student that is sure and wrong learns nothing
    # here, where `softened_kl` teaches it. Clipped ones do not sum to 1 either, so that the value
    # can fall below 0 by about classes * KERAS_CLIP.
    p_student, p_teacher = (
        z.softmax(1).clamp_min(KERAS_CLIP) for z in (student_logits, teacher_logits)
    )
    return (p_teacher * (p_teacher.log() - p_student.log())).sum(1).mean()


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    temperature: float,
) -> Tensor:
    """Return (1 - alpha) * cross entropy with the labels + alpha * `softened_kl`, 0-d.

    Args:
        student_logits, teacher_logits: (B, classes).
        labels: (B,) int64.
        alpha: share of the teacher, 0..1.
        temperature: tau of both softmaxes, 0.01..100.

    Raises:
        LossError: what the two terms raise.
    """
    hard = label_loss(student_logits, labels, name="student_logits")
    soft = softened_kl(student_logits, teacher_logits, temperature=temperature)
    return (1 - alpha) * hard + alpha * soft
