"""Fine-tune a lowered graph of any tool on the chip's integers, with the user's own arrays.

What lowering took away, and what the file of another tool never held (snnTorch's subtracting reset
cannot be said in NIR), is learned back in the arithmetic that the chip has: the network is fitted as
a recipe's student is (`chip_fit`), with these losses:

    classes   cross entropy of g * scores; with a teacher `distillation_loss`
    targets   mean square error of the scores, in units of the targets' variance

Scores are what the readout gives (`Readout`): counts of spikes or volts, over time as it says. The
gain g is one number: it brings the lowered network's scores to LOGIT_SPREAD, since volts of a
readout may be so small that their softmax says nothing, and counts so large that it says everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, TypeAlias

import nir
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

from knarr.deploy import lower, unrounded_weights
from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    InputCoding,
    check_inputs,
    check_labels,
    is_one_hot,
)
from knarr.train.chip import ChipStudentOutput
from knarr.train.chip_fit import ChipFit, chip_student, fit_lowered
from knarr.train.clips import EVALUATION_BATCH, Batch, Indices, evaluation_batches
from knarr.train.datasets.arrays import AnyArray, Float32, Rng
from knarr.train.losses.terms import distillation_loss, label_loss
from knarr.train.settings import ChipSettings, Fit, SettingsError
from knarr.train.systems.base import ChipLoss, Scored

LOGIT_SPREAD: Final = 2.0
"""Standard deviation of logits at the start: right classes then lie some 6 above the others."""
GAIN_CLIPS: Final = 200
CALIBRATION_CLIPS: Final = 20
"""Training clips by which scales are chosen where a graph is lowered again to other bits."""
TEACHER_SHARE: Final = 0.5
TEMPERATURE: Final = 3.0
"""The teacher's share of the loss and both softmaxes' temperature, as in the recipe nmnist."""
Split: TypeAlias = tuple[npt.ArrayLike, npt.ArrayLike]
"""Inputs as `knarr.hw_sim.simulate` takes them, (N, T, *features), and (N,) classes or targets."""
Teacher: TypeAlias = npt.ArrayLike | nn.Module
"""(N, classes) logits of the training clips, or a module that gives them for floats (B, T, *)."""


def finetune(
    network: ChipNetwork,
    graph: nir.NIRGraph,
    *,
    train: Split,
    validation: Split,
    weight_bits: int = 8,
    teacher: Teacher | None = None,
    epochs: int = 10,
    batch_size: int = 50,
    learning_rate: float = 0.003,
    seed: int = 0,
) -> ChipNetwork:
    """Fit a lowered graph on in the chip's arithmetic.

    Args:
        network: what `knarr.deploy.lower` made of `graph`. It is lowered again where it has other
            bits than `weight_bits`.
        graph: the graph, whose unrounded weights the fit starts from.
        train: (inputs, labels) to fit on.
        validation: (inputs, labels) that choose the epoch; nobody of the training data.
        weight_bits: signed bits of a weight, 2..8.
        teacher: logits of the training clips or a network that gives them; None for labels alone.
        epochs, batch_size, learning_rate: of the fit; the rate is the highest of one cycle.
        seed: seed of the batches.

    Returns:
        The network of the best epoch by validation; the lowered one where no epoch was better.

    Raises:
        SettingsError: arrays that do not fit the network, or each other.
        DeployError: a network that was not lowered from this graph, or cannot be lowered.
    """
    start = lowered_to(weight_bits, network, graph, train[0])
    form = start.input, outputs_of(start)
    made = clips_of(*form, train, teacher=teacher), clips_of(*form, validation)
    chip = ChipSettings(
        weight_bits=weight_bits, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    )
    with tempfile.TemporaryDirectory(prefix="knarr-") as folder:
        return fit_arrays(start, graph, *made, chip, seed=seed, run_folder=Path(folder)).network


@dataclass(frozen=True, eq=False)
class ArrayClips:
    """Clips in memory.

    Args:
        inputs: (N, T, *features) integers of the chip.
        labels: (N,) int64 classes, or (N, outputs) float32 targets.
        teacher_logits: (N, outputs) float32, or None.
    """

    inputs: AnyArray
    labels: AnyArray
    teacher_logits: Float32 | None = None

    @property
    def classes(self) -> bool:
        """Tell whether labels are classes, and not float targets."""
        return self.labels.ndim == 1

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return the clips `indices`, as integers; nothing is augmented."""
        # Torch computes little with unsigned integers of more than 8 bits.
        inputs = torch.from_numpy(self.inputs[indices].astype(np.int32))
        labels = torch.from_numpy(self.labels[indices])
        shown: tuple[Tensor, ...] = ()
        if self.teacher_logits is not None:
            shown = (torch.from_numpy(self.teacher_logits[indices]),)
        return Batch(inputs, shown, labels)

    def part(self, chosen: Indices) -> ArrayClips:
        """Return the clips `chosen` as clips of their own."""
        logits = None if self.teacher_logits is None else self.teacher_logits[chosen]
        return ArrayClips(self.inputs[chosen], self.labels[chosen], logits)

    def chip_inputs(self, indices: Indices) -> AnyArray:
        """Return the inputs of the clips `indices`."""
        return self.inputs[indices]


