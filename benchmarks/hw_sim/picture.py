"""The ratios and the scaling as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from engines import NAMES
from matplotlib.axes import Axes
from ratios import Round, number
from report import engines_of, ratio_rows

COLOURS = {"Lava": "#b2182b", "Norse": "#2166ac", "snnTorch": "#e08214", "slayer": "#762a83"}
ENGINE_COLOURS = dict(zip(NAMES, ("#1b7837", "#e08214", "#2166ac", "#762a83"), strict=False))
MIB = 2**20


def ratios(results: Mapping[str, Any], rounds: Sequence[Round], path: Path) -> None:
    """How many times faster knarr's engines are than each peer, with the range over the rounds, on a log axis."""
    ours, theirs = engines_of(rounds)
    titles = list(results["workloads"])
    shown = [
        one
        for one in ours
        if any(row[0] == one for title in titles for row in ratio_rows(rounds, title))
    ]
    if not shown:
        return
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(1.5 + 3.6 * len(shown), 1.5 + 0.75 * len(titles)),
        sharey=True,
        squeeze=False,
    )
    for axis, one in zip(axes[0], shown, strict=True):
        for row, title in enumerate(titles):
            found = {
                other: times for engine, other, times in ratio_rows(rounds, title) if engine == one
            }
            for place, (other, times) in enumerate(found.items()):
                y = row + 0.6 * ((place + 0.5) / len(found) - 0.5)
                reach = [[times.median - times.low], [times.high - times.median]]
                axis.errorbar(
                    times.median, y, xerr=reach, fmt="o", color=COLOURS[other], capsize=2, ms=4
                )
                axis.annotate(
                    number(times.median),
                    (times.high, y),
                    (5, -3),
                    textcoords="offset points",
                    fontsize=7,
                )
        axis.set_xscale("log")
        axis.axvline(1, color="grey", lw=0.8)
        axis.set_title(f"knarr {one}", fontsize=10)
        axis.set_xlabel("times faster (median, range)")
        axis.margins(x=0.15)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(titles)), titles)
    axes[0][0].invert_yaxis()
    for other in theirs:
        axes[0][0].plot(
            [],
            [],
            "o",
            color=COLOURS[other],
            label=other if other == "Lava" else f"{other}, 1 thread",
        )
    figure.legend(loc="outside lower center", ncols=len(theirs), frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def scaling(scaled: Mapping[str, Any], path: Path) -> None:
    """Samples and threads, activity, memory: what of them was measured."""
    drawn = {"samples": _samples, "activity": _activity, "memory": _memory}
    parts = [name for name in drawn if scaled.get(name)]
    if not parts:
        return
    figure, axes = plt.subplots(
        1, len(parts), figsize=(4.2 * len(parts), 3.6), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], parts, strict=True):
        drawn[name](axis, scaled[name])
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _lines(
    axis: Axes, rows: Sequence[Mapping[str, Any]], x: Sequence[float], factor: float
) -> None:
    for key in (key for key in rows[0] if "thread" in key):
        engine, _, threads = key.partition(", ")
        style = "--" if threads.startswith("2") else "-"
        y = [factor * row[key] for row in rows]
        axis.plot(x, y, style, marker="o", ms=4, color=ENGINE_COLOURS[engine], label=key)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _samples(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axis.set_xscale("log")
    _lines(axis, rows, [row["samples"] for row in rows], 1e6)
    axis.set(xlabel="samples at once", ylabel="µs per sample", title="W1, 10 %")


def _activity(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    _lines(axis, rows, [100 * row["rates"][0] for row in rows], 1e3)
    axis.set(
        xlabel="spikes per neuron and step, %",
        ylabel="ms per sample",
        title="first two layers of W2s",
    )


def _memory(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    x = range(len(rows))
    for shift, (field, colour) in enumerate(
        (("inputs", "#bbbbbb"), ("output", "#92c5de"), ("beyond", "#1b7837"))
    ):
        bars = axis.bar(
            [i + 0.27 * (shift - 1) for i in x],
            [max(0, row[field]) / MIB for row in rows],
            0.25,
            color=colour,
        )
        axis.bar_label(bars, fmt=lambda value: number(value), fontsize=7)
        bars.set_label({"beyond": "peak of simulate beyond both"}.get(field, field))
    axis.set_xticks(list(x), [f"{row['samples']} samples" for row in rows])
    axis.set(ylabel="MiB", title="memory, W1")
    axis.legend(fontsize=8, loc="upper left")
