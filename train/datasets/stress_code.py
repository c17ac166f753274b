"""Skin conductance at 4 Hz as a chip can take it: steps of 3 s, 20 of a minute; whole numbers that are never negative.

Two codings of the same three things: the level, its change since the window began, and the fast responses. No step hears a later
sample. Signals are standardised per person before (`cut_windows`).
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.eda import frames, tonic_phasic
from knarr.train.datasets.stress_predict import EDA_HZ

STEP: Final = 12
"""Samples of a step."""
PART: Final = 3
"""Samples that share an input, four such parts a step."""
DT_S: Final = STEP / EDA_HZ
TOP: Final = {"level": 3.0, "change": 2.0, "phasic": 1.0}
"""Standard deviations that fill the 8 bits; what is beyond is cut off."""
DELTAS: Final = (0.03, 0.15)
"""Standard deviations the signal moves before it sends an event."""
LEVELS: Final = np.linspace(-1.5, 2.0, 15)
CHANGES: Final = np.linspace(-1.0, 1.0, 8)

Coding = Literal["graded", "events"]
Signal = npt.NDArray[np.float32]


class Codes(NamedTuple):
    """What a student hears.

    Attributes:
        integers: (N, 20, inputs) uint8, as the chip gets them.
        units: integers per unit of the float network's input.
        bits: of an input.
        kind: `InputCoding.kind`.
    """

    integers: npt.NDArray[np.uint8]
    units: float
    bits: int
    kind: Literal["graded", "events"]


def encode_windows(eda: Signal, coding: Coding) -> Codes:
    """(N, 240) standardised skin conductance -> what a student hears, 12 inputs a step if graded, 39 if events."""
    if coding == "graded":
        return Codes(_graded(eda), 255.0, 8, "graded")
    return Codes(_events(eda), 1.0, 1, "events")


def _graded(eda: Signal) -> npt.NDArray[np.uint8]:
    level, change = _slow(eda)
    _, phasic = tonic_phasic(eda, EDA_HZ)
    parts = frames(phasic, PART, PART).mean(axis=-1).reshape(*level.shape, STEP // PART)
    channels = [
        level[..., None] / TOP["level"],
        change[..., None] / TOP["change"],
        parts / TOP["phasic"],
    ]
    signed = np.concatenate(channels, axis=-1)
    # Above and below the mean are inputs of their own, as ON and OFF events are: nothing needs a sign.
    both = np.concatenate([signed, -signed], axis=-1)
    return np.rint(255 * both.clip(0, 1)).astype(np.uint8)


def _events(eda: Signal) -> npt.NDArray[np.uint8]:
    level, change = _slow(eda)
    thermometers = [level[..., None] > LEVELS, change[..., None] > CHANGES]
    moves = [_moved(eda, delta) for delta in DELTAS]
    return np.concatenate([*moves, *thermometers], axis=-1).astype(np.uint8)


def _slow(eda: Signal) -> tuple[Signal, Signal]:
    """(N, 20) mean of each step, and how far it is from the first step's."""
    level: Signal = frames(eda, STEP, STEP).mean(axis=-1)
    return level, level - level[:, :1]


def _moved(eda: Signal, delta: float) -> npt.NDArray[np.bool_]:
    """(N, 20, 8) whether a part of a step held an ON event, then OFF: the signal left its last mark by more than `delta`."""
    mark = eda[:, 0].copy()
    fired = np.zeros((2, *eda.shape), bool)
    for sample in range(1, eda.shape[1]):
        away = eda[:, sample] - mark
        fired[0, :, sample], fired[1, :, sample] = away > delta, away < -delta
        mark = np.where(np.abs(away) > delta, eda[:, sample], mark)
    parts = fired.reshape(2, len(eda), -1, STEP // PART, PART).any(axis=-1)
    return np.concatenate([parts[0], parts[1]], axis=-1)
