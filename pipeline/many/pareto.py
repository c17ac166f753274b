"""`knarr pareto`: what accuracy costs. One float student, fitted on in the chip's arithmetic at each setting, as table and picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from rich.table import Table

from knarr.cli.output import make_console, show_progress
from knarr.deploy import DeployError, read_net
from knarr.files import write_atomic
from knarr.hw_sim import ChipError, count_events, price, simulate
from knarr.pipeline import stages
from knarr.pipeline.energy_facts import Pricing
from knarr.pipeline.files import json_text, read_json
from knarr.pipeline.many.sweep import run_sweep
from knarr.pipeline.many.sweep_file import Sweep, SweepSettings
from knarr.pipeline.many.sweep_space import Choices, Space
from knarr.pipeline.many.sweep_worker import Report
from knarr.pipeline.progress import Progress
from knarr.pipeline.run_folder import (
    FITTED,
    LOWERED,
    NET,
    Run,
    claim_folder,
    open_run,
    read_run,
    release,
)
from knarr.train import Recipe, RecipeError, student_predictions
from knarr.train.recipe import load_recipe, parse_setting, with_settings
from knarr.train.settings import ChipSettings, SettingsError
from knarr.train.systems.registry import check_networks
from knarr.train.train import train_validation_split

Number = TypeVar("Number", int, float)
STEPS: Final = "chip.timesteps"
POINT, PICTURE, FLOAT = "point.json", "pareto.png", "float"


@dataclass(frozen=True)
class Point:
    """A chip network among the others.

    Args:
        parameters: weight bits, time steps, share of the lowered network's ACC that it may cost (None: all).
        facts: what point.json holds.
        front: none is right as often on the validation clips and costs less, or costs no more and is right more often.
    """

    parameters: dict[str, Any]
    facts: dict[str, Any]
    front: bool = False

    @property
    def accuracy(self) -> float:
        """On validation clips."""
        return float(self.facts["validation"]["correct"] / self.facts["validation"]["clips"])

    def energy(self, model: str) -> dict[str, Any]:
        """Its interval in one of the models, pJ."""
        found: dict[str, Any] = self.facts["energy"][model]
        return found


class Trials:
    """The objective of the study: a trial is a run that shares the float run's teacher, student and graph."""

    def __init__(self, base: Run, root: Path) -> None:
        self.base, self.root = base, root

    def __call__(self, recipe: Recipe, folder: Path, report: Report) -> float:
        base = self.base
        claim_folder(recipe, base.data, self.root, folder)
        run = stages.fork_run(base, recipe, folder)
        if run.has(LOWERED):
            read_net(run.path(LOWERED))  # a damaged file can be cured and is no result
        try:
            stages.deploy(run)
        except (DeployError, ChipError) as error:
            # This student at these bits goes onto no chip: a result, the others go on.
            raise SettingsError(str(error)) from error
        facts = _measured(run)
        write_atomic(run.path(POINT), (json_text(facts) + "\n").encode())
        return float(facts["validation"]["correct"] / facts["validation"]["clips"])


