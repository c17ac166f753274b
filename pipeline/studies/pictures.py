"""Draw sweeps (how values went, which settings the better trials have in common) and Pareto
searches (accuracy against energy, one panel per energy model).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from knarr.pipeline.studies.results import BITS, SHARE, STEPS, ParetoPoint, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

mpl.use("Agg")  # a machine without a screen draws too

FINISHED, BEST, OTHER = "tab:blue", "tab:red", "tab:gray"
MARKERS = "os^Dv<>p"
COLUMNS = 2
DECADE = 10
"""Costs that differ by more lie on a logarithmic axis."""


def draw_sweep(result: SweepResult) -> Figure:
    """Draw values by trial, and importance beside them where there are trials enough for it."""
    settings = result.sweep.settings
    height = max(3.6, 0.3 * len(result.importance) + 1.2)  # inches; a bar needs 0.3
    columns = 2 if result.importance else 1
    figure, axes = plt.subplots(
        1, columns, figsize=(9, height), squeeze=False, layout="constrained"
    )
    _history(axes[0, 0], result)
    if result.importance:
        _importance(axes[0, 1], result.importance)
    figure.suptitle(
        f"{settings.name}: {len(result.trials)} trials, {settings.sampler}", fontsize=10
    )
    return figure


def _history(axes: Axes, result: SweepResult) -> None:
    """Draw every trial with a value as a point, and the best one up to each trial as a line."""
    for state, marker, colour in (("finished", "o", FINISHED), ("pruned", "x", OTHER)):
        # A trial that was pruned before its first epoch ended has no value.
        shown = [t for t in result.trials if t.state == state and t.value is not None]
        if not shown:
            continue
        # People count trials from 1, as the progress of a sweep does.
        places = [trial.number + 1 for trial in shown]
        values = np.array([trial.value for trial in shown], dtype=float)
        axes.scatter(places, values, s=18, marker=marker, c=colour, label=state)
        if state == "finished":
            best = (np.maximum if result.sweep.maximise else np.minimum).accumulate(values)
            axes.step(places, best, where="post", color=BEST, label="best so far")
    # A legend without entries would be an empty box.
    if any(trial.state == "finished" for trial in result.trials):
        axes.legend(fontsize=8)
    refused = sum(trial.state == "refused" for trial in result.trials)
    note = f" ({refused} refused by the recipe, not shown)" if refused else ""
    axes.set_xlabel(f"trial{note}", fontsize=8)
    axes.set_ylabel(result.sweep.settings.metric.replace("_", " "), fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _importance(axes: Axes, importance: dict[str, float]) -> None:
    names = list(importance)
    places = np.arange(len(names))
    bars = axes.barh(places, list(importance.values()), color=FINISHED)
    axes.bar_label(bars, [f"{share:.0%}" for share in importance.values()], padding=2, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()  # the most important one on top
    axes.set_xlim(0, 1.15)  # shares end at 1; room for the text of the longest bar
    axes.set_xlabel("importance (PED-ANOVA)", fontsize=8)


def draw_pareto(points: Sequence[ParetoPoint], facts: dict[str, Any]) -> Figure:
    """Draw the points by all energy models; the front is drawn where it was found.

    Args:
        points: The points, at least one.
        facts: `ParetoResult.to_json` of the search.
    """
    models = list(points[0].facts["energy"])
    rows = -(-len(models) // COLUMNS)  # rounded up
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
    # All panels have the same entries, and a label may stand there twice.
    drawn = dict(sorted(zip(labels, handles, strict=True), key=lambda entry: entry[0]))
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(
        f"{facts['recipe']}: what accuracy costs; small marks: small ACC goals; bars: intervals of the prices",
        fontsize=10,
    )
    return figure


def _panel(axes: Axes, points: Sequence[ParetoPoint], model: str, facts: dict[str, Any]) -> None:
    steps = sorted({point.parameters[STEPS] for point in points}, reverse=True)
    bits = sorted({point.parameters[BITS] for point in points}, reverse=True)
    # Picojoules are nanojoules / 1000.
    costs = [float(point.energy(model)["nominal_pj"]) / 1e3 for point in points]
    unknown = False
    for point, cost in zip(points, costs, strict=True):
        energy, values = point.energy(model), point.parameters
        spread = None
        # Where one bound is unknown, half a bar would look like a sharp price.
        if energy["lo_pj"] is None or energy["hi_pj"] is None:
            unknown = True
        else:
            spread = [[cost - energy["lo_pj"] / 1e3], [energy["hi_pj"] / 1e3 - cost]]
        share = values[SHARE]
        axes.errorbar(
            cost,
            point.accuracy,
            xerr=spread,
            capsize=2,
            elinewidth=0.8,
            linestyle="none",
            marker=MARKERS[steps.index(values[STEPS]) % len(MARKERS)],
            color=f"C{bits.index(values[BITS])}",
            markersize=4 + 4 * (1 if share is None else share),
            # One entry of the legend for all shares, which the size of the mark tells apart.
            label=f"{values[BITS]} bits, {values[STEPS]} steps" if share is None else None,
        )
    if model == facts["model"]:
        front = [pair for pair in zip(points, costs, strict=True) if pair[0].front]
        axes.step(
            [cost for _, cost in front],
            [point.accuracy for point, _ in front],
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
    # A cost of 0, of a student without spikes, has no logarithm.
    if min(costs) > 0 and max(costs) > DECADE * min(costs):
        axes.set_xscale("log")
    note = " (no bounds published)" if unknown else ""
    axes.set_xlabel(f"{model} model, nJ per inference{note}", fontsize=8)
    axes.grid(visible=True, alpha=0.3)
