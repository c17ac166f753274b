"""Recipe of EmotionKD: EEG and skin conductance, or heart rate and skin conductance, teach a
student of skin conductance alone.

What the published code and paper leave open is a setting here and a reconstruction; see the shipped
recipes for which is which.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from knarr.train.datasets.physio.windows import EEG_28, RATE_HZ, Windowing, channel_rows
from knarr.train.datasets.stress.read import EDA_HZ
from knarr.train.datasets.stress.windows import DT_S, STEP
from knarr.train.losses.emotion import EmotionLossSettings
from knarr.train.losses.feedback import FeedbackSettings
from knarr.train.networks.emotion import EmotionSettings
from knarr.train.networks.gsr import GsrRepeatSettings, GsrStudentSettings
from knarr.train.networks.stress import StressTeacherSettings
from knarr.train.settings import (
    AtLeastTwo,
    Count,
    DataSettings,
    Fitted,
    Frozen,
    OpenFraction,
    Positive,
    Recipe,
    Seed,
    UnitFraction,
)

SPLIT_SEED = 2021
"""Seed of the folds of a related public pipeline."""


class Folded(DataSettings):
    """Data of people, parted into folds; a run is one fold.

    Args:
        folds: Number of folds; "loso" has as many as there are people, whatever stands here.
        fold: The fold that is tested, from 0.
        split_seed: Seed of the draw of folds, apart from the run's seed so that all seeds have the
            same folds.
    """

    folds: AtLeastTwo = 10
    fold: NonNegativeInt = 0
    split_seed: Seed = SPLIT_SEED


class PhysioData(Folded):
    """DEAP or MAHNOB-HCI, at 128 Hz.

    Args:
        kind: "deap" or "mahnob".
        task: The rating that is the label.
        split: "loso" tests one person, "kfold_subject" some, "kfold_trial" some trials of
            everybody, which is person-dependent.
        people: Names of those who are read ("s01", "subject-01"); None for everybody.
        channels: Electrodes, by name and in this order.
        on_bad: "raise" at the first bad recording, or "skip": leave it out and warn.
        window_s: Length of a window, see `Windowing`, like the two below it.
        stride_s: Distance of two windows.
        gsr_unit: Unit in which skin conductance is given to the networks.
        normalise: Scale each channel to mean 0 and variance 1, over each "window", or over all
            windows that are fitted on ("train").
        threshold: Rating above which a trial is of class 1.
        inclusive: Count a rating at the threshold as above it.
        frame: Samples that the spiking student is given in a step.
        frame_step: Samples by which it moves from step to step.
        per_sd: Integers of its 8-bit input per standard deviation; 128 stands for the mean.
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
        _ = self.windowing  # refuses windows that are no whole samples
        channel_rows(self.channels)
        if self.frame > self.samples:
            raise ValueError(f"frame: {self.frame} of {self.samples} samples; choose a shorter one")
        return self

    @property
    def windowing(self) -> Windowing:
        """The same settings for the reader."""
        return Windowing(
            self.window_s,
            self.stride_s,
            self.gsr_unit,
            # What is scaled over the training windows is read as recorded: who trains is known
            # later.
            "window" if self.normalise == "window" else "none",
            self.threshold,
            self.inclusive,
        )

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return int(self.window_s * RATE_HZ)

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return self.frame_step / RATE_HZ

    @property
    def student_steps(self) -> dict[str, float]:
        """Settings of a spiking student's steps, which these data decide."""
        return {"kernel": self.frame, "stride": self.frame_step, "dt_s": self.dt_s}


class StressData(Folded):
    """Stress-Predict: rest or stress, skin conductance at 4 Hz and heart rate.

    Args:
        kind: "stress_predict".
        task: "stress", for tables.
        split: See `PhysioData`; there are no trials here.
        window_s: Length of a window, which is whole steps of 3 s; see `cut_windows`, like the two
            below it.
        step_s: Distance of two windows.
        min_labelled: Share of a window that has to be of one class.
        normalise: Scale over a "person"'s whole recording, which for a person tested uses later
            samples but no labels, or each "window".
        balance: Repeat windows of the rarer class, person by person, until training and validation
            have as many of both; what is tested stays as it is.
    """

    kind: Literal["stress_predict"]
    task: Literal["stress"] = "stress"
    split: Literal["loso", "kfold_subject"] = "kfold_subject"
    folds: AtLeastTwo = 5
    window_s: Count = 60
    step_s: Count = 30
    min_labelled: UnitFraction = 5 / 6
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
        """Samples of skin conductance in a window."""
        return self.window_s * EDA_HZ

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return DT_S

    @property
    def student_steps(self) -> dict[str, float]:
        """Settings of a spiking student's steps, which these data decide."""
        # Steps do not overlap here: a step's inputs are its own samples.
        return {"kernel": STEP, "stride": STEP, "dt_s": DT_S}


