"""A network on a test set, seen through random windows: the published protocol of SEE, for the whole, per lighting, per person.

Each pass shows every clip once, through a fresh window; there are 20, and every rate is the mean of the passes' rates, as in SEEN's
paper and code (Zhang et al. 2023, arXiv 2310.04043). The standard deviation over passes is kept beside it (`spread`), and the
interval is drawn over people (`knarr.train.measures`). Which clips, frames and people there are is all that is needed here, so any
data set that can name them will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from knarr.train.measures import Measures, measure
from knarr.train.see import SeeClips
from knarr.train.windows import WINDOWS, Indices, Sampling, evaluation_windows

BATCH = 50

Predict = Callable[[Indices, Indices], npt.NDArray[np.int64]]
"""(clips (B,), frames (B, x)) -> (B,) classes: of clip clips[i], seen through its frames frames[i] in this order."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What has to be known of the clips of a test set.

    Args:
        classes: names of the classes.
        labels: (N,) int64 classes.
        lengths: (N,) frames of each clip.
        subjects: (N,) whose each clip is.
        lights: (N,) lighting of each clip; None where there is none to tell apart.

    Raises:
        ValueError: lengths that differ.
    """

    classes: tuple[str, ...]
    labels: Indices
    lengths: Indices
    subjects: tuple[str, ...]
    lights: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        clips = len(self.labels)
        for name in ("lengths", "subjects", "lights"):
            values = getattr(self, name)
            if values is not None and len(values) != clips:
                raise ValueError(f"{name}: {len(values)} for {clips} clips; give one each")


def held_out(clips: SeeClips) -> HeldOut:
    """SEE clips as `evaluate` takes them: all frames that were read can be drawn."""
    lengths = np.full(len(clips.labels), clips.frames.shape[1], np.int64)
    return HeldOut(clips.label_names, clips.labels, lengths, clips.subjects, clips.lights)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        whole: of all clips; `whole.groups` is `by_light`.
        by_light: of the clips under each lighting; empty where lighting is not known.
        by_subject: of each person's clips, without an interval over people.
        predicted: (windows, N) int64, the class seen in each pass.
        sampling: how windows were cut. seed: of their draw.
    """

    whole: Measures
    by_light: Mapping[str, Measures]
    by_subject: Mapping[str, Measures]
    predicted: npt.NDArray[np.int64]
    sampling: Sampling
    seed: int


def evaluate(
    predict: Predict,
    data: HeldOut,
    sampling: Sampling,
    *,
    windows: int = WINDOWS,
    seed: int = 0,
    batch: int = BATCH,
    level: float = 0.95,
    draws: int = 2000,
) -> Evaluation:
    """Measure a network on every clip, `windows` times.

    Args:
        predict: the network. It is called with at most `batch` clips of one pass at a time, clips rising.
        data: the clips.
        sampling: how many frames a window has, and how many are skipped.
        windows: of each clip, at least 1.
        seed: of the windows, and of the bootstrap.
        batch: at least 1.
        level, draws: of the intervals, see `measure`.

    Raises:
        ValueError: a clip that is too short, a setting out of range, or predictions that are not one class for each clip.
    """
    if batch < 1:
        raise ValueError(f"batch: {batch} < 1; predict one clip at a time at least")
    frames = evaluation_windows(data.lengths, sampling, windows=windows, seed=seed)
    predicted = np.empty(frames.shape[:2], np.int64)
    for number, of_pass in enumerate(frames):
        for first in range(0, len(data.labels), batch):
            clips = np.arange(first, min(first + batch, len(data.labels)), dtype=np.int64)
            predicted[number, clips] = _one_each(predict(clips, of_pass[clips]), len(clips))
    whole = measure(
        predicted,
        data.labels,
        data.classes,
        data.lights,
        subjects=data.subjects,
        level=level,
        draws=draws,
        seed=seed,
    )
    own = measure(predicted, data.labels, data.classes, data.subjects, level=level)
    return Evaluation(whole, whole.groups, own.groups, predicted, sampling, seed)


def _one_each(answer: npt.NDArray[np.int64], clips: int) -> npt.NDArray[np.int64]:
    """Refuse scores, and answers that numpy would broadcast."""
    classes = np.asarray(answer)
    if classes.shape != (clips,) or classes.dtype.kind not in "iu":
        raise ValueError(
            f"predict: {classes.dtype} of shape {classes.shape} for {clips} clips; return one whole number each"
        )
    return classes.astype(np.int64)
