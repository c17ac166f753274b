"""Pass: a float layer and one scale S into a layer of integers.

    weight = round(S * W), clipped to the grid     threshold = round(S * units)     bias = round(S * units * b)
    recurrent = round(S * units * R)               chip voltage = 64 * S * units * v

`units` are the integers per unit of what arrives: 1 for spikes, such as 255 for frames of 8 bits. What comes back is spikes.

What rounding took away: the float weights behind the integers of a lowered network.
"""

from __future__ import annotations

from math import floor
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.chain import read_chain
from knarr.deploy.lowering.float_layers import Float, FloatLayer
from knarr.deploy.rules import BIAS_MAX, VTH_MAX
from knarr.export import ExportError, fold, graph_hash
from knarr.hw_sim import NON_SPIKING_VTH, ChipNetwork, Conv, Dense, Neuron, Recurrent
from knarr.hw_sim.network import Layer


def limits(weight_bits: int) -> tuple[int, int]:
    """Least and greatest weight of signed bits."""
    return -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1


def widest_scale(layer: FloatLayer, weight_bits: int, units: float) -> float:
    """The scale at which the largest weight is the grid's largest, or less where threshold or bias would not fit.

    Raises:
        DeployError: no weight but 0, or weights, threshold and bias so far apart that one scale rounds one of them away.
    """
    largest = largest_weight(layer, units)
    if largest == 0:
        raise DeployError(f"node '{layer.name}': all its weights are 0; remove the layer")
    scale = min(limits(weight_bits)[1] / largest, roof(layer, units))
    if scale * largest < 1 or (layer.neuron.fires and round(scale * units) < 1):
        raise DeployError(
            f"node '{layer.name}': with weights up to {largest:g} and a bias up to {np.abs(layer.bias).max():g} of its threshold one "
            "scale leaves nothing of the smaller after rounding; bring weights, bias and threshold closer together in training"
        )
    return scale


def roof(layer: FloatLayer, units: float) -> float:
    """Largest scale at which threshold and bias fit their registers."""
    highest = VTH_MAX / units if layer.neuron.fires else np.inf
    bias = float(np.abs(layer.bias).max(initial=0.0))
    return min(highest, BIAS_MAX / (units * bias)) if bias else highest


def quantise(
    layer: FloatLayer, scale: float, weight_bits: int, units: float, *, vth_offset: int = 0
) -> Layer:
    """Integers of a layer.

    Args:
        layer: floats in the chip's gauge.
        scale: S above.
        weight_bits: signed bits of a weight, 2..8; larger ones are clipped.
        units: integers per unit of what arrives.
        vth_offset: added to the rounded threshold.
    """
    neuron = Neuron(
        layer.neuron.i_decay,
        layer.neuron.v_decay,
        _threshold(layer, scale * units) + vth_offset if layer.neuron.fires else NON_SPIKING_VTH,
        layer.neuron.name,
    )
    low, high = limits(weight_bits)

    def rounded(weight: Float) -> npt.NDArray[np.int32]:
        return np.clip(np.rint(scale * weight), low, high).astype(np.int32)

    bias = np.rint(scale * units * layer.bias).astype(np.int32) if layer.bias.any() else None
    volts = None if layer.neuron.volts is None else 64 * scale * units / layer.neuron.volts
    common: dict[str, Any] = {"bias_int": bias, "scale": volts}
    if layer.geometry is not None:
        g = layer.geometry
        return Conv(
            layer.name, rounded(layer.weight), neuron, g.input_shape, g.stride, g.padding, g.dilation, g.groups, **common
        )  # fmt: skip
    if layer.recurrent is not None:
        return Recurrent(
            layer.name, rounded(layer.weight), rounded(units * layer.recurrent), neuron, **common
        )
    return Dense(layer.name, rounded(layer.weight), neuron, **common, delay_int=layer.delay)


def _threshold(layer: FloatLayer, height: float) -> int:
    """Rounded; down where nothing decays: there v holds whole weights, and v > height just when v > floor(height)."""
    whole = layer.neuron.v_decay == 0 and not layer.neuron.filtered
    return floor(height * (1 + 1e-12)) if whole else round(height)


def is_exact(layer: FloatLayer, scale: float, units: float) -> bool:
    """Whether no weight is rounded."""
    return all(
        np.array_equal(np.rint(scale * part), scale * part) for part in _on_grid(layer, units)
    )


def weight_error(layer: FloatLayer, made: Layer, scale: float, units: float) -> tuple[float, int]:
    """Root mean square error of the weights relative to theirs, and how many were clipped."""
    wanted = np.concatenate([scale * part.reshape(-1) for part in _on_grid(layer, units)])
    integers = (
        [made.weight_int, made.recurrent_int] if isinstance(made, Recurrent) else [made.weight_int]
    )
    got = np.concatenate([part.reshape(-1) for part in integers]).astype(np.float64)
    error = float(np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)))
    return error, int((np.abs(got - wanted) > 0.5 + 1e-9).sum())


def lost(layer: FloatLayer, made: Layer) -> tuple[int, int]:
    """Outputs whose weights, and whose bias, all became 0 without being it."""
    rows = [(w.reshape(len(w), -1) != 0).any(1) for w in (layer.weight, made.weight_int)]
    bias = np.zeros(len(layer.bias)) if made.bias_int is None else made.bias_int
    return int((rows[0] & ~rows[1]).sum()), int(((layer.bias != 0) & (bias == 0)).sum())


def bias_error(layer: FloatLayer, made: Layer, scale: float) -> float | None:
    """Root mean square error of the biases relative to theirs, None without any; `scale` of voltages."""
    if not layer.bias.any() or made.bias_int is None:
        return None
    wanted = scale * layer.bias
    return float(np.sqrt(np.mean((made.bias_int - wanted) ** 2) / np.mean(wanted**2)))


def largest_weight(layer: FloatLayer, units: float) -> float:
    """Greatest |weight| on one grid with those of a loop."""
    return max(float(np.abs(part).max(initial=0.0)) for part in _on_grid(layer, units))


def _on_grid(layer: FloatLayer, units: float) -> list[Float]:
    """All weights of a layer as one scale rounds them: of what arrives, and of the spikes that come back."""
    return [layer.weight] if layer.recurrent is None else [layer.weight, units * layer.recurrent]


def unrounded_weights(
    graph: nir.NIRGraph, network: ChipNetwork
) -> dict[str, npt.NDArray[np.float64]]:
    """Weights of every layer before they were rounded and clipped, in units of its integers: scale * W of `quantise`.

    Training that starts from them (`knarr.train.chip.ChipStudent.from_network`) has lost nothing yet; at 3 bits the integers alone
    would tell most of a layer's weights from 0 no more.

    Args:
        graph: what `network` was lowered from.
        network: as `lower` gave it, or read back from its file.

    Returns:
        By layer name, of the shape of `weight_int`.

    Raises:
        DeployError: the network was lowered from another graph, or not by `lower`.
    """
    if network.graph_hash is None or network.graph_hash != graph_hash(graph):
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
