"""Count the multiplications of one ONNX node, with and without zeros.

Every product counted here joins two tensors along indices that both share, such as the inner axis
of a matrix product or (input channel, kernel tap) of a convolution. If factor a has m_a(i) non-zero
partners at shared index i and factor b has m_b(i), the product multiplies sum_i m_a(i) m_b(i) pairs
that are non-zero. Dense, pruned and effective counts are this one sum with other elements taken as
present.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from knarr.hw_sim.arrays import Array, Int64, Mask
from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.onnx.model import OnnxGraph, OnnxNode, UnsupportedError

Values = Mapping[str, Array]
"""Tensor -> value of one run of the model."""


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
    """

    shape: tuple[int, ...]
    occurrences: Callable[[Mask], Int64]
    tensor: str = ""
    value: Array | None = None
    weight: bool = False
    zero: Array | str | None = None
    zero_axis: int = 0

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

    def _all(self) -> Int64:
        return self.occurrences(np.broadcast_to(np.True_, self.shape))

    def _nonzero(self, values: Values) -> Int64:
        value = values[self.tensor] if self.value is None else self.value
        zero = values[self.zero] if isinstance(self.zero, str) else self.zero
        # A vector of zero points lies along its axis, and numpy would broadcast it along the last.
        if zero is None:
            zero = np.asarray(0)
        elif zero.size == 1:
            zero = zero.reshape(())
        else:
            behind = len(self.shape) - self.zero_axis - 1
            zero = zero.reshape(-1, *[1] * behind)
        return self.occurrences(np.asarray(value != zero))


@dataclass(frozen=True)
class Product:
    """Multiplications between two factors."""

    a: Factor
    b: Factor

    def count(self, values: Values | None = None) -> tuple[int, int]:
        """Count the multiplications left, with zero weights and without.

        Args:
            values: of one run, or None to take every activation as non-zero.
        """
        pairs = zip(self.a.count(values), self.b.count(values), strict=True)
        stored, nonzero = (int((a * b).sum(dtype=np.int64)) for a, b in pairs)
        return stored, nonzero


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


def factor(
    graph: OnnxGraph,
    tensor: str,
    occurrences: Callable[[Mask], Int64],
    *,
    zero: str = "",
    zero_axis: int = 0,
) -> Factor:
    """Make a factor from a tensor: a weight if the file holds its value, else an activation.

    Args:
        graph: the model.
        tensor, occurrences, zero_axis: as those of `Factor`.
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
    return Factor(shape, occurrences, tensor, value, value is not None, zero_point, zero_axis)


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
