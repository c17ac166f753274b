"""Recordings of EEG and skin conductance, cut into the windows that EmotionKD's networks see.

What DEAP and MAHNOB-HCI share once they are read: 128 Hz, the same electrodes in the same order,
windows of 4 s, valence and arousal as two classes each. `splits` parts them by person, or by trial,
through the windows' ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from knarr.train.datasets.arrays import Float32, Float64
from knarr.train.datasets.files import count_kinds
from knarr.train.errors import DataError

RATE_HZ = 128

# fmt: off
EEG_32 = (
    "Fp1", "AF3", "F3", "F7", "FC5", "FC1", "C3", "T7", "CP5", "CP1", "P3", "P7", "PO3", "O1", "Oz",
    "Pz",
    "Fp2", "AF4", "Fz", "F4", "F8", "FC6", "FC2", "Cz", "C4", "T8", "CP6", "CP2", "P4", "P8", "PO4",
    "O2",
)
# fmt: on
"""The electrodes of both sets, in DEAP's order (its documentation, "Geneva")."""

EEG_28 = tuple(name for name in EEG_32 if name not in ("Oz", "Pz", "Fz", "Cz"))
"""Electrodes without the midline: left, then right.

It is the choice of a public pipeline of the same shape, so ours for EmotionKD.
"""


@dataclass(frozen=True, eq=False)
class Trial:
    """Signals of one person during one video, and the ratings that the person gave.

    Args:
        subject: The person, unique in the dataset.
        trial: The recording, unique within the person.
        eeg: (channels, samples) float32, microvolts, at 128 Hz.
        gsr: (samples,) float32, ohms, at 128 Hz.
        valence, arousal: ratings, 1 .. 9.
    """

    subject: str
    trial: str
    eeg: Float32
    gsr: Float32
    valence: float
    arousal: float


