"""Infer feature shapes along a NIR graph, without the batch.

This is a type check of its own, since that of nir 1.0.8 refuses scalars and groups.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.export.errors import ExportError
from knarr.export.graph.parameters import ints
from knarr.export.graph.topology import CONVS, ENDS, LINEARS, NEURONS, POOLS, Topology

Shape = tuple[int, ...]
Array = npt.NDArray[Any]
MAX_FEATURES = 2**22
"""Most neurons of one layer; Loihi 2 has 2**20 on a chip. A file that declares more asks for memory, not for an answer."""


def parameters(kind: Any) -> dict[str, Any]:
    """Return the fields of a kind of node by name, without those that every node has."""
    common = ("metadata", "input_type", "output_type")
    return {field.name: field for field in fields(kind) if field.name not in common}


PER_NEURON = {
    kind: tuple(parameters(kind)) for kind in (*NEURONS, nir.Scale, nir.Threshold, nir.Delay)
}
"""The fields of each neuron that hold one value per feature: all that are its own."""


def input_shape(name: str, node: nir.Input) -> Shape:
    """Return the declared shape of an Input.

    Raises:
        ExportError: none is declared, or it is not made of positive sizes.
    """
    sizes = declared_shape(node).ravel()
    if not sizes.size:
        raise ExportError(
            f"node '{name}': Input without a shape, which NIR leaves open; give the shape of one step "
            "with --input-shape (read(path, input_shape=...))"
        )
    if sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise ExportError(
            f"node '{name}': Input of shape {sizes.tolist()[:8]}; every size must be a positive integer"
        )
    return _bounded(name, tuple(int(n) for n in sizes))


def declared_shape(node: nir.Input | nir.Output) -> Array:
    """Return the shape that an Input or Output declares; empty where it declares none."""
    side: Any = node.input_type if isinstance(node, nir.Input) else node.output_type
    shapes = list(side.values()) if isinstance(side, dict) else []
    if not shapes or shapes[0] is None:
        return np.array([])
    return np.asarray(shapes[0])


def infer(nodes: dict[str, Any], topology: Topology) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Infer the shape that enters and the shape that leaves every node.

    Raises:
        ExportError: the node where shapes part, or whose parameters do not fit.
    """
    entering: dict[str, Shape] = {}
    leaving: dict[str, Shape] = {}
    start = input_shape(topology.input, nodes[topology.input])
    entering[topology.input] = leaving[topology.input] = start
    waiting = [name for name in topology.order if name != topology.input]
    while waiting:
        # A loop through a Delay gives its shape only round the loop, so one known source is enough to go on.
        # A node all of whose sources are known goes first, so that its shapes are compared, not taken from one of them.
        known = [n for n in waiting if not leaving.keys().isdisjoint(topology.sources[n])]
        whole = [n for n in known if leaving.keys() >= set(topology.sources[n])]
        if not known:
            raise ExportError(
                f"node '{waiting[0]}': nothing with a shape reaches it; connect it to the input"
            )
        name = (whole or known)[0]
        waiting.remove(name)
        shapes = [leaving[source] for source in topology.sources[name] if source in leaving]
        entering[name] = shapes[0]
        try:
            given = node_shape(name, nodes[name], shapes[0])
        except ExportError as error:
            # Sizes are read without knowing whose they are; the name is added where it is missing.
            raise error if "'" in str(error) else ExportError(f"node '{name}': {error}") from error
        leaving[name] = _bounded(name, given)
    for name in topology.order:
        for source in (*topology.sources[name], *topology.looping[name]):
            if leaving[source] != entering[name]:
                raise ExportError(
                    f"node '{name}': receives {leaving[source]} from '{source}' and needs {entering[name]}; "
                    "what arrives must add up to the shape it takes"
                )
    return entering, leaving


def node_shape(name: str, node: Any, shape: Shape) -> Shape:
    """Return the shape that leaves a node which `shape` enters; checks the node's parameters against it."""
    finite(name, node)
    if type(node) in PER_NEURON:
        for field in PER_NEURON[type(node)]:
            _fits(name, field, np.asarray(getattr(node, field)), shape)
        return shape
    if isinstance(node, ENDS):
        # An Input that something enters is a nested graph's.
        declared = tuple(declared_shape(node).tolist())
        if declared and declared != shape:
            raise ExportError(
                f"node '{name}': declares {declared} and receives {shape}; correct the one that is wrong"
            )
        return shape
    if isinstance(node, LINEARS):
        weight = np.asarray(node.weight)
        if weight.ndim != 2 or shape != (weight.shape[1],) or not weight.size:
            takes = f"its weight is {weight.shape} and takes {weight.shape[1:]} alone"
            cure = "flatten before it" if math.prod(shape) == weight.shape[-1] else "correct one"
            raise ExportError(f"node '{name}': receives {shape}, {takes}; {cure}")
        if isinstance(node, nir.Affine):
            _require_bias(name, node, weight)
        return (weight.shape[0],)
    if isinstance(node, CONVS):
        return _conv_shape(name, node, shape)
    if isinstance(node, POOLS):
        return _pool_shape(name, node, shape)
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        end = end if end >= 0 else len(shape) + end
        if not 0 <= start <= end < len(shape):
            raise ExportError(
                f"node '{name}': flattens {start}..{node.end_dim} of {shape}; NIR counts without the batch"
            )
        flattened = math.prod(shape[start : end + 1])
        return (*shape[:start], flattened, *shape[end + 1 :])
    raise ExportError(f"node '{name}': {type(node).__name__} is not supported")


