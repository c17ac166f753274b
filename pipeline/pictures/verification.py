"""A verification as a picture: how much differs in which layer and when, and the sample where two stages part first."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from knarr.pipeline.run_report import divergence_text

LEFT_COLOUR, RIGHT_COLOUR, CIRCLE_COLOUR = "tab:blue", "tab:orange", "black"
SHOWN_STEPS, SHOWN_BARS = 120, 60


def draw_verification(result: dict[str, Any]) -> Figure:
    """Draw what `Verification.to_json` gives.

    Top: the share of spikes that differ, per layer and over time, between floats and the chip (between simulator and Lava
    where there are no floats). Bottom: neurons of the sample with the first divergence.
    """
    spikes = [row for row in result["rows"] if row["what"] == "spikes"]
    shown = [row for row in spikes if "~" in row["pair"]] or spikes
    raster = result["raster"]
    neurons = 0 if raster is None else len(raster["neurons"])
    figure = Figure(
        figsize=(10, 3.0 + 0.15 * neurons + (1.6 if neurons else 0)), layout="constrained"
    )
    grid = figure.add_gridspec(
        2 if neurons else 1, 2, height_ratios=[2.2, 1.2 + 0.15 * neurons][: 1 + bool(neurons)]
    )
    _shares(figure.add_subplot(grid[0, 0]), shown)
    _over_time(figure.add_subplot(grid[0, 1]), shown)
    if neurons:
        _raster(
            figure.add_subplot(grid[1, :]), raster, _row_of(result, raster), result["timesteps"]
        )
    verdict = "holds" if result["holds"] else "does NOT hold"
    figure.suptitle(f"Verification on {result['samples']} samples {verdict}", fontsize=11)
    return figure


def _row_of(result: dict[str, Any], raster: dict[str, Any]) -> dict[str, Any]:
    return next(
        row
        for row in result["rows"]
        if (row["pair"], row["layer"], row["what"]) == (raster["pair"], raster["layer"], "spikes")
    )


def _colours(rows: list[dict[str, Any]]) -> list[Any]:
    return [mpl.colormaps["viridis"](0.85 * i / max(len(rows) - 1, 1)) for i in range(len(rows))]


def _shares(axis: Axes, rows: list[dict[str, Any]]) -> None:
    names = [row["layer"] for row in rows]
    shares = [row["mismatches"] / row["compared"] for row in rows]
    bars = axis.barh(range(len(rows)), shares, height=0.6, color=_colours(rows))
    labels = [
        f"{share:.2%} ({row['mismatches']:,})" for share, row in zip(shares, rows, strict=True)
    ]
    axis.bar_label(bars, labels, padding=3, fontsize=8)
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.45 * max([*shares, 1e-4]))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    pairs = " and ".join(dict.fromkeys(row["pair"] for row in rows))
    axis.set_title(f"{pairs}: spikes that differ, per layer", fontsize=9)
    axis.set_xlabel("share of neurons and time steps", fontsize=8)


def _over_time(axis: Axes, rows: list[dict[str, Any]]) -> None:
    for row, colour in zip(rows, _colours(rows), strict=True):
        steps = len(row["by_step"])
        width = -(-steps // SHOWN_BARS)  # steps drawn as one
        edges = [*range(0, steps, width), steps]
        shares = [
            sum(row["by_step"][a:b]) * steps / row["compared"] / (b - a)
            for a, b in itertools.pairwise(edges)
        ]
        axis.stairs(shares, edges, label=row["layer"], color=colour, linewidth=1.4)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.set_title("the same over time", fontsize=9)
    axis.set_xlabel("time step", fontsize=8)
    if rows:
        axis.legend(fontsize=8)


def _raster(axis: Axes, raster: dict[str, Any], row: dict[str, Any], timesteps: int) -> None:
    """Upper half of a line: left stage; lower half: right stage. A strong half alone is a spike that one stage misses."""
    left, _, right = raster["pair"].split()
    first = raster["first"]
    begin = (
        0 if first is None else max(0, min(first[0] - SHOWN_STEPS // 3, timesteps - SHOWN_STEPS))
    )
    end = min(begin + SHOWN_STEPS, timesteps)
    lines = range(len(raster["neurons"]))
    for key, other, name, colour, offset in (
        ("left", "right", left, LEFT_COLOUR, -0.21),
        ("right", "left", right, RIGHT_COLOUR, 0.21),
    ):
        for alone in (False, True):
            fired = [
                (t, n)
                for n in lines
                for t in raster[key][n]
                if begin <= t < end and (t not in raster[other][n]) == alone
            ]
            axis.vlines(
                [t for t, _ in fired],
                [n + offset - 0.21 for _, n in fired],
                [n + offset + 0.21 for _, n in fired],
                color=colour,
                linewidth=4.0 if alone else 2.4,
                alpha=1.0 if alone else 0.4,
                label=f"{name} spike, {'missing' if alone else 'also'} in {right if key == 'left' else left}",
            )
    title = f"{raster['pair']}, layer {raster['layer']}: "
    if first is None:
        title += f"sample {raster['sample']}: every spike equal"
    else:
        axis.scatter(
            [first[0]],
            [raster["neurons"].index(first[1])],
            s=220,
            facecolors="none",
            edgecolors=CIRCLE_COLOUR,
            linewidths=1.6,
            zorder=3,
            label="first divergence",
        )
        title += "first divergence\n" + divergence_text(row).partition(": ")[2]
    axis.set_title(title, fontsize=9, loc="left")
    for line in lines[1::2]:
        axis.axhspan(line - 0.5, line + 0.5, color="0.965", zorder=0)
    axis.set_yticks(list(lines), [f"{n:,}" for n in raster["neurons"]], fontsize=6.5)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(raster["neurons"]) - 0.5, -0.5)
    axis.set_xlim(begin - 0.8, end - 0.2)
    axis.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    axis.set_ylabel("neuron (flat index)", fontsize=8)
    axis.set_xlabel("time step", fontsize=8)
    axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.09), frameon=False)
