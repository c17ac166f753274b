"""Kernels of pooling and synapse in one; `fold.py` has the formulas."""

from __future__ import annotations

import copy
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from knarr.export.errors import ExportError
from knarr.export.rewrite import dense_kernel, same_padding
from knarr.export.step_synapses import ints

Float64 = npt.NDArray[np.float64]
Sides = tuple[int, ...]


def _gain(pool: Any) -> float:
    high, wide = ints(pool.kernel_size)
    return 1.0 / (high * wide) if isinstance(pool, nir.AvgPool2d) else 1.0


def numbers(node: Any) -> Any:
    """A convolution with padding as numbers.

    Raises:
        ExportError: 'same' of an even kernel, which pads one side more than the other.
    """
    if not isinstance(node.padding, str):
        return node
    plain = copy.copy(node)
    kernel = np.asarray(node.weight).shape[2:]
    axes = len(kernel)
    same = (0,) * axes if node.padding == "valid" else same_padding(ints(node.dilation, axes), kernel)
    if same is None:
        raise ExportError("Conv: padding 'same' of an even kernel differs on both sides; use an odd kernel")
    plain.padding = same[0] if axes == 1 else np.array(same)
    return plain


def dense_groups(node: Any) -> Any:
    """A convolution with one dense kernel and padding as numbers."""
    plain = copy.copy(numbers(node))
    weight = torch.as_tensor(np.asarray(node.weight, dtype=np.float64))
    plain.weight = dense_kernel(weight, int(node.groups)).numpy()
    plain.groups = 1
    return plain


def pool_then_conv(
    name: str, pool: Any, shape: tuple[int, ...], conv: nir.Conv2d, pool_name: str
) -> nir.Conv2d:
    """conv(pool(x)) as one convolution of x, shape (C, H, W).

    Raises:
        ExportError: the convolution's padding would meet pixels that the pool left out or covers twice.
    """
    conv = numbers(conv)
    size, step, pad = (ints(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    stride, padding, dilation = (ints(v) for v in (conv.stride, conv.padding, conv.dilation))
    for axis in (0, 1):
        cells = (shape[1 + axis] + 2 * pad[axis] - size[axis]) // step[axis] + 1
        seen = shape[1 + axis] + 2 * pad[axis] > cells * step[axis]
        if padding[axis] and (size[axis] > step[axis] or seen or pad[axis]):
            raise ExportError(
                f"node '{pool_name}': pool {size} with stride {step} on {shape[1:]} does not fold into the padded convolution "
                f"'{name}': its zeros would meet pixels; choose sizes that the pool divides"
            )
    weight = np.asarray(conv.weight, dtype=np.float64)
    sides = [(weight.shape[2 + i] - 1) * dilation[i] * step[i] + size[i] for i in (0, 1)]
    kernel = np.zeros((*weight.shape[:2], *sides))
    for a in range(weight.shape[2]):
        for b in range(weight.shape[3]):
            top, left = a * dilation[0] * step[0], b * dilation[1] * step[1]
            kernel[:, :, top : top + size[0], left : left + size[1]] += (
                _gain(pool) * weight[:, :, a, b, None, None]
            )
    folded_padding = tuple(padding[i] * step[i] + pad[i] for i in (0, 1))
    return _conv(
        kernel, conv.bias, tuple(stride[i] * step[i] for i in (0, 1)), folded_padding, int(conv.groups)
    )


def conv_then_pool(name: str, conv: nir.Conv2d, pool: Any, pool_name: str) -> nir.Conv2d:
    """pool(conv(x)) as one convolution of x.

    Raises:
        ExportError: a padded pool, whose zeros are not the convolution's.
    """
    conv = numbers(conv)
    size, step, pad = (ints(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    if any(pad):
        raise ExportError(
            f"node '{pool_name}': a padded pool after '{name}' is no convolution, since its zeros lack the bias; remove the padding"
        )
    stride, padding, dilation = (ints(v) for v in (conv.stride, conv.padding, conv.dilation))
    weight = np.asarray(conv.weight, dtype=np.float64)
    sides = [(size[i] - 1) * stride[i] + (weight.shape[2 + i] - 1) * dilation[i] + 1 for i in (0, 1)]
    kernel = np.zeros((*weight.shape[:2], *sides))
    for y in range(size[0]):
        for x in range(size[1]):
            rows = slice(y * stride[0], y * stride[0] + (weight.shape[2] - 1) * dilation[0] + 1, dilation[0])
            columns = slice(
                x * stride[1], x * stride[1] + (weight.shape[3] - 1) * dilation[1] + 1, dilation[1]
            )
            kernel[:, :, rows, columns] += _gain(pool) * weight
    bias = np.asarray(conv.bias, dtype=np.float64) * (_gain(pool) * size[0] * size[1])
    return _conv(kernel, bias, tuple(stride[i] * step[i] for i in (0, 1)), padding, int(conv.groups))


def conv_of_pool(pool: Any, shape: tuple[int, ...]) -> nir.Conv2d:
    """A pool alone: every channel sees itself through a window of ones."""
    kernel = np.zeros((shape[0], shape[0], *ints(pool.kernel_size)))
    kernel[np.arange(shape[0]), np.arange(shape[0])] = _gain(pool)
    return _conv(kernel, np.zeros(shape[0]), ints(pool.stride), ints(pool.padding))


def pool_then_linear(
    pool: Any, shape: tuple[int, ...], linear: nir.Linear | nir.Affine
) -> nir.Linear | nir.Affine:
    """linear(flatten(pool(x))) as linear'(flatten(x)): a cell's column goes to every pixel of its window."""
    size, step, pad = (ints(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    cells = [(shape[1 + i] + 2 * pad[i] - size[i]) // step[i] + 1 for i in (0, 1)]
    weight = np.asarray(linear.weight, dtype=np.float64)
    columns = torch.as_tensor(weight.reshape(len(weight), shape[0], *cells))
    window = torch.full((shape[0], 1, *size), _gain(pool), dtype=torch.float64)
    spread = F.conv_transpose2d(columns, window, None, step, (0, 0), (0, 0), shape[0])
    pixels = torch.zeros(
        len(weight), shape[0], shape[1] + 2 * pad[0], shape[2] + 2 * pad[1], dtype=torch.float64
    )
    pixels[:, :, : spread.shape[2], : spread.shape[3]] = spread
    inner = pixels[:, :, pad[0] : pad[0] + shape[1], pad[1] : pad[1] + shape[2]]
    flat = inner.reshape(len(weight), -1).numpy().copy()
    return nir.Affine(flat, np.array(linear.bias)) if isinstance(linear, nir.Affine) else nir.Linear(flat)


def _conv(kernel: Float64, bias: Any, stride: Sides, padding: Sides, groups: int = 1) -> nir.Conv2d:
    return nir.Conv2d(
        input_shape=None,
        weight=kernel,
        stride=np.array(stride),
        padding=np.array(padding),
        dilation=np.array([1, 1]),
        groups=groups,
        bias=np.array(bias, dtype=np.float64),
    )
