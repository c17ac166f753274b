"""What a chip, and netx on the way to it, take. One rule, one function, one line of text; all in one list.

What only a file can get wrong is in `knarr.deploy.file_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from knarr.deploy.errors import DeployError
from knarr.deploy.netx_read import examine
from knarr.deploy.netx_weights import netx_dense_weights, netx_runs_exactly
from knarr.deploy.parts import Network, parts_of
from knarr.deploy.rules_bounds import ACCUMULATOR, states_fit_registers, sums_fit_accumulator
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
from knarr.hw_sim.layers import IntArray, Layer

__all__ = [
    "ACCUMULATOR",
    "BIAS_MAX",
    "RULES",
    "VTH_MAX",
    "Violation",
    "check",
    "netx_dense_weights",
    "netx_runs_exactly",
]

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
            why = "nothing passes a convolution" if isinstance(layer, Conv) else "netx fails to load it"
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
