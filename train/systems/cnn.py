"""The small demonstration: digits or generated eyes, an ANN teacher on frames, a spiking CNN on
events.
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
from knarr.train.datasets.see.sequences import assert_disjoint, read_sequences
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
    """Event recordings of digits on a sensor of 34 x 34 pixels.

    Args:
        timesteps: Time bins of a clip.
        bin_us: Length of a bin in microseconds.
        teacher_bins: Coarse bins that the teacher sees.
        rotation_deg: Largest angle by which training clips are turned.
        scale: Largest share by which they grow or shrink.
        shift_px: Largest distance by which they are moved.
    """

    kind: Literal["nmnist"]
    timesteps: Count
    bin_us: Count
    teacher_bins: Count = 3
    rotation_deg: float = Field(default=0, ge=0, le=180)
    scale: float = Field(default=0, ge=0, lt=1)
    shift_px: float = Field(default=0, ge=0, le=SENSOR_PX)

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return self.bin_us * 1e-6


class CnnEyesData(DataSettings):
    """Generated single-eye clips on the SEE layout; `train` and `test` people differ.

    Args:
        timesteps: Frames of a clip, each a time step.
        size: Height and width of the images in pixels.
        frames_per_s: Rate of the frames.
        subjects: Number of people.
        takes_per_emotion: Clips of each person and emotion.
        seed: Seed of the people. The recipe's own seed leaves them as they are.
        teacher_bins: Intensity frames, and coarse bins of events, that the teacher sees.
        shift_px: Largest distance by which training clips are moved.
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
        """Length of a student's time step in seconds."""
        return 1.0 / self.frames_per_s

    @property
    def generated_folder(self) -> str:
        """Name of the folder of these data."""
        people = f"{self.subjects}p-{self.takes_per_emotion}t-{self.seed}"
        return f"eyes-{self.size}px-{self.timesteps}f-{people}"

    def generate(self, root: Path, progress: Progress | None = None) -> None:
        """Write the clips; see `knarr.train.datasets.eyes.generate`."""
        generate(
            root,
            subjects=self.subjects,
            takes_per_emotion=self.takes_per_emotion,
            frames=self.timesteps,
            size=self.size,
            seed=self.seed,
            progress=progress,
        )


class CnnTeacherRecipe(Fitted):
    """Settings of `networks.cnn.Teacher`.

    Args:
        width: Channels of its first convolution.
        dropout: Share that is dropped before the logits.
        label_smoothing: Share of a label that is spread over all classes.
    """

    width: Count
    dropout: float = Field(default=0.3, ge=0, lt=1)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)


class CnnStudentRecipe(Fitted):
    """Settings of the spiking CNN of `networks.cnn.build_student`.

    Args:
        channels: Channels of its two convolutions.
        first_padding: Padding of the first one in pixels.
        tau_mem_s: Membrane time constant.
        tau_readout_s: Time constant of the readout.
        logit_scale: Logits per volt of the readout.
        kd_alpha: Share of the teacher in the loss; 0 trains on labels alone.
        kd_temperature: Temperature of the teacher's term.
    """

    channels: tuple[Count, Count]
    first_padding: int = Field(default=0, ge=0)
    tau_mem_s: Positive
    tau_readout_s: Positive
    logit_scale: Positive = 8.0
    kd_alpha: float = Field(default=0.5, ge=0, le=1)
    kd_temperature: Positive = 3.0


class CnnRecipe(Recipe):
    """Recipe of the demonstration; recipes that name no system are of this one."""

    system: Literal["cnn"] = "cnn"
    data: Annotated[NmnistData | CnnEyesData, Field(discriminator="kind")]
    teacher: CnnTeacherRecipe
    student: CnnStudentRecipe


class Cnn(System[CnnRecipe]):
    """The demonstration, with a recipe's settings."""

    recipe_class = CnnRecipe

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        """Read both splits; see `System.load`. Reading takes no time, so nothing is cached or
        reported.
        """
        settings = self.recipe.data
        if isinstance(settings, NmnistData):
            return _digits(settings, root)
        return _eyes(settings, root)

    def teacher(self, data: RunData) -> nn.Module:
        """Return a new ANN for frames of the data's shape."""
        frames = data.train.batch(np.arange(1), None).teacher_inputs[0]
        shape = (frames.shape[1], frames.shape[2], frames.shape[3])
        settings = self.recipe.teacher
        return Teacher(shape, len(data.class_names), settings.width, settings.dropout)

    def teacher_loss(self) -> Loss:
        """Return a smoothed cross entropy."""
        smoothing = self.recipe.teacher.label_smoothing

        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.teacher_logits(network, batch)
            return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing), logits

        return loss

    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the ANN's logits, (B, classes)."""
        logits: torch.Tensor = teacher(*batch.teacher_inputs)
        return logits

    def student(self, data: RunData) -> nn.Module:
        """Return a new spiking CNN with batch-norms."""
        return build_student(self._shape(data), batch_norm=True)

    def student_loss(self, teacher: nn.Module) -> Loss:
        """Return the distillation loss."""

        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._distil(self.student_logits(network, batch), teacher, batch)

        return loss

    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        """Return the distillation loss for a chip student's readout."""

        def loss(output: ChipStudentOutput, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._distil(self._logits(output.step_logits), teacher, batch)

        return loss

    def student_logits(self, student: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of a student with or without its batch-norms, (B, classes)."""
        outputs, _ = run_student(cast(snn.SequentialState, student), batch.inputs)
        return self._logits(outputs)

    def _logits(self, volts: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes) of the readout's voltages (B, T, classes)."""
        # The mean over time, so that clips of more steps are not more certain; the scale makes up
        # for small voltages.
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

    def saved_form(self, student: nn.Module) -> nn.Module:
        """Return the student with its batch-norms folded into its convolutions."""
        return plain(cast(snn.SequentialState, student))

    def new_saved_form(self, data: RunData) -> nn.Module:
        """Return a new student without batch-norms."""
        return build_student(self._shape(data), batch_norm=False)

    def deployable(self, student: nn.Module) -> snn.SequentialState:
        """Return the saved student itself."""
        return cast(snn.SequentialState, student)

    def _shape(self, data: RunData) -> StudentShape:
        """Return what decides the student's layers on these data.

        Raises:
            RecipeError: Inputs that are not images.
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
    return RunData(
        train,
        test,
        groups=np.arange(len(train.labels)),  # who wrote a digit is not known: each is a group
        class_names=tuple(str(digit) for digit in range(CLASSES)),
        name="N-MNIST",
        names=test.recordings.names,
        protocol="the lists train1K and test100",
    )


def _eyes(settings: CnnEyesData, root: Path) -> RunData:
    training, testing = (
        read_sequences(
            root, subset=subset, size=settings.size, timesteps=settings.timesteps
        ).clips()
        for subset in ("training", "testing")
    )
    assert_disjoint(training, testing)
    train, test = (
        EyeClips(clips, settings.teacher_bins, settings.shift_px) for clips in (training, testing)
    )
    return RunData(
        train,
        test,
        groups=np.array(training.subjects),
        class_names=testing.label_names,
        name="generated eyes",
        subjects=testing.subjects,
        lights=testing.lights,
        names=testing.names,
        protocol="people apart",
    )
