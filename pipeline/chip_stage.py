"""The deploy stage: a graph into integers, and where the recipe asks for it these integers fitted on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from knarr.cli import output as progress
from knarr.cli.output import json_text
from knarr.deploy import lower, read_net, unrounded_weights, write_net
from knarr.export import read
from knarr.files import write_atomic
from knarr.hw_sim import ChipNetwork, simulate
from knarr.train import Recipe
from knarr.train.clips import Clips, Indices
from knarr.train.train import STUDENT, TEACHER, train_validation_split
from knarr.train.train_chip import CHIP, ChipFit, train_chip

if TYPE_CHECKING:
    from knarr.pipeline.stages import Run

NET, LOWERED, FITTED = "student.net", "lowered.net", "chip.json"
GRAPH: Final = "student.nir"
FLOAT_FILES: Final = (TEACHER, STUDENT, GRAPH, f"{GRAPH}.json")
"""What a student needs to be lowered and fitted on."""


def deploy(run: Run) -> None:
    """Write student.net: lowered, or with `chip:` lowered (lowered.net) and fitted on (chip.json says how that went)."""
    if run.recipe.chip is None:
        write_net(lowered(run), run.path(NET))
        return
    if not run.has(LOWERED):
        write_net(lowered(run), run.path(LOWERED))
    start = read_net(run.path(LOWERED))
    teacher, _ = run.networks()
    progress.say(f"Fitting {run.recipe.chip.weight_bits}-bit integers in the chip's arithmetic")
    found = train_chip(
        run.recipe,
        run.data,
        teacher,
        start,
        run.folder,
        unrounded=unrounded_weights(read(run.path(GRAPH)), start),
        callbacks=progress.training(CHIP),
    )
    write_net(found.network, run.path(NET))
    _check(run, run.path(NET), found)
    facts = {
        "weight_bits": run.recipe.chip.weight_bits,
        "epoch": found.epoch,
        "acc_goal": found.goal,
        "validation": {"lowered": asdict(found.start), "kept": asdict(found.kept)},
    }
    write_atomic(run.path(FITTED), (json_text(facts) + "\n").encode())
    progress.say(_said(found))


def lowered(run: Run) -> ChipNetwork:
    """The run's graph in integers, with the bits of `chip` where the recipe has it."""
    graph = read(run.need(GRAPH, "export"))
    settings, coding, chip = run.recipe.deploy, run.data.coding, run.recipe.chip
    bits = settings.weight_bits if chip is None else chip.weight_bits
    labels, clips = run.data.train.labels, run.on_chip(run.data.train)
    chosen = np.linspace(0, len(labels) - 1, settings.calibration_samples).round().astype(int)
    calibrated = f", calibrated on {len(chosen)} training samples" if len(chosen) else ""
    progress.say(f"Lowering to {bits}-bit weights{calibrated}")
    return lower(
        graph,
        run.recipe.data.dt_s,
        weight_bits=bits,
        input_bits=coding.bits,
        input_units=coding.units,
        input_kind=coding.kind,
        over_time=coding.over_time,
        votes=coding.votes,
        calibration=clips.chip_inputs(chosen) if len(chosen) else None,
        labels=labels[chosen] if len(chosen) else None,
        allow_approximate=settings.allow_approximate,
        progress=progress.counter("layers"),
    )


def decided(run: Run, network: ChipNetwork, clips: Clips, chosen: Indices | None = None) -> Indices:
    """(N,) class that a chip network of a run sees in each clip, or in each of the chosen ones."""
    indices = np.arange(len(clips.labels)) if chosen is None else chosen
    return network.readout.decide(simulate(network, run.on_chip(clips).chip_inputs(indices)).output)


def fork_run(run: Run, recipe: Recipe, folder: Path) -> Run:
    """The same teacher, student and graph in a folder of their own, to be deployed by another `chip`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FLOAT_FILES:
        if not (folder / name).is_file():
            write_atomic(folder / name, run.path(name).read_bytes())
    return replace(run, recipe=recipe, folder=folder)


def _check(run: Run, path: Path, found: ChipFit) -> None:
    """The file, on the simulator, is right as often as the training log says.

    Raises:
        RuntimeError: it is not, and the file is removed.
    """
    train, (_, validation) = run.data.train, train_validation_split(run.recipe, run.data)
    correct = int(
        (decided(run, read_net(path), train, validation) == train.labels[validation]).sum()
    )
    if correct != found.kept.correct:
        path.unlink()
        raise RuntimeError(
            f"{path}: right on {correct} validation clips, in training on {found.kept.correct}; this is a fault in knarr, report it"
        )


def _said(found: ChipFit) -> str:
    before, after = found.start, found.kept
    how = (
        "no epoch was better than the lowered network, which is kept"
        if found.epoch is None
        else f"epoch {found.epoch + 1} is kept"
    )
    missed = found.goal is not None and after.accumulates > found.goal
    what = (
        f"; the goal of {found.goal:,.0f} was NOT met, give it more epochs or acc_weight"
        if missed
        else ""
    )
    return (
        f"  {how}: {after.correct} of {after.clips} validation clips right, lowered {before.correct}; "
        f"{after.accumulates:,.0f} ACC per inference, lowered {before.accumulates:,.0f}{what}"
    )
