"""Does a teacher of heart rate and skin conductance help a spiking student of skin conductance alone? Stress-Predict, 34 people.

    .venv/bin/python benchmarks/train/stress_predict.py             everything: 5 folds, 5 seeds; 17 minutes on one core
    .venv/bin/python benchmarks/train/stress_predict.py --seeds 1   does it all still run?
    .venv/bin/python benchmarks/train/stress_predict.py --report    table from stress_predict.json as it is

Writes stress_predict.json after every fold that is tuned and every fold and seed that is fitted, so that a killed run goes on
there, and stress_predict.md. Needs scikit-learn, one of the packages of the extra [dev].
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from stress_codings import encode
from stress_others import (
    PLAIN_LEAF,
    crossed_logits,
    features,
    fit_teacher,
    forest,
    linear,
    teacher_logits,
)
from stress_score import count_people
from stress_student import KdSetting, StudentSetting, fit_student, float_classes, run_on_chip
from stress_table import document
from stress_tune import KD, LEAVES, STUDENTS, tune

from knarr.files import write_atomic
from knarr.train.datasets.splits import Fold, assert_apart
from knarr.train.datasets.stress.read import read_people
from knarr.train.datasets.stress.windows import StressWindows, cut_windows

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDS: Final = 5
SEEDS: Final = 5
Say = Callable[[str], None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "stress_predict"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--report", action="store_true", help="table from what is there; runs nothing"
    )
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever is there")
    return parser.parse_args()


def group_folds(windows: StressWindows) -> list[Fold]:
    """scikit-learn's GroupKFold(5) by person, on which the 0.667 was measured: no draw, people dealt by their windows."""
    split = GroupKFold(FOLDS).split(windows.eda, windows.labels, windows.subjects)
    folds = [Fold(train, test) for train, test in split]
    for fold in folds:
        assert_apart(windows.subjects, *fold)
    return folds


def begun(path: Path, windows: StressWindows, folds: list[Fold], *, fresh: bool) -> dict[str, Any]:
    """What a run before this one left, if it had the same data, folds and settings.

    Raises:
        SystemExit: it had others.
    """
    digest = hashlib.sha256()
    for array in (windows.eda, windows.hr, windows.labels, windows.subjects):
        digest.update(np.ascontiguousarray(array).tobytes())
    about = {
        "windows": len(windows),
        "data_sha256": digest.hexdigest(),
        "folds": [sorted(set(windows.subjects[fold.test].tolist())) for fold in folds],
        "tried": {
            "forest": list(LEAVES),
            "student": [list(one) for one in STUDENTS],
            "kd": [list(one) for one in KD],
        },
    }
    if fresh or not path.is_file():
        return {"about": about, "tuning": {}, "fits": {}}
    kept = json.loads(path.read_text("utf-8"))
    if kept["about"] != about:
        raise SystemExit(
            f"{path}: of other data, folds or settings; give --fresh or another --results"
        )
    return kept


def fit_all(
    windows: StressWindows, fold: Fold, chosen: dict[str, Any], seed: int, say: Say
) -> dict[str, Any]:
    """Every contender on one fold with one seed: what it said of each person tested."""
    columns, labels = features(windows.eda), windows.labels
    train, test = fold

    def counted(classes: Any) -> dict[str, list[int]]:
        return count_people(windows, test, np.asarray(classes, np.int64))

    found: dict[str, Any] = {}
    plain = {
        "logistic": linear(),
        "forest": forest(PLAIN_LEAF, seed),
        "forest_tuned": forest(chosen["forest"], seed),
    }
    for name, model in plain.items():
        found[name] = counted(model.fit(columns[train], labels[train]).predict(columns[test]))
    setting, kd = StudentSetting(*chosen["student"]), KdSetting(*chosen["kd"])
    teacher = fit_teacher(windows, train, kd.teacher, seed)
    found["teacher"] = counted(teacher_logits(teacher, windows, test).argmax(axis=1))
    codes = encode(windows.eda, setting.coding)
    logits = crossed_logits(windows, train, kd.teacher, seed)
    for name, how in (("student", (None, None)), ("student_kd", (kd, logits))):
        network = fit_student(codes, labels, train, setting, seed, *how)
        classes = float_classes(network, codes, test)
        chip = run_on_chip(network, codes, train, test)
        found[name], found[f"{name}_chip"] = counted(classes), counted(chip.classes)
        found[f"{name}_spikes"] = round(chip.spikes, 1)
        found[f"{name}_same"] = round(float(np.mean(chip.classes == classes)), 4)
    say("  fitted, and run on the chip")
    return found


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    path = asked.results / "stress_predict.json"
    if asked.report:
        publish(json.loads(path.read_text("utf-8")), asked.results)
        return
    start = time.monotonic()

    def say(what: str) -> None:
        elapsed = int(time.monotonic() - start)
        print(f"{elapsed // 60:3d}:{elapsed % 60:02d}  {what}", flush=True)

    windows = cut_windows(read_people(asked.data).people)
    folds = group_folds(windows)
    kept = begun(path, windows, folds, fresh=asked.fresh)
    asked.results.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        write_atomic(path, (json.dumps(kept, indent=1) + "\n").encode())

    for number, fold in enumerate(folds):
        if str(number) not in kept["tuning"]:
            say(f"fold {number}: tuning on the people it trains on")
            kept["tuning"][str(number)] = tune(windows, fold.train, say)
            save()
    for seed in range(
        asked.seeds
    ):  # seed by seed, so that what a killed run leaves holds whole seeds
        for number, fold in enumerate(folds):
            if f"{seed}/{number}" not in kept["fits"]:
                say(f"seed {seed}, fold {number}")
                chosen = kept["tuning"][str(number)]["chosen"]
                kept["fits"][f"{seed}/{number}"] = fit_all(windows, fold, chosen, seed, say)
                save()
    publish(kept, asked.results)


def publish(kept: dict[str, Any], folder: Path) -> None:
    """Print the tables and write them as stress_predict.md."""
    text = document(kept)
    write_atomic(folder / "stress_predict.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
