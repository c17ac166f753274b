"""NIR graph -> integer chip network: registers rounded, weights scaled per layer, pooling folded into the next synapse.

With one scale S per layer, chip voltage = 64 * S * v:

    v_decay   = round(4096 * dt / tau_mem)        i_decay = round(4096 * dt / tau_syn), 4096 where there is no synapse state
    weight    = round(S * g * W)                  g: LIF, LI r*dt/tau; CubaLIF r*w_in*(dt/tau_mem)*(dt/tau_syn)
    threshold = round(S * v_th)                   bias = round(S * g * b), LIF and LI only
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.export import ExportError, graph_hash
from knarr.export.arguments import as_dt
from knarr.export.shapes import infer
from knarr.export.topology import Edge, inline, topology
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
)
from knarr.hw_sim.layers import Layer

Float = npt.NDArray[np.float64]

VTH_MAX = 2**17 - 1
BIAS_MAX = 4095
DECAY_UNITY = 4096


@dataclass(frozen=True)
class _Pool:
    """Average pooling waiting to be folded: window in pixels, shape (C, H, W) before it."""

    size: tuple[int, int]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class _NeuronFloats:
    gain: float
    v_threshold: float | None
    i_decay: int
    v_decay: int
    filters_input: bool


def lower(
    graph: nir.NIRGraph,
    dt_s: float,
    *,
    chip: str = "loihi2",
    weight_bits: int = 8,
    input_bits: int = 1,
    calibration: npt.ArrayLike | None = None,
) -> ChipNetwork:
    """Lower a graph to integers.

    Args:
        graph: chain of Input, {AvgPool2d, Flatten}, {Linear, Affine, Conv2d}, {LIF, CubaLIF, LI, CubaLI}, ..., Output. A neuron
            behind a Linear or Affine may hear itself through one Linear: a loop of one step.
        dt_s: time step, seconds.
        chip: "loihi2".
        weight_bits: signed bits of a weight, 2..8.
        input_bits: 1 for spikes, more for graded input 0..2**input_bits-1.
        calibration: not used by this scaling; anything but None is refused.

    Returns:
        A network named after the graph's nodes: layers after synapses, neurons after neurons.

    Raises:
        DeployError: a node, a structure or a parameter that the chip cannot hold; names it, the reason and the cure.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    if not 2 <= weight_bits <= 8:
        raise DeployError(f"weight_bits: {weight_bits}, allowed 2..8")
    if calibration is not None:
        raise DeployError("calibration: scales come from the weights alone; leave calibration out")
    nodes, edges, loops = _flat(graph, dt_s)
    chain = _chain(nodes, edges)
    shape = tuple(int(n) for n in nodes[chain[0]].input_type["input"])
    try:
        input_coding = InputCoding(shape, input_bits)
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other input_bits or another input shape") from error
    layers: list[Layer] = []
    pool: _Pool | None = None
    names = iter(chain[1:-1])
    for name in names:
        node = nodes[name]
        if isinstance(node, nir.Flatten):
            if (int(node.start_dim), int(node.end_dim) % len(shape)) != (0, len(shape) - 1):
                raise DeployError(f"node '{name}': flattens only part of {shape}; flatten all features")
            shape = (int(np.prod(shape)),)
        elif isinstance(node, nir.AvgPool2d):
            pool, shape = _read_pool(name, node, shape, pool)
        elif isinstance(node, (nir.Linear, nir.Affine, nir.Conv2d)):
            neuron_name = next(names, None)
            neuron = _read_neuron(neuron_name, nodes[neuron_name], dt_s) if neuron_name else None
            if neuron_name is None or neuron is None:
                raise DeployError(
                    f"node '{name}': no neuron follows it; a chip layer is a synapse and its neurons"
                )
            feedback = loops.get(neuron_name)
            layers.append(_lower_layer(name, node, shape, pool, neuron_name, neuron, weight_bits, feedback))
            shape, pool = layers[-1].output_shape, None
        else:
            raise DeployError(
                f"node '{name}': {type(node).__name__} cannot stand here; a chip layer is Linear, Affine or Conv2d, then "
                "LIF, CubaLIF, LI or CubaLI, with AvgPool2d and Flatten between layers"
            )
    if pool is not None:
        raise DeployError("graph: ends with pooling; there is no synapse after it to fold it into")
    if not layers:
        raise DeployError("graph: holds no synapse and neuron to lower")
    for layer in layers[:-1]:
        if not layer.neuron.spikes:
            raise DeployError(
                f"node '{layer.neuron.name}': never fires, so nothing after it would hear it; only the last may"
            )
    kind = "spikes" if layers[-1].neuron.spikes else "voltage"
    return ChipNetwork(tuple(layers), input_coding, Readout(kind), float(dt_s), graph_hash(graph))  # type: ignore[arg-type]


