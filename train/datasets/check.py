"""Check what a dataset's folder holds; CHECKS is the one list of the datasets that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from knarr.train.datasets.events import nmnist
from knarr.train.datasets.files import DataReport
from knarr.train.datasets.mosi import read as mosi
from knarr.train.datasets.physio import deap, mahnob
from knarr.train.datasets.see import sequences as see
from knarr.train.datasets.stress import read as stress_predict

CHECKS: dict[str, Callable[[Path], DataReport]] = {
    "deap": deap.check,
    "mahnob": mahnob.check,
    "mosi": mosi.check,
    "nmnist": nmnist.check,
    "see": see.check,
    "stress_predict": stress_predict.check,
}
"""Each dataset's check, which says what can be used of a folder and what is wrong with the rest."""


def check_dataset(name: str, root: Path) -> DataReport:
    """Check one dataset.

    Args:
        name: one of CHECKS, in either case; a space or a hyphen may stand for the underscore.
        root: its folder.

    Raises:
        DataError: a folder that cannot be used as a whole.
        KeyError: no such dataset.
    """
    return CHECKS[re.sub("[- ]", "_", name.lower())](root)
