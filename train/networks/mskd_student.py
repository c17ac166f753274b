"""The MSKD student: SEEN's spiking half on frames alone, its convolutions trained directly [reconstruction].

MSKD says of its student that it is spiking, light and sees frames [paper]; layers are not public.

    scales 3/5/7 stride 2 -> join 1x1 -> LIF -> 3x3 stride 2 -> LIF -> 3x3 stride 4 -> LIF -> FC -> LIF -> FC -> readout
"""

from __future__ import annotations

from typing import Literal

import norse.torch as snn
import torch
from pydantic import Field, model_validator
from torch import nn

from knarr.train.networks.branch_merge import Gate, MultiScale
from knarr.train.networks.neurons import BoxCell, Neuron, ReadoutCell
from knarr.train.networks.seen import SEEN_NEURON, side_after
from knarr.train.settings import Count, Frozen, Positive, Share

WIDTHS = (64, 256, 512, 256)
"""At width 1: channels of a scale, of the second and third convolution; neurons of the hidden layer."""


class MskdStudentSettings(Frozen):
    """What decides the student's layers.

    Args:
        side_px: height and width of a frame.
        in_channels: 3, or 1 for grey.
        classes: emotions.
        width: share of `WIDTHS`, 1, 1/2 or 1/4; others where they give whole numbers.
        gate: "static" learns one logit per scale; "dynamic" (SEEN's, per image) cannot be exported; "none" weighs all 1.
        conv_bias: of every convolution.
        norm: batch-norms behind the scales, the join and the other convolutions; they fold at export.
        readout: "membrane" is SEEN's, a neuron read before its reset; "li" a leaky integrator, which alone can be exported.
        neuron: in the form v += a (x - v); 0.8 is SEEN's decay of 0.2.
        readout_coefficient: a of "li".
        dt_s: time step, seconds; clips E4-S3 keep every fourth of 30 frames a second.
        snap: put a on k/4096, which the chip's registers hold.
    """

    side_px: Count = 90
    in_channels: Literal[1, 3] = 3
    classes: int = Field(default=7, ge=2)
    width: Share = 0.5
    gate: Gate = "static"
    conv_bias: bool = False
    norm: bool = False
    readout: Literal["membrane", "li"] = "membrane"
    neuron: Neuron = SEEN_NEURON
    readout_coefficient: Share = 0.8
    dt_s: Positive = 4 / 30
    snap: bool = True

    @model_validator(mode="after")
    def _whole(self) -> MskdStudentSettings:
        if any(not float(self.width * full).is_integer() for full in WIDTHS):
            raise ValueError(f"width: {self.width} of {WIDTHS} channels is not whole; choose 1, 0.5 or 0.25")
        return self

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of a scale, of the second and third convolution; neurons of the hidden layer."""
        scale, second, third, hidden = (int(self.width * full) for full in WIDTHS)
        return scale, second, third, hidden


def build_mskd_student(settings: MskdStudentSettings) -> snn.SequentialState:
    """One time step as it trains: (B, in_channels, H, W) -> (B, classes) volts of the readout.

    SEEN adds X where Norse adds a X, so initial weights are torch's divided by a. `heads.decide` runs a clip of frames;
    `chip_form.plain` merges the scales, `chip_form.chip_form` makes it exportable (static gate or none, readout "li").
    """
    scale, second, third, hidden = settings.widths
    bias = settings.conv_bias

    def cell(reads: Literal["spikes", "membrane"] = "spikes") -> nn.Module:
        return BoxCell(
            settings.neuron, settings.dt_s, reads, snap=settings.snap and not settings.neuron.learned
        )

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if settings.norm else []

    readout = (
        cell("membrane")
        if settings.readout == "membrane"
        else ReadoutCell(settings.readout_coefficient, settings.dt_s, snap=settings.snap)
    )
    student = snn.SequentialState(
        MultiScale(settings.in_channels, scale, scale, bias=bias, gate=settings.gate, norm=settings.norm),
        cell(),
        nn.Conv2d(scale, second, 3, stride=2, padding=1, bias=bias),
        *norm(second),
        cell(),
        nn.Conv2d(second, third, 3, stride=4, padding=1, bias=bias),
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
    """Divide what feeds each cell by its coefficient at the start."""
    synapses = [layer.join if isinstance(layer, MultiScale) else layer for layer in student]
    synapses = [layer for layer in synapses if isinstance(layer, (nn.Conv2d, nn.Linear))]
    shares = [settings.neuron.coefficient] * len(synapses)
    if settings.readout == "li":
        shares[-1] = settings.readout_coefficient
    with torch.no_grad():
        for synapse, share in zip(synapses, shares, strict=True):
            for parameter in synapse.parameters():
                parameter /= share