def _chain(nodes: dict[str, Any], edges: list[Edge]) -> list[str]:
    order = list(topology(nodes, edges).order)
    for name in order:
        inputs = sum(target == name for _, target in edges)
        outputs = sum(source == name for source, _ in edges)
        if inputs != (not isinstance(nodes[name], nir.Input)) or outputs != (
            not isinstance(nodes[name], nir.Output)
        ):
            raise DeployError(
                f"node '{name}': {inputs} edges in, {outputs} out; only plain chains are lowered"
            )
    if (
        len(order) < 2
        or not isinstance(nodes[order[0]], nir.Input)
        or not isinstance(nodes[order[-1]], nir.Output)
    ):
        raise DeployError("graph: is not one chain from Input to Output")
    return order


def _flat(graph: nir.NIRGraph, dt_s: float) -> tuple[dict[str, Any], list[Edge], dict[str, Float]]:
    """Nodes and edges without loops, and neuron -> weights of the Linear through which it hears itself.

    Raises:
        DeployError: shapes that part, values that are not finite, or a loop that is not of this kind.
    """
    try:
        as_dt(dt_s)
        nodes, edges = inline(graph)
        order = topology(nodes, edges, dt_s)
        infer(nodes, order)
    except ExportError as error:
        raise DeployError(f"graph: not lowered, {error}") from error
    loops: dict[str, Float] = {}
    for neuron, sources in order.looping.items():
        for source in sources:
            plain = isinstance(nodes[source], nir.Linear) and order.sources[source] == (neuron,)
            alone = [t for s, t in edges if s == source] == [neuron] and len(sources) == 1
            if not (plain and alone and isinstance(nodes[neuron], (nir.LIF, nir.CubaLIF))):
                raise DeployError(
                    f"node '{source}': closes a loop into '{neuron}' that a chip layer does not have; let one LIF or CubaLIF hear "
                    "itself through one Linear without bias"
                )
            loops[neuron] = np.asarray(nodes[source].weight, dtype=np.float64)
            edges = [edge for edge in edges if source not in edge]
            nodes = {name: node for name, node in nodes.items() if name != source}
    return nodes, edges, loops


