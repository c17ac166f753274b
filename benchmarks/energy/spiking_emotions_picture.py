"""Energy per layer: what the paper's proxy says, what was counted, and the ANN."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from spiking_emotions_measured import Measured
from spiking_emotions_networks import LAYERS

mpl.use("Agg")

from matplotlib import pyplot as plt

COLOURS = {
    "paper's proxy": "#bbbbbb",
    "counted, pools folded": "#1b7837",
    "counted, pools float": "#92c5de",
    "ANN, dense": "#b2182b",
}


def draw(measured: Measured, path: Path) -> None:
    """Bars per layer and in all, on a log axis, under the paper's prices."""
    parts = [measured.proxy_uj()]
    parts += [measured.energy_uj(how, "paper") for how in ("folded", "float", "ANN dense")]
    labels = (*LAYERS, "all")
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    for at, ((name, colour), energy) in enumerate(zip(COLOURS.items(), parts, strict=True)):
        heights = [*energy.values(), sum(energy.values())]
        places = [place + 0.21 * (at - 1.5) for place in range(len(labels))]
        bars = axis.bar(places, heights, 0.2, color=colour, label=name)
        axis.bar_label(bars, fmt="{:.0f}", fontsize=7, padding=1)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yscale("log")
    axis.set(
        ylabel="uJ per clip (4.6 pJ MAC, 0.9 pJ ACC)",
        title="One clip of 68 frames, untrained weights",
    )
    axis.margins(y=0.12)
    axis.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
