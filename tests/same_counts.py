"""Counts of one network and one input from both sides: its graph in floats, and its chip file in integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np

from knarr.deploy import read_net, write_net
from knarr.hw_sim import ChipNetwork, OperationCounts, count

OF_EVENTS = ("acc", "mac", "signed", "events", "graded")
OF_SIZES = ("dense_valid", "bias_adds", "neuron_updates")


def of_both_sides(
    graph: nir.NIRGraph, network: ChipNetwork, inputs: Any, dt_s: float, folder: Path
) -> tuple[OperationCounts, OperationCounts]:
    """Return the counts of a graph and of its chip file, after comparing what must be equal.

    The first layer hears the same on both sides, so that all its columns are. Rounded weights may make
    other neurons behind it fire: of those layers the classes and the sizes are.

    Args:
        graph: a row of layers.
        network: what it was lowered to.
        inputs: (samples, timesteps, *features) integers of the chip.
        dt_s: time step, seconds.
        folder: a place for the file.
    """
    write_net(network, folder / "sides.net")
    chip = count(read_net(folder / "sides.net"), inputs)
    assert chip == count(network, inputs)
    floats = inputs.astype(np.float32) / np.float32(network.input.units)
    one = count(graph, floats, dt_s=dt_s)
    assert len(one.layers) == len(chip.layers) > 1
    for at, (mine, its) in enumerate(zip(one.layers.values(), chip.layers.values(), strict=True)):
        for name in OF_SIZES + (OF_EVENTS if at == 0 else ()):
            assert getattr(mine, name) == getattr(its, name), (at, name)
        if at:
            assert mine.mac == its.mac == 0
    first = next(iter(one.layers.values()))
    assert first.acc + first.mac > 0
    return one, chip
