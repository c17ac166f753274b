"""Share one teacher among runs that differ in their students alone: the same settings, seed, data
and threads give the same teacher.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from torch import nn

from knarr.files import write_atomic
from knarr.train.fitting.files import load_weights
from knarr.train.settings import TEACHER, Recipe, RecipeError
from knarr.train.systems.base import RunData
from knarr.train.systems.registry import system_of
from knarr.train.train import train_teacher

TEACHERS = "teachers"


def shared_teacher(
    recipe: Recipe,
    data: RunData,
    run_folder: Path,
    teachers: Path,
    callbacks: tuple[Callback, ...] = (),
) -> nn.Module:
    """Return a run's teacher: that of the first run to finish it, else one that is trained here and
    left for the others.

    Args:
        recipe, data, run_folder, callbacks: See `train_teacher`.
        teachers: Folder of finished teachers, named after all that they depend on.
    """
    shared, own = teachers / f"{_key(recipe, data)}.safetensors", run_folder / TEACHER
    whole = _fits(shared, recipe, data)
    if whole and not own.is_file():
        write_atomic(own, shared.read_bytes())
    # Finds the copy, or goes on with a fit of its own: two runs that begin at once both train one,
    # and get the same.
    teacher = train_teacher(recipe, data, run_folder, callbacks)
    if not whole:
        teachers.mkdir(parents=True, exist_ok=True)
        write_atomic(shared, own.read_bytes())
    return teacher


def _fits(path: Path, recipe: Recipe, data: RunData) -> bool:
    """Return whether a shared file is there and whole; a damaged one would be copied into every
    run, and is replaced.
    """
    if not path.is_file():
        return False
    try:
        load_weights(system_of(recipe).teacher(data), path)
    except RecipeError:
        return False
    return True


def _key(recipe: Recipe, data: RunData) -> str:
    """Return a hash of the data and of all of the recipe that a teacher may depend on."""
    own = system_of(recipe).teacher_settings()
    # The split and the threads are there with the rest: who validates may choose the weights, and
    # sums round by thread.
    others = {"name", "teacher", "student", "deploy", "chip", "folder"}
    plain = recipe.model_dump(mode="json", exclude=others)
    text = json.dumps({**plain, "teacher": own, "data_sha256": data.fingerprint}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
