"""MSKD on SEE and on generated eyes: SEEN or a hybrid teaches a spiking student of frames
[reconstruction, but for the data and SEEN].

Teacher and student see sequences through windows, one draw for both: the teacher events and frames,
the student frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import norse.torch as snn
import numpy as np
import torch
from pydantic import Field, NonNegativeInt, field_serializer, field_validator, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Clips, Indices, shifted
from knarr.train.datasets.arrays import Rng, UInt8
from knarr.train.datasets.see.sequences import Images, SeeSequences, read_sequences
from knarr.train.datasets.see.tree import MAX_SIDE
from knarr.train.datasets.see.windows import (
    FRAMES_PER_S,
    Sampling,
    draw_window,
    evaluation_windows,
    sampling,
)
from knarr.train.datasets.splits import assert_apart, subject_folds
from knarr.train.errors import DataError
from knarr.train.losses.mskd import MskdLossSettings, mskd_loss
from knarr.train.networks.branch_merge import MultiScale
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.heads import StepLogits, decide
from knarr.train.networks.mskd import MskdStudentSettings, build_mskd_student, build_mskd_teacher
from knarr.train.networks.mskd import MskdTeacherSettings as Network
from knarr.train.settings import (
    AtLeastTwo,
    DataSettings,
    Fitted,
    Frozen,
    Positive,
    ProperFraction,
    Recipe,
    RecipeError,
    Seed,
    shift_within,
)
from knarr.train.systems.base import Coding, OneTensor, Progress, RunData, Scored, System
from knarr.train.systems.generated_eyes import GeneratedEyes

NetworkSettings = TypeVar("NetworkSettings", bound=Frozen)

TEACHER_CHANNELS = 3
"""Channels of the teacher's images: published code opens the grey ones as RGB, and SEEN has weights
for each copy.
"""


class Normalise(Frozen):
    """Normalisation of the teacher's images, (x / 255 - mean) / std; SEE's published values by
    default.
    """

    event_mean: float = 0.504413
    event_std: Positive = 0.06928615
    frame_mean: float = 0.22616537
    frame_std: Positive = 0.118931554


class SequencesData(DataSettings):
    """Sequences in the SEE layout, seen through windows.

    Args:
        sampling: E<frames>-S<skipped>, see `knarr.train.datasets.see.windows`.
        size: Height and width of the images in pixels; others are resized.
        split: "official" is the index's; in SEE it parts sequences, and people may be in both.
            "subject" draws folds of people.
        folds: Number of folds of "subject".
        fold: The one of them that is tested on, from 0.
        seed: Seed of the folds, and of generated data. The recipe's own seed leaves both as they
            are.
        normalise: Normalisation of the teacher's images.
        pixel_bits: Upper bits of the student's grey values. The fewer they are, the more of a
            neuron's accumulator is left for weights: 255 times the 49 weights of the first layer
            can fill it before these have used their own 8 bits.
        shift_px: Largest distance by which training clips are moved, teacher's and student's alike;
            published: none.
    """

    sampling: str = "E4-S3"
    size: int = Field(default=90, ge=1, le=MAX_SIDE)
    split: Literal["official", "subject"] = "official"
    folds: AtLeastTwo = 3
    fold: NonNegativeInt = 0
    seed: Seed = 0
    normalise: Normalise = Normalise()
    pixel_bits: int = Field(default=8, ge=1, le=8)
    shift_px: NonNegativeInt = 0

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
        """The sampling by which windows are cut from sequences."""
        return sampling(self.sampling)

    @property
    def dt_s(self) -> float:
        """Length of a student's time step in seconds."""
        return (self.window.skipped + 1) / FRAMES_PER_S


class SeeData(SequencesData):
    """SEE, or any tree of its layout.

    Args:
        event_dir: Name of the folder of event images.
        frame_dir: Name of the folder of grey images.
        index: Name of the file that lists the sequences.
        on_bad: "raise" refuses a tree with a bad record, "skip" counts it.
    """

    kind: Literal["see"]
    event_dir: str = "event"
    frame_dir: str = "frame"
    index: str = "emotion.json"
    on_bad: Literal["raise", "skip"] = "raise"


