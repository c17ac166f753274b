"""What goes in: a few test clips as teacher and student see them, whatever they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

SHOWN_STEPS = 6
ON_COLOUR, OFF_COLOUR = np.array([0.85, 0.2, 0.1]), np.array([0.1, 0.35, 0.85])
Array = npt.NDArray[Any]


def draw_samples(
    teacher: Sequence[Array],
    student: Array,
    names: Sequence[str],
    dt_s: float,
    *,
    on_channel: int = 0,
) -> Figure:
    """A row per clip: the teacher's first input, then the student's through time.

    Args:
        teacher: its inputs of these clips, (N, ...) each: images, clips of images, or signals (channels, samples).
        student: (N, T, *features) integers of the chip: two polarities or grey or coloured frames, or numbers.
        names: (N,) of the clips' classes.
        dt_s: of a step.
        on_channel: which polarity is ON.
    """
    images = student.ndim == 5
    steps = (
        np.linspace(0, student.shape[1] - 1, SHOWN_STEPS).astype(int)
        if images
        else np.zeros(1, int)
    )
    width = [1.0] * (SHOWN_STEPS + 1) if images else [3.0, 4.0]
    figure = Figure(
        figsize=(1.6 * (SHOWN_STEPS + 1), 1.75 * len(names) + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(names), len(width), squeeze=False, width_ratios=width)
    for row, name in enumerate(names):
        _teacher(axes[row, 0], teacher[0][row])
        axes[row, 0].set_ylabel(name)
        if not images:
            _numbers(axes[row, 1], student[row], dt_s)
            continue
        for column, step in enumerate(steps, start=1):
            axes[row, column].imshow(
                _frame(student[row, step], on_channel),
                cmap="gray",
                vmin=0,
                vmax=255 if student.max() > 1 else 1,
            )
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
            if row == 0:
                axes[row, column].set_title(f"{step * dt_s * 1000:.0f} ms", fontsize=9)
    axes[0, 0].set_title("teacher", fontsize=9)
    if not images:
        axes[0, 1].set_title("student: integers of the chip's input", fontsize=9)
    polarities = "; red ON, blue OFF" if images and student.shape[2] == 2 else ""
    figure.suptitle(
        f"Test clips: what the teacher sees, and what the student sees{polarities}", fontsize=10
    )
    return figure


def _teacher(axis: Any, seen: Array) -> None:
    """An image, the first of a clip of images, or signals."""
    if seen.ndim == 2:
        for signal in seen[:6]:  # more lines than that are a blot
            axis.plot(signal, linewidth=0.7)
    elif seen.ndim == 1:
        axis.plot(seen, ".", markersize=3)
    else:
        axis.imshow(seen[0] if seen.ndim == 3 else seen[0, 0], cmap="gray")
    axis.set_xticks([])
    axis.set_yticks([])


def _numbers(axis: Any, student: Array, dt_s: float) -> None:
    flat = student.reshape(len(student), -1)
    extent = (0, len(flat) * dt_s, -0.5, flat.shape[1] - 0.5)
    axis.imshow(
        flat.T, aspect="auto", interpolation="nearest", origin="lower", cmap="Greys", extent=extent
    )
    axis.set_ylabel("input", fontsize=8)
    axis.set_xlabel("time, s", fontsize=8)


def _frame(seen: Array, on_channel: int) -> Array:
    """(C, H, W) integers as a picture: events in colour where they are events, else grey or RGB."""
    if seen.shape[0] != 2:
        return np.asarray(seen[0] if seen.shape[0] == 1 else seen.transpose(1, 2, 0))
    if len(np.unique(seen)) > 2:
        return np.asarray(seen[0])  # a grey frame, shown on both polarities
    picture = np.full((*seen.shape[1:], 3), 255, np.uint8)
    on, off = seen[on_channel], seen[1 - on_channel]
    picture[off > 0], picture[on > 0] = (
        (255 * OFF_COLOUR).astype(np.uint8),
        (255 * ON_COLOUR).astype(np.uint8),
    )
    return picture
