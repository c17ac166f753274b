"""Say what every operator that torch dispatches costs.

Products are counted from their operands (`torch_products`). Everything else costs what the like of it
costs in an ONNX file (`onnx.elementwise`): one operation per element produced, reductions and windows
one per element that they read, maxima one comparison less than elements, normalisations what their
written-out form costs. What only moves data is free. An operator that is in none of these tables has
no counts, and then there is no total.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import ceil, prod, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knarr.hw_sim.arrays import Int64
from knarr.hw_sim.counting.fan_out import AxisWindow
from knarr.hw_sim.counting.torch_products import (
    Contraction,
    Geometry,
    Names,
    Operand,
    UncountedError,
    as_array,
)


@dataclass(frozen=True)
class Convolved:
    """A convolution that was dispatched.

    Args:
        x, weight: its factors.
        out: its result.
        geometry: its settings.
    """

    x: Tensor
    weight: Tensor
    out: Tensor
    geometry: Geometry


@dataclass(frozen=True)
class CallCosts:
    """Operations of one call.

    Args:
        products: its multiplications.
        bias: what is added to their result, once per element.
        columns: column of `LayerCounts` -> operations that are no products.
        between: factor that the call makes of its other tensors and shows nobody.
    """

    products: tuple[Contraction | Convolved, ...] = ()
    bias: Tensor | None = None
    columns: dict[str, int] = field(default_factory=dict)
    between: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Args:
        operator: its name, without what tells its overloads and writing in place apart.
        arguments: name -> value, defaults included.
        out: what it returned.
        steps: of an inference, 1 where they lie in no tensor side by side.
    """

    operator: str
    arguments: dict[str, Any]
    out: Any
    steps: int

    @property
    def result(self) -> Tensor:
        """Its first tensor."""
        found: Tensor = self.out[0] if isinstance(self.out, (tuple, list)) else self.out
        return found

    @property
    def source(self) -> Tensor:
        """The first tensor that it reads."""
        found: Tensor = next(
            value for value in self.arguments.values() if isinstance(value, Tensor)
        )
        return found

    @property
    def read(self) -> int:
        """Elements of the first tensor that it reads."""
        return self.source.numel()

    @property
    def produced(self) -> int:
        """Elements of its first result."""
        return self.result.numel()


Rule = Callable[[Call], CallCosts | str | None]
"""Returns what a call costs, why it is free, or None to look at the operators that it is made of."""


def _other(elementwise: int = 0, *, comparisons: int = 0, pool_adds: int = 0) -> CallCosts:
    found = {"elementwise": elementwise, "comparisons": comparisons, "pool_adds": pool_adds}
    return CallCosts(columns=found)


# Products


def _joined(call: Call, a: Tensor, b: Tensor, *, folded: bool = False) -> Contraction:
    """Return a product as numpy.matmul joins two tensors."""
    leading = tuple(str(axis) for axis in range(max(a.dim(), b.dim()) - 2))

    def named(tensor: Tensor, last: Names) -> Operand:
        before = tensor.dim() - 2
        return Operand(tensor, (*leading[len(leading) - before :], *last) if before >= 0 else last)

    left = named(a, ("row", "inner") if a.dim() > 1 else ("inner",))
    right = named(b, ("inner", "column") if b.dim() > 1 else ("inner",))
    return Contraction(left, right, (*leading, "row", "column"), call.steps, folded)


def _linear(call: Call) -> CallCosts:
    x, weight = call.arguments["input"], call.arguments["weight"]
    return CallCosts((_joined(call, x, weight.t()),), call.arguments["bias"])


def _matmul(call: Call) -> CallCosts:
    a, b = [value for value in call.arguments.values() if isinstance(value, Tensor)][:2]
    # Only here does one axis hold the batch of whatever came before: steps, heads, groups.
    return CallCosts((_joined(call, a, b, folded=call.operator == "bmm"),))


