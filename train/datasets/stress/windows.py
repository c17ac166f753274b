"""Cut Stress-Predict into windows of one label each, and code them for a spiking student.

A student takes a minute at 4 Hz in 20 steps of 3 s, as whole numbers that are never negative. They
say three things: the level, its change since the window began, and the fast responses. No step sees
a later sample. Signals are standardised per person before (`cut_windows`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from knarr.train.datasets.arrays import Float32, Int64, UInt8
from knarr.train.datasets.files import kinds_text
from knarr.train.datasets.stress.read import EDA_HZ, HR_HZ, Person
from knarr.train.errors import DataError

FloatSignal = npt.NDArray[np.floating[Any]]
Normalise = Literal["person", "window", "none"]

CLASS_NAMES = ("rest", "stress")
TONIC_HZ = 0.05
"""Usual border of slow level and responses (Boucsein, Electrodermal Activity, 2012, chapter 2)."""
STEP = 12
"""Samples of a step."""
PART = 3
"""Samples that share an input, four such parts a step."""
DT_S = STEP / EDA_HZ
LEVEL_TOP, CHANGE_TOP, PHASIC_TOP = 3.0, 2.0, 1.0
"""Standard deviations that fill the 8 bits; what is beyond is cut off."""


@dataclass(frozen=True, eq=False)
class StressWindows:
    """Windows in the order of the people and of time.

    Attributes:
        eda: (N, 4 window_s) float32 skin conductance at 4 Hz; microsiemens, or standardised.
        hr: (N, window_s) float32 heart rate at 1 Hz; beats a minute, or standardised.
        labels: (N,) 0 rest, 1 stress.
        subjects: (N,) person of each, "S02" and so on: the groups that no split may divide.
        starts_s: (N,) seconds from the start of the person's recording.
        dropped: number of windows left out: "two labels", "lost contact" (a sample of 0
            microsiemens), "few labels".
    """

    eda: Float32
    hr: Float32
    labels: Int64
    subjects: npt.NDArray[np.str_]
    starts_s: Int64
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def eda_hr(self) -> Float32:
        """A teacher's input, (N, 2, 4 window_s): each heart rate is held for its second."""
        return np.stack([self.eda, np.repeat(self.hr, EDA_HZ // HR_HZ, axis=1)], axis=1)


def cut_windows(
    people: Sequence[Person],
    *,
    window_s: int = 60,
    step_s: int = 30,
    min_labelled: float = 5 / 6,
    normalise: Normalise = "person",
) -> StressWindows:
    """Cut recordings into windows, from the first second of each on.

    A window without one label is left out and counted.

    Args:
        people: recordings from `read_people`.
        window_s: length, seconds.
        step_s: from one window's start to the next one's, seconds.
        min_labelled: share of a window's seconds that must be labelled, in (0, 1].
        normalise: subtract the mean and divide by the standard deviation: "person" over a whole
            recording where the contact held, which for a test person uses data that are not
            labelled but theirs; "window" over each window, which forgets its level; or "none".

    Raises:
        ValueError: an argument is out of its range.
        DataError: no window is left.
    """
    if window_s < 1 or step_s < 1 or not 0 < min_labelled <= 1:
        raise ValueError(
            f"windows: {window_s} s by {step_s} s, {min_labelled} labelled; give 1 s or more, and a share in (0, 1]"
        )
    if normalise not in ("person", "window", "none"):
        raise ValueError(
            f"normalise: {normalise!r} is none of 'person', 'window', 'none'; name one"
        )
    found: list[tuple[str, int, int]] = []
    eda_parts: list[FloatSignal] = []
    hr_parts: list[FloatSignal] = []
    dropped: Counter[str] = Counter()
    for person in people:
        eda: FloatSignal = person.eda_us
        hr: FloatSignal = person.hr_bpm
        contact = eda > 0
        # Zeros of a lost contact are no conductance, so they take no part in the mean.
        if normalise == "person" and contact.any():
            eda, hr = standardise(eda, eda[contact]), standardise(hr)
        for start in range(0, len(person.labels) - window_s + 1, step_s):
            here = slice(start, start + window_s)
            samples = slice(start * EDA_HZ, (start + window_s) * EDA_HZ)
            label = person.labels[here]
            label = label[label >= 0]
            if len(label) < max(1.0, min_labelled * window_s):
                dropped["few labels"] += 1
            elif label.min() != label.max():
                dropped["two labels"] += 1
            elif not contact[samples].all():
                dropped["lost contact"] += 1
            else:
                found.append((person.subject, start, int(label[0])))
                eda_parts.append(eda[samples])
                hr_parts.append(hr[here])
    if not found:
        counts = kinds_text(dropped) or "recordings too short"
        raise DataError(
            "windows", f"no windows: none of {window_s} s can be used ({counts}); take shorter ones"
        )
    eda, hr = np.stack(eda_parts), np.stack(hr_parts)
    if normalise == "window":
        eda, hr = standardise(eda), standardise(hr)
    subjects, starts_s, labels = map(np.array, zip(*found, strict=True))
    return StressWindows(
        eda.astype(np.float32), hr.astype(np.float32), labels, subjects, starts_s, dict(dropped)
    )


def standardise(signal: FloatSignal, like: FloatSignal | None = None) -> FloatSignal:
    """Return (x - mean) / standard deviation along the last axis; 0 where it is constant.

    Mean and deviation are those of `like`, or of `signal` itself.
    """
    like = signal if like is None else like
    spread = like.std(axis=-1, keepdims=True)
    return (signal - like.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)


def frames(signal: FloatSignal, width: int, step: int) -> FloatSignal:
    """Cut windows into the graded input of each time step.

    Frame t is samples [t * step, t * step + width).

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
    windows: FloatSignal = np.lib.stride_tricks.sliding_window_view(signal, width, axis=-1)
    return windows[..., ::step, :]


def tonic_phasic(signal: FloatSignal, rate_hz: float) -> tuple[FloatSignal, FloatSignal]:
    """Split into slow level and fast responses with one leaky integrator.

    It sees no later sample:

        tonic[0] = x[0];  tonic[n] = tonic[n-1] + a (x[n] - tonic[n-1])
        a = 1 - exp(-2 pi TONIC_HZ / rate)
        phasic = x - tonic

    Args:
        signal: (..., n) samples, n >= 1.
        rate_hz: rate of the samples.

    Returns:
        tonic and phasic, (..., n) each; their sum is the signal.
    """
    keep = math.exp(-2 * math.pi * TONIC_HZ / rate_hz)
    # The state before the first sample is chosen so that the level starts at that sample, not at 0.
    tonic, _ = lfilter([1 - keep], [1, -keep], signal, axis=-1, zi=keep * signal[..., :1])
    return tonic, signal - tonic


def encode_windows(eda: Float32) -> UInt8:
    """Code standardised skin conductance (N, 240) for a student as graded inputs, 12 a step.

    Returns:
        (N, 20, 12) integers as the chip gets them, 255 per unit of the float network's input.
    """
    level = frames(eda, STEP, STEP).mean(axis=-1, keepdims=True)
    change = level - level[:, :1]
    _, phasic = tonic_phasic(eda, EDA_HZ)
    parts = frames(phasic, PART, PART).mean(axis=-1).reshape(*level.shape[:2], STEP // PART)
    channels = [level / LEVEL_TOP, change / CHANGE_TOP, parts / PHASIC_TOP]
    signed = np.concatenate(channels, axis=-1)
    # Above and below the mean are inputs of their own, as ON and OFF events are: nothing needs a
    # sign.
    both = np.concatenate([signed, -signed], axis=-1)
    return np.rint(255 * both.clip(0, 1)).astype(np.uint8)
