"""Accuracy against energy, one panel per energy model, each with its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from knarr.cli.pareto import Point

MARKERS = "os^Dv<>p"
COLUMNS = 2
DECADE = 10
"""Costs that differ by more lie on a logarithmic axis."""


def draw(points: Sequence[Point], facts: dict[str, Any]) -> Figure:
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
    figure.legend([drawn[name] for name in names], names, loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(
        f"{facts['recipe']}: what accuracy costs; small marks: small ACC goals; bars: intervals of the prices",
        fontsize=10,
    )
    return figure


def _panel(axes: Axes, points: Sequence[Point], model: str, facts: dict[str, Any]) -> None:
    steps = sorted({point.parameters["chip.timesteps"] for point in points}, reverse=True)
    bits = sorted({point.parameters["chip.weight_bits"] for point in points}, reverse=True)
    unknown = False
    for point in points:
        energy = point.energy(model)
        nominal = float(energy["nominal_pj"]) / 1e3
        low, high = (
            None if energy[name] is None else float(energy[name]) / 1e3 for name in ("lo_pj", "hi_pj")
        )
        unknown |= low is None or high is None
        label = f"{point.parameters['chip.weight_bits']} bits, {point.parameters['chip.timesteps']} steps"
        spread = [[nominal - low], [high - nominal]] if low is not None and high is not None else None
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
        found["correct"] / found["clips"], color="gray", linestyle=":", linewidth=1, label="float student"
    )
    costs = [float(point.energy(model)["nominal_pj"]) for point in points]
    if min(costs) > 0 and max(costs) > DECADE * min(costs):
        axes.set_xscale("log")
    axes.set_xlabel(
        f"{model} model, nJ per inference" + (" (no bounds published)" if unknown else ""), fontsize=8
    )
    axes.grid(visible=True, alpha=0.3)