class MskdEyesData(GeneratedEyes, SequencesData):
    """Generated single-eye sequences in the same layout; people who train and people who test
    differ.

    Args:
        frames: Images of each sequence.
        subjects: Number of people.
        takes_per_emotion: Sequences of each person and emotion.
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


class MskdTeacherRecipe(Fitted):
    """Settings of the teacher; sizes that the data decide need not be said.

    Args:
        network: Which network, and its sizes.
        label_smoothing: Share of a label that is spread over all classes; published: none.
    """

    network: Network = Network()
    label_smoothing: ProperFraction = 0

    @field_serializer("network")
    def _without_derived(self, network: Network) -> dict[str, Any]:
        unsaid = _unsaid(network.seen, DERIVED_OF_TEACHER)
        return network.model_dump(mode="json", exclude={"seen": unsaid})


class MskdStudentRecipe(Fitted):
    """Settings of the student and its loss; sizes that the data decide need not be said.

    Args:
        network: Its layers.
        centred: Each kernel of its first layer has a mean of 0, so that a clip's brightness, which
            says nothing of an emotion, has no effect but at the borders. Frames come without their
            mean subtracted: other kernels answer to brightness most of all, and the bias that a
            batch-norm sets against it leaves no room in the chip's registers for weights of a finer
            scale.
        loss: Weights and readings of the teacher's terms.
    """

    network: MskdStudentSettings = MskdStudentSettings()
    centred: bool = True
    loss: MskdLossSettings = MskdLossSettings()

    @field_serializer("network")
    def _without_derived(self, network: MskdStudentSettings) -> dict[str, Any]:
        return network.model_dump(mode="json", exclude=_unsaid(network, DERIVED_OF_STUDENT))


DERIVED_OF_TEACHER = {"side_px", "channels", "steps"}
DERIVED_OF_STUDENT = {"side_px", "dt_s"}
"""Settings of the networks that a recipe's data decide. They are left out where a recipe is
written, or another size or sampling could not replace the one in a recipe without naming these too.
Classes are known when data are read, see `Mskd`.
"""


def _unsaid(settings: Frozen, derived: set[str]) -> set[str]:
    """Return the names of a network's settings that the data decide."""
    # A number of classes that a recipe names itself stays, and is compared with the data when they
    # are read.
    return derived | ({"classes"} - settings.model_fields_set)


class MskdRecipe(Recipe):
    """Recipe of MSKD; its data decide sizes of its networks."""

    system: Literal["mskd"]
    data: Annotated[SeeData | MskdEyesData, Field(discriminator="kind")]
    teacher: MskdTeacherRecipe
    student: MskdStudentRecipe

    @model_validator(mode="after")
    def _as_the_data(self) -> MskdRecipe:
        data, network = self.data, self.teacher.network
        seen = _derived(
            "teacher.network.seen",
            network.seen,
            side_px=data.size,
            channels=TEACHER_CHANNELS,
            steps=data.window.frames,
        )
        student = _derived(
            "student.network", self.student.network, side_px=data.size, dt_s=data.dt_s
        )
        teacher = network.model_copy(update={"seen": seen})
        # Frozen for everybody else: what is derived here is as if it had been said.
        for name, full in (("teacher", teacher), ("student", student)):
            settings = getattr(self, name).model_copy(update={"network": full})
            object.__setattr__(self, name, settings)
        return self


def _derived(
    path: str, settings: NetworkSettings, source: str = "the data give", **values: Any
) -> NetworkSettings:
    """Return settings of a network with those that the data decide.

    Raises:
        RecipeError: The recipe says another value.
    """
    for name, value in values.items():
        # A default is no claim: it gives way to the data.
        said = getattr(settings, name)
        if name in settings.model_fields_set and said != value:
            raise RecipeError(f"{path}.{name}: {said}, but {source} {value}; leave it out")
    return settings.model_copy(update=values)


GREY_BITS = 8
"""Bits of the images' pixels. A pixel k goes to the student as k / 255 (of fewer bits, its upper
ones), not less a mean: convolutions pad with zeros, before and after an offset not the same, so a
mean could not be moved from the input into the first layer's bias; batch-norms can be folded and do
its work.
"""


