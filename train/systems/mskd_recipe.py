"""Recipe of MSKD: a hybrid teacher on events and frames, a spiking student on frames, both through windows of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from knarr.train.datasets.see.tree import MAX_SIDE
from knarr.train.datasets.see.windows import FRAMES_PER_S, Sampling, sampling
from knarr.train.losses.mskd import MskdLossSettings
from knarr.train.networks.mskd import MskdStudentSettings
from knarr.train.networks.mskd import MskdTeacherSettings as Network
from knarr.train.settings import DataSettings, Fitted, Frozen, Positive, Recipe, Seed, shift_within

TEACHER_CHANNELS = 3
"""Published code opens the grey images as RGB, and SEEN has weights for each copy."""


class Normalise(Frozen):
    """(x / 255 - mean) / std of what the teacher sees; SEE's published values by default."""

    event_mean: float = 0.504413
    event_std: Positive = 0.06928615
    frame_mean: float = 0.22616537
    frame_std: Positive = 0.118931554


class SequencesData(DataSettings):
    """Sequences in the SEE layout, seen through windows.

    Args:
        sampling: E<frames>-S<skipped>, see `knarr.train.windows`.
        size: height and width of the images in pixels; others are resized.
        split: "official" is the index's; in SEE it parts sequences, and people may be in both. "subject" draws folds of people.
        folds, fold: of "subject": how many, and which one is tested on.
        seed: of the folds, and of generated data. The recipe's own seed leaves both as they are.
        normalise: of the teacher's images.
        pixel_bits: of the student's grey values, the upper ones. The fewer they are, the more of a neuron's accumulator is left for
            weights: 255 times the 49 weights of the first layer can fill it before these have used their own 8 bits.
        shift_px: training clips are moved by up to so many pixels, teacher's and student's alike; published: none.
    """

    sampling: str = "E4-S3"
    size: int = Field(default=90, ge=1, le=MAX_SIDE)
    split: Literal["official", "subject"] = "official"
    folds: int = Field(default=3, ge=2)
    fold: int = Field(default=0, ge=0)
    seed: Seed = 0
    normalise: Normalise = Normalise()
    pixel_bits: int = Field(default=8, ge=1, le=8)
    shift_px: int = Field(default=0, ge=0)

    @field_validator("sampling")
    @classmethod
    def _a_sampling(cls, name: str) -> str:
        sampling(name)
        return name

    @model_validator(mode="after")
    def _within(self) -> SequencesData:
        shift_within(self.shift_px, self.size)
        return self

    @model_validator(mode="after")
    def _one_of_the_folds(self) -> SequencesData:
        if self.split == "official" and self.fold > 0:
            raise ValueError(
                f"fold: {self.fold}, but the official split is one; set split: subject"
            )
        if self.fold >= self.folds:
            raise ValueError(f"fold: {self.fold} of {self.folds}; they count from 0")
        return self

    @property
    def window(self) -> Sampling:
        """How clips are cut."""
        return sampling(self.sampling)

    @property
    def dt_s(self) -> float:
        return (self.window.skipped + 1) / FRAMES_PER_S


class SeeData(SequencesData):
    """SEE, or any tree of its layout.

    Args:
        event_dir, frame_dir, index: names in the folder of the data.
        on_bad: refuse a tree with a bad record, or "skip" and count it.
    """

    kind: Literal["see"]
    event_dir: str = "event"
    frame_dir: str = "frame"
    index: str = "emotion.json"
    on_bad: Literal["raise", "skip"] = "raise"


class MskdEyesData(SequencesData):
    """Generated single-eye sequences in the same layout; people who train and people who test differ.

    Args:
        frames: of each sequence.
        subjects: people. takes_per_emotion: sequences of each person and emotion.
    """

    kind: Literal["eyes"]
    size: int = Field(default=48, ge=8, le=512)
    frames: int = Field(default=24, ge=1, le=500)
    subjects: int = Field(default=40, ge=4, le=999)
    takes_per_emotion: int = Field(default=2, ge=1, le=999)

    @model_validator(mode="after")
    def _long_enough(self) -> MskdEyesData:
        if self.frames < self.window.least_frames:
            raise ValueError(
                f"frames: {self.frames} < {self.window.least_frames} of {self.sampling}; make more"
            )
        return self

    @property
    def generated(self) -> bool:
        return True


class MskdTeacherRecipe(Fitted):
    """The teacher; sizes that the data decide need not be said.

    Args:
        network: which, and its sizes.
        label_smoothing: of its cross entropy; published: none.
    """

    network: Network = Network()
    label_smoothing: float = Field(default=0, ge=0, lt=1)

    @field_serializer("network")
    def _without_derived(self, network: Network) -> dict[str, Any]:
        plain = network.model_dump(mode="json")
        return plain | {"seen": _said(plain["seen"], network.seen, OF_SEEN)}


class MskdStudentRecipe(Fitted):
    """The student and what it learns from; sizes that the data decide need not be said.

    Args:
        network: its layers.
        centred: each kernel of its first layer has a mean of 0, so that a clip's brightness, which says nothing of an emotion, has no
            effect but at the borders. Frames come without their mean subtracted: other kernels answer to brightness most of all, and
            the bias that a batch-norm sets against it leaves no room in the chip's registers for weights of a finer scale.
        loss: weights and readings of the teacher's terms.
    """

    network: MskdStudentSettings = MskdStudentSettings()
    centred: bool = True
    loss: MskdLossSettings = MskdLossSettings()

    @field_serializer("network")
    def _without_derived(self, network: MskdStudentSettings) -> dict[str, Any]:
        return _said(network.model_dump(mode="json"), network, OF_STUDENT)


OF_SEEN = ("side_px", "channels", "steps")
OF_STUDENT = ("side_px", "dt_s")
"""What a recipe's data decide of the networks. Left out where a recipe is written, or another size or sampling could not replace the
one in a recipe without naming these too. Classes are known when data are read, see `Mskd`."""


def _said(plain: dict[str, Any], settings: Frozen, derived: tuple[str, ...]) -> dict[str, Any]:
    unsaid = set(derived) | ({"classes"} - settings.model_fields_set)
    return {name: value for name, value in plain.items() if name not in unsaid}


class MskdRecipe(Recipe):
    """See above."""

    system: Literal["mskd"]
    data: Annotated[SeeData | MskdEyesData, Field(discriminator="kind")]
    teacher: MskdTeacherRecipe
    student: MskdStudentRecipe

    @model_validator(mode="after")
    def _as_the_data(self) -> MskdRecipe:
        data = self.data
        seen, student = self.teacher.network.seen, self.student.network
        of_seen = {"side_px": data.size, "channels": TEACHER_CHANNELS, "steps": data.window.frames}
        of_student = {"side_px": data.size, "dt_s": data.dt_s}
        _agree("teacher.network.seen", seen, of_seen)
        _agree("student.network", student, of_student)
        network = self.teacher.network.model_copy(update={"seen": seen.model_copy(update=of_seen)})
        # Frozen for everybody else: what is derived here is as if it had been said.
        object.__setattr__(self, "teacher", self.teacher.model_copy(update={"network": network}))
        network_of_student = student.model_copy(update=of_student)
        object.__setattr__(
            self, "student", self.student.model_copy(update={"network": network_of_student})
        )
        return self


def _agree(path: str, settings: Frozen, derived: Mapping[str, Any]) -> None:
    """Refuse what a recipe says and its data contradict."""
    for name, value in derived.items():
        said = getattr(settings, name)
        if name in settings.model_fields_set and said != value:
            raise ValueError(f"{path}.{name}: {said}, but the data give {value}; leave it out")
