"""EmotionKD: a teacher on EEG and skin conductance, and the paper's own student on skin conductance
alone.

They have 2,046,210 and 993,090 parameters. Layer sizes, rates and orders are the published code's
[code], weights start as Keras's do. Defects of that code are not here, but for the option
`bug_compat_imf`. An activation takes (x, state) and returns (y, state), so that spiking cells can
stand where the rectifiers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from knarr.train.settings import AtLeastTwo, Count, Frozen, Positive, ProperFraction

BN_EPS, BN_MOMENTUM = 1e-3, 0.01
"""Keras's epsilon; its momentum of 0.99 is torch's 0.01."""
LN_EPS = 1e-6
EMBEDDING_LIMIT = 0.05
Activation = Callable[[], nn.Module]


class EmotionSettings(Frozen):
    """Sizes and options that decide the layers of teacher and student.

    Args:
        eeg_channels: channels of an EEG window.
        samples: samples of a window, 128 a second.
        classes: 2 per task.
        width: features of a token.
        kernel, stride: size and step of the head's convolution over time, samples.
        heads, head_width: number and width of the attention's heads; its inner width is their
            product, not `width`.
        positions: rows of the table of learned positions.
        blocks: blocks of the encoder; teacher and student join the outputs of three.
        head_dropout, encoder_dropout, classifier_dropout: shares that are dropped.
        classifier: neurons of the three linear layers before the logits.
        score_pool: the score sees the mean token, as the poster draws it, not every token, as the
            code does.
        bug_compat_imf: the second fusion of the teacher reads the first EEG depth again, as the
            published code does.
        feat_proj: how the teacher's features become as many as the student's: the mean of EEG's and
            skin's half, a learned matrix over tokens, or skin's half alone.
        mha_init: limits of the attention's uniform weights: "fans" as newer Keras (0.102), "tf25"
            as TensorFlow 2.5's rule for kernels of three axes (0.036; 0.077 at the output).
        l2: weight of the squared kernels of the head's convolutions, an explicit loss.
    """

    eeg_channels: Count = 28
    samples: Count = 512
    classes: AtLeastTwo = 2
    width: Count = 64
    kernel: Count = 32
    stride: Count = 8
    heads: Count = 8
    head_width: Count = 64
    positions: Count = 64
    blocks: int = Field(default=3, ge=3, le=3)
    head_dropout: ProperFraction = 0.3
    encoder_dropout: ProperFraction = 0.1
    classifier_dropout: ProperFraction = 0.5
    classifier: Count = 128
    score_pool: bool = False
    bug_compat_imf: bool = False
    feat_proj: Literal["mean_halves", "linear_tokens", "gsr_half"] = "mean_halves"
    mha_init: Literal["fans", "tf25"] = "fans"
    l2: Positive = 1e-3

    @model_validator(mode="after")
    def _fits(self) -> EmotionSettings:
        # A kernel longer than the window gives no tokens at all.
        if not self.kernel <= self.samples or self.tokens > self.positions:
            raise ValueError(
                f"samples: {self.samples} give {self.tokens} tokens, allowed 1..{self.positions}; change samples or positions"
            )
        return self

    @property
    def tokens(self) -> int:
        """Count the tokens of a window."""
        return (self.samples - self.kernel) // self.stride + 1

    @property
    def features(self) -> int:
        """Count the values of F_S, a student's tokens in a row."""
        return self.tokens * self.width


class Rectifier(nn.Module):
    """ReLU in the form of a cell."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, None]:
        """Rectify x; there is no state."""
        return torch.relu(x), None


class Head(nn.Module):
    """Windows to tokens: convolution over time, batch-norm, activation, convolution over channels,
    dropout.

    Args:
        settings: sizes of the network.
        channels: channels of the window.
        activation: makes the layer behind the batch-norm.
    """

    def __init__(
        self, settings: EmotionSettings, channels: int, activation: Activation = Rectifier
    ) -> None:
        super().__init__()
        width = settings.width
        self.over_time = nn.Conv2d(
            1,
            width,
            (1, settings.kernel),
            stride=(1, settings.stride),
        )
        self.norm = nn.BatchNorm2d(width, BN_EPS, BN_MOMENTUM)
        self.activation = activation()
        self.over_channels = nn.Conv2d(width, width, (channels, 1))
        self.dropout = nn.Dropout(settings.head_dropout)

    def forward(self, window: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map (B, channels, samples) to (B, tokens, width), and give the activation's state."""
        normed = self.norm(self.over_time(window.unsqueeze(1)))
        x, state = self.activation(normed, state)
        tokens = self.over_channels(x).squeeze(2).transpose(1, 2)
        return self.dropout(tokens), state


