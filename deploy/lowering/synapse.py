"""Pass: a synapse's node, with what delays it and what comes back to it, into a float layer in its neurons' gauge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.float_layers import Float, FloatLayer, FloatNeuron, Geometry
from knarr.export.graph.shapes import Shape
from knarr.export.graph.step_synapses import ints
from knarr.hw_sim.network import MAX_DELAY

Steps = npt.NDArray[np.int32]
DENSE, CONVS = (nir.Linear, nir.Affine), (nir.Conv1d, nir.Conv2d)


def chip_shape(shape: Shape) -> Shape:
    """Signals (channels, length) are images one pixel high."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def identity(shape: Shape) -> Any:
    if len(shape) == 1:
        return nir.Linear(np.eye(shape[0]))
    channels, axes = shape[0], len(shape) - 1
    ones = np.ones((channels, 1, *[1] * axes))
    kind: Any = nir.Conv1d if axes == 1 else nir.Conv2d
    one: Any = 1 if axes == 1 else np.ones(2, dtype=np.int64)
    return kind(
        shape[1] if axes == 1 else shape[1:], ones, one, 0 * one, one, channels, np.zeros(channels)
    )


def float_layer(
    name: str, node: Any, shape: Shape, out: Shape, neuron: FloatNeuron, approximate: bool
) -> FloatLayer:
    weight, bias = _values(name, node)
    gain = _rows(neuron.name, "gain or threshold", neuron.gain, out)
    rest = _rows(neuron.name, "v_leak", neuron.bias, out)
    bias, neuron = _through(name, neuron, bias, approximate)
    weight = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    geometry = None
    if isinstance(node, CONVS):
        if isinstance(node, nir.Conv1d):
            weight = weight[:, :, None, :]
        stride, padding, dilation = (
            ints(v) if isinstance(node, nir.Conv2d) else (low, ints(v, 1)[0])
            for v, low in ((node.stride, 1), (node.padding, 0), (node.dilation, 1))
        )
        c, h, w = chip_shape(shape)
        geometry = Geometry(
            (c, h, w), _pair(stride), _pair(padding), _pair(dilation), int(node.groups)
        )
    return FloatLayer(name, neuron, weight, gain * bias + rest, geometry=geometry)


def _values(name: str, node: Any) -> tuple[Float, Float]:
    """Weights and bias of a synapse's node, 0 where it has none."""
    weight = np.asarray(node.weight, dtype=np.float64)
    bias = np.asarray(getattr(node, "bias", np.zeros(len(weight))), dtype=np.float64).reshape(-1)
    if not np.isfinite(weight).all() or not np.isfinite(bias).all():
        raise DeployError(f"node '{name}': holds weights or a bias that are not finite; repair it")
    return weight, bias


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _rows(name: str, what: str, values: Float, out: Shape) -> Float:
    """One value per output or channel."""
    whole = np.broadcast_to(values.reshape(-1) if values.size == 1 else values, out).reshape(
        out[0], -1
    )
    if (whole != whole[:, :1]).any():
        raise DeployError(
            f"node '{name}': {what} differs inside a channel, whose neurons share one kernel; use one value per channel"
        )
    return np.array(whole[:, 0])


def _through(
    name: str, neuron: FloatNeuron, bias: Float, approximate: bool
) -> tuple[Float, FloatNeuron]:
    """A synapse's bias as the chip adds it: behind a synaptic current, at its end value from the first step."""
    if not neuron.filtered or not bias.any():
        return bias, neuron
    text = f"node '{name}': its bias passes the synaptic filter of '{neuron.name}', the chip's bias does not"
    if not approximate:
        raise DeployError(f"{text}; train without bias, use LIF neurons, or allow approximation")
    assert neuron.i_share is not None
    near = (*neuron.approximations, f"{text}: it acts in full from the first step")
    return bias / neuron.i_share, replace(neuron, approximations=near)


def delayed(layer: FloatLayer, before: Steps | None, after: Steps | None) -> FloatLayer:
    if (before is None or not before.any()) and (after is None or not after.any()):
        return layer
    if layer.geometry is not None:
        raise DeployError(
            f"node '{layer.name}': netx ignores delays at a convolution; put them before or behind a Linear"
        )
    if after is not None and after.any() and layer.bias.any():
        raise DeployError(
            f"node '{layer.name}': its bias is delayed and the chip's is not; put the delay before it"
        )
    steps = np.zeros(layer.weight.shape, dtype=np.int32)
    if before is not None:
        steps += before.reshape(1, -1)
    if after is not None:
        steps += after.reshape(-1, 1)
    if steps.max() > MAX_DELAY:
        raise DeployError(
            f"node '{layer.name}': delays up to {steps.max()} steps, netx has 0..{MAX_DELAY}; use a longer dt or shorter delays"
        )
    return replace(layer, delay=steps)


def recurrent(layer: FloatLayer, source: str, node: Any, *, approximate: bool) -> FloatLayer:
    name = source or layer.neuron.name
    if layer.geometry is not None:
        raise DeployError(
            f"node '{layer.neuron.name}': hears itself behind a convolution; netx has loops in dense layers alone"
        )
    if layer.delay is not None:
        raise DeployError(
            f"node '{layer.name}': delays in a layer with a loop, which netx drops; remove them"
        )
    outputs = len(layer.weight)
    weight, bias = _values(name, identity((outputs,)) if node is None else node)
    gain = _rows(layer.neuron.name, "gain", layer.neuron.gain, (outputs,))
    bias, neuron = _through(name, layer.neuron, bias, approximate)
    return replace(
        layer, neuron=neuron, recurrent=weight * gain.reshape(-1, 1), bias=layer.bias + gain * bias
    )