class EmotionTeacherRecipe(Fitted):
    """Settings of a teacher of DEAP or MAHNOB-HCI.

    Args:
        kind: "emotion_net" is given EEG and skin conductance; "gsr_net", the paper's student as a
            teacher, skin conductance alone.
        network: Its layers.
    """

    kind: Literal["emotion_net", "gsr_net"]
    network: EmotionSettings = EmotionSettings()


class StressTeacherRecipe(Fitted):
    """Settings of a small teacher of heart rate and skin conductance, or of skin conductance
    alone.
    """

    kind: Literal["stress_net"]
    network: StressTeacherSettings = StressTeacherSettings()


class FeedbackRecipe(FeedbackSettings):
    """Feedback to the teacher by a temporary student, see `losses.feedback`; the loss is the
    student's own.

    Args:
        quiz_fraction: Share of the groups to fit on that is set aside for the quiz, where it is
            "heldout".
    """

    quiz_fraction: OpenFraction = 0.2

    @model_validator(mode="before")
    @classmethod
    def _one_loss(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "loss" in settings:
            raise ValueError("loss: is the student's; set student.loss")
        return settings


class StudentRecipe(Fitted):
    """Settings that all students have.

    Args:
        loss: Weights of labels, teacher's probabilities and teacher's features.
        feedback: Settings of a teacher that learns too; None for a teacher that stays as it is.
    """

    loss: EmotionLossSettings = EmotionLossSettings()
    feedback: FeedbackRecipe | None = None

    @model_validator(mode="after")
    def _in_full_precision(self) -> StudentRecipe:
        if self.feedback is not None and self.fit.precision != "full":
            raise ValueError(
                "fit.precision: 'mixed' with feedback, whose second derivatives need 'full'"
            )
        return self


class FramesStudent(StudentRecipe):
    """Settings of the spiking student that a chip runs, see `networks.gsr`."""

    kind: Literal["frames"]
    network: GsrStudentSettings = GsrStudentSettings()


class AnnStudent(StudentRecipe):
    """Settings of the paper's own student, an ANN; not exportable."""

    kind: Literal["ann"]
    network: EmotionSettings = EmotionSettings()


class RepeatStudent(StudentRecipe):
    """Settings of the paper's student with spiking cells, see `networks.gsr`; not exportable."""

    kind: Literal["repeat"]
    network: GsrRepeatSettings = GsrRepeatSettings()


class EmotionRecipe(Recipe):
    """Recipe of EmotionKD; networks whose sizes do not fit the data or each other are refused."""

    system: Literal["emotionkd"]
    data: Annotated[PhysioData | StressData, Field(discriminator="kind")]
    teacher: Annotated[EmotionTeacherRecipe | StressTeacherRecipe, Field(discriminator="kind")]
    student: Annotated[FramesStudent | AnnStudent | RepeatStudent, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _fits_together(self) -> EmotionRecipe:
        self._assert_data_fit()
        weight = self.student.loss.feature
        ours, theirs = self.student.network.features, self.teacher.network.features
        if weight and ours != theirs:
            raise ValueError(
                f"student.loss.feature: {weight:g}, but the student has {ours} features and "
                f"the teacher {theirs}; change student.network or teacher.network, or set it to 0"
            )
        return self

    def _assert_data_fit(self) -> None:
        data, teacher, student = self.data, self.teacher, self.student
        stress = isinstance(data, StressData)
        if stress != isinstance(teacher, StressTeacherRecipe):
            cure = "stress_net" if stress else "emotion_net or gsr_net"
            raise ValueError(f"teacher.kind: {teacher.kind} does not hear {data.kind}; take {cure}")
        if stress and student.kind != "frames":
            raise ValueError(f"student.kind: {student.kind} does not hear {data.kind}; take frames")
        shape = {"samples": data.samples, "classes": 2}
        if isinstance(data, PhysioData):
            _same("teacher.network", teacher.network, eeg_channels=len(data.channels))
        _same("teacher.network", teacher.network, **shape)
        if isinstance(student, FramesStudent):
            _same("student.network", student.network, **shape, **data.student_steps)
        elif isinstance(student, AnnStudent):
            _same("student.network", student.network, **shape)
        else:
            _same("student.network.network", student.network.network, **shape)


def _same(where: str, settings: Frozen, **wanted: float) -> None:
    """Refuse settings of a network that the data contradict."""
    for name, value in wanted.items():
        found = getattr(settings, name)
        if found != value:
            raise ValueError(f"{where}.{name}: {found:g}, the data give {value:g}; make them agree")
