"""Pass: the scale of a layer, from its weights alone or by how well its spikes agree with the float graph's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.float_layers import FloatLayer
from knarr.deploy.lowering.quantise import is_exact, largest_weight, quantise, roof, widest_scale
from knarr.deploy.rules import ACCUMULATOR, check_network, fatal
from knarr.hw_sim import ChipNetwork, Conv, InputCoding, Readout, simulate
from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.network import Layer

COARSE = np.geomspace(0.5, 4.0, 16)
"""Of the widest scale: above 1 the largest weights are clipped and the others finer."""
FINE = np.geomspace(0.92, 1.08, 13)
UNWRAPPED = STATE_MAX - 64 * ACCUMULATOR
"""A wrap leaves |u| above it as long as sums fit their accumulator, so below it there was none."""
STEP_DOWN = 1.2
"""Between scales below the coarse ones, where only they keep the sums inside the accumulator."""
OFFSETS = (-2, -1, 1, 2)
"""Thresholds beside the rounded one: truncation toward zero makes the chip's voltages a little small."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """A layer of integers, its scale, and what it sends when it hears `events` of the calibration."""

    layer: Layer
    scale: float
    score: float
    tried: int


def from_weights(layer: FloatLayer, weight_bits: int, units: float) -> Chosen:
    """The largest scale that the registers hold and netx runs as it is written."""
    widest = widest_scale(layer, weight_bits, units)
    scales = [float(widest * factor) for factor in np.linspace(1.0, 0.5, 51)]
    if is_exact(layer, dyadic(widest), units):
        scales.insert(0, dyadic(widest))
    for tried, scale in enumerate(scales, start=1):
        made = quantise(layer, scale, weight_bits, units)
        if not fatal(check_network(alone(made, 1))):
            return Chosen(made, scale, float("nan"), tried)
    raise DeployError(
        f"node '{layer.name}': netx would run other weights than its own at any scale; give the matrix both signs"
    )


def from_spikes(
    layer: FloatLayer,
    weight_bits: int,
    units: float,
    bits: int,
    events: npt.NDArray[np.integer[Any]],
    wanted: npt.NDArray[np.number[Any]],
) -> Chosen:
    """The scale, and threshold beside the rounded one, with which the layer comes nearest to the float graph.

    Args:
        layer, weight_bits, units: as `quantise` takes them.
        bits: of what arrives.
        events: (samples, timesteps, *features) that arrive on the chip, from the chip's own layers before.
        wanted: (samples, timesteps, *features) of the float graph: spikes, or volts of a readout.

    Returns:
        The first of the best. Spikes are scored by decisions that differ plus differences of spike counts, so that silence
        is no cheap agreement; readouts by the mean absolute difference in volts.

    Raises:
        DeployError: no scale is legal, or every one overflows the accumulator on these events.
    """
    start = from_weights(layer, weight_bits, units)
    widest, tried = start.scale, 0
    best: Chosen | None = None

    def attempt(scale: float, offset: int = 0) -> None:
        nonlocal best, tried
        if scale > roof(layer, units) or (layer.neuron.fires and round(scale * units) + offset < 1):
            return
        made = quantise(layer, scale, weight_bits, units, vth_offset=offset)
        network = alone(made, bits)
        violations = check_network(network)
        if fatal(violations):
            return
        tried += 1
        may_leave = any(violation.rule == "states_fit_registers" for violation in violations)
        ran, fits = _run(network, made, events, may_leave)
        if not fits:
            return
        score = _score(ran, wanted, None if layer.neuron.fires else 64 * scale * units)
        if best is None or score < best.score:
            best = Chosen(made, scale, score, tried)

    attempt(widest)
    attempt(dyadic(widest))
    for factor in COARSE:
        attempt(float(widest * factor))
    smaller = widest * COARSE[0]
    while best is None and smaller * largest_weight(layer, units) >= 1:
        smaller /= STEP_DOWN
        attempt(float(smaller))
    if best is not None:
        middle = best.scale
        for factor in FINE:
            attempt(float(middle * factor))
    if best is not None and layer.neuron.fires:
        middle = best.scale
        for offset in OFFSETS:
            attempt(middle, offset)
    if best is None:
        raise DeployError(
            f"node '{layer.name}': at every legal scale its sums pass the accumulator's {ACCUMULATOR - 1}, or its states leave 24 bits, on the "
            "calibration samples; "
            "use fewer weight bits or smaller payloads"
        )
    return Chosen(best.layer, best.scale, best.score, tried)


def alone(layer: Layer, bits: int) -> ChipNetwork:
    """A layer as a network of its own."""
    shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
    kind = "spikes" if layer.neuron.spikes else "voltage"
    return ChipNetwork((layer,), InputCoding(shape, bits), Readout(kind))  # type: ignore[arg-type]


def dyadic(scale: float) -> float:
    """Largest power of two that is no larger: on it weights of k/2**n lie exactly."""
    return float(2.0 ** np.floor(np.log2(scale)))


def _run(
    network: ChipNetwork, layer: Layer, events: npt.NDArray[np.integer[Any]], may_leave: bool
) -> tuple[npt.NDArray[np.integer[Any]], bool]:
    """(spikes, or voltages of a readout) of one layer, and whether sums and states stayed inside their registers."""
    record = ("output", "u", "v") if may_leave else ("output",)
    recording = simulate(network, shaped(layer, events), record=record)
    fits = recording.peak_sum[layer.name] < ACCUMULATOR
    if may_leave:
        u, v = (int(np.abs(state[layer.name]).max()) for state in (recording.u, recording.v))
        fits = fits and u < UNWRAPPED and v < STATE_MAX - 1
    return recording.output.reshape(*events.shape[:2], *layer.output_shape), fits


def shaped(layer: Layer, events: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    """Events as the layer takes them: a dense one flat."""
    shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
    return events.reshape(*events.shape[:2], *shape)


def _score(
    ran: npt.NDArray[np.integer[Any]], wanted: npt.NDArray[np.number[Any]], per_volt: float | None
) -> float:
    wanted = wanted.reshape(ran.shape)
    if per_volt is not None:
        return float(np.abs(ran / per_volt - wanted).mean())
    counts = np.abs(ran.sum(axis=1) - wanted.sum(axis=1, dtype=np.int64)).sum()
    return float((ran != wanted).sum() + counts)
