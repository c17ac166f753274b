"""Limits of registers: grids of legal integers, the worst that a layer can do to its states, and a
penalty on what leaves them.

A worst case is a proof: where it lies inside the registers nothing can wrap or saturate, whatever
the input. Most layers with many inputs cannot be proved so, and for them `excess` gives the states
that were met a cost. Exactness needs neither: the forward pass wraps and saturates as the chip
does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from knarr.hw_sim import ChipError, Recurrent
from knarr.hw_sim.arithmetic import STATE_SHIFT
from knarr.hw_sim.network import DECAY_UNITY, Layer, register_range
from knarr.train.chip.quantiser import QuantisationGrid

UNIT = 2**STATE_SHIFT
"""Units of u and v in one of a sum, a bias or a threshold."""
HEADROOM = 15 / 16
"""Share of a register from which on states cost something: a gradient has to turn them back before
they leave.
"""
SIGNED_8 = QuantisationGrid(-128, 127)
EVEN_9 = QuantisationGrid(-256, 254, 2)


@dataclass(frozen=True)
class Limits:
    """Integers that a trained network may hold; by default Loihi 2's as `knarr.deploy.check` has
    them.

    Args:
        weights: grid of a layer's weights.
        even_weights: grid of a layer that comes with weights outside `weights`, all even: the step
            of 2 that 8 signed bits with an exponent of 1 have. None: there is none.
        vth_max: largest threshold; the least is 0.
        bias_max: largest bias, of either sign.
        i_decays, v_decays: least and largest decay registers.
        accumulator: |synaptic sum| stays below it on hardware; simulators know no such limit.
    """

    weights: QuantisationGrid = SIGNED_8
    even_weights: QuantisationGrid | None = EVEN_9
    vth_max: int = 2**17 - 1
    bias_max: int = 4095
    i_decays: tuple[int, int] = (1, DECAY_UNITY)
    v_decays: tuple[int, int] = (0, DECAY_UNITY - 1)
    accumulator: int = 2**15

    @classmethod
    def of_bits(cls, weight_bits: int) -> Limits:
        """Give Loihi 2's with weights of 2..8 signed bits, as `knarr.deploy.lower` makes them.

        Raises:
            ChipError: other numbers of bits.
        """
        # A network file's notes may hold anything, also True, which is an int.
        if type(weight_bits) is not int or not 2 <= weight_bits <= 8:
            raise ChipError(f"weight_bits: {weight_bits!r}, allowed 2..8")
        half = 2 ** (weight_bits - 1)
        # Lowering makes even weights of 9 bits from 8 alone.
        return cls(QuantisationGrid(-half, half - 1), EVEN_9 if weight_bits == 8 else None)

    def grid_of(self, layer: Layer) -> QuantisationGrid:
        """Return the grid that a layer's weights lie on.

        Raises:
            ChipError: weights, bias, threshold or decays that are outside.
        """
        neuron = layer.neuron
        bias = 0 if layer.bias_int is None else int(np.abs(layer.bias_int).max())
        for what, register, (least, most) in (
            ("bias up to", bias, (0, self.bias_max)),
            # A readout's threshold is out of reach on purpose.
            ("threshold", neuron.vth_int if neuron.spikes else 0, (0, self.vth_max)),
            ("i_decay", neuron.i_decay, self.i_decays),
            ("v_decay", neuron.v_decay, self.v_decays),
        ):
            for value in register_range(register):
                if not least <= value <= most:
                    raise ChipError(
                        f"layer '{layer.name}': {what} {value}, allowed {least}..{most}; lower it anew"
                    )
        weights = layer.weight_int.ravel()
        if isinstance(layer, Recurrent):
            # One step serves both, so they lie on one grid.
            weights = np.concatenate([weights, layer.recurrent_int.ravel()])
        for grid in (self.weights, self.even_weights):
            if grid is not None and grid.holds(weights):
                return grid
        raise ChipError(
            f"layer '{layer.name}': weights {weights.min()}..{weights.max()}, the grid is {self.weights}; "
            "give the bits that it was lowered with"
        )


def series(inflow: float, decay: int) -> float:
    """Return the bound of a state that gains `inflow` every step and loses decay / 4096 of itself.

    It is the sum of a geometric series; rounding toward zero only makes the state smaller.
    """
    if decay == 0:
        return float("inf") if inflow > 0 else 0.0
    return inflow * (DECAY_UNITY / decay)


def excess(values: Tensor, register: float) -> Tensor:
    """Return how far |values| pass HEADROOM of a register, in registers, summed over neurons, a
    mean over samples and steps.

    Args:
        values: (samples, timesteps, *features).
        register: the limit, in units of the values.

    Returns:
        0-d; without a gradient where nothing passes.
    """
    limit = HEADROOM * register
    # Most batches stay inside: finding that out costs less than a backward pass of zeros.
    low, high = torch.aminmax(values.detach())
    if max(-float(low), float(high)) <= limit:
        return values.new_zeros(())
    over = (values.abs() - limit).clamp(min=0)
    return over.sum() / (register * values.shape[0] * values.shape[1])
