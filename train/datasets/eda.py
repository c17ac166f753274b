"""Skin conductance as a spiking student takes it: overlapping frames, and its slow and fast part."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

Signal = npt.NDArray[np.floating[Any]]

FRAME: Final = 32
FRAME_STEP: Final = 8
"""Samples a step sees, and by which it moves: those of the spiking student of 128 Hz windows, [8t, 8t + 32)."""
TONIC_HZ: Final = 0.05
"""Where slow level and responses are usually divided (Boucsein, Electrodermal Activity, 2012, chapter 2)."""


def frames(signal: Signal, width: int = FRAME, step: int = FRAME_STEP) -> Signal:
    """Cut windows into the graded input of each time step: frame t is samples [t * step, t * step + width).

    Args:
        signal: (..., n) samples, n >= width. What is left after the last whole frame is not used.
        width, step: samples, at least 1.

    Returns:
        (..., T, width), T = (n - width) // step + 1; a read-only view.

    Raises:
        ValueError: width or step is out of its range.
    """
    if step < 1 or not 1 <= width <= signal.shape[-1]:
        raise ValueError(
            f"frames: {width} by {step} of {signal.shape[-1]} samples; take 1 .. that many, by 1 or more"
        )
    windows: Signal = np.lib.stride_tricks.sliding_window_view(signal, width, axis=-1)
    return windows[..., ::step, :]


def tonic_phasic(signal: Signal, rate_hz: float, cutoff_hz: float = TONIC_HZ) -> tuple[Signal, Signal]:
    """Split into slow level and fast responses with one leaky integrator, which sees no later sample.

        tonic[0] = x[0];  tonic[n] = tonic[n-1] + a (x[n] - tonic[n-1]),  a = 1 - exp(-2 pi cutoff / rate)
        phasic = x - tonic

    Args:
        signal: (..., n) samples, n >= 1.
        rate_hz: of the samples.
        cutoff_hz: of the low pass, in (0, rate / 2).

    Returns:
        tonic and phasic, (..., n) each; their sum is the signal.

    Raises:
        ValueError: `cutoff_hz` is out of its range.
    """
    if not 0 < cutoff_hz < rate_hz / 2:
        raise ValueError(f"cutoff_hz: {cutoff_hz} outside (0, {rate_hz / 2}); take a lower one")
    keep = math.exp(-2 * math.pi * cutoff_hz / rate_hz)
    tonic, _ = lfilter([1 - keep], [1, -keep], signal, axis=-1, zi=keep * signal[..., :1])
    return tonic, signal - tonic


def standardise(signal: Signal, like: Signal | None = None) -> Signal:
    """(x - mean) / standard deviation of `like`, or of `signal` itself, along the last axis; 0 where it is constant."""
    like = signal if like is None else like
    spread = like.std(axis=-1, keepdims=True)
    return (signal - like.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)
