"""Networks of MSKD and SEEN, whose single eyes are seen as events and frames.

SEEN (single-eye emotion recognition from events and frames) is an ANN on frames that lends its
weights to an SNN on events. Layers and constants are those of its published code [code]; 6,078,655
parameters, multiplications 177.8 M once and 182.3 M a step.

MSKD's paper does not give its layers, so all are [reconstruction]. The teacher is an ANN-SNN hybrid
on events and frames [paper]:

    seen            SEEN as it is: already such a hybrid
    frame_per_step  a small residual ANN on each frame and spiking convolutions on each event image,
    features added

The student is spiking, light and sees frames [paper]: SEEN's spiking half on frames alone, its
convolutions trained directly.

    scales 3/5/7 stride 2 -> join 1x1 -> LIF -> 3x3 stride 2 -> LIF -> 3x3 stride 4 -> LIF -> FC ->
    LIF -> FC -> readout
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import norse.torch as snn
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from knarr.train.networks.branch_merge import (
    Gate,
    MultiScale,
    ScaleGate,
    gate_shares,
    gated,
    padded_conv,
)
from knarr.train.networks.heads import StepLogits, each_step, through_time
from knarr.train.networks.neurons import BoxCell, DecayCell, NeuronSettings, ReadoutCell
from knarr.train.settings import AtLeastTwo, Count, Frozen, Positive, UnitFraction

STEM_CHANNELS = 3
KERNELS = (3, 5, 7)
WIDTHS = (64, 256, 512, 256)
"""SEEN's widths: channels of a scale, of the second and third convolution; neurons of the hidden
layer.
"""
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
    widths: tuple[Count, Count, Count, Count] = WIDTHS
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

    def _event_spikes(self, events: Tensor, shares: Tensor) -> list[Tensor]:
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
        fired: list[Tensor] = []
        for cell, synapse in zip(self.cells, (self.second, self.third, None), strict=False):
            spikes, _ = through_time(cell, x.reshape(-1, steps, *x.shape[1:]))
            fired.append(spikes)
            if synapse is not None:
                x = _no_bias(synapse, spikes.flatten(0, 1))
        return fired

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


class MskdTeacherSettings(Frozen):
    """Kind and sizes of the teacher.

    Args:
        kind: "seen" or "frame_per_step", see the module.
        seen: sizes of either; "frame_per_step" reads side_px, channels, classes, widths and neuron
            of them.
    """

    kind: Literal["seen", "frame_per_step"] = "seen"
    seen: SeenSettings = SeenSettings()


def build_mskd_teacher(settings: MskdTeacherSettings) -> Seen | FramePerStep:
    """Build a teacher: (events, frames), (B, T, 3, H, W) each, to StepLogits of the last membranes."""
    return Seen(settings.seen) if settings.kind == "seen" else FramePerStep(settings.seen)


class Residual(nn.Module):
    """Two 3x3 convolutions with batch-norms, added to a strided 1x1 one."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.long = nn.Sequential(
            padded_conv(channels, out, 3, stride=2, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            padded_conv(out, out, 3, bias=False),
            nn.BatchNorm2d(out),
        )
        self.short = nn.Sequential(
            padded_conv(channels, out, 1, stride=2, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H/2, W/2), rounded up."""
        return torch.relu(self.long(x) + self.short(x))


class FramePerStep(nn.Module):
    """A teacher that adds features of frame t (ANN) to spikes of event image t (SNN), before two
    spiking layers.

    Args:
        settings: sizes; widths are those of the event branch, and the frame branch ends in as many
            channels.
    """

    def __init__(self, settings: SeenSettings) -> None:
        super().__init__()
        self.settings = settings
        scale, second, third, hidden = settings.widths
        # A width of 1 must not become 0 channels.
        half = max(scale // 2, 1)
        quarter = max(second // 2, 1)
        self.frame_branch = nn.Sequential(
            padded_conv(settings.channels, half, 3, stride=2, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            Residual(half, scale),
            Residual(scale, quarter),
            Residual(quarter, second),
            nn.Conv2d(second, third, 1),
            nn.ReLU(),
        )
        self.synapses = nn.ModuleList(
            [
                MultiScale(settings.channels, scale, scale, gate="dynamic", norm=True),
                padded_conv(scale, second, 3, stride=2),
                padded_conv(second, third, 3, stride=4),
            ]
        )
        self.hidden = nn.Linear(settings.features, hidden)
        self.head = nn.Linear(hidden, settings.classes)
        self.cells = nn.ModuleList(DecayCell(settings.neuron) for _ in range(5))

    def forward(self, events: Tensor, frames: Tensor) -> StepLogits:
        """Map event and frame clips, (B, T, C, H, W) each, to membranes before their reset, and
        rates of the five spiking layers.

        Raises:
            ValueError: clips of different shapes.
        """
        if events.shape != frames.shape:
            raise ValueError(
                f"frames: shape {tuple(frames.shape)}, events {tuple(events.shape)}; give one frame per event image"
            )
        x = events
        fired = []
        # Three of the five cells have a convolution before them, the last two a linear layer.
        for synapse, cell in zip(self.synapses, self.cells, strict=False):
            x, _ = through_time(cell, each_step(synapse, x))
            fired.append(x)
        joined = (x + each_step(self.frame_branch, frames)).flatten(2)
        spikes, _ = through_time(self.cells[3], self.hidden(joined))
        last, membranes = through_time(self.cells[4], self.head(spikes))
        assert membranes is not None  # a spiking cell has them
        rates = tuple(z.detach().mean() for z in [*fired, spikes, last])
        return StepLogits(membranes.mean(1), membranes, rates)


class MskdStudentSettings(Frozen):
    """Sizes and options that decide the student's layers.

    Args:
        side_px: height and width of a frame.
        in_channels: 3, or 1 for grey.
        classes: number of emotions.
        width: share of `WIDTHS`, 1, 1/2 or 1/4; others where they give whole numbers.
        gate: "static" learns one logit per scale; "dynamic" (SEEN's, per image) cannot be exported;
            "none" weighs all 1.
        conv_bias: whether convolutions have one.
        norm: batch-norms behind the scales, the join and the other convolutions; they fold at
            export.
        readout: "membrane" is SEEN's, a neuron read before its reset; "li" a leaky integrator,
            which alone can be exported.
        neuron: neurons in the form v += a (x - v); 0.8 is SEEN's decay of 0.2.
        readout_coefficient: a of "li".
        dt_s: time step, seconds; clips E4-S3 keep every fourth of 30 frames a second.
        snap: put a on k/4096, which the chip's registers hold.
    """

    side_px: Count = 90
    in_channels: Literal[1, 3] = 3
    classes: AtLeastTwo = 7
    width: UnitFraction = 0.5
    gate: Gate = "static"
    conv_bias: bool = False
    norm: bool = False
    readout: Literal["membrane", "li"] = "membrane"
    neuron: NeuronSettings = SEEN_NEURON
    readout_coefficient: UnitFraction = 0.8
    dt_s: Positive = 4 / 30
    snap: bool = True

    @model_validator(mode="after")
    def _whole(self) -> MskdStudentSettings:
        if any(not float(self.width * full).is_integer() for full in WIDTHS):
            raise ValueError(
                f"width: {self.width} of {WIDTHS} channels is not whole; choose 1, 0.5 or 0.25"
            )
        return self

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Give `WIDTHS` at this share."""
        scale, second, third, hidden = (int(self.width * full) for full in WIDTHS)
        return scale, second, third, hidden


def build_mskd_student(settings: MskdStudentSettings) -> snn.SequentialState:
    """Build one time step as it trains: (B, in_channels, H, W) to (B, classes) volts of the
    readout.

    `heads.decide` runs a clip of frames; `chip_form.plain` merges the scales, `chip_form.chip_form`
    makes it exportable (static gate or none, readout "li").
    """
    scale, second, third, hidden = settings.widths
    bias = settings.conv_bias
    dt_s = settings.dt_s
    # A learned coefficient moves while it trains; it goes to the grid at export.
    snap = settings.snap and not settings.neuron.learned
    cell = partial(BoxCell, settings.neuron, dt_s, snap=snap)

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if settings.norm else []

    readout = (
        cell("membrane")
        if settings.readout == "membrane"
        else ReadoutCell(settings.readout_coefficient, dt_s, snap=settings.snap)
    )
    student = snn.SequentialState(
        MultiScale(
            settings.in_channels, scale, scale, bias=bias, gate=settings.gate, norm=settings.norm
        ),
        cell(),
        padded_conv(scale, second, 3, stride=2, bias=bias),
        *norm(second),
        cell(),
        padded_conv(second, third, 3, stride=4, bias=bias),
        *norm(third),
        cell(),
        nn.Flatten(),
        nn.Linear(third * side_after(settings.side_px) ** 2, hidden),
        cell(),
        nn.Linear(hidden, settings.classes),
        readout,
    )
    _as_seen(student, settings)
    return student


def _as_seen(student: snn.SequentialState, settings: MskdStudentSettings) -> None:
    """Divide the weights before each cell by its coefficient: SEEN adds X where Norse adds a X."""
    # Of the scales only the join is divided: it alone feeds the cell.
    synapses = [layer.join if isinstance(layer, MultiScale) else layer for layer in student]
    synapses = [layer for layer in synapses if isinstance(layer, (nn.Conv2d, nn.Linear))]
    shares = [settings.neuron.coefficient] * len(synapses)
    # The leaky integrator has a coefficient of its own.
    if settings.readout == "li":
        shares[-1] = settings.readout_coefficient
    with torch.no_grad():
        for synapse, share in zip(synapses, shares, strict=True):
            for parameter in synapse.parameters():
                parameter /= share
