"""Where the window of a convolution, transposed convolution or pool lies, axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.onnx_graph import UnsupportedError, attributes_of

LONGEST_AXIS = 2**24
"""Positions of an axis times taps; beyond it the table of taps would fill the memory."""


@dataclass(frozen=True)
class Window:
    """Kernel, stride, dilation and zeros before the first element, per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]

    def extent(self, axis: int) -> int:
        """Elements from the first tap to the last."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def window_of(node: Any, kernel: Sequence[int], inputs: Sequence[int]) -> Window:
    """Window of Conv and of pools; `auto_pad` is resolved as the operator's definition says.

    Args:
        node: onnx.NodeProto.
        kernel, inputs: sizes along the spatial axes.

    Raises:
        UnsupportedError: attributes that do not fit the axes.
    """
    attributes = attributes_of(node)
    strides, dilations = _per_axis(attributes, "strides", kernel), _per_axis(attributes, "dilations", kernel)
    bare = Window(tuple(kernel), strides, dilations, (0,) * len(kernel))
    auto = _auto_pad(attributes)
    if auto == "NOTSET":
        return Window(tuple(kernel), strides, dilations, _pads(attributes, kernel)[: len(kernel)])
    if auto == "VALID":
        return bare
    begins = []
    for axis, size in enumerate(inputs):
        outputs = -(-size // strides[axis])
        missing = max((outputs - 1) * strides[axis] + bare.extent(axis) - size, 0)
        begins.append(missing // 2 if auto == "SAME_UPPER" else missing - missing // 2)
    return Window(tuple(kernel), strides, dilations, tuple(begins))


def transposed_window_of(
    node: Any, kernel: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]
) -> Window:
    """Window of ConvTranspose; `begins` are the elements cropped before the first output.

    Args:
        node: onnx.NodeProto.
        kernel, inputs, outputs: sizes along the spatial axes.

    Raises:
        UnsupportedError: attributes that do not fit the axes.
    """
    attributes = attributes_of(node)
    strides, dilations = _per_axis(attributes, "strides", kernel), _per_axis(attributes, "dilations", kernel)
    bare = Window(tuple(kernel), strides, dilations, (0,) * len(kernel))
    auto = _auto_pad(attributes)
    asked = "output_shape" in attributes
    if not asked and auto == "NOTSET":
        return Window(tuple(kernel), strides, dilations, _pads(attributes, kernel)[: len(kernel)])
    if not asked and auto == "VALID":
        return bare
    extra = attributes.get("output_padding", [0] * len(kernel))
    begins = []
    for axis, (size, wanted) in enumerate(zip(inputs, outputs, strict=True)):
        cropped = strides[axis] * (size - 1) + extra[axis] + bare.extent(axis) - wanted
        if cropped < 0:
            raise UnsupportedError(f"output of {wanted} on axis {axis} is larger than the kernel reaches")
        begins.append(cropped // 2 if auto == "SAME_UPPER" else cropped - cropped // 2)
    return Window(tuple(kernel), strides, dilations, tuple(begins))


def spread_taps(
    positions: int, targets: int, kernel: int, *, stride: int, padding: int, dilation: int
) -> npt.NDArray[np.bool_]:
    """(positions, kernel): whether stride * position + dilation * tap - padding lies in 0..targets-1.

    For a transposed convolution positions are inputs and targets outputs, for a pool the other way round.
    """
    at = stride * np.arange(positions)[:, None] + dilation * np.arange(kernel)[None, :] - padding
    return np.asarray((at >= 0) & (at < targets))


def _auto_pad(attributes: dict[str, Any]) -> str:
    value: str = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    if value not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"auto_pad {value} does not exist")
    return value


def _per_axis(attributes: dict[str, Any], name: str, kernel: Sequence[int]) -> tuple[int, ...]:
    values = tuple(attributes.get(name, [1] * len(kernel)))
    if len(values) != len(kernel) or min(values, default=1) < 1:
        raise UnsupportedError(f"{name} {list(values)} do not fit {len(kernel)} axes")
    return values


def _pads(attributes: dict[str, Any], kernel: Sequence[int]) -> tuple[int, ...]:
    values = tuple(attributes.get("pads", [0] * 2 * len(kernel)))
    if len(values) != 2 * len(kernel) or min(values, default=0) < 0:
        raise UnsupportedError(f"pads {list(values)} do not fit {len(kernel)} axes")
    return values


def check_axes(kernel: Sequence[int], sizes: Sequence[int]) -> None:
    """Raise UnsupportedError where a table of taps would be too large, or has no taps."""
    for taps, size in zip(kernel, sizes, strict=True):
        if taps < 1 or size < 1 or taps * size > LONGEST_AXIS:
            raise UnsupportedError(f"a kernel of {taps} on {size} elements cannot be counted")
