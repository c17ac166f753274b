"""What fewer steps or other thresholds buy: each row is a run that anyone can repeat."""

from __future__ import annotations

import nir
import numpy as np
import pytest
from graphs import DT_S, chain, integrate, lif, on_grid, spikes

from knarr.deploy import lower
from knarr.hw_sim import ChipNetwork, PriceError, count, price, simulate
from knarr.hw_sim.energy import what_if
from knarr.hw_sim.energy.what_if import with_thresholds

RNG = np.random.default_rng(2)
INPUTS = spikes(8, 12, 6, seed=3)


def graph() -> nir.NIRGraph:
    return chain(
        (6,), (3,), a=nir.Linear(on_grid(RNG, 5, 6) + 0.2), n=lif((5,)), b=nir.Linear(on_grid(RNG, 3, 5)), m=integrate((3,))
    )  # fmt: skip


@pytest.mark.parametrize("lowered", [False, True], ids=["graph", "chip"])
def test_rows_are_runs(lowered: bool) -> None:
    made = graph()
    model = lower(made, DT_S) if lowered else made
    dt_s = None if lowered else DT_S
    rows = what_if(
        model, INPUTS, dt_s=dt_s, labels=np.zeros(8, dtype=int), shares=(0.5,), factors=(2.0, 1.0)
    )
    assert [(row.change, row.value) for row in rows] == [
        ("timesteps", 12.0), ("timesteps", 6.0), ("threshold", 2.0), ("threshold", 1.0),
    ]  # fmt: skip
    now, half, double, same = rows
    assert (now.relative, now.agreement) == (same.relative, same.agreement) == (1.0, 1.0)
    assert half.energy_pj == price(count(model, INPUTS[:, :6], dt_s=dt_s)).nominal_pj
    assert (
        double.energy_pj == price(count(with_thresholds(model, 2.0), INPUTS, dt_s=dt_s)).nominal_pj
    )
    assert 0 < half.acc < now.acc
    assert double.acc < now.acc
    assert double.relative == double.energy_pj / now.energy_pj
    if isinstance(model, ChipNetwork):
        decided = model.readout.decide(simulate(model, INPUTS).output)
        assert now.accuracy == float((decided == 0).mean())


def test_a_chip_readout_keeps_its_register() -> None:
    network = lower(graph(), DT_S)
    raised = with_thresholds(network, 1e9)
    assert all(layer.neuron.vth_int == 2**18 - 2 for layer in raised.layers)
    assert with_thresholds(network, 1.0).layers == network.layers


def test_refusals() -> None:
    for wrong in (
        {"shares": (0.0,)},
        {"factors": (-1.0,)},
        {"factors": (float("nan"),)},
        {"labels": [1, 2]},
    ):
        with pytest.raises(PriceError):
            what_if(graph(), INPUTS, dt_s=DT_S, **wrong)  # type: ignore[arg-type]
