"""Does a teacher help? The same spiking student taught and untaught, five seeds each, on people or recordings it never saw.

    .venv/bin/python benchmarks/train/distillation.py                    every task: hours on two cores
    .venv/bin/python benchmarks/train/distillation.py --tasks nmnist     one
    .venv/bin/python benchmarks/train/distillation.py --report           table from distillation.json as it is

nmnist     real N-MNIST: seed s holds every fifth recording of the training list out, from the s-th on, so that the five seeds test
           each of the 1,000 once; the official 100 are tested by every seed beside them
eyes       generated single eyes, small ANN on frames and events teaches a spiking CNN on events; each seed has people of its own,
           a quarter of whom are held out
mskd_eyes  the same people for MSKD: SEEN on events and frames teaches a spiking student on frames; 20 random windows a clip

Both students of a seed start alike and see the same batches. Settings are the shipped recipes', which were chosen on validation
data. Fits resume where a killed run left them; results are written after each. Work lies in build/distillation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from distillation_table import document

from knarr.files import write_atomic
from knarr.pipeline.run_folder import claim_folder
from knarr.train import (
    Recipe,
    RunData,
    load_data,
    load_recipe,
    student_predictions,
    system_of,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.clips import Batch, Clips, Indices
from knarr.train.recipe import with_settings
from knarr.train.settings import TEACHER

ROOT: Final = Path(__file__).resolve().parents[2]
SEEDS: Final = 5
FIFTHS: Final = 5
WINDOWS: Final = 20
ALPHA: Final = {
    "nmnist": "student.kd_alpha",
    "eyes": "student.kd_alpha",
    "mskd_eyes": "student.loss.alpha",
}
"""Task, which is also its recipe -> the teacher's share of the loss."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some clips of a split."""

    clips: Clips
    chosen: Indices

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.clips.labels[self.chosen]

    def batch(self, indices: Indices, rng: np.random.Generator | None) -> Batch:
        return self.clips.batch(self.chosen[indices], rng)

    def chip_inputs(self, indices: Indices) -> npt.NDArray[np.uint8]:
        return self.clips.chip_inputs(self.chosen[indices])


def arguments(description: str | None, tasks: Collection[str], seeds: int) -> argparse.Namespace:
    """Of a benchmark that fits these tasks' students."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "nmnist_small"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "distillation")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=list(tasks))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument(
        "--report", action="store_true", help="table from what is there; runs nothing"
    )
    return parser.parse_args()


def digits(recipe: Recipe, root: Path, seed: int) -> tuple[RunData, dict[str, Clips]]:
    """A seed's recordings to train on, and those it is tested on."""
    data = load_data(recipe, root)
    every = np.arange(len(data.train.labels))
    held = every % FIFTHS == seed
    tests: dict[str, Clips] = {"held out": Part(data.train, every[held]), "official 100": data.test}
    return replace(data, train=Part(data.train, every[~held]), groups=every[~held]), tests


def prepared(
    task: str, recipe: Recipe, asked: argparse.Namespace
) -> tuple[RunData, Path, dict[str, Any]]:
    """Data, where they lie, and the passes over each test set."""
    system = system_of(recipe)
    if task == "nmnist":
        data, tests = digits(recipe, asked.data, recipe.seed)
        return data, asked.data, {name: [clips] for name, clips in tests.items()}
    root = asked.work / "data" / system.folder_name()
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        system.generate(root)
    data = system.load(root, cache=asked.work / "data")
    return data, root, {"held out": system.passes(data, WINDOWS, recipe.seed)}


def fit_seed(task: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Teacher and both students of a seed: for each test set and clip, in how many passes they were right."""
    people = {} if task == "nmnist" else {"data.seed": seed}
    taught = with_settings(load_recipe(task), {"seed": seed, "threads": 1, "chip": None, **people})
    untaught = with_settings(taught, {ALPHA[task]: 0})
    data, root, tests = prepared(task, taught, asked)
    folder = asked.work / task / f"seed-{seed}"
    found: dict[str, Any] = {}
    for arm, recipe in (("taught", taught), ("untaught", untaught)):
        run = folder / arm
        claim_folder(recipe, data, root, run)
        if arm == "untaught" and not (run / TEACHER).is_file():
            write_atomic(run / TEACHER, (folder / "taught" / TEACHER).read_bytes())
        teacher = train_teacher(recipe, data, run)
        student = train_student(recipe, data, teacher, run)
        for name, passes in tests.items():
            found[f"{arm}, {name}"] = _right(
                [student_predictions(recipe, student, p) for p in passes], passes
            )
            if arm == "taught":
                found[f"teacher, {name}"] = _right(
                    [teacher_predictions(recipe, teacher, p) for p in passes], passes
                )
    found["passes"] = {name: len(passes) for name, passes in tests.items()}
    if data.subjects is not None:
        # People of different seeds are different people.
        found["subjects"] = [f"{seed}/{subject}" for subject in data.subjects]
    found["settings"] = taught.model_dump(mode="json")["student"]
    return found


def _right(predicted: list[npt.NDArray[np.int64]], passes: list[Clips]) -> list[int]:
    hits = [chosen == clips.labels for chosen, clips in zip(predicted, passes, strict=True)]
    counts: list[int] = np.sum(hits, axis=0).tolist()
    return counts


def main() -> None:
    asked = arguments(__doc__, ALPHA, SEEDS)
    path = asked.results / "distillation.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if not asked.report:
        torch.set_num_threads(1)
        asked.results.mkdir(parents=True, exist_ok=True)
        for task in asked.tasks:
            for seed in range(asked.seeds):
                if str(seed) in kept.get(task, {}):
                    continue
                kept.setdefault(task, {})[str(seed)] = fit_seed(task, seed, asked)
                write_atomic(path, (json.dumps(kept) + "\n").encode())
                print(f"{task}, seed {seed}: {_short(kept[task][str(seed)])}", flush=True)
    text = document(kept)
    write_atomic(asked.results / "distillation.md", text.encode())
    print(text)


def _short(found: Mapping[str, Any]) -> str:
    shares = {
        name: sum(hits) / len(hits) / found["passes"][name.split(", ")[1]]
        for name, hits in found.items()
        if ", " in name
    }
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())


if __name__ == "__main__":
    main()
