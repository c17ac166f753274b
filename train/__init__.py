"""Data, teachers, spiking students and the distillation that joins them."""

from knarr.train.chip_fit import ChipFit, train_chip
from knarr.train.data_error import DataError
from knarr.train.eyes import generate
from knarr.train.recipe import load_recipe, shipped_recipes
from knarr.train.run import (
    open_run,
    read_run,
    student_predictions,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.settings import Recipe, RecipeError
from knarr.train.student import fold_batch_norm, run_student
from knarr.train.systems.base import RunData
from knarr.train.systems.registry import load_data, system_of

__all__ = [
    "ChipFit",
    "DataError",
    "Recipe",
    "RecipeError",
    "RunData",
    "fold_batch_norm",
    "generate",
    "load_data",
    "load_recipe",
    "open_run",
    "read_run",
    "run_student",
    "shipped_recipes",
    "student_predictions",
    "system_of",
    "teacher_predictions",
    "train_chip",
    "train_student",
    "train_teacher",
]
