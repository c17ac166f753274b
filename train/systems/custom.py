"""A user's own data, teacher and student, without a class: arrays, and two functions that make
networks. docs/own_data.md shows how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from knarr.deploy import check_module
from knarr.export import ExportError, TimeForm, time_form
from knarr.factories import FactoryError, build_network
from knarr.hw_sim import InputCoding
from knarr.hw_sim.network import MAX_INPUT_BITS
from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Clips, Indices, split_validation
from knarr.train.datasets.arrays import AnyArray, Float32, Rng
from knarr.train.datasets.files import sha256_of
from knarr.train.datasets.user_arrays import UserSplit, read_split, same_length
from knarr.train.errors import DataError
from knarr.train.fitting.weights import load_user_weights
from knarr.train.losses.terms import distillation_loss
from knarr.train.networks.user_modules import (
    GivenLogits,
    NoTeacher,
    OnnxTeacher,
    run_steps,
    whole_onnx,
)
from knarr.train.settings import (
    BATCH_SIZE,
    Count,
    DataSettings,
    Fit,
    Frozen,
    OpenFraction,
    Positive,
    Rate,
    Recipe,
    RecipeError,
    Seed,
    SettingsError,
    Share,
)
from knarr.train.systems.base import Coding, Progress, RunData, Scored, System

Argument = int | float | bool | str | None | list[int | float | bool | str]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
OFFERED: Final = ("input_shape", "outputs", "classes", "dt_s")
"""Arguments that a factory may ask for by name, beside those of the recipe: the features of one step
or of what the teacher sees, how many numbers the network gives, how many classes there are, and the
time step in seconds.
"""


REDUCED: Final[dict[str, Literal["sum", "mean", "last"]]] = {
    "sum over time": "sum",
    "mean over time": "mean",
    "last step alone": "last",
}
"""Names, in an export, of what a student may make of the outputs of all steps itself."""


class ArraysData(DataSettings):
    """Arrays in `.npz` files, see `knarr.train.datasets.user_arrays`.

    Args:
        train: A `.npz` file, a folder of them, or a pattern; relative to the recipe's file.
        test: The same; or a share of the groups of `train`, 0..1, which is drawn and held out.
        dt_s: Length of a time step in seconds.
        timesteps: Steps of a clip: shorter ones are padded with zeros, longer ones cut, and both
            are said. None takes the longest clip.
        classes: Names of the classes, in the order of their numbers; those of text labels, or the
            numbers themselves, where it is left out.
        labels: "classes" or "values" (float targets); "auto" takes text and whole numbers of one
            axis for classes, everything else for values.
        targets: Names of the float targets; numbered where it is left out.
        input_bits: Bits of an input on the chip; found from the values where it is left out.
        input_units: Integers per unit of the inputs, 255 for floats of 0..1 in 8 bits; inputs are
            rounded to them.
        people_apart: Whether a group may lie in one split alone.
        name: Name of the data in tables.
        seed: Seed of a test split that is drawn.
    """

    kind: Literal["arrays"]
    train: Text
    test: OpenFraction | Text
    dt_s: Positive
    validation_fraction: OpenFraction = 0.2
    timesteps: Count | None = None
    classes: Annotated[tuple[Text, ...], Field(min_length=2, max_length=1000)] | None = None
    labels: Literal["auto", "classes", "values"] = "auto"
    targets: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)] | None = None
    input_bits: Annotated[int, Field(ge=1, le=MAX_INPUT_BITS)] | None = None
    input_units: Positive | None = None
    people_apart: bool = True
    name: Text | None = None
    seed: Seed = 0


class UserFit(Fit):
    """Settings of a fit, of which only the epochs have to be given."""

    batch_size: Count = BATCH_SIZE
    learning_rate: Rate = 0.002


class _UserNetwork(Frozen):
    """A network that a function of the user's makes.

    Args:
        network: The function, as module:function, looked for beside the recipe and then in the
            current folder. Its code runs.
        arguments: Arguments of the function by name; it may also ask for those of OFFERED.
        weights: `.safetensors` or `.pt` to start from, relative to the recipe's file.
        fit: How it is fitted; None takes the weights as they are.
    """

    network: Text | None = None
    arguments: dict[str, Argument] = Field(default={})
    weights: Text | None = None
    fit: UserFit | None = None


class UserTeacher(_UserNetwork):
    """A teacher: a network, an ONNX file, or logits in the arrays; one of them.

    Args:
        network, arguments, weights, fit: See `_UserNetwork`.
        onnx: An ONNX file, which is run as it is.
        logits: Whether the arrays hold what a teacher said, as `logits`.
    """

    onnx: Text | None = None
    logits: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> UserTeacher:
        given = [name for name in ("network", "onnx", "logits") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'nothing'} given; name one of network, onnx and logits: true, or leave teacher out"
            )
        trained = self.fit is not None or self.weights is not None
        if self.network is None and (trained or self.arguments):
            raise ValueError(f"{given[0]}: goes without arguments, weights and fit; remove them")
        if self.network is not None and not trained:
            raise ValueError("network: neither fit nor weights; give fit: {epochs: 30}, or weights")
        return self


class DistilLoss(Frozen):
    """The student's loss: (1 - alpha) * labels + alpha * teacher.

    Classes: cross entropy, and tau^2 KL of softened logits. Float targets: mean squares of both.

    Args:
        alpha: Share of the teacher; None is 0.5 with a teacher and 0 without.
        temperature: tau.
        scale: Logits per volt or spike of the readout, of classes.
    """

    alpha: Share | None = None
    temperature: Positive = 3.0
    scale: Positive = 1.0


class UserStudent(_UserNetwork):
    """A spiking student of one time step, as `knarr.export.to_nir` takes it.

    Args:
        network, arguments, weights, fit: See `_UserNetwork`.
        loss: How labels and teacher are weighed.
        over_time: How the outputs of all steps become one: their "sum", "mean" or "last"; None
            sums classes and takes the mean of float targets.
        votes: Neighbouring outputs of each class.
    """

    network: Text
    loss: DistilLoss = DistilLoss()
    over_time: Literal["sum", "mean", "last"] | None = None
    votes: Count = 1

    @model_validator(mode="after")
    def _trained(self) -> UserStudent:
        if self.fit is None and self.weights is None:
            raise ValueError("network: neither fit nor weights; give fit: {epochs: 30}, or weights")
        return self


class CustomRecipe(Recipe):
    """Recipe of own arrays and networks."""

    system: Literal["custom"]
    data: ArraysData
    teacher: UserTeacher | None = None
    student: UserStudent

    def code(self) -> tuple[str, ...]:
        """Return the user's functions whose code this recipe runs."""
        teacher = (
            () if self.teacher is None or self.teacher.network is None else (self.teacher.network,)
        )
        return (*teacher, self.student.network)

    @model_validator(mode="after")
    def _taught(self) -> CustomRecipe:
        alpha = self.student.loss.alpha
        if alpha and self.teacher is None:
            raise ValueError(
                f"student.loss.alpha: {alpha:g} of a teacher that the recipe does not have; give one, or leave it out"
            )
        return self


