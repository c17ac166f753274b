"""Fan-out maps against a walk over every tap of every output, in plain Python."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knarr.hw_sim.counting.fan_out import AxisWindow, FanOut, compose_axis, layer_fan_outs
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import Conv, Dense, Neuron

Array = npt.NDArray[Any]
NEURON = Neuron(i_decay=4096, v_decay=0, vth_int=10)


def conv(weight: Array, input_shape: tuple[int, int, int], **geometry: Any) -> Conv:
    return Conv("conv", weight, NEURON, input_shape, **geometry)


def walk_taps(layer: Conv, *, skip_zero_weights: bool) -> Array:
    """Count from the outputs: (o, y, x) reads y * stride + j * dilation - padding through tap j."""
    _, height, width = layer.input_shape
    outputs, in_group, kernel_y, kernel_x = layer.weight_int.shape
    reach = np.zeros(layer.input_shape, dtype=np.int64)
    for o, y, x in product(*map(range, layer.output_shape)):
        first_channel = (o // (outputs // layer.groups)) * in_group
        for c, j_y, j_x in product(range(in_group), range(kernel_y), range(kernel_x)):
            if skip_zero_weights and layer.weight_int[o, c, j_y, j_x] == 0:
                continue
            at_y = y * layer.stride[0] + j_y * layer.dilation[0] - layer.padding[0]
            at_x = x * layer.stride[1] + j_x * layer.dilation[1] - layer.padding[1]
            if 0 <= at_y < height and 0 <= at_x < width:
                reach[first_channel + c, at_y, at_x] += 1
    return reach


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.integers(1, 3))
    in_group, out_group = pair(1, 2)
    weight = draw(st.integers(0, 2**32 - 1).map(np.random.default_rng)).integers(
        -1, 2, (groups * out_group, in_group, *pair(1, 4))
    )
    try:
        return conv(
            weight,
            (groups * in_group, *pair(1, 7)),
            stride=pair(1, 3),
            padding=pair(0, 3),
            dilation=pair(1, 3),
            groups=groups,
        )
    except ChipError:
        assume(False)
        raise


@settings(max_examples=150, deadline=None)
@given(convs())
def test_conv_fanout_is_the_tap_walk(layer: Conv) -> None:
    stored, nonzero = (
        walk_taps(layer, skip_zero_weights=False),
        walk_taps(layer, skip_zero_weights=True),
    )
    for found, walked in (
        (layer_fan_outs(layer)[0].stored, stored),
        (layer_fan_outs(layer)[0].nonzero, nonzero),
    ):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, walked)
    assert layer_fan_outs(layer)[0].dense_valid == stored.sum()
    assert layer_fan_outs(layer)[0].dense_valid <= layer_fan_outs(layer)[0].dense_padded
    assert layer_fan_outs(layer)[0].dense_padded == prod(layer.output_shape) * prod(
        layer.weight_int.shape[1:]
    )


def test_the_textbook_map() -> None:
    layer = conv(np.ones((1, 1, 3, 3), dtype=np.int32), (1, 4, 4), padding=(1, 1))
    np.testing.assert_array_equal(
        layer_fan_outs(layer)[0].stored[0], [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]
    )
    assert (layer_fan_outs(layer)[0].dense_valid, layer_fan_outs(layer)[0].dense_padded) == (
        100,
        144,
    )


def test_fanout_scales_with_the_output_channels_of_a_group() -> None:
    weight = np.ones((6, 1, 3, 3), dtype=np.int32)
    layer = conv(weight, (2, 5, 5), padding=(1, 1), groups=2)
    assert layer_fan_outs(layer)[0].stored[:, 2, 2].tolist() == [27, 27]


def test_stride_leaves_inputs_without_any_output() -> None:
    layer = conv(np.ones((1, 1, 1, 2), dtype=np.int32), (1, 1, 6), stride=(1, 3))
    assert layer_fan_outs(layer)[0].stored[0, 0].tolist() == [1, 1, 0, 1, 1, 0]
    assert layer_fan_outs(layer)[0].dense_valid == layer_fan_outs(layer)[0].dense_padded == 4


def test_zero_weights_are_skipped_per_tap_and_not_by_a_rate() -> None:
    """Only the first tap is stored as non-zero; a global density would spread it over all nine positions."""
    weight = np.zeros((1, 1, 3, 3), dtype=np.int32)
    weight[0, 0, 0, 0] = 5  # reached from every input but the last row and column
    layer = conv(weight, (1, 3, 3), padding=(1, 1))
    assert layer_fan_outs(layer)[0].nonzero[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_dense_fanout() -> None:
    layer = Dense("fc", np.array([[1, 0, 0], [2, -3, 0]], dtype=np.int32), NEURON)
    assert layer_fan_outs(layer)[0].stored.tolist() == [2, 2, 2]
    assert layer_fan_outs(layer)[0].nonzero.tolist() == [2, 1, 0]
    assert (layer_fan_outs(layer)[0].dense_valid, layer_fan_outs(layer)[0].dense_padded) == (6, 6)


def test_axis_taps_end_at_the_last_output() -> None:
    taps = AxisWindow(4, 2, 3).input_taps()
    np.testing.assert_array_equal(taps.sum(axis=1), [1, 2, 2, 1])


def test_one_axis_works_too() -> None:
    fan_out = FanOut(np.ones((2, 1, 3)), (compose_axis(AxisWindow(4, 4, 3, padding=1)),))
    assert fan_out.stored.tolist() == [[4, 6, 6, 4]]


@pytest.mark.parametrize(
    ("weight_shape", "input_shape", "operations"),
    [
        ((32, 68, 3, 3), (68, 128, 128), 310_915_584),
        ((32, 2, 3, 3), (2, 128, 128), 9_144_576),
        ((32, 32, 3, 3), (32, 63, 63), 34_292_736),
        ((32, 32, 3, 3), (32, 30, 30), 7_225_344),
    ],
)
def test_layers_of_spiking_emotions(
    weight_shape: tuple[int, ...], input_shape: tuple[int, int, int], operations: int
) -> None:
    """Table II of CEUR-WS 3331 paper 8; no padding, so both conventions agree."""
    layer = conv(np.ones(weight_shape, dtype=np.int32), input_shape)
    assert (
        layer_fan_outs(layer)[0].dense_valid == layer_fan_outs(layer)[0].dense_padded == operations
    )


def test_dense_layer_of_spiking_emotions() -> None:
    layer = Dense("fc", np.ones((1024, 6272), dtype=np.int32), NEURON)
    assert (
        layer_fan_outs(layer)[0].dense_valid == layer_fan_outs(layer)[0].dense_padded == 6_422_528
    )
