"""What netx and Lava make of a dense weight matrix between the file and the first sum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import IntArray


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
    return bool(
        shift >= 0 and np.array_equal(weight, np.asarray(weight_int, dtype=np.int64) << shift)
    )


def _replay_netx(
    weight_int: IntArray, parts: tuple[slice, ...] = (slice(None),)
) -> tuple[npt.NDArray[np.int64], int] | None:
    """Weights as Lava's Dense holds them, and how far they were shifted up before; None when loading fails.

    Replays lava-dl 0.6.0 `netx.utils.optimize_weight_bits` and lava-nc 0.10.0 `Dense` (clip, then truncate to the bit
    grid), including that the sign mode is decided twice, by different rules, and that numpy shifts by a negative count to
    zero. Measured against Lava in tests/deploy/test_lava.py.
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
