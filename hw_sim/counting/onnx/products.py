"""What one ONNX node costs, and how its multiplications are counted with and without zeros.

Every product counted here joins two tensors along indices that both share, such as the inner axis of a matrix product or
(input channel, kernel tap) of a convolution. If factor a has m_a(i) non-zero partners at shared index i and factor b has
m_b(i), the product multiplies sum_i m_a(i) m_b(i) pairs that are non-zero. Dense, pruned and effective counts are this one
sum with other elements taken as present.

A product of ONNX as two factors, and the row it makes: what convolutions and matrix products share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.counts import LayerSizes
from knarr.hw_sim.counting.fan_out import Int64
from knarr.hw_sim.counting.onnx.model import OnnxGraph, UnsupportedError

Array = npt.NDArray[np.generic]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Factor:
    """One side of a product.

    Args:
        shape: of the tensor.
        occurrences: (mask of present elements, shaped as the tensor) -> how many are present per shared index; the
            results of a product's two factors broadcast against each other.
        tensor: name under which a run of the model shows its values; "" is never seen and taken as non-zero.
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

    def watched(self) -> frozenset[str]:
        """Tensors whose values `count` needs."""
        names = {
            self.tensor if self.value is None else "",
            self.zero if isinstance(self.zero, str) else "",
        }
        return frozenset(names - {""})

    def count(self, values: Mapping[str, Array] | None, *, nz: bool) -> Int64:
        """Present elements per shared index.

        Args:
            values: tensor -> value of one run, or None to take every activation as non-zero.
            nz: skip stored weights that are 0.
        """
        known = values is not None and (self.value is not None or self.tensor != "")
        if not (nz if self.weight else known):
            return self.occurrences(np.broadcast_to(np.True_, self.shape))
        seen = values or {}
        held = seen[self.tensor] if self.value is None else self.value
        zero = seen[self.zero] if isinstance(self.zero, str) else self.zero
        return self.occurrences(np.asarray(held != self._along_axis(zero)))

    def _along_axis(self, zero: Array | None) -> Array:
        if zero is None:
            return np.asarray(0)
        if zero.size == 1:
            return zero.reshape(())
        return zero.reshape(
            [-1 if axis == self.zero_axis else 1 for axis in range(len(self.shape))]
        )


@dataclass(frozen=True)
class Product:
    """Multiplications between two factors."""

    a: Factor
    b: Factor

    def count(self, values: Mapping[str, Array] | None = None, *, nz: bool = False) -> int:
        """Multiplications left when zeros are skipped; arguments as of `Factor.count`."""
        return _pairs(self.a.count(values, nz=nz), self.b.count(values, nz=nz))

    def runs(self) -> Callable[[Mapping[str, Array]], tuple[int, int]]:
        """values -> (`count(values)`, `count(values, nz=True)`), with stored weights looked at only once."""
        a, b = _per_run(self.a), _per_run(self.b)

        def count(values: Mapping[str, Array]) -> tuple[int, int]:
            (a_stored, a_nonzero), (b_stored, b_nonzero) = a(values), b(values)
            stored = _pairs(a_stored, b_stored)
            same = a_stored is a_nonzero and b_stored is b_nonzero
            return stored, stored if same else _pairs(a_nonzero, b_nonzero)

        return count


def _pairs(a: Int64, b: Int64) -> int:
    return int((a * b).sum(dtype=np.int64))


def _per_run(factor: Factor) -> Callable[[Mapping[str, Array]], tuple[Int64, Int64]]:
    """Occurrences with zero weights and without: of a weight the same in all runs, of an activation the same number."""
    if factor.weight:
        fixed = factor.count(None, nz=False), factor.count(None, nz=True)
        return lambda values: fixed

    def count(values: Mapping[str, Array]) -> tuple[Int64, Int64]:
        seen = factor.count(values, nz=False)
        return seen, seen

    return count


@dataclass(frozen=True)
class NodeCounts:
    """Operations of one node in one inference.

    Args:
        sizes: words it holds; zeros where it works in place on the output of the node before it.
        products: its multiplications.
        padded: the same with taps into the zero padding; None where there is no padding.
        bias_adds: additions of a stored bias.
        comparisons: of pools and other maxima.
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


TWO_ACTIVATIONS = "product of two activations: effective where both are non-zero"


def factor(
    graph: OnnxGraph,
    tensor: str,
    occurrences: Callable[[Mask], Int64],
    *,
    zero: str = "",
    zero_axis: int = 0,
) -> Factor:
    """A factor from a tensor of the graph: a weight if the file holds its value, an activation otherwise."""
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
    node: Any,
    graph: OnnxGraph,
    left: str,
    right: str,
    product: Product,
    *,
    kernel: int,
    padded: int | None = None,
    bias: str = "",
    convolution: bool = False,
    elementwise: int = 0,
) -> NodeCounts:
    """Counts of a node that is one product.

    Args:
        node: onnx.NodeProto; its first output is the product's.
        graph: the model.
        left, right: tensors of the two factors, of which at least one is an activation.
        product: the factors.
        kernel, convolution: as of `LayerSizes`.
        padded: multiplications with taps into the padding, None where there is none.
        bias: tensor added to every output, "" for none; one that is not stored is an elementwise addition.
        elementwise: operations besides.

    Raises:
        UnsupportedError: both factors are constants, or a shape is not static.
    """
    outputs = prod(graph.shape(node.output[0]))
    stored = bias in graph.constants
    if bias and not stored:
        elementwise += outputs
    both = product.a.weight + product.b.weight
    if both == 2:
        raise UnsupportedError("both operands are constants; export with constant folding")
    activation, weight = (right, left) if product.a.weight else (left, right)
    sizes = LayerSizes(
        inputs=prod(graph.shape(activation)),
        outputs=outputs,
        weights=prod(graph.shape(weight)),
        biases=graph.constants[bias].size if stored else 0,
        states=0,
        kernel=kernel,
        convolution=convolution,
        leaky=False,
    )
    return NodeCounts(
        sizes,
        (product,),
        padded,
        outputs if stored else 0,
        elementwise=elementwise,
        note="" if both else TWO_ACTIVATIONS,
    )
