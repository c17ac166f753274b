"""What a single event meets of a weight in a netx Dense layer, which Lava is compared with."""

from __future__ import annotations

import numpy as np

from knarr.deploy.rules import replay_netx
from knarr.hw_sim.arrays import Int64, IntArray


def netx_dense_weights(weight_int: IntArray) -> Int64 | None:
    """The weights that single events meet; None when netx cannot load the matrix.

    Several events at once meet the same weights only if `netx_runs_exactly`: Lava shifts the sum, not each weight.
    """
    replayed = replay_netx(weight_int)
    if replayed is None:
        return None
    weight, shift = replayed
    exponent = -shift
    return np.left_shift(weight, exponent) if exponent > 0 else np.right_shift(weight, -exponent)
