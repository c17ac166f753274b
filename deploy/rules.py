"""Rules of the chip, and of netx on the way to it: what a network keeps to wherever it comes from.

To add a rule, write one function with the rule's name that takes a `Network` and yields a
`Violation` for every layer that breaks it, and append the function to `RULES`. Give the violation
the severity "warning" when the network may still run as it should. The message names what was
observed, what is allowed, and a cure. What only a file can get wrong is in `netx/file_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from knarr.hw_sim import ChipNetwork, Conv, Dense, InputCoding, Neuron, Readout, Recurrent
from knarr.hw_sim.arithmetic import STATE_MAX, STATE_SHIFT
from knarr.hw_sim.arrays import Float64, Int64, IntArray
from knarr.hw_sim.network import (
    DECAY_UNITY,
    NON_SPIKING_VTH,
    Layer,
    register_range,
)

WEIGHT_MIN, WEIGHT_MAX = -128, 127
"""Signed 8-bit weights."""
DECAY_LIMITS = {"i": (1, DECAY_UNITY), "v": (0, DECAY_UNITY - 1)}
"""4096ths that a step forgets of the current and of the voltage.

Hardware has no current that never decays, and keeps at least one 4096th of the voltage.
"""
VTH_MAX = 2**17 - 1
"""Largest threshold mantissa, in units of 64."""
BIAS_MAX = 4095
"""Largest bias mantissa, in units of 64."""
SPIKE_LIMITS = (0, 1)
"""Least and largest value of a spike."""
ACCUMULATOR = 2**15
"""Loihi's dendritic accumulator ends below it: 21 bits and sign after the shift by 6.

Source: nengo-loihi e564f66, builder/discretize.py.
"""


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold.

    Args:
        rule: name of the rule.
        layer: name of the layer that breaks it, or "file".
        message: what was observed, what is allowed, and a cure, in one line.
        severity: an error is certain to differ on the chip; a warning may, depending on the input.
    """

    rule: str
    layer: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: layer '{self.layer}': {self.message} [{self.rule}]"


@dataclass(frozen=True)
class PartialNetwork:
    """The parts of a faulty file that could be built; they need not fit each other.

    Args:
        layers: the layers that could be built.
        neurons: (name of its layer, neuron) of every layer that has one, built or not.
        biases: (name of its layer, mantissas) of every layer that has some, built or not.
        input: neurons of the input, if it has any; its shape is a dummy that no rule may use.
        readout: how the last layer is read.
    """

    layers: tuple[Layer, ...]
    neurons: tuple[tuple[str, Neuron], ...]
    biases: tuple[tuple[str, IntArray], ...]
    input: InputCoding
    readout: Readout


Network = ChipNetwork | PartialNetwork
"""A network that a rule can look at."""


HARDWARE_RULES = frozenset({"decays_fit_registers", "thresholds_fit_registers"})
"""Rules that the registers of a chip set, and that Lava's arithmetic and ours do without."""


def fatal(violations: Iterable[Violation]) -> list[Violation]:
    """Return the errors among violations: no chip forgives them."""
    return [violation for violation in violations if violation.severity == "error"]


def check_network(network: Network) -> list[Violation]:
    """Apply every rule to a network.

    Returns:
        Every broken rule, in the order of `RULES`; empty when all hold.
    """
    return [violation for rule in RULES for violation in rule(network)]


# --- rules on weights


def weights_fit_8_bits(network: Network) -> Iterator[Violation]:
    """Demand weights that a signed byte holds, or even ones that a byte with exponent 1 holds."""
    for layer in network.layers:
        weight = _weights(layer)
        low, high = int(weight.min()), int(weight.max())
        # Even weights lose nothing in the step of 2 that a signed 8-bit weight with exponent 1 has.
        even = not np.any(weight & 1) and low >= 2 * WEIGHT_MIN and high <= 2 * WEIGHT_MAX
        if not even and (low < WEIGHT_MIN or high > WEIGHT_MAX):
            yield Violation(
                "weights_fit_8_bits",
                layer.name,
                f"weights {low}..{high}, allowed {WEIGHT_MIN}..{WEIGHT_MAX} or even ones in "
                "-256..254; lower with fewer bits",
            )


