"""EmotionKD's loss of a student: labels, the teacher's probabilities, the teacher's features."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from pydantic import Field, model_validator
from torch import Tensor

from knarr.train.losses.checks import LEAST_TEMPERATURE, MOST_TEMPERATURE
from knarr.train.losses.terms import clipped_kl, feature_mse, label_loss, softened_kl
from knarr.train.settings import Frozen


class StudentOutput(Protocol):
    """Parts of a student's output that a loss reads; EmotionOutput and GsrOutput have them."""

    @property
    def logits(self) -> Tensor:
        """Give (B, classes), before any softmax."""

    @property
    def features(self) -> Tensor:
        """Give F_S, (B, features)."""


class TeacherOutput(Protocol):
    """Parts of a teacher's output that a loss reads."""

    @property
    def logits(self) -> Tensor:
        """Give (B, classes), before any softmax."""

    @property
    def matched(self) -> Tensor:
        """Give F_T in the student's size, (B, features)."""


class EmotionLossSettings(Frozen):
    """Weights of CE + 0.1 KL + 1.0 MSE, which the code marks as final [code].

    Args:
        ce, kl, feature: weights, 0 or more; a term of weight 0 is not computed.
        divergence: "clipped", of probabilities, as the code's, which has no temperature; "softened"
            is Hinton's.
        temperature: tau of "softened".
    """

    ce: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    kl: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    feature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    divergence: Literal["clipped", "softened"] = "clipped"
    temperature: float = Field(default=1.0, ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)

    @model_validator(mode="after")
    def _something_to_minimise(self) -> EmotionLossSettings:
        if not (self.ce or self.kl or self.feature):
            raise ValueError(
                "ce, kl, feature: all 0, nothing is left to minimise; give one a weight"
            )
        return self


class EmotionLoss(NamedTuple):
    """The sum and its terms before weighting, 0-d each; terms of weight 0 are 0.

    Args:
        total: what is minimised.
        ce, kl, feature: terms.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    feature: Tensor


def emotion_loss(
    student: StudentOutput,
    teacher: TeacherOutput,
    labels: Tensor,
    settings: EmotionLossSettings,
) -> EmotionLoss:
    """Return the student's loss, ce * CE(y, p_S) + kl * KL(p_T || p_S) + feature * MSE(F_T, F_S)
    [code].

    The code's penalty on convolution kernels (`knarr.train.networks.emotion.conv_l2`) is not in it;
    add it.

    Args:
        student, teacher: outputs for the same windows.
        labels: (B,) int64.
        settings: weights, kind of divergence.

    Raises:
        LossError: wrong shapes or labels, values not finite.
    """
    # A term without weight is left out, not multiplied by 0: it may be infinite, or have other
    # shapes.
    ce = kl = feature = student.logits.new_zeros(())
    if settings.ce:
        ce = label_loss(student.logits, labels, name="student_logits")
    if settings.kl and settings.divergence == "clipped":
        kl = clipped_kl(student.logits, teacher.logits)
    elif settings.kl:
        kl = softened_kl(student.logits, teacher.logits, temperature=settings.temperature)
    if settings.feature:
        feature = feature_mse(student.features, teacher.matched)
    total = settings.ce * ce + settings.kl * kl + settings.feature * feature
    return EmotionLoss(total, ce, kl, feature)
