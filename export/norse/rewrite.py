"""Rewrite layers that NIR has no word for as plain ones: batch-norm folded, groups and odd kernels dense and square.

Each rewrite is exact in real numbers and moves float32 by a rounding, so the certificate compares the spikes of the module
as it is, and every bit with the rewritten one.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from knarr.export.errors import ExportError
from knarr.export.graph.convolutions import dense_kernel, groups_metadata, padding_numbers
from knarr.export.norse.layers import Layer, Layers
from knarr.export.norse.modules import OUTPUT, StepGraph, SumPool2d

WRITTEN_FROM = "knarr_written_from"
"""Name of the attribute that says, on a convolution that was made dense and square, what it was."""


def rewrite(layers: Layers) -> tuple[Layers, dict[str, str]]:
    """Return plain layers, and module path -> what was rewritten.

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
    for name, leaf in leaves.items():
        why: list[str] = []
        if isinstance(leaf.module, (nn.Conv1d, nn.Conv2d)):
            plain, why = _plain_conv(leaf)
        elif isinstance(leaf.module, nn.LPPool2d):
            plain, why = _sum_pool(leaf), ["LPPool2d of norm 1 as an exact sum"]
        if why:
            leaves[name] = replace(leaf, module=plain)
            done[leaf.path] = ", ".join(why)
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
    if pool.norm_type != 1 or pool.ceil_mode:
        raise ExportError(
            f"module '{leaf.path}': LPPool2d of norm {pool.norm_type} and ceil_mode {pool.ceil_mode}; only norm 1 without "
            "ceil_mode is a sum, which NIR has"
        )
    return SumPool2d(pool.kernel_size, pool.stride).eval()
