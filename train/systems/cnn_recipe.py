"""Recipe of the small demonstration: an ANN on frames teaches a spiking CNN on events."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from knarr.train.settings import Count, DataSettings, Fitted, Positive, Recipe, Seed, shift_within

SENSOR_PX = 34


class NmnistData(DataSettings):
    """Event recordings of digits on a 34x34 sensor."""

    kind: Literal["nmnist"]
    timesteps: Count
    bin_us: Count
    teacher_bins: Count = 3
    rotation_deg: float = Field(default=0, ge=0, le=180)
    scale: float = Field(default=0, ge=0, lt=1)
    shift_px: float = Field(default=0, ge=0, le=SENSOR_PX)

    @property
    def dt_s(self) -> float:
        return self.bin_us * 1e-6


class EyesData(DataSettings):
    """Generated single-eye clips on the SEE layout; `train` and `test` people differ.

    Args:
        seed: of the people. The recipe's own seed leaves them as they are.
    """

    kind: Literal["eyes"]
    timesteps: Count
    size: Count = 48
    frames_per_s: Positive = 30.0
    subjects: int = Field(default=40, ge=4)
    takes_per_emotion: Count = 2
    seed: Seed = 0
    teacher_bins: Count = 4
    shift_px: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _within(self) -> EyesData:
        shift_within(self.shift_px, self.size)
        return self

    @property
    def dt_s(self) -> float:
        return 1.0 / self.frames_per_s

    @property
    def generated(self) -> bool:
        return True


class TeacherSettings(Fitted):
    """The ANN of `knarr.train.teacher`."""

    width: Count
    dropout: float = Field(default=0.3, ge=0, lt=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)


class StudentSettings(Fitted):
    """The spiking CNN of `knarr.train.student`; kd_alpha 0 trains it on labels alone."""

    channels: tuple[Count, Count]
    first_padding: int = Field(default=0, ge=0)
    tau_mem_s: Positive
    tau_readout_s: Positive
    logit_scale: Positive = 8.0
    kd_alpha: float = Field(default=0.5, ge=0, le=1)
    kd_temperature: Positive = 3.0


class CnnRecipe(Recipe):
    """See above; the system of recipes that name none."""

    system: Literal["cnn"] = "cnn"
    data: Annotated[NmnistData | EyesData, Field(discriminator="kind")]
    teacher: TeacherSettings
    student: StudentSettings
