"""Check what a folder holds, for every dataset by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from knarr.train.datasets.events.nmnist import LISTS, read_bs2, read_labels
from knarr.train.datasets.files import DataReport
from knarr.train.datasets.mosi import read as mosi
from knarr.train.datasets.physio import deap, mahnob
from knarr.train.datasets.see.sequences import read_see
from knarr.train.datasets.stress import read as stress_predict
from knarr.train.errors import DataError

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
SUBSETS: tuple[Literal["training", "testing"], ...] = ("training", "testing")
SEE_SIZE = 16


def check_nmnist(root: Path) -> DataReport:
    """Every recording of both lists.

    Raises:
        DataError: no folder, or a list that cannot be used as a whole.
    """
    if not root.is_dir():
        raise DataError(root, "data folder is missing; give the N-MNIST folder")
    splits: dict[str, int] = {}
    skipped: list[str] = []
    for split in SPLITS:
        splits[split] = 0
        for name in read_labels(root / LISTS[split]):
            try:
                read_bs2(root / f"{name}.bs2")
                splits[split] += 1
            except DataError as error:
                skipped.append(str(error))
    return DataReport("nmnist", str(root), sum(splits.values()), splits, 0, tuple(skipped))


def check_see(root: Path) -> DataReport:
    """Every record of both subsets, one image of each.

    Raises:
        DataError: the folder or its index cannot be used as a whole.
    """
    splits: dict[str, int] = {}
    skipped: dict[str, int] = {}
    people: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would warn of is in the report
        for subset in SUBSETS:
            clips = read_see(root, subset=subset, size=SEE_SIZE, timesteps=1, on_bad="skip")
            splits[subset] = len(clips.labels)
            people |= set(clips.subjects)
            for reason, count in clips.skipped.items():  # a bad record is met in both subsets
                skipped[reason] = max(skipped.get(reason, 0), count)
    lines = tuple(
        f"{root}: {reason}" for reason, count in sorted(skipped.items()) for _ in range(count)
    )
    return DataReport("see", str(root), sum(splits.values()), splits, len(people), lines)


CHECKS: dict[str, Callable[[Path], DataReport]] = {
    "deap": deap.check,
    "mahnob": mahnob.check,
    "mosi": mosi.check,
    "nmnist": check_nmnist,
    "see": check_see,
    "stress_predict": stress_predict.check,
}
"""Dataset -> what says how many samples a folder has and what is wrong with the others."""


def check_dataset(name: str, root: Path) -> DataReport:
    """Check one dataset.

    Args:
        name: one of CHECKS.
        root: its folder.

    Raises:
        DataError: a folder that cannot be used as a whole.
        KeyError: no such dataset.
    """
    return CHECKS[re.sub("[- ]", "_", name.lower())](root)
