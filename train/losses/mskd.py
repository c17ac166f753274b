"""MSKD's loss, L = (1 - alpha) L_cls + alpha L_HCKD + alpha L_TCKD, one alpha for both [paper]."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from knarr.train.losses.checks import LEAST_TEMPERATURE, MOST_TEMPERATURE, LossError
from knarr.train.losses.consistency import hit_consistency, temporal_consistency
from knarr.train.losses.label import label_loss
from knarr.train.networks.heads import StepLogits
from knarr.train.settings import Frozen


class MskdLossSettings(Frozen):
    """Weights and readings; their values are [reconstruction].

    Args:
        alpha: share of the teacher's terms, 0..1; 0 trains on labels alone.
        temperature: tau of both terms. Membranes are small, so look whether the softmax is flat.
        hckd, tckd: readings, see `consistency`; "off" leaves the term out, for ablations.
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
        """Some term reads the teacher and has a weight."""
        return self.alpha > 0


class MskdLoss(NamedTuple):
    """The sum and its terms before weighting, 0-d each; terms left out are 0.

    Args:
        total: what is minimised.
        label, hit, temporal: L_cls, L_HCKD, L_TCKD.
    """

    total: torch.Tensor
    label: torch.Tensor
    hit: torch.Tensor
    temporal: torch.Tensor


def mskd_loss(
    student: StepLogits,
    teacher: StepLogits | None,
    labels: torch.Tensor,
    settings: MskdLossSettings,
) -> MskdLoss:
    """MSKD's loss; see above. With alpha 0 it is the cross entropy, and no term reads the teacher.

    Args:
        student, teacher: of the same clips; no teacher where alpha is 0.
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
    if settings.hckd != "off":
        hit = hit_consistency(
            student.logits,
            teacher.logits,
            labels,
            temperature=settings.temperature,
            reading=settings.hckd,
        )
    if settings.tckd != "off":
        temporal = temporal_consistency(
            student.step_logits,
            teacher.step_logits,
            temperature=settings.temperature,
            reading=settings.tckd,
        )
    total = (1 - settings.alpha) * label + settings.alpha * hit + settings.alpha * temporal
    return MskdLoss(total, label, hit, temporal)
