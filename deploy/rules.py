"""What a chip, and netx on the way to it, take. One rule, one function, one line of text; all in one list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.hw_sim import ChipNetwork, Conv, Dense, Neuron, Recurrent
from knarr.hw_sim.layers import IntArray, Layer

WEIGHT_MIN, WEIGHT_MAX = -128, 127
VTH_MAX = 2**17 - 1
BIAS_MAX = 4095
ACCUMULATOR = 2**15
"""Loihi's dendritic accumulator: 21 bits and sign after the shift by 6 (nengo-loihi e564f66, builder/discretize.py)."""


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold. An error is certain to differ on the chip; a warning may, depending on the input."""

    rule: str
    layer: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: layer '{self.layer}': {self.message} [{self.rule}]"


def check(network: ChipNetwork, chip: str = "loihi2") -> list[Violation]:
    """Every broken rule of a chip, empty when all hold.

    Raises:
        DeployError: unknown chip.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    return [violation for rule in RULES for violation in rule(network)]


def _weights(layer: Layer) -> IntArray:
    """All weights of a layer as one matrix: netx scales those of a recurrent layer together."""
    if isinstance(layer, Recurrent):
        return np.hstack((layer.weight_int, layer.recurrent_int))
    return layer.weight_int


def weights_fit_8_bits(network: ChipNetwork) -> Iterator[Violation]:
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


def weights_survive_netx(network: ChipNetwork) -> Iterator[Violation]:
    for layer in network.layers:
        if not np.any(_weights(layer)):
            yield Violation(
                "weights_survive_netx",
                layer.name,
                "all weights are 0, which netx fails to load; remove the layer",
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


def _neurons(network: ChipNetwork) -> Iterator[tuple[str, Neuron]]:
    if network.input.neuron is not None:
        yield "input", network.input.neuron
    for layer in network.layers:
        yield layer.name, layer.neuron


def decays_fit_registers(network: ChipNetwork) -> Iterator[Violation]:
    for name, neuron in _neurons(network):
        for field, low, high in (("i_decay", 1, 4096), ("v_decay", 0, 4095)):
            value = getattr(neuron, field)
            if not low <= value <= high:
                yield Violation(
                    "decays_fit_registers",
                    name,
                    f"{field} {value}, hardware has {low}..{high}; choose another time constant",
                )


def thresholds_fit_registers(network: ChipNetwork) -> Iterator[Violation]:
    readout = network.layers[-1].neuron if network.readout.kind == "voltage" else None
    for name, neuron in _neurons(network):
        if neuron is not readout and not 0 <= neuron.vth_int <= VTH_MAX:
            yield Violation(
                "thresholds_fit_registers",
                name,
                f"threshold {neuron.vth_int}, allowed 0..{VTH_MAX}; only the last layer may be a voltage readout",
            )


def biases_fit_registers(network: ChipNetwork) -> Iterator[Violation]:
    for layer in network.layers:
        if layer.bias_int is not None and int(np.abs(layer.bias_int.astype(np.int64)).max()) > BIAS_MAX:
            yield Violation(
                "biases_fit_registers", layer.name, f"bias beyond +-{BIAS_MAX}; lower with a smaller scale"
            )


def sums_fit_accumulator(network: ChipNetwork) -> Iterator[Violation]:
    payload = 2**network.input.bits - 1
    for layer in network.layers:
        rows = layer.weight_int.reshape(len(layer.weight_int), -1).astype(np.int64)
        up, down = payload * np.maximum(rows, 0).sum(1), payload * np.maximum(-rows, 0).sum(1)
        if isinstance(layer, Recurrent):
            back = layer.recurrent_int.astype(np.int64)
            up, down = up + np.maximum(back, 0).sum(1), down + np.maximum(-back, 0).sum(1)
        worst = max(int(up.max()), int(down.max()))
        if worst >= ACCUMULATOR:
            yield Violation(
                "sums_fit_accumulator",
                layer.name,
                f"if every input fired at once the sum would reach {worst}, the accumulator ends at {ACCUMULATOR - 1}; "
                "compare with the largest sum the simulator meets on real inputs",
                "warning",
            )
        payload = 1


def nothing_outlives_a_sample(network: ChipNetwork) -> Iterator[Violation]:
    for layer in network.layers:
        if isinstance(layer, Dense) and layer.delay_int is not None and layer.delay_int.any():
            yield Violation(
                "nothing_outlives_a_sample",
                layer.name,
                f"delays up to {int(layer.delay_int.max())} steps: a reset clears neurons, not spikes under way, so leave as many "
                "silent steps between samples (run_on_lava gives every sample a network of its own)",
                "warning",
            )


RULES: list[Callable[[ChipNetwork], Iterator[Violation]]] = [
    weights_fit_8_bits,
    weights_survive_netx,
    decays_fit_registers,
    thresholds_fit_registers,
    biases_fit_registers,
    sums_fit_accumulator,
    nothing_outlives_a_sample,
]


def netx_dense_weights(weight_int: IntArray) -> npt.NDArray[np.int64] | None:
    """The weight a single event meets in a netx Dense layer; None when netx cannot load the matrix.

    Several events at once meet the same weights only if `netx_runs_exactly`: Lava shifts the sum, not each weight.
    """
    replayed = _replay_netx(weight_int)
    if replayed is None:
        return None
    weight, shift = replayed
    exponent = -shift
    return np.left_shift(weight, exponent) if exponent > 0 else np.right_shift(weight, -exponent)


def netx_runs_exactly(weight_int: IntArray, parts: tuple[slice, ...] = (slice(None),)) -> bool:
    """Whether a netx Dense layer sums exactly these weights, whatever events arrive together.

    Args:
        weight_int: (out, in) integers.
        parts: columns that become matrices of their own at run time; of a recurrent layer what arrives and what comes back.
    """
    replayed = _replay_netx(weight_int, parts)
    if replayed is None:
        return False
    weight, shift = replayed
    return bool(shift >= 0 and np.array_equal(weight, np.asarray(weight_int, dtype=np.int64) << shift))


def _replay_netx(
    weight_int: IntArray, parts: tuple[slice, ...] = (slice(None),)
) -> tuple[npt.NDArray[np.int64], int] | None:
    """Weights as Lava's Dense holds them, and how far they were shifted up before; None when loading fails.

    Replays lava-dl 0.6.0 `netx.utils.optimize_weight_bits` and lava-nc 0.10.0 `Dense` (clip, then truncate to the bit
    grid), including that the sign mode is decided twice, by different rules, and that numpy shifts by a negative count to
    zero. Measured against Lava in tests/test_lava.py.
    """
    weight = np.asarray(weight_int, dtype=np.int64)
    if not weight.any():
        return None
    high, low = int(weight.max()), int(weight.min())
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
    weight = np.left_shift(weight, shift)
    held = [_as_lava_holds(weight[:, part], bits) for part in parts]
    return np.hstack(held), shift


def _as_lava_holds(weight: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    # At run time Lava decides the sign mode again, and counts a matrix of zeros and negatives as inhibitory.
    excitatory = bool(weight.min() >= 0)
    inhibitory = not excitatory and bool(weight.max() <= 0)
    mixed_now = not (inhibitory or excitatory)
    sign = -1 if inhibitory else 1
    weight = np.clip(sign * weight, -256 if mixed_now else 0, 255)
    lost = 8 - bits + mixed_now
    return sign * np.left_shift(np.right_shift(weight, lost), lost)
