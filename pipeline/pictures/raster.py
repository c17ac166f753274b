"""One sample's spikes through all layers, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knarr.pipeline.pictures import SMALL

ROWS: Final = 250
COLUMNS: Final = 1000
"""Most rows and columns of a layer's image. Of more neurons or steps, a pixel is the share that
fired.
"""
LEGEND_OUTPUTS: Final = 12


@mpl.rc_context(SMALL)
def draw_raster(
    spikes: Mapping[str, npt.NDArray[Any]],
    readout: npt.NDArray[np.int64] | None,
    dt_s: float | None,
    title: str,
    classes: Sequence[str] = (),
) -> Figure:
    """Draw an image of neurons over time for each layer, and the readout's voltages below them.

    Args:
        spikes: Layer name -> (timesteps, *features); payloads count as one spike.
        readout: (timesteps, outputs) chip voltages, or None.
        dt_s: Length of a time step, seconds; None shows steps instead of time.
        title: Title over all.
        classes: Names of the outputs.
    """
    unit = 1.0 if dt_s is None else dt_s * 1000
    rows = len(spikes) + (readout is not None)
    figure = Figure(figsize=(9, 2.0 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, spikes.items(), strict=False):
        fired = values.reshape(len(values), -1) != 0
        _draw_layer(axis, name, fired, unit)
    if readout is not None:
        _draw_voltages(axes[-1], readout, unit, classes)
    axes[-1].set_xlabel("time step" if dt_s is None else "time, ms", fontsize=10)
    figure.suptitle(title)
    return figure


def _draw_layer(axis: Axes, name: str, fired: npt.NDArray[np.bool_], unit: float) -> None:
    """Draw (steps, neurons) spikes."""
    steps, neurons = fired.shape
    image, together = _binned(fired)
    # Half a pixel more on every side: step and neuron n are centred at n.
    half = 0.5
    axis.imshow(
        image,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap="Greys",
        vmin=0,
        extent=(-half * unit, (steps - half) * unit, -half, neurons - half),
    )
    grouped = f"\n{together} a row" if together > 1 else ""
    axis.set_ylabel(f"{name}\n{neurons:,} neurons{grouped}")
    rate = f"{fired.sum():,} spikes, {fired.mean():.2%} of neurons per step"
    axis.set_title(rate, fontsize=8, loc="right")


def _binned(fired: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], int]:
    """Return the (neurons, steps) share of spikes in at most ROWS x COLUMNS, and how many neurons
    make a row.
    """
    steps, neurons = fired.shape
    # Rounded up, so that all of them fit; the last pixel may have fewer.
    rows = -(-neurons // ROWS)
    columns = -(-steps // COLUMNS)
    starts = np.arange(0, steps, columns)
    over_time = np.add.reduceat(fired.astype(np.float64), starts, axis=0)
    starts = np.arange(0, neurons, rows)
    image = np.add.reduceat(over_time, starts, axis=1)
    return image.T / (rows * columns), rows


def _draw_voltages(
    axis: Axes, readout: npt.NDArray[np.int64], unit: float, classes: Sequence[str]
) -> None:
    steps, outputs = readout.shape
    times = np.arange(steps) * unit
    for output, voltages in enumerate(readout.T):
        label = classes[output] if output < len(classes) else str(output)
        axis.plot(times, voltages, label=label, linewidth=1, color=f"C{output}")
    axis.set_ylabel("readout\nchip units")
    if outputs <= LEGEND_OUTPUTS:
        corner = (1, 1)
        axis.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=corner)
