"""Bounds on sums and states that hold whatever the input is. Where one fails, an input may still never get there: warnings.

What a chip, and netx on the way to it, take. One rule, one function, one line of text; all in one list.

What only a file can get wrong is in `knarr.deploy.file_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.netx.draft import Network, parts_of
from knarr.deploy.netx.read import examine
from knarr.deploy.netx.weights import netx_runs_exactly
from knarr.deploy.violation import (
    BIAS_MAX,
    I_DECAY_MAX,
    I_DECAY_MIN,
    V_DECAY_MAX,
    V_DECAY_MIN,
    VTH_MAX,
    Violation,
    bias_violation,
    decay_violation,
    fatal,
    threshold_violation,
)
from knarr.hw_sim import ChipNetwork, Conv, Dense, Neuron, Recurrent
from knarr.hw_sim.arrays import IntArray
from knarr.hw_sim.network import DECAY_UNITY, Layer

ACCUMULATOR = 2**15
"""Loihi's dendritic accumulator: 21 bits and sign after the shift by 6 (nengo-loihi e564f66, builder/discretize.py)."""
STATE = 2**23
"""u wraps at it, v saturates below it (tests/hw_sim/test_arithmetic.py)."""
WEIGHT_UNIT = 64

Rows = npt.NDArray[np.int64]


def worst_sums(network: Network) -> Iterator[tuple[Layer, Rows, Rows]]:
    """Each layer with the largest and (without its sign) the smallest sum of each row, all inputs at their largest."""
    payload = 2**network.input.bits - 1
    for layer in network.layers:
        rows = layer.weight_int.reshape(len(layer.weight_int), -1).astype(np.int64)
        up, down = payload * np.maximum(rows, 0).sum(1), payload * np.maximum(-rows, 0).sum(1)
        if isinstance(layer, Recurrent):
            back = layer.recurrent_int.astype(np.int64)
            up, down = up + np.maximum(back, 0).sum(1), down + np.maximum(-back, 0).sum(1)
        yield layer, up, down
        payload = 1


def sums_fit_accumulator(network: Network) -> Iterator[Violation]:
    for layer, up, down in worst_sums(network):
        worst = max(int(up.max()), int(down.max()))
        if worst >= ACCUMULATOR:
            yield Violation(
                "sums_fit_accumulator",
                layer.name,
                f"if every input fired at once the sum would reach {worst}, the accumulator ends at {ACCUMULATOR - 1}; "
                "compare with the largest sum the simulator meets on real inputs",
                "warning",
            )


def states_fit_registers(network: Network) -> Iterator[Violation]:
    """u(t) = u(t-1) (1 - d) + a cannot pass a / d, and v the same of what flows into it; truncation only helps."""
    for layer, up, down in worst_sums(network):
        neuron = layer.neuron
        bias = 0 if layer.bias_int is None else WEIGHT_UNIT * layer.bias_int.astype(np.int64)
        highest_u, lowest_u = (_reached(WEIGHT_UNIT * side, neuron.i_decay) for side in (up, down))
        u = float(max(highest_u.max(), lowest_u.max()))
        if u >= STATE:
            worst = max(int(up.max()), int(down.max()))
            yield _warning(
                layer,
                f"|u| could reach {_number(u)} (sum {worst} * {WEIGHT_UNIT} * {DECAY_UNITY} / i_decay {neuron.i_decay}), "
                f"it wraps at {STATE}",
            )
        falls = _reached(lowest_u + np.maximum(-bias, 0), neuron.v_decay)
        rises = _reached(highest_u + np.maximum(bias, 0), neuron.v_decay)
        # A spiking neuron fires and starts anew before it could saturate upwards.
        v = float(falls.max() if neuron.spikes else max(falls.max(), rises.max()))
        if v > STATE - 1:
            yield _warning(
                layer,
                f"|v| could reach {_number(v)} ({_number(u)} and bias, * {DECAY_UNITY} / v_decay {neuron.v_decay}), "
                f"it saturates at {STATE - 1}",
            )


def _reached(inflow: npt.NDArray[np.number], decay: int) -> npt.NDArray[np.float64]:  # type: ignore[type-arg]
    limit = np.where(inflow > 0, np.inf, 0.0) if decay == 0 else inflow * (DECAY_UNITY / decay)
    return np.asarray(limit, dtype=np.float64)


