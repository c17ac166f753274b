"""Energy per layer against the baseline, and three models with their intervals, as one picture."""

from __future__ import annotations

from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knarr.pipeline.pictures import SMALL

COLOURS: Final = {
    "baseline": "tab:gray",
    "effective": "tab:blue",
    "student": "tab:red",
}
SHIFTS: Final = {
    "baseline": -0.15,
    "effective": 0.0,
    "student": 0.15,
}
"""Places of a model's points beside each other, in columns."""


@mpl.rc_context(SMALL)
def draw_energy(facts: dict[str, Any]) -> Figure:
    """Draw the layers of both networks above and the models below, of what `energy_facts` gives."""
    # Under a chip's prices the baseline has no energy of its own.
    priced = {}
    for side in ("baseline", "student"):
        if facts[side] and facts[side]["energy"] is not None:
            priced[side] = facts[side]["energy"]
    figure = Figure(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(priced), height_ratios=(1.2, 1))
    layers_pj = [0.0]
    for energy in priced.values():
        layers_pj += energy["layers_pj"].values()
    # The same scale on both sides.
    largest_nj = max(layers_pj) / 1000
    for column, (side, energy) in enumerate(priced.items()):
        _draw_layers(figure.add_subplot(grid[0, column]), energy, side, largest_nj)
    _draw_models(figure.add_subplot(grid[1, :]), facts["models"])
    return figure


def _draw_layers(axes: Axes, energy: dict[str, Any], side: str, largest_nj: float) -> None:
    # Activations cost nothing here, and would be empty lines.
    paying = {name: pj / 1000 for name, pj in energy["layers_pj"].items() if pj > 0}
    # ONNX names a node by its whole path; the module and the operation say enough.
    names = ["/".join(name.split("/")[-2:]) for name in paying]
    places = range(len(names))
    values = list(paying.values())
    bars = axes.barh(places, values, color=COLOURS[side])
    labels = [_three_digits(value) for value in values]
    axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * largest_nj if largest_nj else 1)
    bound = "at least " if energy["partial"] else ""
    total = f"{energy['nominal_pj'] / 1e6:,.3f} uJ ({energy['model']} model)"
    axes.set_title(f"{side}: {bound}{total}", fontsize=10)
    axes.set_xlabel(f"nJ per inference and layer, {energy['profile']}")


def _three_digits(value: float) -> str:
    # Format g alone would write a thousand as 1e+03.
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw_models(axes: Axes, models: list[dict[str, Any]]) -> None:
    """Draw nominal values as points and intervals as lines, on one logarithmic scale."""
    labels = []
    for column, each in enumerate(models):
        label = f"{each['model']}\n{each['profile']}"
        if each["active"]:
            label += f", {each['active']}"
        if each["reuse"]:
            label += f", reuse {each['reuse']:g}"
        labels.append(label)
        for side, colour in COLOURS.items():
            energy = each[side]
            # A logarithmic scale has no place for what costs nothing.
            if energy is None or energy["nominal_pj"] <= 0:
                continue
            # Another technology's dots in a chip's column would invite a comparison.
            if each["mixed"] and side != "student":
                continue
            middle = energy["nominal_pj"] / 1e6
            spread = []
            for bound, sign in (("lo_pj", -1), ("hi_pj", 1)):
                # A bound that nobody published is drawn as none.
                end = middle if energy[bound] is None else energy[bound] / 1e6
                spread.append([max(0.0, sign * (end - middle))])
            place = column + SHIFTS[side]
            axes.errorbar(place, middle, yerr=spread, fmt="o", color=colour, capsize=3)
    for side, colour in COLOURS.items():
        name = "baseline, zeros skipped" if side == "effective" else side
        axes.plot([], [], "o", color=colour, label=name)
    axes.set_yscale("log")
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel("uJ per inference", fontsize=10)
    title = "Models and prices; lines are intervals where a source gives bounds"
    axes.set_title(title, fontsize=10)
    below = (0.5, -0.22)
    axes.legend(loc="upper center", bbox_to_anchor=below, ncol=3)
    axes.margins(x=0.08)
