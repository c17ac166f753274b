"""A small teacher of skin conductance and heart rate, for Stress-Predict, where EmotionKD's is too
large [reconstruction].

Two convolutions over time leave one token for each step of the student, so that its features can be
matched like EmotionKD's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from knarr.train.datasets.stress.windows import STEP
from knarr.train.networks.emotion import EmotionOutput
from knarr.train.settings import AtLeastTwo, Count, Frozen, ProperFraction


class StressTeacherSettings(Frozen):
    """Sizes and options that decide the layers.

    Args:
        signals: both, or skin conductance alone.
        samples: samples of a window at 4 Hz, whole steps of 12.
        inner, width: features of the two convolutions; a student with as many can be taught by
            features.
        dropout: share that is dropped before the logits.
        classes: rest and stress.
    """

    signals: Literal["eda_hr", "eda"] = "eda_hr"
    samples: Count = 240
    inner: Count = 16
    width: Count = 32
    dropout: ProperFraction = 0.5
    classes: AtLeastTwo = 2

    @model_validator(mode="after")
    def _whole_steps(self) -> StressTeacherSettings:
        # The rest of a step would have no token to be matched with.
        if self.samples % STEP:
            raise ValueError(
                f"samples: {self.samples} are no whole steps of {STEP}; take a multiple of it"
            )
        return self

    @property
    def steps(self) -> int:
        """Count the tokens, one for each step of the student."""
        return self.samples // STEP

    @property
    def features(self) -> int:
        """Count the values of F_T."""
        return self.steps * self.width


class StressTeacher(nn.Module):
    """Convolution, batch-norm, ReLU twice, dropout, linear.

    Args:
        settings: sizes and options.
    """

    def __init__(self, settings: StressTeacherSettings) -> None:
        super().__init__()
        self.settings = settings
        self.channels = 2 if settings.signals == "eda_hr" else 1
        # 4 of 12 samples, then 3 of those: a step. The paddings put each token on the middle of its
        # step.
        self.early = nn.Sequential(
            nn.Conv1d(self.channels, settings.inner, 12, stride=4, padding=4),
            nn.BatchNorm1d(settings.inner),
            nn.ReLU(),
        )
        self.late = nn.Sequential(
            nn.Conv1d(settings.inner, settings.width, 9, stride=3, padding=3),
            nn.BatchNorm1d(settings.width),
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Linear(settings.features, settings.classes)

    def forward(self, signals: Tensor) -> EmotionOutput:
        """Map (B, 2, samples), skin conductance first, to logits and features (B, steps * width),
        before their ReLU.
        """
        tokens = self.late(self.early(signals[:, : self.channels]))
        features = tokens.transpose(1, 2).flatten(1)
        logits = self.classifier(self.dropout(torch.relu(features)))
        return EmotionOutput(logits, features, features)
