"""Losses that need labels alone: cross entropy, and the mean square error of votes.

Losses of knowledge distillation on labels and softened teacher logits.

How far a student's class probabilities are from its teacher's: softened logits, or probabilities clipped as Keras does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from knarr.train.losses.checks import (
    LossError,
    check_finite,
    check_labels,
    check_logits,
    check_pair,
    check_temperature,
)


def label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    divide_by_classes: bool = False,
    name: str = "logits",
) -> torch.Tensor:
    """-(1/B) sum_i log softmax(z_i)[y_i], of logits, 0-d.

    SEEN trains with it on the mean membrane [code]; its paper divides by the 7 classes as well [paper]. EmotionKD's code takes it
    of probabilities; ours takes logits, where Keras would clip [reconstruction].

    Args:
        logits: z, (B, classes).
        labels: y, (B,) int64.
        divide_by_classes: the paper's reading.
        name: of the logits, for errors.

    Raises:
        LossError: wrong shapes or labels, logits not finite.
    """
    check_logits(name, logits)
    check_labels(labels, logits)
    entropy = F.cross_entropy(logits, labels)
    return entropy / logits.shape[1] if divide_by_classes else entropy


def one_hot_mse(
    outputs: torch.Tensor, labels: torch.Tensor, *, name: str = "outputs"
) -> torch.Tensor:
    """(1 / (B C)) sum_i sum_c (o_ic - [c = y_i])^2, 0-d.

    Args:
        outputs: o, (B, C).
        labels: y, (B,) int64.
        name: of the outputs, for errors.

    Raises:
        LossError: wrong shapes or labels, outputs not finite.
    """
    check_logits(name, outputs)
    check_labels(labels, outputs)
    wanted = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    return (outputs - wanted).square().mean()


def voting_mse(rates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`one_hot_mse` of the groups' mean rates: Spiking Emotions' loss [paper], 0-d.

    The paper does not say whether it sums or averages over classes; this averages, as PLIF's code does [reconstruction].

    Args:
        rates: mean spikes per voter and step, (B, classes), 0..1: logits of `spiking_emotions.votes`.
        labels: (B,) int64.

    Raises:
        LossError: wrong shapes or labels, or rates outside 0..1, which are counts or logits.
    """
    check_logits("rates", rates)
    low, high = float(rates.detach().min()), float(rates.detach().max())
    if low < 0 or high > 1:
        raise LossError(
            f"rates: {low:g}..{high:g}, needs 0..1; give mean rates of voters, or use one_hot_mse for other outputs"
        )
    return one_hot_mse(rates, labels, name="rates")


def feature_mse(student_features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """(1 / (B F)) sum (F_S - F_T)^2, 0-d: EmotionKD's feature loss, a mean over clips and features [code].

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
    if student_features.shape != teacher_features.shape:
        raise LossError(
            f"features: the student's have shape {shape}, the teacher's {tuple(teacher_features.shape)}; give the "
            "teacher's in the student's size (`matched`)"
        )
    check_finite("student_features", student_features)
    check_finite("teacher_features", teacher_features)
    return (student_features - teacher_features).square().mean()


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
