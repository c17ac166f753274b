"""Recipe of the small demonstration: an ANN on frames teaches a spiking CNN on events.

The small demonstration: digits or generated eyes, an ANN teacher on frames, a spiking CNN on events.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import norse.torch as snn
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, EventClips, EyeClips
from knarr.train.datasets.events.nmnist import CLASSES, Jitter, read_nmnist
from knarr.train.datasets.eyes.generate import generate
from knarr.train.datasets.see.sequences import assert_disjoint, read_see
from knarr.train.errors import DataError
from knarr.train.fitting.fit import Loss
from knarr.train.losses.terms import distillation_loss
from knarr.train.networks.chip_form import plain
from knarr.train.networks.cnn import (
    StudentShape,
    Teacher,
    build_student,
    run_student,
)
from knarr.train.settings import (
    Count,
    DataSettings,
    Fitted,
    Positive,
    Recipe,
    RecipeError,
    Seed,
    shift_within,
)
from knarr.train.systems.base import ChipLoss, Progress, RunData, System

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


class CnnEyesData(DataSettings):
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
    def _within(self) -> CnnEyesData:
        shift_within(self.shift_px, self.size)
        return self

    @property
    def dt_s(self) -> float:
        return 1.0 / self.frames_per_s

    @property
    def generated(self) -> bool:
        return True


class CnnTeacherRecipe(Fitted):
    """The ANN of `knarr.train.teacher`."""

    width: Count
    dropout: float = Field(default=0.3, ge=0, lt=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)


class CnnStudentRecipe(Fitted):
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
    data: Annotated[NmnistData | CnnEyesData, Field(discriminator="kind")]
    teacher: CnnTeacherRecipe
    student: CnnStudentRecipe


class Cnn(System[CnnRecipe]):
    """See above."""

    recipe_class = CnnRecipe

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        settings = self.recipe.data
        return (
            _digits(settings, root) if isinstance(settings, NmnistData) else _eyes(settings, root)
        )

    def folder_name(self) -> str:
        settings = self.recipe.data
        if isinstance(settings, NmnistData):
            return super().folder_name()
        return (
            f"eyes-{settings.size}px-{settings.timesteps}f-{settings.subjects}p-{settings.takes_per_emotion}t-"
            f"{settings.seed}"
        )

    def generate(self, root: Path, progress: Progress | None = None) -> None:
        settings = self.recipe.data
        if isinstance(settings, NmnistData):
            super().generate(root, progress)
            return
        generate(
            root,
            subjects=settings.subjects,
            takes_per_emotion=settings.takes_per_emotion,
            frames=settings.timesteps,
            size=settings.size,
            seed=settings.seed,
            progress=progress,
        )

    def teacher(self, data: RunData) -> nn.Module:
        frames = data.train.batch(np.arange(1), None).teacher_inputs[0]
        shape = (frames.shape[1], frames.shape[2], frames.shape[3])
        settings = self.recipe.teacher
        return Teacher(shape, len(data.class_names), settings.width, settings.dropout)

    def teacher_loss(self) -> Loss:
        smoothing = self.recipe.teacher.label_smoothing

        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.teacher_logits(network, batch)
            return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing), logits

        return loss

    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = teacher(*batch.teacher_inputs)
        return logits

    def student(self, data: RunData) -> nn.Module:
        return build_student(self.shape(data), batch_norm=True)

    def student_loss(self, teacher: nn.Module) -> Loss:
        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._distil(self.student_logits(network, batch), teacher, batch)

        return loss

    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        def loss(ran: ChipStudentOutput, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._distil(self._scaled(ran.step_logits), teacher, batch)

        return loss

    def student_logits(self, kept: nn.Module, batch: Batch) -> torch.Tensor:
        outputs, _ = run_student(cast(snn.SequentialState, kept), batch.inputs)
        return self._scaled(outputs)

    def _scaled(self, volts: torch.Tensor) -> torch.Tensor:
        """(B, T, classes) -> logits (B, classes)."""
        return self.recipe.student.logit_scale * volts.mean(dim=1)

    def _distil(
        self, logits: torch.Tensor, teacher: nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        settings = self.recipe.student
        value = distillation_loss(
            logits,
            self.teacher_logits(teacher, batch),
            batch.labels,
            alpha=settings.kd_alpha,
            temperature=settings.kd_temperature,
        )
        return value, logits

    def keep(self, student: nn.Module) -> nn.Module:
        return plain(cast(snn.SequentialState, student))

    def kept(self, data: RunData) -> nn.Module:
        return build_student(self.shape(data), batch_norm=False)

    def deployable(self, kept: nn.Module) -> snn.SequentialState:
        return cast(snn.SequentialState, kept)

    def shape(self, data: RunData) -> StudentShape:
        """Layers of the student on these data.

        Raises:
            RecipeError: inputs that are not images.
        """
        settings = self.recipe.student
        features = data.train.chip_inputs(np.arange(1)).shape[2:]
        if len(features) != 3:
            raise RecipeError(
                f"student: needs images (channels, height, width), the data have {features}"
            )
        return StudentShape(
            input_shape=(features[0], features[1], features[2]),
            classes=len(data.class_names),
            channels=settings.channels,
            first_padding=settings.first_padding,
            dt_s=self.recipe.data.dt_s,
            tau_mem_s=settings.tau_mem_s,
            tau_readout_s=settings.tau_readout_s,
        )


def _digits(settings: NmnistData, root: Path) -> RunData:
    jitter = Jitter(settings.rotation_deg, settings.scale, settings.shift_px)
    train, test = (
        EventClips(
            read_nmnist(root, split),
            settings.timesteps,
            settings.bin_us,
            settings.teacher_bins,
            jitter,
        )
        for split in ("train", "test")
    )
    shared = set(train.recordings.names) & set(test.recordings.names)
    if shared:
        raise DataError(
            root,
            f"splits overlap: {len(shared)} recordings are in both lists; remove them from one",
        )
    names = tuple(str(digit) for digit in range(CLASSES))
    return RunData(
        train,
        test,
        np.arange(len(train.labels)),
        names,
        "N-MNIST",
        names=test.recordings.names,
        protocol="the lists train1K and test100",
    )


def _eyes(settings: CnnEyesData, root: Path) -> RunData:
    clips = [
        read_see(root, subset=subset, size=settings.size, timesteps=settings.timesteps)
        for subset in ("training", "testing")
    ]
    assert_disjoint(*clips)
    train, test = (EyeClips(part, settings.teacher_bins, settings.shift_px) for part in clips)
    groups = np.array(clips[0].subjects)
    held = clips[1]
    return RunData(
        train,
        test,
        groups,
        held.label_names,
        "generated eyes",
        subjects=held.subjects,
        lights=held.lights,
        names=held.names,
        protocol="people apart",
    )
