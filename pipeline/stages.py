"""The stages of a run: each reads what the one before wrote and leaves its own file, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from knarr.cli import output as progress
from knarr.cli.output import json_text
from knarr.deploy import read_net
from knarr.deploy import verify as verify_network
from knarr.export import read, to_nir, to_onnx, write
from knarr.files import write_atomic
from knarr.hw_sim import count_events, count_onnx, load_recording, save_recording
from knarr.hw_sim import simulate as simulate_network
from knarr.hw_sim.energy import baseline, what_if
from knarr.pipeline import chip_stage
from knarr.pipeline.energy import DIGITAL as PROFILE
from knarr.pipeline.energy import NOT_ASKED, TRADE_SAMPLES, Pricing, Sources, energy_facts
from knarr.pipeline.run import hold, made
from knarr.train import (
    Recipe,
    RecipeError,
    RunData,
    load_data,
    load_recipe,
    open_run,
    read_run,
    student_predictions,
    system_of,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.clips import Clips, truncate_timesteps
from knarr.train.recipe import parse_setting, with_settings
from knarr.train.systems.base import System
from knarr.train.systems.registry import check_networks
from knarr.train.train import CONFIG, STUDENT, TEACHER, read_cache, train_validation_split

GRAPH, LOWERED, NET = chip_stage.GRAPH, chip_stage.LOWERED, chip_stage.NET
BASELINE, RECORDING = "teacher.onnx", "recording.npz"
ACCURACY, VERIFICATION, ENERGY, PICTURES = (
    "accuracy.json",
    "verification.json",
    "energy.json",
    "pictures",
)
CERTIFY_SAMPLES = 20
BASELINE_BYTES = 2**30
"""Of the clips on which the baseline's zeros are counted; its other counts do not depend on them."""
BASELINE_BATCH = 50


