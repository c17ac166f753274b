"""Generated single-eye data: their folder, and how they are made, alike for `cnn` and `mskd`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knarr.train.datasets.eyes.generate import generate
from knarr.train.systems.base import Progress


class GeneratedEyes:
    """Base of data settings that name `subjects`, `takes_per_emotion`, `frames`, `size` and
    `seed`; each system bounds them in its own way.
    """

    # `Any`: a pydantic class would put these fields before its subclass's own, and a written recipe
    # has them in another order.
    @property
    def generated_folder(self: Any) -> str:
        """Name of the folder of these data."""
        people = f"{self.subjects}p-{self.takes_per_emotion}t-{self.seed}"
        return f"eyes-{self.size}px-{self.frames}f-{people}"

    def generate(self: Any, root: Path, progress: Progress | None = None) -> None:
        """Write the clips; see `knarr.train.datasets.eyes.generate`."""
        generate(
            root,
            subjects=self.subjects,
            takes_per_emotion=self.takes_per_emotion,
            frames=self.frames,
            size=self.size,
            seed=self.seed,
            progress=progress,
        )