@dataclass(frozen=True, eq=False)
class SeeWindows:
    """Some sequences, each seen through one window; a fresh one is drawn where an `rng` is given.

    Args:
        sequences: All sequences that were read.
        own: (N,) indices of those of this split.
        sampling: How windows are cut.
        fixed: (N, x) window of each clip where none is drawn.
        channels: Channels of the student's images, all of them the same grey.
        bits: Bits of the student's pixels, at most `GREY_BITS`.
        normalise: Normalisation of the teacher's images.
        shift_px: Largest distance by which drawn clips are moved.
    """

    sequences: SeeSequences
    own: Indices
    sampling: Sampling
    fixed: Indices
    channels: int
    bits: int
    normalise: Normalise
    shift_px: int = 0

    @property
    def labels(self) -> Indices:
        """(N,) classes."""
        return self.sequences.labels[self.own]

    @property
    def lengths(self) -> Indices:
        """(N,) number of images of each sequence."""
        return self.sequences.lengths[self.own]

    @property
    def names(self) -> tuple[str, ...]:
        """(N,) names of the sequences."""
        return tuple(self.sequences.names[n] for n in self.own)

    @property
    def units(self) -> int:
        """Integers of the chip per unit of the student's input."""
        return (1 << self.bits) - 1

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return clips `indices`, through drawn windows and moved when `rng` is given."""
        windows = self.fixed[indices] if rng is None else self._drawn(indices, rng)
        # One draw of windows for all that student and teacher see.
        rows = self.sequences.rows(self.own[indices], windows)
        events, frames = self.sequences.events[rows], self.sequences.frames[rows]
        if rng is not None and self.shift_px:
            events, frames = shifted(self.shift_px, events, frames, rng)
        how = self.normalise
        return Batch(
            torch.from_numpy(self._integers(frames).astype(np.float32) / np.float32(self.units)),
            (
                _normalised(events, how.event_mean, how.event_std),
                _normalised(frames, how.frame_mean, how.frame_std),
            ),
            torch.from_numpy(self.labels[indices]),
        )

    def chip_inputs(self, indices: Indices) -> UInt8:
        """Return (B, x, channels, H, W) student inputs through the fixed windows."""
        rows = self.sequences.rows(self.own[indices], self.fixed[indices])
        return np.ascontiguousarray(self._integers(self.sequences.frames[rows]))

    def passes(self, windows: int, seed: int) -> list[SeeWindows]:
        """Return the same clips through several windows each, the first time through those they
        have.
        """
        drawn = evaluation_windows(self.lengths, self.sampling, windows=windows, seed=seed)
        return [self, *(replace(self, fixed=fixed) for fixed in drawn[1:])]

    def _drawn(self, indices: Indices, rng: Rng) -> Indices:
        lengths = self.lengths[indices].tolist()
        return np.stack([draw_window(length, self.sampling, rng) for length in lengths])

    def _integers(self, frames: Images) -> Images:
        """Return the chip's inputs (B, x, channels, H, W) for images (B, x, H, W)."""
        shape = (*frames.shape[:2], self.channels, *frames.shape[2:])
        return np.broadcast_to((frames >> (GREY_BITS - self.bits))[:, :, None], shape)


