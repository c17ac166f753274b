"""The networks that are timed: W1 (dense), W2 and W2s (convolutional), drawn from seeds and calibrated to a rate.

A workload is kept twice: as plain stages with their 2x2 sum pooling between them, which the other tools run, and as the
`ChipNetwork` in which that pooling is folded into the next weights, which knarr runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from published import PUBLISHED, SHAPES, Shape

from knarr.hw_sim import (
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
    simulate,
)

I_DECAY, V_DECAY = 1024, 128
"""Of all neurons: du = 1023 in Lava's words, whose effective current decay is du + 1."""
WEIGHT_SEED, INPUT_SEED, SUBSET_SEED = 0, 1, 0
JUDGED = 8000
"""Neurons of a convolution whose rate is measured."""
HIGHEST_VTH = 2**17 - 1
COUNT_BITS = 3
"""A 2x2 sum of spikes is 0..4."""

Bytes = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Stage:
    """A layer before its pooling is folded in.

    Args:
        weight: (out, in) or (out, in, 3, 3), even int32.
        pooled: 2x2 sums of what arrives are its input; an odd last row or column is dropped.
        entering: (features,) or (C, H, W) of what arrives, before pooling.
        vth: threshold mantissa.
    """

    weight: Weights
    pooled: bool
    entering: tuple[int, ...]
    vth: int = HIGHEST_VTH

    @property
    def conv(self) -> bool:
        return self.weight.ndim == 4

    @property
    def seen(self) -> tuple[int, ...]:
        """Shape after pooling."""
        if not self.pooled:
            return self.entering
        channels, height, width = self.entering
        return (channels, height // 2, width // 2)

    @property
    def out(self) -> tuple[int, ...]:
        if not self.conv:
            return (len(self.weight),)
        _, height, width = self.seen
        return (len(self.weight), height - 2, width - 2)


@dataclass(frozen=True, eq=False)
class Workload:
    """A calibrated network and what it is fed.

    Args:
        name: of `SHAPES`.
        percent: rate aimed at.
        stages: what other tools run.
        network: what knarr runs.
        inputs: (samples, timesteps, *features) uint8 of 0 or 1.
    """

    name: str
    percent: int
    stages: tuple[Stage, ...]
    network: ChipNetwork
    inputs: Bytes

    @property
    def title(self) -> str:
        return f"{self.name} {self.percent} %"

    @property
    def timesteps(self) -> int:
        return int(self.inputs.shape[1])

    @property
    def vth(self) -> tuple[int, ...]:
        return tuple(stage.vth for stage in self.stages)


class WorkloadError(Exception):
    """The rebuilt workload is not the published one: no number measured on it would mean anything."""


def drawn_inputs(shape: Shape, samples: int) -> Bytes:
    """(samples, timesteps, *features); sample i does not depend on how many there are."""
    size = (samples, shape.timesteps, *shape.input)
    return (np.random.default_rng(INPUT_SEED).random(size) < shape.rate).astype(np.uint8)


def drawn_stages(shape: Shape) -> tuple[Stage, ...]:
    """Weights input to output from one generator; no thresholds yet."""
    rng = np.random.default_rng(WEIGHT_SEED)
    stages: list[Stage] = []
    entering = shape.input
    for index, outputs in enumerate(shape.outputs):
        pooled = 0 < index <= shape.convs
        inputs = Stage(np.zeros((1, 1), np.int32), pooled, entering).seen
        size = (outputs, inputs[0], 3, 3) if index < shape.convs else (outputs, prod(inputs))
        weight = 2 * rng.integers(-shape.half, shape.half, size, endpoint=True)
        stages.append(Stage(weight.astype(np.int32), pooled, entering))
        entering = stages[-1].out
    return tuple(stages)


def pooled(spikes: Bytes) -> Bytes:
    """2x2 sums over the last two axes, an odd last row or column dropped."""
    high, wide = (n // 2 * 2 for n in spikes.shape[-2:])
    even = spikes[..., :high, :wide]
    total: Bytes = (
        even[..., ::2, ::2] + even[..., 1::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, 1::2]
    )
    return total


def neuron(vth: int) -> Neuron:
    return Neuron(I_DECAY, V_DECAY, vth)


def alone(stage: Stage, vth: int) -> ChipNetwork:
    """The stage as a network of its own, fed with counts where it pools."""
    coding = InputCoding(stage.seen, COUNT_BITS if stage.pooled else 1)
    layer: Conv | Dense = (
        Conv("stage", stage.weight, neuron(vth), stage.seen)  # type: ignore[arg-type]  # of three
        if stage.conv
        else Dense("stage", stage.weight, neuron(vth))
    )
    return ChipNetwork((layer,), coding, Readout("spikes"))


def calibrated(stages: Sequence[Stage], inputs: Bytes, rate: float) -> tuple[Stage, ...]:
    """Thresholds at which every stage fires at a rate, found by bisection going up.

    Args:
        stages: as drawn.
        inputs: (samples, timesteps, *features) that the rate is measured on.
        rate: spikes per neuron and step.
    """
    found = []
    arriving = inputs
    for stage in stages:
        seen = pooled(arriving) if stage.pooled else arriving
        chosen = judged_neurons(stage)

        def fired(vth: int, stage: Stage = stage, seen: Bytes = seen) -> Bytes:
            spikes = simulate(alone(stage, vth), seen, record=("spikes",)).spikes["stage"]
            return spikes.reshape(*seen.shape[:2], *stage.out)

        low, high = 1, HIGHEST_VTH
        while high - low > 1:
            middle = (low + high) // 2
            spikes = fired(middle).reshape(-1, prod(stage.out))
            if spikes[:, chosen].mean() > rate:
                low = middle
            else:
                high = middle
        found.append(Stage(stage.weight, stage.pooled, stage.entering, high))
        arriving = fired(high)
    return tuple(found)


def judged_neurons(stage: Stage) -> npt.NDArray[np.int64]:
    """Indices of the (C, H, W)-flat neurons that a rate is measured on."""
    count = prod(stage.out)
    if not stage.conv:
        return np.arange(count)
    return np.random.default_rng(SUBSET_SEED).permutation(count)[:JUDGED]


def folded(stages: Sequence[Stage]) -> ChipNetwork:
    """The chip network: a convolution of 2x2 sums has its kernel repeated and stride 2, a dense layer its columns."""
    layers: list[Conv | Dense] = []
    for index, stage in enumerate(stages):
        name, weight = f"layer{index}", stage.weight
        if stage.conv:
            if stage.pooled:
                weight = weight.repeat(2, axis=2).repeat(2, axis=3)
            step = 2 if stage.pooled else 1
            layers.append(Conv(name, weight, neuron(stage.vth), stage.entering, (step, step)))  # type: ignore[arg-type]
            continue
        if stage.pooled:
            maps = weight.reshape(len(weight), *stage.seen).repeat(2, axis=2).repeat(2, axis=3)
            whole = np.zeros((len(weight), *stage.entering), dtype=np.int32)
            whole[:, :, : maps.shape[2], : maps.shape[3]] = maps
            weight = whole.reshape(len(weight), -1)
        layers.append(Dense(name, weight, neuron(stage.vth)))
    return ChipNetwork(tuple(layers), InputCoding(stages[0].entering), Readout("spikes"))


def spikes_per_layer(network: ChipNetwork, inputs: Bytes, **how: Any) -> tuple[int, ...]:
    """Of the first sample."""
    counts = simulate(network, inputs[:1], **how).event_counts
    return tuple(int(counts[layer.name].sum()) for layer in network.layers)


def build(
    name: str, percent: int = 10, *, samples: int | None = None, calibrate: bool | None = None
) -> Workload:
    """A workload, checked against the published table where it is in there.

    Args:
        name: of `SHAPES`.
        percent: spikes per neuron and step, per cent.
        samples: how many inputs, by default as many as are timed at once.
        calibrate: find the thresholds, or take the published ones; by default found where none are published.

    Raises:
        WorkloadError: thresholds or spikes are not the published ones.
    """
    shape = SHAPES[name]
    known = PUBLISHED.get((name, percent))
    inputs = drawn_inputs(shape, samples or shape.samples)
    stages = drawn_stages(shape)
    if known is None or calibrate:
        judged = inputs if len(inputs) >= shape.judged else drawn_inputs(shape, shape.judged)
        stages = calibrated(stages, judged[: shape.judged], percent / 100)
    else:
        stages = tuple(
            Stage(s.weight, s.pooled, s.entering, vth)
            for s, vth in zip(stages, known.vth, strict=True)
        )
    work = Workload(name, percent, stages, folded(stages), inputs)
    if known is not None:
        spikes = spikes_per_layer(work.network, inputs)
        if (work.vth, spikes) != (known.vth, known.spikes):
            raise WorkloadError(
                f"{work.title}: vth {work.vth}, spikes {spikes}; published {known.vth}, {known.spikes}"
            )
    return work


SPOKEN = (700, 256, 20)
"""Channels of a cochlea, recurrent neurons and classes of W3."""
SPOKEN_STEPS, SPOKEN_RATE, SPOKEN_DELAY = 250, 0.045, 62


def spoken_digits(samples: int, percent: int = 10) -> tuple[ChipNetwork, Bytes]:
    """W3, like nets for spoken digits: a recurrent layer, and an output layer with a delay in every synapse.

    Args:
        samples: how many inputs, (samples, 250, 700).
        percent: spikes per hidden neuron and step; the output layer fires at the same rate.

    Returns:
        The network, whose thresholds are found by bisection on sample 0, and its inputs.
    """
    channels, hidden, classes = SPOKEN
    rng = np.random.default_rng(WEIGHT_SEED)
    forward = 2 * rng.integers(-64, 64, (hidden, channels), endpoint=True)
    back = 2 * rng.integers(-32, 32, (hidden, hidden), endpoint=True)
    out = 2 * rng.integers(-64, 64, (classes, hidden), endpoint=True)
    delay = rng.integers(0, SPOKEN_DELAY, (classes, hidden), endpoint=True)
    size = (samples, SPOKEN_STEPS, channels)
    inputs = (np.random.default_rng(INPUT_SEED).random(size) < SPOKEN_RATE).astype(np.uint8)
    layers: list[Recurrent | Dense] = []

    def network(vth: int) -> ChipNetwork:
        layer: Recurrent | Dense = (
            Dense("out", out, neuron(vth), delay_int=delay)
            if layers
            else Recurrent("hidden", forward, back, neuron(vth))
        )
        return ChipNetwork((*layers, layer), InputCoding((channels,)), Readout("spikes"))

    for _ in range(2):
        low, high = 1, HIGHEST_VTH
        while high - low > 1:
            middle = (low + high) // 2
            if simulate(network(middle), inputs[:1]).output.mean() > percent / 100:
                low = middle
            else:
                high = middle
        layers.append(network(high).layers[-1])  # type: ignore[arg-type]  # it made no convolution
    return ChipNetwork(tuple(layers), InputCoding((channels,)), Readout("spikes")), inputs
