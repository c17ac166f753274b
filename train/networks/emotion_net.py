"""EmotionKD: a teacher on EEG and skin conductance, and the paper's own student on skin conductance alone.

2,046,210 and 993,090 parameters. Defects of the published code are not here, but for the option `bug_compat_imf`.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from knarr.train.networks.emotion_layers import (
    Activation,
    EmotionSettings,
    Encoder,
    Head,
    Rectifier,
    Score,
    as_keras,
)


class EmotionOutput(NamedTuple):
    """What distillation reads.

    Args:
        logits: (B, classes), before any softmax.
        features: F_S or F_T before the classifier, (B, tokens * width), twice as many of the teacher.
        matched: the same in the student's size; a student's own features.
    """

    logits: torch.Tensor
    features: torch.Tensor
    matched: torch.Tensor


class Classifier(nn.Module):
    """Dropout, three linear layers in a row and the logits; as in the code, nothing between them."""

    def __init__(self, settings: EmotionSettings, features: int) -> None:
        super().__init__()
        inner = settings.classifier
        self.dropout = nn.Dropout(settings.classifier_dropout)
        self.layers = nn.Sequential(
            nn.Linear(features, inner),
            nn.Linear(inner, inner),
            nn.Linear(inner, inner),
            nn.Linear(inner, settings.classes),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(self.dropout(features))
        return logits


class EmotionStudent(nn.Module):
    """Skin conductance: head, encoder, three score-gated depths summed, classifier.

    Args:
        settings: see there.
        activation: in place of the rectifiers of head and feed-forward layers.
    """

    def __init__(self, settings: EmotionSettings, activation: Activation = Rectifier) -> None:
        super().__init__()
        self.settings = settings
        self.head = Head(settings, 1, activation)
        self.encoder = Encoder(settings, activation)
        self.scores = nn.ModuleList(
            Score(settings.width, settings.score_pool) for _ in range(settings.blocks)
        )
        self.classifier = Classifier(settings, settings.tokens * settings.width)
        as_keras(self)

    def forward(self, gsr: torch.Tensor) -> EmotionOutput:
        """(B, 1, samples) -> logits and F_S, (B, tokens * width)."""
        return self.step(gsr)[0]

    def step(self, gsr: torch.Tensor, state: Any = None) -> tuple[EmotionOutput, Any]:
        """One presentation of a window; the state is that of the activations."""
        before = (None, None) if state is None else state
        tokens, of_head = self.head(gsr, before[0])
        depths, of_encoder = self.encoder(tokens, before[1])
        scored = torch.stack([score(depth) for score, depth in zip(self.scores, depths, strict=True)])
        features = scored.sum(0).flatten(1)
        return EmotionOutput(self.classifier(features), features, features), (of_head, of_encoder)


class Fusion(nn.Module):
    """IMF(Ea, Ga, Eb, Gb) = g1(Ea; Ga) + g2(Eb; Gb), g a score gate, ; along tokens."""

    def __init__(self, settings: EmotionSettings) -> None:
        super().__init__()
        self.bug_compat = settings.bug_compat_imf
        self.first, self.second = (Score(settings.width, settings.score_pool) for _ in range(2))

    def forward(
        self, eeg_a: torch.Tensor, gsr_a: torch.Tensor, eeg_b: torch.Tensor, gsr_b: torch.Tensor
    ) -> torch.Tensor:
        """(B, tokens, width) each -> (B, 2 * tokens, width)."""
        later = torch.cat([eeg_a if self.bug_compat else eeg_b, gsr_b], 1)
        fused: torch.Tensor = self.first(torch.cat([eeg_a, gsr_a], 1)) + self.second(later)
        return fused


class EmotionTeacher(nn.Module):
    """EEG and skin conductance: a head and an encoder each, two fusions of neighbouring depths summed, classifier.

    Args:
        settings: see there.
    """

    def __init__(self, settings: EmotionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.eeg_head, self.gsr_head = Head(settings, settings.eeg_channels), Head(settings, 1)
        self.eeg_encoder, self.gsr_encoder = Encoder(settings), Encoder(settings)
        self.early, self.late = Fusion(settings), Fusion(settings)
        self.classifier = Classifier(settings, 2 * settings.tokens * settings.width)
        if settings.feat_proj == "linear_tokens":
            self.projection = nn.Linear(2 * settings.tokens, settings.tokens)
        as_keras(self)

    def forward(self, eeg: torch.Tensor, gsr: torch.Tensor) -> EmotionOutput:
        """(B, eeg_channels, samples), (B, 1, samples) -> logits, F_T (B, 2 * tokens * width), F_T in the student's size."""
        eegs, _ = self.eeg_encoder(self.eeg_head(eeg)[0])
        gsrs, _ = self.gsr_encoder(self.gsr_head(gsr)[0])
        fused = self.early(eegs[0], gsrs[0], eegs[1], gsrs[1]) + self.late(eegs[1], gsrs[1], eegs[2], gsrs[2])
        features = fused.flatten(1)
        return EmotionOutput(self.classifier(features), features, self._matched(fused))

    def _matched(self, fused: torch.Tensor) -> torch.Tensor:
        """(B, 2 * tokens, width) -> (B, tokens * width). The code feeds F_T where half as much fits, which cannot run."""
        of_eeg, of_gsr = fused.chunk(2, 1)
        if self.settings.feat_proj == "gsr_half":
            return of_gsr.flatten(1)
        if self.settings.feat_proj == "mean_halves":
            return ((of_eeg + of_gsr) / 2).flatten(1)
        projected: torch.Tensor = self.projection(fused.transpose(1, 2)).transpose(1, 2).flatten(1)
        return projected


Net = EmotionTeacher | EmotionStudent


def conv_l2(network: Net) -> torch.Tensor:
    """The published code's penalty: l2 times the sum of the squared kernels of the heads' convolutions, 0-d.

    An optimiser's weight_decay is not the same: Adam rescales it.
    """
    kernels = [
        conv.weight
        for head in network.modules()
        if isinstance(head, Head)
        for conv in (head.over_time, head.over_channels)
    ]
    return network.settings.l2 * torch.stack([kernel.square().sum() for kernel in kernels]).sum()


def collapse(classifier: Classifier) -> nn.Linear:
    """The linear layers of a classifier as one, computed in float64, for export: equal in real numbers."""
    layers = [layer for layer in classifier.layers if isinstance(layer, nn.Linear)]
    weight, bias = layers[0].weight.detach().double(), layers[0].bias.detach().double()
    for layer in layers[1:]:
        matrix = layer.weight.detach().double()
        weight, bias = matrix @ weight, matrix @ bias + layer.bias.detach().double()
    one = nn.Linear(weight.shape[1], weight.shape[0]).to(layers[0].weight)
    with torch.no_grad():
        one.weight.copy_(weight)
        one.bias.copy_(bias)
    return one.eval()


def collapsed(network: Net) -> Net:
    """A copy in eval mode whose classifier is one linear layer."""
    plain = copy.deepcopy(network).eval()
    plain.classifier.layers = nn.Sequential(collapse(plain.classifier))
    return plain
