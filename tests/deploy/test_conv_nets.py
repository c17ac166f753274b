"""Convolutional nets as people write them export and lower: `make conformance` draws 200, `make test` a few of them.

benchmarks/conv_nets.py draws them; knarr 0f53bde refused 118 of the same 200.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knarr.deploy import lower
from knarr.deploy.lowering.places import node_places
from knarr.export import step_nir, to_nir
from knarr.hw_sim import simulate

FILE = Path(__file__).parents[2] / "benchmarks" / "conv_nets.py"
WHOLE = "KNARR_CONFORMANCE" in os.environ
SEEDS = range(200) if WHOLE else (0, 4)
"""The two hold a 'same' of an even kernel, plain and padded pools before padded convolutions, and batch-norm."""

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


@pytest.fixture(scope="module")
def nets() -> Any:
    spec = importlib.util.spec_from_file_location("conv_nets", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conv_nets"] = module
    spec.loader.exec_module(module)
    return module


def test_nearly_every_net_is_lowered(nets: Any) -> None:
    refused = {}
    ways = set()
    for seed in SEEDS:
        how, written, reason = nets.attempt(seed)
        ways.add(how)
        if reason:
            refused[written] = reason
    assert len(refused) <= (2 if WHOLE else 0), refused
    assert {"lowered", "relays"} <= ways


def test_their_chip_networks_do_what_the_graphs_do(nets: Any) -> None:
    """Decays lose bits and weights are rounded here: spikes differ, yet far less than chance would have it."""
    for seed in SEEDS[:40] if WHOLE else (4,):
        module, shape, _ = nets.draw(seed)
        inputs = nets.events(shape, seed)
        graph = to_nir(module, shape, nets.DT_S, samples=inputs)
        network = lower(graph, nets.DT_S)
        floats = step_nir(graph, inputs, nets.DT_S).spikes
        chip = simulate(network, inputs.astype(np.uint8), record=("spikes",)).spikes
        name, (layer, seat) = next(iter(node_places(network).items()))
        fired = seat.take(chip[layer])
        differs = int((fired != floats[name].reshape(fired.shape)).sum())
        assert differs < 0.1 * floats[name].sum(), (seed, differs, int(floats[name].sum()))
