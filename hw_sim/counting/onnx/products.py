"""Count the products of ONNX: convolutions, matrix products and recurrent layers.

Each is counted with zeros and without.

Every product counted here joins two tensors along indices that both share, such as the inner axis
of a matrix product or (input channel, kernel tap) of a convolution. If factor a has m_a(i) non-zero
partners at shared index i and factor b has m_b(i), the product multiplies sum_i m_a(i) m_b(i) pairs
that are non-zero. Dense, pruned and effective counts are this one sum with other elements taken as
present; so are those of spikes, which arrive in frames of their own.

Of a network that spikes in part, additions of spikes are told from multiplications. A frame is what
a product meets in one place of a batch: one image of a convolution, one row of a matrix product. Frames of 0 and 1, or with -1 too, are spikes: each is added, and nothing is
multiplied (`ACC`). So are the whole numbers of tensors that are made of spikes alone
(`knarr.hw_sim.counting.onnx.spikes`): a sum of k of them is added k times.

Convolutions have any number of axes. A transposed one walks the taps of a forward one from its
outputs to its inputs, so both have the same windows, with the two ends exchanged. Zeros that pad a
forward convolution are, transposed, elements cropped from the output.

LSTM, GRU and RNN multiply the input and the state before it at each step of each direction. With
weights W, R and biases Wb, Rb of a direction, step t and batch element, their gates are
    W x_t + R h_(t-1) + Wb + Rb, h_(-1) being the initial state, zeros where none is given.
The hidden sequence Y shows h_(t-1) at every step but the first; a reverse direction walks it from
its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np

from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.fan_out import AxisWindow, targets_per_tap
from knarr.hw_sim.counting.onnx.model import OnnxGraph, OnnxNode, UnsupportedError

Values = Mapping[str, Array]
"""Tensor -> value of one run of the model."""
MOST_COUNTED = 15
"""Largest sum of spikes that is added so many times; frames with larger ones are graded."""


class Classed(NamedTuple):
    """Elements of one factor in one run, per shared index."""

    dense: Int64
    """All elements in graded frames."""
    active: Int64
    """Those of them that are not 0."""
    events: Int64
    """Elements in frames of spikes that are not 0."""
    spikes: Int64
    """The spikes that they stand for: a sum of 2 is 2."""
    signed: Int64
    """Those spikes that arrive in frames with a negative one."""


@dataclass(frozen=True)
class Factor:
    """One side of a product.

    Args:
        shape: of the tensor.
        occurrences: (mask of present elements, shaped as the tensor) -> how many are present per
            shared index; the results of a product's two factors broadcast against each other.
        tensor: name under which a run of the model shows its values; "" is never seen and taken as
            non-zero.
        value: what the file holds, if it does.
        weight: stored, so that a zero is skipped by sparse storage alone and not as an activation.
        zero: value that means 0 (a zero point), or the name of the tensor that holds it.
        zero_axis: axis along which a vector of zero points lies.
        frames: axes along which frames lie; none: the whole tensor is one.
    """

    shape: tuple[int, ...]
    occurrences: Callable[[Mask], Int64]
    tensor: str = ""
    value: Array | None = None
    weight: bool = False
    zero: Array | str | None = None
    zero_axis: int = 0
    frames: tuple[int, ...] = ()

    def watched(self) -> set[str]:
        """Return the tensors whose values `count` needs."""
        names = {self.tensor} if self.value is None else set()
        if isinstance(self.zero, str):
            names.add(self.zero)
        return names - {""}

    def count(self, values: Values | None) -> tuple[Int64, Int64]:
        """Count the present elements per shared index, with stored zeros and without.

        Args:
            values: of one run, or None to take every activation as non-zero.
        """
        if self.weight:
            return self._stored
        # Nobody ever sees a tensor without a name.
        seen = values is not None and (self.value is not None or self.tensor != "")
        counted = self._nonzero(values or {}) if seen else self._all()
        return counted, counted

    @cached_property
    def _stored(self) -> tuple[Int64, Int64]:
        # A weight is the same in every run, and large.
        return self._all(), self._nonzero({})

    @cached_property
    def _dense(self) -> Int64:
        return self._all()

    def _all(self) -> Int64:
        return self.occurrences(np.broadcast_to(np.True_, self.shape))

    def _nonzero(self, values: Values) -> Int64:
        return self.occurrences(np.asarray(self._values(values) != 0))

    def _values(self, values: Values) -> Array:
        """Return the elements in a run, less their zero points."""
        value = values[self.tensor] if self.value is None else self.value
        zero = values[self.zero] if isinstance(self.zero, str) else self.zero
        if zero is None:
            return value
        # A vector of zero points lies along its axis, and numpy would broadcast it along the last.
        if zero.size == 1:
            zero = zero.reshape(())
        else:
            behind = len(self.shape) - self.zero_axis - 1
            zero = zero.reshape(-1, *[1] * behind)
        # Bytes would wrap.
        return value.astype(np.int64) - zero.astype(np.int64)

    def classed(self, values: Values, counted: frozenset[str]) -> Classed:
        """Count what arrives in frames of spikes, and what in graded ones, per shared index.

        Args:
            values: of one run.
            counted: tensors that are spikes or sums of spikes by the way they are made. Of all
                others frames of 0 and 1 alone are spikes.
        """
        if self.weight or (self.value is None and not self.tensor):
            stored, nonzero = self.count(values)
            none = np.zeros_like(stored)
            return Classed(stored, nonzero, none, none, none)
        value = self._values(values)
        inside = tuple(axis for axis in range(value.ndim) if axis not in self.frames)
        sums = self.tensor in counted
        most = MOST_COUNTED if sums else 1
        # In floats, for the least of the bytes has no absolute value.
        height = np.abs(value if value.dtype.kind == "f" else value.astype(np.float64))
        highest = height.max(axis=inside, keepdims=True)
        whole = (height == np.rint(height)).all(axis=inside, keepdims=True)
        graded = ~(whole & (highest <= most) & (sums | (highest > 0)))
        if value.dtype.kind in "iu":
            # Codes of quantised values, of which 1 is no spike.
            graded[...] = True
        active = np.asarray(height != 0)
        if graded.all():
            none = np.zeros_like(self._dense)
            return Classed(self._dense, self.occurrences(active), none, none, none)
        in_graded = np.asarray(active & graded)
        events = spikes = self.occurrences(active & ~graded)
        for above in range(1, most):
            more = np.asarray((height > above) & ~graded)
            if not more.any():
                break
            spikes = spikes + self.occurrences(more)
        signed = np.zeros_like(events)
        if value.dtype.kind != "b" and (value < 0).any():
            turned = (value < 0).any(axis=inside, keepdims=True) & ~graded
            for least in range(most):
                signed = signed + self.occurrences(np.asarray((height > least) & turned))
        dense = self.occurrences(np.broadcast_to(graded, value.shape))
        return Classed(dense, self.occurrences(in_graded), events, spikes, signed)


@dataclass(frozen=True)
class Product:
    """Multiplications between two factors."""

    a: Factor
    b: Factor

    def count(self, values: Values | None = None) -> tuple[int, int]:
        """Count the pairs left, with zero weights and without.

        Args:
            values: of one run, or None to take every activation as non-zero.
        """
        pairs = zip(self.a.count(values), self.b.count(values), strict=True)
        stored, nonzero = (_pairs(a, b) for a, b in pairs)
        return stored, nonzero

    def dense(self, values: Values) -> dict[str, int]:
        """Count the multiplications of a run, and those that are left when zeros are skipped.

        Args:
            values: of the run.

        Returns:
            `mac`, `mac_nonzero`, `effective` and `effective_nonzero`.
        """
        pairs = {"mac": self._taken, "effective": self.count(values)}
        return {
            kind + which: number
            for kind, numbers in pairs.items()
            for which, number in zip(("", "_nonzero"), numbers, strict=True)
        }

    @cached_property
    def _taken(self) -> tuple[int, int]:
        return self.count()

    def classed(self, values: Values, counted: frozenset[str]) -> dict[str, int]:
        """Count the operations of a run: multiplications, and additions of spikes.

        Args:
            values, counted: as those of `Factor.classed`.

        Returns:
            `acc`, `repeats` and `mac` of `LayerCounts`, `effective`, all of them with `_nonzero`
            weights too, and `signed`.
        """
        activation, other = (self.b, self.a) if self.a.weight else (self.a, self.b)
        mine = activation.classed(values, counted)
        again = mine.spikes - mine.events
        found: dict[str, int] = {}
        if other.weight:
            for name, weights in zip(("", "_nonzero"), other.count(values), strict=True):
                found |= {
                    "acc" + name: _pairs(mine.spikes, weights),
                    "repeats" + name: _pairs(again, weights),
                    "mac" + name: _pairs(mine.dense, weights),
                    "effective" + name: _pairs(mine.active + mine.events, weights),
                }
            return found | {"signed": _pairs(mine.signed, other.count(values)[0])}
        its = other.classed(values, counted)
        # Spikes of the one add up what is not 0 of the other; only two graded ones are multiplied.
        reached = its.active + its.events
        acc = _pairs(mine.spikes, reached) + _pairs(mine.active, its.spikes)
        repeats = _pairs(again, reached) + _pairs(mine.active, its.spikes - its.events)
        for name in ("", "_nonzero"):
            found |= {
                "acc" + name: acc,
                "repeats" + name: repeats,
                "mac" + name: _pairs(mine.dense, its.dense),
                "effective" + name: _pairs(mine.active + mine.events, reached),
            }
        return found | {"signed": _pairs(mine.signed, reached) + _pairs(mine.active, its.signed)}


def _pairs(one: Int64, other: Int64) -> int:
    return int((one * other).sum(dtype=np.int64))


@dataclass(frozen=True)
class NodeCounts:
    """Operations of one node in one inference.

    Args:
        sizes: words it holds; zeros where it works in place on the output of the node before it.
        products: its multiplications.
        padded: the same with taps into the zero padding; None where there is no padding.
        bias_adds: additions of a stored bias.
        comparisons: those of pools and other maxima.
        elementwise: other operations, one per element they produce unless the note says otherwise.
        note: what the numbers stand for.
    """

    sizes: LayerSizes
    products: tuple[Product, ...] = ()
    padded: int | None = None
    bias_adds: int = 0
    comparisons: int = 0
    elementwise: int = 0
    note: str = ""


Rule = Callable[[OnnxNode], NodeCounts | str]
"""Counts a node, or says why it is free."""
TWO_ACTIVATIONS = "product of two activations: effective where both are non-zero"


class Operands(NamedTuple):
    """Names of the tensors that a product reads, "" where there is none."""

    left: str
    right: str
    bias: str
    zeros: tuple[str, str]
    """Zero points of both factors."""


def operands(node: OnnxNode) -> Operands:
    """Return what a convolution or matrix product reads; only the order of its inputs tells."""
    weight, bias = 1, 2
    zeros = ("", "")
    if node.operation.startswith("QLinear"):
        # A factor is followed by its scale and its zero point, and so is the output.
        weight, bias = 3, 8
        zeros = node.operand(2), node.operand(5)
    elif node.operation.endswith("Integer"):
        # Both zero points stand behind the factors, and there is no bias.
        zeros, bias = (node.operand(2), node.operand(3)), 4
    return Operands(node.operand(0), node.operand(weight), node.operand(bias), zeros)


def _present(elements: Mask, axis: int | tuple[int, ...]) -> Int64:
    """Count the elements that are present along axes."""
    return np.asarray(np.sum(elements, axis=axis, dtype=np.int64))


def factor(
    graph: OnnxGraph,
    tensor: str,
    occurrences: Callable[[Mask], Int64],
    *,
    zero: str = "",
    zero_axis: int = 0,
    frames: tuple[int, ...] = (),
) -> Factor:
    """Make a factor from a tensor: a weight if the file holds its value, else an activation.

    Args:
        graph: the model.
        tensor, occurrences, zero_axis, frames: as those of `Factor`.
        zero: tensor of its zero points, "" for none.

    Raises:
        UnsupportedError: zero points that do not fit the tensor, or are not known where its value
            is.
    """
    value, shape = graph.constants.get(tensor), graph.shape(tensor)
    zero_point = graph.constants.get(zero, zero) if zero else None
    if value is not None and isinstance(zero_point, str):
        raise UnsupportedError(
            f"zero point '{zero}' of the stored '{tensor}' is not a constant of the file"
        )
    if zero and prod(graph.shape(zero)) not in (1, shape[zero_axis]):
        raise UnsupportedError(
            f"{prod(graph.shape(zero))} zero points '{zero}' for an axis of {shape[zero_axis]}"
        )
    return Factor(
        shape, occurrences, tensor, value, value is not None, zero_point, zero_axis, frames
    )


def product_row(
    node: OnnxNode,
    product: Product,
    *,
    kernel: int,
    padded: int | None = None,
    convolution: bool = False,
    elementwise: int = 0,
) -> NodeCounts:
    """Return the counts of a node that is one product.

    Args:
        node: the product is its first output.
        product: the factors, of which at least one is an activation.
        kernel, convolution: as those of `LayerSizes`.
        padded: multiplications with taps into the padding, None where there is none.
        elementwise: operations besides.

    Raises:
        UnsupportedError: both factors are constants, or a shape is not static.
    """
    outputs, constants = node.outputs, node.graph.constants
    if node.operation.startswith("QLinear"):
        # Each sum is brought to the output's scale.
        elementwise += outputs
    bias = operands(node).bias
    stored = bias in constants
    if bias and not stored:
        # A bias that is computed is added like any other tensor.
        elementwise += outputs
    if product.a.weight and product.b.weight:
        raise UnsupportedError("both operands are constants; export with constant folding")
    activation, other = product.a, product.b
    if activation.weight:
        activation, other = other, activation
    sizes = LayerSizes(
        inputs=prod(activation.shape),
        outputs=outputs,
        weights=prod(other.shape),
        biases=constants[bias].size if stored else 0,
        kernel=kernel,
        convolution=convolution,
    )
    return NodeCounts(
        sizes,
        (product,),
        padded,
        bias_adds=outputs if stored else 0,
        elementwise=elementwise,
        note="" if other.weight else TWO_ACTIVATIONS,
    )


LONGEST_AXIS = 2**24
"""Positions of an axis times taps; beyond it the table of taps would fill the memory."""
Sizes = Sequence[int]


def axis_windows(
    node: OnnxNode,
    kernel: Sizes,
    inputs: Sizes,
    outputs: Sizes,
) -> list[AxisWindow]:
    """Return the window along each axis of Conv, of ConvTranspose or of a pool.

    `auto_pad` is resolved as the operator's definition says.

    Args:
        node: holds the attributes.
        kernel, inputs, outputs: sizes along the spatial axes.

    Returns:
        One window for each axis. That of ConvTranspose has the node's outputs as its inputs and the
        other way round.

    Raises:
        UnsupportedError: attributes that do not fit the axes.
    """
    attributes, rank = node.attributes, len(kernel)
    transposed = node.operation == "ConvTranspose"
    strides = _listed(attributes, "strides", rank, least=1)
    dilations = _listed(attributes, "dilations", rank, least=1)
    if transposed:
        inputs, outputs = outputs, inputs
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {auto_pad} does not exist")
    padding = (0,) * rank
    # Whoever names the output's shape leaves the padding to follow from it, whatever auto_pad says.
    if "output_shape" not in attributes and auto_pad == "NOTSET":
        padding = _listed(attributes, "pads", rank, least=0)[:rank]
    axes = zip(inputs, outputs, kernel, strides, padding, dilations, strict=True)
    windows = [AxisWindow(*axis) for axis in axes]
    if "output_shape" not in attributes and auto_pad in ("NOTSET", "VALID"):
        return windows
    extra = attributes.get("output_padding", [0] * rank)
    found = []
    for axis, window in enumerate(windows):
        places = window.outputs if transposed else ceil(window.inputs / window.stride)
        extent = (window.kernel - 1) * window.dilation + 1
        missing = (places - 1) * window.stride + extent + extra[axis] - window.inputs
        if transposed and missing < 0:
            raise UnsupportedError(
                f"output of {window.inputs} on axis {axis} is larger than the kernel reaches"
            )
        half = max(missing, 0) // 2
        # SAME_UPPER puts an odd zero at the end, everything else at the beginning.
        begin = half if auto_pad == "SAME_UPPER" else max(missing, 0) - half
        found.append(replace(window, padding=begin))
    return found


def _listed(
    attributes: dict[str, Any],
    name: str,
    axes: int,
    *,
    least: int,
) -> tuple[int, ...]:
    """Return an attribute with numbers for each axis, the least ones where it is left out."""
    # The zeros before each axis are followed by those behind each.
    length = 2 * axes if name == "pads" else axes
    values = tuple(attributes.get(name, [least] * length))
    if len(values) != length or min(values, default=least) < least:
        raise UnsupportedError(f"{name} {list(values)} do not fit {axes} axes")
    return values


def check_axes(kernel: Sizes, sizes: Sizes) -> None:
    """Refuse axes on which a table of taps would be too large, or has no taps.

    Raises:
        UnsupportedError: an axis is refused.
    """
    for taps, size in zip(kernel, sizes, strict=True):
        if taps < 1 or size < 1 or taps * size > LONGEST_AXIS:
            raise UnsupportedError(f"a kernel of {taps} on {size} elements cannot be counted")


def _convolution(node: OnnxNode) -> NodeCounts:
    graph = node.graph
    source, weight, _, zeros = operands(node)
    inputs, outputs = node.input_shape, node.output_shape
    shape = graph.shape(weight)
    transposed = node.operation == "ConvTranspose"
    groups = _groups(node, inputs, shape)
    # Weights are stored as (outputs, inputs per group, *kernel), transposed as (inputs, outputs per
    # group, *kernel).
    if transposed:
        channels = shape[1] * groups
        fits = shape[0] == inputs[1]
    else:
        channels = shape[0]
        fits = channels % groups == 0
    if not fits or outputs[:2] != (inputs[0], channels):
        raise UnsupportedError(
            f"weight {shape} does not make {outputs} of {inputs} in {groups} groups"
        )
    kernel = shape[2:]
    windows = axis_windows(node, kernel, inputs[2:], outputs[2:])
    padded_by = _explicit_padding(source, graph) if node.operation == "Conv" else None
    if padded_by is not None:
        # These zeros exist no more than those that the convolution pads with.
        source, pads = padded_by
        axes = zip(windows, graph.shape(source)[2:], pads, strict=True)
        windows = [
            replace(window, inputs=size, padding=window.padding + pad) for window, size, pad in axes
        ]
    check_axes(kernel, graph.shape(source)[2:])
    if transposed:
        taps = [window.output_taps() for window in windows]
        targets: Callable[[Mask], Int64] = partial(_present, axis=1)
    else:
        taps = [window.input_taps() for window in windows]
        targets = partial(targets_per_tap, groups=groups)
    product = Product(
        factor(graph, source, partial(_events_per_tap, taps=taps), zero=zeros[0], frames=(0,)),
        factor(graph, weight, targets, zero=zeros[1]),
    )
    # Dense hardware walks every tap of every place, those beyond a border or cropped from the
    # output too.
    places = inputs if transposed else outputs
    return product_row(
        node,
        product,
        padded=prod(places) * prod(shape[1:]),
        kernel=channels * prod(kernel),
        convolution=True,
    )


def _groups(
    node: OnnxNode,
    inputs: Sizes,
    shape: Sizes,
) -> int:
    """Return `group` of a convolution, checked against the shapes of its input and weight."""
    attributes = node.attributes
    groups = attributes.get("group", 1)
    if len(shape) < 3 or len(inputs) != len(shape):
        raise UnsupportedError(
            f"weight {tuple(shape)} on an input {tuple(inputs)}: needs the same axes"
        )
    stated = attributes.get("kernel_shape", list(shape[2:]))
    if list(stated) != list(shape[2:]):
        raise UnsupportedError(f"kernel_shape {list(stated)}, the weight has {list(shape[2:])}")
    if node.operation == "ConvTranspose":
        fits = groups > 0 and inputs[1] % groups == 0
    else:
        fits = groups > 0 and inputs[1] == shape[1] * groups
    if not fits:
        raise UnsupportedError(
            f"weight {tuple(shape)} in {groups} groups on an input {tuple(inputs)}"
        )
    return int(groups)


def _explicit_padding(source: str, graph: OnnxGraph) -> tuple[str, list[int]] | None:
    """Look for a Pad node that puts zeros around the spatial axes.

    Returns:
        Its input and the zeros before each axis; None where `source` comes from anything else.
    """
    producer = graph.producers.get(source)
    if producer is None or producer.op_type != "Pad" or producer.domain not in ("", "ai.onnx"):
        return None
    node = OnnxNode(producer, graph)
    attributes = node.attributes
    # Before opset 11 the pads were an attribute.
    if attributes.get("mode", b"constant") != b"constant" or "pads" in attributes:
        return None
    pads = graph.constants.get(node.operand(1))
    filling = node.operand(2)
    unknown = np.asarray(1)
    if pads is None or (filling and np.any(graph.constants.get(filling, unknown) != 0)):
        return None
    rank = len(node.input_shape)
    axes = graph.constants.get(node.operand(3), np.arange(rank)).reshape(-1)
    zeros = np.zeros((rank, 2), dtype=np.int64)
    # All beginnings are listed first, then all ends. An axis below 0 counts from the last.
    zeros[axes] = pads.reshape(2, -1).T
    # Other axes than spatial ones change the layer; below 0 the node crops.
    if zeros[:2].any() or zeros.min() < 0:
        return None
    return node.operand(0), zeros[2:, 0].tolist()


def _events_per_tap(mask: Mask, taps: Sequence[Mask]) -> Int64:
    """Count the elements that each tap joins to an output: (batch, C, *axes) -> (C, *kernel)."""
    # Floats are multiplied many times as fast as integers, and are exact below 2^53.
    events = np.asarray(mask.sum(axis=0, dtype=np.float64))
    for joined in taps:
        # Each turn sums one spatial axis away and puts the kernel axis it meets last.
        events = np.tensordot(events, joined.astype(np.float64), axes=(1, 0))
    return events.astype(np.int64)


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
PER_UNIT = {
    "RNN": 1,  # the activation
    "GRU": 3 + 1 + 4,  # z, r, n; the reset product; (1 - z) n + z h
    "LSTM": 3 + 2 + 3 + 1,  # i, f, o; tanh of g and c; f c + i g; o tanh(c)
}
"""Elementwise operations of one unit at one step."""
PEEPHOLES = 3
"""Gates of an LSTM that may look at the cell: i, o and f."""
REVERSED = {b"forward": (False,), b"reverse": (True,), b"bidirectional": (False, True)}
"""Direction -> whether each of its walks runs backward through time."""


def _matrix_product(node: OnnxNode) -> NodeCounts:
    """Count a product whose axes before the last two broadcast, as those of numpy.matmul do."""
    left, right, bias, zeros = operands(node)
    graph, attributes = node.graph, node.attributes
    # Gemm alone has these attributes.
    rescaled = 0
    if attributes.get("alpha", 1.0) != 1.0:
        rescaled += node.outputs
    if bias and attributes.get("beta", 1.0) != 1.0:
        rescaled += prod(graph.shape(bias))
    # Axis of each side that is summed over, of the last two.
    inner = (
        -2 if attributes.get("transA", 0) else -1,
        -1 if attributes.get("transB", 0) else -2,
    )
    # Zero points are given per row of the left side and per column of the right one.
    zero_axes = -2, -1
    factors, summed = [], []
    two_activations = graph.constants.keys().isdisjoint((left, right))
    for tensor, axis, zero, zero_axis in zip((left, right), inner, zeros, zero_axes, strict=True):
        shape = graph.shape(tensor)
        if not shape:
            raise UnsupportedError(f"'{tensor}' is a scalar")
        # A vector has no axis but the one that is summed over.
        vector = len(shape) == 1
        summed.append(shape[-1 if vector else axis])
        partners = partial(_present, axis=() if vector else -3 - axis)
        zero_at = 0 if vector else len(shape) + zero_axis
        # A layer of weights works on rows; two activations meet as whole matrices, of which one row
        # of probabilities may be a 1 among zeros and is no spike.
        inside = {len(shape) - 1, len(shape) - 2} if two_activations else {len(shape) + axis}
        frames = tuple(at for at in range(len(shape)) if not vector and at not in inside)
        factors.append(factor(graph, tensor, partners, zero=zero, zero_axis=zero_at, frames=frames))
    if summed[0] != summed[1]:
        raise UnsupportedError(f"sums over {summed[0]} and {summed[1]} elements")
    shape = graph.shape(right)
    kernel = 1 if len(shape) == 1 else shape[-3 - inner[1]]
    return product_row(node, Product(*factors), kernel=kernel, elementwise=rescaled)


def _einsum(node: OnnxNode) -> NodeCounts:
    """Count a product of two tensors.

    An index of one of them alone, or of both, has no other partner, so every pair that meets is
    multiplied.
    """
    graph, tensors = node.graph, node.proto.input
    equation = node.attributes["equation"].decode(errors="replace").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != 2 or len(tensors) != 2:
        raise UnsupportedError(
            f"equation '{equation}' joins {len(terms)} tensors; write it as MatMuls"
        )
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        shape = graph.shape(tensor)
        # An ellipsis or an index twice in a term, which stands for a diagonal, has no rule.
        if not term.isalpha() or len(set(term)) != len(term) or len(term) != len(shape):
            raise UnsupportedError(
                f"equation '{equation}': '{term}' on a shape of {len(shape)} axes"
            )
        for label, size in zip(term, shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise UnsupportedError(
                    f"equation '{equation}': index {label} is {sizes[label]} and {size}"
                )
    shared = sorted(set(terms[0]) & set(terms[1]))
    # As in a matrix product, two activations are summed along the axes that both have.
    kept = set(equation.partition("->")[2])
    if graph.constants.keys().isdisjoint(tensors):
        kept &= set(shared)
    a, b = (
        factor(
            graph,
            tensor,
            partial(_sum_unshared, term=term, shared=shared),
            frames=tuple(at for at, label in enumerate(term) if label in kept),
        )
        for term, tensor in zip(terms, tensors, strict=True)
    )
    unshared = set(terms[1]) - set(terms[0])
    kernel = prod(sizes[label] for label in unshared)
    return product_row(node, Product(a, b), kernel=kernel)


def _sum_unshared(
    mask: Mask,
    term: str,
    shared: Sequence[str],
) -> Int64:
    """Sum over the indices of one term that are not shared, and put the shared ones in order."""
    unshared = tuple(axis for axis, label in enumerate(term) if label not in shared)
    left = [label for label in term if label in shared]
    summed = mask.sum(axis=unshared, dtype=np.int64)
    return np.transpose(summed, [left.index(label) for label in shared])


def _recurrent(node: OnnxNode) -> NodeCounts:
    graph, kind, attributes = node.graph, node.operation, node.attributes
    x, w, r = (graph.shape(name) for name in node.proto.input[:3])
    if attributes.get("layout", 0):
        raise UnsupportedError("layout 1 (batch first); export with the steps first")
    if attributes.get("input_forget", 0):
        raise UnsupportedError("input_forget couples two gates; export without")
    direction = attributes.get("direction", b"forward")
    if direction not in REVERSED:
        raise UnsupportedError(f"direction {direction.decode(errors='replace')} does not exist")
    reverse = REVERSED[direction]
    directions, hidden = len(reverse), r[-1] if r else 0
    gates = GATES[kind] * hidden
    if len(x) != 3 or w != (directions, gates, x[2]) or r != (directions, gates, hidden):
        raise UnsupportedError(
            f"weights {w} and {r} do not fit an input {x} and {directions} directions"
        )
    lengths = _lengths(node.operand(4), graph, x)
    read = partial(_inputs_read, lengths=lengths, directions=directions)
    inputs = Factor(x, read, node.operand(0), graph.constants.get(node.operand(0)), frames=(0, 1))
    sequence = node.proto.output[0]
    states = Factor(
        (x[0], directions, x[1], hidden),
        partial(_states_read, lengths=lengths, reverse=reverse),
        sequence,
        frames=(0, 1, 2),
    )
    if node.output_shape != states.shape:
        raise UnsupportedError(f"hidden sequence {node.output_shape}, expected {states.shape}")
    products = [Product(inputs, _weight(graph, node.operand(1)))]
    recurrent = _weight(graph, node.operand(2))
    initial = _initial_state(node.operand(5), graph, lengths, states.shape[1:])
    products += [Product(states, recurrent), Product(initial, recurrent)]
    weights = prod(w) + prod(r)
    note = (
        "every step multiplies a state, the first one the initial state (zeros where none is given)"
    )
    units = int(lengths.sum()) * directions * hidden
    peepholes = node.operand(7) if kind == "LSTM" else ""
    if peepholes:
        shape = (directions, PEEPHOLES * hidden)
        products.append(_peephole_product(peepholes, graph, int(lengths.sum()), shape))
        weights += prod(shape)
        note += "; peepholes look at the cell, which no output shows: taken as non-zero"
    if kind == "GRU" and not attributes.get("linear_before_reset", 0):
        note += "; the reset state is taken as zero only where the state is"
    # Wb and Rb are stored one behind the other, and both are added.
    bias, biases = node.operand(3), (directions, 2 * gates)
    if bias and graph.shape(bias) != biases:
        raise UnsupportedError(f"biases {graph.shape(bias)}, expected {biases}")
    bias_adds = 2 * GATES[kind] * units if bias else 0
    stored = bias in graph.constants
    per_unit = PER_UNIT[kind]
    if "clip" in attributes:
        per_unit += GATES[kind]
    sizes = LayerSizes(
        inputs=prod(x),
        outputs=prod(states.shape),
        weights=weights,
        biases=prod(biases) if stored else 0,
        kernel=directions * gates,
    )
    return NodeCounts(
        sizes,
        tuple(products),
        bias_adds=bias_adds if stored else 0,
        # A bias that is computed is added like any other tensor.
        elementwise=units * per_unit + (0 if stored else bias_adds),
        note=note,
    )


def _lengths(
    name: str,
    graph: OnnxGraph,
    x: tuple[int, ...],
) -> Int64:
    """Return the steps of each batch element, (batch,); all of them where the node does not say."""
    steps, batch, _ = x
    if not name:
        return np.full(batch, steps, dtype=np.int64)
    lengths = graph.constant(name, "sequence_lens").astype(np.int64)
    if lengths.shape != (batch,) or lengths.min() < 0 or lengths.max() > steps:
        raise UnsupportedError(f"sequence_lens {lengths.tolist()} of {steps} steps")
    return lengths


def _weight(graph: OnnxGraph, name: str) -> Factor:
    """Make a factor of weights (directions, rows, columns); each column meets one input."""
    partners = partial(_present, axis=1)
    value = graph.constant(name, "weight")
    return Factor(graph.shape(name), partners, name, value, weight=True)


def _inputs_read(
    mask: Mask,
    lengths: Int64,
    directions: int,
) -> Int64:
    """Count elements that are read: (steps, batch, features) -> (directions, features)."""
    steps = np.arange(len(mask))[:, None]
    walked = steps < lengths
    elements = mask & walked[..., None]
    counts = elements.sum(axis=(0, 1), dtype=np.int64)
    return np.broadcast_to(counts, (directions, len(counts)))


def _states_read(
    mask: Mask,
    lengths: Int64,
    reverse: Sequence[bool],
) -> Int64:
    """Count states that come back: (steps, directions, batch, hidden) -> (directions, hidden)."""
    step = np.arange(len(mask))[:, None]
    counts = []
    for direction, backward in enumerate(reverse):
        # The last state of each walk does not come back, which is the first one in time where it
        # runs backward.
        last = 0 if backward else lengths - 1
        back = (step < lengths) & (step != last)
        states = mask[:, direction] & back[..., None]
        counts.append(states.sum(axis=(0, 1), dtype=np.int64))
    return np.asarray(counts)


def _initial_state(
    name: str,
    graph: OnnxGraph,
    lengths: Int64,
    shape: tuple[int, ...],
) -> Factor:
    """Make a factor of the state before the first step, (directions, batch, hidden)."""
    if name and graph.shape(name) != shape:
        raise UnsupportedError(f"initial state {graph.shape(name)}, expected {shape}")
    # Batch elements without a step never read it.
    runs = (lengths > 0)[:, None]

    def partners(mask: Mask) -> Int64:
        return np.asarray((mask & runs).sum(axis=1, dtype=np.int64))

    value: Array | None = np.zeros(shape, dtype=np.float32)
    if name:
        value = graph.constants.get(name)
    return Factor(shape, partners, name, value, frames=(0, 1))


def _peephole_product(
    name: str,
    graph: OnnxGraph,
    steps: int,
    shape: tuple[int, int],
) -> Product:
    """Multiply one weight per gate and unit with the cell at every step of every batch element."""
    if graph.shape(name) != shape:
        raise UnsupportedError(f"peepholes {graph.shape(name)}, expected {shape}")
    cell = Factor(shape, lambda mask: mask.astype(np.int64) * steps)
    stored = graph.constant(name, "peepholes")
    weight = Factor(shape, lambda mask: mask.astype(np.int64), name, stored, weight=True)
    return Product(cell, weight)


PRODUCT_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "QLinearConv"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _matrix_product),
    **dict.fromkeys(GATES, _recurrent),
    "Einsum": _einsum,
}
"""Operation -> the function that returns its counts."""
