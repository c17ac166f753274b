"""Training in the chip's own arithmetic: what a student does while it learns is what the chip does, integer by integer.

network      ChipStudent: a chip network that learns, and back to a chip network
layer        a synapse and its neurons, with the step between integers that they share
grid         integers with a learned step, and their gradients
synapse      time-batched sums that are exact; pooling finds the pooling that was folded into weights
neurons      CUBA neurons through time with surrogate gradients: arithmetic, kernels (numba), steps (torch)
limits       what registers hold, worst cases, and the penalty on what leaves them
"""

from knarr.train.chip.limits import LOIHI2, SIMULATOR, LayerBounds, Limits, bounds
from knarr.train.chip.network import ChipStudent, ChipStudentOutput
from knarr.train.chip.registers import Surrogate

__all__ = [
    "LOIHI2",
    "SIMULATOR",
    "ChipStudent",
    "ChipStudentOutput",
    "LayerBounds",
    "Limits",
    "Surrogate",
    "bounds",
]
