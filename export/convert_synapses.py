"""Stateless torch layers -> NIR nodes, with the shape that leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from knarr.export.convert_neurons import Shape, array
from knarr.export.errors import ExportError
from knarr.export.layers import Layer
from knarr.export.modules import SumPool2d
from knarr.export.rewrite import WRITTEN_FROM


def _linear(layer: Layer, shape: Shape) -> Any:
    linear = layer.module
    assert isinstance(linear, nn.Linear)  # the table chose this converter by type
    if shape != (linear.in_features,):
        raise ExportError(
            f"module '{layer.path}': receives {shape}, needs ({linear.in_features},); flatten before it"
        )
    weight = array(linear.weight)
    return nir.Linear(weight) if linear.bias is None else nir.Affine(weight, array(linear.bias))


def _conv(layer: Layer, shape: Shape) -> Any:
    conv = layer.module
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d))  # the table chose this converter by type
    axes = len(conv.kernel_size)
    if len(shape) != 1 + axes or shape[0] != conv.in_channels:
        wanted = f"({conv.in_channels}, {'H, W' if axes == 2 else 'length'})"
        raise ExportError(
            f"module '{layer.path}': receives {shape}, needs {wanted}; reshape what comes before it"
        )
    bias = np.zeros(conv.out_channels) if conv.bias is None else array(conv.bias)
    fields: dict[str, Any] = {
        "weight": array(conv.weight),
        "groups": conv.groups,
        "bias": bias,
        "metadata": getattr(conv, WRITTEN_FROM, {}),
    }
    if isinstance(conv, nn.Conv1d):
        return nir.Conv1d(
            input_shape=shape[1],
            stride=int(conv.stride[0]),
            padding=int(conv.padding[0]),
            dilation=int(conv.dilation[0]),
            **fields,
        )
    return nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        stride=np.array(conv.stride),
        padding=np.array(conv.padding),
        dilation=np.array(conv.dilation),
        **fields,
    )


def _avg_pool(layer: Layer, shape: Shape) -> Any:
    pool = layer.module
    assert isinstance(pool, nn.AvgPool2d)  # the table chose this converter by type
    kernel, stride, padding = (_pair(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    if pool.ceil_mode or pool.divisor_override is not None or any(padding):
        raise ExportError(
            f"module '{layer.path}': ceil_mode, divisor_override and padding are not in NIR; pad or crop before it"
        )
    return nir.AvgPool2d(kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding))


def _sum_pool(layer: Layer, shape: Shape) -> Any:
    pool = layer.module
    assert isinstance(pool, SumPool2d)  # the table chose this converter by type
    return nir.SumPool2d(
        kernel_size=np.array(pool.kernel_size),
        stride=np.array(pool.stride),
        padding=np.zeros(2, dtype=np.int64),
    )


def _flatten(layer: Layer, shape: Shape) -> Any:
    flatten = layer.module
    assert isinstance(flatten, nn.Flatten)  # the table chose this converter by type
    end = flatten.end_dim if flatten.end_dim >= 0 else len(shape) + 1 + flatten.end_dim
    if not 1 <= flatten.start_dim <= end <= len(shape):
        raise ExportError(
            f"module '{layer.path}': flattens {flatten.start_dim}..{flatten.end_dim} of {shape} and the batch before it; "
            "flatten features only: nn.Flatten()"
        )
    # NIR counts dimensions without the batch.
    last = -1 if end == len(shape) else end - 1
    return nir.Flatten(input_type={"input": np.array(shape)}, start_dim=flatten.start_dim - 1, end_dim=last)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


CONVERTERS: dict[type[nn.Module], Callable[[Layer, Shape], Any]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _avg_pool,
    SumPool2d: _sum_pool,
    nn.Flatten: _flatten,
}


def synapse(layer: Layer, shape: Shape) -> tuple[Any, Shape]:
    """The NIR node of a stateless layer and the shape it gives.

    Raises:
        ExportError: the layer does not fit what it receives, holds NaN or infinity, or does what NIR cannot say.
    """
    for name, parameter in layer.module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ExportError(f"module '{layer.path}': {name} holds NaN or infinity; retrain or reload it")
    node = CONVERTERS[type(layer.module)](layer, shape)
    try:
        with torch.no_grad():
            device = next((p.device for p in layer.module.parameters()), torch.device("cpu"))
            given = layer.module(torch.zeros(1, *shape, device=device))
    except RuntimeError as error:
        raise ExportError(
            f"module '{layer.path}': does not take {shape} ({str(error).splitlines()[0]})"
        ) from error
    return node, tuple(given.shape[1:])
