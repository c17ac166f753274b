"""Pictures of a run: what goes in, what fires, what it costs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from knarr.cli import energy_picture, raster_picture, verification_picture
from knarr.cli.output import expecting, read_json
from knarr.hw_sim import load_recording
from knarr.train.fit_files import write_atomic

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from knarr.cli.stages import Run

SHOWN_SAMPLES = 4
SHOWN_STEPS = 6
ON_COLOUR, OFF_COLOUR = np.array([0.85, 0.2, 0.1]), np.array([0.1, 0.35, 0.85])


def draw_all(run: Run) -> None:
    """samples, raster, energy and verification in the run's pictures folder; those already there are kept."""
    for name, draw in (
        ("samples", _samples),
        ("raster", _raster),
        ("energy", _energy),
        ("verification", _verification),
    ):
        if not (run.path("pictures") / f"{name}.png").exists():
            _save(run, name, draw(run))


def draw_verification(run: Run) -> None:
    """verification.png anew."""
    _save(run, "verification", _verification(run))


def _save(run: Run, name: str, figure: Figure) -> None:
    run.path("pictures").mkdir(exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_atomic(run.path("pictures") / f"{name}.png", buffer.getvalue())


def _samples(run: Run) -> Figure:
    """First test clip of a few classes: one teacher frame, then the student's events through time."""
    labels = run.data.test.labels
    classes = np.unique(labels)[:SHOWN_SAMPLES]
    chosen = np.array([int(np.argmax(labels == label)) for label in classes])
    batch = run.data.test.batch(chosen, None)
    spikes = run.data.test.chip_inputs(chosen)
    steps = np.linspace(0, spikes.shape[1] - 1, SHOWN_STEPS).astype(int)
    on_channel = (
        1 if run.recipe.data.kind == "nmnist" else 0
    )  # N-MNIST's polarity 1 is ON, SEE's first plane is
    figure, axes = plt.subplots(
        len(chosen),
        SHOWN_STEPS + 1,
        figsize=(1.6 * (SHOWN_STEPS + 1), 1.75 * len(chosen)),
        squeeze=False,
        layout="constrained",
    )
    for row, label in enumerate(classes):
        axes[row, 0].imshow(batch.teacher_inputs[0][row, 0].numpy(), cmap="gray")
        axes[row, 0].set_ylabel(run.data.class_names[label])
        for column, step in enumerate(steps, start=1):
            on, off = spikes[row, step, on_channel], spikes[row, step, 1 - on_channel]
            picture = np.ones((*on.shape, 3))
            picture[off > 0], picture[on > 0] = OFF_COLOUR, ON_COLOUR
            axes[row, column].imshow(picture)
            if row == 0:
                axes[row, column].set_title(f"{step * run.recipe.data.dt_s * 1000:.0f} ms", fontsize=9)
    axes[0, 0].set_title("teacher", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(
        "Test clips: a frame the teacher sees, and events the student sees (red ON, blue OFF)", fontsize=10
    )
    return figure


def _raster(run: Run) -> Figure:
    """Every spike of every layer on the first test sample, as the chip fired it."""
    recording = load_recording(run.path("recording.npz"))
    layers = {name: spikes[0] for name, spikes in recording.spikes.items() if spikes.any()}
    label = run.data.class_names[int(run.data.test.labels[0])]
    return raster_picture.draw(
        {"input": run.data.test.chip_inputs(np.array([0]))[0], **layers},
        recording.output[0],
        run.recipe.data.dt_s,
        f"First test sample ({label}) on the chip: spikes per layer",
        run.data.class_names,
    )


def _energy(run: Run) -> Figure:
    """Energy of each layer of both networks, and the models beside each other."""
    path = run.path("energy.json")
    with expecting(path):
        return energy_picture.draw(read_json(path))


def _verification(run: Run) -> Figure:
    """Where float and chip part."""
    path = run.path("verification.json")
    with expecting(path):
        return verification_picture.draw(read_json(path))
