"""Round a float layer to integers with one scale S, and measure what rounding took away.

    weight = round(S * W), clipped to the grid     threshold = round(S * units)
    recurrent = round(S * units * R)               bias = round(S * units * b)
    chip voltage = 64 * S * units * v

`units` are the integers per unit of what arrives at the layer. What comes back to a recurrent layer
is spikes.
"""

from __future__ import annotations

from math import floor
from typing import Any

import nir
import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.chain import FloatLayer, read_chain
from knarr.deploy.rules import BIAS_MAX, VTH_MAX
from knarr.export import ExportError, fold, graph_hash
from knarr.hw_sim import NON_SPIKING_VTH, ChipNetwork, Conv, Dense, Neuron, Recurrent
from knarr.hw_sim.arithmetic import STATE_SHIFT
from knarr.hw_sim.arrays import Float64, Int32
from knarr.hw_sim.network import Layer


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
        raise DeployError(f"node '{layer.name}': all its weights are 0; remove the layer")
    # The negative end has one step more, which a symmetric grid leaves unused.
    scale = min(weight_limits(weight_bits)[1] / largest, register_scale(layer))
    if scale * largest < 1 or (layer.neuron.fires and round(scale * layer.units) < 1):
        raise DeployError(
            f"node '{layer.name}': with weights up to {largest:g} and a bias up to "
            f"{np.abs(layer.bias).max():g} of its threshold one scale leaves nothing of the "
            "smaller after rounding; bring weights, bias and threshold closer together in training"
        )
    return scale


def register_scale(layer: FloatLayer) -> float:
    """Return the largest scale at which threshold and bias fit their registers."""
    highest = VTH_MAX / layer.units if layer.neuron.fires else np.inf
    bias = float(np.abs(layer.bias).max(initial=0.0))
    return min(highest, BIAS_MAX / (layer.units * bias)) if bias else highest


def quantise(layer: FloatLayer, scale: float, weight_bits: int, *, vth_offset: int = 0) -> Layer:
    """Round a layer to integers.

    Args:
        layer: a float layer in the normal form of `knarr.deploy.lowering.chain`.
        scale: S above.
        weight_bits: signed bits of a weight, 2..8; larger weights are clipped.
        vth_offset: added to the rounded threshold.
    """
    neuron, units = layer.neuron, layer.units
    vth_int = NON_SPIKING_VTH
    if neuron.fires:
        vth_int = _threshold(layer, scale * units) + vth_offset
    registers = Neuron(neuron.i_decay, neuron.v_decay, vth_int, neuron.name)
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


def _threshold(layer: FloatLayer, height: float) -> int:
    # Where nothing decays v holds whole weights, and then v > height just when v > floor(height).
    if layer.neuron.v_decay == 0 and not layer.neuron.filtered:
        # A height that should be whole may lie a rounding error below.
        return floor(height * (1 + 1e-12))
    return round(height)


def is_exact(layer: FloatLayer, scale: float) -> bool:
    """Tell whether a scale makes whole numbers of all weights, so that none is rounded."""
    weights = scale * _weights(layer)
    return np.array_equal(np.rint(weights), weights)


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
        folded = fold(graph, keep_groups=True)
        chain = read_chain(folded, network.dt_s, approximate=bool(notes["approximations"]))
    except ExportError as error:
        raise DeployError(f"graph: not read, {error}") from error
    return {
        layer.name: np.asarray(scales[layer.name] * layer.weight, dtype=np.float64)
        for layer in chain.layers
    }
