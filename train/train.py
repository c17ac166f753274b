"""The train stage: recipe and data in, teacher and student out, each skipped when its file is
already there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from knarr.ranks import rank
from knarr.train.clips import Batch, Clips, Indices, evaluation_batches, split_validation
from knarr.train.datasets.arrays import AnyArray
from knarr.train.fitting.files import load_weights, save_weights
from knarr.train.fitting.fit import Fitter, Loss, fit
from knarr.train.settings import STUDENT, TEACHER, Recipe, SettingsError
from knarr.train.systems.base import RunData
from knarr.train.systems.registry import system_of

STUDENT_SEED = 1_000_000
"""Added to the run's seed for the student's fit, so that its batches and its dropout are not the
teacher's.
"""
Logits = Callable[[nn.Module, Batch], Tensor]


def train_teacher(
    recipe: Recipe, data: RunData, run_folder: Path, callbacks: tuple[Callback, ...] = ()
) -> nn.Module:
    """Return the run's teacher: loaded where it is finished, resumed or begun otherwise.

    Args:
        recipe: Recipe of the run.
        data: Data of the run.
        run_folder: Folder with the run's files.
        callbacks: More Lightning callbacks, such as a progress bar.

    Raises:
        RecipeError: What `fit` raises, or a file that holds another network.
    """
    # Weights are drawn when a network is built.
    torch.manual_seed(recipe.seed)
    system = system_of(recipe)
    teacher = system.teacher(data)
    path = run_folder / TEACHER
    if path.is_file():
        load_weights(teacher, path)
        return teacher
    if recipe.fit_of("teacher") is not None:
        _fit(teacher, system.teacher_loss(), recipe, data, run_folder, "teacher", callbacks)
    if rank() == 0:
        save_weights(teacher, path)
    return teacher


def train_student(
    recipe: Recipe,
    data: RunData,
    teacher: nn.Module,
    run_folder: Path,
    callbacks: tuple[Callback, ...] = (),
) -> nn.Module:
    """Return the run's student in its saved form, distilled from the teacher: loaded where it is
    finished, else resumed or begun.

    Args:
        recipe: Recipe of the run.
        data: Data of the run.
        teacher: Finished teacher; frozen and put in eval mode.
        run_folder: Folder with the run's files.
        callbacks: More Lightning callbacks, such as a progress bar.

    Raises:
        RecipeError: What `fit` raises, or a file that holds another network.
    """
    system, path = system_of(recipe), run_folder / STUDENT
    if path.is_file():
        saved = system.new_saved_form(data)
        load_weights(saved, path)
        return saved
    torch.manual_seed(recipe.seed + 1)
    student = system.student(data)
    teacher.eval().requires_grad_(False)
    loss = system.student_loss(teacher)
    if recipe.fit_of("student") is not None:
        _fit(student, loss, recipe, data, run_folder, "student", callbacks, teacher)
    teacher.cpu()
    saved = system.saved_form(student).eval()
    if rank() == 0:
        save_weights(saved, path)
    return saved


def train_validation_split(recipe: Recipe, data: RunData) -> tuple[Indices, Indices]:
    """Return the training clips that a run fits, and those that it validates on.

    Raises:
        SettingsError: None is left to fit.
    """
    if data.validation is None:
        return split_validation(data.groups, recipe.data.validation_fraction, recipe.seed)
    train = np.setdiff1d(np.arange(len(data.train.labels)), data.validation)
    if not len(train):
        raise SettingsError(
            "data: all training clips are validated on, none is left to fit; check the folds"
        )
    return train, data.validation


def _fit(
    network: nn.Module,
    loss: Loss,
    recipe: Recipe,
    data: RunData,
    run_folder: Path,
    network_name: str,
    callbacks: tuple[Callback, ...],
    teacher: nn.Module | None = None,
) -> None:
    torch.set_num_threads(recipe.threads)
    settings = recipe.fit_of(network_name)
    assert settings is not None, "a network without a fit is not fitted"
    validation_clips: Clips = data.train
    if settings.select == "best_on_test":
        # The published code that this repeats sets nobody aside: all are fitted on, and the test
        # set chooses the epoch.
        train, validation = np.arange(len(data.train.labels)), np.arange(len(data.test.labels))
        validation_clips = data.test
    else:
        train, validation = train_validation_split(recipe, data)
    module_class: Callable[..., Fitter] = Fitter
    if teacher is not None:
        train, module_class = system_of(recipe).student_fitter(teacher, data, train, run_folder)
    fit(
        network,
        loss,
        data.train,
        train,
        validation,
        settings,
        validation_clips=validation_clips,
        network_name=network_name,
        classes=data.classes,
        seed=recipe.seed + (0 if network_name == "teacher" else STUDENT_SEED),
        run_folder=run_folder,
        module_class=module_class,
        callbacks=callbacks,
    )


def teacher_predictions(recipe: Recipe, teacher: nn.Module, clips: Clips) -> AnyArray:
    """Return what the teacher sees in each clip: (N,) classes, or (N, k) float targets."""
    return _predicted(system_of(recipe).teacher_logits, teacher, clips)


def student_predictions(
    recipe: Recipe, student: nn.Module, clips: Clips, chosen: Indices | None = None
) -> AnyArray:
    """Return what the student, in its saved form, sees in each clip, or in each of the chosen ones:
    (N,) classes, or (N, k) float targets.
    """
    return _predicted(system_of(recipe).student_logits, student, clips, chosen)


def _predicted(
    logits: Logits, network: nn.Module, clips: Clips, chosen: Indices | None = None
) -> AnyArray:
    network.eval()
    seen = []
    with torch.no_grad():
        for batch in evaluation_batches(clips, chosen):
            found = logits(network, batch)
            seen.append(found if batch.labels.is_floating_point() else found.argmax(dim=1))
    return torch.cat(seen).numpy()
