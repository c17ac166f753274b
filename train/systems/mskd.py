"""MSKD on SEE and on generated eyes: SEEN or a hybrid teaches a spiking student of frames [reconstruction, but for the data and SEEN]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import norse.torch as snn
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from knarr.train.chip.network import ChipStudentOutput
from knarr.train.clips import Batch, Clips, Indices
from knarr.train.datasets.eyes.generate import generate
from knarr.train.datasets.see.sequences import SeeSequences, read_sequences
from knarr.train.datasets.see.windows import evaluation_windows
from knarr.train.datasets.splits import assert_apart, subject_folds
from knarr.train.errors import DataError
from knarr.train.fitting.fit import Loss
from knarr.train.losses.mskd import mskd_loss
from knarr.train.networks.branch_merge import MultiScale
from knarr.train.networks.chip_form import chip_form
from knarr.train.networks.heads import StepLogits, decide
from knarr.train.networks.mskd import MskdStudentSettings, build_mskd_student, build_mskd_teacher
from knarr.train.networks.seen import SeenSettings
from knarr.train.settings import RecipeError
from knarr.train.systems.base import ChipLoss, Coding, Progress, RunData, System
from knarr.train.systems.mskd_recipe import MskdEyesData, MskdRecipe, SeeData
from knarr.train.systems.see_windows import SeeWindows

SEE_SEQUENCES, SEE_TESTED = 2405, 767


class Mskd(System[MskdRecipe]):
    """See above."""

    # --- data

    def load(
        self, root: Path, *, cache: Path | None = None, progress: Progress | None = None
    ) -> RunData:
        settings = self.recipe.data
        least = settings.window.least_frames
        if isinstance(settings, SeeData):
            sequences = read_sequences(
                root,
                size=settings.size,
                least=least,
                on_bad=settings.on_bad,
                event_dir=settings.event_dir,
                frame_dir=settings.frame_dir,
                index=settings.index,
                cache=cache,
                progress=progress,
            )
        else:
            sequences = read_sequences(
                root, size=settings.size, least=least, cache=cache, progress=progress
            )
        train, test = self._split(root, sequences)
        held = self._windows(sequences, test)
        by_people = settings.split == "subject"
        return RunData(
            self._windows(sequences, train),
            held,
            np.array(sequences.subjects)[train],
            sequences.label_names,
            _name_of(settings, len(sequences.labels), len(test)),
            Coding(bits=held.bits, units=held.units, kind="graded", over_time="mean"),
            held.subjects,
            held.lights,
            names=tuple(sequences.names[at] for at in test),
            protocol=f"{settings.folds} folds of people" if by_people else "the index's split",
            fold=settings.fold if by_people else None,
            fold_count=settings.folds if by_people else 1,
            sampling=settings.sampling,
        )

    def _split(self, root: Path, sequences: SeeSequences) -> tuple[Indices, Indices]:
        """Sequences to train and to test on."""
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
        if settings.split == "subject" or isinstance(settings, MskdEyesData):
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

    def folder_name(self) -> str:
        settings = self.recipe.data
        if not isinstance(settings, MskdEyesData):
            return super().folder_name()
        return (
            f"eyes-{settings.size}px-{settings.frames}f-{settings.subjects}p-{settings.takes_per_emotion}t-"
            f"{settings.seed}"
        )

    def generate(self, root: Path, progress: Progress | None = None) -> None:
        settings = self.recipe.data
        if not isinstance(settings, MskdEyesData):
            super().generate(root, progress)
            return
        generate(
            root,
            subjects=settings.subjects,
            takes_per_emotion=settings.takes_per_emotion,
            frames=settings.frames,
            size=settings.size,
            seed=settings.seed,
            progress=progress,
        )

    def passes(self, data: RunData, windows: int, seed: int) -> Sequence[Clips]:
        """The test set seen `windows` times, through drawn windows but for the first time; 20 times in the published protocol."""
        return cast(SeeWindows, data.test).passes(windows, seed)

    # --- networks

    def teacher(self, data: RunData) -> nn.Module:
        settings = self.recipe.teacher.network
        seen = settings.seen.model_copy(
            update=_classes("teacher.network.seen", settings.seen, data)
        )
        return build_mskd_teacher(settings.model_copy(update={"seen": seen}))

    def teacher_loss(self) -> Loss:
        smoothing = self.recipe.teacher.label_smoothing

        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.teacher_logits(network, batch)
            return F.cross_entropy(logits, batch.labels, label_smoothing=smoothing), logits

        return loss

    def teacher_logits(self, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        return _decided(teacher, batch).logits

    def student(self, data: RunData) -> nn.Module:
        settings = self.recipe.student.network
        student = build_mskd_student(
            settings.model_copy(update=_classes("student.network", settings, data))
        )
        if self.recipe.student.centred:
            for branch in cast(MultiScale, student[0]).branches:
                register_parametrization(branch, "weight", Centred())
        return student

    def student_loss(self, teacher: nn.Module) -> Loss:
        def loss(network: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._distil(
                decide(cast(snn.SequentialState, network), batch.inputs), teacher, batch
            )

        return loss

    def chip_loss(self, teacher: nn.Module) -> ChipLoss:
        def loss(ran: ChipStudentOutput, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            volts = ran.step_logits
            return self._distil(StepLogits(volts.mean(1), volts, ran.rates), teacher, batch)

        return loss

    def _distil(
        self, seen: StepLogits, teacher: nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        settings = self.recipe.student.loss
        taught = None
        if settings.needs_teacher:
            with torch.no_grad():
                taught = _decided(teacher, batch)
            # A student that is shown fewer steps is compared with the teacher's first ones.
            taught = taught._replace(step_logits=taught.step_logits[:, : seen.step_logits.shape[1]])
        return mskd_loss(seen, taught, batch.labels, settings).total, seen.logits

    def student_logits(self, kept: nn.Module, batch: Batch) -> torch.Tensor:
        return decide(cast(snn.SequentialState, kept), batch.inputs).logits

    def deployable(self, kept: nn.Module) -> snn.SequentialState:
        settings = self.recipe.student.network
        for fault, cure in _not_for_chips(settings):
            raise RecipeError(f"student.network.{fault} cannot be exported; {cure}")
        return chip_form(cast(snn.SequentialState, kept), snap=True)

    # --- the baseline

    def baseline(self, teacher: nn.Module, data: RunData) -> nn.Module:
        return OneTensor(teacher)

    def baseline_inputs(self, batch: Batch) -> torch.Tensor:
        return torch.cat(batch.teacher_inputs, dim=2)


def _name_of(settings: SeeData | MskdEyesData, sequences: int, tested: int) -> str:
    """Only the whole of SEE under its own split is what published numbers were measured on."""
    if isinstance(settings, MskdEyesData):
        return "generated eyes"
    whole = sequences == SEE_SEQUENCES and (settings.split == "subject" or tested == SEE_TESTED)
    return "SEE" if whole else f"{sequences} sequences in SEE's layout"


class Centred(nn.Module):
    """Kernels (out, in, k, k) less the mean of each: w - mean(w)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight - weight.mean((2, 3), keepdim=True)


