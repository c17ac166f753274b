"""Pictures of a run: what goes in, what fires, what it costs, where float and chip part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knarr.hw_sim import load_recording
from knarr.pipeline.files import expecting, read_json, write_picture
from knarr.pipeline.pictures import SMALL
from knarr.pipeline.pictures.energy import draw_energy
from knarr.pipeline.pictures.raster import draw_raster
from knarr.pipeline.pictures.verification import draw_verification
from knarr.pipeline.run_folder import (
    ENERGY,
    PICTURE_NAMES,
    PICTURES,
    RECORDING,
    VERIFICATION,
    Run,
)
from knarr.pipeline.run_report import missing_pictures

Array = npt.NDArray[Any]

SHOWN_CLIPS: Final = 4
SHOWN_STEPS: Final = 6
SHOWN_SIGNALS: Final = 6  # more lines than that are a blot
ON_COLOUR: Final = np.array([0.85, 0.2, 0.1])
OFF_COLOUR: Final = np.array([0.1, 0.35, 0.85])


def draw_run(run: Run, again: str | None = None) -> None:
    """Draw the pictures of a run that are not there yet.

    Args:
        run: A finished run.
        again: Name of the one picture to draw, whether or not it is there; None for all.
    """
    folder = run.path(PICTURES)
    wanted = missing_pictures(run.folder) if again is None else [again]
    drawers = (_samples, _raster, _energy, _verification)
    for name, draw in zip(PICTURE_NAMES, drawers, strict=True):
        if name in wanted:
            folder.mkdir(exist_ok=True)
            write_picture(folder / f"{name}.png", draw(run))


def _samples(run: Run) -> Figure:
    """Draw the first test clip of a few classes, or the first clips where labels are float targets."""
    test = run.data.test
    chosen = np.arange(min(SHOWN_CLIPS, len(test.labels)))
    if not run.data.targets:
        chosen = np.unique(test.labels, return_index=True)[1][:SHOWN_CLIPS]
    shown = test.batch(chosen, None)
    # Without a teacher both columns show what the student sees.
    seen = shown.teacher_inputs[0] if shown.teacher_inputs else shown.inputs
    return draw_samples(
        seen.numpy(),
        run.on_chip(test).chip_inputs(chosen),
        [_label(run, int(number)) for number in chosen],
        run.recipe.data.dt_s,
        # N-MNIST's polarity 1 is ON; everywhere else the first plane is
        on_channel=1 if run.recipe.data.kind == "nmnist" else 0,
    )


def _raster(run: Run) -> Figure:
    """Draw every spike of every layer on the first test sample, as the chip fired it."""
    test = run.data.test
    recording = load_recording(run.path(RECORDING))
    first = np.arange(1)
    layers = {"input": run.on_chip(test).chip_inputs(first)[0]}
    for name, spikes in recording.spikes.items():
        # What never fires, such as a readout, would be an empty image.
        if spikes.any():
            layers[name] = spikes[0]
    return draw_raster(
        layers,
        recording.output[0],
        run.recipe.data.dt_s,
        f"First test sample ({_label(run, 0)}) on the chip: spikes per layer",
        run.data.targets or run.data.class_names,
    )


def _label(run: Run, clip: int) -> str:
    """Return a test clip's class by its name, or its targets."""
    label = run.data.test.labels[clip]
    if not run.data.targets:
        return run.data.class_names[label]
    return ", ".join(f"{value:.3g}" for value in label)


def _energy(run: Run) -> Figure:
    with expecting(run.path(ENERGY)):
        return draw_energy(read_json(run.path(ENERGY)))


def _verification(run: Run) -> Figure:
    with expecting(run.path(VERIFICATION)):
        return draw_verification(read_json(run.path(VERIFICATION)))


@mpl.rc_context(SMALL)
def draw_samples(
    teacher: Array, student: Array, names: Sequence[str], dt_s: float, *, on_channel: int = 0
) -> Figure:
    """Draw a few clips, each in a row: as the teacher sees it, then as the student does through
    time.

    Args:
        teacher: (N, ...) first input of the teacher: images, clips of images, or signals
            (channels, samples).
        student: (N, T, *features) integers of the chip: two polarities or grey or coloured frames,
            or numbers.
        names: (N,) classes of the clips.
        dt_s: Length of a time step, seconds.
        on_channel: The polarity that is ON.
    """
    images = student.ndim == 5
    width, steps = [3.0, 4.0], np.zeros(1, int)
    columns = SHOWN_STEPS + 1  # the teacher's beside the student's
    if images:
        width = [1.0] * columns
        last = student.shape[1] - 1
        steps = np.linspace(0, last, SHOWN_STEPS).astype(int)
    size = 1.6 * columns, 1.75 * len(names) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), len(width), squeeze=False, width_ratios=width)
    for row, name in enumerate(names):
        _draw_teacher(axes[row, 0], teacher[row])
        axes[row, 0].set_ylabel(name, fontsize=10)
        if not images:
            _draw_numbers(axes[row, 1], student[row], dt_s)
            continue
        brightest = 255 if student.max() > 1 else 1
        for axis, step in zip(axes[row, 1:], steps, strict=True):
            picture = _frame(student[row, step], on_channel)
            axis.imshow(picture, cmap="gray", vmin=0, vmax=brightest)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"{step * dt_s * 1000:.0f} ms")
    axes[0, 0].set_title("teacher")
    if not images:
        axes[0, 1].set_title("student: integers of the chip's input")
    polarities = "; red ON, blue OFF" if images and student.shape[2] == 2 else ""
    figure.suptitle(f"Test clips: what the teacher sees, and what the student sees{polarities}")
    return figure


def _draw_teacher(axis: Axes, seen: Array) -> None:
    """Draw an image, the first of a clip of images, or signals."""
    if seen.ndim == 2:
        for signal in seen[:SHOWN_SIGNALS]:
            axis.plot(signal, linewidth=0.7)
    elif seen.ndim == 1:
        axis.plot(seen, ".", markersize=3)
    else:
        image = seen[0] if seen.ndim == 3 else seen[0, 0]
        axis.imshow(image, cmap="gray")
    axis.set(xticks=[], yticks=[])


def _draw_numbers(axis: Axes, student: Array, dt_s: float) -> None:
    rows = student.reshape(len(student), -1).T
    # Half a row more on both sides, so that the middle of a row lies at its number.
    duration_s = len(student) * dt_s
    extent = (0, duration_s, -0.5, len(rows) - 0.5)
    axis.imshow(
        rows, aspect="auto", interpolation="nearest", origin="lower", cmap="Greys", extent=extent
    )
    axis.set(xlabel="time, s", ylabel="input")


def _frame(seen: Array, on_channel: int) -> Array:
    """Return (C, H, W) integers as a picture: events in colour where they are events, else grey or
    RGB.
    """
    if seen.shape[0] == 1:
        return seen[0]
    if seen.shape[0] != 2:
        return seen.transpose(1, 2, 0)
    if len(np.unique(seen)) > 2:
        return seen[0]  # a grey frame, which both polarities show
    height, width = seen.shape[1:]
    picture = np.full((height, width, 3), 255, np.uint8)
    # ON last: a pixel with both in one step shows as ON.
    picture[seen[1 - on_channel] > 0] = (255 * OFF_COLOUR).astype(np.uint8)
    picture[seen[on_channel] > 0] = (255 * ON_COLOUR).astype(np.uint8)
    return picture
