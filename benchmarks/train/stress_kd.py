"""Does a teacher of heart rate and skin conductance help after all? Ways of teaching that stress_predict.py did not try.

    .venv/bin/python benchmarks/train/stress_kd.py             5 folds, 5 seeds; about an hour on one core
    .venv/bin/python benchmarks/train/stress_kd.py --seeds 1   does it all still run?
    .venv/bin/python benchmarks/train/stress_kd.py --report    table from stress_kd.json as it is

For each fold every way of `stress_lessons.WAYS` is measured on inner folds of the people it trains on; the best of each family is
then fitted on all of them and measured on those who are tested. Writes stress_kd.json after every step, so that a killed run goes
on there, and stress_kd.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from stress_lessons import WAYS, Taught, Way, classes, fit_student, prepare, said
from stress_predict import FOLDS, ROOT, SEEDS, Say, group_folds
from stress_score import balanced_accuracy, count_people, fold_scores, over_people, over_seeds
from stress_table import answer
from stress_tune import INNER_FOLDS, TUNING_SEED

from knarr.train.datasets.splits import Fold, Indices, subject_folds
from knarr.train.datasets.stress_code import Codes, encode_windows
from knarr.train.datasets.stress_predict import read_people
from knarr.train.datasets.stress_windows import StressWindows, cut_windows
from knarr.train.fit_files import write_atomic

INNER_SEEDS: Final = (TUNING_SEED,)
FAMILIES: Final = ("untaught", "KL", "feature", "feedback")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "stress_predict")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--report", action="store_true", help="table from what is there; runs nothing")
    return parser.parse_args()


def inner(windows: StressWindows, codes: Codes, train: Indices, seed: int) -> dict[str, float]:
    """Balanced accuracy of every way, on the people of one fold's training part alone."""
    folds = [
        Fold(train[fold.train], train[fold.test])
        for fold in subject_folds(windows.subjects[train], INNER_FOLDS, seed=TUNING_SEED)
    ]
    taught = [prepare(windows, fold.train, seed) for fold in folds]
    found = {}
    for way in WAYS:
        counts: dict[str, list[int]] = {}
        for fold, of_fold in zip(folds, taught, strict=True):
            counts |= measured(windows, codes, fold, way, seed, of_fold)
        found[way.name] = round(balanced_accuracy(counts), 4)
    return found


def measured(
    windows: StressWindows, codes: Codes, fold: Fold, way: Way, seed: int, taught: Taught
) -> dict[str, list[int]]:
    """What a student taught so said of each person tested."""
    network = fit_student(windows, codes, fold.train, way, seed, taught)
    return count_people(windows, fold.test, classes(network, codes, fold.test))


def chosen(kept: dict[str, Any], fold: int, family: str) -> Way:
    """The best of a family on a fold's inner folds, mean over seeds; the first of equals."""
    ways = [way for way in WAYS if way.family == family]
    return max(ways, key=lambda way: _inner_score(kept, fold, way))


def _inner_score(kept: dict[str, Any], fold: int, way: Way) -> float:
    return float(np.mean([kept["inner"][f"{seed}/{fold}"][way.name] for seed in INNER_SEEDS]))


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    path = asked.results / "stress_kd.json"
    ways = [way.name for way in WAYS]
    kept: dict[str, Any] = {"ways": ways, "inner": {}, "outer": {}}
    if path.is_file():
        kept = json.loads(path.read_text("utf-8"))
        if kept["ways"] != ways:
            raise SystemExit(f"{path}: of other ways to teach; remove it or give another --results")
    if not asked.report:
        windows = cut_windows(read_people(asked.data).people)
        run(windows, kept, path, asked.seeds, _clock())
    text = document(kept)
    write_atomic(asked.results / "stress_kd.md", text.encode())
    print(text)


