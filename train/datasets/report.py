"""What a check of a dataset on disk found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DataReport:
    """How many samples of a dataset can be used, and why each of the others cannot.

    Attributes:
        name: The dataset, such as "deap".
        root: The folder that was checked.
        samples: Number of usable samples. A sample is what carries one label of its own: a sequence, a trial, a
            session; not the windows it is cut into later.
        splits: Usable samples of each split, by its name.
        subjects: Number of people (or videos, where a person is a video) with at least one usable sample.
        skipped: One line for each sample left out: the file, the record and the reason.
        missing: What should be there and is not: files, folders, numbers of records.
    """

    name: str
    root: str
    samples: int
    splits: Mapping[str, int]
    subjects: int
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was left out and nothing is missing."""
        return not self.skipped and not self.missing

    def to_json(self) -> dict[str, object]:
        """Plain values that `json.dump` takes, with the key "complete" beside the attributes."""
        return {
            "name": self.name,
            "root": self.root,
            "samples": self.samples,
            "splits": dict(self.splits),
            "subjects": self.subjects,
            "skipped": list(self.skipped),
            "missing": list(self.missing),
            "complete": self.complete,
        }
