"""Pictures of a run: what goes in, what fires, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from knarr.hw_sim import load_recording
from knarr.pipeline.files import expecting, read_json, write_png
from knarr.pipeline.pictures.energy import draw_energy
from knarr.pipeline.pictures.raster import draw_raster
from knarr.pipeline.pictures.samples import draw_samples
from knarr.pipeline.pictures.verification import draw_verification

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from knarr.pipeline.run_folder import Run

SHOWN_SAMPLES = 4


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


def redraw_verification(run: Run) -> None:
    """verification.png anew."""
    _save(run, "verification", _verification(run))


def _save(run: Run, name: str, figure: Figure) -> None:
    run.path("pictures").mkdir(exist_ok=True)
    write_png(run.path("pictures") / f"{name}.png", figure)
    plt.close(figure)


def _samples(run: Run) -> Figure:
    """First test clip of a few classes."""
    labels = run.data.test.labels
    classes = np.unique(labels)[:SHOWN_SAMPLES]
    chosen = np.array([int(np.argmax(labels == label)) for label in classes])
    batch = run.data.test.batch(chosen, None)
    return draw_samples(
        [part.numpy() for part in batch.teacher_inputs],
        run.on_chip(run.data.test).chip_inputs(chosen),
        [run.data.class_names[label] for label in classes],
        run.recipe.data.dt_s,
        # N-MNIST's polarity 1 is ON; everywhere else the first plane is
        on_channel=1 if run.recipe.data.kind == "nmnist" else 0,
    )


def _raster(run: Run) -> Figure:
    """Every spike of every layer on the first test sample, as the chip fired it."""
    recording = load_recording(run.path("recording.npz"))
    layers = {name: spikes[0] for name, spikes in recording.spikes.items() if spikes.any()}
    label = run.data.class_names[int(run.data.test.labels[0])]
    return draw_raster(
        {"input": run.on_chip(run.data.test).chip_inputs(np.array([0]))[0], **layers},
        recording.output[0],
        run.recipe.data.dt_s,
        f"First test sample ({label}) on the chip: spikes per layer",
        run.data.class_names,
    )


def _energy(run: Run) -> Figure:
    """Energy of each layer of both networks, and the models beside each other."""
    path = run.path("energy.json")
    with expecting(path):
        return draw_energy(read_json(path))


def _verification(run: Run) -> Figure:
    """Where float and chip part."""
    path = run.path("verification.json")
    with expecting(path):
        return draw_verification(read_json(path))
