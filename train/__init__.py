"""Data, teachers, spiking students and the distillation that joins them.

Names are imported when they are first asked for: reading a data set needs no torch.
"""

from typing import TYPE_CHECKING

from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.train.chip_fit import ChipFit
    from knarr.train.datasets.check import CHECKS, check_dataset
    from knarr.train.datasets.events.camera import PUBLISHED_DENSITY, Dvs
    from knarr.train.datasets.events.convert import Binning, convert_recordings
    from knarr.train.datasets.events.recordings import RecordingReader, kind_of_recording
    from knarr.train.datasets.events.video import events_of_video, is_video
    from knarr.train.datasets.eyes.generate import generate
    from knarr.train.datasets.files import DataReport
    from knarr.train.datasets.mosi.generate import generate_clips
    from knarr.train.errors import DataError
    from knarr.train.fine_tuning import finetune
    from knarr.train.fitting.weights import load_user_weights
    from knarr.train.networks.cnn import run_student
    from knarr.train.recipe import load_recipe, shipped_recipes
    from knarr.train.settings import STUDENT, TEACHER, ChipSettings, Recipe, RecipeError
    from knarr.train.systems.base import RunData, System
    from knarr.train.systems.registry import load_data, system_of
    from knarr.train.train import (
        student_predictions,
        teacher_predictions,
        train_student,
        train_teacher,
    )
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "CHECKS",
    "PUBLISHED_DENSITY",
    "STUDENT",
    "TEACHER",
    "Binning",
    "ChipFit",
    "ChipSettings",
    "DataError",
    "DataReport",
    "Dvs",
    "Recipe",
    "RecipeError",
    "RecordingReader",
    "RunData",
    "System",
    "check_dataset",
    "convert_recordings",
    "events_of_video",
    "finetune",
    "generate",
    "generate_clips",
    "is_video",
    "kind_of_recording",
    "load_data",
    "load_recipe",
    "load_user_weights",
    "run_student",
    "shipped_recipes",
    "student_predictions",
    "system_of",
    "teacher_predictions",
    "train_student",
    "train_teacher",
]
