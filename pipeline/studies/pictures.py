"""A sweep as one picture: how its values went, and which settings the better trials have in common.

Accuracy against energy, one panel per energy model, each with its intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from knarr.pipeline.studies.results import ParetoPoint, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

mpl.use("Agg")  # a machine without a screen draws too

FINISHED, BEST, OTHER = "tab:blue", "tab:red", "tab:gray"


def draw_sweep(result: SweepResult) -> Figure:
    """Values by trial, and importance beside them where there are trials enough for it."""
    settings = result.sweep.settings
    rows = max(3.6, 0.3 * len(result.importance) + 1.2)
    figure, axes = plt.subplots(
        1, 2 if result.importance else 1, figsize=(9, rows), squeeze=False, layout="constrained"
    )
    _history(axes[0, 0], result)
    if result.importance:
        _importance(axes[0, 1], result.importance)
    figure.suptitle(
        f"{settings.name}: {len(result.trials)} trials, {settings.sampler}", fontsize=10
    )
    return figure


def _history(axes: Axes, result: SweepResult) -> None:
    """Every trial with a value as a point; the best one up to each trial as a line."""
    for state, marker, colour in (("finished", "o", FINISHED), ("pruned", "x", OTHER)):
        shown = [
            trial for trial in result.trials if trial.state == state and trial.value is not None
        ]
        if shown:
            values = np.array([trial.value for trial in shown], dtype=float)
            places = np.array([trial.number + 1 for trial in shown])
            axes.scatter(places, values, s=18, marker=marker, c=colour, label=state)
    finished = [trial for trial in result.trials if trial.state == "finished"]
    if finished:
        values = np.array([trial.value for trial in finished], dtype=float)
        best = (np.maximum if result.sweep.maximise else np.minimum).accumulate(values)
        axes.step(
            [trial.number + 1 for trial in finished],
            best,
            where="post",
            color=BEST,
            label="best so far",
        )
        axes.legend(fontsize=8)
    refused = sum(trial.state == "refused" for trial in result.trials)
    axes.set_xlabel(
        "trial" + (f" ({refused} refused by the recipe, not shown)" if refused else ""), fontsize=8
    )
    axes.set_ylabel(result.sweep.settings.metric.replace("_", " "), fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _importance(axes: Axes, importance: dict[str, float]) -> None:
    names = list(importance)
    places = np.arange(len(names))
    bars = axes.barh(places, list(importance.values()), color=FINISHED)
    axes.bar_label(bars, [f"{share:.0%}" for share in importance.values()], padding=2, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("importance (PED-ANOVA)", fontsize=8)


MARKERS = "os^Dv<>p"
COLUMNS = 2
DECADE = 10
"""Costs that differ by more lie on a logarithmic axis."""


def draw_pareto(points: Sequence[ParetoPoint], facts: dict[str, Any]) -> Figure:
    """Points of all models; the front is drawn where it was found."""
    models = list(points[0].facts["energy"])
    rows = -(-len(models) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(10, 3.6 * rows), squeeze=False, layout="constrained", sharey=True
    )
    for model, panel in zip(models, axes.flat, strict=False):
        _panel(panel, points, model, facts)
    for panel in axes.flat[len(models) :]:
        panel.set_visible(False)
    for row in axes:
        row[0].set_ylabel("accuracy on validation clips")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    names = sorted(drawn)
    figure.legend(
        [drawn[name] for name in names], names, loc="outside lower center", ncols=6, fontsize=8
    )
    figure.suptitle(
        f"{facts['recipe']}: what accuracy costs; small marks: small ACC goals; bars: intervals of the prices",
        fontsize=10,
    )
    return figure


def _panel(axes: Axes, points: Sequence[ParetoPoint], model: str, facts: dict[str, Any]) -> None:
    steps = sorted({point.parameters["chip.timesteps"] for point in points}, reverse=True)
    bits = sorted({point.parameters["chip.weight_bits"] for point in points}, reverse=True)
    unknown = False
    for point in points:
        energy = point.energy(model)
        nominal = float(energy["nominal_pj"]) / 1e3
        low, high = (
            None if energy[name] is None else float(energy[name]) / 1e3
            for name in ("lo_pj", "hi_pj")
        )
        unknown |= low is None or high is None
        label = f"{point.parameters['chip.weight_bits']} bits, {point.parameters['chip.timesteps']} steps"
        spread = (
            [[nominal - low], [high - nominal]] if low is not None and high is not None else None
        )
        share = point.parameters["chip.acc_share"]
        axes.errorbar(
            nominal, point.accuracy, xerr=spread, capsize=2, elinewidth=0.8, linestyle="none",
            marker=MARKERS[steps.index(point.parameters["chip.timesteps"]) % len(MARKERS)],
            color=f"C{bits.index(point.parameters['chip.weight_bits'])}",
            markersize=4 + 4 * (1 if share is None else share), label=label if share is None else None,
        )  # fmt: skip
    if model == facts["model"]:
        front = [point for point in points if point.front]
        costs = [point.energy(model)["nominal_pj"] / 1e3 for point in front]
        axes.step(
            costs,
            [point.accuracy for point in front],
            where="post",
            color="black",
            linewidth=0.8,
            label="front",
        )
    found = facts["float_validation"]
    axes.axhline(
        found["correct"] / found["clips"],
        color="gray",
        linestyle=":",
        linewidth=1,
        label="float student",
    )
    costs = [float(point.energy(model)["nominal_pj"]) for point in points]
    if min(costs) > 0 and max(costs) > DECADE * min(costs):
        axes.set_xscale("log")
    axes.set_xlabel(
        f"{model} model, nJ per inference" + (" (no bounds published)" if unknown else ""),
        fontsize=8,
    )
    axes.grid(visible=True, alpha=0.3)
