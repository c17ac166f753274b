"""How many outputs one event at each input position really reaches.

Per axis, an event at position i meets kernel tap j at the output (i + p - d*j) / s, where that is a whole number and
the output exists: n(i) = #{j in 0..k-1 : s divides (i + p - d*j), 0 <= (i + p - d*j) / s < outputs}. A convolution's
fan-out is n_y * n_x * C_out / g. Taps into the zero padding do not exist. A brute-force tap walk certifies these maps
(tests/test_fanout.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def axis_taps(
    inputs: int, outputs: int, kernel: int, *, stride: int, padding: int, dilation: int
) -> npt.NDArray[np.bool_]:
    """Which kernel taps of one axis join which inputs to an output that exists.

    Args:
        inputs, outputs, kernel: sizes along this axis, at least 1.
        stride, dilation: at least 1.
        padding: zeros before the first input, at least 0; what lies behind the last input follows from `outputs`.

    Returns:
        (inputs, kernel): whether tap j of the kernel has an output for input i.
    """
    position = np.arange(inputs)[:, None] + padding - dilation * np.arange(kernel)[None, :]
    return np.asarray((position % stride == 0) & (position >= 0) & (position // stride < outputs))


def kernel_targets(weight: npt.NDArray[np.generic], groups: int, *, nz: bool = False) -> Int64:
    """Output channels behind each tap of each input channel.

    Args:
        weight: (C_out, C_in / groups, *kernel), any number of kernel axes.
        groups: channel groups; divides C_out.
        nz: leave out stored weights that are 0.

    Returns:
        (C_in, *kernel): C_out / groups everywhere, fewer where `nz` finds zeros.
    """
    present = weight != 0 if nz else np.ones(weight.shape, dtype=np.bool_)
    by_group = present.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return np.asarray(
        by_group.sum(axis=1, dtype=np.int64).reshape(groups * weight.shape[1], *weight.shape[2:])
    )


def kernel_fanout(
    weight: npt.NDArray[np.generic],
    input_size: Sequence[int],
    output_size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    nz: bool = False,
) -> Int64:
    """Fan-out map of a convolution over any number of axes.

    Args:
        weight: (C_out, C_in / groups, *kernel).
        input_size, output_size: spatial sizes, without channels.
        stride, padding, dilation: per axis; padding is what stands before the first input.
        groups: channel groups.
        nz: leave out stored weights that are 0.

    Returns:
        (C_in, *input_size) int64: outputs that one event at this input reaches.
    """
    reach = kernel_targets(weight, groups, nz=nz)
    for axis, kernel in enumerate(weight.shape[2:]):
        taps = axis_taps(
            input_size[axis],
            output_size[axis],
            kernel,
            stride=stride[axis],
            padding=padding[axis],
            dilation=dilation[axis],
        )
        # Each turn sums one kernel axis away and puts the input axis it stands for last.
        reach = np.tensordot(reach, taps.astype(np.int64), axes=(1, 1))
    return reach
