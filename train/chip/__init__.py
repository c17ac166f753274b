"""Training in the chip's own arithmetic: a student does while it learns what the chip does, integer
by integer.

network      ChipStudent: a chip network that learns, layer by layer, and back to a chip network
synapse      time-batched sums that are exact, pooling found again, accumulates
neurons      CUBA neurons through time with surrogate gradients, compiled and in torch
quantiser    integers with a learned step, and their gradients
limits       limits of registers, worst cases, and the penalty on what leaves them
"""

from knarr.train.chip.limits import Limits
from knarr.train.chip.network import ChipStudent, ChipStudentOutput
from knarr.train.chip.neurons import Surrogate

__all__ = ["ChipStudent", "ChipStudentOutput", "Limits", "Surrogate"]
