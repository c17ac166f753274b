"""Read an ONNX file as the counter sees it: shapes at batch 1 and values of constants.

Shape inference alone gives up where a shape is computed (`x.view(x.size(0), -1)` leaves Shape,
Gather and Concat in the file), and a quantised weight is a constant only behind its
DequantizeLinear. So inference and evaluation of what has constant inputs take turns until neither
finds more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.reference import ReferenceEvaluator

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.onnx.batch import RECURRENT, resize, set_batch, settle, shapes_of
from knarr.hw_sim.errors import CountError, first_line

Shape = tuple[int, ...]

MOST_ELEMENTS = 2**30
"""Most elements of a tensor that is counted; a shape beyond it is a mistake in the file."""
MOST_FOLDED = 2**27
"""Most elements of a constant that is computed here; 512 MB of float32."""
LIGHT = 4096
"""Most elements of a constant that inference may want to see; heavier ones are weights."""
MOST_MULTIPLIED = 2**22
"""Elements of each factor of a constant product; 2048 x 2048 takes a second or two."""
MOST_FOLDED_IN_ALL = 2**28
"""Most elements of all constants of a file that are computed here."""
PRODUCTS = frozenset({"Gemm", "MatMul"})
"""Operators of products that are computed here where all their factors are constants."""
FOLDED = PRODUCTS | {
    "Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Cos",
    "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather",
    "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Round", "ScatterElements",
    "ScatterND", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
}  # fmt: skip
"""Operations that are computed here: those that shapes and stored weights are made by, each of which
takes a time that grows with its elements alone. A regular expression or a loop need not end.
"""
NOT_INFERRED = frozenset({"GroupNormalization"})
"""Operations whose output is shaped as their input, and which onnx cannot infer."""


MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators, whose shapes onnx does not know."""
ALIKE = frozenset({
    "BiasGelu", "FastGelu", "Gelu", "GroupQueryAttention", "LayerNormalization", "QuickGelu", "RotaryEmbedding",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
})  # fmt: skip
"""Operators of `MICROSOFT` whose first output is shaped as their first input."""
UNFUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
"""Operator of `MICROSOFT` -> the one that it is, with a function behind it."""


class UnsupportedError(Exception):
    """A node cannot be counted; the reason becomes its row in the ledger."""


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX graph at batch 1.

    Args:
        model: onnx.ModelProto with functions inlined.
        inputs: graph input -> shape, weights left out.
        shapes: tensor -> static shape, where it has one.
        types: tensor -> onnx.ValueInfoProto of its element type and shape, where inferred.
        constants: tensor -> value, where it depends on no input.
        needed: tensors that some output of the graph depends on.
        readers: initializer -> names of the nodes that read it, also from within their subgraphs.
        producers: tensor -> onnx.NodeProto that makes it.
        batch_axes: graph input -> its axis of the batch, at which it is 1; None for an input that is
            whole as it is.
    """

    model: Any
    inputs: Mapping[str, Shape]
    shapes: Mapping[str, Shape]
    types: Mapping[str, Any]
    constants: Mapping[str, Array]
    needed: frozenset[str]
    readers: Mapping[str, Sequence[str]]
    producers: Mapping[str, Any]
    batch_axes: Mapping[str, int | None]

    def shape(self, tensor: str) -> Shape:
        """Return the static shape of a tensor.

        Raises:
            UnsupportedError: it has none, or one beyond `MOST_ELEMENTS`.
        """
        if tensor not in self.shapes:
            raise UnsupportedError(
                f"the shape of tensor '{tensor}' is not static; export with static shapes"
            )
        shape = self.shapes[tensor]
        if prod(shape) > MOST_ELEMENTS:
            raise UnsupportedError(
                f"tensor '{tensor}' has {prod(shape)} elements, more than {MOST_ELEMENTS}; check the shapes"
            )
        return shape

    def constant(self, tensor: str, what: str) -> Array:
        """Return the value of a tensor that the file holds; `what` names it in the message.

        Raises:
            UnsupportedError: the file does not hold it.
        """
        if tensor not in self.constants:
            raise UnsupportedError(f"{what} '{tensor}' is not a constant of the file")
        return self.constants[tensor]


@dataclass(frozen=True)
class OnnxNode:
    """A node of a graph, as the rules that count it see it.

    Args:
        proto: onnx.NodeProto.
        graph: the graph that holds it.
    """

    proto: Any
    graph: OnnxGraph

    @property
    def operation(self) -> str:
        """Name of its operation, such as "Conv"."""
        return str(self.proto.op_type)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attribute name -> value; strings are bytes."""
        return attributes_of(self.proto)

    def operand(self, index: int) -> str:
        """Return the name of an input, "" where the node leaves it out."""
        names = self.proto.input
        return names[index] if index < len(names) else ""

    @property
    def input_shape(self) -> Shape:
        """Shape of the first input."""
        return self.graph.shape(self.proto.input[0])

    @property
    def output_shape(self) -> Shape:
        """Shape of the first output."""
        return self.graph.shape(self.proto.output[0])

    @property
    def inputs(self) -> int:
        """Elements of the first input."""
        return prod(self.input_shape)

    @property
    def outputs(self) -> int:
        """Elements of the first output."""
        return prod(self.output_shape)


