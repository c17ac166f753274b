"""What no loss takes: tensors of the wrong shape, labels that are no class, values that are not finite."""

from __future__ import annotations

import math

import torch

from knarr.errors import KnarrError

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
"""Above 100, float32 loses tau^2 * KL to cancellation; below 0.01 the softmax is an argmax."""
LAYOUTS = {2: "(B, classes)", 3: "(B, T, classes)"}


class LossError(KnarrError, ValueError):
    """A loss cannot be taken of what it was given: ``object: observed vs allowed; cure``."""


def check_logits(name: str, logits: torch.Tensor, dims: int = 2) -> None:
    """Floating, (B, classes) or (B, T, classes), none of them empty, two classes at least, all finite.

    Raises:
        LossError: otherwise.
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


def check_pair(
    name: str,
    student: torch.Tensor,
    teacher: torch.Tensor,
    cure: str = "build both for the same classes",
) -> None:
    """Student's and teacher's tensor are of one shape: torch would broadcast others without a word.

    Raises:
        LossError: otherwise.
    """
    if student.shape != teacher.shape:
        raise LossError(
            f"{name}: the student's have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; {cure}"
        )


def check_finite(name: str, values: torch.Tensor) -> None:
    """Floating and finite. A NaN of a row that a loss leaves out would otherwise go unseen.

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


def check_labels(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """int64, one class per clip. torch skips -100 in silence, and on a GPU other wrong labels end the process.

    Raises:
        LossError: otherwise.
    """
    clips, classes = logits.shape[0], logits.shape[-1]
    if labels.dtype != torch.int64 or tuple(labels.shape) != (clips,):
        raise LossError(
            f"labels: shape {tuple(labels.shape)} of {labels.dtype}, needs ({clips},) of torch.int64; "
            "give class numbers, not one-hot rows"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise LossError(
            f"labels: {low}..{high}, needs 0..{classes - 1}; drop clips without a class, or give the network more"
        )


def check_temperature(temperature: float) -> None:
    """Within LEAST_TEMPERATURE..MOST_TEMPERATURE.

    Raises:
        LossError: otherwise.
    """
    if math.isnan(temperature) or not LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE:
        raise LossError(
            f"temperature: {temperature}, needs {LEAST_TEMPERATURE}..{MOST_TEMPERATURE:g}; 1 leaves the softmax as it is"
        )
