"""What every system's student owes when it is fitted in the chip's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from knarr.hw_sim import ChipNetwork, simulate
from knarr.train import Recipe, RunData
from knarr.train.chip_fit import ChipFit
from knarr.train.clips import truncate_timesteps
from knarr.train.fitting.files import read_rows
from knarr.train.settings import ChipSettings
from knarr.train.train import train_validation_split
from knarr.train.train_chip import train_chip


def fitted(
    recipe: Recipe, data: RunData, teacher: nn.Module, start: ChipNetwork, folder: Path, **chip: Any
) -> ChipFit:
    """Fit a lowered student on whose classes were swapped before, so that there is something to learn; check that it does, that it
    spikes, and that the log tells what the engine gives."""
    *others, last = start.layers
    bias = None if last.bias_int is None else last.bias_int[::-1].copy()
    start = replace(
        start,
        layers=(*others, replace(last, weight_int=last.weight_int[::-1].copy(), bias_int=bias)),
    )
    made = recipe.model_copy(
        update={"chip": ChipSettings(**{"epochs": 4, "learning_rate": 0.01, **chip})}
    )
    found = train_chip(made, data, teacher, start, folder)
    rows = [row for row in read_rows(folder / "metrics.csv") if row["stage"] == "chip"]
    losses = [float(row["train_loss"]) for row in rows]
    assert min(losses[1:]) < losses[0]
    assert found.epoch is not None, "no epoch was kept, so nothing here was fitted"
    assert found.network.layers != start.layers
    _, chosen = train_validation_split(made, data)
    recording = simulate(
        found.network,
        truncate_timesteps(made, data.train).chip_inputs(chosen),
        record=("output", "spikes"),
        engine="reference",
    )
    for layer in found.network.layers:
        if layer.neuron.spikes:
            assert 0 < recording.spikes[layer.name].mean() < 1, layer.name
    correct = int(
        (found.network.readout.decide(recording.output) == data.train.labels[chosen]).sum()
    )
    assert round(float(rows[found.epoch]["validation_accuracy"]) * len(chosen)) == correct
    assert found.kept.correct == correct
    assert correct > found.start.correct
    assert np.isfinite(losses).all()
    return found