class Attention(nn.Module):
    """Softmax attention whose heads are each as wide as asked for; `nn.MultiheadAttention` divides
    the width among them.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, init: Literal["fans", "tf25"]
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width
        inner = heads * head_width
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)
        if init == "fans":
            self.limits = _limit(width, inner), _limit(inner, width)
        else:
            # TensorFlow 2.5 takes all axes but the last two of (width, heads, head_width) as a
            # receptive field.
            inward = _limit(width * heads, width * head_width)
            self.limits = inward, _limit(heads * head_width, heads * width)

    def reset(self) -> None:
        """Draw uniform weights within the limits, and set biases to 0."""
        inward, outward = self.limits
        for layer in (self.query, self.key, self.value, self.out):
            limit = outward if layer is self.out else inward
            nn.init.uniform_(layer.weight, -limit, limit)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, tokens, width) to the same shape."""
        # Each head's own part first: (B, heads, tokens, head_width).
        q, k, v = (
            layer(x).unflatten(2, (self.heads, self.head_width)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        products = q @ k.transpose(2, 3)
        shares = (products / math.sqrt(self.head_width)).softmax(3)
        mixed = (shares @ v).transpose(1, 2)
        return self.out(mixed.flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward pair, each added to its input and normalised after."""

    def __init__(self, settings: EmotionSettings, activation: Activation) -> None:
        super().__init__()
        width = settings.width
        self.attention = Attention(width, settings.heads, settings.head_width, settings.mha_init)
        self.norm1 = nn.LayerNorm(width, LN_EPS)
        self.norm2 = nn.LayerNorm(width, LN_EPS)
        self.wide = nn.Linear(width, width)
        self.narrow = nn.Linear(width, width)
        self.activation = activation()
        self.dropout = nn.Dropout(settings.encoder_dropout)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map (B, tokens, width) to the same shape, and give the activation's state."""
        x = self.norm1(x + self.dropout(self.attention(x)))
        inner, state = self.activation(self.wide(x), state)
        return self.norm2(x + self.dropout(self.narrow(inner))), state


class Encoder(nn.Module):
    """Learned positions and blocks; every block's output is kept."""

    def __init__(self, settings: EmotionSettings, activation: Activation = Rectifier) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(settings.positions, settings.width))
        self.blocks = nn.ModuleList(Block(settings, activation) for _ in range(settings.blocks))

    def forward(
        self,
        tokens: Tensor,
        states: Any = None,
    ) -> tuple[list[Tensor], list[Any]]:
        """Map (B, tokens, width) to each block's output of that shape, and give the activations'
        states.
        """
        x = tokens + self.positions[: tokens.shape[1]]
        depths, after = [], []
        before = states or [None] * len(self.blocks)
        for block, state in zip(self.blocks, before, strict=True):
            x, state = block(x, state)
            depths.append(x)
            after.append(state)
        return depths, after


class Score(nn.Module):
    """A gate that multiplies its own input: dense, batch-norm, ReLU, dense, batch-norm, softsign."""

    def __init__(self, width: int, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.dense1 = nn.Linear(width, width)
        self.dense2 = nn.Linear(width, width)
        self.norm1 = nn.BatchNorm1d(width, BN_EPS, BN_MOMENTUM)
        self.norm2 = nn.BatchNorm1d(width, BN_EPS, BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, tokens, width) by the gate."""
        seen = x.mean(1, keepdim=True) if self.pool else x
        inner = torch.relu(_per_feature(self.norm1, self.dense1(seen)))
        gate = nn.functional.softsign(_per_feature(self.norm2, self.dense2(inner)))
        # Of a mean token there is one gate, which scales all tokens.
        return x * gate


def as_keras(network: nn.Module) -> None:
    """Draw Keras's first weights: Glorot uniform and zero biases, uniform positions, the
    attention's own limits.
    """
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None  # all layers here have one
            nn.init.zeros_(module.bias)
        elif isinstance(module, Encoder):
            nn.init.uniform_(module.positions, -EMBEDDING_LIMIT, EMBEDDING_LIMIT)
    # A second pass, since the first one has drawn the attention's Linears like any other.
    for module in network.modules():
        if isinstance(module, Attention):
            module.reset()


def _per_feature(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a batch-norm over the last axis of (B, tokens, width); torch's own takes the second."""
    return norm(x.transpose(1, 2)).transpose(1, 2)


def _limit(fan_in: int, fan_out: int) -> float:
    return math.sqrt(6 / (fan_in + fan_out))


class EmotionOutput(NamedTuple):
    """Output of a teacher or student, as distillation reads it.

    Args:
        logits: (B, classes), before any softmax.
        features: F_S or F_T before the classifier, (B, tokens * width), twice as many of the
            teacher.
        matched: the same in the student's size; a student's own features.
    """

    logits: Tensor
    features: Tensor
    matched: Tensor


class Classifier(nn.Module):
    """Dropout, three linear layers in a row and the logits; as in the code, nothing between them."""

    def __init__(self, settings: EmotionSettings, features: int) -> None:
        super().__init__()
        inner = settings.classifier
        self.dropout = nn.Dropout(settings.classifier_dropout)
        # Without activations these are one linear map; apart they train as the published ones do.
        self.layers = nn.Sequential(
            nn.Linear(features, inner),
            nn.Linear(inner, inner),
            nn.Linear(inner, inner),
            nn.Linear(inner, settings.classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, features) to (B, classes) logits."""
        return self.layers(self.dropout(features))


class EmotionStudent(nn.Module):
    """Student on skin conductance: head, encoder, three score-gated depths summed, classifier.

    Args:
        settings: sizes and options.
        activation: makes what stands in place of the rectifiers of head and feed-forward layers.
    """

    def __init__(self, settings: EmotionSettings, activation: Activation = Rectifier) -> None:
        super().__init__()
        self.settings = settings
        self.head = Head(settings, 1, activation)
        self.encoder = Encoder(settings, activation)
        self.scores = nn.ModuleList(
            Score(settings.width, settings.score_pool) for _ in range(settings.blocks)
        )
        self.classifier = Classifier(settings, settings.features)
        as_keras(self)

    def forward(self, gsr: Tensor) -> EmotionOutput:
        """Map (B, 1, samples) to logits and F_S, (B, tokens * width)."""
        return self.step(gsr)[0]

    def step(self, gsr: Tensor, state: Any = None) -> tuple[EmotionOutput, Any]:
        """Show a window once; the state is that of the activations, for showing it again."""
        head_state, encoder_state = state or (None, None)
        tokens, head_state = self.head(gsr, head_state)
        depths, encoder_state = self.encoder(tokens, encoder_state)
        pairs = zip(self.scores, depths, strict=True)
        scored = [score(depth) for score, depth in pairs]
        features = torch.stack(scored).sum(0).flatten(1)
        output = EmotionOutput(self.classifier(features), features, features)
        return output, (head_state, encoder_state)


class Fusion(nn.Module):
    """IMF(Ea, Ga, Eb, Gb) = g1(Ea; Ga) + g2(Eb; Gb), where g is a score gate and ; joins along
    tokens.
    """

    def __init__(self, settings: EmotionSettings) -> None:
        super().__init__()
        self.bug_compat = settings.bug_compat_imf
        self.first = Score(settings.width, settings.score_pool)
        self.second = Score(settings.width, settings.score_pool)

    def forward(self, eeg_a: Tensor, gsr_a: Tensor, eeg_b: Tensor, gsr_b: Tensor) -> Tensor:
        """Fuse two depths of EEG and skin conductance, (B, tokens, width) each, into (B, 2 *
        tokens, width).
        """
        earlier = torch.cat([eeg_a, gsr_a], 1)
        later = torch.cat([eeg_a if self.bug_compat else eeg_b, gsr_b], 1)
        return self.first(earlier) + self.second(later)


class EmotionTeacher(nn.Module):
    """Teacher on EEG and skin conductance: a head and an encoder each, two fusions of neighbouring
    depths summed, classifier.

    Args:
        settings: sizes and options.
    """

    def __init__(self, settings: EmotionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.eeg_head = Head(settings, settings.eeg_channels)
        self.gsr_head = Head(settings, 1)
        self.eeg_encoder = Encoder(settings)
        self.gsr_encoder = Encoder(settings)
        self.early = Fusion(settings)
        self.late = Fusion(settings)
        self.classifier = Classifier(settings, 2 * settings.features)
        if settings.feat_proj == "linear_tokens":
            self.projection = nn.Linear(2 * settings.tokens, settings.tokens)
        as_keras(self)

    def forward(self, eeg: Tensor, gsr: Tensor) -> EmotionOutput:
        """Map (B, eeg_channels, samples) and (B, 1, samples) to logits, F_T (B, 2 * tokens *
        width), and F_T in the student's size.
        """
        eegs, _ = self.eeg_encoder(self.eeg_head(eeg)[0])
        gsrs, _ = self.gsr_encoder(self.gsr_head(gsr)[0])
        first, second, third = zip(eegs, gsrs, strict=True)
        fused = self.early(*first, *second) + self.late(*second, *third)
        features = fused.flatten(1)
        return EmotionOutput(self.classifier(features), features, self._matched(fused))

    def _matched(self, fused: Tensor) -> Tensor:
        """Map (B, 2 * tokens, width) to (B, tokens * width)."""
        # The published code feeds F_T where half as much fits, which cannot run; so there are
        # readings.
        of_eeg, of_gsr = fused.chunk(2, 1)
        if self.settings.feat_proj == "gsr_half":
            return of_gsr.flatten(1)
        if self.settings.feat_proj == "mean_halves":
            return ((of_eeg + of_gsr) / 2).flatten(1)
        # A Linear over tokens, which stand last for it alone.
        projected = self.projection(fused.transpose(1, 2))
        return projected.transpose(1, 2).flatten(1)


def conv_l2(network: EmotionTeacher | EmotionStudent) -> Tensor:
    """Return the published code's penalty: l2 times the sum of the squared kernels of the heads'
    convolutions, 0-d.
    """
    # An optimiser's weight_decay is not the same: Adam rescales it.
    squares = [
        conv.weight.square().sum()
        for head in network.modules()
        if isinstance(head, Head)
        for conv in (head.over_time, head.over_channels)
    ]
    return network.settings.l2 * torch.stack(squares).sum()
