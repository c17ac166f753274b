"""What tells one data set from another: numbers over labels, people and a few clips of each split.

What a system gives to training, export and evaluation; the loop, the files and the command line are the same for all.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Clips, Indices
from knarr.train.fitting.fit import Loss
from knarr.train.settings import Recipe, RecipeError

FINGERPRINT_VERSION: Final = "2:"
"""Before every number of this form; runs of earlier versions hold one of `old_fingerprint`, without it."""
CLIPS: Final = 16
ROUNDING_PER_UNIT: Final = 16
"""Teacher inputs are hashed in steps of 1/16: another machine adds floats in another order, and its last bits are seldom other data."""


def fingerprint(splits: tuple[Clips, ...], *facts: Any) -> str:
    """SHA-256 over labels, and over what student and teacher see of some clips of each split, and over plain facts.

    Args:
        splits: of the data set.
        facts: groups, people, indices: lists of plain values.
    """
    digest = hashlib.sha256(json.dumps(facts).encode())
    for clips in splits:
        _add(digest, clips.labels)
        for number in range(0, len(clips.labels), max(1, len(clips.labels) // CLIPS)):
            one = np.array([number])
            _add(digest, clips.chip_inputs(one))
            for seen in clips.batch(one, None).teacher_inputs:
                _add(digest, np.rint(ROUNDING_PER_UNIT * seen.numpy()).astype(np.int32))
    return FINGERPRINT_VERSION + digest.hexdigest()


def _add(digest: Any, values: npt.NDArray[Any]) -> None:
    digest.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())


def old_fingerprint(*splits: Clips) -> str:
    """As the first version had it: labels and student inputs of a few clips of each split, and nothing that a teacher sees."""
    digest = hashlib.sha256()
    for clips in splits:
        digest.update(clips.labels.tobytes())
        some = clips.chip_inputs(np.arange(len(clips.labels))[:: max(1, len(clips.labels) // 8)])
        # Spikes are packed, as they were before there was any other input: old runs keep their fingerprint.
        digest.update((np.packbits(some) if some.max(initial=0) <= 1 else some).tobytes())
    return digest.hexdigest()


ChipLoss = Callable[[ChipStudentOutput, Batch], tuple[torch.Tensor, torch.Tensor]]
"""(what a chip student gave, batch) -> (loss, (B, classes) logits), a mean over clips."""
Progress = Callable[[int, int], None]
Settings = TypeVar("Settings", bound=Recipe)


@dataclass(frozen=True)
class Coding:
    """How a student's inputs become integers of the chip: input * units, of so many bits.

    Args:
        bits: 1 for spikes.
        units: integers per unit of the float network's input.
        kind: `InputCoding.kind`.
        over_time, votes: how outputs become a decision (`Readout`).
    """

    bits: int = 1
    units: float = 1.0
    kind: Literal["events", "graded"] = "events"
    over_time: Literal["sum", "mean", "last"] = "sum"
    votes: int = 1


@dataclass(frozen=True, eq=False)
class RunData:
    """Both splits of a recipe's data. `test` is never trained or tuned on.

    Args:
        train, test: the splits.
        groups: (N,) of the training clips: a group never lies on both sides of the validation split.
        class_names: one per class.
        name: of the data set, as published tables call it; generated data say so.
        coding: of the student's inputs.
        subjects: (M,) whose each test clip is; None where nobody's.
        lights: (M,) lighting of each test clip; None where there is none to tell apart.
        validation: indices of the training clips that are validated on; None where they are drawn by group.
        names: (M,) of the test clips, all different, over the folds of a data set too; empty numbers them.
        protocol: how training and test clips were parted, in words.
        fold, fold_count: which of how many folds is tested; None where there are no folds.
        sampling: how windows are cut ("E4-S3"); None where clips are seen whole.
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

    @cached_property
    def fingerprint(self) -> str:
        """Of labels, people, validation clips, and what student and teacher see of some clips: tells one data set from another."""
        validation = None if self.validation is None else self.validation.tolist()
        return fingerprint((self.train, self.test), self.groups.tolist(), self.subjects, validation)

    def is_of(self, kept: object) -> bool:
        """Whether a fingerprint that was kept, by this version or an earlier one, is that of these data."""
        if isinstance(kept, str) and kept.startswith(FINGERPRINT_VERSION):
            return kept == self.fingerprint
        return kept == old_fingerprint(self.train, self.test)


class System(ABC, Generic[Settings]):
    """One of the systems, with a recipe's settings.

    Args:
        recipe: settings of this system.
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
        """Both splits, read strictly.

        Args:
            root: folder of the data set.
            cache: folder for prepared samples, where preparing takes long.
            progress: called with (samples done, in all).

        Raises:
            DataError: anything missing or malformed.
        """

    def folder_name(self) -> str:
        """Of generated data: the settings that they depend on."""
        raise RecipeError(
            f"recipe '{self.recipe.name}': its data is not generated; pass the folder with --data"
        )

    def generate(self, root: Path, progress: Progress | None = None) -> None:
        """Write generated data to a folder that does not exist."""
        self.folder_name()

    def passes(self, data: RunData, windows: int, seed: int) -> Sequence[Clips]:
        """The test set as an evaluation sees it, once or through several random windows; the first is `data.test`."""
        return [data.test]

    # --- networks

    @abstractmethod
    def teacher(self, data: RunData) -> nn.Module:
        """A new teacher."""

    def teacher_settings(self) -> dict[str, Any]:
        """All settings of networks that a teacher depends on, as plain values: runs that agree in them can share one."""
        return self.recipe.teacher.model_dump(mode="json")

    @abstractmethod
    def teacher_loss(self) -> Loss:
        """What it is fitted by."""

    @abstractmethod
    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        """(B, classes)."""

    @abstractmethod
    def student(self, data: RunData) -> nn.Module:
        """A new student, in the form in which it is trained."""

    @abstractmethod
    def student_loss(self, teacher: nn.Module) -> Loss:
        """What it is fitted by, beside a frozen teacher in eval mode."""

    @abstractmethod
    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        """`student_loss` of a student that runs in the chip's arithmetic, on as many steps as it was shown.

        Raises:
            RecipeError: settings of a student that no chip holds.
        """

    def student_fitter(
        self, teacher: nn.Module, data: RunData, train: Indices, run_folder: Path
    ) -> tuple[Indices, Callable[..., Any]] | None:
        """How the student is fitted where a plain `Fitter` and `student_loss` do not do.

        Args:
            teacher: frozen, in eval mode.
            train: training clips that are no validation clips.
            run_folder: for more files of the run.

        Returns:
            Which of the clips it learns on, and `fit`'s `make`; None for `Fitter` on all of them.
        """
        return None

    @abstractmethod
    def student_logits(self, kept: nn.Module, batch: Batch) -> torch.Tensor:
        """(B, classes) of a student in the form in which it is kept."""

    def keep(self, student: nn.Module) -> nn.Module:
        """What student.safetensors holds of a trained student."""
        return student

    def kept(self, data: RunData) -> nn.Module:
        """An empty one of that form."""
        return self.student(data)

    @abstractmethod
    def deployable(self, kept: nn.Module) -> snn.SequentialState:
        """What is exported.

        Raises:
            RecipeError: settings of a student that no graph or chip holds.
        """

    # --- the baseline that energy is compared with

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module:
        """The teacher as a network from one tensor to one tensor, as an ONNX file is."""
        return teacher

    def baseline_inputs(self, batch: Batch) -> torch.Tensor:
        """What it is fed."""
        return batch.teacher_inputs[0]
