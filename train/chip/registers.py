"""What a layer's neurons have in common while they run: registers, and the gradient that stands for a spike's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from knarr.hw_sim.network import DECAY_UNITY
from knarr.train.chip.limits import UNIT
from knarr.train.networks.neurons import NeuronSettings
from knarr.train.settings import Frozen, Positive


class Surrogate(Frozen):
    """The gradient of a spike (`knarr.train.networks.neurons.slope`) over v / threshold - 1.

    Args:
        kind, width: see there, in thresholds.
        detach_reset: no gradient flows through the reset.
    """

    kind: Literal["box", "atan"] = "atan"
    width: Positive = 2.0
    detach_reset: bool = True

    @classmethod
    def of(cls, neuron: NeuronSettings) -> Surrogate:
        """That of a float student's neurons, whose widths are in volts; a box is as wide, and 1 per threshold high, not per volt."""
        scaled = (
            neuron.width * neuron.v_th if neuron.surrogate == "atan" else neuron.width / neuron.v_th
        )
        return cls(kind=neuron.surrogate, width=scaled, detach_reset=neuron.detach_reset)


@dataclass(frozen=True)
class Registers:
    """Of one layer: decays 0..4096, threshold mantissa, and how spikes pass gradients."""

    i_decay: int
    v_decay: int
    vth_int: int
    surrogate: Surrogate

    @property
    def keep_u(self) -> float:
        """Share of u that a step keeps; exact in binary."""
        return 1 - self.i_decay / DECAY_UNITY

    @property
    def keep_v(self) -> float:
        return 1 - self.v_decay / DECAY_UNITY

    @property
    def threshold(self) -> float:
        """In units of v."""
        return float(UNIT * self.vth_int)

    @property
    def height(self) -> float:
        """What distances from the threshold are divided by: the threshold, or one unit where it is 0."""
        return max(self.threshold, float(UNIT))
