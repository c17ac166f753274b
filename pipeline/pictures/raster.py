"""One sample's spikes through all layers, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

ROWS, COLUMNS = 250, 1000
"""Of a layer's image; where there are more neurons or steps, a pixel is the share of them that fired."""


def draw_raster(
    spikes: Mapping[str, npt.NDArray[Any]],
    readout: npt.NDArray[np.int64] | None,
    dt_s: float | None,
    title: str,
    classes: Sequence[str] = (),
) -> Figure:
    """An image of neurons over time per layer, and the readout's voltages.

    Args:
        spikes: layer name -> (timesteps, *features); payloads count as one spike.
        readout: (timesteps, outputs) chip voltages, or None.
        dt_s: length of a step in seconds, None: steps are the axis.
        title: over all.
        classes: names of the outputs.
    """
    unit = 1.0 if dt_s is None else dt_s * 1000
    rows = len(spikes) + (readout is not None)
    figure = Figure(figsize=(9, 2.0 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, spikes.items(), strict=False):
        flat = np.asarray(values).reshape(len(values), -1) != 0
        neurons = flat.shape[1]
        image, together = _binned(flat)
        extent = (-0.5 * unit, (len(flat) - 0.5) * unit, -0.5, neurons - 0.5)
        axis.imshow(
            image,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="Greys",
            vmin=0,
            extent=extent,
        )
        shown = f"\n{together} a row" if together > 1 else ""
        axis.set_ylabel(f"{name}\n{neurons:,} neurons{shown}", fontsize=8)
        axis.set_title(
            f"{flat.sum():,} spikes, {flat.mean():.2%} of neurons per step", fontsize=8, loc="right"
        )
    if readout is not None:
        _voltages(axes[-1], readout, unit, classes)
    axes[-1].set_xlabel("time step" if dt_s is None else "time, ms")
    figure.suptitle(title, fontsize=10)
    return figure


def _binned(flat: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], int]:
    """(neurons, steps) share of spikes in at most ROWS x COLUMNS, and how many neurons make a row."""
    steps, neurons = flat.shape
    rows, columns = -(-neurons // ROWS), -(-steps // COLUMNS)
    over_time = np.add.reduceat(flat.astype(np.float64), np.arange(0, steps, columns), axis=0)
    image = np.add.reduceat(over_time, np.arange(0, neurons, rows), axis=1)
    return image.T / (rows * columns), rows


def _voltages(
    axis: Any, readout: npt.NDArray[np.int64], unit: float, classes: Sequence[str]
) -> None:
    for index in range(readout.shape[1]):
        label = classes[index] if index < len(classes) else str(index)
        colour = mpl.colormaps["tab10"](index % 10)
        axis.plot(
            np.arange(len(readout)) * unit,
            readout[:, index],
            label=label,
            linewidth=1,
            color=colour,
        )
    axis.set_ylabel("readout\nchip units", fontsize=8)
    if readout.shape[1] <= 12:
        axis.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