def _number(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "any size"


def _warning(layer: Layer, message: str) -> Violation:
    cure = "compare with the largest the simulator records on real inputs, or lower with a smaller scale"
    return Violation("states_fit_registers", layer.name, f"{message}; {cure}", "warning")


WEIGHT_MIN, WEIGHT_MAX = -128, 127


def check(network_or_path: ChipNetwork | Path, chip: str = "loihi2") -> list[Violation]:
    """Every broken rule of a chip, empty when all hold.

    Args:
        network_or_path: a network, or any `.net` file: first the rules of the file, then those of the network in it. In a
            file with errors the network rules look at the layers that can be built, and only errors of theirs are given.
        chip: which chip.

    Raises:
        DeployError: unknown chip, or a file that cannot be read at all: missing, not HDF5, damaged, or too large.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    if isinstance(network_or_path, ChipNetwork):
        return [violation for rule in RULES for violation in rule(network_or_path)]
    examined = examine(Path(network_or_path))
    found = list(examined.violations)
    if examined.network is not None:
        return found + check(examined.network, chip)
    parts = parts_of(examined.draft)
    later = [] if parts is None else [violation for rule in RULES for violation in rule(parts)]
    return found + fatal(later)


def _weights(layer: Layer) -> IntArray:
    """All weights of a layer as one matrix: netx scales those of a recurrent layer together."""
    if isinstance(layer, Recurrent):
        return np.hstack((layer.weight_int, layer.recurrent_int))
    return layer.weight_int


def weights_fit_8_bits(network: Network) -> Iterator[Violation]:
    for layer in network.layers:
        weight = _weights(layer)
        low, high = int(weight.min()), int(weight.max())
        # Even weights lose nothing in the step of 2 that a signed 8-bit weight with exponent 1 has.
        even = not np.any(weight & 1) and low >= -256 and high <= 254
        if not even and (low < WEIGHT_MIN or high > WEIGHT_MAX):
            yield Violation(
                "weights_fit_8_bits",
                layer.name,
                f"weights {low}..{high}, allowed {WEIGHT_MIN}..{WEIGHT_MAX} or even ones in -256..254; lower with fewer bits",
            )


def weights_survive_netx(network: Network) -> Iterator[Violation]:
    for layer in network.layers:
        if not np.any(_weights(layer)):
            why = (
                "nothing passes a convolution"
                if isinstance(layer, Conv)
                else "netx fails to load it"
            )
            yield Violation(
                "weights_survive_netx", layer.name, f"all weights are 0, so {why}; remove the layer"
            )
        elif not isinstance(layer, Conv) and not _survives(layer):
            yield Violation(
                "weights_survive_netx",
                layer.name,
                "netx would clip or truncate its weights and run others; give the matrix both signs",
            )


def _survives(layer: Dense | Recurrent) -> bool:
    if isinstance(layer, Dense):
        return netx_runs_exactly(layer.weight_int)
    inputs = layer.weight_int.shape[1]
    return netx_runs_exactly(_weights(layer), parts=(slice(None, inputs), slice(inputs, None)))


def _neurons(network: Network) -> Iterator[tuple[str, Neuron]]:
    if network.input.neuron is not None:
        yield "input", network.input.neuron
    for layer in network.layers:
        yield layer.name, layer.neuron


def decays_fit_registers(network: Network) -> Iterator[Violation]:
    for name, neuron in _neurons(network):
        if not I_DECAY_MIN <= neuron.i_decay <= I_DECAY_MAX:
            yield decay_violation(name, "i_decay", neuron.i_decay)
        if not V_DECAY_MIN <= neuron.v_decay <= V_DECAY_MAX:
            yield decay_violation(name, "v_decay", neuron.v_decay)


def thresholds_fit_registers(network: Network) -> Iterator[Violation]:
    readout = network.layers[-1].neuron if network.readout.kind == "voltage" else None
    for name, neuron in _neurons(network):
        if neuron is not readout and not 0 <= neuron.vth_int <= VTH_MAX:
            yield threshold_violation(name, neuron.vth_int)


def biases_fit_registers(network: Network) -> Iterator[Violation]:
    for layer in network.layers:
        if layer.bias_int is not None:
            low, high = int(layer.bias_int.min()), int(layer.bias_int.max())
            if low < -BIAS_MAX or high > BIAS_MAX:
                yield bias_violation(layer.name, low, high)


def nothing_outlives_a_sample(network: Network) -> Iterator[Violation]:
    for layer in network.layers:
        if isinstance(layer, Dense) and layer.delay_int is not None and layer.delay_int.any():
            yield Violation(
                "nothing_outlives_a_sample",
                layer.name,
                f"delays up to {int(layer.delay_int.max())} steps: a reset clears neurons, not spikes under way, so leave as many "
                "silent steps between samples (run_on_lava gives every sample a network of its own)",
                "warning",
            )


RULES: list[Callable[[Network], Iterator[Violation]]] = [
    weights_fit_8_bits,
    weights_survive_netx,
    decays_fit_registers,
    thresholds_fit_registers,
    biases_fit_registers,
    sums_fit_accumulator,
    states_fit_registers,
    nothing_outlives_a_sample,
]
