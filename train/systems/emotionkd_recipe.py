"""Recipe of EmotionKD: EEG and skin conductance, or heart rate and skin conductance, teach a student of skin conductance alone.

What the published code and paper leave open is a setting here and a reconstruction; see the shipped recipes for which is which.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from knarr.train.datasets.physio.windows import EEG_28, RATE_HZ, Windowing, channel_rows
from knarr.train.datasets.stress.read import EDA_HZ
from knarr.train.datasets.stress.windows import DT_S, STEP
from knarr.train.losses.emotion import EmotionLossSettings
from knarr.train.losses.feedback import FeedbackSettings
from knarr.train.networks.emotion import EmotionSettings
from knarr.train.networks.gsr import GsrRepeatSettings, GsrStudentSettings
from knarr.train.networks.stress import StressTeacherSettings
from knarr.train.settings import Count, DataSettings, Fitted, Frozen, Positive, Recipe, Seed

SPLIT_SEED = 2021
"""Of a related public pipeline."""


class Folded(DataSettings):
    """Data of people, parted into folds; a run is one fold.

    Args:
        folds: how many; "loso" has as many as there are people, whatever stands here.
        fold: which one is tested, from 0.
        split_seed: of the draw of folds, apart from the run's seed so that all seeds have the same folds.
    """

    folds: int = Field(default=10, ge=2)
    fold: int = Field(default=0, ge=0)
    split_seed: Seed = SPLIT_SEED


class PhysioData(Folded):
    """DEAP or MAHNOB-HCI, at 128 Hz.

    Args:
        task: which rating is the label.
        split: "loso" tests one person, "kfold_subject" some, "kfold_trial" some trials of everybody, which is person-dependent.
        people: names of those who are read ("s01", "subject-01"); None for everybody.
        channels: electrodes, by name and in this order.
        on_bad: "raise" at the first bad recording, or "skip": leave it out and warn.
        window_s, stride_s, gsr_unit, threshold, inclusive: see `Windowing`.
        normalise: each channel to mean 0 and variance 1, over each "window", or over all windows that are fitted on ("train").
        frame, frame_step: samples that a step of the spiking student hears, and by which it moves.
        per_sd: integers of its 8-bit input per standard deviation; 128 stands for the mean.
    """

    kind: Literal["deap", "mahnob"]
    task: Literal["valence", "arousal"]
    split: Literal["loso", "kfold_subject", "kfold_trial"] = "loso"
    people: tuple[str, ...] | None = None
    channels: tuple[str, ...] = EEG_28
    on_bad: Literal["raise", "skip"] = "raise"
    window_s: Positive = 4.0
    stride_s: Positive = 4.0
    gsr_unit: Literal["ohm", "siemens"] = "ohm"
    normalise: Literal["window", "train"] = "window"
    threshold: float = 5.0
    inclusive: bool = False
    frame: Count = 32
    frame_step: Count = 8
    per_sd: Positive = 32.0

    @model_validator(mode="after")
    def _can_be_cut(self) -> PhysioData:
        _ = self.windowing
        channel_rows(self.channels)
        if self.frame > self.samples:
            raise ValueError(f"frame: {self.frame} of {self.samples} samples; choose a shorter one")
        return self

    @property
    def windowing(self) -> Windowing:
        """The same for the reader; what is scaled over the training windows is read as recorded."""
        return Windowing(
            self.window_s,
            self.stride_s,
            self.gsr_unit,
            "window" if self.normalise == "window" else "none",
            self.threshold,
            self.inclusive,
        )

    @property
    def samples(self) -> int:
        """Of a window."""
        return int(self.window_s * RATE_HZ)

    @property
    def dt_s(self) -> float:
        return self.frame_step / RATE_HZ

    @property
    def heard(self) -> dict[str, float]:
        """What the student's network has to be built for."""
        return {
            "samples": self.samples,
            "kernel": self.frame,
            "stride": self.frame_step,
            "dt_s": self.dt_s,
            "classes": 2,
        }


class StressData(Folded):
    """Stress-Predict: rest or stress, skin conductance at 4 Hz and heart rate.

    Args:
        split: as of `PhysioData`; there are no trials here.
        window_s, step_s, min_labelled: see `cut_windows`; a window is whole steps of 3 s.
        normalise: over a "person"'s whole recording, which for a person tested uses later samples but no labels, or "window".
        balance: repeat windows of the rarer class, person by person, until training and validation have as many of both; what is
            tested stays as it is.
    """

    kind: Literal["stress_predict"]
    task: Literal["stress"] = "stress"
    split: Literal["loso", "kfold_subject"] = "kfold_subject"
    folds: int = Field(default=5, ge=2)
    window_s: Count = 60
    step_s: Count = 30
    min_labelled: float = Field(default=5 / 6, gt=0, le=1)
    normalise: Literal["person", "window"] = "person"
    balance: bool = True

    @model_validator(mode="after")
    def _whole_steps(self) -> StressData:
        if self.samples % STEP:
            raise ValueError(
                f"window_s: {self.window_s} s are no whole steps of {DT_S:g} s; take a multiple of it"
            )
        return self

    @property
    def samples(self) -> int:
        """Of skin conductance in a window."""
        return self.window_s * EDA_HZ

    @property
    def dt_s(self) -> float:
        return DT_S

    @property
    def heard(self) -> dict[str, float]:
        """What the student's network has to be built for: its 12 inputs a step are as many as a step has samples."""
        return {"samples": self.samples, "kernel": STEP, "stride": STEP, "dt_s": DT_S, "classes": 2}


