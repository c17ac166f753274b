"""An ONNX file as the counter sees it: shapes at batch 1, values of constants, and clear refusals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from knarr.hw_sim.errors import CountError
from knarr.hw_sim.onnx_row import MOST_ELEMENTS
from knarr.hw_sim.onnx_shapes import attributes_of, holds_subgraph, settle

__all__ = ["OnnxGraph", "UnsupportedError", "attributes_of", "holds_subgraph", "read_onnx"]

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


class UnsupportedError(Exception):
    """Why a node cannot be counted; becomes its row in the ledger."""


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX graph at batch 1.

    Args:
        model: onnx.ModelProto with functions inlined.
        inputs: graph input -> shape, weights left out.
        shapes: tensor -> static shape, where it has one.
        types: tensor -> onnx.ValueInfoProto of its element type, where inferred.
        constants: tensor -> value, where it depends on no input.
        needed: tensors that some output of the graph depends on.
        readers: initializer -> names of the nodes that read it, also from within their subgraphs.
        producers: tensor -> onnx.NodeProto that makes it.
    """

    model: Any
    inputs: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, Any]
    constants: Mapping[str, npt.NDArray[np.generic]]
    needed: frozenset[str]
    readers: Mapping[str, Sequence[str]]
    producers: Mapping[str, Any]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Static shape of a tensor, or UnsupportedError."""
        if tensor not in self.shapes:
            raise UnsupportedError(f"the shape of tensor '{tensor}' is not static; export with static shapes")
        shape = self.shapes[tensor]
        if prod(shape) > MOST_ELEMENTS:
            raise UnsupportedError(
                f"tensor '{tensor}' has {prod(shape)} elements, more than {MOST_ELEMENTS}; check the shapes"
            )
        return shape

    def constant(self, tensor: str, what: str) -> npt.NDArray[np.generic]:
        """Value of a tensor that the file holds, or UnsupportedError that says what it should have been."""
        if tensor not in self.constants:
            raise UnsupportedError(f"{what} '{tensor}' is not a constant of the file")
        return self.constants[tensor]


def operand(node: Any, index: int) -> str:
    """Name of an optional input, "" where the node leaves it out."""
    return node.input[index] if index < len(node.input) else ""


def read_onnx(path: Path) -> OnnxGraph:
    """Load, check, inline functions, and infer all shapes at batch 1.

    Raises:
        CountError: not an ONNX file, or an input whose shape is not static beyond the batch.
        FileNotFoundError: no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        model = onnx.load(path, format="protobuf")
        onnx.checker.check_model(model)
        _check_names(model)
        if model.functions:  # the check has refused those that call themselves
            model = onnx.inliner.inline_local_functions(model)
        inputs = {value.name: value for value in model.graph.input}
        for initializer in model.graph.initializer:
            inputs.pop(initializer.name, None)  # old files list their weights as inputs too
        shapes = {name: _input_shape(path, value) for name, value in inputs.items()}
        del model.graph.value_info[:]  # may name the dynamic batch
        _name_hidden_sequences(model)
        settled = settle(model)
    except (
        OSError,
        TypeError,  # names
        ValueError,  # initializers, and models that are too large to check
        DecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CountError(f"{path}: not a valid ONNX file ({first_line}); export it again") from None
    needed = {value.name for value in model.graph.output}
    readers: dict[str, list[str]] = {tensor.name: [] for tensor in model.graph.initializer}
    for node in reversed(model.graph.node):
        read = set(_read_by(node))
        if not needed.isdisjoint(node.output):
            needed |= read
        for name in read & readers.keys():
            readers[name].insert(0, node.name or (node.output[0] if node.output else node.op_type))
    producers = {output: node for node in model.graph.node for output in node.output if output}
    return OnnxGraph(
        model,
        shapes,
        settled.shapes,
        settled.types,
        settled.constants,
        frozenset(needed),
        readers,
        producers,
    )


def _check_names(model: Any) -> None:
    """Bytes that are no UTF-8 come out of protobuf as bytes."""
    for node in model.graph.node:
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if not isinstance(name, str):
                raise TypeError(f"the name {name!r} is no text")


def _read_by(node: Any) -> Iterator[str]:
    """Tensors that a node reads, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)


def _name_hidden_sequences(model: Any) -> None:
    """Name the hidden sequence of recurrent nodes that keep only the last state: effective counts need to see it."""
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    for index, node in enumerate(model.graph.node):
        if node.op_type in RECURRENT and node.domain in ("", "ai.onnx"):
            name = f"hidden_sequence_{index}"
            while name in taken:
                name += "_"
            if not node.output:
                node.output.append(name)
            elif not node.output[0]:
                node.output[0] = name


def _input_shape(path: Path, value: Any) -> tuple[int, ...]:
    """Shape of a graph input with batch 1, which is also written into the model."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise CountError(f"{path}: input '{value.name}' has no shape; export with static shapes")
    if not dims[0].HasField("dim_value"):
        dims[0].dim_value = 1
    if dims[0].dim_value != 1:
        raise CountError(
            f"{path}: input '{value.name}' has a fixed batch of {dims[0].dim_value}, counts are per inference; "
            "export with batch 1 or a dynamic batch"
        )
    for axis, dim in enumerate(dims):
        if not dim.HasField("dim_value") or dim.dim_value < 1:
            shown = dim.dim_param or "unknown"
            raise CountError(
                f"{path}: input '{value.name}' axis {axis} is {shown}; only the batch may be dynamic"
            )
    return tuple(int(dim.dim_value) for dim in dims)
