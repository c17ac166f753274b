"""A sweep as one picture: how its values went, and which settings the better trials have in common."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from knarr.train.sweep import Result

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FINISHED, BEST, OTHER = "tab:blue", "tab:red", "tab:gray"


def draw(result: Result) -> Figure:
    """Values by trial, and importance beside them where there are trials enough for it."""
    settings = result.sweep.settings
    rows = max(3.6, 0.3 * len(result.importance) + 1.2)
    figure, axes = plt.subplots(
        1, 2 if result.importance else 1, figsize=(9, rows), squeeze=False, layout="constrained"
    )
    _history(axes[0, 0], result)
    if result.importance:
        _importance(axes[0, 1], result.importance)
    figure.suptitle(f"{settings.name}: {len(result.trials)} trials, {settings.sampler}", fontsize=10)
    return figure


def png(result: Result) -> bytes:
    """The picture as a PNG file."""
    figure, buffer = draw(result), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _history(axes: Axes, result: Result) -> None:
    """Every trial with a value as a point; the best one up to each trial as a line."""
    for state, marker, colour in (("finished", "o", FINISHED), ("pruned", "x", OTHER)):
        shown = [trial for trial in result.trials if trial.state == state and trial.value is not None]
        if shown:
            values = np.array([trial.value for trial in shown], dtype=float)
            places = np.array([trial.slot + 1 for trial in shown])
            axes.scatter(places, values, s=18, marker=marker, c=colour, label=state)
    finished = [trial for trial in result.trials if trial.state == "finished"]
    if finished:
        values = np.array([trial.value for trial in finished], dtype=float)
        best = (np.maximum if result.sweep.maximise else np.minimum).accumulate(values)
        axes.step([trial.slot + 1 for trial in finished], best, where="post", color=BEST, label="best so far")
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
