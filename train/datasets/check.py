"""Check what a dataset's folder holds; CHECKS is the one list of the datasets that there are."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from knarr.train.datasets.files import DataReport

CHECKS = {
    "deap": "physio.deap",
    "mahnob": "physio.mahnob",
    "mosi": "mosi.read",
    "nmnist": "events.nmnist",
    "see": "see.sequences",
    "stress_predict": "stress.read",
}
"""Dataset -> the module here whose function `check` says what can be used of a folder and what is
wrong with the rest. Readers need different libraries, so that only the one that is asked is loaded.
"""


def check_dataset(name: str, root: Path) -> DataReport:
    """Check one dataset.

    Args:
        name: one of CHECKS, in either case; a space or a hyphen may stand for the underscore.
        root: its folder.

    Raises:
        DataError: a folder that cannot be used as a whole.
        KeyError: no such dataset.
    """
    reader = import_module(f"knarr.train.datasets.{CHECKS[re.sub('[- ]', '_', name.lower())]}")
    report: DataReport = reader.check(root)
    return report
