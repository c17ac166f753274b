"""Checks that refuse tensors of the wrong shape, labels that are no class, and values that are not
finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knarr.errors import KnarrError

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
"""Above 100, float32 loses tau^2 * KL to cancellation; below 0.01 the softmax is an argmax."""
LAYOUTS = {2: "(B, classes)", 3: "(B, T, classes)"}


class LossError(KnarrError, ValueError):
    """A loss cannot be taken of its inputs: ``object: observed vs allowed; cure``."""


def check_logits(name: str, logits: Tensor, dims: int = 2) -> None:
    """Check that logits are finite floats of two classes or more, (B, classes) or (B, T, classes).

    Raises:
        LossError: otherwise, also where an axis is empty.
    """
    shape = tuple(logits.shape)
    if len(shape) != dims:
        cure = "give one decision per clip" if dims == 2 else "give one decision per step"
        raise LossError(f"{name}: shape {shape}, needs {LAYOUTS[dims]}; {cure}")
    if 0 in shape or shape[-1] < 2:
        raise LossError(
            f"{name}: shape {shape}, needs {LAYOUTS[dims]} with 2 classes or more and no empty axis; "
            "skip empty batches"
        )
    check_finite(name, logits)


def check_distilled(
    student: Tensor,
    teacher: Tensor,
    prefix: str = "",
    dims: int = 2,
    cure: str = "build both for the same classes",
) -> None:
    """Check a student's and a teacher's logits, and that both have one shape.

    Args:
        student, teacher: (B, classes), or (B, T, classes) for `dims` 3.
        prefix: what stands before "logits" in the error.
        dims: number of axes.
        cure: advice in the error for shapes that differ.

    Raises:
        LossError: one of them is refused by `check_logits`, or their shapes differ.
    """
    check_logits(f"student_{prefix}logits", student, dims)
    # torch would broadcast other shapes against each other without a word.
    if student.shape != teacher.shape:
        raise LossError(
            f"{prefix}logits: the student's have shape {tuple(student.shape)}, "
            f"the teacher's {tuple(teacher.shape)}; {cure}"
        )
    check_logits(f"teacher_{prefix}logits", teacher, dims)


def check_finite(name: str, values: Tensor) -> None:
    """Check that values are floating and finite, those of rows that a loss leaves out too.

    Raises:
        LossError: otherwise.
    """
    if not values.is_floating_point():
        raise LossError(f"{name}: dtype {values.dtype}, needs a floating one; convert it")
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        wrong = (~finite).nonzero()
        raise LossError(
            f"{name}: {len(wrong)} of {values.numel()} values are NaN or infinite, the first at {wrong[0].tolist()}; "
            "lower the learning rate, and look for such values in weights and inputs"
        )


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Check that labels are int64 and name one class per clip.

    Raises:
        LossError: otherwise.
    """
    # torch skips a label of -100 in silence, and other wrong labels end the process on a GPU.
    clips = logits.shape[0]
    classes = logits.shape[-1]
    if labels.dtype != torch.int64 or tuple(labels.shape) != (clips,):
        raise LossError(
            f"labels: shape {tuple(labels.shape)} of {labels.dtype}, needs ({clips},) of torch.int64; "
            "give class numbers, not one-hot rows"
        )
    low = int(labels.min())
    high = int(labels.max())
    if low < 0 or high >= classes:
        raise LossError(
            f"labels: {low}..{high}, needs 0..{classes - 1}; drop clips without a class, or give the network more"
        )


def check_temperature(temperature: float) -> None:
    """Check that a temperature lies within LEAST_TEMPERATURE..MOST_TEMPERATURE.

    Raises:
        LossError: otherwise.
    """
    # Written so that NaN, which compares as False, is refused too.
    if not LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE:
        raise LossError(
            f"temperature: {temperature}, needs {LEAST_TEMPERATURE}..{MOST_TEMPERATURE:g}; 1 leaves the softmax as it is"
        )
