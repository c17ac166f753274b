"""Fill in what other exporters leave out and the NIR standard defines; refuse what the standard leaves open.

Dropped: leading axes of 1 of Input and Output, the batch that an exporter ran with; NIR counts without it.
Filled: v_reset (0), w_in (1), a scalar or channel-shaped parameter spread over its neurons, Conv input_shape, Flatten's and
Output's shape. Every filling is listed. Left open, so refused: Input without shape, a Conv without bias, r or tau missing.
"""

from __future__ import annotations

from dataclasses import MISSING
from math import prod
from typing import Any

import nir
import numpy as np

from knarr.export.errors import ExportError
from knarr.export.graph.shapes import (
    PER_NEURON,
    Array,
    Shape,
    declared_shape,
    infer,
    parameters,
    spread,
)
from knarr.export.graph.topology import CONVS, ENDS, Topology, inline, topology

KINDS: dict[str, Any] = {
    kind: getattr(nir, kind)
    for kind in (
        "Affine", "AvgPool2d", "Conv1d", "Conv2d", "CubaLI", "CubaLIF", "Delay", "Flatten", "I", "IF",
        "Input", "LI", "LIF", "Linear", "NIRGraph", "Output", "Scale", "SumPool2d", "Threshold",
    )
}  # fmt: skip
DEFAULTS = {"v_reset": (0.0, "0 by the NIR standard"), "w_in": (1.0, "1 by the NIR standard")}
MAX_NESTED = 16
MAX_SPREAD_BYTES = 1_000_000_000


def build(tree: dict[str, Any], filled: list[str], path: str = "", depth: int = 0) -> nir.NIRGraph:
    """Build a graph from the tree of its file; it is unchecked until `complete`.

    Args:
        tree: {"type": "NIRGraph", "nodes": {...}, "edges": [[source, target], ...], "metadata": {...}}.
        filled: gets one line for everything that was missing and is defined.

    Raises:
        ExportError: an unknown node type, or a field that is missing, unknown or of the wrong kind.
    """
    if depth > MAX_NESTED:
        raise ExportError(f"graph '{path}': nested more than {MAX_NESTED} deep; flatten it")
    nodes, edges = tree.get("nodes", {}), tree.get("edges", [])
    if not isinstance(nodes, dict) or not nodes:
        raise ExportError(f"graph '{path}': holds no nodes; it is no NIR graph")
    # HDF5 has no empty list of texts, so a graph without edges comes back as an empty array of numbers.
    if isinstance(edges, np.ndarray) and edges.size == 0:
        edges = []
    whole = isinstance(edges, list) and all(
        len(edge) == 2 and isinstance(edge[0], str) and isinstance(edge[1], str) for edge in edges
    )
    if not whole:
        raise ExportError(f"graph '{path}': its edges are not pairs of names; it is no NIR graph")
    built = {}
    for name, node in nodes.items():
        where = f"{path}.{name}" if path else name
        kind = node.get("type") if isinstance(node, dict) else type(node).__name__
        if not isinstance(node, dict) or kind not in KINDS:
            raise ExportError(
                f"node '{where}': type {kind!r} is unknown; supported are {', '.join(sorted(KINDS))}"
            )
        if kind == "NIRGraph":
            built[name] = build(node, filled, where, depth + 1)
        else:
            built[name] = _node(where, node, filled)
    metadata = tree.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ExportError(f"graph '{path}': its metadata are no group; it is no NIR graph")
    pairs = [tuple(edge) for edge in edges]
    return nir.NIRGraph(built, pairs, metadata=dict(metadata), type_check=False)