def weights_survive_netx(network: Network) -> Iterator[Violation]:
    """Demand a matrix that netx loads and runs as it is written."""
    for layer in network.layers:
        weight = _weights(layer)
        if not np.any(weight):
            why = "netx fails to load it"
            if isinstance(layer, Conv):
                why = "nothing passes a convolution"
            message = f"all weights are 0, so {why}; remove the layer"
        elif isinstance(layer, Conv):
            continue  # netx hands a kernel over as it is; only matrices are shifted and clipped
        elif netx_runs_exactly(weight, inputs=layer.weight_int.shape[1]):
            continue
        else:
            message = (
                "netx would clip or truncate its weights and run others; give the matrix both signs"
            )
        yield Violation("weights_survive_netx", layer.name, message)


def _weights(layer: Layer) -> IntArray:
    """Return all weights of a layer as one matrix: netx scales those of a loop together."""
    if isinstance(layer, Recurrent):
        return np.hstack((layer.weight_int, layer.recurrent_int))
    return layer.weight_int


def netx_runs_exactly(weight_int: IntArray, inputs: int | None = None) -> bool:
    """Tell whether a netx Dense layer sums exactly these weights, whatever events arrive together.

    Args:
        weight_int: (out, in) integers.
        inputs: how many columns weigh what arrives; the others, of a recurrent layer, weigh its own
            spikes. None: all.
    """
    replayed = replay_netx(weight_int, inputs)
    if replayed is None:
        return False
    weight, shift = replayed
    # Lava shifts the whole sum back down, so a shift up is harmless; one down would have lost bits.
    return shift >= 0 and np.array_equal(weight, weight_int.astype(np.int64) << shift)


def replay_netx(weight_int: IntArray, inputs: int | None = None) -> tuple[Int64, int] | None:
    """Replay what netx and Lava make of a dense weight matrix between the file and the first sum.

    Source: lava-dl 0.6.0 `netx.utils.optimize_weight_bits` and lava-nc 0.10.0 `Dense` (clip, then
    truncate to the bit grid). Measured against Lava in tests/deploy/test_lava.py.

    Args:
        weight_int, inputs: as in `netx_runs_exactly`.

    Returns:
        (out, in) weights as Lava's Dense holds them, and by how many bits they were shifted up (a
        negative number: down) before; None when netx fails to load the matrix.
    """
    weight = np.asarray(weight_int, dtype=np.int64)
    if not weight.any():
        return None
    high, low = int(weight.max()), int(weight.min())
    # One sign alone is not clipped here: it gets all 8 bits, and what they cannot hold is shifted.
    if (high > 254 and low < 0) or (low < -256 and high > 0):
        weight = np.clip(weight, -256, 254)
        high, low = int(weight.max()), int(weight.min())
    mixed = not (high < 0 or low >= 0)
    if mixed:
        room = min(127 / high if high else np.inf, -128 / low)
    else:
        room = 255 / high if low >= 0 else -256 / low
    shift = int(np.floor(np.log2(room))) + mixed
    precision = 8
    while precision > 0 and np.any(weight % 2**precision):
        precision -= 1
    bits = 8 - shift - (precision - mixed)
    # A negative count shifts to 0 in numpy, and so it does in netx.
    weight = np.left_shift(weight, shift)
    # At run time the matrices of a recurrent layer are two again.
    matrices = np.split(weight, [] if inputs is None else [inputs], axis=1)
    held = [_as_lava_holds(matrix, bits) for matrix in matrices if matrix.size]
    return np.hstack(held), shift


def _as_lava_holds(weight: Int64, bits: int) -> Int64:
    # netx decided the sign mode of both matrices together. Lava decides it again for each of them,
    # by another rule: a matrix of zeros and negative numbers counts as inhibitory.
    excitatory = bool(weight.min() >= 0)
    inhibitory = not excitatory and bool(weight.max() <= 0)
    mixed = not (inhibitory or excitatory)
    sign = -1 if inhibitory else 1
    weight = np.clip(sign * weight, -256 if mixed else 0, 255)
    lost = 8 - bits + mixed
    return sign * np.left_shift(np.right_shift(weight, lost), lost)


