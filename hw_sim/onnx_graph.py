"""An ONNX file as the counter sees it: shapes at batch 1, values of constants, and clear refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from knarr.hw_sim.errors import CountError


class UnsupportedError(Exception):
    """Why a node cannot be counted; becomes its row in the ledger."""


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX graph at batch 1.

    Args:
        model: onnx.ModelProto with the shapes of intermediate tensors filled in.
        inputs: graph input -> shape, weights left out.
        shapes: tensor -> static shape, where it has one.
        constants: tensor -> value that the file holds.
        needed: tensors that some output of the graph depends on.
        readers: initializer -> names of the nodes that read it.
    """

    model: Any
    inputs: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, npt.NDArray[np.generic]]
    needed: frozenset[str]
    readers: Mapping[str, Sequence[str]]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Static shape of a tensor, or UnsupportedError."""
        if tensor not in self.shapes:
            raise UnsupportedError(f"the shape of tensor '{tensor}' is not static; export with static shapes")
        return self.shapes[tensor]

    def constant(self, tensor: str, what: str) -> npt.NDArray[np.generic]:
        """Value of a tensor that the file holds, or UnsupportedError that says what it should have been."""
        if tensor not in self.constants:
            raise UnsupportedError(f"{what} '{tensor}' is not a constant of the file")
        return self.constants[tensor]


def attributes_of(node: Any) -> dict[str, Any]:
    """Attribute name -> value of an onnx.NodeProto; strings are bytes."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def read_onnx(path: Path) -> OnnxGraph:
    """Load, check, and infer all shapes at batch 1.

    Raises:
        CountError: not an ONNX file, or an input whose shape is not static beyond the batch.
        FileNotFoundError: no such file.
    """
    try:
        model = onnx.load(path, format="protobuf")
        onnx.checker.check_model(model)
        inputs = {value.name: value for value in model.graph.input}
        for initializer in model.graph.initializer:
            inputs.pop(initializer.name, None)  # old files list their weights as inputs too
        shapes = {name: _input_shape(path, value) for name, value in inputs.items()}
        del model.graph.value_info[:]  # may name the dynamic batch
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except FileNotFoundError:
        raise
    except (
        OSError,
        DecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise CountError(f"{path}: not a valid ONNX file ({first_line}); export it again") from None
    known = dict(shapes)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            known[value.name] = tuple(dim.dim_value for dim in dims)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = attributes_of(node)
        if node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
        elif node.op_type == "Identity" and node.input[0] in constants:  # torch writes shared weights once
            constants[node.output[0]] = constants[node.input[0]]
    known |= {name: value.shape for name, value in constants.items()}
    needed = {value.name for value in inferred.graph.output}
    for node in reversed(inferred.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
    readers = {
        tensor.name: [
            node.name or node.output[0] for node in inferred.graph.node if tensor.name in node.input
        ]
        for tensor in inferred.graph.initializer
    }
    return OnnxGraph(inferred, shapes, known, constants, frozenset(needed), readers)


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
