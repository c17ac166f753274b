"""Fill in what other exporters leave out and the NIR standard defines; refuse what the standard leaves open.

Filled: v_reset (0), w_in (1), a scalar or channel-shaped parameter spread over its neurons, Conv input_shape, Flatten's and
Output's shape. Every filling is listed. Left open, so refused: Input without shape, a Conv without bias, r or tau missing.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from math import prod
from typing import Any

import nir
import numpy as np

from knarr.export.errors import ExportError
from knarr.export.graph.shapes import PER_NEURON, infer, spread
from knarr.export.graph.topology import inline, topology

KINDS = {
    kind.__name__: kind
    for kind in (
        nir.Affine, nir.AvgPool2d, nir.Conv1d, nir.Conv2d, nir.CubaLI, nir.CubaLIF, nir.Delay, nir.Flatten, nir.I, nir.IF,
        nir.Input, nir.LI, nir.LIF, nir.Linear, nir.NIRGraph, nir.Output, nir.Scale, nir.SumPool2d, nir.Threshold,
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
    pairs = [tuple(edge) for edge in edges] if isinstance(edges, list) else None
    if pairs is None or not all(
        len(pair) == 2 and all(isinstance(n, str) for n in pair) for pair in pairs
    ):
        raise ExportError(f"graph '{path}': its edges are not pairs of names; it is no NIR graph")
    built = {}
    for name, node in nodes.items():
        where = f"{path}.{name}" if path else name
        if not isinstance(node, dict) or node.get("type") not in KINDS:
            kind = node.get("type") if isinstance(node, dict) else type(node).__name__
            raise ExportError(
                f"node '{where}': type {kind!r} is unknown; supported are {', '.join(sorted(KINDS))}"
            )
        kind = node["type"]
        if kind == "NIRGraph":
            built[name] = build(node, filled, where, depth + 1)
        else:
            built[name] = _node(where, kind, node, filled)
    metadata = tree.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ExportError(f"graph '{path}': its metadata are no group; it is no NIR graph")
    return nir.NIRGraph(built, pairs, metadata=dict(metadata), type_check=False)


def _node(where: str, kind: str, tree: dict[str, Any], filled: list[str]) -> Any:
    given = {key: value for key, value in tree.items() if key not in ("type", "metadata")}
    metadata = tree.get("metadata", {})
    cls = KINDS[kind]
    if cls in (nir.Input, nir.Output):
        side = "input_type" if cls is nir.Input else "output_type"
        shape = given.pop("shape", None)
        _no_others(where, kind, given)
        declared = None if shape is None else _array(where, "shape", shape)
        node = cls(**{side: {side.removesuffix("_type"): declared}})
        node.metadata = metadata
        return node
    allowed = {
        f.name: f for f in fields(cls) if f.name not in ("metadata", "output_type", "input_type")
    }
    values: dict[str, Any] = {}
    if cls is nir.Flatten:
        given.pop("input_type", None)  # complete() knows it from what arrives
    _no_others(where, kind, {k: v for k, v in given.items() if k not in allowed})
    for field, spec in allowed.items():
        if field in given:
            value = given[field]
            # The only text that NIR knows in a field is a padding, which nir itself checks.
            values[field] = value if isinstance(value, str) else _array(where, field, value)
        elif field in DEFAULTS:
            values[field] = np.full((), DEFAULTS[field][0])
            filled.append(f"node '{where}': {field} missing, {DEFAULTS[field][1]}")
        elif field == "input_shape":
            values[field] = None
        elif spec.default is MISSING:
            raise ExportError(
                f"node '{where}': {kind} without {field}, which NIR leaves open; write it"
            )
    if cls in PER_NEURON:  # nir wants equal shapes at once; complete() gives them their features
        for field in PER_NEURON[cls]:
            value = values[field]
            if not isinstance(value, np.ndarray):
                raise ExportError(f"node '{where}': {field} is no array of numbers; rewrite it")
        node = object.__new__(cls)
        for field, value in values.items():
            setattr(node, field, value)
        node.input_type, node.output_type = {"input": None}, {"output": None}
    else:
        for field in ("groups", "start_dim", "end_dim"):
            if field in values:
                values[field] = _integer(where, field, values[field])
        if cls is nir.Conv1d:
            for field in ("stride", "padding", "dilation"):
                if not isinstance(values[field], str):
                    values[field] = _integer(where, field, values[field])
        node = _construct(where, cls, values)
    node.metadata = metadata
    return node


def _construct(where: str, cls: Any, values: dict[str, Any]) -> Any:
    shape = values.get("input_shape")
    if shape is not None:
        sizes = np.atleast_1d(shape)
        if sizes.dtype.kind not in "iu" or sizes.size != (1 if cls is nir.Conv1d else 2):
            raise ExportError(
                f"node '{where}': input_shape {sizes.tolist()[:4]} is no size per axis; correct it"
            )
        values["input_shape"] = int(sizes[0]) if cls is nir.Conv1d else tuple(int(s) for s in sizes)
    # nir computes shapes in the constructor and fails on what it does not expect; complete() sets them.
    shapes = {"input_shape": values.pop("input_shape")} if "input_shape" in values else {}
    if cls is nir.Flatten:
        values["input_type"] = {"input": None}
    try:
        node = cls(**values, **{key: None for key in shapes})
    except Exception as error:  # an assertion, a ValueError or an IndexError of nir's constructors
        raise ExportError(
            f"node '{where}': nir refuses its fields ({error}); rewrite it"
        ) from error
    for key, value in shapes.items():
        setattr(node, key, value)
    return node


def _no_others(where: str, kind: str, others: dict[str, Any]) -> None:
    for field in others:
        raise ExportError(
            f"node '{where}': {kind} has no field '{field}', so its meaning is open; remove it"
        )


def _array(where: str, field: str, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise ExportError(f"node '{where}': {field} is no array of numbers; rewrite it")
    return array


def _integer(where: str, field: str, value: Any) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise ExportError(f"node '{where}': {field} must be one integer; rewrite it")
    return int(array.ravel()[0])


def complete(graph: nir.NIRGraph, filled: list[str]) -> nir.NIRGraph:
    """Check every shape and spread every parameter over its neurons, in place.

    Args:
        graph: as `build` gives it.
        filled: gets one line for each parameter that was spread.

    Raises:
        ExportError: the node where shapes part or NIR leaves something open.
    """
    nodes, edges = inline(graph)
    entering, leaving = infer(nodes, topology(nodes, edges))
    # A file of a few bytes may declare scalars over millions of neurons: count before anything is spread.
    total = sum(
        8 * prod(entering[name]) * len(PER_NEURON.get(type(node), ()))
        for name, node in nodes.items()
    )
    if total > MAX_SPREAD_BYTES:
        raise ExportError(
            f"graph: its neurons' parameters take {total:,} bytes, at most {MAX_SPREAD_BYTES:,}; check the shapes it declares"
        )
    for name, node in nodes.items():
        into, out = entering[name], leaving[name]
        for field in PER_NEURON.get(type(node), ()):
            value = np.asarray(getattr(node, field))
            if value.shape != into:
                setattr(node, field, spread(value, into))
                if field not in DEFAULTS or not any(
                    f"'{name}': {field} missing" in line for line in filled
                ):
                    filled.append(
                        f"node '{name}': {field} of shape {value.shape} spread over {into}"
                    )
        if isinstance(node, (nir.Conv1d, nir.Conv2d)) and node.input_shape is None:
            node.input_shape = into[1] if isinstance(node, nir.Conv1d) else (into[1], into[2])
            filled.append(f"node '{name}': input_shape missing, {into[1:]} from what arrives")
        if isinstance(node, (nir.Input, nir.Output)):
            declared = node.input_type if isinstance(node, nir.Input) else node.output_type
            if declared is None or next(iter(declared.values())) is None:
                filled.append(f"node '{name}': shape missing, {into} from what arrives")
        node.input_type, node.output_type = {"input": np.array(into)}, {"output": np.array(out)}
    _ends(graph)
    return graph


def _ends(graph: nir.NIRGraph) -> None:
    for node in graph.nodes.values():
        if isinstance(node, nir.NIRGraph):
            _ends(node)
    graph._update_input_output_types()