def _added_matmul(call: Call) -> CallCosts:
    arguments = call.arguments
    bias, a, b = [value for value in arguments.values() if isinstance(value, Tensor)][:3]
    product = _joined(call, a, b, folded=call.operator == "baddbmm")
    if call.operator == "addbmm":  # sums over the batch too
        product = Contraction(product.left, product.right, ("row", "column"), call.steps)
    scaled = call.produced * (arguments.get("alpha", 1) != 1)
    used = arguments.get("beta", 1) != 0
    return CallCosts((product,), bias if used else None, {"elementwise": scaled})


def _convolution(call: Call) -> CallCosts:
    arguments = call.arguments
    geometry = Geometry(
        tuple(arguments["stride"]),
        tuple(arguments["padding"]),
        tuple(arguments["dilation"]),
        arguments["transposed"],
        arguments["groups"],
        call.steps,
    )
    x, weight = arguments["input"], arguments["weight"]
    return CallCosts((Convolved(x, weight, call.result, geometry),), arguments["bias"])


def _einsum(call: Call) -> CallCosts | None:
    """Count a product of two tensors; others are taken apart by torch."""
    equation = call.arguments["equation"].replace(" ", "")
    tensors = call.arguments["tensors"]
    before, arrow, result = equation.partition("->")
    terms = before.split(",")
    if not arrow:
        letters = sorted(set(before) - {","})
        result = "".join(letter for letter in letters if before.count(letter) == 1)
    plain = len(terms) == 2 and all(
        term.isalpha() and len(set(term)) == len(term) for term in terms
    )
    # What one of them has alone and the result has not is summed before the product.
    if not plain or not set(terms[0]) ^ set(terms[1]) <= set(result):
        return None
    left, right = (Operand(*pair) for pair in zip(tensors, map(tuple, terms), strict=True))
    return CallCosts((Contraction(left, right, tuple(result), call.steps),))


def _attention(call: Call) -> CallCosts:
    """Count softmax(query key' scale + mask) value: two products of the operands as they are."""
    arguments = call.arguments
    if arguments.get("dropout_p"):
        raise UncountedError("drops at random, as in training; call eval() on the module")
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    given = arguments.get("scale")
    scale = 1 / sqrt(query.shape[-1]) if given is None else given
    shared = 1
    if query.dim() > 2 and query.shape[-3] != key.shape[-3]:
        shared = query.shape[-3] // key.shape[-3]  # heads of the query for each of the key
        query = query.unflatten(-3, (-1, shared))
        key, value = key.unsqueeze(-3), value.unsqueeze(-3)
    scores = query.float() @ key.float().transpose(-2, -1) * scale
    masked = arguments.get("attn_mask", arguments.get("attn_bias"))
    if arguments.get("is_causal"):
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if masked is not None:
        if shared > 1 and masked.dim() > 2:
            masked = (
                masked.unsqueeze(-3)
                if masked.shape[-3] == 1
                else masked.unflatten(-3, (-1, shared))
            )
        if masked.dtype == torch.bool:
            scores = scores.masked_fill(~masked, -torch.inf)
        else:
            scores = scores + masked
    # A row that is masked as a whole gives zeros.
    weights = scores.softmax(-1).nan_to_num(0.0)
    per_score = 2 + (masked is not None or bool(arguments.get("is_causal")))
    return CallCosts(
        (
            _joined(call, query, key.transpose(-2, -1)),
            _joined(call, weights, value),
        ),
        columns={"elementwise": scores.numel() * per_score},
        between=weights,
    )