def pareto(
    name: str,
    data: Path | None,
    out: Path | None,
    changes: Sequence[str],
    *,
    bits: Sequence[int],
    steps: Sequence[int],
    shares: Sequence[float],
    model: str,
    json: bool,
) -> bool:
    """Fit every combination that is not there yet, and show what they cost; returns whether any came to an end.

    Args:
        name: recipe; its `chip:` block, where it has one, says how trials are fitted.
        data, out, changes: as for other runs; `out` is runs/pareto-<recipe> when left out.
        bits: of weights. steps: of time, none for all and half of them. shares: of the lowered network's ACC; 1 for no goal.
        model: of energy, by which the front is found.
        json: print one JSON document.

    Raises:
        RecipeError: settings that do not fit; model or settings that do not exist.
    """
    models = [_label(*pair) for pair in _pairs()]
    if model not in models:
        raise RecipeError(f"--model: '{model}' does not exist; choose from {', '.join(models)}")
    recipe = with_settings(load_recipe(name), dict(map(parse_setting, changes)))
    if recipe.chosen_on_test:
        raise RecipeError(
            f"recipe '{recipe.name}': {', '.join(recipe.chosen_on_test)} with select best_on_test looks at the test data, beside which "
            "nothing can be chosen; set fit.select to last or val"
        )
    folder = out if out is not None else Path("runs") / f"pareto-{recipe.name}"
    base = open_run(
        recipe.model_copy(update={"chip": None}),
        folder / FLOAT,
        data=data,
        cache=folder.parent / "data",
        on_progress=show_progress,
    )
    check_networks(recipe.model_copy(update={"chip": recipe.chip or ChipSettings()}), base.data)
    stages.train(base)
    stages.export(base)
    release(base.folder)
    length = base.data.test.chip_inputs(np.arange(1)).shape[1]
    wanted = steps or sorted({length, max(1, length // 2)}, reverse=True)
    # All steps are no setting: some losses take nothing else.
    sweep = _sweep(
        recipe, name, bits, [None if step == length else step for step in wanted], shares
    )
    root = read_run(base.folder)[1]
    result = run_sweep(
        sweep,
        Trials(base, root),
        folder,
        data_sha256=base.data.fingerprint,
        same_data=base.data.is_of,
        progress=lambda text: show_progress(Progress(text)),
    )
    points = fronted(
        [
            Point(
                {**trial.parameters, STEPS: trial.parameters[STEPS] or length},
                read_json(folder / trial.folder / POINT),
            )
            for trial in result.trials
            if trial.state == "finished"
        ],
        model,
    )
    facts = {
        "recipe": recipe.name,
        "model": model,
        "out": str(folder),
        "float_validation": _of_float(base),
        "points": [{**_named(point), "front": point.front, **point.facts} for point in points],
        "refused": [
            {**_named(Point(trial.parameters, {})), "reason": trial.reason}
            for trial in result.trials
            if trial.reason
        ],
    }
    if points:
        facts["picture"] = _draw(points, facts, folder)
    if json:
        print(json_text(facts))
    else:
        _show(points, facts)
    return bool(points)


def numbers(
    option: str, text: str, kind: type[Number], most: float, *, none: bool = False
) -> list[Number]:
    """What an option lists.

    Args:
        option: its name. text: what was given.
        kind: of numbers.
        most: of each.
        none: there may be no number.

    Raises:
        RecipeError: something else than different numbers above 0.
    """
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise RecipeError(
            f"{option}: '{text[:60]}'; give numbers with commas between, such as 8,4"
        ) from error
    if (
        len(set(found)) < len(found)
        or not all(0 < number <= most for number in found)
        or not (found or none)
    ):
        raise RecipeError(
            f"{option}: '{text[:60]}'; give different numbers above 0, at most {most:g}"
        )
    return found


def _sweep(
    recipe: Recipe,
    name: str,
    bits: Sequence[int],
    steps: Sequence[int | None],
    shares: Sequence[float],
) -> Sweep:
    """All combinations, as a study that may grow no further."""
    goals = tuple(None if share == 1 else share for share in shares)
    search: dict[str, Space] = {
        "chip.weight_bits": Choices(values=tuple(bits)),
        STEPS: Choices(values=tuple(steps)),
        "chip.acc_share": Choices(values=goals),
    }
    # What is searched is taken out of the recipe's own block.
    chip = (recipe.chip or ChipSettings()).model_copy(
        update={"acc_per_inference": None, "acc_share": None, "timesteps": None}
    )
    made = recipe.model_copy(update={"chip": chip})
    settings = SweepSettings(
        name=f"pareto-{recipe.name}"[:100], recipe=name, sampler="grid", search=search
    )
    return Sweep(settings, made, math.prod(map(len, (bits, steps, goals))))


def _of_float(base: Run) -> dict[str, int]:
    """How many of the validation clips the float student decides rightly."""
    train, (_, chosen) = base.data.train, train_validation_split(base.recipe, base.data)
    seen = student_predictions(base.recipe, base.networks()[1], train, chosen)
    return {"clips": len(chosen), "correct": int((seen == train.labels[chosen]).sum())}


def _measured(run: Run) -> dict[str, Any]:
    """Accuracy on validation and test clips, and what an inference on the former costs."""
    fitted = read_json(run.path(FITTED))
    network = read_net(run.path(NET))
    _, chosen = train_validation_split(run.recipe, run.data)
    inputs = run.on_chip(run.data.train).chip_inputs(chosen)
    counts = count_events(network, inputs, simulate(network, inputs, record=("output", "spikes")))
    test = run.data.test
    right = int((stages.decided(run, network, test) == test.labels).sum())
    energy = {}
    for model, profile in _pairs():
        priced = price(counts, profile, model=model, options=Pricing().options)
        energy[_label(model, profile)] = {
            "nominal_pj": priced.nominal_pj, "lo_pj": priced.lo_pj, "hi_pj": priced.hi_pj, "provenance": priced.provenance,
        }  # fmt: skip
    return {
        "epoch": fitted["epoch"],
        "acc_goal": fitted["acc_goal"],
        "validation": fitted["validation"]["kept"],
        "lowered": fitted["validation"]["lowered"],
        "test": {"clips": len(test.labels), "correct": right},
        "counts": {name: float(getattr(counts.total, name)) for name in ("acc", "mac", "spikes")},
        "energy": energy,
    }


def _pairs() -> list[tuple[str, Any]]:
    return Pricing().pairs()


def _label(model: str, profile: Any) -> str:
    return model if model != "chip" else f"chip:{profile.name}"


def fronted(points: Sequence[Point], model: str) -> list[Point]:
    """The points from the cheapest on, those marked that no other one beats on validation clips."""

    def cost(point: Point) -> float:
        return float(point.energy(model)["nominal_pj"])

    ordered = sorted(points, key=lambda point: (cost(point), -point.accuracy))
    best = [-1.0, *np.maximum.accumulate([point.accuracy for point in ordered]).tolist()]
    return [
        replace(point, front=now > before)
        for point, (before, now) in zip(ordered, pairwise(best), strict=True)
    ]


def _named(point: Point) -> dict[str, Any]:
    bits, steps, share = (
        point.parameters[f"chip.{name}"] for name in ("weight_bits", "timesteps", "acc_share")
    )
    return {"weight_bits": bits, "timesteps": steps, "acc_share": share}


def _draw(points: Sequence[Point], facts: dict[str, Any], folder: Path) -> str:
    from knarr.pipeline.pictures import sweep as pareto_picture

    buffer = io.BytesIO()
    pareto_picture.draw_pareto(points, facts).savefig(buffer, format="png", dpi=110)
    write_atomic(folder / PICTURE, buffer.getvalue())
    return str(folder / PICTURE)


def _show(points: Sequence[Point], facts: dict[str, Any]) -> None:
    console, model = make_console(), facts["model"]
    found = facts["float_validation"]
    clips = found["clips"]
    table = Table(
        title=f"{facts['recipe']}: accuracy against energy, {model} model, per inference on {clips} validation clips"
    )
    table.add_column("bits", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("ACC goal", justify="right")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    table.add_column("ACC", justify="right")
    table.add_column("nJ [interval]", justify="right")
    table.add_column("front")
    for point in points:
        names, test = _named(point), point.facts["test"]
        table.add_row(
            str(names["weight_bits"]),
            str(names["timesteps"]),
            _goal_text(names["acc_share"], point),
            f"{point.accuracy:.1%}",
            f"{test['correct'] / test['clips']:.1%}",
            f"{point.facts['counts']['acc']:,.0f}",
            interval_text(point.energy(model)),
            "*" if point.front else "",
        )
    if points:
        console.print(table)
        console.print(f"Energy: {points[0].energy(model)['provenance']}.")
    console.print(f"Float student: {found['correct'] / clips:.1%} of the validation clips.")
    console.print("Validation clips chose epochs and front, test clips nothing.")
    for refused in facts["refused"]:
        steps = "" if refused["timesteps"] is None else f", {refused['timesteps']} steps"
        console.print(
            f"refused: {refused['weight_bits']} bits{steps}: {refused['reason']}", soft_wrap=True
        )
    if points:
        console.print(f"picture: {facts['picture']}", soft_wrap=True)


def _goal_text(share: float | None, point: Point) -> str:
    if share is None:
        return "-"
    missed = point.facts["validation"]["accumulates"] > point.facts["acc_goal"]
    return f"{share:.0%}" + (" missed" if missed else "")


def interval_text(energy: dict[str, Any]) -> str:
    """Nominal and bounds in nanojoules; ? where a price has no bound."""
    low, high = (
        "?" if energy[name] is None else f"{energy[name] / 1e3:,.3g}" for name in ("lo_pj", "hi_pj")
    )
    return f"{energy['nominal_pj'] / 1e3:,.4g} [{low}, {high}]"
