"""What the kernel counts while it runs is what counting the recorded spikes gives."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from random_networks import draw_any

from knarr.hw_sim import ChipError, InputCoding, choose_engine
from knarr.hw_sim.counting import chip
from knarr.hw_sim.counting.chip import ChipCounter

NETWORKS = 1000 if "KNARR_CONFORMANCE" in os.environ else 120


@pytest.mark.skipif(
    shutil.which("cc") is None and choose_engine("auto").name != "fast",
    reason="no C compiler on this machine",
)
def test_counts_equal_those_of_recorded_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    met: Counter[str] = Counter()
    ran = chip.simulate_counted

    def counted(*asked: object) -> object:
        found = ran(*asked)  # type: ignore[arg-type]
        met["counted"] += found is not None
        return found

    monkeypatch.setattr(chip, "simulate_counted", counted)
    for seed in range(NETWORKS):
        network, inputs = draw_any(seed)
        if network.input.neuron is None:
            # Of graded inputs each frame is looked at; spikes are what the kernel counts.
            network = replace(network, input=InputCoding(network.input.shape))
            inputs = (inputs != 0).astype(np.uint8)
        samples, steps = inputs.shape[:2]
        lengths = np.full(samples, steps)
        if seed % 2:
            lengths = np.random.default_rng(seed).integers(1, steps + 1, samples)
        found = []
        for while_running in (True, False):
            counter = ChipCounter(network)
            if not while_running:
                monkeypatch.setattr(counter, "_counts_while_running", lambda events: False)
            try:
                for _ in range(2):
                    counter.feed(inputs, lengths)
            except ChipError:  # sums beyond 2**53
                break
            found.append(counter.finish())
        if len(found) == 2:
            assert found[0] == found[1], seed
            met["touched"] += found[0].total.touched_updates > 0
        delays = [getattr(layer, "delay_int", None) is not None for layer in network.layers]
        met.update(type(layer).__name__ for layer in network.layers)
        met["delays"] += any(delays)
    # Twice for every network that is not driven by bias and has no groups.
    assert met["counted"] > NETWORKS, met
    assert met["touched"] > NETWORKS / 2
    assert min(met[kind] for kind in ("Dense", "Recurrent", "Conv", "delays")) > NETWORKS / 10, met