@dataclass(frozen=True)
class Run:
    """An open run: its folder, its settings and its data."""

    folder: Path
    recipe: Recipe
    data: RunData

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, *names: str) -> bool:
        return all(self.path(name).exists() for name in names)

    def need(self, name: str, verb: str) -> Path:
        if not self.has(name):
            raise RecipeError(
                f"{self.path(name)}: not there yet; run `knarr {verb} {self.folder}` first"
            )
        return self.path(name)

    def on_chip(self, clips: Clips) -> Clips:
        """A split as the chip runs it."""
        return truncate_timesteps(self.recipe, clips)

    @property
    def system(self) -> System[Any]:
        return system_of(self.recipe)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Finished teacher, and finished student in the form in which it is kept."""
        for name in (TEACHER, STUDENT):
            if not self.has(name):
                raise RecipeError(
                    f"{self.path(name)}: not trained yet; run `knarr train {self.recipe.name}` first"
                )
        teacher = train_teacher(self.recipe, self.data, self.folder)
        return teacher, train_student(self.recipe, self.data, teacher, self.folder)


def start(
    recipe_name: str, data: Path | None, out: Path | None, changes: Sequence[str] = ()
) -> Run:
    """Open a recipe's run folder, making it and its generated data when they are not there.

    Args:
        recipe_name: shipped, or a YAML file.
        data: folder of the data; None where knarr generates them.
        out: run folder; runs/<recipe name> when left out.
        changes: `path=value` of settings.
    """
    recipe = with_settings(load_recipe(recipe_name), dict(map(parse_setting, changes)))
    folder = out if out is not None else Path("runs") / recipe.name
    return begin(recipe, data, folder, folder.parent / "data")


def begin(recipe: Recipe, data: Path | None, folder: Path, cache: Path) -> Run:
    """`start` with a recipe in hand, and a folder for generated and prepared data."""
    data = made(recipe, cache) if data is None else data
    loaded = load_data(recipe, data, cache=cache, progress=progress.counter("samples read"))
    progress.say(
        f"Data: {len(loaded.train.labels)} clips to train on, {len(loaded.test.labels)} held out"
    )
    # Before anything is written: what is refused later leaves a folder that refuses the corrected recipe.
    check_networks(recipe, loaded)
    if len(recipe.chosen_on_test) < 2 or recipe.chip is not None:
        train_validation_split(recipe, loaded)
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    open_run(recipe, loaded, data, folder, cache=cache)
    return Run(folder, recipe, loaded)


def reopen(folder: Path, data: Path | None = None) -> Run:
    """Open a run that exists, with the data it was made with.

    Args:
        folder: of the run.
        data: where its data lie now; None for where they lay.
    """
    recipe, root = read_run(folder)
    root = root if data is None else data
    if not root.is_dir():
        raise RecipeError(
            f"{root}: the data of run {folder} are not there; give their folder, `knarr evaluate {folder} --data FOLDER`, or correct data_root in {folder / CONFIG}"
        )
    hold(folder)
    loaded = load_data(
        recipe, root, cache=read_cache(folder), progress=progress.counter("samples read")
    )
    open_run(recipe, loaded, root, folder)
    return Run(folder, recipe, loaded)


def train(run: Run) -> None:
    on_test = run.recipe.chosen_on_test
    if not run.has(TEACHER):
        progress.say("Training the teacher")
    teacher = train_teacher(run.recipe, run.data, run.folder, progress.training("teacher", on_test))
    if not run.has(STUDENT):
        progress.say("Distilling the student")
    train_student(run.recipe, run.data, teacher, run.folder, progress.training("student", on_test))


def export(run: Run) -> None:
    if run.has(GRAPH, BASELINE):
        return
    progress.say("Exporting: NIR with certificate, ONNX")
    teacher, student = run.networks()
    train, coding = run.data.train, run.data.coding
    inputs = train.chip_inputs(np.arange(min(CERTIFY_SAMPLES, len(train.labels))))
    samples = inputs.astype(np.float32) / np.float32(coding.units)
    graph = to_nir(
        run.system.deployable(student), samples.shape[2:], run.recipe.data.dt_s, samples=samples
    )
    baseline = run.system.baseline(teacher, run.data).eval()
    shape = run.system.baseline_inputs(train.batch(np.arange(1), None)).shape[1:]
    to_onnx(baseline, tuple(shape), run.path(BASELINE))
    write(graph, run.path(GRAPH))


def deploy(run: Run) -> None:
    if not run.has(NET) or (run.recipe.chip is not None and not run.has(chip_stage.FITTED)):
        chip_stage.deploy(run)


def simulate(run: Run) -> None:
    """The whole test set on the chip simulator, and how often teacher, student and chip are right."""
    if run.has(RECORDING, ACCURACY):
        return
    progress.say("Simulating the chip on the test set")
    network = read_net(run.need(NET, "deploy"))
    test = run.data.test
    inputs = run.on_chip(test).chip_inputs(np.arange(len(test.labels)))
    recording = simulate_network(network, inputs, record=("output", "spikes"))
    teacher, student = run.networks()
    chosen = {
        "teacher": teacher_predictions(run.recipe, teacher, test),
        "student": student_predictions(run.recipe, student, test),
        "chip": network.readout.decide(recording.output),
    }
    if run.has(LOWERED):
        # What the chip would have been without fitting its integers on.
        chosen["lowered"] = chip_stage.decided(run, read_net(run.path(LOWERED)), test)
    correct = {name: int((picked == test.labels).sum()) for name, picked in chosen.items()}
    save_recording(recording, run.path(RECORDING))
    facts = {"samples": len(test.labels), "correct": correct}
    on_test = run.recipe.chosen_on_test
    _write_json(run.path(ACCURACY), facts | ({"chosen_on_test": on_test} if on_test else {}))


def verify(run: Run, *, samples: int | None = None, again: bool = False) -> None:
    """Norse, NIR, simulator and Lava on the first test samples."""
    if run.has(VERIFICATION) and not again:
        return
    chosen = np.arange(min(samples or run.recipe.deploy.lava_samples, len(run.data.test.labels)))
    progress.say(f"Verifying on {len(chosen)} test samples: Norse, NIR, simulator, Lava")
    _, student = run.networks()
    result = verify_network(
        read(run.need(GRAPH, "export")),
        run.need(NET, "deploy"),
        run.on_chip(run.data.test).chip_inputs(chosen),
        run.recipe.data.dt_s,
        module=run.system.deployable(student),
        labels=run.data.test.labels[chosen],
        progress=progress.counter("Lava steps"),
    )
    (run.path(PICTURES) / "verification.png").unlink(missing_ok=True)  # of an earlier verification
    write_atomic(run.path(VERIFICATION), (json_text(result.to_json()) + "\n").encode())
    from knarr.pipeline.pictures import run as draw

    draw.draw_verification(run)


def energy(run: Run) -> None:
    """Counts and prices of chip and teacher, per inference on the test set."""
    if run.has(ENERGY):
        return
    progress.say("Counting operations")
    network, recording = (
        read_net(run.need(NET, "deploy")),
        load_recording(run.need(RECORDING, "pipeline")),
    )
    test = run.data.test
    everything = np.arange(len(test.labels))
    student = count_events(network, run.on_chip(test).chip_inputs(everything), recording)
    path, frames = run.need(BASELINE, "export"), _baseline_inputs(run)
    teacher = count_onnx(path, frames)
    # What a change would buy is for choosing one, so it is shown on training samples.
    chosen = np.arange(min(TRADE_SAMPLES, len(run.data.train.labels)))
    shown = run.on_chip(run.data.train).chip_inputs(chosen)
    trades = what_if(network, shown, PROFILE, labels=run.data.train.labels[chosen])
    measured = baseline(path, None, counts=teacher).to_json()
    measured |= {"gpu_refused": NOT_ASKED, "cpu_refused": NOT_ASKED}
    of = f"{len(chosen)} training samples"
    facts = energy_facts(
        student, teacher, Pricing(), trades=trades, trades_of=of, measured=measured
    )
    write_atomic(run.path(ENERGY), (json_text(facts) + "\n").encode())


def energy_sources(run: Run) -> Sources:
    """A run's files as `knarr energy FILE` takes them."""
    train = run.data.train
    chosen = np.arange(min(TRADE_SAMPLES, len(train.labels)))
    return Sources(
        run.need(NET, "deploy"),
        run.folder,
        baseline=run.need(BASELINE, "export"),
        baseline_data=_baseline_inputs(run),
        choosing=(run.on_chip(train).chip_inputs(chosen), train.labels[chosen]),
        run=run.folder,
    )


def _baseline_inputs(run: Run) -> npt.NDArray[np.float32]:
    """(n, *features) of the test set: all of it, or as many evenly spaced clips as BASELINE_BYTES hold."""
    test, whole = run.data.test, len(run.data.test.labels)

    def part(chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return run.system.baseline_inputs(test.batch(chosen, None)).numpy()

    each = part(np.arange(1)).nbytes
    kept = (
        np.linspace(0, whole - 1, min(whole, max(1, BASELINE_BYTES // each)))
        .round()
        .astype(np.int64)
    )
    return np.concatenate(
        [part(kept[at : at + BASELINE_BATCH]) for at in range(0, len(kept), BASELINE_BATCH)]
    )


def pictures(run: Run) -> None:
    from knarr.pipeline.pictures import run as draw

    draw.draw_all(run)


ALL: tuple[Callable[[Run], Any], ...] = (train, export, deploy, simulate, verify, energy, pictures)


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())
