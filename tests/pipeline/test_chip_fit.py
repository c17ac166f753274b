"""Fits in the chip's arithmetic: what the log says of the validation clips is what the file, the simulator and Lava say."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from lightning.pytorch.callbacks import Callback

from knarr.cli.text import report
from knarr.deploy import (
    DeployError,
    check,
    fatal,
    lower,
    read_net,
    run_on_lava,
    unrounded_weights,
    verify,
    write_net,
)
from knarr.export import read
from knarr.hw_sim import ChipNetwork, count_events, simulate
from knarr.pipeline import evaluation_file, run_folder, stages
from knarr.pipeline.run_folder import claim_folder, read_run
from knarr.train import RecipeError, load_recipe
from knarr.train.chip_fit import Validated, goal_of
from knarr.train.fitting.files import ACCUMULATES
from knarr.train.recipe import with_settings
from knarr.train.settings import ChipSettings
from knarr.train.train import train_validation_split
from knarr.train.train_chip import train_chip

EYES: dict[str, Any] = {
    "data.subjects": 4, "data.takes_per_emotion": 1, "data.size": 24, "data.shift_px": 0, "data.validation_fraction": 0.34,
    "teacher.fit.epochs": 1, "student.fit.epochs": 6, "student.fit.batch_size": 4, "deploy.lava_samples": 2, "threads": 1, "chip": None,
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "eyes": {**EYES, "data.timesteps": 12, "student.channels": [8, 16], "student.fit.epochs": 12},
    "mskd_eyes": {
        **EYES, "data.frames": 7, "data.sampling": "E3-S1", "teacher.network.seen.widths": [4, 8, 8, 8], "student.network.width": 0.125,
    },
}  # fmt: skip


@pytest.fixture(
    scope="module", params=list(TASKS) if "KNARR_CONFORMANCE" in os.environ else ["mskd_eyes"]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> run_folder.Run:
    """A float run, exported."""
    folder = tmp_path_factory.mktemp(request.param)
    made = run_folder.open_run(
        with_settings(load_recipe(request.param), TASKS[request.param]),
        folder / "run",
        cache=folder / "data",
    )
    stages.train(made)
    stages.export(made)
    return made


def beside(run: run_folder.Run, folder: Path, **chip: Any) -> run_folder.Run:
    """The run with a chip block, in a folder of its own."""
    shutil.copytree(
        run.folder, folder, ignore=shutil.ignore_patterns("checkpoints", "metrics.csv", ".lock")
    )
    settings = ChipSettings(**{"epochs": 6, "learning_rate": 0.01, **chip})
    return replace(run, folder=folder, recipe=run.recipe.model_copy(update={"chip": settings}))


def rows(run: run_folder.Run) -> list[dict[str, str]]:
    with run.path("metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["stage"] == "chip"]


def validation(run: run_folder.Run) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    _, chosen = train_validation_split(run.recipe, run.data)
    return run.on_chip(run.data.train).chip_inputs(chosen), run.data.train.labels[chosen]


def test_the_log_is_the_file_the_simulator_and_lava(run: run_folder.Run, tmp_path: Path) -> None:
    made = beside(run, tmp_path / "run")
    stages.deploy(made)
    facts = json.loads(made.path(run_folder.FITTED).read_text())
    assert facts["epoch"] is not None, "no epoch was kept, so nothing here was fitted"
    network, start = read_net(made.path(run_folder.NET)), read_net(made.path(run_folder.LOWERED))
    assert network.layers != start.layers
    assert not fatal(check(network))
    inputs, labels = validation(made)
    recording = simulate(network, inputs, record=("output", "spikes"), engine="reference")
    correct = int((network.readout.decide(recording.output) == labels).sum())
    kept = facts["validation"]["kept"]
    assert kept["correct"] == correct
    row = rows(made)[facts["epoch"]]
    assert round(float(row["validation_accuracy"]) * len(labels)) == correct
    assert float(row["validation_accuracy"]) == max(
        float(row["validation_accuracy"]) for row in rows(made)
    )

    counts = count_events(network, inputs, recording)
    # The log holds the float nearest to the exact mean over clips.
    assert kept["accumulates"] == float(sum(layer.acc for layer in counts.layers.values()))
    assert row[ACCUMULATES] == f"{kept['accumulates']:.1f}"

    lava = run_on_lava(
        made.path(run_folder.NET), inputs[:6], record=("output", "spikes"), timeout_s=300
    )
    assert np.array_equal(lava.output, recording.output[:6])
    assert all(np.array_equal(lava.spikes[name], z[:6]) for name, z in recording.spikes.items())
    assert all(z[:6].any() for name, z in list(recording.spikes.items())[:-1]), (
        "a silent layer proves nothing"
    )


def test_the_run_goes_on_with_it(
    run: run_folder.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = beside(run, tmp_path / "run", epochs=1, weight_bits=4)
    for stage in (stages.deploy, stages.simulate):
        stage(made)
    found = evaluation_file.read(made.path(run_folder.EVALUATION))
    correct = {name: int((rows == found.labels).sum()) for name, rows in found.predicted.items()}
    assert set(correct) == {"teacher", "student", "lowered", "chip"}
    for stage in (stages.verify, stages.energy):
        stage(made)
    assert report.print_run(made.folder, json=False)
    said = capsys.readouterr().out
    samples = len(made.data.test.labels)
    assert (
        f"{correct['lowered']}/{samples}"
        in said.split("before its integers were fitted")[1].splitlines()[0]
    )
    assert f"{correct['chip']}/{samples}" in said.split("accuracy")[1].splitlines()[0]
    network = read_net(made.path(run_folder.NET))
    assert np.abs(network.layers[0].weight_int).max() <= 8
    assert network.lowering["weight_bits"] == 4
    # A graph of other weights is refused, the one it began from is compared with.
    events = made.data.test.chip_inputs(np.arange(2))
    dt_s = made.recipe.data.dt_s
    other = read(made.path(run_folder.GRAPH))
    name = next(name for name, node in other.nodes.items() if hasattr(node, "weight"))
    other.nodes[name].weight[0] += 0.5
    with pytest.raises(DeployError, match="another graph"):
        verify(other, made.path(run_folder.NET), events, dt_s)


class _KilledError(Exception):
    pass


class _Kill(Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.after:
            raise _KilledError


def test_a_killed_fit_goes_on_and_gives_the_same_integers(
    run: run_folder.Run, tmp_path: Path
) -> None:
    whole, cut = (beside(run, tmp_path / name) for name in ("whole", "cut"))
    graph = read(run.path(run_folder.GRAPH))
    found = []
    for made in (whole, cut):
        stages.deploy(replace(made, folder=whole.folder)) if made is whole else None
        start = read_net(whole.path(run_folder.LOWERED))
        teacher, _ = made.networks()
        fit = (made.recipe, made.data, teacher, start, made.folder)
        fine = unrounded_weights(graph, start)
        if made is cut:
            with pytest.raises(_KilledError):
                train_chip(*fit, unrounded=fine, callbacks=(_Kill(2),))
            assert len(rows(cut)) == 2
        found.append(train_chip(*fit, unrounded=fine))
    assert found[0].network.layers == found[1].network.layers != start.layers
    assert rows(whole) == rows(cut)
    assert found[0].network.layers == read_net(whole.path(run_folder.NET)).layers


def test_fewer_steps_and_a_goal_cost_less(run: run_folder.Run, tmp_path: Path) -> None:
    steps = run.data.test.chip_inputs(np.arange(1)).shape[1]
    made = beside(run, tmp_path / "steps", timesteps=steps - 1, epochs=1)
    stages.deploy(made)
    stages.simulate(made)
    with np.load(made.path(run_folder.RECORDING)) as kept:
        assert {
            kept[name].shape[1] for name in kept.files if kept[name].ndim == 3 and "output" in name
        } == {steps - 1}
    start = json.loads(made.path(run_folder.FITTED).read_text())["validation"]["lowered"][
        "accumulates"
    ]

    free = beside(run, tmp_path / "free", epochs=6)
    stages.deploy(free)
    whole = json.loads(free.path(run_folder.FITTED).read_text())["validation"]
    cost = whole["kept"]["accumulates"]
    assert 0 < start < whole["lowered"]["accumulates"]
    goal = 0.8 * cost
    bound = beside(run, tmp_path / "bound", epochs=6, acc_per_inference=goal, acc_weight=5.0)
    stages.deploy(bound)
    found = json.loads(bound.path(run_folder.FITTED).read_text())["validation"]["kept"][
        "accumulates"
    ]
    assert 0 < found <= goal


def test_what_cannot_be_met_is_refused_before_anything_is_fitted(
    run: run_folder.Run, tmp_path: Path
) -> None:
    steps = run.data.test.chip_inputs(np.arange(1)).shape[1]
    late = run.recipe.model_copy(update={"chip": ChipSettings(timesteps=steps + 1)})
    with pytest.raises(RecipeError, match=f"chip.timesteps: {steps + 1}, clips have {steps}"):
        run_folder.open_run(late, tmp_path / "late", cache=run.folder.parent / "data")
    assert not (tmp_path / "late").exists()
    if run.data.coding.bits == 1:
        for goal, name in (
            ({"acc_per_inference": 1.0}, "acc_per_inference"),
            ({"acc_share": 1e-4}, "acc_share"),
        ):
            made = beside(run, tmp_path / name, **goal)
            with pytest.raises(RecipeError, match=f"chip.{name}: .*the input's own events cost"):
                stages.deploy(made)
            assert not made.has("metrics.csv")


def test_goals() -> None:
    before = Validated(7, 3, 100.0, 40.0)
    assert goal_of(ChipSettings(), before) is None
    assert goal_of(ChipSettings(acc_per_inference=41), before) == 41
    assert goal_of(ChipSettings(acc_share=0.5), before) == 50
    for chip in (ChipSettings(acc_per_inference=40), ChipSettings(acc_share=0.4)):
        with pytest.raises(RecipeError, match="40 ACC, but the input's own events cost 40"):
            goal_of(chip, before)


def test_a_goal_that_is_missed_is_said(run: run_folder.Run, tmp_path: Path) -> None:
    said: list[str] = []
    made = beside(run, tmp_path / "run", epochs=1, acc_share=0.6, acc_weight=1e-6)
    stages.deploy(replace(made, on_progress=lambda event: said.append(event.text)))
    assert "was NOT met" in said[-1]
    facts = json.loads(made.path(run_folder.FITTED).read_text())
    assert facts["validation"]["kept"]["accumulates"] > facts["acc_goal"]


def test_the_block_may_change_until_something_depends_on_it(
    run: run_folder.Run, tmp_path: Path
) -> None:
    made = beside(run, tmp_path / "run")
    _, root = read_run(run.folder)
    claim_folder(made.recipe, made.data, root, made.folder)
    assert read_run(made.folder)[0] == made.recipe
    again = made.recipe.model_copy(update={"chip": ChipSettings(epochs=1, learn=("biases",))})
    claim_folder(again, made.data, root, made.folder)
    made = replace(made, recipe=again)
    if not any(layer.bias_int is not None for layer in lowered(made).layers):
        with pytest.raises(RecipeError, match=r"chip.learn: the student has none of biases"):
            stages.deploy(made)
    assert made.has(run_folder.LOWERED)
    with pytest.raises(RecipeError, match="holds a run with other settings"):
        claim_folder(run.recipe, made.data, root, made.folder)


def lowered(run: run_folder.Run) -> ChipNetwork:
    if not run.has(run_folder.LOWERED):
        write_net(stages.lower_student(run), run.path(run_folder.LOWERED))
    return read_net(run.path(run_folder.LOWERED))


def test_what_was_rounded_away(run: run_folder.Run) -> None:
    graph = read(run.path(run_folder.GRAPH))
    coding = run.data.coding
    options: dict[str, Any] = {
        "input_bits": coding.bits, "input_units": coding.units, "input_kind": coding.kind, "weight_bits": 3,
        "calibration": run.data.train.chip_inputs(np.arange(4)),
    }  # fmt: skip
    network = lower(graph, run.recipe.data.dt_s, **options)
    fine = unrounded_weights(graph, network)
    for layer in network.layers:
        weights = fine[layer.name]
        assert np.array_equal(np.clip(np.rint(weights), -4, 3), layer.weight_int)
        assert np.abs(weights - np.rint(weights)).max() > 0.3
    with pytest.raises(DeployError, match="not lowered from this graph"):
        unrounded_weights(graph, replace(network, graph_hash="0" * 64))
    with pytest.raises(DeployError, match="with which scales"):
        unrounded_weights(
            graph, replace(network, lowering={"layers": [{"name": network.layers[0].name}]})
        )


def test_a_file_that_is_not_what_was_trained_is_not_kept(
    run: run_folder.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = beside(run, tmp_path / "run", epochs=1)
    real = stages.train_chip

    def wrong(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        return replace(found, kept=replace(found.kept, correct=found.kept.correct + 1))

    monkeypatch.setattr(stages, "train_chip", wrong)
    with pytest.raises(RuntimeError, match="this is a fault in knarr"):
        stages.deploy(made)
    assert not made.path(run_folder.NET).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chip.weight_bits": 9}, "weight_bits"),
        ({"chip.learn": []}, "at least one"),
        ({"chip.learn": ["weights", "weights"]}, "once"),
        ({"chip.acc_per_inference": 0}, "acc_per_inference"),
        ({"chip.epoch": 3}, "epoch"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        with_settings(load_recipe("eyes"), changes)


def test_a_recipe_without_the_block_is_lowered_as_ever(run: run_folder.Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    made = replace(run, folder=folder)
    stages.deploy(made)
    assert not made.has(run_folder.LOWERED)
    network = read_net(made.path(run_folder.NET))
    assert network.graph_hash is not None
