"""Two spiking students of skin conductance: one that a chip can run, one with the paper's layers
[reconstruction].

Step t of the first gets samples [8t, 8t + 32) of a window: Linear, LIF, three times (Linear, LIF),
Linear, leaky integrator; no attention, no score gates. Its first Linear is the published head's
convolution over time; 14,722 weights and biases, 882,304 multiplications in 61 steps.

The second, GsrRepeat, is the paper's student with spiking cells for its rectifiers, the window
shown several times. It keeps softmax attention, layer-norms and score gates, so it CANNOT be
exported: `to_nir` refuses it, no chip runs it. It shows the accuracy that spikes alone cost.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import norse.torch as snn
import torch
from pydantic import model_validator
from torch import Tensor, nn

from knarr.train.networks.emotion import EmotionOutput, EmotionSettings, EmotionStudent
from knarr.train.networks.heads import over_time
from knarr.train.networks.neurons import BoxCell, NeuronSettings, ReadoutCell
from knarr.train.settings import AtLeastTwo, Count, Frozen, Positive, UnitFraction

PLIF = NeuronSettings(coefficient=0.5, learned=True, v_th=1.0, surrogate="atan", width=2.0)


class GsrStudentSettings(Frozen):
    """Sizes and options that decide the layers of the student for the chip.

    Args:
        samples, kernel, stride: samples of a window, of a step's input, and between steps; 128 a
            second.
        hidden: features of every layer, the student's tokens.
        depth: spiking layers behind the first.
        classes: 2 per task.
        neuron: neurons of the spiking layers; PLIF of tau 2 at the start.
        readout_coefficient: a = dt/tau of the leaky integrator.
        norm: batch-norms behind "all" Linears but the last, or the "head" alone, as published,
            which leaves the layers behind it silent at the start; they fold at export.
        feature: values that F_S sums over the three depths, membranes before the reset or spikes.
        dt_s: time step, seconds: 8 samples of 128 a second.
    """

    samples: Count = 512
    kernel: Count = 32
    stride: Count = 8
    hidden: Count = 64
    depth: Count = 3
    classes: AtLeastTwo = 2
    neuron: NeuronSettings = PLIF
    readout_coefficient: UnitFraction = 0.5
    norm: Literal["all", "head", "none"] = "all"
    feature: Literal["membrane", "spike"] = "membrane"
    dt_s: Positive = 0.0625

    @model_validator(mode="after")
    def _long_enough(self) -> GsrStudentSettings:
        if self.kernel > self.samples:
            raise ValueError(
                f"kernel: {self.kernel} of {self.samples} samples; choose a shorter one"
            )
        return self

    @property
    def steps(self) -> int:
        """Count the steps of a window."""
        return (self.samples - self.kernel) // self.stride + 1

    @property
    def features(self) -> int:
        """Count the values of F_S."""
        return self.steps * self.hidden


class GsrOutput(NamedTuple):
    """Output of a student, as distillation and reports read it.

    Args:
        logits: (B, classes), mean over time.
        features: F_S, (B, steps * hidden).
        step_logits: (B, steps, classes), volts of the readout.
        rates: mean spikes per neuron and step of each spiking layer, detached 0-d tensors.
    """

    logits: Tensor
    features: Tensor
    step_logits: Tensor
    rates: tuple[Tensor, ...]


def build_gsr_student(settings: GsrStudentSettings) -> snn.SequentialState:
    """Build one time step as it trains: (B, kernel) samples to (B, classes) volts. `chip_form`
    makes it exportable.
    """
    hidden = settings.hidden
    dt_s = settings.dt_s
    layers: list[nn.Module] = []
    inputs = settings.kernel
    # The head comes first, and the depths behind it.
    for at in range(settings.depth + 1):
        layers.append(nn.Linear(inputs, hidden))
        if settings.norm == "all" or (settings.norm == "head" and at == 0):
            layers.append(nn.BatchNorm1d(hidden))
        layers.append(BoxCell(settings.neuron, dt_s))
        inputs = hidden
    readout = ReadoutCell(settings.readout_coefficient, dt_s)
    return snn.SequentialState(*layers, nn.Linear(hidden, settings.classes), readout)


def run_frames(
    student: snn.SequentialState, frames: Tensor, settings: GsrStudentSettings
) -> GsrOutput:
    """Run all steps.

    Args:
        student: network of `build_gsr_student`.
        frames: (B, steps, kernel) inputs of each step.
        settings: those it was built with.
    """
    ran = over_time(student, frames, record=True)
    layers = ran.membranes if settings.feature == "membrane" else ran.spikes
    # The first layer is the head, the others are the depths.
    features = torch.stack(layers[1:]).sum(0).flatten(1)
    return GsrOutput(ran.outputs.mean(1), features, ran.outputs, ran.rates)


class GsrRepeatSettings(Frozen):
    """Sizes and options that decide the layers of GsrRepeat.

    Args:
        network: sizes of the paper's student.
        neuron: neurons in place of each rectifier of head and feed-forward layers.
        steps: how often a window is shown.
        dt_s: time step, seconds; only names a scale, nothing here is exported.
    """

    network: EmotionSettings = EmotionSettings()
    neuron: NeuronSettings = PLIF
    steps: Count = 8
    dt_s: Positive = 0.001

    @property
    def features(self) -> int:
        """Count the values of F_S."""
        return self.network.features


class GsrRepeat(nn.Module):
    """The paper's student with spiking cells, shown the same window several times.

    Args:
        settings: sizes, neurons and the number of times.
    """

    def __init__(self, settings: GsrRepeatSettings) -> None:
        super().__init__()
        self.settings = settings
        cell = partial(BoxCell, settings.neuron, settings.dt_s)
        self.student = EmotionStudent(settings.network, cell)

    def forward(self, gsr: Tensor) -> EmotionOutput:
        """Map (B, 1, samples) to logits and features, means over the steps."""
        state, shown = None, []
        for _ in range(self.settings.steps):
            output, state = self.student.step(gsr, state)
            shown.append(output)
        # From outputs of each step to steps of each output.
        parts = zip(*shown, strict=True)
        return EmotionOutput(*(torch.stack(part).mean(0) for part in parts))