def attributes_of(node: Any) -> dict[str, Any]:
    """Return attribute name -> value of an onnx.NodeProto; strings are bytes."""
    value_of = onnx.helper.get_attribute_value
    return {attribute.name: value_of(attribute) for attribute in node.attribute}


def holds_subgraph(node: Any) -> bool:
    """Tell whether a node runs a graph of its own, as If, Loop and Scan do."""
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attribute)


def session_of(model: Any) -> onnxruntime.InferenceSession:
    """Load an onnx.ModelProto into onnxruntime, unoptimised so that no tensor is fused away."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def read_onnx(
    path: Path,
    input_shapes: Mapping[str, Shape] | None = None,
    batch_axis: int | None = None,
) -> OnnxGraph:
    """Load a file, check it, inline its functions, and infer all shapes at batch 1.

    Args:
        path: the file.
        input_shapes: graph input -> its whole shape in one inference, for axes that the file leaves
            open and that are no batch, such as time steps.
        batch_axis: the axis of the batch of all other inputs; None takes the first, where the graph
            treats it as a batch.

    Raises:
        CountError: not an ONNX file, an input whose shape is not static beyond the batch, or whose
            first axis is no batch and of a size that the file leaves open.
        FileNotFoundError: no such file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        model = onnx.load(path, format="protobuf")
        onnx.checker.check_model(model)
        _check_names(model)
        if model.functions:
            _check_functions_end(model)
            model = onnx.inliner.inline_local_functions(model)
        _unfuse(model)
        inputs = {value.name: value for value in model.graph.input}
        for initializer in model.graph.initializer:
            inputs.pop(initializer.name, None)  # old files list their weights as inputs too
        settled = set_batch(path, inputs, input_shapes or {}, batch_axis)
        del model.graph.value_info[:]  # may name the dynamic batch
        _name_hidden_sequences(model)
        shapes, types, constants = _settle(model)
        for group in settled.doubtful:
            doubled = onnx.ModelProto()
            doubled.CopyFrom(model)
            resize(doubled, group)
            try:
                changed, _, _ = _settle(doubled)
            except (ValueError, onnx.shape_inference.InferenceError):
                changed = None
            settle(path, settled, group, model, shapes, changed)
    except CountError:  # the file is valid, and says too little
        raise
    except (
        OSError,
        TypeError,  # names
        ValueError,  # initializers, and models that are too large to check
        DecodeError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise CountError(
            f"{path}: not a valid ONNX file ({first_line(error)}); export it again"
        ) from None
    needed = {value.name for value in model.graph.output}
    readers: dict[str, list[str]] = {tensor.name: [] for tensor in model.graph.initializer}
    # Nodes stand behind what they read, so backward each is met after all that need it.
    for node in reversed(model.graph.node):
        read = set(_read_by(node))
        if not needed.isdisjoint(node.output):
            needed |= read
        name = node.name or (node.output[0] if node.output else node.op_type)
        for tensor in read & readers.keys():
            readers[tensor].insert(0, name)
    return OnnxGraph(
        model,
        {name: shapes_of(value) for name, value in inputs.items()},
        shapes,
        types,
        constants,
        frozenset(needed),
        readers,
        producers={output: node for node in model.graph.node for output in node.output if output},
        batch_axes=settled.axes,
    )


def _settle(model: Any) -> tuple[dict[str, Shape], dict[str, Any], dict[str, Array]]:
    """Infer shapes and fold constants of an onnx.ModelProto whose input shapes are static.

    Returns:
        `shapes`, `types` and `constants` as those of `OnnxGraph`.

    Raises:
        onnx.shape_inference.InferenceError: the nodes do not fit each other.
        ValueError: an initializer does not hold what it says it does.
    """
    constants = {tensor.name: _stored(tensor) for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    folded = 0
    given: dict[str, Any] = {}
    while True:
        shapes, types = _infer(model, nodes, constants, given)
        stored = {name: value.shape for name, value in constants.items()}
        found = _same_as_input(nodes, shapes | stored, types)
        given |= found
        waiting = []
        for node in nodes:
            sizes = (prod(shapes[name]) for name in node.output if name in shapes)
            values = None
            # What only grows is refused before it fills the memory; the rest stays what it is.
            if folded + sum(sizes) <= MOST_FOLDED_IN_ALL:
                values = _value(node, model, constants, shapes)
            if values is None:
                waiting.append(node)
            else:
                constants |= values
                folded += sum(value.size for value in values.values())
        if len(waiting) == len(nodes) and not found:
            shapes |= {name: value.shape for name, value in constants.items()}
            return shapes, types, constants
        # What has become a constant is no node any more, but an input to the inference of the
        # others.
        nodes = waiting


def _stored(tensor: Any) -> Array:
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"initializer '{tensor.name}' does not hold its shape and type, {reason}"
        ) from error


def _same_as_input(
    nodes: Sequence[Any],
    shapes: Mapping[str, Shape],
    types: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the types of outputs that onnx cannot infer: those of the nodes' first inputs."""
    found = {}
    for node in nodes:
        if not node.input or not node.output:
            continue
        source, output = node.input[0], node.output[0]
        if output in shapes or source not in shapes or source not in types:
            continue
        shape = None
        if node.domain == MICROSOFT:
            shape = _microsoft_shape(node, shapes)
        elif node.op_type in NOT_INFERRED and node.domain in ("", "ai.onnx"):
            shape = shapes[source]
        if shape is not None:
            kind = types[source].type.tensor_type.elem_type
            found[output] = onnx.helper.make_tensor_value_info(output, kind, shape)
    return found


def _microsoft_shape(node: Any, shapes: Mapping[str, Shape]) -> Shape | None:
    """Return the shape of the first output of an operator of `MICROSOFT`, None where it is not known."""
    first, attributes = shapes[node.input[0]], attributes_of(node)
    if node.op_type in ALIKE:
        return first
    second = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
    third = shapes.get(node.input[2], ()) if len(node.input) > 2 else ()
    if node.op_type == "MatMulNBits":
        return (*first[:-1], int(attributes.get("N", 0)))
    if node.op_type == "MultiHeadAttention" and len(first) == 3 and len(third) in (3, 4):
        width = third[-1] if len(third) == 3 else third[1] * third[3]
        return (*first[:2], width)
    if node.op_type == "Attention" and len(first) == 3 and len(second) == 2:
        values = attributes.get("qkv_hidden_sizes", [second[1] // 3])[-1]
        return (*first[:2], int(values))
    if node.op_type == "FusedMatMul" and min(len(first), len(second)) >= 2:
        rows = first[-1] if attributes.get("transA", 0) else first[-2]
        columns = second[-2] if attributes.get("transB", 0) else second[-1]
        try:
            leading = np.broadcast_shapes(first[:-2], second[:-2])
        except ValueError:
            return None
        return (*leading, rows, columns)
    return None


def _unfuse(model: Any) -> None:
    """Write a fused operator as the one that it is and the function behind it, in place."""
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.domain != MICROSOFT or node.op_type not in UNFUSED or len(node.input) > 3:
            continue
        function = attributes_of(node).get("activation", b"").decode(errors="replace")
        if function not in ("Relu", "Sigmoid", "Tanh"):
            continue  # others have settings of their own
        output = node.output[0]
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.domain, plain.op_type = "", UNFUSED[node.op_type]
        plain.output[0] = f"{output} before {function}"
        kept = [each for each in plain.attribute if not each.name.startswith("activation")]
        del plain.attribute[:]
        plain.attribute.extend(kept)
        behind = onnx.helper.make_node(
            function, [plain.output[0]], [output], name=f"{node.name or output} {function}"
        )
        nodes[-1:] = [plain, behind]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _infer(
    model: Any,
    nodes: Sequence[Any],
    constants: Mapping[str, Array],
    given: Mapping[str, Any],
) -> tuple[dict[str, Shape], dict[str, Any]]:
    """Infer shapes once; heavy constants are taken as inputs of known shape."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)  # before 4, initializers had to be inputs
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.name = "shapes"
    graph.node.extend(nodes)
    graph.input.extend(value for value in model.graph.input if value.name not in constants)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for name, value in constants.items():
        # A stored tensor may have a type that numpy has no name for.
        tensor = stored.get(name)
        if value.size <= LIGHT:
            tensor = onnx.numpy_helper.from_array(value, name) if tensor is None else tensor
            graph.initializer.append(tensor)
        elif tensor is None:
            graph.input.append(_value_info(name, value))
        else:
            info = onnx.helper.make_tensor_value_info(name, tensor.data_type, value.shape)
            graph.input.append(info)
    made = {output for node in nodes for output in node.output}
    for output in model.graph.output:
        if output.name in made:
            value = graph.output.add()
            value.CopyFrom(given.get(output.name, output))
            if output.name not in given:
                value.type.tensor_type.ClearField("shape")  # may name the dynamic batch
    shown = {output.name for output in graph.output}
    graph.value_info.extend(value for name, value in given.items() if name in made - shown)
    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: value for value in values}
    shapes = {}
    for name, value in types.items():
        tensor_type = value.type.tensor_type
        dims = tensor_type.shape.dim
        # A scalar has a shape without dimensions; an unknown shape has none either, but no field.
        if tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[name] = tuple(int(dim.dim_value) for dim in dims)
    return shapes, types


def _value_info(name: str, value: Array) -> Any:
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, value.shape)


def _value(
    node: Any,
    model: Any,
    constants: Mapping[str, Array],
    shapes: Mapping[str, Shape],
) -> dict[str, Array] | None:
    """Return the outputs of a node that depends on no input and can be computed here, or None."""
    if node.domain not in ("", "ai.onnx") or holds_subgraph(node) or node.op_type not in FOLDED:
        return None
    # A shape may be known where the value is not.
    if node.op_type in ("Shape", "Size"):
        source = node.input[0]
        if source in constants or source in shapes:
            shape = constants[source].shape if source in constants else shapes[source]
            attributes = attributes_of(node)
            part = shape[attributes.get("start", 0) : attributes.get("end")]
            value = np.array(part if node.op_type == "Shape" else prod(shape), dtype=np.int64)
            return {node.output[0]: value}
    inputs = sorted({name for name in node.input if name})
    outputs = [name for name in node.output if name]
    if not all(name in constants for name in inputs):
        return None
    if node.op_type != "Constant":
        for name in outputs:
            if name not in shapes or prod(shapes[name]) > MOST_FOLDED:
                return None
    if node.op_type in PRODUCTS and any(constants[name].size > MOST_MULTIPLIED for name in inputs):
        return None
    values = _evaluate(node, model, outputs, {name: constants[name] for name in inputs})
    return None if values is None else dict(zip(outputs, values, strict=True))


def _evaluate(
    node: Any,
    model: Any,
    outputs: Sequence[str],
    feed: Mapping[str, Array],
) -> list[Array] | None:
    """Run one node on constants.

    onnx itself knows all types, onnxruntime knows old versions of operations.
    """
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [_value_info(name, value) for name, value in feed.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    imports = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    alone = onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
    for load in (ReferenceEvaluator, session_of):
        try:
            with np.errstate(all="ignore"):
                values = load(alone).run(None, dict(feed))
        except Exception:  # noqa: BLE001, S112  # what cannot be evaluated is no constant, whatever stopped it
            continue
        # Sequences and optional values are no tensors.
        if all(isinstance(value, (np.ndarray, np.generic)) for value in values):
            return [np.asarray(value) for value in values]
    return None


def _check_names(model: Any) -> None:
    """Refuse names that are no text: those that are no UTF-8 come out of protobuf as bytes."""
    for node in model.graph.node:
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if not isinstance(name, str):
                raise TypeError(f"the name {name!r} is no text")


def _check_functions_end(model: Any) -> None:
    """Refuse functions that call themselves, directly or through others.

    The checker of onnx 1.21 lets them pass, and its inliner recurses until the process dies.
    """
    calls: Any = nx.DiGraph()
    for function in model.functions:
        caller = (function.domain, function.name, function.overload)
        calls.add_edges_from((caller, called) for called in _operators(function.node))
    if not nx.is_directed_acyclic_graph(calls):
        (_, name, _), _ = nx.find_cycle(calls)[0]
        raise ValueError(f"function '{name}' calls itself")


def _operators(nodes: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield domain, name and overload of all that nodes run, those of their subgraphs included."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _operators(graph.node)


def _read_by(node: Any) -> Iterator[str]:
    """Yield the tensors that a node reads, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)


def _name_hidden_sequences(model: Any) -> None:
    """Name the hidden sequence of recurrent nodes, so that effective counts can see it."""
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
