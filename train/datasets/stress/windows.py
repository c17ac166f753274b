"""Skin conductance as a spiking student takes it: overlapping frames, and its slow and fast part.

Windows of Stress-Predict with one label each, and the torch data set of them for teacher and student.

Skin conductance at 4 Hz as a chip can take it: steps of 3 s, 20 of a minute; whole numbers that are never negative.

Two codings of the same three things: the level, its change since the window began, and the fast responses. No step hears a later
sample. Signals are standardised per person before (`cut_windows`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import lfilter
from torch.utils.data import Dataset

from knarr.train.datasets.stress.read import EDA_HZ, HR_HZ, Person
from knarr.train.errors import DataError

FloatSignal = npt.NDArray[np.floating[Any]]

FRAME: Final = 32
FRAME_STEP: Final = 8
"""Samples a step sees, and by which it moves: those of the spiking student of 128 Hz windows, [8t, 8t + 32)."""
TONIC_HZ: Final = 0.05
"""Where slow level and responses are usually divided (Boucsein, Electrodermal Activity, 2012, chapter 2)."""


def frames(signal: FloatSignal, width: int = FRAME, step: int = FRAME_STEP) -> FloatSignal:
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
    windows: FloatSignal = np.lib.stride_tricks.sliding_window_view(signal, width, axis=-1)
    return windows[..., ::step, :]


def tonic_phasic(
    signal: FloatSignal, rate_hz: float, cutoff_hz: float = TONIC_HZ
) -> tuple[FloatSignal, FloatSignal]:
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


def standardise(signal: FloatSignal, like: FloatSignal | None = None) -> FloatSignal:
    """(x - mean) / standard deviation of `like`, or of `signal` itself, along the last axis; 0 where it is constant."""
    like = signal if like is None else like
    spread = like.std(axis=-1, keepdims=True)
    return (signal - like.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)


CLASS_NAMES: Final = ("rest", "stress")
Normalise = Literal["person", "window", "none"]


@dataclass(frozen=True, eq=False)
class StressWindows:
    """Windows in the order of the people and of time.

    Attributes:
        eda: (N, 4 window_s) float32 skin conductance at 4 Hz; microsiemens, or standardised.
        hr: (N, window_s) float32 heart rate at 1 Hz; beats a minute, or standardised.
        labels: (N,) 0 rest, 1 stress.
        subjects: (N,) who, "S02" and so on: the groups that no split may divide.
        starts_s: (N,) seconds from the start of the person's recording.
        dropped: number of windows left out: "two labels", "lost contact" (a sample of 0 microsiemens), "few labels".
    """

    eda: npt.NDArray[np.float32]
    hr: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    subjects: npt.NDArray[np.str_]
    starts_s: npt.NDArray[np.int64]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def eda_hr(self) -> npt.NDArray[np.float32]:
        """(N, 2, 4 window_s): what a teacher sees; each heart rate is held for its second."""
        return np.stack([self.eda, np.repeat(self.hr, EDA_HZ // HR_HZ, axis=1)], axis=1)


def cut_windows(
    people: Sequence[Person],
    *,
    window_s: int = 60,
    step_s: int = 30,
    min_labelled: float = 5 / 6,
    normalise: Normalise = "person",
) -> StressWindows:
    """Cut recordings into windows, from the first second of each on; what has no one label is left out and counted.

    Args:
        people: from `read_people`.
        window_s: length, seconds.
        step_s: from one window's start to the next one's, seconds.
        min_labelled: share of a window's seconds that must be labelled, in (0, 1].
        normalise: subtract the mean and divide by the standard deviation: "person" over a whole recording where the
            contact held, which for a test person uses data that are not labelled but theirs; "window" over each window,
            which forgets its level; or "none".

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
    found: list[tuple[str, int, int, FloatSignal, FloatSignal]] = []
    dropped: Counter[str] = Counter()
    for person in people:
        eda, hr = person.eda_us, person.hr_bpm
        contact = eda > 0
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
                found.append((person.subject, start, int(label[0]), eda[samples], hr[here]))
    if not found:
        counts = (
            ", ".join(f"{kind} {count}" for kind, count in sorted(dropped.items()))
            or "recordings too short"
        )
        raise DataError(
            "windows", f"no windows: none of {window_s} s can be used ({counts}); take shorter ones"
        )
    eda_all = np.stack([window[3] for window in found])
    hr_all = np.stack([window[4] for window in found])
    if normalise == "window":
        eda_all, hr_all = standardise(eda_all), standardise(hr_all)
    return StressWindows(
        eda=eda_all.astype(np.float32),
        hr=hr_all.astype(np.float32),
        labels=np.array([window[2] for window in found]),
        subjects=np.array([window[0] for window in found]),
        starts_s=np.array([window[1] for window in found]),
        dropped=dict(dropped),
    )


class StressItem(TypedDict):
    """One window: `eda` (1, n) for the student, `eda_hr` (2, n) for the teacher, float32; class; number of the person."""

    eda: torch.Tensor
    eda_hr: torch.Tensor
    label: int
    subject: int


class StressDataset(Dataset[StressItem]):
    """Some of the windows, one at a time.

    Attributes:
        people: names of the people in all of the windows, sorted; `subject` of an item is a position in it.
    """

    def __init__(self, windows: StressWindows, indices: npt.NDArray[np.int64]) -> None:
        self.indices = indices
        self.labels = windows.labels
        self.people, self._person = np.unique(windows.subjects, return_inverse=True)
        self._signals = torch.from_numpy(windows.eda_hr)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> StressItem:
        index = int(self.indices[item])
        both = self._signals[index]
        return {
            "eda": both[:1],
            "eda_hr": both,
            "label": int(self.labels[index]),
            "subject": int(self._person[index]),
        }


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