@dataclass(frozen=True, eq=False)
class Recordings:
    """The trials that were read of a dataset, and what was left out.

    Args:
        trials: In the order of the subjects, then of the trials.
        channels: Names of the rows of every `Trial.eeg`.
        left_out: Why each other recording is not among them: one error for each.
        missing: Files that should be there and are not.
    """

    trials: tuple[Trial, ...]
    channels: tuple[str, ...]
    left_out: tuple[DataError, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of recordings left out by reason."""
        return count_kinds(self.left_out)


@dataclass(frozen=True)
class Windowing:
    """Settings by which recordings become samples.

    The defaults are EmotionKD's shapes at 128 Hz, [28, 512] and [1, 512].

    Args:
        window_s: Length of a window in seconds; EmotionKD's kernel 32 is a quarter of the rate and
            its input 512 long.
        stride_s: From the start of one to the start of the next; 4 s leaves no overlap (15 windows
            a trial of DEAP).
        gsr_unit: "ohm" as recorded, or "siemens", its inverse: conductance, which rises with
            arousal.
        normalise: "window": each channel of each window to mean 0 and variance 1. "none": as
            recorded, for a scaler fitted on the training part.
        threshold: A rating above it is class 1.
        inclusive: A rating equal to it is class 1 too.

    Raises:
        ValueError: A value is out of its range.
    """

    window_s: float = 4.0
    stride_s: float = 4.0
    gsr_unit: Literal["ohm", "siemens"] = "ohm"
    normalise: Literal["window", "none"] = "window"
    threshold: float = 5.0
    inclusive: bool = False

    def __post_init__(self) -> None:
        for name, seconds in (("window_s", self.window_s), ("stride_s", self.stride_s)):
            samples = float(seconds * RATE_HZ)
            if samples < 1 or not samples.is_integer():
                raise ValueError(
                    f"{name}: {seconds} s is {seconds * RATE_HZ} samples at {RATE_HZ} Hz; choose whole ones"
                )
        if not 1 <= self.threshold <= 9:
            raise ValueError(
                f"threshold: {self.threshold} outside the ratings 1 .. 9; choose one inside"
            )
        for name, choice, (one, other) in (
            ("gsr_unit", self.gsr_unit, ("ohm", "siemens")),
            ("normalise", self.normalise, ("window", "none")),
        ):
            if choice not in (one, other):
                raise ValueError(
                    f"{name}: {choice!r} is neither '{one}' nor '{other}'; name one of them"
                )

    def label(self, rating: float) -> int:
        """Return 1 for a high rating, else 0."""
        return int(rating > self.threshold or (self.inclusive and rating == self.threshold))


class PhysioWindows:
    """The windows of recordings, in their order.

    An item is (channels + 1, samples) float32: EEG, then skin conductance. Windows of a trial share
    its labels; none reaches into the next trial.

    Attributes:
        subjects: (N,) person of each window.
        trials: (N,) trial of each window, unique within its person.
        valence, arousal: (N,) int64 classes.

    Raises:
        DataError: No trial; one shorter than a window, of other channels, or a resistance that has
            no conductance.
        ValueError: Two trials of a person have the same name.
    """

    def __init__(self, recordings: Recordings, settings: Windowing = Windowing()) -> None:
        self.recordings, self.settings = recordings, settings
        self.length = int(settings.window_s * RATE_HZ)
        stride = int(settings.stride_s * RATE_HZ)
        self._starts: list[tuple[Trial, int]] = []  # trial, first sample
        if not recordings.trials:
            raise DataError("recordings", "no trials: none is left to cut; check the dataset")
        for trial in recordings.trials:
            self._check(trial)
            # What is left behind the last whole window is not used.
            starts = range(0, len(trial.gsr) - self.length + 1, stride)
            self._starts += [(trial, start) for start in starts]
        if len({(t.subject, t.trial) for t in recordings.trials}) != len(recordings.trials):
            raise ValueError(
                "recordings: two trials of a person have the same name; name each once"
            )
        owners = [trial for trial, _ in self._starts]
        self.subjects = np.array([trial.subject for trial in owners])
        self.trials = np.array([trial.trial for trial in owners])
        self.valence = np.array([settings.label(trial.valence) for trial in owners], np.int64)
        self.arousal = np.array([settings.label(trial.arousal) for trial in owners], np.int64)

    def _check(self, trial: Trial) -> None:
        fault = partial(DataError, f"subject {trial.subject}", record=f"trial {trial.trial}")
        n = trial.eeg.shape[1]
        if trial.eeg.shape != (len(self.recordings.channels), n) or trial.gsr.shape != (n,):
            raise fault(
                f"wrong shape: EEG {trial.eeg.shape} and skin conductance {trial.gsr.shape} do not agree"
            )
        if n < self.length:
            raise fault(
                f"short trial: {n} < {self.length} samples, no window; choose a shorter window"
            )
        if self.settings.gsr_unit == "siemens" and not (trial.gsr > 0).all():
            raise fault(
                f"no conductance: resistance {trial.gsr.min()} ohm is not above 0; use gsr_unit='ohm'"
            )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Float32:
        trial, start = self._starts[index]
        part = slice(start, start + self.length)
        gsr = trial.gsr[None, part].astype(np.float64)
        if self.settings.gsr_unit == "siemens":
            gsr = 1 / gsr
        return self._scaled(np.concatenate([trial.eeg[:, part], gsr]))

    def _scaled(self, signals: Float64) -> Float32:
        """Scale each row to mean 0 and variance 1.

        A row that never changes has no variance and becomes exact zeros.

        The rows are float64 because a resistance of 1e6 ohm changes in its last float32 digits.
        """
        if self.settings.normalise == "none":
            return signals.astype(np.float32)
        flat = np.ptp(signals, axis=1) == 0
        centred = signals - signals.mean(axis=1, keepdims=True)
        # The mean of equal numbers is not always that number, so a flat row is not zero by itself.
        centred[flat] = 0
        spread = np.where(flat, 1.0, centred.std(axis=1))
        return (centred / spread[:, None]).astype(np.float32)


def channel_rows(channels: Sequence[str]) -> list[int]:
    """Return the positions of channels in `EEG_32`, by name.

    Raises:
        ValueError: None asked for, one twice, or one that there is not.
    """
    unknown = [name for name in channels if name not in EEG_32]
    if unknown or not channels or len(set(channels)) != len(channels):
        raise ValueError(
            f"channels: {', '.join(unknown) or list(channels)}: ask for different ones of {', '.join(EEG_32)}"
        )
    return [EEG_32.index(name) for name in channels]
