"""Losses that need labels alone: cross entropy, and the mean square error of votes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from knarr.train.losses.checks import LossError, check_finite, check_labels, check_logits


def label_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, divide_by_classes: bool = False, name: str = "logits"
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


def one_hot_mse(outputs: torch.Tensor, labels: torch.Tensor, *, name: str = "outputs") -> torch.Tensor:
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
        raise LossError(f"student_features: shape {shape}, needs (B, features), none 0; flatten them")
    if student_features.shape != teacher_features.shape:
        raise LossError(
            f"features: the student's have shape {shape}, the teacher's {tuple(teacher_features.shape)}; give the "
            "teacher's in the student's size (`matched`)"
        )
    check_finite("student_features", student_features)
    check_finite("teacher_features", teacher_features)
    return (student_features - teacher_features).square().mean()