# --- rules on registers


def decays_fit_registers(network: Network) -> Iterator[Violation]:
    """Demand decays that hardware has."""
    for name, neuron in _neurons(network):
        for register in ("i_decay", "v_decay"):
            low, high = DECAY_LIMITS[register[0]]
            # The first of the two that is wrong: one of a layer's decays says enough.
            for value in register_range(getattr(neuron, register)):
                if not low <= value <= high:
                    yield Violation("decays_fit_registers", name, decay_message(register, value))
                    break


def decay_message(register: str, value: int) -> str:
    """Say what hardware has of a decay register, whose name begins with i or v."""
    low, high = DECAY_LIMITS[register[0]]
    return f"{register} {value}, hardware has {low}..{high}; choose another time constant"


def thresholds_fit_registers(network: Network) -> Iterator[Violation]:
    """Demand thresholds that hardware has, but for a voltage readout, which needs none."""
    neurons = list(_neurons(network))
    if network.readout.kind == "voltage":
        neurons.pop()
    for name, neuron in neurons:
        highest = register_range(neuron.vth_int)[1]
        if highest > VTH_MAX:
            message = threshold_message(highest)
            yield Violation("thresholds_fit_registers", name, message)


def threshold_message(value: int) -> str:
    """Say what hardware has of thresholds."""
    return f"threshold {value}, allowed 0..{VTH_MAX}; only the last layer may be a voltage readout"


def biases_fit_registers(network: Network) -> Iterator[Violation]:
    """Demand biases that hardware has."""
    if isinstance(network, PartialNetwork):
        biases = network.biases
    else:
        biases = tuple(
            (layer.name, layer.bias_int) for layer in network.layers if layer.bias_int is not None
        )
    for name, bias in biases:
        if bias.min() < -BIAS_MAX or bias.max() > BIAS_MAX:
            yield Violation("biases_fit_registers", name, bias_message(bias))


def bias_message(bias: IntArray) -> str:
    """Say what hardware has of bias mantissas; there is at least one."""
    return (
        f"bias {bias.min()}..{bias.max()}, allowed {-BIAS_MAX}..{BIAS_MAX} (beyond 16 bits Lava "
        "wraps it); lower with a smaller scale"
    )


def _neurons(network: Network) -> Iterator[tuple[str, Neuron]]:
    if network.input.neuron is not None:
        yield "input", network.input.neuron
    if isinstance(network, PartialNetwork):
        yield from network.neurons
    else:
        yield from ((layer.name, layer.neuron) for layer in network.layers)


# --- bounds that hold whatever the input is: warnings, as an input may never reach them


def worst_sums(network: Network) -> Iterator[tuple[Layer, Int64, Int64]]:
    """Yield each layer with the largest and the smallest sum that each row of weights can reach.

    Every input that counts is taken at its largest value; the smallest sums come without their
    sign. Rows are the outputs of a matrix and the output channels of a convolution.
    """
    limits = network.input.limits
    for layer in network.layers:
        up, down = _signed_sums(layer.weight_int, limits)
        if isinstance(layer, Recurrent):
            up_back, down_back = _signed_sums(layer.recurrent_int, SPIKE_LIMITS)
            up, down = up + up_back, down + down_back
        yield layer, up, down
        # Only the first layer receives payloads, the others receive spikes.
        limits = SPIKE_LIMITS


def _signed_sums(weight: IntArray, limits: tuple[int, int]) -> tuple[Int64, Int64]:
    least, most = limits
    rows = weight.reshape(len(weight), -1).astype(np.int64)
    positive = np.maximum(rows, 0).sum(axis=1)
    negative = np.maximum(-rows, 0).sum(axis=1)
    # A negative payload turns the sign of its weight.
    return most * positive - least * negative, most * negative - least * positive


