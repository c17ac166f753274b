"""What registers hold: grids of legal integers, the worst that a network can do to its states, and a penalty on what leaves them.

A worst case is a proof: where it lies inside the registers nothing can wrap or saturate, whatever the input. Most layers with
many inputs cannot be proved so, and for them `excess` makes what was met cost something. Exactness needs neither: the forward
pass wraps and saturates as the chip does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from knarr.hw_sim import NON_SPIKING_VTH, ChipError, ChipNetwork, Recurrent
from knarr.hw_sim.arithmetic import STATE_MAX, STATE_SHIFT
from knarr.hw_sim.network import DECAY_UNITY, Layer
from knarr.train.chip.quantiser import QuantisationGrid

UNIT = 2**STATE_SHIFT
"""Of u and v, in one of a sum, a bias or a threshold."""
HEADROOM = 15 / 16
"""Share of a register from which on states cost something: a gradient has to turn them back before they leave."""


SIGNED_8, EVEN_9 = QuantisationGrid(-128, 127), QuantisationGrid(-256, 254, 2)


@dataclass(frozen=True)
class Limits:
    """Which integers a trained network may hold; by default Loihi 2's as `knarr.deploy.check` has them.

    Args:
        weights: of a layer.
        even_weights: of a layer that comes with weights outside `weights`, all even: the step of 2 that 8 signed bits with an
            exponent of 1 have. None: there is none.
        vth_max: of thresholds, from 0. bias_max: of biases, either sign.
        i_decays, v_decays: of registers.
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
        """Loihi 2's with weights of 2..8 signed bits, as `knarr.deploy.lower` makes them."""
        if (
            isinstance(weight_bits, bool)
            or not isinstance(weight_bits, int)
            or not 2 <= weight_bits <= 8
        ):
            raise ChipError(f"weight_bits: {weight_bits!r}, allowed 2..8")
        half = 2 ** (weight_bits - 1)
        return cls(QuantisationGrid(-half, half - 1), EVEN_9 if weight_bits == 8 else None)

    def grid_of(self, layer: Layer) -> QuantisationGrid:
        """The grid that a layer's weights lie on.

        Raises:
            ChipError: weights, bias, threshold or decays that are outside.
        """
        parts = [layer.weight_int, *([layer.recurrent_int] if isinstance(layer, Recurrent) else [])]
        low, high = (
            int(pick(part.min() if pick is min else part.max() for part in parts))
            for pick in (min, max)
        )
        odd = any(bool((part & 1).any()) for part in parts)
        bias = 0 if layer.bias_int is None else int(np.abs(layer.bias_int).max())
        neuron = layer.neuron
        for what, value, (least, most) in (
            ("bias up to", bias, (0, self.bias_max)),
            ("threshold", neuron.vth_int if neuron.spikes else 0, (0, self.vth_max)),
            ("i_decay", neuron.i_decay, self.i_decays),
            ("v_decay", neuron.v_decay, self.v_decays),
        ):
            if not least <= value <= most:
                raise ChipError(
                    f"layer '{layer.name}': {what} {value}, allowed {least}..{most}; lower it anew"
                )
        for grid in (self.weights, self.even_weights):
            if grid is not None and grid.holds(low, high, odd=odd):
                return grid
        raise ChipError(
            f"layer '{layer.name}': weights {low}..{high}, the grid is {self.weights}; give the bits that it was lowered with"
        )


LOIHI2 = Limits()
SIMULATOR = Limits(
    QuantisationGrid(-(2**22), 2**22),
    None,
    NON_SPIKING_VTH - 1,
    2**31 - 1,
    (0, DECAY_UNITY),
    (0, DECAY_UNITY),
)
"""What the simulator takes beyond the chip, for comparisons with it."""


@dataclass(frozen=True)
class LayerBounds:
    """The largest absolute values that any input can cause in a layer.

    Args:
        name: the layer's.
        sum: of synaptic sums. u, v: of states, infinite where nothing decays; of v without its clip.
        fits_accumulator: sums stay below `Limits.accumulator`. wraps: u may. saturates: v may.
    """

    name: str
    sum: int
    u: float
    v: float
    fits_accumulator: bool
    wraps: bool
    saturates: bool


def bounds(network: ChipNetwork, limits: Limits = LOIHI2) -> tuple[LayerBounds, ...]:
    """Worst cases of every layer: every input at its largest wherever that adds to one side.

    Each state is a sum of a geometric series, u <= 64 a 4096 / i_decay and v of what flows into it; rounding toward zero only
    makes them smaller. A spiking neuron fires before its voltage could saturate upwards.
    """
    payload = 2**network.input.bits - 1
    found = []
    for layer in network.layers:
        up, down = _sides(layer.weight_int, payload)
        if isinstance(layer, Recurrent):
            rises, falls = _sides(layer.recurrent_int, 1)
            up, down = up + rises, down + falls
        neuron, most = layer.neuron, int(max(up.max(), down.max()))
        bias = np.zeros(1) if layer.bias_int is None else UNIT * layer.bias_int.astype(np.float64)
        high, low = (series(UNIT * side, neuron.i_decay) for side in (up, down))
        u = float(max(high.max(), low.max()))
        below = series(low + np.maximum(-bias, 0), neuron.v_decay)
        above = series(high + np.maximum(bias, 0), neuron.v_decay)
        v = float(below.max() if neuron.spikes else max(below.max(), above.max()))
        found.append(
            LayerBounds(
                layer.name, most, u, v, most < limits.accumulator, u >= STATE_MAX, v > STATE_MAX - 1
            )
        )
        payload = 1
    return tuple(found)


def _sides(weight: npt.NDArray[np.int32], payload: int) -> tuple[npt.NDArray[np.float64], ...]:
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    return payload * np.maximum(rows, 0).sum(1), payload * np.maximum(-rows, 0).sum(1)


def series(inflow: npt.NDArray[np.float64], decay: int) -> npt.NDArray[np.float64]:
    """What a state that loses decay / 4096 every step cannot pass."""
    limit = np.where(inflow > 0, np.inf, 0.0) if decay == 0 else inflow * (DECAY_UNITY / decay)
    return np.asarray(limit, dtype=np.float64)


def excess(values: torch.Tensor, register: float) -> torch.Tensor:
    """How far |values| pass HEADROOM of a register, in registers, summed over neurons, mean over samples and steps.

    Args:
        values: (samples, timesteps, *features).
        register: the limit, in units of the values.

    Returns:
        0-d; without a gradient where nothing passes.
    """
    limit = HEADROOM * register
    low, high = torch.aminmax(values.detach())
    if max(-float(low), float(high)) <= limit:
        return values.new_zeros(())
    over = (values.abs() - limit).clamp(min=0)
    return over.sum() / (register * values.shape[0] * values.shape[1])
