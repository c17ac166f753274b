"""Rewrite layers that NIR has no word for as plain ones: batch-norm folded, groups and odd kernels dense and square.

Each rewrite is exact in real numbers and moves float32 by a rounding, so the certificate compares the spikes of the module
as it is, and every bit with the rewritten one.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import norse.torch as snn
import numpy as np
import torch
from torch import Tensor, nn

from knarr.export.errors import ExportError
from knarr.export.graph.convolutions import dense_kernel, groups_metadata, padding_numbers
from knarr.export.graph.parameters import ints
from knarr.export.graph.paths import Convolution
from knarr.export.norse.layers import NEURON_CELLS, Layer, Layers
from knarr.export.norse.modules import INPUT, OUTPUT, Scale, StepGraph, SumPool2d

Shape = tuple[int, ...]

WRITTEN_FROM = "knarr_written_from"
"""Name of the attribute that says, on a convolution that was made dense and square, what it was."""


def rewrite(layers: Layers, input_shape: tuple[int, ...]) -> tuple[Layers, dict[str, str]]:
    """Return plain layers, and module path -> what was rewritten.

    Args:
        layers: the layers of a one-step module.
        input_shape: feature shape of one time step, without batch.

    Raises:
        ExportError: a batch-norm that follows no synapse, or a kernel that no square one equals.
    """
    done: dict[str, str] = dict(layers.rewrites)
    leaves = {leaf.name: leaf for leaf in layers.leaves}
    output = layers.output
    for name in list(leaves):
        norm = leaves[name]
        if not isinstance(norm.module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            continue
        before = _synapse_before(norm, leaves.values(), output)
        leaves[before.name] = replace(before, module=_fold(before, norm))
        del leaves[name]
        # What read the norm reads the synapse, another norm behind it among them.
        for other, leaf in leaves.items():
            leaves[other] = replace(leaf, sources=_renamed(leaf.sources, norm, before))
        output = _renamed(output, norm, before)
        done[norm.path] = f"batch-norm folded into '{before.path}'"
    if any(is_odd_pool(leaf.module) for leaf in leaves.values()):
        leaves, output = _rewrite_pools(list(leaves.values()), output, input_shape, done)
    for name, leaf in leaves.items():
        why: list[str] = []
        if isinstance(leaf.module, (nn.Conv1d, nn.Conv2d)):
            plain, why = _plain_conv(leaf)
        elif isinstance(leaf.module, nn.LPPool2d):
            plain, why = _sum_pool(leaf), ["LPPool2d of norm 1 as an exact sum"]
        if why:
            leaves[name] = replace(leaf, module=plain)
            _note(done, leaf, ", ".join(why))
    return replace(layers, leaves=tuple(leaves.values()), output=output), done


def _renamed(names: tuple[str, ...], old: Layer, new: Layer) -> tuple[str, ...]:
    return tuple(new.name if name == old.name else name for name in names)


def as_module(layers: Layers, *, late: bool = True) -> StepGraph:
    """Return the layers as one module that runs.

    Args:
        layers: plain ones.
        late: whether a current takes what loops back after what arrives forward, as a graph without Delay nodes does.
    """
    edges = [(source, leaf.name) for leaf in layers.leaves for source in leaf.sources]
    edges += [(source, OUTPUT) for source in layers.output]
    delayed = [(source, leaf.name) for leaf in layers.leaves for source in leaf.delayed]
    made = StepGraph({leaf.name: leaf.module for leaf in layers.leaves}, edges, delayed).eval()
    if not late:
        made.looping = frozenset()
    return made


def _note(done: dict[str, str], leaf: Layer, said: str) -> None:
    # A layer that is rewritten twice says both.
    done[leaf.path] = f"{done[leaf.path]}, {said}" if leaf.path in done else said


def is_odd_pool(pool: nn.Module) -> bool:
    """Tell whether a pool has windows that NIR's pools do not say: padded, cut off at an edge, divided otherwise."""
    if isinstance(pool, nn.AvgPool2d):
        plain = not pool.ceil_mode and pool.divisor_override is None
        return not plain or any(ints(pool.padding))
    return isinstance(pool, nn.LPPool2d) and pool.norm_type == 1 and bool(pool.ceil_mode)