@dataclass(frozen=True, eq=False)
class BothSides:
    """Training and validation clips in one row, as a fit takes them: training clips first.

    Args:
        sides: training and validation clips.
    """

    sides: tuple[ArrayClips, ArrayClips]

    @property
    def labels(self) -> AnyArray:
        """(N,) int64 classes, or (N, outputs) float32 targets."""
        return np.concatenate([side.labels for side in self.sides])

    def chosen(self) -> tuple[Indices, Indices]:
        """Return the indices of training and of validation clips."""
        first, second = (len(side.labels) for side in self.sides)
        return np.arange(first), np.arange(first, first + second)

    def batch(self, indices: Indices, rng: Rng | None) -> Batch:
        """Return clips of one side."""
        side, own = self._of(indices)
        return side.batch(own, rng)

    def chip_inputs(self, indices: Indices) -> AnyArray:
        """Return inputs of clips of one side."""
        side, own = self._of(indices)
        return side.chip_inputs(own)

    def _of(self, indices: Indices) -> tuple[ArrayClips, Indices]:
        edge = len(self.sides[0].labels)
        late = indices >= edge
        assert late.all() or not late.any(), "no batch mixes what is learned and what chooses"
        return (self.sides[1], indices - edge) if late.any() else (self.sides[0], indices)


def outputs_of(network: ChipNetwork) -> int:
    """Return the number of classes, or of values, that a network's readout gives."""
    return prod(network.output_shape) // network.readout.votes


def clips_of(
    coding: InputCoding, outputs: int, split: Split, *, teacher: Teacher | None = None
) -> ArrayClips:
    """Check a split of a user's arrays.

    Args:
        coding: what the network takes.
        outputs: number of its classes, or of its values.
        split: inputs and labels.
        teacher: logits, or a network that is run here.

    Raises:
        SettingsError: shapes, ranges or labels that do not fit the network or each other.
    """
    try:
        inputs = check_inputs(coding, split[0])
    except ChipError as error:
        raise SettingsError(f"data: {error}") from error
    given = np.shape(split[1])
    if given and len(inputs) != given[0] == inputs.shape[1]:
        raise SettingsError(
            f"data: shape {inputs.shape} for {given[0]} labels, so that time seems to come first; save numpy.swapaxes(data, 0, 1)"
        )
    labels = _checked_labels(split[1], len(inputs), outputs)
    logits = None
    if teacher is not None:
        said = _said_by(teacher, inputs, coding) if isinstance(teacher, nn.Module) else teacher
        logits = _checked_logits(np.asarray(said), len(inputs), outputs)
    return ArrayClips(inputs, labels, logits)


def _checked_labels(labels: npt.ArrayLike, clips: int, outputs: int) -> AnyArray:
    """Return classes (N,) int64 of whole numbers, targets (N, outputs) float32 of other floats.

    Raises:
        SettingsError: they are neither, or not those of this network and these clips.
    """
    array = np.asarray(labels)
    # Whole floats are classes, however they were saved, but for a network of one output, which has none.
    fractions = array.dtype.kind == "f" and not np.array_equal(array, np.rint(array))
    wide = array.ndim == 2 and array.shape[1] == outputs and not is_one_hot(array)
    if array.dtype.kind == "f" and (outputs == 1 or fractions or wide):
        fits = array.ndim in (1, 2) and len(array) == clips and array.size == clips * outputs
        if not fits or not np.isfinite(array).all():
            raise SettingsError(
                f"labels: float targets {array.shape}, needs {outputs} finite numbers a clip, one for each output, for "
                f"{clips} clips; save classes as whole numbers"
            )
        return array.reshape(clips, outputs).astype(np.float32)
    try:
        return check_labels(array, clips, outputs)
    except ChipError as error:
        raise SettingsError(str(error)) from error


def _checked_logits(logits: AnyArray, clips: int, outputs: int) -> Float32:
    if logits.shape != (clips, outputs) or logits.dtype.kind not in "fiu":
        raise SettingsError(
            f"teacher: logits {logits.dtype} {logits.shape}, needs ({clips}, {outputs}): a row for each training clip, "
            "a number for each output, summed over time"
        )
    if not np.isfinite(logits).all():
        raise SettingsError("teacher: logits hold NaN or infinity; repair them")
    return logits.astype(np.float32)