@dataclass(frozen=True, eq=False)
class UserClips:
    """Clips of a user's arrays.

    Args:
        integers: (N, T, *features), as the chip takes them.
        units: Integers per unit of what the student sees.
        labels: (N,) int64 classes, or (N, k) float32 targets.
        teacher_inputs: (N, *any) float32; None where the teacher sees what the student sees.
        taught: Whether there is a teacher that sees anything.
    """

    integers: AnyArray
    units: float
    labels: AnyArray
    teacher_inputs: Float32 | None
    taught: bool

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return the clips `indices`; nothing is augmented."""
        inputs = self.integers[indices].astype(np.float32) / np.float32(self.units)
        shown: tuple[Float32, ...] = ()
        if self.taught:
            given = self.teacher_inputs
            shown = (inputs if given is None else given[indices],)
        return Batch.from_arrays(inputs, *shown, labels=self.labels[indices])

    def chip_inputs(self, indices: Indices) -> AnyArray:
        """Return the integers of the clips `indices`."""
        return self.integers[indices]


class Custom(System[CustomRecipe]):
    """A recipe of own arrays and networks."""

    recipe_class = CustomRecipe
    _form: TimeForm | None = None

    # --- data

    def own_folder(self) -> Path | None:
        """Return the folder of the recipe's file."""
        return self._folder

    @property
    def _folder(self) -> Path:
        return Path(self.recipe.folder or ".")

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        """Read both splits; see `System.load`.

        Raises:
            DataError: Arrays that are missing or do not go together.
            RecipeError: A student that does not run on them; its code runs.
        """
        settings = self.recipe.data
        train = read_split(root, settings.train, progress)
        if isinstance(settings.test, str):
            test = read_split(root, settings.test, progress)
        else:
            train, test = _held_out(train, settings.test, settings.seed)
        notes, protocol = _people(train, test, settings)
        return _Loader(self, train, test, protocol, notes).run_data()

    # --- networks

    def has_teacher(self, clips: Clips | None = None) -> bool:
        """Return whether the recipe has a teacher; of logits, whether these clips have them."""
        teacher = self.recipe.teacher
        if teacher is None or clips is None:
            return teacher is not None
        return len(clips.batch(np.arange(1), None).teacher_inputs) > 0

    def teacher(self, data: RunData) -> nn.Module:
        """Return a new teacher, with its weights where they are given.

        Raises:
            RecipeError: It cannot be made, or gives something else than (clips, outputs).
        """
        settings = self.recipe.teacher
        if settings is None:
            return NoTeacher()
        if settings.logits:
            made: nn.Module = GivenLogits()
        elif settings.onnx is not None:
            made = OnnxTeacher(self._folder / settings.onnx)
        else:
            seen = data.train.batch(np.arange(1), None).teacher_inputs[0].shape[1:]
            made = self._made("teacher", settings, tuple(seen), _outputs_of(data))
        self._check_teacher(made, data)
        return made

    def teacher_loss(self) -> Any:
        """Return cross entropy, or the mean square error of float targets."""

        def loss(network: nn.Module, batch: Batch) -> Scored:
            said = self.teacher_logits(network, batch)
            if batch.labels.is_floating_point():
                return F.mse_loss(said, batch.labels), said
            return F.cross_entropy(said, batch.labels), said

        return loss

    def student(self, data: RunData) -> nn.Module:
        """Return a new student, with its weights where they are given.

        Raises:
            RecipeError: It cannot be made.
        """
        shape = tuple(data.train.chip_inputs(np.arange(1)).shape[2:])
        return self._made("student", self.recipe.student, shape, _outputs_of(data))

    def student_output(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the student's logits or values, (B, outputs)."""
        form = self.form(student, tuple(batch.inputs.shape[2:]))
        given = run_steps(student, batch.inputs, form)
        if not form.left_out:
            steps = given.flatten(2)
            how = self.over_time(batch.labels.is_floating_point(), form)
            given = (
                steps[:, -1] if how == "last" else steps.mean(1) if how == "mean" else steps.sum(1)
            )
        given = given.reshape(len(given), -1, self.recipe.student.votes).sum(2)
        return self._scaled(given, batch.labels)

    def chip_output(self, output: ChipStudentOutput) -> ChipStudentOutput:
        """Return the output as it is; `distil` reads it beside its labels."""
        return output

    def distil(
        self, output: Tensor | ChipStudentOutput, teacher: nn.Module, batch: Batch
    ) -> Scored:
        """Return the loss of logits or values, and these."""
        if isinstance(output, ChipStudentOutput):
            output = self._scaled(output.logits, batch.labels)
        loss = self.recipe.student.loss
        alpha = loss.alpha if loss.alpha is not None else 0.5 * self.has_teacher()
        if not batch.labels.is_floating_point():
            if not alpha:
                return F.cross_entropy(output, batch.labels), output
            said = self.teacher_logits(teacher, batch)
            value = distillation_loss(
                output, said, batch.labels, alpha=alpha, temperature=loss.temperature
            )
            return value, output
        value = (1 - alpha) * F.mse_loss(output, batch.labels)
        if alpha:
            value = value + alpha * F.mse_loss(output, self.teacher_logits(teacher, batch))
        return value, output

    def deployable(self, student: nn.Module) -> nn.Module:
        """Return the saved student itself, in eval mode."""
        return student.eval()

    def assert_deployable(self, data: RunData) -> None:
        """Export and lower a new student; see `System.assert_deployable`."""
        settings, shape = self.recipe.deploy, data.train.chip_inputs(np.arange(1)).shape[2:]
        checked = check_module(
            self.student(data).eval(),
            tuple(shape),
            self.recipe.data.dt_s,
            weight_bits=settings.weight_bits,
            allow_approximate=settings.allow_approximate,
        )
        near = () if settings.allow_approximate else checked.approximations
        reasons = (*checked.not_exported, *checked.not_lowered, *near)
        if reasons:
            raise _not_on_chip(reasons)

    # --- the baseline that energy is compared with

    @property
    def has_baseline(self) -> bool:
        """True where the teacher is a network."""
        return self.recipe.teacher is not None and not self.recipe.teacher.logits

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module | bytes:
        """Return the teacher, or its ONNX file with all its weights."""
        return whole_onnx(teacher.path) if isinstance(teacher, OnnxTeacher) else teacher

    # --- own

    def over_time(self, values: bool, form: TimeForm) -> Literal["sum", "mean", "last"]:
        """Return how the outputs of all steps become one.

        Args:
            values: Whether labels are float targets.
            form: What the student does with its outputs itself.

        Raises:
            RecipeError: The student does something that no readout of a chip does, or something else
                than the recipe asks for.
        """
        asked, votes = self.recipe.student.over_time, self.recipe.student.votes
        if not form.left_out:
            return asked or ("mean" if values else "sum")
        # The loss takes the logarithm of a softmax itself, of which another one is the same.
        plain = () if values or votes > 1 else ("log_softmax",)
        how = REDUCED.get(form.left_out[0])
        said = f"student.network: gives the {', '.join(form.left_out)} of its outputs"
        if how is None or form.left_out[1:] not in ((), plain):
            raise RecipeError(
                f"{said}, which no readout on the chip does; return the outputs of all steps, and set student.over_time "
                "to sum, mean or last"
            )
        if asked not in (None, how):
            raise RecipeError(f"{said}, student.over_time is {asked}; leave that out")
        return how

    def form(self, student: nn.Module, features: tuple[int, ...]) -> TimeForm:
        """Return how the student takes time: one step and its state, or clips of all steps.

        Raises:
            SettingsError: It cannot be exported, so that it will not go to the chip.
        """
        if self._form is None:
            try:
                self._form = time_form(student, features)
            except ExportError as error:
                raise _not_on_chip(error.reasons or (str(error),)) from error
        return self._form

    def _scaled(self, found: Tensor, labels: Tensor) -> Tensor:
        # Float targets are in volts of the readout themselves: a scale would be another target.
        return found if labels.is_floating_point() else self.recipe.student.loss.scale * found

    def _made(
        self, what: str, settings: _UserNetwork, shape: tuple[int, ...], outputs: int
    ) -> nn.Module:
        assert settings.network is not None, "the recipe has checked it"
        votes = self.recipe.student.votes
        offered = {
            "input_shape": shape,
            "outputs": outputs * votes if what == "student" else outputs,
            "classes": outputs,
            "dt_s": self.recipe.data.dt_s,
        }
        made = make(settings.network, settings.arguments, offered, self._folder, what)
        if settings.weights is not None:
            load_user_weights(made, self._folder / settings.weights)
        return made.train()

    def _check_teacher(self, teacher: nn.Module, data: RunData) -> None:
        batch = data.train.batch(np.arange(1), None)
        if not batch.teacher_inputs:
            raise RecipeError(
                "teacher.logits: the training arrays have no 'logits'; add them, or name a network or an ONNX file"
            )
        try:
            with torch.no_grad():
                said = self.teacher_logits(teacher.eval(), batch)
        except RecipeError:
            raise
        except Exception as error:  # the user's own code may raise anything
            shape = tuple(batch.teacher_inputs[0].shape)
            raise RecipeError(
                f"teacher: fails on inputs of shape {shape} ({type(error).__name__}: {error}); it gets teacher_inputs, or what "
                "the student sees, clips first"
            ) from error
        finally:
            teacher.train()
        wanted = (1, _outputs_of(data))
        if tuple(said.shape) != wanted:
            raise RecipeError(
                f"teacher: gives {tuple(said.shape)} for one clip, needs {wanted}: a number for each class or target"
            )


def make(
    reference: str,
    arguments: Mapping[str, Argument],
    offered: Mapping[str, Any],
    folder: Path,
    what: str,
) -> nn.Module:
    """Call a user's function with the recipe's arguments, and those that it asks for by name.

    Raises:
        RecipeError: It cannot be found or called, or makes no network; arguments it does not take.
    """
    try:
        return build_network(reference, offered, arguments, beside=folder)
    except FactoryError as error:
        raise RecipeError(f"{what}.network: {error}") from error


def _not_on_chip(reasons: Sequence[str]) -> SettingsError:
    return SettingsError(
        f"student.network: will not go to the chip: {'; '.join(reasons)} (see docs/norse_modules.md and docs/lowering.md; "
        "`knarr check` looks at a network alone)"
    )


def _outputs_of(data: RunData) -> int:
    return len(data.targets or data.class_names)


# --- arrays to clips


def _held_out(split: UserSplit, share: float, seed: int) -> tuple[UserSplit, UserSplit]:
    """Return (training, test) clips of one split, no group on both sides."""
    groups = np.arange(len(split)) if split.groups is None else split.groups
    train, test = split_validation(groups, share, seed, setting="data.test")
    return split.part(train), split.part(test)


def _people(train: UserSplit, test: UserSplit, settings: ArraysData) -> tuple[list[str], str]:
    """Return what is to be said of groups, and how the splits were parted.

    Raises:
        DataError: A group on both sides, or clips without one.
    """
    if (train.groups is None) != (test.groups is None):
        without = train if train.groups is None else test
        raise DataError(
            without.source, "missing array: no 'groups', the other split has them; add them"
        )
    drawn = ""
    if not isinstance(settings.test, str):
        drawn = f", {settings.test:g} of them drawn by seed {settings.seed}"
    if train.groups is None or test.groups is None:
        note = (
            "no groups: each clip stands for itself, so that clips of one person may lie in training and validation; "
            "give 'groups' to keep people apart"
        )
        return [note], f"clips{drawn}" if drawn else "clips as they were given"
    shared = np.intersect1d(train.groups, test.groups)
    if len(shared) and settings.people_apart:
        raise DataError(
            test.source,
            f"groups overlap: {len(shared)} groups are in both splits, {str(shared[0])!r} among them; move them to one "
            "side, or set data.people_apart: false",
        )
    if len(shared):
        return [f"{len(shared)} groups are in both splits, as data.people_apart: false allows"], (
            "groups in both splits"
        )
    return [], f"groups apart{drawn}"


@dataclass(frozen=True, eq=False)
class _Loader:
    """Makes the data of a run from two splits.

    Args:
        system: The recipe's system.
        train, test: The splits.
        protocol: How they were parted, in words.
        notes: What is to be said of them.
    """

    system: Custom
    train: UserSplit
    test: UserSplit
    protocol: str
    notes: list[str]

    @property
    def settings(self) -> ArraysData:
        """Settings of the data."""
        return self.system.recipe.data

    @cached_property
    def values(self) -> bool:
        """True where labels are float targets."""
        if self.settings.labels != "auto":
            return self.settings.labels == "values"
        return not all(_whole(split.labels) for split in (self.train, self.test))

    def run_data(self) -> RunData:
        """Return both splits as a run takes them."""
        notes = list(self.notes)
        inputs, coding = self._inputs(notes)
        names, labels = self._targets() if self.values else self._classes(inputs[0], coding, notes)
        coding = replace(coding, over_time=self._over_time(inputs[0].shape[1]))
        test_groups = self.test.groups
        train, test = (
            self._clips(split, integers, coding, own)
            for split, integers, own in zip((self.train, self.test), inputs, labels, strict=True)
        )
        groups = np.arange(len(self.train)) if self.train.groups is None else self.train.groups
        return RunData(
            train,
            test,
            groups=groups,
            class_names=() if self.values else names,
            targets=names if self.values else (),
            name=self.settings.name or self.system.recipe.name,
            coding=coding,
            subjects=None if test_groups is None else tuple(map(str, test_groups.tolist())),
            names=self.test.names,
            protocol=self.protocol,
            sources=self._sources(),
            notes=tuple(notes),
        )

    # --- inputs

    def _inputs(self, notes: list[str]) -> tuple[tuple[AnyArray, AnyArray], Coding]:
        """Return integers of the chip for both splits, and their coding."""
        features = {split.inputs[0].shape[1:] for split in (self.train, self.test)}
        if len(features) > 1:
            raise DataError(
                self.test.source,
                f"shape: a step has {self.test.inputs[0].shape[1:]}, in training {self.train.inputs[0].shape[1:]}; make them alike",
            )
        splits = {"training clips": self.train, "test clips": self.test}
        longest = max(len(clip) for split in splits.values() for clip in split.inputs)
        found = []
        for what, split in splits.items():
            joined, done = same_length(split, self.settings.timesteps or longest)
            notes += done.sentences(what)
            found.append(joined)
        bits, units, signed = self._coding(found)
        kind: Literal["events", "graded"] = "events" if bits == 1 else "graded"
        neurons = (prod(found[0].shape[2:]),)
        dtype = InputCoding(neurons, bits, None, units, kind, signed).dtype
        least = 1 - 2**bits if signed else 0
        integers = []
        for what, split, values in zip(splits, splits.values(), found, strict=True):
            scaled = np.rint(values * np.float64(units)) if units != 1 else values
            if scaled.min() < least or scaled.max() >= 2**bits:
                raise DataError(
                    split.source,
                    f"inputs: {values.min():g}..{values.max():g} times {units:g} do not fit {bits} bits, {least}..{2**bits - 1}; "
                    "scale them, or change data.input_units or data.input_bits",
                )
            lost = 0.0 if units == 1 else float(np.abs(scaled / units - values).max())
            if lost > 0:
                notes.append(f"{what}: inputs are rounded to 1/{units:g}, by {lost:.2g} at most")
            integers.append(scaled.astype(dtype))
        coding = Coding(
            bits,
            units,
            kind,
            votes=self.system.recipe.student.votes,
            signed=signed,
        )
        return (integers[0], integers[1]), coding

    def _over_time(self, timesteps: int) -> Literal["sum", "mean", "last"]:
        """Return how outputs of all steps become one."""
        form = self.system._form
        assert form is not None, "the labels were compared with the student's outputs"
        if form.steps not in (0, timesteps):
            raise SettingsError(
                f"student.network: takes {form.steps} steps, the clips have {timesteps}; set data.timesteps: {form.steps}, or "
                "take the steps of its input"
            )
        return self.system.over_time(self.values, form)

    def _coding(self, splits: list[AnyArray]) -> tuple[int, float, bool]:
        """Return bits and units of the inputs, and whether any is negative, by their values and not by
        their dtype.
        """
        settings = self.settings
        low, high = (min(each.min() for each in splits), max(each.max() for each in splits))
        if settings.input_units is None and not all(_is_whole(each) for each in splits):
            raise DataError(
                self.train.source,
                f"inputs: {low:g}..{high:g} are no whole numbers; set data.input_units, such as 255 for 0..1 in 8 bits, and "
                "they are rounded to integers of the chip",
            )
        units = settings.input_units or 1.0
        most = int(np.rint(max(abs(float(low)), abs(float(high))) * units))
        bits = settings.input_bits or max(1, most.bit_length())
        if bits > MAX_INPUT_BITS:
            raise DataError(
                self.train.source,
                f"inputs: up to {most} need {bits} bits > {MAX_INPUT_BITS}; scale them with data.input_units",
            )
        return bits, units, bool(low < 0)

    # --- labels

    def _targets(self) -> tuple[tuple[str, ...], tuple[AnyArray, AnyArray]]:
        """Return names and (N, k) values of float targets."""
        found = []
        for split in (self.train, self.test):
            if split.labels.dtype.kind == "U":
                raise DataError(
                    split.source, "labels: text is no float target; set data.labels: classes"
                )
            values = split.labels.astype(np.float32)
            found.append(values[:, None] if values.ndim == 1 else values)
        count = found[0].shape[1]
        if found[1].shape[1] != count:
            raise DataError(
                self.test.source,
                f"labels: {found[1].shape[1]} targets, in training {count}; make them alike",
            )
        names = self.settings.targets or tuple(
            "target" if count == 1 else f"target {number}" for number in range(count)
        )
        if len(names) != count:
            raise DataError(
                self.train.source,
                f"labels: {count} targets, data.targets names {len(names)}; name each",
            )
        outputs = self._student_outputs(self.train.inputs[0].shape[1:], count)
        if outputs != count * self.system.recipe.student.votes:
            raise RecipeError(
                f"student.network: gives {outputs} numbers in a step, the labels have {count} float targets; give one for each"
            )
        return names, (found[0], found[1])

    def _classes(
        self, integers: AnyArray, coding: Coding, notes: list[str]
    ) -> tuple[tuple[str, ...], tuple[AnyArray, AnyArray]]:
        """Return names and (N,) numbers of classes."""
        splits = self.train, self.test
        for split in splits:
            if split.labels.ndim != 1 or not _whole(split.labels):
                raise DataError(
                    split.source,
                    f"labels: {split.labels.dtype} {split.labels.shape} are no classes; give one whole number or name for each "
                    "clip, or set data.labels: values",
                )
        text = [split.labels.dtype.kind == "U" for split in splits]
        if text[0] != text[1]:
            raise DataError(
                self.test.source, "labels: text in one split, numbers in the other; make them alike"
            )
        given = self.settings.classes
        if text[0]:
            named = given or tuple(np.unique(self.train.labels).tolist())
            place = {name: number for number, name in enumerate(named)}
            found = []
            for split in splits:
                unknown = sorted(set(split.labels.tolist()) - place.keys())
                if unknown:
                    raise DataError(
                        split.source,
                        f"labels: {unknown[0]!r} is none of the classes {', '.join(named)}; name it in data.classes",
                    )
                found.append(np.array([place[name] for name in split.labels.tolist()], np.int64))
        else:
            found = [split.labels.astype(np.int64) for split in splits]
        low, high = min(each.min() for each in found), max(each.max() for each in found)
        known = len(given) if given else max(2, int(high) + 1)
        if text[0]:
            known = len(named)
        votes = self.system.recipe.student.votes
        outputs = self._student_outputs(integers.shape[2:], known)
        count = known if given or text[0] else outputs // votes
        self._check_range(int(low), int(high), count, outputs, votes)
        names = given or (named if text[0] else tuple(str(number) for number in range(count)))
        absent = sorted(set(range(count)) - set(found[0].tolist()))
        if absent:
            notes.append(
                f"no training clip of class {', '.join(names[number] for number in absent[:10])}"
            )
        return names, (found[0], found[1])

    def _check_range(self, low: int, high: int, count: int, outputs: int, votes: int) -> None:
        of_network = f"{outputs} outputs" + (f" in votes of {votes}" if votes > 1 else "")
        if outputs % votes or outputs // votes != count:
            raise RecipeError(
                f"student.network: gives {of_network} for {count} classes; give {count * votes}, or set student.votes"
            )
        if low < 0 or high >= count:
            cure = "correct them, or change the network"
            if low > 0 and high - low < count:
                cure = f"subtract {low}, or change the network"
            if count == 1:
                cure = (
                    "give it an output for each class, or set data.labels: values for float targets"
                )
            raise DataError(
                self.train.source,
                f"labels: {low}..{high}, the network has classes 0..{count - 1} ({of_network}); {cure}",
            )
        # A factory that is told the number of classes would make one for a class 0 that never occurs.
        if low > 0 and high == count - 1 and self.settings.classes is None:
            raise DataError(
                self.train.source,
                f"labels: {low}..{high}, classes count from 0; subtract {low}, or name all {count} in data.classes",
            )

    def _student_outputs(self, features: tuple[int, ...], wanted: int) -> int:
        """Return how many numbers the student gives in a step; its code runs."""
        system = self.system
        student = system._made("student", system.recipe.student, tuple(features), wanted)
        form = system.form(student, tuple(features))
        try:
            with torch.no_grad():
                given = run_steps(student.eval(), torch.zeros(1, form.steps or 2, *features), form)
        except Exception as error:  # the user's own code may raise anything
            raise RecipeError(
                f"student.network: fails on a step of shape (1, {', '.join(map(str, features))}) "
                f"({type(error).__name__}: {error}); see that it takes any number of clips and of steps"
            ) from error
        return int(given.flatten(1 if form.left_out else 2).shape[-1])

    # --- what the teacher sees

    def _clips(
        self, split: UserSplit, integers: AnyArray, coding: Coding, labels: AnyArray
    ) -> UserClips:
        teacher = self.system.recipe.teacher
        seen = split.teacher_inputs
        taught = teacher is not None
        if teacher is not None and teacher.logits:
            seen, taught = split.logits, split.logits is not None
        if seen is not None and seen.dtype.kind == "U":
            raise DataError(split.source, "dtype: 'teacher_inputs' are text; give numbers")
        floats = None if seen is None else seen.astype(np.float32)
        return UserClips(integers, coding.units, labels, floats, taught)

    def _sources(self) -> tuple[str, ...]:
        """Return hashes of files that networks come from: another file is another run."""
        recipe, folder = self.system.recipe, Path(self.system.recipe.folder or ".")
        teacher = recipe.teacher
        files = [recipe.student.weights]
        if teacher is not None:
            files.append(teacher.weights)
        found = []
        for name in files:
            if name is not None and (folder / name).is_file():
                found.append(sha256_of(folder / name))
        if teacher is not None and teacher.onnx is not None and (folder / teacher.onnx).is_file():
            found.append(sha256(whole_onnx(folder / teacher.onnx)).hexdigest())
        if teacher is not None and teacher.logits:
            found.append("logits")
        return tuple(found)


def _is_whole(values: AnyArray) -> bool:
    return values.dtype.kind in "biu" or bool((values == np.rint(values)).all())


def _whole(labels: AnyArray) -> bool:
    """Return whether labels are classes by their values: text, or whole numbers of one axis."""
    if labels.ndim != 1:
        return False
    return labels.dtype.kind == "U" or _is_whole(labels)
