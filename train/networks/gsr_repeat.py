"""The paper's skin-conductance student with spiking cells for its rectifiers, the window shown several times [reconstruction].

It keeps softmax attention, layer-norms and score gates, so it CANNOT be exported: `to_nir` refuses it, no chip runs it. It shows
what spikes alone cost in accuracy; `gsr_student` is the one to deploy.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from knarr.train.networks.emotion_layers import EmotionSettings
from knarr.train.networks.emotion_net import EmotionOutput, EmotionStudent
from knarr.train.networks.gsr_student import PLIF
from knarr.train.networks.neurons import BoxCell, Neuron
from knarr.train.settings import Count, Frozen, Positive


class GsrRepeatSettings(Frozen):
    """What decides the student's layers.

    Args:
        network: of the paper's student.
        neuron: in place of each rectifier of head and feed-forward layers.
        steps: how often a window is shown.
        dt_s: time step, seconds; only names a scale, nothing here is exported.
    """

    network: EmotionSettings = EmotionSettings()
    neuron: Neuron = PLIF
    steps: Count = 8
    dt_s: Positive = 0.001


class GsrRepeat(nn.Module):
    """See above.

    Args:
        settings: see GsrRepeatSettings.
    """

    def __init__(self, settings: GsrRepeatSettings) -> None:
        super().__init__()
        self.settings = settings
        self.student = EmotionStudent(settings.network, partial(BoxCell, settings.neuron, settings.dt_s))

    def forward(self, gsr: torch.Tensor) -> EmotionOutput:
        """(B, 1, samples) -> logits and features, means over the steps."""
        state, shown = None, []
        for _ in range(self.settings.steps):
            output, state = self.student.step(gsr, state)
            shown.append(output)
        logits, features, matched = (torch.stack(part).mean(0) for part in zip(*shown, strict=True))
        return EmotionOutput(logits, features, matched)
