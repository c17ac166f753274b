"""Fine-tuning of a recipe's student in the chip's arithmetic: the validated integers are those that
the file holds and the chip runs.

The student starts as lowering left it, weights not yet rounded, and keeps its teacher and its loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from knarr.hw_sim import ChipNetwork
from knarr.train.chip_fit import ChipFit, fit_lowered
from knarr.train.clips import truncate_timesteps
from knarr.train.datasets.arrays import Float64
from knarr.train.settings import Recipe
from knarr.train.systems.base import RunData
from knarr.train.systems.registry import system_of
from knarr.train.train import train_validation_split

FIT_SEED: Final = 2_000_000
"""It keeps the batches and dropout of this fit apart from those of teacher and student."""


def train_chip(
    recipe: Recipe,
    data: RunData,
    teacher: nn.Module,
    start: ChipNetwork,
    run_folder: Path,
    *,
    unrounded: Mapping[str, Float64] | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> ChipFit:
    """Fit a lowered network further; a killed fit goes on after its last epoch, a finished one is
    not fitted again.

    Args:
        recipe: settings of the run; `recipe.chip` is set.
        data: data of the run.
        run_folder: folder of the run.
        teacher: the finished teacher.
        start: the student as it was lowered, with `recipe.chip.weight_bits`.
        unrounded: its weights before they were rounded, by layer
            (`knarr.deploy.unrounded_weights`).
        callbacks: more Lightning callbacks.

    Raises:
        RecipeError: settings that this system's chip students do not take, or a goal that none can
            meet.
        ChipError: integers that no chip holds.
    """
    chip = recipe.chip
    assert chip is not None, "a recipe without chip has nothing to fit here"
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed + 2)
    loss = system_of(recipe).chip_loss(teacher.eval().requires_grad_(False))
    train, validation = train_validation_split(recipe, data)
    found = fit_lowered(
        start,
        loss,
        truncate_timesteps(recipe, data.train),
        train,
        validation,
        chip,
        chip.fit(recipe.fit_of("student")),
        classes=data.classes,
        seed=recipe.seed + FIT_SEED,
        run_folder=run_folder,
        unrounded=unrounded,
        callbacks=callbacks,
    )
    teacher.cpu()
    return found
