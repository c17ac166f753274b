"""A verification as a picture: how much differs in which layer and when, and the sample where two
stages part first.
"""

from __future__ import annotations

from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from knarr.pipeline.pictures import SMALL
from knarr.pipeline.run_report import divergence_text

COLOURS: Final = {"left": "tab:blue", "right": "tab:orange"}
SHOWN_STEPS: Final = 120
SHOWN_BARS: Final = 60
Row = dict[str, Any]
"""One layer of a verification, as `Verification.to_json` gives it."""


@mpl.rc_context(SMALL)
def draw_verification(result: dict[str, Any]) -> Figure:
    """Draw what `Verification.to_json` gives.

    Top: the share of spikes that differ, per layer and over time, between floats and the chip
    (between simulator and Lava where there are no floats). Bottom: neurons of the sample with the
    first divergence.
    """
    spikes = [row for row in result["rows"] if row["what"] == "spikes"]
    rows = [row for row in spikes if "~" in row["pair"]] or spikes
    raster = result["raster"]
    height, ratios = 3.0, [2.2]
    if raster is not None:
        lower = 0.15 * len(raster["neurons"])
        height += lower + 1.6
        ratios.append(1.2 + lower)
    figure = Figure(figsize=(10, height), layout="constrained")
    grid = figure.add_gridspec(len(ratios), 2, height_ratios=ratios)
    _draw_shares(figure.add_subplot(grid[0, 0]), rows)
    _draw_over_time(figure.add_subplot(grid[0, 1]), rows)
    if raster is not None:
        drawn = (raster["pair"], raster["layer"])
        row = next(row for row in spikes if (row["pair"], row["layer"]) == drawn)
        below = figure.add_subplot(grid[1, :])
        _draw_raster(below, raster, row, result["timesteps"])
    verdict = "holds" if result["holds"] else "does NOT hold"
    figure.suptitle(f"Verification on {result['samples']} samples {verdict}", fontsize=11)
    return figure


def _colours(rows: list[Row]) -> list[Any]:
    # The bright end of the map is not seen on white.
    places = np.linspace(0, 0.85, len(rows))
    return list(mpl.colormaps["viridis"](places))


def _draw_shares(axis: Axes, rows: list[Row]) -> None:
    shares = [row["mismatches"] / row["compared"] for row in rows]
    places = range(len(rows))
    bars = axis.barh(places, shares, height=0.6, color=_colours(rows))
    labels = [f"{row['mismatches'] / row['compared']:.2%} ({row['mismatches']:,})" for row in rows]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set_yticks(places, [row["layer"] for row in rows])
    axis.invert_yaxis()
    # Room for the labels, and an axis even where nothing differs.
    axis.set_xlim(0, 1.45 * max([*shares, 1e-4]))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    pairs = " and ".join(dict.fromkeys(row["pair"] for row in rows))
    title = f"{pairs}: spikes that differ, per layer"
    axis.set(title=title, xlabel="share of neurons and time steps")


def _draw_over_time(axis: Axes, rows: list[Row]) -> None:
    for row, colour in zip(rows, _colours(rows), strict=True):
        by_step = row["by_step"]
        steps = len(by_step)
        starts = np.arange(0, steps, -(-steps // SHOWN_BARS))
        edges = np.append(starts, steps)
        # `compared` counts all steps, a bar those that are drawn as one.
        compared = row["compared"] / steps * np.diff(edges)
        shares = np.add.reduceat(by_step, starts) / compared
        axis.stairs(shares, edges, label=row["layer"], color=colour, linewidth=1.4)
    axis.set(title="the same over time", xlabel="time step")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if rows:
        axis.legend()


def _draw_raster(axis: Axes, raster: dict[str, Any], row: Row, timesteps: int) -> None:
    """Draw a line for each neuron, its upper half the left stage, its lower half the right one.

    A strong half alone is a spike that one stage misses.
    """
    left, _, right = raster["pair"].split()
    first, neurons = raster["first"], raster["neurons"]
    begin = 0
    if first is not None:
        # A third of the picture shows what led to the divergence.
        wanted = first[0] - SHOWN_STEPS // 3
        begin = max(0, min(wanted, timesteps - SHOWN_STEPS))
    end = min(begin + SHOWN_STEPS, timesteps)
    stages = {"left": left, "right": right}
    for key, other in (("left", "right"), ("right", "left")):
        # The axis points down: the upper half of a line begins 0.42 above its middle.
        top = -0.42 if key == "left" else 0.0
        for alone in (False, True):
            fired = []
            for line, (own, others) in enumerate(zip(raster[key], raster[other], strict=True)):
                for step in own:
                    if begin <= step < end and (step not in others) == alone:
                        fired.append((step, line + top))
            steps, tops = np.array(fired).reshape(-1, 2).T
            axis.vlines(
                steps,
                tops,
                tops + 0.42,
                color=COLOURS[key],
                linewidth=4.0 if alone else 2.4,
                alpha=1.0 if alone else 0.4,
                label=f"{stages[key]} spike, {'missing' if alone else 'also'} in {stages[other]}",
            )
    title = f"{raster['pair']}, layer {raster['layer']}: "
    if first is None:
        title += f"sample {raster['sample']}: every spike equal"
    else:
        axis.scatter(
            first[0],
            neurons.index(first[1]),
            s=220,
            facecolors="none",
            edgecolors="black",
            linewidths=1.6,
            zorder=3,
            label="first divergence",
        )
        title += "first divergence\n" + divergence_text(row).partition(": ")[2]
    axis.set_title(title, loc="left")
    lines = range(len(neurons))
    for line in lines[1::2]:
        axis.axhspan(line - 0.5, line + 0.5, color="0.965", zorder=0)
    axis.set_yticks(lines, [f"{neuron:,}" for neuron in neurons], fontsize=6.5)
    axis.tick_params(axis="y", length=0)
    axis.set(
        xlabel="time step",
        ylabel="neuron (flat index)",
        xlim=(begin - 0.8, end - 0.2),
        ylim=(len(neurons) - 0.5, -0.5),
    )
    axis.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    below = (0.5, -0.09)
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=below, frameon=False)