class OneTensor(nn.Module):
    """A teacher of events and frames on both in one tensor: (B, T, 6, H, W), events first -> (B, classes)."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        events, frames = both.chunk(2, dim=2)
        decided: StepLogits = self.teacher(events, frames)
        return decided.logits


def _decided(teacher: nn.Module, batch: Batch) -> StepLogits:
    decided: StepLogits = teacher(*batch.teacher_inputs)
    return decided


def _classes(
    path: str, settings: SeenSettings | MskdStudentSettings, data: RunData
) -> dict[str, int]:
    """The number of classes in the data, unless a recipe says another."""
    found = len(data.class_names)
    if settings.classes != found and "classes" in settings.model_fields_set:
        raise RecipeError(
            f"{path}.classes: {settings.classes}, but {data.name} has {found}; leave it out"
        )
    return {"classes": found}


def _not_for_chips(settings: MskdStudentSettings) -> list[tuple[str, str]]:
    """What no graph holds of a student, each with its cure."""
    return [
        (what, cure)
        for wrong, what, cure in (
            (
                settings.gate == "dynamic",
                "gate: 'dynamic' depends on the image and",
                "train with 'static' or 'none'",
            ),
            (
                settings.readout == "membrane",
                "readout: 'membrane', a neuron read before its reset,",
                "train with 'li'",
            ),
            (
                settings.neuron.fires == "ge",
                "neuron.fires: 'ge', at the threshold,",
                "train with 'gt'",
            ),
        )
        if wrong
    ]
