"""Data, teachers, spiking students and the distillation that joins them."""

from knarr.train.datasets.eyes.generate import generate
from knarr.train.errors import DataError
from knarr.train.networks.cnn import fold_batch_norm, run_student
from knarr.train.recipe import load_recipe, shipped_recipes
from knarr.train.settings import Recipe, RecipeError
from knarr.train.systems.base import RunData
from knarr.train.systems.registry import load_data, system_of
from knarr.train.train import (
    open_run,
    read_run,
    student_predictions,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.train_chip import ChipFit, train_chip

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