def _rewrite_pools(
    leaves: list[Layer], output: tuple[str, ...], input_shape: Shape, done: dict[str, str]
) -> tuple[dict[str, Layer], tuple[str, ...]]:
    """Write such pools as convolutions of their windows, and a factor for each pixel where windows differ."""
    shapes: dict[str, Shape | None] = {INPUT: input_shape}
    made: dict[str, Layer] = {}
    scales: dict[str, Layer] = {}

    def behind(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(scales[name].name if name in scales else name for name in names)

    for leaf in leaves:
        shape = shapes.get(leaf.sources[0]) if leaf.sources else None
        shapes[leaf.name] = _leaving(leaf.module, shape)
        own = replace(leaf, sources=behind(leaf.sources))
        known = shape is not None and len(shape) == 3 and shapes[leaf.name] is not None
        if is_odd_pool(leaf.module) and known:
            assert shape is not None
            windows, factors = _windows(leaf.module, shape)
            own = replace(own, module=windows)
            said = "pool as a convolution of its windows"
            if factors is not None:
                scale = Layer(f"{leaf.name}_scale", leaf.path, Scale(factors), (leaf.name,))
                scales[leaf.name] = scale
                said += ", and a factor for each pixel as they differ"
            _note(done, leaf, said)
        made[leaf.name] = own
        if leaf.name in scales:
            made[f"{leaf.name}_scale"] = scales[leaf.name]
    # Loops may end at later layers, so they are named when all layers are made.
    made = {name: replace(leaf, delayed=behind(leaf.delayed)) for name, leaf in made.items()}
    return made, behind(output)


def _leaving(module: nn.Module, shape: Shape | None) -> Shape | None:
    """Return the shape that leaves a layer, None where it is unknown; `convert` says what does not fit."""
    if isinstance(module, nn.Linear):
        return (module.out_features,)
    if isinstance(module, snn.LIFRecurrentCell):
        return (int(module.hidden_size),)
    if shape is None or isinstance(module, NEURON_CELLS):
        return shape
    try:
        with torch.no_grad():
            return tuple(module(torch.zeros(1, *shape)).shape[1:])
    except (RuntimeError, ValueError):
        return None


def _windows(pool: Any, shape: Shape) -> tuple[nn.Conv2d, Tensor | None]:
    """Return a pool of (C, H, W) as the convolution of its windows, and what to multiply each pixel by, None where 1."""
    ones = torch.ones(1, *shape, dtype=torch.float64)
    given = pool(ones)
    kernel, stride = ints(pool.kernel_size), ints(pool.stride or pool.kernel_size)
    before = ints(getattr(pool, "padding", 0))
    leaving = tuple(given.shape[1:])
    window = np.ones((shape[0], 1, *kernel))
    summed = Convolution(window, stride, before, shape, leaving, groups=shape[0])  # type: ignore[arg-type]
    # Every window holds at least one pixel: torch pads by no more than half of it.
    factors = (given / summed.apply(ones))[0]
    even = bool((factors - factors.flatten()[0]).abs().max() < 1e-12)
    weight = summed.weight * float(factors.flatten()[0]) if even else summed.weight
    plain, padding = _squared(replace(summed, weight=weight))
    conv = nn.Conv2d(
        shape[0], shape[0], plain.weight.shape[2:], plain.stride, padding, groups=shape[0], bias=False
    )  # fmt: skip
    conv.weight = nn.Parameter(torch.as_tensor(plain.weight, dtype=torch.float32))
    return conv.eval(), None if even else factors.float()


def _squared(made: Convolution) -> tuple[Convolution, tuple[int, int]]:
    """Return a convolution with a square kernel and as many zeros behind the image as before it, and that padding.

    Zeros in the kernel make up for both, where some do; else `_square` refuses it by name.
    """
    largest = max(made.weight.shape[2:])
    for side in range(largest, 2 * largest + 2):
        tall, wide = (_front(made, axis, side) for axis in (0, 1))
        if tall is not None and wide is not None:
            rows, columns = made.weight.shape[2:]
            around = ((0, 0), (0, 0), (tall, side - rows - tall), (wide, side - columns - wide))
            before = (made.before[0] + tall, made.before[1] + wide)
            return replace(made, weight=np.pad(made.weight, around), before=before), before
    return made.symmetric()


def _front(made: Convolution, axis: int, side: int) -> int | None:
    """Return how many zeros before a kernel make it so long with the outputs that it has; None where none do."""
    for front in range(side - made.weight.shape[2 + axis] + 1):
        room = made.entering[1 + axis] + 2 * (made.before[axis] + front) - side
        if room >= 0 and room // made.stride[axis] + 1 == made.leaving[1 + axis]:
            return front
    return None


def _synapse_before(norm: Layer, leaves: Collection[Layer], output: tuple[str, ...]) -> Layer:
    # A norm that a recurrent edge reaches, too, normalises a sum that no single synapse gives.
    before = None
    for leaf in leaves:
        if norm.sources == (leaf.name,) and not norm.delayed:
            before = leaf
    wanted = nn.Conv2d if isinstance(norm.module, nn.BatchNorm2d) else (nn.Linear, nn.Conv1d)
    if before is None or not isinstance(before.module, wanted):
        raise ExportError(
            f"module '{norm.path}': {type(norm.module).__name__} folds only into the Linear or Conv directly before it; "
            "move it there"
        )
    # The fold changes what the synapse gives, so the norm must be all that reads it.
    readers = [leaf for leaf in leaves if before.name in leaf.sources + leaf.delayed]
    if readers != [norm] or before.name in output:
        raise ExportError(
            f"module '{norm.path}': what it normalises is also used elsewhere, so it cannot be folded; "
            "branch after the batch-norm"
        )
    return before


def _fold(before: Layer, norm: Layer) -> nn.Module:
    """Fold a batch-norm, in float64.

    w' = w * gamma / sqrt(var + eps);  b' = beta + (b - mean) * gamma / sqrt(var + eps)
    """
    layer: Any = before.module
    bn: Any = norm.module
    if bn.running_mean is None or bn.running_var is None:
        raise ExportError(
            f"module '{norm.path}': without running statistics it depends on the batch; set track_running_stats"
        )
    channels = layer.weight.shape[0]
    if bn.num_features != channels:
        raise ExportError(
            f"module '{norm.path}': {bn.num_features} features after {channels} channels"
        )
    # A norm may be without gamma and beta, and the synapse without bias.
    gamma, beta, bias = (
        torch.full((channels,), default) if parameter is None else parameter.detach()
        for parameter, default in ((bn.weight, 1.0), (bn.bias, 0.0), (layer.bias, 0.0))
    )
    gain = gamma.double() / (bn.running_var.double() + bn.eps).sqrt()
    offset = beta.double() + (bias.double() - bn.running_mean.double()) * gain
    # The gain of a channel stands before all its columns or taps.
    weight = layer.weight.detach().double() * gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
    folded = copy.deepcopy(layer)
    folded.weight = nn.Parameter(weight.float())
    folded.bias = nn.Parameter(offset.float())
    return folded


def _plain_conv(leaf: Layer) -> tuple[nn.Module, list[str]]:
    conv: Any = leaf.module
    if conv.padding_mode != "zeros":
        raise ExportError(
            f"module '{leaf.path}': padding of mode '{conv.padding_mode}', NIR pads with zeros; use padding_mode='zeros'"
        )
    why = []
    weight, kernel = conv.weight.detach(), tuple(conv.kernel_size)
    dilation = tuple(conv.dilation)
    padding = padding_numbers(conv.padding, dilation, kernel)
    if padding is None:
        # torch pads one more behind the image than before it; a zero before the kernel makes up for it.
        weight = _odd(weight, dilation)
        kernel, dilation = tuple(weight.shape[2:]), (1,) * len(dilation)
        padding = tuple(k // 2 for k in kernel)
        why.append(f"padding 'same' as numbers, with a kernel of {kernel}")
    elif isinstance(conv.padding, str):
        why.append(f"padding '{conv.padding}' as numbers")
    if conv.groups > 1:
        weight = dense_kernel(weight, conv.groups)
        why.append(f"{conv.groups} groups as one dense kernel")
    if isinstance(conv, nn.Conv2d) and kernel[0] != kernel[1]:
        weight, padding = _square(leaf, weight, padding, dilation)
        why.append(f"kernel {kernel} as a square one with zeros around")
    if not why:
        return conv, why
    plain = copy.deepcopy(conv)
    plain.weight = nn.Parameter(weight)
    plain.kernel_size, plain.padding, plain.groups = tuple(weight.shape[2:]), padding, 1
    plain.dilation = dilation
    # The node's metadata get this, so that whoever stores or counts synapses finds the groups again.
    setattr(plain, WRITTEN_FROM, groups_metadata(conv.groups, kernel))
    return plain, why


def _odd(weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """Return a kernel without dilation whose sides are odd: gaps are zeros, and one more stands before a side that is even."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    plain = weight.new_zeros(*weight.shape[:2], *(span + 1 - span % 2 for span in spans))
    places = [slice(1 - span % 2, None, d) for span, d in zip(spans, dilation, strict=True)]
    plain[(slice(None), slice(None), *places)] = weight
    return plain


def _square(
    leaf: Layer, weight: Tensor, padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Put the same taps into a square kernel: zeros on both sides of the shorter axis, and as much more padding."""
    side = max(weight.shape[2:])
    missing = [side - k for k in weight.shape[2:]]
    if any(m % 2 for m in missing):
        raise ExportError(
            f"module '{leaf.path}': kernel {tuple(weight.shape[2:])} is not square, which nir 1.0.8 reads back wrongly, and "
            "cannot be centred in a square one; make both sides odd or both even"
        )
    tall, wide = (m // 2 for m in missing)
    # `pad` takes the last axis first.
    squared = nn.functional.pad(weight, (wide, wide, tall, tall))
    return squared, (padding[0] + dilation[0] * tall, padding[1] + dilation[1] * wide)


def _sum_pool(leaf: Layer) -> SumPool2d:
    pool: Any = leaf.module
    if pool.norm_type != 1:
        raise ExportError(
            f"module '{leaf.path}': LPPool2d of norm {pool.norm_type}; only norm 1 is a sum, which NIR has"
        )
    return SumPool2d(pool.kernel_size, pool.stride).eval()
