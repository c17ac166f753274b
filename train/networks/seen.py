"""SEEN (single-eye emotion recognition from events and frames): an ANN on frames lends its weights
to an SNN on events.

Layers and constants are those of its published code [code]; 6,078,655 parameters, multiplications
177.8 M once and 182.3 M a step.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knarr.train.networks.branch_merge import ScaleGate, gate_shares, gated, padded_conv
from knarr.train.networks.heads import StepLogits, through_time
from knarr.train.networks.neurons import DecayCell, NeuronSettings
from knarr.train.settings import AtLeastTwo, Count, Frozen

STEM_CHANNELS = 3
KERNELS = (3, 5, 7)
SEEN_NEURON = NeuronSettings(
    coefficient=0.8, v_th=0.3, surrogate="box", width=0.5, detach_reset=False
)
"""V = 0.2 V (1 - P) + X, P = [V > 0.3] (the paper prints >=), surrogate 1 where |V - 0.3| < 0.5
[code].
"""


class SeenSettings(Frozen):
    """Sizes and options that decide SEEN's layers.

    Args:
        side_px: height and width of the images.
        channels: channels of an image, of an event image too.
        classes: number of emotions.
        widths: channels of a scale, of the second and third convolution; neurons of the hidden
            layer.
        frames: which frames the ANN sees; other than "first_last" are the paper's ablations.
        steps: steps of a clip; matters for frames="all" alone.
        readout: where logits come from; other than "mean_membrane" are the paper's ablations.
        neuron: neurons of every layer.
    """

    side_px: Count = 90
    channels: Count = 3
    classes: AtLeastTwo = 7
    widths: tuple[Count, Count, Count, Count] = (64, 256, 512, 256)
    frames: Literal["first_last", "first", "first_second", "all"] = "first_last"
    steps: Count = 4
    readout: Literal["mean_membrane", "last_membrane", "mean_spike", "last_spike"] = "mean_membrane"
    neuron: NeuronSettings = SEEN_NEURON

    @property
    def features(self) -> int:
        """Count the features of the last map, flattened."""
        return self.widths[2] * side_after(self.side_px) ** 2


def side_after(side_px: int) -> int:
    """Return the side of the last map, pixels."""
    for stride in (2, 2, 4):
        # Every convolution pads half its kernel, so sides round up.
        side_px = -(-side_px // stride)
    return side_px


class Seen(nn.Module):
    """SEEN, whose spiking half uses the ANN's convolutions without bias and without gradient; they
    learn through J alone.

    J are the spikes of the ANN's last map, which are lent to every step of the spiking half.

    Args:
        settings: sizes and options.

    Raises:
        ValueError: event images with other channels than the scales take.
    """

    def __init__(self, settings: SeenSettings) -> None:
        super().__init__()
        self.settings = settings
        scale, second, third, hidden = settings.widths
        seen_frames = {"first": 1, "all": settings.steps}.get(settings.frames, 2)
        self.stem = nn.Conv2d(settings.channels * seen_frames, STEM_CHANNELS, 1)
        self.scales = nn.ModuleList(padded_conv(STEM_CHANNELS, scale, k, stride=2) for k in KERNELS)
        self.gates = nn.ModuleList(ScaleGate(scale) for _ in KERNELS)
        self.join = nn.Conv2d(len(KERNELS) * scale, scale, 1)
        self.second = padded_conv(scale, second, 3, stride=2)
        self.third = padded_conv(second, third, 3, stride=4)
        self.static_cell = DecayCell(settings.neuron)
        self.cells = nn.ModuleList(DecayCell(settings.neuron) for _ in range(4))
        self.hidden = nn.Linear(settings.features, hidden)
        self.head = nn.Linear(hidden, settings.classes)
        self.head_cell = DecayCell(settings.neuron)
        if settings.channels != STEM_CHANNELS:
            raise ValueError(
                f"channels: {settings.channels}, event images meet the scales without the stem, which has {STEM_CHANNELS}"
            )

    def forward(self, events: Tensor, frames: Tensor) -> StepLogits:
        """Map event and frame clips, (B, T, 3, H, W) each, of the same T, to membranes of the last
        layer before their reset.

        `step_logits` are those membranes whatever the readout; rates are of J, the four spiking
        layers and the head.

        Raises:
            ValueError: clips of another length or size.
        """
        # In a trace sizes are no plain numbers; torch has no types for the question.
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self._check(events, frames)
        maps = [scale(self.stem(self._chosen(frames))) for scale in self.scales]
        shares = gate_shares(self.gates, maps)
        joined = self.join(torch.cat(gated(maps, shares), 1))
        static = self.third(self.second(joined))
        lent, _ = self.static_cell(static)

        # The convolutions learn through the frames' spikes alone [code].
        with torch.no_grad():
            first, second, third = self._event_spikes(events, shares.detach())
        # 0, 1 or 2, which is not binary: no chip of spikes runs this layer.
        both = (third + lent.unsqueeze(1)).flatten(2)
        fourth, _ = through_time(self.cells[3], self.hidden(both))
        spikes, membranes = through_time(self.head_cell, self.head(fourth))
        assert membranes is not None  # a spiking cell has them
        fired = (lent, first, second, third, fourth, spikes)
        rates = tuple(z.detach().mean() for z in fired)
        return StepLogits(self._read(spikes, membranes), membranes, rates)

    def _event_spikes(self, events: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the spikes of the three convolutional layers, (B, T, C, H, W) each."""
        steps = events.shape[1]
        images = events.flatten(0, 1)
        maps = [_no_bias(scale, images) for scale in self.scales]
        # The frames' shares weigh every event image of the clip.
        every = (
            shares.unsqueeze(1)
            .expand(
                -1,
                steps,
                -1,
                -1,
                -1,
            )
            .flatten(0, 1)
        )
        x = _no_bias(self.join, torch.cat(gated(maps, every), 1))

        def fire(number: int, x: Tensor) -> Tensor:
            clips = x.reshape(-1, steps, *x.shape[1:])
            return through_time(self.cells[number], clips)[0]

        first = fire(0, x)
        second = fire(1, _no_bias(self.second, first.flatten(0, 1)))
        third = fire(2, _no_bias(self.third, second.flatten(0, 1)))
        return first, second, third

    def _chosen(self, frames: Tensor) -> Tensor:
        """Return the frames that the ANN sees, as channels, (B, n * 3, H, W)."""
        which = self.settings.frames
        if which == "all":
            return frames.flatten(1, 2)
        if which == "first":
            return frames[:, 0]
        other = frames[:, -1 if which == "first_last" else 1]
        return torch.cat([frames[:, 0], other], 1)

    def _read(self, spikes: Tensor, membranes: Tensor) -> Tensor:
        when, what = self.settings.readout.split("_")
        values = membranes if what == "membrane" else spikes
        return values.mean(1) if when == "mean" else values[:, -1]

    def _check(self, events: Tensor, frames: Tensor) -> None:
        side = self.settings.side_px
        clips, steps = events.shape[:2]
        wanted = (clips, steps, self.settings.channels, side, side)
        for name, clip in (("events", events), ("frames", frames)):
            if tuple(clip.shape) != wanted:
                raise ValueError(
                    f"{name}: shape {tuple(clip.shape)}, needs {wanted}; both clips are (B, T, C, H, W) of one T"
                )
        which = self.settings.frames
        least = {"all": self.settings.steps, "first_second": 2}.get(which, 1)
        # All frames stand as channels before the stem, so there must be as many as it was built
        # for.
        if steps < least or (which == "all" and steps != least):
            raise ValueError(f"frames: {steps} steps, frames='{which}' needs {least}")


def _no_bias(layer: Any, x: Tensor) -> Tensor:
    """Apply a convolution without its bias."""
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
