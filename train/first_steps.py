"""Clips that a chip student hears the beginning of: fewer steps cost less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from knarr.train.clips import Batch, Clips, Indices
from knarr.train.settings import Recipe, SettingsError


@dataclass(frozen=True, eq=False)
class FirstSteps:
    """The first `timesteps` of every clip of a split; the teacher is shown all of it."""

    clips: Clips
    timesteps: int

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.clips.labels

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        batch = self.clips.batch(indices, rng)
        return batch._replace(inputs=batch.inputs[:, : self.timesteps])

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        return self.clips.chip_inputs(indices)[:, : self.timesteps]


def on_chip(recipe: Recipe, clips: Clips) -> Clips:
    """A split as the chip runs it.

    Raises:
        SettingsError: `chip.timesteps` that the clips do not have.
    """
    steps = None if recipe.chip is None else recipe.chip.timesteps
    if steps is None:
        return clips
    found = clips.chip_inputs(np.arange(1)).shape[1]
    if steps > found:
        raise SettingsError(
            f"chip.timesteps: {steps}, clips have {found}; take at most so many, or leave it out"
        )
    return FirstSteps(clips, steps)
