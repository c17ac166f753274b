"""Every setting that was tried, fixed before any was run, and how one is chosen for a fold without seeing who it tests.

The people a fold trains on are parted in two; each half is predicted by what was fitted on the other, and the setting with the
best balanced accuracy is taken. The student's settings are chosen without a teacher, so that the taught student gets those that
suit the untaught one; then the teacher and its weight are chosen for that student.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from stress_codings import encode
from stress_others import crossed_logits, features, forest
from stress_score import balanced_accuracy, count_people
from stress_student import KdSetting, StudentSetting, fit_student, float_classes

from knarr.train.clips import Indices
from knarr.train.datasets.splits import Fold, subject_folds
from knarr.train.datasets.stress.windows import StressWindows

INNER_FOLDS: Final = 2
TUNING_SEED: Final = 100
"""Of the draw of halves and of what is fitted on them; no final fit has it."""
LEAVES: Final = (1, 5, 20, 50)
STUDENTS: Final = tuple(
    StudentSetting(coding, hidden, epochs)  # type: ignore[arg-type]  # literals, in a product
    for coding, hidden, epochs in itertools.product(("graded", "events"), (16, 48), (12, 30))
)
KD: Final = tuple(
    KdSetting(teacher, alpha, temperature)  # type: ignore[arg-type]
    for teacher, (alpha, temperature) in itertools.product(
        ("forest", "network"), ((0.5, 1.0), (0.9, 1.0), (0.9, 2.0))
    )
)

Classes = npt.NDArray[np.int64]
Say = Callable[[str], None]


def tune(windows: StressWindows, train: Indices, say: Say) -> dict[str, Any]:
    """Settings for one fold.

    Args:
        windows: all of them; only those of `train` are looked at.
        train: whom the fold trains on.
        say: told what goes on.

    Returns:
        `forest`, `student` and `kd`: for each [[setting, balanced accuracy], ...] in the order tried, and under `chosen` the best.
    """
    inner = [
        Fold(train[fold.train], train[fold.test])
        for fold in subject_folds(windows.subjects[train], INNER_FOLDS, seed=TUNING_SEED)
    ]
    columns = features(windows.eda)

    def plain_forest(leaf: int) -> Callable[[int, Fold], Classes]:
        return lambda _, fold: (
            forest(leaf, TUNING_SEED)
            .fit(columns[fold.train], windows.labels[fold.train])
            .predict(columns[fold.test])
        )

    forests = [[leaf, _validated(windows, inner, plain_forest(leaf))] for leaf in LEAVES]
    say("  forests")
    codes = {coding: encode(windows.eda, coding) for coding in ("graded", "events")}  # type: ignore[arg-type]

    def student(
        setting: StudentSetting, kd: KdSetting | None = None
    ) -> Callable[[int, Fold], Classes]:
        def run(number: int, fold: Fold) -> Classes:
            heard, logits = codes[setting.coding], kd and taught[kd.teacher][number]
            network = fit_student(
                heard, windows.labels, fold.train, setting, TUNING_SEED, kd, logits
            )
            return float_classes(network, heard, fold.test)

        return run

    students = []
    for setting in STUDENTS:
        students.append([list(setting), _validated(windows, inner, student(setting))])
        say(f"  student {' '.join(map(str, setting))}: {students[-1][1]:.3f}")
    best = StudentSetting(*_best(students))
    taught = {
        kind: [crossed_logits(windows, fold.train, kind, TUNING_SEED) for fold in inner]
        for kind in ("forest", "network")
    }
    kds = []
    for kd in KD:
        kds.append([list(kd), _validated(windows, inner, student(best, kd))])
        say(f"  KD {' '.join(map(str, kd))}: {kds[-1][1]:.3f}")
    chosen = {"forest": _best(forests), "student": _best(students), "kd": _best(kds)}
    return {"forest": forests, "student": students, "kd": kds, "chosen": chosen}


def _validated(
    windows: StressWindows, inner: list[Fold], predict: Callable[[int, Fold], Classes]
) -> float:
    """Balanced accuracy over all windows of the inner folds together."""
    counts: dict[str, list[int]] = {}
    for number, fold in enumerate(inner):
        counts |= count_people(windows, fold.test, predict(number, fold))
    return round(balanced_accuracy(counts), 4)


def _best(tried: list[list[Any]]) -> Any:
    return max(tried, key=lambda one: one[1])[0]  # the first of equals
