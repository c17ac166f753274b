"""The class of all systems: data, networks, losses and what is exported; the rest is shared."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor, nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Clips, Indices
from knarr.train.datasets.arrays import AnyArray
from knarr.train.fitting.fit import Fitter, Loss
from knarr.train.settings import Recipe, RecipeError

Scored = tuple[Tensor, Tensor]
"""A loss, which is a mean over clips, and the (B, classes) logits that it was computed from."""
ChipLoss = Callable[[ChipStudentOutput, Batch], Scored]
"""(output of a chip student, batch) -> loss and logits."""
Progress = Callable[[int, int], None]
"""A function that is called with (done, in all)."""
Settings = TypeVar("Settings", bound=Recipe)


@dataclass(frozen=True)
class Coding:
    """Coding of a student's inputs as integers of the chip: input * units, of so many bits.

    Args:
        bits: Bits of an input; 1 for spikes.
        units: Integers per unit of the float network's input.
        kind: `InputCoding.kind`.
        over_time: How the outputs of all steps become one, see `Readout`.
        votes: Output neurons of each class, see `Readout`.
        signed: Whether inputs may be negative, see `InputCoding`.
    """

    bits: int = 1
    units: float = 1.0
    kind: Literal["events", "graded"] = "events"
    over_time: Literal["sum", "mean", "last"] = "sum"
    votes: int = 1
    signed: bool = False


FINGERPRINT_VERSION: Final = "2:"
"""Prefix of every fingerprint of this form."""
FINGERPRINT_CLIPS: Final = 16
"""Clips of each split that a fingerprint looks into, give or take one; labels it has of all."""
ROUNDING_PER_UNIT: Final = 16
"""Teacher inputs are hashed in steps of 1/16: another machine adds floats in another order, and its
last bits are seldom other data.
"""


def _add(digest: Any, values: AnyArray) -> None:
    # The shape too: the same bytes in another shape are other data.
    digest.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())


@dataclass(frozen=True, eq=False)
class RunData:
    """Both splits of a recipe's data. `test` is never trained or tuned on.

    Args:
        train: Clips to train and to validate on.
        test: Clips to test on.
        groups: (N,) group of each training clip: a group never lies on both sides of the validation
            split.
        class_names: One per class; empty where labels are float targets.
        name: Name of the data set, as published tables call it; generated data say so.
        coding: Coding of the student's inputs.
        subjects: (M,) person of each test clip; None where clips have none.
        lights: (M,) lighting of each test clip; None where there is none to tell apart.
        validation: Indices of the training clips that are validated on; None where they are drawn
            by group.
        names: (M,) names of the test clips, all different, over the folds of a data set too; empty
            numbers them.
        protocol: How training and test clips were parted, in words.
        fold: Number of the fold that is tested; None where there are no folds.
        fold_count: Number of folds.
        sampling: How windows are cut ("E4-S3"); None where clips are seen whole.
        targets: Names of the float targets; empty where labels are classes.
        sources: Hashes of more that a run depends on, such as files of weights.
        notes: Sentences about the data to be shown when a run begins.
    """

    train: Clips
    test: Clips
    groups: npt.NDArray[np.generic]
    class_names: tuple[str, ...]
    name: str = ""
    coding: Coding = field(default_factory=Coding)
    subjects: tuple[str, ...] | None = None
    lights: tuple[str, ...] | None = None
    validation: Indices | None = None
    names: tuple[str, ...] = ()
    protocol: str = ""
    fold: int | None = None
    fold_count: int = 1
    sampling: str | None = None
    targets: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> int | None:
        """Number of classes; None where labels are float targets."""
        return None if self.targets else len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of labels, people, validation clips, and what student and teacher see of some
        clips: tells data sets apart.
        """
        validation = None if self.validation is None else self.validation.tolist()
        people: list[object] = [self.groups.tolist(), self.subjects, validation]
        # Only where there are any: data without them keep the fingerprint that runs hold.
        people += [self.sources] if self.sources else []
        digest = hashlib.sha256(json.dumps(people).encode())
        for clips in (self.train, self.test):
            _add(digest, clips.labels)
            count = len(clips.labels)
            for number in range(0, count, max(1, count // FINGERPRINT_CLIPS)):
                one = np.array([number])
                _add(digest, clips.chip_inputs(one))
                for seen in clips.batch(one, None).teacher_inputs:
                    _add(digest, np.rint(ROUNDING_PER_UNIT * seen.numpy()).astype(np.int32))
        return FINGERPRINT_VERSION + digest.hexdigest()


class System(ABC, Generic[Settings]):
    """One of the systems, with a recipe's settings: data, networks, losses and what is exported.

    A class of your own is named in a recipe as `system: package.module:Class`; docs/own_data.md has
    an example. It sets `recipe_class` and implements `load`, `teacher`, `student`,
    `student_output`, `chip_output`, `distil` and `deployable`; all else has a default.

    Args:
        recipe: Settings of this system.
    """

    recipe_class: ClassVar[type[Recipe]]
    """Class that checks and holds the settings of a recipe of this system."""

    def __init__(self, recipe: Settings) -> None:
        self.recipe = recipe

    # --- data

    @abstractmethod
    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        """Read both splits, strictly.

        Args:
            root: Folder of the data set.
            cache: Folder for prepared samples, where preparing takes long.
            progress: Called with (samples done, in all).

        Raises:
            DataError: Anything missing or malformed.
        """

    def folder_name(self) -> str:
        """Return the name of the folder of generated data, which has the settings that they depend
        on.

        Raises:
            RecipeError: The data are not generated.
        """
        name = self.recipe.data.generated_folder
        if name is None:
            raise RecipeError(
                f"recipe '{self.recipe.name}': its data is not generated; pass the folder with --data"
            )
        return name

    def own_folder(self) -> Path | None:
        """Return the folder that the recipe's data are read from where the user names none; None
        where one has to be named, or data are generated.
        """
        return None

    def generate(self, root: Path, progress: Progress | None = None) -> None:
        """Write generated data to a folder that does not exist.

        Raises:
            RecipeError: The data are not generated.
        """
        self.folder_name()
        self.recipe.data.generate(root, progress)

    def passes(self, data: RunData, windows: int, seed: int) -> Sequence[Clips]:
        """Return the test set as an evaluation sees it, once or through several random windows; the
        first is `data.test`.
        """
        return [data.test]

    # --- networks

    @abstractmethod
    def teacher(self, data: RunData) -> nn.Module:
        """Return a new teacher."""

    def has_teacher(self, clips: Clips | None = None) -> bool:
        """Return whether there is a teacher, or one that can say something of these clips."""
        return True

    def teacher_settings(self) -> dict[str, Any]:
        """Return all settings of networks that a teacher depends on, as plain values: runs that
        agree in them can share one.
        """
        return {} if self.recipe.teacher is None else self.recipe.teacher.model_dump(mode="json")

    def teacher_loss(self) -> Loss:
        """Return the loss that the teacher is fitted by."""

        def loss(network: nn.Module, batch: Batch) -> Scored:
            logits = self.teacher_logits(network, batch)
            return self.teacher_error(logits, batch.labels), logits

        return loss

    def teacher_error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of a teacher's logits, smoothed where its recipe says so."""
        smoothing = getattr(self.recipe.teacher, "label_smoothing", 0.0)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> Tensor:
        """Return the teacher's logits, (B, classes)."""
        return _logits(teacher(*batch.teacher_inputs))

    @abstractmethod
    def student(self, data: RunData) -> nn.Module:
        """Return a new student, in the form in which it is trained."""

    def student_loss(self, teacher: nn.Module) -> Loss:
        """Return the loss that the student is fitted by, with a frozen teacher in eval mode."""
        # Lightning moves the student alone to a device: the teacher is no part of what is fitted.
        return lambda student, batch: self.distil(
            self.student_output(student, batch), teacher.to(batch.inputs.device), batch
        )

    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        """Return `student_loss` for a student that runs in the chip's arithmetic, on as many steps
        as it was shown.

        Raises:
            RecipeError: Settings of a student that no chip holds.
        """
        return lambda output, batch: self.distil(
            self.chip_output(output), teacher.to(batch.inputs.device), batch
        )

    @abstractmethod
    def student_output(self, student: nn.Module, batch: Batch) -> Any:
        """Return what `distil` reads of a student as it is trained or saved: its logits, or an
        output that has them.
        """

    @abstractmethod
    def chip_output(self, output: ChipStudentOutput) -> Any:
        """Return the same of a student that runs in the chip's arithmetic."""

    @abstractmethod
    def distil(self, output: Any, teacher: nn.Module, batch: Batch) -> Scored:
        """Return the loss of a student's output, with the teacher's terms, and its logits."""

    def student_fitter(
        self, teacher: nn.Module, data: RunData, train: Indices, run_folder: Path
    ) -> tuple[Indices, Callable[..., Fitter]]:
        """Return how the student is fitted.

        Args:
            teacher: Frozen, in eval mode.
            data: Data of the run.
            train: Training clips that are no validation clips.
            run_folder: Folder for more files of the run.

        Returns:
            The clips that the student learns on, and `module_class` of `fit`: a plain `Fitter` on
            all of them where `student_loss` is all that is asked for.
        """
        return train, Fitter

    def student_logits(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of a student as it is trained or saved, (B, classes)."""
        return _logits(self.student_output(student, batch))

    def saved_form(self, student: nn.Module) -> nn.Module:
        """Return the network whose weights student.safetensors holds, made from a trained
        student.
        """
        return student

    def new_saved_form(self, data: RunData) -> nn.Module:
        """Return a new network of that form, which student.safetensors can be loaded into."""
        return self.student(data)

    @abstractmethod
    def deployable(self, student: nn.Module) -> nn.Module:
        """Return the network that is exported for a student in its saved form.

        Raises:
            RecipeError: Settings of a student that no graph or chip holds.
        """

    def assert_deployable(self, data: RunData) -> None:
        """Refuse, before anything is fitted, a student that will not go to the chip; those of knarr's
        own systems do, or say so when their recipe is read.

        Raises:
            SettingsError: Why it cannot be exported or lowered, layer by layer.
        """

    # --- the baseline that energy is compared with

    @property
    def has_baseline(self) -> bool:
        """True where there is a network that the student's energy can be compared with."""
        return True

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module | bytes:
        """Return the teacher as a network from one tensor to one tensor, or the bytes of an ONNX
        file of it.
        """
        return teacher

    def baseline_inputs(self, batch: Batch) -> Tensor:
        """Return the inputs of that network."""
        return batch.teacher_inputs[0]


def _logits(output: Any) -> Tensor:
    """Return the logits of a network's output, which is nothing else for most."""
    return output if isinstance(output, Tensor) else output.logits


class OneTensor(nn.Module):
    """A teacher of several inputs that takes them in one tensor, as an ONNX file does, and gives
    logits alone.

    Args:
        teacher: Network whose output has `logits`.
        split: Function that parts the one tensor into the teacher's inputs.
    """

    def __init__(self, teacher: nn.Module, split: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.teacher, self.split = teacher, split

    def forward(self, joined: Tensor) -> Tensor:
        """Return (B, classes) logits."""
        return self.teacher(*self.split(joined)).logits