def _normalised(images: Images, mean: float, std: float) -> Tensor:
    """Return the teacher's float32 images (B, x, 3, H, W) for images (B, x, H, W)."""
    # Constants of float32 too: with a float64 among them numpy would compute in float64 and round
    # otherwise.
    grey = (images.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(grey)[:, :, None].expand(-1, -1, TEACHER_CHANNELS, -1, -1)


SEE_SEQUENCES, SEE_TESTED = 2405, 767
"""Sequences of the published set, and those of them that its own split tests on."""


class Mskd(System[MskdRecipe]):
    """MSKD with a recipe's settings."""

    recipe_class = MskdRecipe

    # --- data

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        """Read the sequences and part them into training and test; see `System.load`."""
        settings = self.recipe.data
        least = settings.window.least_frames
        # Generated data have none of these settings: they lie as the reader's defaults say.
        layout = settings.model_dump(include={"on_bad", "event_dir", "frame_dir", "index"})
        sequences = read_sequences(
            root, size=settings.size, least=least, cache=cache, progress=progress, **layout
        )
        train, test = self._split(root, sequences)
        tested = self._windows(sequences, test)
        by_people = settings.split == "subject"
        return RunData(
            self._windows(sequences, train),
            tested,
            np.array(sequences.subjects)[train],
            sequences.label_names,
            _name_of(settings, len(sequences.labels), len(test)),
            Coding(bits=tested.bits, units=tested.units, kind="graded", over_time="mean"),
            tuple(sequences.subjects[at] for at in test),
            tuple(sequences.lights[at] for at in test),
            names=tested.names,
            protocol=f"{settings.folds} folds of people" if by_people else "the index's split",
            fold=settings.fold if by_people else None,
            fold_count=settings.folds if by_people else 1,
            sampling=settings.sampling,
        )

    def _split(self, root: Path, sequences: SeeSequences) -> tuple[Indices, Indices]:
        """Return indices of the sequences to train and to test on."""
        settings = self.recipe.data
        if settings.split == "subject":
            people = len(set(sequences.subjects))
            if people < settings.folds:
                raise RecipeError(f"data.folds: {settings.folds} of {people} people; take fewer")
            train, test = subject_folds(sequences.subjects, settings.folds, seed=settings.seed)[
                settings.fold
            ]
        else:
            testing = np.array(sequences.subsets) == "testing"
            train, test = np.flatnonzero(~testing), np.flatnonzero(testing)
        for name, part in (("train", train), ("test", test)):
            if not len(part):
                raise DataError(
                    root, f"no sequences: none to {name} on; check the subsets of the index"
                )
        # SEE's own split parts sequences and not people, so there the same person may be on both
        # sides; folds of people divide nobody.
        if isinstance(settings, MskdEyesData):
            try:
                assert_apart(sequences.subjects, train, test)
            except ValueError as error:
                raise DataError(root, f"shared people: {error}") from error
        return train, test

    def _windows(self, sequences: SeeSequences, own: Indices) -> SeeWindows:
        recipe = self.recipe
        how = recipe.data.window
        return SeeWindows(
            sequences,
            own,
            how,
            evaluation_windows(sequences.lengths[own], how, windows=1, seed=recipe.seed)[0],
            recipe.student.network.in_channels,
            recipe.data.pixel_bits,
            recipe.data.normalise,
            recipe.data.shift_px,
        )

    def passes(self, data: RunData, windows: int, seed: int) -> Sequence[Clips]:
        """Return the test set `windows` times, through drawn windows but for the first time; 20
        times in the published protocol.
        """
        return cast(SeeWindows, data.test).passes(windows, seed)

    # --- networks

    def teacher(self, data: RunData) -> nn.Module:
        """Return a new SEEN or hybrid for the data's classes."""
        settings = self.recipe.teacher.network
        seen = _with_classes("teacher.network.seen", settings.seen, data)
        return build_mskd_teacher(settings.model_copy(update={"seen": seen}))

    def student(self, data: RunData) -> nn.Module:
        """Return a new student, its first kernels kept at a mean of 0 where the recipe says so."""
        settings = _with_classes("student.network", self.recipe.student.network, data)
        student = build_mskd_student(settings)
        if self.recipe.student.centred:
            for branch in cast(MultiScale, student[0]).branches:
                register_parametrization(branch, "weight", Centred())
        return student

    def student_output(self, student: nn.Module, batch: Batch) -> StepLogits:
        """Return the student's readout at every step."""
        return decide(student, batch.inputs)

    def chip_output(self, output: ChipStudentOutput) -> StepLogits:
        """Return a chip student's readout at every step."""
        volts = output.step_logits
        return StepLogits(volts.mean(1), volts, output.rates)

    def distil(self, output: StepLogits, teacher: nn.Module, batch: Batch) -> Scored:
        """Return MSKD's loss, and the logits."""
        settings = self.recipe.student.loss
        teacher_output = None
        if settings.needs_teacher:
            with torch.no_grad():
                teacher_output = teacher(*batch.teacher_inputs)
            # A student that is shown fewer steps is compared with the teacher's first ones.
            steps = output.step_logits.shape[1]
            teacher_output = teacher_output._replace(
                step_logits=teacher_output.step_logits[:, :steps]
            )
        return mskd_loss(output, teacher_output, batch.labels, settings).total, output.logits

    def deployable(self, student: nn.Module) -> snn.SequentialState:
        """Return the student with its branches merged, its batch-norms folded and its decays on the
        chip's grid.
        """
        settings = self.recipe.student.network
        for refused, fault, cure in (
            (
                settings.gate == "dynamic",
                "gate: 'dynamic' depends on the image and",
                "'static' or 'none'",
            ),
            (
                settings.readout == "membrane",
                "readout: 'membrane', a neuron read before its reset,",
                "'li'",
            ),
            (settings.neuron.fires == "ge", "neuron.fires: 'ge', at the threshold,", "'gt'"),
        ):
            if refused:
                raise RecipeError(f"student.network.{fault} cannot be exported; train with {cure}")
        return chip_form(student, snap=True)

    # --- the baseline

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module:
        """Return the teacher for events and frames in one tensor, (B, T, 6, H, W), events first."""
        return OneTensor(teacher, partial(torch.chunk, chunks=2, dim=2))

    def baseline_inputs(self, batch: Batch) -> Tensor:
        """Return events and frames side by side, (B, T, 6, H, W)."""
        return torch.cat(batch.teacher_inputs, dim=2)


def _name_of(settings: SeeData | MskdEyesData, sequences: int, tested: int) -> str:
    """Return the name of the data in tables: published numbers were measured on the whole of SEE
    under its own split alone.
    """
    if isinstance(settings, MskdEyesData):
        return "generated eyes"
    whole = sequences == SEE_SEQUENCES and (settings.split == "subject" or tested == SEE_TESTED)
    return "SEE" if whole else f"{sequences} sequences in SEE's layout"


class Centred(nn.Module):
    """Kernels (out, in, k, k) less the mean of each: w - mean(w)."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the kernels without their means."""
        return weight - weight.mean((2, 3), keepdim=True)


def _with_classes(path: str, settings: NetworkSettings, data: RunData) -> NetworkSettings:
    return _derived(path, settings, f"{data.name} has", classes=len(data.class_names))
