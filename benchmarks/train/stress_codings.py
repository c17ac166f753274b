"""Two codings of skin conductance for a student: the graded one of the product, and events that say the same three things."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.stress.windows import PART, STEP, encode_windows, frames

DELTAS = (0.03, 0.15)
"""Standard deviations the signal moves before it sends an event."""
LEVELS = np.linspace(-1.5, 2.0, 15)
CHANGES = np.linspace(-1.0, 1.0, 8)

Coding = Literal["graded", "events"]
Signal = npt.NDArray[np.float32]


class Codes(NamedTuple):
    """A student's input.

    Attributes:
        integers: (N, 20, inputs) uint8, as the chip gets them.
        units: integers per unit of the float network's input.
        bits: bits of an input.
        kind: `InputCoding.kind`.
    """

    integers: npt.NDArray[np.uint8]
    units: float
    bits: int
    kind: Coding


def encode(eda: Signal, coding: Coding) -> Codes:
    """Code standardised skin conductance (N, 240): 12 inputs a step if graded, 39 if events."""
    if coding == "graded":
        return Codes(encode_windows(eda), 255.0, 8, "graded")
    level = frames(eda, STEP, STEP).mean(axis=-1, keepdims=True)
    change = level - level[:, :1]
    moves = [_moved(eda, delta) for delta in DELTAS]
    # Thermometers: one input for each mark that is passed.
    events = np.concatenate([*moves, level > LEVELS, change > CHANGES], axis=-1)
    return Codes(events.astype(np.uint8), 1.0, 1, "events")


def _moved(eda: Signal, delta: float) -> npt.NDArray[np.bool_]:
    """Say whether a part of a step held an ON event, then OFF: the signal left its last mark by more than `delta`.

    Returns:
        (N, 20, 8): four parts of ON, four of OFF.
    """
    mark = eda[:, 0].copy()
    fired = np.zeros((2, *eda.shape), bool)
    for sample in range(1, eda.shape[1]):
        away = eda[:, sample] - mark
        fired[0, :, sample], fired[1, :, sample] = away > delta, away < -delta
        # The mark jumps to the sample itself, not by whole deltas: one event, however far the signal went.
        mark = np.where(np.abs(away) > delta, eda[:, sample], mark)
    parts = fired.reshape(2, len(eda), -1, STEP // PART, PART).any(axis=-1)
    return np.concatenate([parts[0], parts[1]], axis=-1)