def _node(where: str, tree: dict[str, Any], filled: list[str]) -> Any:
    given = dict(tree)
    kind = KINDS[given.pop("type")]
    metadata = given.pop("metadata", {})
    allowed = parameters(kind)
    ends = kind in ENDS
    if kind is nir.Flatten:
        given.pop("input_type", None)  # complete() knows it from what arrives
    for field in given:
        # A file holds the shape of an end under another name than nir's own field.
        if field not in allowed and not (ends and field == "shape"):
            raise ExportError(
                f"node '{where}': {kind.__name__} has no field '{field}', so its meaning is open; remove it"
            )
    if ends:
        shape = given.get("shape")
        declared = None if shape is None else _array(where, "shape", shape)
        node = kind({kind.__name__.lower(): declared})
        node.metadata = metadata
        return node
    values: dict[str, Any] = {}
    for field, spec in allowed.items():
        if field in given:
            value = given[field]
            # The only text that NIR knows in a field is a padding, which nir itself checks.
            text = isinstance(value, str) and kind not in PER_NEURON
            values[field] = value if text else _array(where, field, value)
        elif field in DEFAULTS:
            values[field] = np.full((), DEFAULTS[field][0])
            filled.append(f"node '{where}': {field} missing, {DEFAULTS[field][1]}")
        elif field == "input_shape":
            values[field] = None
        elif spec.default is MISSING:
            raise ExportError(
                f"node '{where}': {kind.__name__} without {field}, which NIR leaves open; write it"
            )
    if kind in PER_NEURON:
        # nir's constructor wants equal shapes at once; complete() gives them their features.
        node = object.__new__(kind)
        vars(node).update(values, input_type={"input": None}, output_type={"output": None})
    else:
        node = _construct(where, kind, values)
    node.metadata = metadata
    return node


def _construct(where: str, kind: Any, values: dict[str, Any]) -> Any:
    integers = ["groups", "start_dim", "end_dim"]
    if kind is nir.Conv1d:
        integers += ["stride", "padding", "dilation"]
    for field in integers:
        value = values.get(field)
        if value is None or (field == "padding" and isinstance(value, str)):
            continue
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "iu":
            raise ExportError(f"node '{where}': {field} must be one integer; rewrite it")
        values[field] = array.item()
    # nir computes shapes in the constructor and fails on what it does not expect, so it gets none; complete() sets the
    # others.
    shape = values.get("input_shape")
    if shape is not None:
        sizes = np.atleast_1d(shape)
        axes = 1 if kind is nir.Conv1d else 2
        if sizes.dtype.kind not in "iu" or sizes.size != axes:
            raise ExportError(
                f"node '{where}': input_shape {sizes.tolist()[:4]} is no size per axis; correct it"
            )
        shape = int(sizes[0]) if axes == 1 else tuple(sizes.tolist())
        values["input_shape"] = None
    if kind is nir.Flatten:
        values["input_type"] = {"input": None}
    try:
        node = kind(**values)
    except Exception as error:  # an assertion, a ValueError or an IndexError of nir's constructors
        raise ExportError(
            f"node '{where}': nir refuses its fields ({error}); rewrite it"
        ) from error
    if shape is not None:
        node.input_shape = shape
    return node