PRODUCTS: dict[str, Rule] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "_int_mm"), _matmul),
    **dict.fromkeys(
        ("addmm", "addmv", "baddbmm", "addbmm", "_addmm_activation"), _added_matmul
    ),
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    "einsum": _einsum,
    **dict.fromkeys(
        (
            "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
            "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
}  # fmt: skip
"""Operator -> the function that returns its products."""

# Everything else


def _per_output(call: Call) -> CallCosts:
    return _other(call.produced)


def _per_input(read: int, produced: int = 0) -> Rule:
    return lambda call: _other(read * call.read + produced * call.produced)


def _maximum(call: Call) -> CallCosts:
    # Those of two tensors compare once per element.
    if "other" in call.arguments:
        return _other(comparisons=call.produced)
    return _other(comparisons=max(0, call.read - call.produced))


def _windows(call: Call) -> list[AxisWindow]:
    """Return the windows of a pool along each axis."""
    arguments, out = call.arguments, call.result
    kernel, rank = arguments["kernel_size"], _rank(call)

    def along(name: str, default: Sequence[int]) -> list[int]:
        values = list(arguments.get(name) or default)
        return values * rank if len(values) == 1 else values

    sizes = zip(
        call.source.shape[-rank:],
        out.shape[-rank:],
        along("kernel_size", kernel),
        along("stride", along("kernel_size", kernel)),
        along("padding", [0]),
        along("dilation", [1]),
        strict=True,
    )
    return [AxisWindow(*size) for size in sizes]


def _rank(call: Call) -> int:
    return int(call.operator.partition("pool")[2][0])


def _average_pool(call: Call) -> CallCosts:
    """Count one addition for each event inside a window."""
    reached = [window.input_taps().sum(axis=1, dtype=np.int64) for window in _windows(call)]
    windows: Int64 = reduce(np.multiply.outer, reached)
    return _other(pool_adds=int(((as_array(call.source) != 0) * windows).sum()))


def _max_pool(call: Call) -> CallCosts:
    elements = [window.output_taps().sum(axis=1) for window in _windows(call)]
    planes = prod(call.source.shape[: -len(elements)])
    read = planes * prod(int(axis.sum()) for axis in elements)
    # A window that lies in the padding altogether compares nothing.
    filled = planes * prod(int(np.count_nonzero(axis)) for axis in elements)
    return _other(comparisons=read - filled)


def _adaptive_pool(call: Call) -> CallCosts:
    rank = _rank(call)
    read = prod(call.source.shape[:-rank])
    for size, bins in zip(call.source.shape[-rank:], call.result.shape[-rank:], strict=True):
        read *= sum(ceil((at + 1) * size / bins) - at * size // bins for at in range(bins))
    if "max" in call.operator:
        return _other(comparisons=read - call.produced)
    return _other(read)


def _batch_norm(call: Call) -> CallCosts:
    # The training variant without running statistics has no such argument.
    if call.arguments.get("training", call.arguments.get("train", False)):
        raise UncountedError("takes its statistics from the batch, as in training; call eval()")
    return _other(2 * call.produced)


def _normalisation(call: Call) -> CallCosts:
    """Count a mean, difference, square, mean, + eps, root and quotient; then scale and bias."""
    arguments = call.arguments
    per_element = 5 + sum(arguments.get(name) is not None for name in ("weight", "bias"))
    if call.operator == "native_group_norm":
        groups = arguments["N"] * arguments["group"]
    elif call.operator == "instance_norm":
        if not arguments["use_input_stats"]:
            return _other(2 * call.produced)
        groups = prod(call.source.shape[:2])
    else:
        groups = call.read // prod(arguments["normalized_shape"])
    if "rms_norm" in call.operator:
        per_element -= 2  # no mean is taken away
    return _other(per_element * call.produced + 2 * groups)


def _interpolated(neighbours: int) -> Rule:
    """Count the products with the neighbours' shares, and their sum."""

    def rule(call: Call) -> CallCosts:
        shapes = zip(call.source.shape, call.result.shape, strict=True)
        changed = sum(before != after for before, after in shapes)
        return _other(call.produced * (2 * neighbours**changed - 1) * (changed > 0))

    return rule


def _dropout(call: Call) -> str:
    if call.arguments.get("train", True) and call.arguments.get("p", 1):
        raise UncountedError("drops at random, as in training; call eval() on the module")
    return "does nothing in eval mode"


def _written(call: Call) -> str | CallCosts:
    """Scattering moves data, or combines it where it says so."""
    if call.arguments.get("accumulate") or call.arguments.get("reduce"):
        tensors = [value for value in call.arguments.values() if isinstance(value, Tensor)]
        return _other(tensors[-1].numel())
    return MOVES


MOVES = "moves data, computes nothing"
VALUE = "a value, no operation"
FREE = {
    **dict.fromkeys(
        (
            "_to_copy", "_unsafe_view", "alias_copy", "as_strided_scatter", "cat", "clone", "col2im_indices",
            "constant_pad_nd", "copy", "diag_embed", "embedding", "flip", "gather", "im2col", "index", "index_select",
            "lift_fresh_copy", "masked_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
            "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
            "replication_pad3d", "repeat", "repeat_interleave", "resize", "resize_as", "roll", "rot90", "select_scatter",
            "slice_scatter", "stack", "take", "tril", "triu", "unfold_copy", "unsqueeze_copy", "upsample_nearest1d",
            "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
            "_unsafe_index", "set", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "one_hot", "_pack_padded_sequence",
            "as_strided", "detach", "requires_grad", "squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze",
            "_conj", "view_copy", "expand_copy", "permute_copy", "_reshape_copy", "diagonal_scatter",
        ),
        MOVES,
    ),
    **dict.fromkeys(
        ("fill", "zero", "_local_scalar_dense", "item", "is_nonzero", "equal", "sym_size", "nonzero", "isnan_any"), VALUE
    ),
}  # fmt: skip
"""Operators that cost nothing here by policy, and why."""
FACTORIES = frozenset(
    ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "new_zeros",
     "new_ones", "new_full", "new_empty", "new_empty_strided")
)  # fmt: skip
"""Operators that take from a tensor nothing but its shape and type."""
OTHERS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "_log_softmax", "_softmax", "_safe_softmax", "bernoulli", "cummax", "cummin", "cumprod", "cumsum", "glu",
            "log_softmax", "logcumsumexp", "masked_scatter", "normal", "poisson", "softmax", "uniform", "_prelu_kernel",
            "prelu", "searchsorted", "bucketize", "renorm", "diff",
        ),
        _per_output,
    ),
    **dict.fromkeys(("sum", "nansum", "prod", "mean", "all", "any", "trace", "count_nonzero"), _per_input(1)),
    **dict.fromkeys(("linalg_vector_norm", "norm", "logsumexp"), _per_input(2, 1)),
    **dict.fromkeys(("std", "var", "var_mean", "std_mean"), _per_input(4)),
    **dict.fromkeys(("max", "min", "amax", "amin", "argmax", "argmin"), _maximum),
    "aminmax": lambda call: _other(comparisons=2 * max(0, call.read - call.produced)),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pool),
    **dict.fromkeys(
        ("max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool1d_with_indices"),
        _max_pool,
    ),
    **dict.fromkeys(
        (
            "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_max_pool1d",
            "adaptive_max_pool2d", "adaptive_max_pool3d",
        ),
        _adaptive_pool,
    ),
    **dict.fromkeys(
        (
            "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
            "miopen_batch_norm", "_batch_norm_with_update",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(
        ("native_layer_norm", "native_group_norm", "instance_norm", "rms_norm", "_fused_rms_norm"), _normalisation
    ),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _interpolated(2)),
    "upsample_bicubic2d": _interpolated(4),
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"), _dropout
    ),
    **dict.fromkeys(("index_put", "_index_put_impl", "scatter", "put", "index_copy", "index_fill"), _written),
    **dict.fromkeys(("scatter_add", "index_add", "scatter_reduce", "index_reduce"), _per_input(1)),
}  # fmt: skip
"""Operator -> the function that returns its operations; those of single elements are not listed."""
