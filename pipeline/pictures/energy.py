"""Energy per layer against the baseline, and three models with their intervals, as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STUDENT, BASELINE = "tab:red", "tab:gray"


def draw_energy(facts: dict[str, Any]) -> Figure:
    """Layers of both networks above, models below; of what `energy_facts` gives."""
    both = (("baseline", BASELINE), ("student", STUDENT))
    # Under a chip's prices the baseline has no energy of its own.
    sides = [
        (name, colour) for name, colour in both if facts[name] and facts[name]["energy"] is not None
    ]
    figure = plt.figure(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(sides), height_ratios=(1.2, 1))
    largest = max(
        (pj for side, _ in sides for pj in facts[side]["energy"]["layers_pj"].values()), default=1.0
    )
    for at, (side, colour) in enumerate(sides):
        _layers(
            figure.add_subplot(grid[0, at]), facts[side]["energy"], side, colour, largest / 1000
        )
    _models(figure.add_subplot(grid[1, :]), facts["models"])
    return figure


def _layers(axes: Axes, energy: dict[str, Any], side: str, colour: str, largest: float) -> None:
    paying = {
        name: pj / 1000 for name, pj in energy["layers_pj"].items() if pj > 0
    }  # activations cost nothing here
    names = ["/".join(name.split("/")[-2:]) for name in paying]
    values = np.array(list(paying.values()))
    places = np.arange(len(names))
    bars = axes.barh(places, values, color=colour)
    labels = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
    axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * largest if largest else 1)  # the same scale on both sides
    bound = "at least " if energy["partial"] else ""
    axes.set_title(
        f"{side}: {bound}{energy['nominal_pj'] / 1e6:,.3f} uJ ({energy['model']} model)",
        fontsize=10,
    )
    axes.set_xlabel(f"nJ per inference and layer, {energy['profile']}", fontsize=8)


def _models(axes: Axes, models: list[dict[str, Any]]) -> None:
    """Nominal values as points, intervals as lines, on one logarithmic scale."""
    labels = []
    for at, each in enumerate(models):
        labels.append(
            f"{each['model']}\n{each['profile']}"
            + (f", {each['active']}" if each["active"] else "")
            + (f", reuse {each['reuse']:g}" if each["reuse"] else "")
        )
        for side, colour, shift in (
            ("baseline", BASELINE, -0.15),
            ("effective", "tab:blue", 0.0),
            ("student", STUDENT, 0.15),
        ):
            energy = each[side]
            # Another technology's dots in a chip's column would invite a comparison.
            if energy is None or energy["nominal_pj"] <= 0 or (each["mixed"] and side != "student"):
                continue
            middle = energy["nominal_pj"] / 1e6
            ends = [energy["lo_pj"], energy["hi_pj"]]
            lo, hi = (middle if end is None else end / 1e6 for end in ends)
            axes.errorbar(
                at + shift,
                middle,
                yerr=[[max(0.0, middle - lo)], [max(0.0, hi - middle)]],
                fmt="o",
                color=colour,
                capsize=3,
            )
    for side, colour in (
        ("baseline", BASELINE),
        ("baseline, zeros skipped", "tab:blue"),
        ("student", STUDENT),
    ):
        axes.plot([], [], "o", color=colour, label=side)
    axes.set_yscale("log")
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel("uJ per inference")
    axes.set_title(
        "Models and prices; lines are intervals where a source gives bounds", fontsize=10
    )
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=3)
    axes.margins(x=0.08)