def _read_pool(
    name: str, node: Any, shape: tuple[int, ...], waiting: _Pool | None
) -> tuple[_Pool, tuple[int, ...]]:
    size, stride, padding = (_pair(v) for v in (node.kernel_size, node.stride, node.padding))
    if len(shape) != 3 or waiting is not None or stride != size or padding != (0, 0):
        raise DeployError(
            f"node '{name}': pool {size}, stride {stride}, padding {padding} on {shape} cannot be folded; "
            "use one pool on (C, H, W) with stride equal to its window and no padding"
        )
    return _Pool(size, (shape[0], shape[1], shape[2])), (shape[0], shape[1] // size[0], shape[2] // size[1])


def _read_neuron(name: str, node: Any, dt_s: float) -> _NeuronFloats | None:
    if not isinstance(node, (nir.LIF, nir.LI, nir.CubaLIF, nir.CubaLI)):
        return None
    filtered = isinstance(node, (nir.CubaLIF, nir.CubaLI))
    for field in ("v_leak", "v_reset"):
        value = getattr(node, field, None)
        if value is not None and np.any(np.asarray(value) != 0):
            raise DeployError(
                f"node '{name}': {field} is not 0; the chip rests and resets at 0, shift the voltages in training"
            )
    a_mem = dt_s / _uniform(name, "tau", node.tau_mem if filtered else node.tau)
    gain = a_mem * _uniform(name, "r", node.r)
    i_decay = DECAY_UNITY
    if filtered:
        a_syn = dt_s / _uniform(name, "tau_syn", node.tau_syn)
        gain *= a_syn * _uniform(name, "w_in", node.w_in)
        i_decay = _register(name, "current", a_syn, 1, DECAY_UNITY)
    threshold = _uniform(name, "v_threshold", node.v_threshold) if hasattr(node, "v_threshold") else None
    if threshold is not None and threshold <= 0:
        raise DeployError(
            f"node '{name}': v_threshold {threshold:g}; a neuron resting at 0 needs one above 0"
        )
    # A register of 4096 is not in hardware: a membrane with no memory at all rounds to the shortest it has.
    v_decay = _register(name, "voltage", a_mem, 0, DECAY_UNITY)
    return _NeuronFloats(gain, threshold, i_decay, min(v_decay, DECAY_UNITY - 1), filtered)


def _register(name: str, which: str, fraction: float, low: int, high: int) -> int:
    register = round(DECAY_UNITY * fraction)
    if not low <= register <= high:
        raise DeployError(
            f"node '{name}': {which} decay register {register}, allowed {low}..{high}; "
            f"a time constant of {1 / fraction:.3g} steps does not fit"
        )
    return register


def _lower_layer(
    name: str,
    node: Any,
    shape: tuple[int, ...],
    pool: _Pool | None,
    neuron_name: str,
    floats: _NeuronFloats,
    weight_bits: int,
    feedback: Float | None,
) -> Layer:
    weight = floats.gain * np.asarray(node.weight, dtype=np.float64)
    if pool is not None:
        weight = weight / (pool.size[0] * pool.size[1])
    bias = floats.gain * np.asarray(getattr(node, "bias", 0.0), dtype=np.float64)
    if np.any(bias != 0) and floats.filters_input:
        raise DeployError(
            f"node '{name}': its bias passes the synaptic filter of '{neuron_name}', the chip's bias does not; "
            "train without bias or use LIF neurons"
        )
    largest = float(np.abs(weight).max(initial=0.0))
    if feedback is not None:
        feedback = floats.gain * feedback
        largest = max(largest, float(np.abs(feedback).max(initial=0.0)))
    if largest == 0 or not np.isfinite(largest):
        raise DeployError(
            f"node '{name}': its largest weight is {largest}; a layer needs finite weights that are not all 0"
        )
    scale = (2 ** (weight_bits - 1) - 1) / largest
    if floats.v_threshold is not None:
        scale = min(scale, VTH_MAX / floats.v_threshold)
    if np.any(bias != 0):
        scale = min(scale, BIAS_MAX / float(np.abs(bias).max()))
    threshold = NON_SPIKING_VTH if floats.v_threshold is None else round(scale * floats.v_threshold)
    if threshold < 1 or scale * largest < 1:
        raise DeployError(
            f"node '{name}': with weights up to {largest:g} and threshold {floats.v_threshold} one scale leaves nothing of the "
            "smaller after rounding; bring weights, bias and threshold closer together in training"
        )
    weight_int = np.rint(scale * weight).astype(np.int32)
    bias_int = np.rint(scale * bias).astype(np.int32) if np.any(bias != 0) else None
    neuron = Neuron(floats.i_decay, floats.v_decay, threshold, neuron_name)
    if isinstance(node, nir.Conv2d):
        if feedback is not None:
            raise DeployError(
                f"node '{neuron_name}': hears itself behind a convolution; netx has loops in dense layers alone"
            )
        return _conv(name, node, weight_int, bias_int, shape, pool, neuron, 64 * scale)
    if pool is not None:
        weight_int = _unpool_columns(weight_int, pool)
    if feedback is not None:
        return Recurrent(
            name, weight_int, np.rint(scale * feedback).astype(np.int32), neuron, bias_int, 64 * scale
        )
    return Dense(name, weight_int, neuron, bias_int, 64 * scale)


def _conv(
    name: str,
    node: Any,
    weight_int: npt.NDArray[np.int32],
    bias_int: npt.NDArray[np.int32] | None,
    shape: tuple[int, ...],
    pool: _Pool | None,
    neuron: Neuron,
    scale: float,
) -> Conv:
    stride, padding, dilation = (_pair(v) for v in (node.stride, node.padding, node.dilation))
    if len(shape) != 3:
        raise DeployError(f"node '{name}': a convolution receives {shape}, needs (C, H, W)")
    source = (shape[0], shape[1], shape[2])
    if pool is not None:
        if dilation != (1, 1):
            raise DeployError(
                f"node '{name}': pooling does not fold into a dilated kernel; remove one of the two"
            )
        ragged = pool.shape[1] % pool.size[0] or pool.shape[2] % pool.size[1]
        if ragged:
            raise DeployError(
                f"node '{name}': pool {pool.size} does not divide {pool.shape[1:]}, and the cut rows would leak into the "
                "folded kernel; choose sizes that divide"
            )
        # conv(k) after sumpool(p) = conv(k repeated p, stride*p, padding*p)
        weight_int = weight_int.repeat(pool.size[0], axis=2).repeat(pool.size[1], axis=3)
        stride = (stride[0] * pool.size[0], stride[1] * pool.size[1])
        padding = (padding[0] * pool.size[0], padding[1] * pool.size[1])
        source = pool.shape
    return Conv(
        name, weight_int, neuron, source, stride, padding, dilation, int(node.groups), bias_int, scale
    )


def _unpool_columns(weight_int: npt.NDArray[np.int32], pool: _Pool) -> npt.NDArray[np.int32]:
    """Columns for pooled cells -> columns for the pixels in them; pixels that no window covers get weight 0."""
    channels, height, width = pool.shape
    rows, columns = height // pool.size[0], width // pool.size[1]
    cells = weight_int.reshape(len(weight_int), channels, rows, columns)
    pixels = np.zeros((len(weight_int), channels, height, width), dtype=np.int32)
    covered = cells.repeat(pool.size[0], axis=2).repeat(pool.size[1], axis=3)
    pixels[:, :, : covered.shape[2], : covered.shape[3]] = covered
    return pixels.reshape(len(weight_int), -1)


def _uniform(name: str, field: str, value: object) -> float:
    array = np.asarray(value, dtype=np.float64)
    if not np.isfinite(array).all() or np.any(array != array.flat[0]):
        raise DeployError(
            f"node '{name}': {field} differs between neurons or is not finite; the layer shares one register"
        )
    if field.startswith("tau") and array.flat[0] <= 0:
        raise DeployError(f"node '{name}': {field} is {array.flat[0]:g} s; a time constant is above 0")
    return float(array.flat[0])


def _pair(value: object) -> tuple[int, int]:
    array = np.broadcast_to(np.asarray(value), (2,))
    return int(array[0]), int(array[1])