def run(windows: StressWindows, kept: dict[str, Any], path: Path, seeds: int, say: Say) -> None:
    """Everything that is not in `kept` yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes, folds = encode_windows(windows.eda, "graded"), group_folds(windows)

    def save() -> None:
        write_atomic(path, (json.dumps(kept) + "\n").encode())

    for seed in INNER_SEEDS:
        for number, fold in enumerate(folds):
            if f"{seed}/{number}" not in kept["inner"]:
                kept["inner"][f"{seed}/{number}"] = inner(windows, codes, fold.train, seed)
                save()
                say(f"inner folds of fold {number}, seed {seed}")
    for seed in range(seeds):
        for number, fold in enumerate(folds):
            if f"{seed}/{number}" in kept["outer"]:
                continue
            taught = prepare(windows, fold.train, seed)
            own = said(taught.teacher, windows, fold.test).logits.argmax(dim=1).numpy()
            found = {"teacher": count_people(windows, fold.test, own)}
            for family in FAMILIES:
                way = chosen(kept, number, family)
                found[family] = measured(windows, codes, fold, way, seed, taught)
            kept["outer"][f"{seed}/{number}"] = found
            save()
            say(f"seed {seed}, fold {number}")


def document(kept: dict[str, Any]) -> str:
    """Markdown of what stress_kd.json holds; of whole seeds alone.

    Raises:
        SystemExit: not one seed is whole.
    """
    outer = kept["outer"]
    numbers = {int(key.split("/")[0]) for key in outer}
    seeds = sorted(s for s in numbers if all(f"{s}/{fold}" in outer for fold in range(FOLDS)))
    if not seeds:
        raise SystemExit("stress_kd.json: no seed has all its folds yet; run the command without --report")
    runs = {
        name: [[outer[f"{seed}/{fold}"][name] for fold in range(FOLDS)] for seed in seeds]
        for name in (*FAMILIES, "teacher")
    }
    lines = [
        "# More ways to teach the student of Stress-Predict",
        "",
        f"Written by `.venv/bin/python benchmarks/train/stress_kd.py`: {FOLDS} folds of GroupKFold by person, {len(seeds)} seeds.",
        f"In each fold the best way of a family on {INNER_FOLDS} inner folds by person, {len(INNER_SEEDS)} seed of their own.",
        "",
        "| balanced accuracy, % | mean | 95 % over seeds | minus untaught | over seeds | over people | more than 0? |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, scores in ((name, fold_scores(run)) for name, run in runs.items()):
        mean = over_seeds(scores)
        row = [name, f"{100 * mean.mean:.2f}", f"{100 * mean.low:.2f} .. {100 * mean.high:.2f}"]
        if name == "untaught":
            row += ["", "", "", ""]
        else:
            by_seed = over_seeds(scores - fold_scores(runs["untaught"]))
            by_person = over_people(runs[name], runs["untaught"])
            row += [f"{100 * by_seed.mean:+.2f}"]
            row += [f"{100 * one.low:+.2f} .. {100 * one.high:+.2f}" for one in (by_seed, by_person)]
            row += [answer(by_seed, by_person)]
        lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "| way | inner folds, % | minus untaught | chosen in folds |",
        "| --- | ---: | ---: | ---: |",
    ]
    first = np.mean([_inner_score(kept, fold, WAYS[0]) for fold in range(FOLDS)])
    for way in WAYS:
        score = np.mean([_inner_score(kept, fold, way) for fold in range(FOLDS)])
        times = sum(chosen(kept, fold, way.family) == way for fold in range(FOLDS))
        lines.append(
            f"| {way.family}: {way.name} | {100 * score:.2f} | {100 * (score - first):+.2f} | {times} |"
        )
    return "\n".join(lines) + "\n"


def _clock() -> Say:
    start = time.monotonic()

    def say(what: str) -> None:
        elapsed = int(time.monotonic() - start)
        print(f"{elapsed // 60:3d}:{elapsed % 60:02d}  {what}", flush=True)

    return say


if __name__ == "__main__":
    main()