class EmotionTeacherRecipe(Fitted):
    """`emotion_net` hears EEG and skin; `gsr_net`, the paper's student as a teacher, hears skin alone."""

    kind: Literal["emotion_net", "gsr_net"]
    network: EmotionSettings = EmotionSettings()


class StressTeacherRecipe(Fitted):
    """A small network of heart rate and skin conductance, or of skin conductance alone."""

    kind: Literal["stress_net"]
    network: StressTeacherSettings = StressTeacherSettings()


class FeedbackRecipe(FeedbackSettings):
    """Of the teacher by a temporary student, see `losses.feedback`; its loss is the student's own and stands there.

    Args:
        quiz_fraction: of the groups that are fitted on: set aside for the quiz where it is "heldout".
    """

    loss: EmotionLossSettings = Field(default=EmotionLossSettings(), exclude=True)
    quiz_fraction: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _one_loss(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "loss" in settings:
            raise ValueError("loss: is the student's; set student.loss")
        return settings


class StudentRecipe(Fitted):
    """What all students have.

    Args:
        loss: weights against labels, teacher's probabilities and teacher's features.
        feedback: the teacher learns too; None for a teacher that stays as it is.
    """

    loss: EmotionLossSettings = EmotionLossSettings()
    feedback: FeedbackRecipe | None = None

    @field_validator("feedback")
    @classmethod
    def _with_loss(
        cls, feedback: FeedbackRecipe | None, info: ValidationInfo
    ) -> FeedbackRecipe | None:
        loss = info.data.get("loss")  # missing where it is refused itself
        return feedback and (feedback.model_copy(update={"loss": loss}) if loss else feedback)

    @model_validator(mode="after")
    def _in_full_precision(self) -> StudentRecipe:
        if self.feedback is not None and self.fit.precision != "full":
            raise ValueError(
                "fit.precision: 'mixed' with feedback, whose second derivatives need 'full'"
            )
        return self


class FramesStudent(StudentRecipe):
    """The spiking student that a chip runs, see `gsr_student`."""

    kind: Literal["frames"]
    network: GsrStudentSettings = GsrStudentSettings()

    @property
    def features(self) -> int:
        """Of F_S."""
        return self.network.steps * self.network.hidden


class AnnStudent(StudentRecipe):
    """The paper's own; not exportable."""

    kind: Literal["ann"]
    network: EmotionSettings = EmotionSettings()

    @property
    def features(self) -> int:
        """Of F_S."""
        return self.network.tokens * self.network.width


class RepeatStudent(StudentRecipe):
    """The paper's with spiking cells, see `gsr_repeat`; not exportable."""

    kind: Literal["repeat"]
    network: GsrRepeatSettings = GsrRepeatSettings()

    @property
    def features(self) -> int:
        """Of F_S."""
        return self.network.network.tokens * self.network.network.width


class EmotionRecipe(Recipe):
    """See above."""

    system: Literal["emotionkd"]
    data: Annotated[PhysioData | StressData, Field(discriminator="kind")]
    teacher: Annotated[EmotionTeacherRecipe | StressTeacherRecipe, Field(discriminator="kind")]
    student: Annotated[FramesStudent | AnnStudent | RepeatStudent, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _fits_together(self) -> EmotionRecipe:
        self._of_these_data()
        if self.student.loss.feature and self.student.features != self._taught_features():
            raise ValueError(
                f"student.loss.feature: {self.student.loss.feature:g}, but the student has {self.student.features} features and "
                f"the teacher {self._taught_features()}; change student.network or teacher.network, or set it to 0"
            )
        return self

    def _of_these_data(self) -> None:
        data, teacher, student = self.data, self.teacher, self.student
        stress = isinstance(data, StressData)
        if stress != isinstance(teacher, StressTeacherRecipe):
            cure = "stress_net" if stress else "emotion_net or gsr_net"
            raise ValueError(f"teacher.kind: {teacher.kind} does not hear {data.kind}; take {cure}")
        if isinstance(data, StressData) or isinstance(teacher, StressTeacherRecipe):
            if student.kind != "frames":
                raise ValueError(
                    f"student.kind: {student.kind} does not hear {data.kind}; take frames"
                )
            _same("teacher.network", teacher.network, samples=data.samples, classes=2)
        else:
            shape = {"eeg_channels": len(data.channels), "samples": data.samples, "classes": 2}
            _same("teacher.network", teacher.network, **shape)
            if isinstance(student, AnnStudent):
                _same("student.network", student.network, samples=data.samples, classes=2)
            if isinstance(student, RepeatStudent):
                _same(
                    "student.network.network",
                    student.network.network,
                    samples=data.samples,
                    classes=2,
                )
        if isinstance(student, FramesStudent):
            _same("student.network", student.network, **data.heard)

    def _taught_features(self) -> int:
        if isinstance(self.teacher, StressTeacherRecipe):
            return self.teacher.network.steps * self.teacher.network.width
        return self.teacher.network.tokens * self.teacher.network.width


def _same(where: str, settings: Frozen, **wanted: float) -> None:
    for name, value in wanted.items():
        found = getattr(settings, name)
        if found != value:
            raise ValueError(f"{where}.{name}: {found:g}, the data give {value:g}; make them agree")
