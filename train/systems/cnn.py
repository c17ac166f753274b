"""The small demonstration: digits or generated eyes, an ANN teacher on frames, a spiking CNN on
events.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import norse.torch as snn
import numpy as np
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, EventClips, EyeClips
from knarr.train.datasets.events.nmnist import CLASSES, Jitter, read_nmnist
from knarr.train.datasets.see.sequences import assert_disjoint, read_sequences
from knarr.train.errors import DataError
from knarr.train.losses.terms import distillation_loss
from knarr.train.networks.chip_form import plain
from knarr.train.networks.cnn import Teacher, build_student, run_student
from knarr.train.settings import (
    Count,
    DataSettings,
    Fitted,
    Positive,
    ProperFraction,
    Recipe,
    RecipeError,
    Seed,
    Share,
    shift_within,
)
from knarr.train.systems.base import Progress, RunData, Scored, System
from knarr.train.systems.generated_eyes import GeneratedEyes

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
    scale: ProperFraction = 0
    shift_px: float = Field(default=0, ge=0, le=SENSOR_PX)

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return self.bin_us * 1e-6


class CnnEyesData(GeneratedEyes, DataSettings):
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
    shift_px: NonNegativeInt = 0

    @model_validator(mode="after")
    def _within(self) -> CnnEyesData:
        shift_within(self.shift_px, self.size)
        return self

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return 1.0 / self.frames_per_s

    @property
    def frames(self) -> int:
        """Frames of a clip, each of which is a time step."""
        return self.timesteps


class CnnTeacherRecipe(Fitted):
    """Settings of `networks.cnn.Teacher`.

    Args:
        width: Channels of its first convolution.
        dropout: Share that is dropped before the logits.
        label_smoothing: Share of a label that is spread over all classes.
    """

    width: Count
    dropout: ProperFraction = 0.3
    label_smoothing: ProperFraction = 0.05


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
    first_padding: NonNegativeInt = 0
    tau_mem_s: Positive
    tau_readout_s: Positive
    logit_scale: Positive = 8.0
    kd_alpha: Share = 0.5
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
        _, channels, height, width = frames.shape
        settings = self.recipe.teacher
        return Teacher(
            (channels, height, width), len(data.class_names), settings.width, settings.dropout
        )

    def student(self, data: RunData) -> nn.Module:
        """Return a new spiking CNN with batch-norms."""
        return self._student(data, batch_norm=True)

    def student_output(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of a student with or without its batch-norms, (B, classes)."""
        outputs, _ = run_student(student, batch.inputs)
        return self._logits(outputs)

    def chip_output(self, output: ChipStudentOutput) -> Tensor:
        """Return the logits of a chip student's readout, (B, classes)."""
        return self._logits(output.step_logits)

    def _logits(self, volts: Tensor) -> Tensor:
        """Return logits (B, classes) of the readout's voltages (B, T, classes)."""
        # The mean over time, so that clips of more steps are not more certain; the scale makes up
        # for small voltages.
        return self.recipe.student.logit_scale * volts.mean(dim=1)

    def distil(self, output: Tensor, teacher: nn.Module, batch: Batch) -> Scored:
        """Return the distillation loss of logits, and the logits."""
        settings = self.recipe.student
        value = distillation_loss(
            output,
            self.teacher_logits(teacher, batch),
            batch.labels,
            alpha=settings.kd_alpha,
            temperature=settings.kd_temperature,
        )
        return value, output

    def saved_form(self, student: nn.Module) -> nn.Module:
        """Return the student with its batch-norms folded into its convolutions."""
        return plain(student)

    def new_saved_form(self, data: RunData) -> nn.Module:
        """Return a new student without batch-norms."""
        return self._student(data, batch_norm=False)

    def deployable(self, student: nn.Module) -> snn.SequentialState:
        """Return the saved student itself."""
        return student

    def _student(self, data: RunData, *, batch_norm: bool) -> nn.Module:
        """Return a new student for these data.

        Raises:
            RecipeError: Inputs that are not images.
        """
        settings = self.recipe.student
        features = data.train.chip_inputs(np.arange(1)).shape[2:]
        if len(features) != 3:
            raise RecipeError(
                f"student: needs images (channels, height, width), the data have {features}"
            )
        return build_student(
            features,
            len(data.class_names),
            settings.channels,
            settings.first_padding,
            self.recipe.data.dt_s,
            settings.tau_mem_s,
            settings.tau_readout_s,
            batch_norm=batch_norm,
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
        read_sequences(root, subset=subset, size=settings.size, timesteps=settings.timesteps)
        for subset in ("training", "testing")
    )
    # The index says which people test; a damaged one could name somebody on both sides.
    assert_disjoint(training, testing)
    train, test = (
        EyeClips(*side.stacked(), side.labels, settings.teacher_bins, settings.shift_px)
        for side in (training, testing)
    )
    # Validation parts people too: eyes of one person are alike.
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
