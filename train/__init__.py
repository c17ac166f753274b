"""Data, teachers, spiking students and the distillation that joins them."""

from knarr.train.data import RunData, eyes_root, load_data
from knarr.train.data_error import DataError
from knarr.train.eyes import generate
from knarr.train.recipe import Recipe, RecipeError, load_recipe, shipped_recipes
from knarr.train.run import (
    open_run,
    read_run,
    student_predictions,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.student import fold_batch_norm, run_student

__all__ = [
    "DataError",
    "Recipe",
    "RecipeError",
    "RunData",
    "eyes_root",
    "fold_batch_norm",
    "generate",
    "load_data",
    "load_recipe",
    "open_run",
    "read_run",
    "run_student",
    "shipped_recipes",
    "student_predictions",
    "teacher_predictions",
    "train_student",
    "train_teacher",
]