def finite(name: str, node: Any) -> None:
    """Check that every number of a node is a real, finite one.

    Raises:
        ExportError: names node and field.
    """
    for field in parameters(node):
        value = getattr(node, field, None)
        if value is None:
            if field == "input_shape":  # what arrives says it as well
                continue
            raise ExportError(
                f"node '{name}': {type(node).__name__} without {field}, which NIR leaves open; write it"
            )
        if isinstance(value, str) and field == "padding":
            continue
        array = np.asarray(value)
        real = array.dtype.kind in "iuf"
        # In float64, where the stepper takes it: a long double beyond its range becomes infinite there.
        if not (real and np.isfinite(array.astype(np.float64)).all()):
            raise ExportError(
                f"node '{name}': {field} holds something else than finite numbers; retrain or rewrite it"
            )


def _conv_shape(name: str, node: Any, shape: Shape) -> Shape:
    weight = np.asarray(node.weight)
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    groups = int(np.asarray(node.groups))
    if weight.ndim != 2 + axes or not weight.size or groups < 1 or weight.shape[0] % groups:
        raise ExportError(
            f"node '{name}': weight {weight.shape} in {groups} groups is no Conv{axes}d; rewrite it"
        )
    if len(shape) != 1 + axes or shape[0] != weight.shape[1] * groups:
        raise ExportError(
            f"node '{name}': receives {shape}, needs {weight.shape[1] * groups} channels and {axes} axes; reshape what comes before"
        )
    _require_bias(name, node, weight)
    if node.input_shape is not None:
        declared = np.atleast_1d(node.input_shape).tolist()
        if tuple(declared) != shape[1:]:
            raise ExportError(
                f"node '{name}': input_shape {declared} and receives {shape}; correct it"
            )
    stride, dilation = ints(node.stride, axes), ints(node.dilation, axes)
    if isinstance(node.padding, str):
        # torch defines 'same' for stride 1 alone; elsewhere the readers of NIR differ.
        if node.padding == "same" and any(s != 1 for s in stride):
            raise ExportError(
                f"node '{name}': padding 'same' with stride {stride} is not defined; write numbers"
            )
        if node.padding == "same":
            return (weight.shape[0], *shape[1:])
        padding: tuple[int, ...] = (0,) * axes
    else:
        padding = ints(node.padding, axes)
    sides = _windows(name, shape[1:], weight.shape[2:], stride, padding, dilation)
    return (weight.shape[0], *sides)


def _pool_shape(name: str, node: Any, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ExportError(f"node '{name}': pooling receives {shape}, needs (C, H, W)")
    size, stride = ints(node.kernel_size), ints(node.stride)
    padding = ints(node.padding)
    if isinstance(node, nir.AvgPool2d) and any(padding):
        raise ExportError(
            f"node '{name}': AvgPool2d with padding {padding}; NIR does not say whether the mean counts the zeros, pad before it"
        )
    sides = _windows(name, shape[1:], size, stride, padding, (1, 1))
    return (shape[0], *sides)


def _windows(
    name: str, sides: Shape, size: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> tuple[int, ...]:
    if min(*size, *stride, *dilation) < 1 or min(padding) < 0:
        raise ExportError(
            f"node '{name}': window {size}, stride {stride}, padding {padding}, dilation {dilation}; not possible"
        )
    out = []
    # In Python's integers: those of a hostile file would overflow numpy's and seem to fit.
    for n, k, s, p, d in zip(sides, size, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        out.append((n + 2 * p - span) // s + 1)
    if min(out) < 1:
        raise ExportError(f"node '{name}': window {size} is larger than {sides}; make it smaller")
    return tuple(out)


def _fits(name: str, field: str, value: Array, shape: Shape) -> None:
    # A size of 1 along an axis stands for all neurons of the axis, as numpy would spread it, and axes
    # of 1 before those of the neurons are the batch that an exporter ran with.
    extra = value.ndim - len(shape)
    batch = extra >= 0 and set(value.shape[:extra]) <= {1}
    same_axes = batch and all(v in (1, n) for v, n in zip(value.shape[extra:], shape, strict=True))
    if not (value.size == 1 or same_axes):
        raise ExportError(
            f"node '{name}': {field} has shape {value.shape} for neurons of {shape}; NIR does not say how they "
            "match, give one value or one per neuron"
        )


def spread(value: Array, shape: Shape) -> Array:
    """Return a copy with one value per neuron of a parameter that `node_shape` found to fit."""
    # Leading axes of 1 may be more than the neurons have, which numpy alone would not spread.
    value = value.reshape(()) if value.size == 1 else value.reshape(value.shape[-len(shape) :])
    return np.array(np.broadcast_to(value, shape))


def _require_bias(name: str, node: Any, weight: Array) -> None:
    found, needed = np.shape(node.bias), weight.shape[:1]
    if found != needed:
        raise ExportError(f"node '{name}': bias has shape {found}, needs {needed}; rewrite it")


def _bounded(name: str, shape: Shape) -> Shape:
    if math.prod(shape) > MAX_FEATURES:
        raise ExportError(
            f"node '{name}': {math.prod(shape):,} features, at most {MAX_FEATURES:,}; check its shape"
        )
    return shape


def graph_input_shape(graph: nir.NIRGraph) -> Shape:
    """Return the sizes of one time step of a whole graph's input."""
    node = next(node for node in graph.nodes.values() if isinstance(node, nir.Input))
    return tuple(int(n) for n in node.input_type["input"])
