"""Windows of Stress-Predict with one label each, and the torch data set of them for teacher and student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from knarr.train.data_error import DataError
from knarr.train.datasets.eda import Signal, standardise
from knarr.train.datasets.stress_predict import EDA_HZ, HR_HZ, Person

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
        raise ValueError(f"normalise: {normalise!r} is none of 'person', 'window', 'none'; name one")
    found: list[tuple[str, int, int, Signal, Signal]] = []
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
            ", ".join(f"{kind} {count}" for kind, count in sorted(dropped.items())) or "recordings too short"
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