def _array(where: str, field: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ExportError(f"node '{where}': {field} is no array of numbers; rewrite it")
    return array


def complete(
    graph: nir.NIRGraph, filled: list[str], input_shape: tuple[int, ...] | None = None
) -> nir.NIRGraph:
    """Check every shape and spread every parameter over its neurons, in place.

    Args:
        graph: as `build` gives it.
        filled: gets one line for each parameter that was spread, and for leading axes that were dropped.
        input_shape: sizes of one time step of the input, where the file declares more axes or none; None takes what it
            declares, without leading axes of 1 that no node takes.

    Raises:
        ExportError: the node where shapes part or NIR leaves something open.
    """
    nodes, edges = inline(graph)
    entering, leaving = _infer_unbatched(nodes, topology(nodes, edges), filled, input_shape)
    # A file of a few bytes may declare scalars over millions of neurons: count before anything is spread.
    total = 0
    for name, node in nodes.items():
        spreading = PER_NEURON.get(type(node), ())
        total += 8 * prod(entering[name]) * len(spreading)  # each is a float64
    if total > MAX_SPREAD_BYTES:
        raise ExportError(
            f"graph: its neurons' parameters take {total:,} bytes, at most {MAX_SPREAD_BYTES:,}; check the shapes it declares"
        )
    for name, node in nodes.items():
        into, out = entering[name], leaving[name]
        for field in PER_NEURON.get(type(node), ()):
            value = np.asarray(getattr(node, field))
            if value.shape == into:
                continue
            setattr(node, field, spread(value, into))
            # A default has a line of its own already, and is a scalar for that reason alone.
            if not any(f"'{name}': {field} missing" in line for line in filled):
                filled.append(f"node '{name}': {field} of shape {value.shape} spread over {into}")
        if isinstance(node, CONVS) and node.input_shape is None:
            node.input_shape = into[1] if isinstance(node, nir.Conv1d) else into[1:]
            filled.append(f"node '{name}': input_shape missing, {into[1:]} from what arrives")
        if isinstance(node, ENDS) and not declared_shape(node).size:
            filled.append(f"node '{name}': shape missing, {into} from what arrives")
        node.input_type = {"input": np.array(into)}
        node.output_type = {"output": np.array(out)}
    _ends(graph)
    return graph


def _infer_unbatched(
    nodes: dict[str, Any], order: Topology, filled: list[str], wanted: tuple[int, ...] | None
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Infer all shapes with as few leading axes dropped from the ends as the nodes allow."""
    ends = {name: declared_shape(node) for name, node in nodes.items() if isinstance(node, ENDS)}
    first = tuple(ends[order.input].ravel().tolist())
    if wanted is not None and not first:
        filled.append(f"node '{order.input}': shape missing, {wanted} as given")
        ends[order.input], first = np.array(wanted), wanted
    most = 0
    while wanted is None and most < len(first) - 1 and first[most] == 1:
        most += 1
    drops = list(range(most + 1))
    if wanted is not None:
        drops = [max(len(first) - len(wanted), 0)]
        if first[drops[0] :] != wanted:
            raise ExportError(
                f"node '{order.input}': declares {first}, which does not end in the input shape {wanted}; give the sizes "
                "of one time step"
            )
    faults = []
    for dropped in drops:
        try:
            shapes = _infer_without(nodes, order, ends, dropped)
        except ExportError as error:
            faults.append(error)
            continue
        if dropped:
            filled.append(
                f"node '{order.input}': leading axes {first[:dropped]} of {first} dropped, NIR counts without batch"
            )
        return shapes
    # Other axes than of 1 may be features, so only the user can say that they are not.
    for dropped in range(1, len(first) if wanted is None else 0):
        try:
            _infer_without(nodes, order, ends, dropped)
        except ExportError:
            continue
        sizes = ",".join(map(str, first[dropped:]))
        raise ExportError(
            f"{faults[0]}; if axes {first[:dropped]} of '{order.input}' are batch or time, give --input-shape {sizes} "
            f"(read(path, input_shape=({sizes},)))"
        )
    raise faults[0]


def _infer_without(
    nodes: dict[str, Any], order: Topology, ends: dict[str, Array], dropped: int
) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Infer all shapes with the ends declared without their first axes.

    Raises:
        ExportError: they do not fit the nodes.
    """
    for name, shape in ends.items():
        # An end that declares fewer axes was written without the batch.
        kept = shape[dropped:] if shape.size > dropped else shape
        _declare(nodes[name], kept)
    try:
        return infer(nodes, order)
    except ExportError:
        flattens = [node for node in nodes.values() if isinstance(node, nir.Flatten)]
        shifted = [node for node in flattens if min(int(node.start_dim), dropped) > 0]
        if not shifted:
            raise
        # Some exporters count the axes of a Flatten with the batch that they wrote into the ends.
        before = [(node.start_dim, node.end_dim) for node in shifted]
        for node in shifted:
            node.start_dim = int(node.start_dim) - dropped
            node.end_dim = int(node.end_dim) - dropped if int(node.end_dim) > 0 else node.end_dim
        try:
            return infer(nodes, order)
        except ExportError:
            for node, (start, end) in zip(shifted, before, strict=True):
                node.start_dim, node.end_dim = start, end
            raise


def _declare(node: Any, shape: Array) -> None:
    side, key = (
        ("input_type", "input") if isinstance(node, nir.Input) else ("output_type", "output")
    )
    setattr(node, side, {key: shape if shape.size else None})


def _ends(graph: nir.NIRGraph) -> None:
    for node in graph.nodes.values():
        if isinstance(node, nir.NIRGraph):
            _ends(node)
    graph._update_input_output_types()
