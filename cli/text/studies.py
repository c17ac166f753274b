"""Tables of sweeps and Pareto searches."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table

from knarr.pipeline import ParetoPoint, ParetoResult, SweepResult, SweepTrial

SHOWN: Final = 10
"""Trials of a sweep that are listed."""


def sweep_facts(result: SweepResult) -> dict[str, Any]:
    """Return everything that the table says, as plain data."""
    states = [trial.state for trial in result.trials]
    return {
        "out": str(result.out),
        "sweep": result.sweep.settings.name,
        "metric": result.sweep.settings.metric,
        "trials": {state: states.count(state) for state in ("finished", "pruned", "refused")},
        "best": None if result.best is None else _plain(result.best),
        "ranked": [_plain(trial) for trial in result.ranked()[:SHOWN]],
        "importance": result.importance,
        "files": result.files,
    }


def _plain(trial: SweepTrial) -> dict[str, Any]:
    facts = {
        "trial": trial.folder,
        "state": trial.state,
        "value": trial.value,
        "parameters": trial.parameters,
    }
    # Only trials that were refused have one.
    return {**facts, "reason": trial.reason} if trial.reason else facts


def print_sweep(result: SweepResult, console: Console) -> None:
    """Print the best trials, and where the results lie."""
    settings = result.sweep.settings
    # The best first; a search has hundreds of trials.
    shown = result.ranked()[:SHOWN]
    what = (
        f"best {len(shown)} of {len(result.trials)} trials"
        if len(shown) < len(result.trials)
        else "all trials"
    )
    table = Table(
        title=f"{settings.name}: {what}, {settings.metric.replace('_', ' ')} of the student"
    )
    table.add_column("trial")
    table.add_column("value", justify="right")
    table.add_column("parameters", overflow="fold")
    table.add_column("state", overflow="fold")
    for trial in shown:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        parameters = "\n".join(
            f"{path} {_short(found)}" for path, found in trial.parameters.items()
        )
        state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        table.add_row(trial.folder, value, parameters, state)
    console.print(table)
    if result.best is None:
        console.print("No trial finished: see the states above, and widen the search.")
    else:
        best = result.best.parameters.items()
        found = ", ".join(f"{path} {_short(value)}" for path, value in best)
        console.print(f"Best: {result.best.folder} with {found}")
        console.print(
            "Validation data chose it, so its value flatters it; only test data say how good it is."
        )
    for name, path in result.files.items():
        console.print(f"{name.replace('_', ' ')}: {path}", soft_wrap=True)


def print_pareto(result: ParetoResult, console: Console) -> None:
    """Print all points from the cheapest on, and what was refused."""
    facts, model = result.facts, result.facts["model"]
    clips = facts["float_validation"]["clips"]
    table = Table(
        title=f"{facts['recipe']}: accuracy against energy, {model} model, per inference on {clips} validation clips"
    )
    for heading in ("bits", "steps", "ACC goal", "validation", "test", "ACC", "nJ [interval]"):
        table.add_column(heading, justify="right")
    table.add_column("front")
    for point, names in zip(result.points, facts["points"], strict=True):
        test = point.facts["test"]
        table.add_row(
            str(names["weight_bits"]),
            str(names["timesteps"]),
            _goal(names["acc_share"], point),
            f"{point.accuracy:.1%}",
            f"{test['correct'] / test['clips']:.1%}",
            f"{point.facts['counts']['acc']:,.0f}",
            interval_text(point.energy(model)),
            "*" if point.front else "",
        )
    if result.points:
        console.print(table)
        console.print(f"Energy: {result.points[0].energy(model)['provenance']}.")
    correct = facts["float_validation"]["correct"]
    console.print(f"Float student: {correct / clips:.1%} of the validation clips.")
    console.print("Validation clips chose epochs and front, test clips nothing.")
    # A combination that no chip can hold is an answer too.
    for refused in facts["refused"]:
        steps = "" if refused["timesteps"] is None else f", {refused['timesteps']} steps"
        console.print(
            f"refused: {refused['weight_bits']} bits{steps}: {refused['reason']}", soft_wrap=True
        )
    if result.points:
        console.print(f"picture: {facts['picture']}", soft_wrap=True)


def _goal(share: float | None, point: ParetoPoint) -> str:
    if share is None:
        return "-"
    # The goal is held against validation clips, as in training.
    missed = point.facts["validation"]["accumulates"] > point.facts["acc_goal"]
    return f"{share:.0%}" + (" missed" if missed else "")


def interval_text(energy: dict[str, Any]) -> str:
    """Return nominal and bounds in nanojoules; ? where a price has no bound."""
    low, high = (
        "?" if energy[name] is None else f"{energy[name] / 1e3:,.3g}" for name in ("lo_pj", "hi_pj")
    )
    return f"{energy['nominal_pj'] / 1e3:,.4g} [{low}, {high}]"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
