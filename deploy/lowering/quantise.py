"""Round the parts of a chip layer to integers, each with one scale S, and measure what was lost.

    weight = round(S * W), clipped to the grid     threshold = round(S * units * height)
    recurrent = round(S * units * R)               bias = round(S * units * b)
    chip voltage = 64 * S * units * v

`units` are the integers per unit of what arrives at the layer. What comes back to a recurrent layer
is spikes. Relay neurons have one weight above their threshold and no memory that outlives a step:
a spike that arrives resets v in the step that it is handed on in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.levels import FloatLayer, Level, lay_out
from knarr.deploy.lowering.read import read_network
from knarr.deploy.rules import BIAS_MAX, VTH_MAX
from knarr.export import ExportError, graph_hash
from knarr.hw_sim import NON_SPIKING_VTH, ChipNetwork, Conv, Dense, Neuron, Recurrent
from knarr.hw_sim.arithmetic import STATE_SHIFT
from knarr.hw_sim.arrays import Float64, Int32
from knarr.hw_sim.network import DECAY_UNITY, Layer, register_array, register_range

WHOLE = 1e-6
"""Distance from an integer within which a weight is one: sums in another order move it by less."""


def weight_limits(weight_bits: int) -> tuple[int, int]:
    """Return the least and the greatest weight of so many signed bits."""
    return -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1


def widest_scale(layer: FloatLayer, weight_bits: int) -> float:
    """Return the scale at which the largest weight is the grid's largest.

    It is less where threshold or bias would not fit their registers.

    Raises:
        DeployError: no weight but 0, or weights, threshold and bias so far apart that one scale
            rounds one of them away.
    """
    largest = largest_weight(layer)
    if largest == 0:
        raise DeployError(
            f"node '{layer.name}': all its weights are 0 where they meet an input; remove the layer"
        )
    # The negative end has one step more, which a symmetric grid leaves unused.
    scale = min(weight_limits(weight_bits)[1] / largest, register_scale(layer))
    if scale * largest < 1 or scale * layer.units * lowest_height(layer) <= 0.5:
        raise DeployError(
            f"node '{layer.name}': with weights up to {largest:g} and a bias up to "
            f"{np.abs(layer.bias).max():g} of its threshold one scale leaves nothing of the "
            "smaller after rounding; bring weights, bias and threshold closer together in training"
        )
    return scale


def register_scale(layer: FloatLayer) -> float:
    """Return the largest scale at which thresholds and bias fit their registers."""
    heights = layer.height[np.isfinite(layer.height)]
    highest = VTH_MAX / (layer.units * float(heights.max())) if fires(layer) else np.inf
    bias = float(np.abs(layer.bias).max(initial=0.0))
    return min(highest, BIAS_MAX / (layer.units * bias)) if bias else highest


def lowest_height(layer: FloatLayer) -> float:
    """Return the lowest threshold of a layer, infinite for a readout."""
    return float(layer.height.min()) if fires(layer) else np.inf


def fires(layer: FloatLayer) -> bool:
    """Tell whether a part has neurons that fire."""
    return layer.neuron is None or layer.neuron.fires


def quantise(layer: FloatLayer, scale: float, weight_bits: int, *, vth_offset: int = 0) -> Layer:
    """Round a part that is a node of the graph to integers, as a layer of its own.

    Args:
        layer: neurons in the normal form of `knarr.deploy.lowering.neurons`.
        scale: S above.
        weight_bits: signed bits of a weight, 2..8; larger weights are clipped.
        vth_offset: added to the rounded thresholds.
    """
    neuron, units = layer.neuron, layer.units
    assert neuron is not None
    vth_int: Any = NON_SPIKING_VTH
    if neuron.fires:
        vth_int = _thresholds(layer, scale * units) + vth_offset
        vth_int[np.isinf(layer.height)] = VTH_MAX
    registers = Neuron(layer.i_decay, layer.v_decay, vth_int, neuron.name)
    low, high = weight_limits(weight_bits)

    def rounded(weight: Float64) -> Int32:
        return np.clip(np.rint(scale * weight), low, high).astype(np.int32)

    optional: dict[str, Any] = {}
    if layer.bias.any():
        optional["bias_int"] = np.rint(scale * units * layer.bias).astype(np.int32)
    if neuron.volts is not None:
        optional["scale"] = (1 << STATE_SHIFT) * scale * units / neuron.volts
    weight = rounded(layer.weight)
    if layer.geometry is not None:
        return Conv(layer.name, weight, registers, **layer.geometry, **optional)
    if layer.recurrent is not None:
        recurrent = rounded(units * layer.recurrent)
        return Recurrent(layer.name, weight, recurrent, registers, **optional)
    return Dense(layer.name, weight, registers, **optional, delay_int=layer.delay)


def _thresholds(layer: FloatLayer, unit: float) -> Int32:
    heights = np.where(np.isinf(layer.height), 1.0, layer.height) * unit
    neuron = layer.neuron
    assert neuron is not None
    # Where nothing decays v holds whole weights, and then v > height just when v > floor(height).
    if not neuron.filtered and not np.any(layer.v_decay):
        # A height that should be whole may lie a rounding error below.
        return np.floor(heights * (1 + 1e-12)).astype(np.int32)
    return np.rint(heights).astype(np.int32)


def quantise_relay(layer: FloatLayer, beside: Sequence[Layer], weight_bits: int) -> Layer:
    """Return relay neurons as integers, as a layer of their own.

    Args:
        layer: relay neurons, or the neuron that fires at every step.
        beside: the nodes of the same chip layer, whose registers they share where they can.
        weight_bits: signed bits of a weight.
    """
    high = weight_limits(weight_bits)[1]
    shared = {register_range(made.neuron.vth_int) for made in beside}
    threshold = high - 1
    if len(shared) == 1:
        (least, most) = shared.pop()
        fits = least == most and most < (BIAS_MAX if layer.fires_always else high)
        threshold = most if fits else threshold
    decays = {register_range(made.neuron.v_decay) for made in beside}
    # v is reset whenever something arrives, so that any decay of it does.
    v_decay = 0
    if len(decays) == 1:
        (least, most) = decays.pop()
        v_decay = most if least == most else 0
    beyond = np.isinf(layer.height)
    registers = Neuron(
        DECAY_UNITY,
        np.where(beyond, DECAY_UNITY - 1, v_decay),
        np.where(beyond, VTH_MAX, threshold),
        layer.name,
    )
    weight = (high * np.sign(layer.weight)).astype(np.int32)
    bias = np.array([threshold + 1], dtype=np.int32) if layer.fires_always else None
    if layer.geometry is not None:
        return Conv(layer.name, weight, registers, **layer.geometry, bias_int=bias)
    return Dense(layer.name, weight, registers, bias_int=bias)


def stack(parts: Sequence[Layer]) -> Layer:
    """Return parts that receive the same as one chip layer; their outputs follow each other."""
    if len(parts) == 1:
        return parts[0]
    name, neurons = (
        "+".join(dict.fromkeys(names))
        for names in ([p.name for p in parts], [p.neuron.name for p in parts])
    )
    registers = {
        field: np.concatenate(
            [
                register_array(getattr(part.neuron, field), part.output_shape).reshape(-1)
                for part in parts
            ]
        )
        for field in ("i_decay", "v_decay", "vth_int")
    }
    neuron = Neuron(**registers, name=neurons)
    bias: Int32 | None = None
    if any(part.bias_int is not None for part in parts):
        each = [
            np.zeros(len(part.weight_int), dtype=np.int32)
            if part.bias_int is None
            else part.bias_int
            for part in parts
        ]
        bias = np.concatenate(each)
    weight = np.concatenate([part.weight_int for part in parts])
    first = parts[0]
    if isinstance(first, Conv):
        return replace(
            first, name=name, weight_int=weight, neuron=neuron, bias_int=bias, scale=None
        )
    if any(isinstance(part, Recurrent) for part in parts):
        if any(isinstance(part, Dense) and part.delay_int is not None for part in parts):
            raise DeployError(
                f"layer '{name}': delays beside a loop in one layer, which netx drops; use one of "
                "the two"
            )
        return Recurrent(name, weight, _block_diagonal(parts), neuron, bias)
    delay: Int32 | None = None
    if any(isinstance(part, Dense) and part.delay_int is not None for part in parts):
        delay = np.concatenate(
            [
                np.zeros(part.weight_int.shape, dtype=np.int32)
                if not isinstance(part, Dense) or part.delay_int is None
                else part.delay_int
                for part in parts
            ]
        )
    return Dense(name, weight, neuron, bias, None, delay)


def _block_diagonal(parts: Sequence[Layer]) -> Int32:
    size = sum(len(part.weight_int) for part in parts)
    found = np.zeros((size, size), dtype=np.int32)
    first = 0
    for part in parts:
        own = slice(first, first + len(part.weight_int))
        if isinstance(part, Recurrent):
            found[own, own] = part.recurrent_int
        first = own.stop
    return found


def exact_scale(layer: FloatLayer, highest: float) -> float | None:
    """Return the largest scale that makes whole numbers of weights, thresholds and biases.

    It is a power of two times the least that does. None where there is none up to `highest`.
    """
    heights = layer.height[np.isfinite(layer.height)] if fires(layer) else np.ones(0)
    whole = (_weights(layer), layer.units * layer.bias, layer.units * heights)
    unit = _common_unit(np.concatenate(whole))
    # Where a threshold lies off the grid that weights are on, the weights still are exact.
    for found in (unit, _common_unit(whole[0])):
        if found is None:
            continue
        scale = float(2.0 ** np.floor(np.log2(highest * found)) / found)
        if is_exact(layer, scale):
            return scale
    return None


def _common_unit(values: Float64) -> float | None:
    """Return the largest number of which all values are whole multiples, as Euclid finds it."""
    sizes = np.unique(np.abs(values[values != 0]))
    if not sizes.size:
        return None
    unit = float(sizes[0])
    # Beyond so many multiples the grid is no 8 bits any more.
    while sizes[-1] / unit < VTH_MAX:
        rest = np.abs(sizes - np.rint(sizes / unit) * unit)
        rest = rest[rest > WHOLE * sizes[0]]
        if not rest.size:
            return unit
        unit = float(rest.min())
    return None


def is_exact(layer: FloatLayer, scale: float) -> bool:
    """Tell whether a scale makes whole numbers of all weights, so that none is rounded."""
    weights = scale * _weights(layer)
    return bool((np.abs(np.rint(weights) - weights) < WHOLE).all())


def weight_error(layer: FloatLayer, made: Layer, scale: float) -> tuple[float, int]:
    """Measure the rounding of weights.

    Returns:
        The root mean square error relative to that of the weights, and how many were clipped.
    """
    wanted = scale * _weights(layer)
    integers = made.weight_int.reshape(-1)
    if isinstance(made, Recurrent):
        integers = np.concatenate((integers, made.recurrent_int.reshape(-1)))
    # Rounding moves a weight by half a step at most, clipping by more.
    clipped = np.abs(integers - wanted) > 0.5 + 1e-9
    return _relative_error(integers, wanted), int(clipped.sum())


def bias_error(layer: FloatLayer, made: Layer, scale: float) -> float | None:
    """Return the root mean square error of the biases relative to theirs, None without any.

    Args:
        layer: the float layer.
        made: its integers.
        scale: S above.
    """
    if not layer.bias.any() or made.bias_int is None:
        return None
    return _relative_error(made.bias_int, scale * layer.units * layer.bias)


def _relative_error(integers: Int32, wanted: Float64) -> float:
    error = np.mean((integers - wanted) ** 2)
    return float(np.sqrt(error / np.mean(wanted**2)))


def rounded_away(layer: FloatLayer, made: Layer) -> tuple[int, int]:
    """Count the outputs whose weights, and those whose bias, all became 0 without being it."""
    wanted, kept = (
        weight.reshape(len(weight), -1).any(axis=1) for weight in (layer.weight, made.weight_int)
    )
    # A layer without a single bias left has no array of them.
    bias = np.zeros(len(layer.bias)) if made.bias_int is None else made.bias_int
    lost_biases = (layer.bias != 0) & (bias == 0)
    return int((wanted & ~kept).sum()), int(lost_biases.sum())


def largest_weight(layer: FloatLayer) -> float:
    """Return the greatest |weight| of a layer, those of its loop included."""
    return float(np.abs(_weights(layer)).max(initial=0.0))


def _weights(layer: FloatLayer) -> Float64:
    """Return all weights of a layer in a row, as one scale rounds them."""
    weights = layer.weight.reshape(-1)
    if layer.recurrent is None:
        return weights
    # Spikes that come back are worth 1, what arrives is worth `units`.
    return np.concatenate((weights, layer.units * layer.recurrent.reshape(-1)))


def unrounded_weights(graph: nir.NIRGraph, network: ChipNetwork) -> dict[str, Float64]:
    """Return the weights of every layer before they were rounded and clipped.

    Training that starts from them (`knarr.train.chip.ChipStudent.from_network`) has lost nothing
    yet; at 3 bits the integers alone would tell most of a layer's weights from 0 no more.

    Args:
        graph: what `network` was lowered from.
        network: a network as `lower` gave it, or read back from its file.

    Returns:
        By layer name, of the shape of `weight_int` and in its units: S * W above.

    Raises:
        DeployError: the network was lowered from another graph, or not by `lower`.
    """
    if network.graph_hash != graph_hash(graph):
        raise DeployError("network: was not lowered from this graph; lower this graph again")
    notes = network.lowering
    scales = {facts["name"]: facts.get("scale") for facts in notes.get("layers", ())}
    if network.dt_s is None or None in scales.values():
        raise DeployError(
            "network: its file does not say with which scales it was lowered; lower it again"
        )
    try:
        read = read_network(
            graph,
            network.dt_s,
            approximate=bool(notes["approximations"]),
            graded=network.input.bits > 1 or network.input.signed,
        )
    except ExportError as error:
        raise DeployError(f"graph: not read, {error}") from error
    coding = network.input
    levels = lay_out(read, coding.units, coding.bits, coding.signed)
    return {
        made.name: _unrounded(level, made, scales, int(notes["weight_bits"]))
        for level, made in zip(levels, network.layers, strict=True)
    }


def _unrounded(level: Level, made: Layer, scales: dict[str, float], weight_bits: int) -> Float64:
    """Return the weights of a chip layer before they were rounded; relay neurons keep theirs."""
    parts, first = [], 0
    for part in level.parts:
        own = made.weight_int[first : first + len(part.weight)]
        first += len(part.weight)
        if part.neuron is None:
            parts.append(np.asarray(own, dtype=np.float64))
            continue
        weight = np.asarray(scales[part.name] * part.weight, dtype=np.float64)
        low, high = weight_limits(weight_bits)
        if weight.shape != own.shape or (np.abs(np.clip(weight, low, high) - own) > 1).any():
            raise DeployError(
                "network: its file holds other weights than this version lowers the graph to; "
                "lower it again"
            )
        parts.append(weight)
    return np.concatenate(parts)