def _said_by(teacher: nn.Module, inputs: AnyArray, coding: InputCoding) -> AnyArray:
    """Return what a teacher says of the floats that the integers stand for."""
    teacher.eval()
    found: list[AnyArray] = []
    with torch.no_grad():
        for first in range(0, len(inputs), EVALUATION_BATCH):
            part = inputs[first : first + EVALUATION_BATCH].astype(np.float32) / coding.units
            said = teacher(torch.from_numpy(part.astype(np.float32)))
            found.append((said if isinstance(said, Tensor) else said.logits).cpu().numpy())
    return np.concatenate(found)


def lowered_to(
    weight_bits: int, network: ChipNetwork, graph: nir.NIRGraph, inputs: npt.ArrayLike
) -> ChipNetwork:
    """Return the network itself where it has so many bits, else the graph lowered again."""
    notes = network.lowering
    if notes.get("weight_bits") == weight_bits or network.dt_s is None:
        # Without a time step it was not lowered here, which `unrounded_weights` says.
        return network
    array = np.asarray(inputs)
    chosen = np.unique(np.linspace(0, len(array) - 1, CALIBRATION_CLIPS).round().astype(int))
    return lower(
        graph,
        network.dt_s,
        weight_bits=weight_bits,
        input_bits=network.input.bits,
        input_units=network.input.units,
        input_kind=network.input.kind,
        input_signed=network.input.signed,
        over_time=network.readout.over_time,
        votes=network.readout.votes,
        calibration=array[chosen],
        allow_approximate=bool(notes.get("approximations")),
    )


def fit_arrays(
    start: ChipNetwork,
    graph: nir.NIRGraph,
    train: ArrayClips,
    validation: ArrayClips,
    chip: ChipSettings,
    *,
    seed: int,
    run_folder: Path,
    callbacks: Sequence[Callback] = (),
) -> ChipFit:
    """Fit a lowered graph; see `finetune`. A killed fit goes on from the files in `run_folder`.

    Raises:
        SettingsError: training and validation labels of different kinds, or nothing to learn.
        DeployError: the network was not lowered from this graph.
    """
    if train.classes != validation.classes:
        raise SettingsError(
            "labels: classes on one side and float targets on the other; save both alike"
        )
    unrounded = unrounded_weights(graph, start)
    clips = BothSides((train, validation))
    learn, choose = clips.chosen()
    settings = Fit(
        epochs=chip.epochs,
        batch_size=chip.batch_size or EVALUATION_BATCH,
        learning_rate=chip.learning_rate,
        weight_decay=chip.weight_decay,
        select="val",
    )
    loss = (
        class_loss(logit_gain(start, chip, train)) if train.classes else target_loss(train.labels)
    )
    return fit_lowered(
        start,
        loss,
        clips,
        learn,
        choose,
        chip,
        settings,
        classes=outputs_of(start) if train.classes else None,
        seed=seed,
        run_folder=run_folder,
        unrounded=unrounded,
        callbacks=tuple(callbacks),
    )


def logit_gain(start: ChipNetwork, chip: ChipSettings, train: ArrayClips) -> float:
    """Return g of the module's text; 1 where the lowered network says the same of every class."""
    student = chip_student(chip, start).eval()
    few = np.arange(min(GAIN_CLIPS, len(train.labels)))
    with torch.no_grad():
        scores = torch.cat(
            [student(batch.inputs).logits for batch in evaluation_batches(train, few)]
        )
    spread = float((scores - scores.mean(1, keepdim=True)).std())
    return LOGIT_SPREAD / spread if spread > 0 else 1.0


def class_loss(gain: float) -> ChipLoss:
    """Return the loss of classes; clips with teacher logits are distilled from them."""

    def loss(output: ChipStudentOutput, batch: Batch) -> Scored:
        logits = gain * output.logits
        if not batch.teacher_inputs:
            return label_loss(logits, batch.labels), logits
        (teacher,) = batch.teacher_inputs
        value = distillation_loss(
            logits, teacher, batch.labels, alpha=TEACHER_SHARE, temperature=TEMPERATURE
        )
        return value, logits

    return loss


def target_loss(targets: AnyArray) -> ChipLoss:
    """Return the loss of float targets; `targets` are those of the training clips."""
    variance = float(np.var(targets)) or 1.0

    def loss(output: ChipStudentOutput, batch: Batch) -> Scored:
        values = output.logits
        wanted = batch.labels
        if batch.teacher_inputs:
            (teacher,) = batch.teacher_inputs
            wanted = (1 - TEACHER_SHARE) * wanted + TEACHER_SHARE * teacher
        return functional.mse_loss(values, wanted) / variance, values

    return loss
