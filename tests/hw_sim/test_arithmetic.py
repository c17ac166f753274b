"""The chip's integer arithmetic: literal numbers at every boundary, and plain Python ints everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from knarr.hw_sim.arithmetic import STATE_MAX, decay, step, wrap_current, wrap_synapse
from knarr.hw_sim.network import NON_SPIKING_VTH, Neuron

M = 8_388_608  # 2**23, written out: the tests do not ask the code for its own constant
NO_MEMORY = 4096
SILENT = Neuron(i_decay=NO_MEMORY, v_decay=NO_MEMORY, vth_int=NON_SPIKING_VTH)


def of(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def one_step(
    u: int, v: int, a: int, bias: int = 0, neuron: Neuron = SILENT
) -> tuple[int, int, bool]:
    new_u, new_v, spike = step(of(u), of(v), of(a), bias, neuron)
    assert new_u.dtype == new_v.dtype == np.int64
    assert spike.dtype == np.bool_
    return int(new_u[0]), int(new_v[0]), bool(spike[0])


def plain_decay(x: int, register: int) -> int:
    kept = abs(x) * (4096 - register) // 4096
    return -kept if x < 0 else kept


def plain_step(u: int, v: int, a: int, bias: int, neuron: Neuron) -> tuple[int, int, bool]:
    """LAVA.md section 1, line by line, on Python ints."""
    u = plain_decay(u, neuron.i_decay) + a * 64
    if u > M:
        u -= 2 * M
    elif u <= -M:
        u += 2 * M
    v = max(-(M - 1), min(M - 1, plain_decay(v, neuron.v_decay) + u + bias * 64))
    spike = v > neuron.vth_int * 64
    return u, 0 if spike else v, spike


def test_state_is_23_bits_and_sign() -> None:
    assert STATE_MAX == M


@pytest.mark.parametrize(
    ("value", "register", "expected"),
    [
        (7, 0, 7),  # register 0 forgets nothing
        (-7, 0, -7),
        (M, 0, M),
        (-M, 0, -M),
        (1, 1, 0),  # 4095 / 4096 rounds to zero, from above
        (-1, 1, 0),  # and from below, where an arithmetic shift would give -1
        (4096, 1, 4095),
        (-4096, 1, -4095),
        (4097, 1, 4095),  # 4095.9998
        (-4097, 1, -4095),
        (8192, 1, 8190),
        (M, 1, 8_386_560),
        (-M, 1, -8_386_560),
        (3, 2048, 1),  # 1.5: half goes toward zero
        (-3, 2048, -1),
        (5, 1024, 3),  # 3.75: nearest would give 4
        (-5, 1024, -3),
        (4095, 4095, 0),  # register 4095 keeps one part in 4096
        (-4095, 4095, 0),
        (4096, 4095, 1),
        (-4096, 4095, -1),
        (8191, 4095, 1),
        (-8191, 4095, -1),
        (M, 4095, 2048),
        (M, 4096, 0),  # register 4096 forgets everything
        (-M, 4096, 0),
        (0, 100, 0),
    ],
)
def test_decay_rounds_toward_zero(value: int, register: int, expected: int) -> None:
    assert decay(of(value), register).tolist() == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (M - 1, M - 1),
        (M, M),  # +2**23 survives; two's complement would turn it over
        (M + 1, -M + 1),
        (2 * M, 0),
        (3 * M, M),
        (3 * M + 64, M + 64),  # one wrap only: what is left beyond stays beyond
        (-M + 1, -M + 1),
        (-M, M),  # -2**23 does not exist
        (-M - 1, M - 1),
        (-2 * M, 0),
        (-3 * M, -M),
    ],
)
def test_current_wraps_once(value: int, expected: int) -> None:
    assert wrap_current(of(value)).tolist() == [expected]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (M - 1, M - 1),
        (M, -M),  # two's complement here, other than in u
        (M + 1, -M + 1),
        (-M, -M),
        (-M - 1, M - 1),
        (2 * M, 0),
        (-2 * M, 0),
        (5 * M + 3, -M + 3),
        (2**31 - 1, -1),
        (-(2**31), 0),
    ],
)
def test_synapse_wraps_to_24_bits(value: int, expected: int) -> None:
    assert wrap_synapse(of(value)).tolist() == [expected]


@pytest.mark.parametrize(
    ("a", "u", "v"),
    [
        (131_071, M - 64, M - 64),
        (131_072, M, M - 1),  # u = +2**23 survives, v clips one below it
        (131_073, -M + 64, -M + 64),  # 2**23 + 64 wraps
        (-131_071, -M + 64, -M + 64),
        (-131_072, M, M - 1),  # -2**23 wraps to +2**23
        (-131_073, M - 64, M - 64),
    ],
)
def test_current_wraps_inside_a_step(a: int, u: int, v: int) -> None:
    assert one_step(0, 0, a) == (u, v, False)


@pytest.mark.parametrize(
    ("u", "a", "new_u"), [(M - 63, 1, -M + 1), (M - 64, 1, M), (-M + 64, -1, M)]
)
def test_a_remembered_current_wraps_too(u: int, a: int, new_u: int) -> None:
    keeps = Neuron(i_decay=0, v_decay=NO_MEMORY, vth_int=NON_SPIKING_VTH)
    assert one_step(u, 0, a, neuron=keeps)[0] == new_u


def test_the_wrap_comes_after_decay() -> None:
    halves = Neuron(i_decay=2048, v_decay=NO_MEMORY, vth_int=NON_SPIKING_VTH)
    assert one_step(M, 0, 65_536, neuron=halves)[0] == M
    assert one_step(M, 0, 65_537, neuron=halves)[0] == -M + 64


@pytest.mark.parametrize(
    ("v", "a", "expected"),
    [
        (M - 65, 1, M - 1),
        (M - 66, 1, M - 2),
        (M - 1, 1, M - 1),  # saturates where u would wrap
        (-(M - 65), -1, -(M - 1)),
        (-(M - 66), -1, -(M - 2)),
        (-(M - 1), -1, -(M - 1)),
        (M - 1, 131_072, M - 1),
        (-(M - 1), -131_071, -(M - 1)),
    ],
)
def test_voltage_clips(v: int, a: int, expected: int) -> None:
    no_leak = Neuron(i_decay=NO_MEMORY, v_decay=0, vth_int=NON_SPIKING_VTH)
    assert one_step(0, v, a, neuron=no_leak)[1:] == (expected, False)


@pytest.mark.parametrize(
    ("v", "new_v", "spikes"),
    [(639, 639, False), (640, 640, False), (641, 0, True), (-641, -641, False)],
)
def test_threshold_is_strict_and_worth_64(v: int, new_v: int, spikes: bool) -> None:
    assert one_step(0, v, 0, neuron=Neuron(i_decay=0, v_decay=0, vth_int=10)) == (0, new_v, spikes)


def test_threshold_zero_needs_a_positive_voltage() -> None:
    neuron = Neuron(i_decay=NO_MEMORY, v_decay=0, vth_int=0)
    assert one_step(0, 0, 0, neuron=neuron) == (0, 0, False)
    assert one_step(0, 1, 0, neuron=neuron) == (0, 0, True)


def test_a_spike_resets_voltage_and_leaves_current() -> None:
    neuron = Neuron(i_decay=1024, v_decay=512, vth_int=10)
    assert one_step(1000, 0, 1, neuron=neuron) == (750 + 64, 0, True)


def test_the_readout_threshold_lies_above_the_clip() -> None:
    top = Neuron(i_decay=0, v_decay=0, vth_int=NON_SPIKING_VTH)
    assert one_step(M, M - 1, 0, bias=4095, neuron=top) == (M, M - 1, False)
    highest_that_fires = Neuron(i_decay=0, v_decay=0, vth_int=2**17 - 1)
    assert one_step(0, M - 1, 0, neuron=highest_that_fires) == (0, 0, True)
    assert one_step(0, M - 64, 0, neuron=highest_that_fires) == (0, M - 64, False)


@pytest.mark.parametrize("bias", [1, -1, 4095, -4095])
def test_bias_is_worth_64_and_goes_to_voltage_only(bias: int) -> None:
    assert one_step(0, 0, 0, bias) == (0, 64 * bias, False)


def test_a_bias_per_neuron_broadcasts_over_positions() -> None:
    zeros = np.zeros((2, 3), dtype=np.int64)
    _, v, _ = step(zeros, zeros, zeros, of(1, -2).reshape(2, 1), SILENT)
    assert v.tolist() == [[64] * 3, [-128] * 3]


def test_step_leaves_its_arguments_alone() -> None:
    u, v, a = of(100), of(10_000), of(5)
    step(u, v, a, 3, Neuron(i_decay=7, v_decay=9, vth_int=1))
    assert (u.tolist(), v.tolist(), a.tolist()) == ([100], [10_000], [5])


@given(st.integers(-M, M), st.integers(0, 4096))
@example(-1, 1)
@example(M, 4095)
def test_decay_equals_plain_integers(value: int, register: int) -> None:
    assert int(decay(of(value), register)[0]) == plain_decay(value, register)


@given(st.integers(-(2**40), 2**40))
@example(M)
@example(-M - 1)
def test_synapse_wrap_is_congruent_and_in_range(value: int) -> None:
    wrapped = int(wrap_synapse(of(value))[0])
    assert -M <= wrapped < M
    assert (wrapped - value) % (2 * M) == 0


neurons = st.builds(
    Neuron,
    i_decay=st.sampled_from([0, 1, 4, 4095, 4096]) | st.integers(0, 4096),
    v_decay=st.sampled_from([0, 1, 4, 4095, 4096]) | st.integers(0, 4096),
    vth_int=st.sampled_from([0, 2**17 - 1, NON_SPIKING_VTH]) | st.integers(0, NON_SPIKING_VTH),
)
cells = st.tuples(
    st.integers(-M, M) | st.sampled_from([M, -M, M - 64, 64 - M]),
    st.integers(-(M - 1), M - 1) | st.sampled_from([M - 1, 1 - M]),
    st.integers(-(2**18), 2**18) | st.sampled_from([2**17, -(2**17), 1, -1]),
    st.integers(-4095, 4095),
)


@given(neurons, st.lists(cells, min_size=1, max_size=8))
def test_step_equals_plain_integers(
    neuron: Neuron, states: list[tuple[int, int, int, int]]
) -> None:
    u, v, a, bias = (np.array(column, dtype=np.int64) for column in zip(*states, strict=True))
    new_u, new_v, spike = step(u, v, a, bias, neuron)
    expected = [plain_step(*state, neuron) for state in states]
    assert list(zip(new_u.tolist(), new_v.tolist(), spike.tolist(), strict=True)) == expected
