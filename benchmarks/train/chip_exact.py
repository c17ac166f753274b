"""What training in the chip's arithmetic is worth: float, quantised after training, and chip-exact students, three seeds each.

    .venv/bin/python benchmarks/train/chip_exact.py                    every task: hours on two cores
    .venv/bin/python benchmarks/train/chip_exact.py --tasks nmnist     one
    .venv/bin/python benchmarks/train/chip_exact.py --report           table from chip_exact.json as it is

Float students, their data and what they are tested on are those of distillation.py, arm "taught", and are fitted where they are not
there yet. Each is lowered at 8, 6, 4 and 3 weight bits, at 8 bits with the first half of the time steps, and fitted on from there in
the chip's arithmetic, beside the same teacher; then once more at 8 bits, for 20 epochs in place of 10, with a goal of half the accumulates
that the 8-bit student needs on validation clips. Epochs are chosen by validation clips. Fits resume where a killed run left them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from chip_exact_table import document
from distillation import arguments, prepared

from knarr.deploy import read_net
from knarr.files import write_atomic
from knarr.hw_sim import count_events, simulate
from knarr.pipeline import run_folder, stages
from knarr.pipeline.run_folder import claim_folder
from knarr.train import load_recipe, student_predictions, train_student, train_teacher
from knarr.train.clips import Clips
from knarr.train.recipe import with_settings
from knarr.train.settings import ChipSettings, Recipe

TASKS: Final = ("nmnist", "mskd_eyes")
SEEDS: Final = 3
BITS: Final = (8, 6, 4, 3)
HALF, BUDGET = "8 bits, half the steps", "8 bits, half the ACC"


def variants(
    recipe: Recipe, steps: int, found: dict[str, Any]
) -> Iterator[tuple[str, ChipSettings]]:
    """Name and settings of each student; the last follows from what the first one costs."""
    for bits in BITS:
        yield f"{bits} bits", ChipSettings(weight_bits=bits)
    yield HALF, ChipSettings(timesteps=steps // 2)
    goal = found["8 bits"]["validation"]["kept"]["accumulates"] / 2
    yield BUDGET, ChipSettings(acc_per_inference=goal, epochs=20)


def fit_seed(
    task: str, seed: int, asked: argparse.Namespace, found: dict[str, Any]
) -> Iterator[str]:
    """Fill in what a seed lacks, student by student; yields a name after each."""
    people = {"data.seed": seed} if task == "mskd_eyes" else {}
    recipe = with_settings(load_recipe(task), {"seed": seed, "threads": 1, "chip": None, **people})
    data, root, tests = prepared(task, recipe, asked)
    base = run_folder.Run(asked.work / task / f"seed-{seed}" / "taught", recipe, data)
    claim_folder(recipe, data, root, base.folder)
    teacher = train_teacher(recipe, data, base.folder)
    student = train_student(recipe, data, teacher, base.folder)
    stages.export(base)
    if "float" not in found:
        found["float"] = {
            "right": {
                name: [
                    int((student_predictions(recipe, student, clips) == clips.labels).sum())
                    for clips in passes
                ]
                for name, passes in tests.items()
            }
        }
        found["clips"] = {name: len(passes[0].labels) for name, passes in tests.items()}
        yield "float"
    steps = data.test.chip_inputs(np.arange(1)).shape[1]
    for name, chip in variants(recipe, steps, found):
        if name in found:
            continue
        made = recipe.model_copy(update={"chip": chip})
        run = stages.fork_run(base, made, base.folder.parent / _slug(name))
        stages.deploy(run)
        facts = json.loads(run.path(run_folder.FITTED).read_text("utf-8"))
        found[name] = {
            "lowered": _tested(run, run.path(run_folder.LOWERED), tests),
            "chip": _tested(run, run.path(run_folder.NET), tests),
            **{key: facts[key] for key in ("epoch", "validation", "acc_goal")},
            "settings": chip.model_dump(mode="json"),
        }
        yield name


def _tested(run: run_folder.Run, path: Path, tests: dict[str, list[Clips]]) -> dict[str, Any]:
    """How often a network is right in each pass over each test set, and its ACC in the first pass over the first."""
    network, right = read_net(path), {}
    for name, passes in tests.items():
        right[name] = [
            int((stages.chip_decisions(run, network, clips) == clips.labels).sum())
            for clips in passes
        ]
    first = run.on_chip(next(iter(tests.values()))[0])
    inputs = first.chip_inputs(np.arange(len(first.labels)))
    counts = count_events(network, inputs, simulate(network, inputs, record=("output", "spikes")))
    layers = {name: float(layer.acc) for name, layer in counts.layers.items()}
    return {"right": right, "acc": sum(layers.values()), "acc_by_layer": layers}


def _slug(name: str) -> str:
    return "chip-" + name.replace(",", "").replace(" ", "-").lower()


def main() -> None:
    asked = arguments(__doc__, TASKS, SEEDS)
    path = asked.results / "chip_exact.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if not asked.report:
        torch.set_num_threads(1)
        asked.results.mkdir(parents=True, exist_ok=True)
        for seed in range(asked.seeds):
            for task in asked.tasks:
                found = kept.setdefault(task, {}).setdefault(str(seed), {})
                for name in fit_seed(task, seed, asked, found):
                    write_atomic(path, (json.dumps(kept) + "\n").encode())
                    print(f"{task}, seed {seed}, {name}: {json.dumps(found[name])}", flush=True)
    text = document(kept)
    write_atomic(asked.results / "chip_exact.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
