"""Recipes: every setting of a run in one checked, frozen object, read from YAML."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

MAX_RECIPE_BYTES = 100_000
MAX_PROCESSES = 64  # of one machine
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class RecipeError(ValueError):
    """A recipe is unknown, unreadable, or holds a setting that is not allowed."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NmnistData(_Settings):
    """Event recordings of digits on a 34x34 sensor."""

    kind: Literal["nmnist"]
    timesteps: Count
    bin_us: Count
    teacher_bins: Count = 3
    rotation_deg: float = Field(default=0, ge=0, le=180)
    scale: float = Field(default=0, ge=0, lt=1)
    shift_px: float = Field(default=0, ge=0)
    validation_fraction: float = Field(gt=0, lt=1)

    @property
    def dt_s(self) -> float:
        return self.bin_us * 1e-6


class EyesData(_Settings):
    """Generated single-eye clips on the SEE layout; `train` and `test` people differ."""

    kind: Literal["eyes"]
    timesteps: Count
    size: Count = 48
    frames_per_s: Positive = 30.0
    subjects: int = Field(default=40, ge=4)
    takes_per_emotion: Count = 2
    teacher_bins: Count = 4
    shift_px: int = Field(default=0, ge=0)
    validation_fraction: float = Field(gt=0, lt=1)

    @property
    def dt_s(self) -> float:
        return 1.0 / self.frames_per_s


class Fit(_Settings):
    """AdamW with a one-cycle schedule.

    `batch_size` is of each process: the optimiser sees `processes` times as many clips in a step. Several processes compute with one
    thread each, and draw dropout each for itself.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    weight_decay: float = Field(default=1e-3, ge=0)
    processes: int = Field(default=1, ge=1, le=MAX_PROCESSES)

    @model_serializer(mode="wrap")
    def _without_one_process(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A run's config.yaml is compared word for word; those from before there was this setting go on."""
        settings: dict[str, Any] = serialise(self)
        if self.processes == 1:
            settings.pop("processes", None)
        return settings


class TeacherSettings(_Settings):
    fit: Fit
    width: Count
    dropout: float = Field(default=0.3, ge=0, lt=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)


class StudentSettings(_Settings):
    fit: Fit
    channels: tuple[Count, Count]
    first_padding: int = Field(default=0, ge=0)
    tau_mem_s: Positive
    tau_readout_s: Positive
    logit_scale: Positive = 8.0
    kd_alpha: float = Field(default=0.5, ge=0, le=1)
    kd_temperature: Positive = 3.0


class DeploySettings(_Settings):
    """`calibration_samples` are taken from the training split; 0 chooses scales from the weights alone."""

    weight_bits: int = Field(default=8, ge=2, le=8)
    lava_samples: Count = 20
    calibration_samples: int = Field(default=20, ge=0)
    allow_approximate: bool = False


class Recipe(_Settings):
    """One run from data to energy."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    seed: int = Field(default=0, ge=0)
    threads: Count = 2
    data: Annotated[NmnistData | EyesData, Field(discriminator="kind")]
    teacher: TeacherSettings
    student: StudentSettings
    deploy: DeploySettings = DeploySettings()


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with knarr."""
    folder = resources.files("knarr.train")
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or any YAML file by path.

    Raises:
        RecipeError: unknown name, unreadable file, or a setting that does not fit; names the setting.
    """
    if name_or_path in shipped_recipes():
        return parse_recipe(
            resources.files("knarr.train").joinpath(f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
        )
    path = Path(name_or_path)
    if not path.is_file():
        raise RecipeError(
            f"recipe '{name_or_path}' is neither shipped ({', '.join(shipped_recipes())}) nor a YAML file"
        )
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(f"recipe '{name_or_path}': {path.stat().st_size} bytes, at most {MAX_RECIPE_BYTES}")
    try:
        return parse_recipe(path.read_text("utf-8-sig"), name_or_path)
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe '{name_or_path}' is not UTF-8 text") from error


def parse_recipe(text: str, origin: str) -> Recipe:
    """A recipe from YAML text; `origin` names it in errors."""
    try:
        return Recipe.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe '{origin}' is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"recipe '{origin}': {faults}") from error
