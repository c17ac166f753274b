"""Counts of NIR graphs against a plain walk over taps, on random networks: both pooling policies, every column."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from count_oracle import Array, graph_of, random_network, walk
from graphs import DT_S

from knarr.export import step_nir
from knarr.hw_sim import LayerCounts, count

NETWORKS, PARTS = 512, 8
WALKED = {
    "acc", "mac", "acc_nonzero", "mac_nonzero", "signed", "events", "graded", "dense_valid", "neuron_updates", "spikes",
    "bias_adds", "touched_updates", "recurrent_all_pairs", "recurrent_no_autapse", "pool_adds", "merge_adds",
    "elementwise", "comparisons",
}  # fmt: skip


def random_inputs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Samples and steps of every class: binary, signed, graded, fractions, silent."""
    samples, steps = int(rng.integers(1, 3)), int(rng.integers(2, 5))
    frames = (rng.random((samples, steps, *shape)) < 0.4).astype(np.float64)
    for b, t in np.ndindex(samples, steps):
        kind = rng.choice(["binary", "binary", "binary", "signed", "graded", "fraction", "silent"])
        factor = {"graded": rng.integers(1, 4, shape), "fraction": 0.5, "silent": 0}.get(kind, 1)
        frames[b, t] *= rng.choice([-1, 1], shape) if kind == "signed" else factor
    return frames


@pytest.mark.parametrize("part", range(PARTS))
def test_counts_are_the_walk(part: int) -> None:
    """512 random networks in all; a part that saw too little of anything proves nothing about it."""
    seen: Counter[str] = Counter()
    for seed in range(part, NETWORKS, PARTS):
        rng = np.random.default_rng(seed)
        layers = random_network(rng)
        graph = graph_of(layers, rng)
        inputs = random_inputs(rng, layers[0].shape)
        trace = step_nir(graph, inputs, DT_S)
        values = {"input": inputs, **trace.v, **trace.spikes}
        for pooling in ("folded", "float"):
            walked = walk(layers, values, folded=pooling == "folded", spiking=set(trace.spikes))
            counts = count(graph, inputs, dt_s=DT_S, pooling=pooling)
            found = {
                name: {
                    field.name: int(getattr(one, field.name) * len(inputs))
                    for field in fields(LayerCounts)
                    if field.name in WALKED and getattr(one, field.name)
                }
                for name, one in counts.layers.items()
            }
            expected = {
                name: {key: n for key, n in row.items() if n} for name, row in walked.items()
            }
            assert {n: r for n, r in found.items() if r} == {
                n: r for n, r in expected.items() if r
            }, (
                seed,
                pooling,
            )
            total = counts.total
            assert total.acc + total.mac <= total.dense_valid
            for name in WALKED:
                seen[name] += int(getattr(total, name) * len(inputs))
        seen["pools"] += sum(len(layer.pools) for layer in layers)
        seen["behind"] += sum(len(layer.behind) for layer in layers)
        seen["groups"] += sum(layer.groups > 1 for layer in layers)
        seen["loops"] += sum(layer.loop is not None for layer in layers)
        seen["merges"] += sum(len(layer.sources) > 1 for layer in layers)
    missing = {
        name
        for name in (WALKED - {"comparisons"}) | {"pools", "behind", "groups", "loops", "merges"}
        if not seen[name]
    }
    assert not missing
