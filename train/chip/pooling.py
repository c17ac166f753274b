"""Pooling that lowering folded into weights, found again: train the weights behind it, not their copies.

`knarr.deploy.lower` turns a p x p pooling and the synapse behind it into one synapse whose every weight stands p x p times. Summing
the spikes first gives the same integers with p * p times fewer products, and keeps one trained weight where the student had one.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim import Conv

Int32 = npt.NDArray[np.int32]
Pair = tuple[int, int]


def conv_pool(layer: Conv) -> Pair:
    """(height, width) of the largest pooling that a kernel, its stride and its padding hold."""
    found = []
    for axis in (0, 1):
        size = gcd(layer.weight_int.shape[2 + axis], layer.stride[axis], layer.padding[axis])
        fits = [p for p in range(size, 1, -1) if size % p == 0 and _repeats(layer.weight_int, 2 + axis, p)]
        found.append(fits[0] if fits and layer.dilation[axis] == 1 else 1)
    return found[0], found[1]


def dense_pool(weight: Int32, entering: tuple[int, ...]) -> Pair:
    """The same of a dense layer's (outputs, C * H * W) weights; rows or columns that no window fills weigh nothing."""
    if len(entering) != 3:
        return 1, 1
    whole = weight.reshape(len(weight), *entering)
    found = []
    for axis in (2, 3):
        side = whole.shape[axis]
        fits = (p for p in range(side, 1, -1) if _pools(whole, axis, p))
        found.append(next(fits, 1))
    return found[0], found[1]


def _pools(whole: Int32, axis: int, p: int) -> bool:
    full = whole.shape[axis] // p * p
    first = np.take(whole, range(full), axis)
    rest = np.take(whole, range(full, whole.shape[axis]), axis)
    return not rest.any() and _repeats(first, axis, p)


def _repeats(weight: Int32, axis: int, p: int) -> bool:
    """Whether every p neighbours along an axis are equal."""
    cut = np.moveaxis(weight, axis, -1)
    cut = cut.reshape(*cut.shape[:-1], -1, p)
    return bool((cut == cut[..., :1]).all())


def pooled(whole: npt.NDArray[Any], pool: Pair) -> npt.NDArray[Any]:
    """One of every p x p copies, of (..., H, W); sides are cut to multiples."""
    high, wide = (side // p * p for side, p in zip(whole.shape[-2:], pool, strict=True))
    return np.ascontiguousarray(whole[..., : high : pool[0], : wide : pool[1]])


def unpooled(weight: Int32, pool: Pair, side: Pair) -> Int32:
    """Every weight p x p times; zeros fill up to `side`."""
    copies = weight.repeat(pool[0], axis=-2).repeat(pool[1], axis=-1)
    whole = np.zeros((*copies.shape[:-2], *side), dtype=np.int32)
    whole[..., : copies.shape[-2], : copies.shape[-1]] = copies
    return whole
