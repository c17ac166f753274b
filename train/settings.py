"""What all recipes share: checked, frozen settings, how a network is fitted, how a student is deployed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PROCESSES = 64  # of one machine
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class RecipeError(ValueError):
    """A recipe is unknown, unreadable, or holds a setting that is not allowed."""


class Frozen(BaseModel):
    """Settings: checked when made, never changed, no unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fit(Frozen):
    """How a network is fitted.

    Args:
        epochs: at most.
        batch_size: of each process: the optimiser sees `processes` times as many clips in a step.
        learning_rate: the highest one of its schedule.
        weight_decay: decoupled of "adamw"; an L2 gradient of "adam" and "sgd".
        processes: that share every batch. They compute with one thread each, and draw dropout each for itself.
        optimiser: "adamw", "adam" or "sgd". momentum: of "sgd". amsgrad: of the other two.
        schedule: "one_cycle" over all steps (Smith 2018, arXiv 1708.07120), "exponential", times `decay` every epoch, or "constant".
        patience: epochs without a better validation accuracy after which the fit ends; None for none.
        select: whose weights are kept: of the "last" epoch, or of the best one on the "val" data (accuracy, then loss). The
            published code of SEEN keeps the "best_on_test": all training data are fitted on and every epoch is scored on the test
            set. What that reports is no estimate for other data; it is there to be compared with their numbers.
        precision: "full" is float32; "mixed" computes in bfloat16 where the weights allow it on a GPU, and in float32 without one.
        tensorboard: write tensorboard/<stage> beside metrics.csv.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    weight_decay: float = Field(default=1e-3, ge=0)
    processes: int = Field(default=1, ge=1, le=MAX_PROCESSES)
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    amsgrad: bool = False
    schedule: Literal["one_cycle", "exponential", "constant"] = "one_cycle"
    decay: Share = 0.94
    patience: Count | None = None
    select: Literal["last", "val", "best_on_test"] = "last"
    precision: Literal["full", "mixed"] = "full"
    tensorboard: bool = False


class DeploySettings(Frozen):
    """`calibration_samples` are taken from the training split; 0 chooses scales from the weights alone."""

    weight_bits: int = Field(default=8, ge=2, le=8)
    lava_samples: Count = 20
    calibration_samples: int = Field(default=20, ge=0)
    allow_approximate: bool = False


class DataSettings(Frozen):
    """What every kind of data has.

    Args:
        kind: which reader.
        validation_fraction: of the groups (people, videos) that may be trained on.
    """

    kind: str
    validation_fraction: float = Field(gt=0, lt=1)

    @property
    def dt_s(self) -> float:
        """Of a student's time step, seconds."""
        raise NotImplementedError

    @property
    def generated(self) -> bool:
        """knarr makes these data itself."""
        return False


class Fitted(Frozen):
    """A network's settings, as far as every recipe has them."""

    fit: Fit


class Recipe(Frozen):
    """One run from data to energy; each system has a recipe of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    system: str
    seed: int = Field(default=0, ge=0)
    threads: Count = 2
    data: DataSettings
    teacher: Fitted
    student: Fitted
    deploy: DeploySettings = DeploySettings()
