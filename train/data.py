"""A recipe's data: both splits, read strictly, with the groups that no validation split may divide."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from knarr.train.clips import Clips, EventClips, EyeClips
from knarr.train.data_error import DataError
from knarr.train.events import Jitter
from knarr.train.nmnist import CLASSES, read_nmnist
from knarr.train.recipe import EyesData, NmnistData, Recipe
from knarr.train.see import assert_disjoint, read_see


@dataclass(frozen=True, eq=False)
class RunData:
    """Both splits of a recipe's data. `test` is never trained or tuned on.

    Args:
        train, test: the splits.
        groups: (N,) of the training clips: a group never lies on both sides of the validation split.
        class_names: one per class.
    """

    train: Clips
    test: Clips
    groups: npt.NDArray[np.generic]
    class_names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over labels and student inputs of a few clips of each split: tells one data set from another."""
        digest = hashlib.sha256()
        for clips in (self.train, self.test):
            digest.update(clips.labels.tobytes())
            digest.update(
                np.packbits(
                    clips.spikes(np.arange(len(clips.labels))[:: max(1, len(clips.labels) // 8)])
                ).tobytes()
            )
        return digest.hexdigest()


def load_data(recipe: Recipe, root: Path) -> RunData:
    """Read a recipe's data.

    Args:
        recipe: says which reader and which time bins.
        root: folder with the data; for eyes, the SEE tree that `generate` wrote.

    Raises:
        DataError: anything missing or malformed.
    """
    settings = recipe.data
    if isinstance(settings, NmnistData):
        jitter = Jitter(settings.rotation_deg, settings.scale, settings.shift_px)
        train, test = (
            EventClips(
                read_nmnist(root, split), settings.timesteps, settings.bin_us, settings.teacher_bins, jitter
            )
            for split in ("train", "test")
        )
        shared = set(train.recordings.names) & set(test.recordings.names)
        if shared:
            raise DataError(
                root, f"splits overlap: {len(shared)} recordings are in both lists; remove them from one"
            )
        names = tuple(str(digit) for digit in range(CLASSES))
        return RunData(train, test, np.arange(len(train.labels)), names)
    clips = [
        read_see(root, subset=subset, size=settings.size, timesteps=settings.timesteps)
        for subset in ("training", "testing")
    ]
    assert_disjoint(*clips)
    splits = [EyeClips(part, settings.teacher_bins, settings.shift_px) for part in clips]
    return RunData(splits[0], splits[1], np.array(clips[0].subjects), clips[0].label_names)


def eyes_root(settings: EyesData, cache: Path, seed: int) -> Path:
    """Where the generated eyes of these settings lie under a cache folder."""
    return (
        cache
        / f"eyes-{settings.size}px-{settings.timesteps}f-{settings.subjects}p-{settings.takes_per_emotion}t-{seed}"
    )