def sums_fit_accumulator(network: Network) -> Iterator[Violation]:
    """Warn of sums that could pass the dendritic accumulator."""
    for layer, up, down in worst_sums(network):
        worst = max(int(up.max()), int(down.max()))
        if worst >= ACCUMULATOR:
            yield Violation(
                "sums_fit_accumulator",
                layer.name,
                f"if every input fired at once the sum would reach {worst}, the accumulator ends "
                f"at {ACCUMULATOR - 1}; compare with the largest sum the simulator meets on real "
                "inputs",
                "warning",
            )


def states_fit_registers(network: Network) -> Iterator[Violation]:
    """Warn of currents that could wrap and voltages that could saturate.

    u(t) = u(t-1) (1 - d) + a cannot pass a / d, and v cannot pass the same of what flows into it;
    truncation toward 0 only makes both smaller.
    """
    for layer, up, down in worst_sums(network):
        for message in _state_faults(layer, up, down):
            yield Violation(
                "states_fit_registers",
                layer.name,
                f"{message}; compare with the largest the simulator records on real inputs, or "
                "lower with a smaller scale",
                "warning",
            )


def _state_faults(layer: Layer, up: Int64, down: Int64) -> Iterator[str]:
    # (channels, pixels): pixels of a channel share its sums, and each may have its own registers.
    # One that all share stays one number: a file may declare more neurons than memory holds.
    i_decay, v_decay, vth_int = (
        np.asarray(register, dtype=np.int64).reshape((len(up), -1) if np.ndim(register) else (1, 1))
        for register in (layer.neuron.i_decay, layer.neuron.v_decay, layer.neuron.vth_int)
    )
    highest_u = _limit(up[:, None] << STATE_SHIFT, i_decay)
    lowest_u = _limit(down[:, None] << STATE_SHIFT, i_decay)
    sizes = np.maximum(highest_u, lowest_u)
    u = float(sizes.max())
    if u >= STATE_MAX:
        channel, pixel = np.unravel_index(sizes.argmax(), sizes.shape)
        worst = max(int(up[channel]), int(down[channel]))
        yield (
            f"|u| could reach {_number(u)} (sum {worst} * {1 << STATE_SHIFT} * {DECAY_UNITY} / "
            f"i_decay {np.broadcast_to(i_decay, sizes.shape)[channel, pixel]}), it wraps at {STATE_MAX}"
        )
    bias = np.zeros((1, 1), dtype=np.int64)
    if layer.bias_int is not None:
        bias = layer.bias_int.astype(np.int64)[:, None] << STATE_SHIFT
    lowest_v = _limit(lowest_u + np.maximum(-bias, 0), v_decay)
    highest_v = _limit(highest_u + np.maximum(bias, 0), v_decay)
    # A spiking neuron fires and starts anew before it could saturate upwards.
    sizes = np.where(vth_int < NON_SPIKING_VTH, lowest_v, np.maximum(lowest_v, highest_v))
    v = float(sizes.max())
    if v > STATE_MAX - 1:
        channel, pixel = np.unravel_index(sizes.argmax(), sizes.shape)
        yield (
            f"|v| could reach {_number(v)} ({_number(u)} and bias, * {DECAY_UNITY} / v_decay "
            f"{np.broadcast_to(v_decay, sizes.shape)[channel, pixel]}), it saturates at {STATE_MAX - 1}"
        )


def _limit(inflow: Int64 | Float64, decay: Int64) -> Float64:
    """Return what a state tends to when the same flows in at every step; both broadcast."""
    # Where nothing is ever forgotten, any inflow adds up without end.
    endless = np.where(inflow > 0, np.inf, 0.0)
    return np.where(decay == 0, endless, inflow * (DECAY_UNITY / np.maximum(decay, 1)))


def _number(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "any size"


def nothing_outlives_a_sample(network: Network) -> Iterator[Violation]:
    """Warn of delays, which carry spikes of one sample into the next."""
    for layer in network.layers:
        if isinstance(layer, Dense) and layer.delay_int is not None and layer.delay_int.any():
            yield Violation(
                "nothing_outlives_a_sample",
                layer.name,
                f"delays up to {int(layer.delay_int.max())} steps: a reset clears neurons, not "
                "spikes under way, so leave as many silent steps between samples (run_on_lava "
                "gives every sample a network of its own)",
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
"""Every rule, in the order in which violations are listed."""
