"""Rates of confusion matrices, by torchmetrics.

Matrices of people can be added up, so a bootstrap over people need not carry their clips. Counts are float64: torchmetrics turns
whole ones to float32.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.functional.classification import multiclass_confusion_matrix

Array = npt.NDArray[np.float64]
Classes = npt.NDArray[np.integer[Any]]
RATES: Final = ("war", "uar", "macro_f1", "weighted_f1")


def check_classes(guesses: Classes, truth: Classes, names: tuple[str, ...]) -> None:
    """Refuse what no confusion matrix can be made of.

    Args:
        guesses: to be (W, N) classes.
        truth: to be (N,) classes.
        names: to be C different names.

    Raises:
        ValueError: a shape, a type or a class that is not allowed.
    """
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"classes: {names}, needs two or more different names")
    if truth.ndim != 1 or len(truth) == 0:
        raise ValueError(f"true: shape {truth.shape}, needs (N,) with a sample at least")
    if guesses.ndim != 2 or len(guesses) == 0 or guesses.shape[1] != len(truth):
        raise ValueError(
            f"predicted: shape {guesses.shape} for {len(truth)} true classes; give one each, or rows of them"
        )
    for what, values in (("predicted", guesses), ("true", truth)):
        if values.dtype.kind not in "iu":
            raise ValueError(f"{what}: of type {values.dtype}; give classes as whole numbers, not scores")
        if values.min() < 0 or values.max() >= len(names):
            raise ValueError(
                f"{what}: classes {values.min()} .. {values.max()} outside 0 .. {len(names) - 1}"
            )


def confusions(guesses: Classes, truth: Classes, classes: int) -> Array:
    """(W, C, C) confusion matrix of each pass, rows true, columns predicted.

    Args:
        guesses: (W, N) classes, 0 .. C - 1: W passes.
        truth: (N,) classes.
        classes: C.
    """
    target = torch.from_numpy(truth.astype(np.int64))
    one_pass = (torch.from_numpy(row.astype(np.int64)) for row in guesses)
    matrices = [multiclass_confusion_matrix(row, target, classes, validate_args=False) for row in one_pass]
    return torch.stack(matrices).double().numpy()


class _FromConfusion:
    """Feeds a torchmetrics metric with confusion matrices, each a sample of its own, in place of predictions."""

    def update(self, confusion: torch.Tensor) -> None:
        """(B, C, C), rows true."""
        hits = confusion.diagonal(dim1=1, dim2=2)
        false, missed = confusion.sum(dim=1) - hits, confusion.sum(dim=2) - hits
        rest = confusion.sum(dim=(1, 2))[:, None] - hits - false - missed
        self._update_state(hits, false, rest, missed)  # type: ignore[attr-defined]


class _Accuracy(_FromConfusion, MulticlassAccuracy):
    pass


class _Recall(_FromConfusion, MulticlassRecall):
    pass


class _F1(_FromConfusion, MulticlassF1Score):
    pass


def rates(confusion: Array, names: tuple[str, ...]) -> dict[str, Array]:
    """RATES and "recall/<class>" of each confusion matrix.

    recall_c = hits_c / true_c;  F1_c = 2 hits_c / (true_c + predicted_c);  WAR = sum hits / sum true;
    UAR, macro F1: means over the classes with true_c > 0;  weighted F1 = sum true_c F1_c / sum true.

    Args:
        confusion: (..., C, C) counts, rows true; each matrix holds one sample at least.
        names: C classes.

    Returns:
        Arrays of shape (...); a recall is NaN where its class does not occur.
    """
    shape, classes = confusion.shape[:-2], len(names)
    matrices = torch.from_numpy(confusion).reshape(-1, classes, classes)

    def compute(kind: type, average: str) -> Array:
        metric: Any = kind(classes, average=average, multidim_average="samplewise", validate_args=False)
        metric.update(matrices)
        values: Array = metric.compute().numpy()
        return values.reshape(*shape, classes) if average == "none" else values.reshape(shape)

    recall, f1 = compute(_Recall, "none"), compute(_F1, "none")
    occurs = confusion.sum(axis=-1) > 0
    return {
        "war": compute(_Accuracy, "micro"),
        "uar": recall.mean(axis=-1, where=occurs),
        "macro_f1": f1.mean(axis=-1, where=occurs),
        "weighted_f1": compute(_F1, "weighted"),
        **{
            f"recall/{name}": np.where(occurs[..., c], recall[..., c], np.nan) for c, name in enumerate(names)
        },
    }
