"""Does an engine give the reference's integers on this machine? Asked before it is used for the first time.

The layers meet what can go wrong: every way of summing, wraps, and payloads of 16 bits, which arithmetic of reduced precision
(TF32, bfloat16, Winograd) does not keep. Sums stay below what engines hand back to the reference, so that all are compared.
"""

from __future__ import annotations

import numpy as np

from knarr.hw_sim.engines.base import Engine, Wanted
from knarr.hw_sim.engines.reference import at_rest, run_layer
from knarr.hw_sim.network import NON_SPIKING_VTH, Conv, Dense, Layer, Neuron


def differs(engine: Engine) -> str:
    """Where an engine and the reference disagree on small layers of every kind and activity; empty where nowhere."""
    rng = np.random.default_rng(0)
    for layer, bits in _layers(rng):
        shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
        laid_out = engine.lay_out(layer, shape, bits)
        if isinstance(laid_out, str):
            return f"layer '{layer.name}' is not taken, {laid_out}"
        for rate in (0.05, 0.6):
            events = (rng.random((2, 13, *shape)) < rate) * rng.integers(
                1, 2**bits, (2, 13, *shape)
            )
            ran = engine.run([laid_out], events, bits, [Wanted(True, True)], [None], 1, carry=False)
            if ran is None:
                return f"layer '{layer.name}' is handed back at activity {rate}"
            wanted = run_layer(layer, events, at_rest(layer, 2))
            for name, ours, other in zip(
                ("spikes", "u", "v"), (ran[0].spikes, ran[0].u, ran[0].v), wanted, strict=False
            ):
                if not np.array_equal(ours, other):  # type: ignore[arg-type]
                    return f"{name} of layer '{layer.name}' at activity {rate}"
    return ""


def _layers(rng: np.random.Generator) -> list[tuple[Layer, int]]:
    def weight(*shape: int, limit: int = 60) -> np.ndarray:  # type: ignore[type-arg]
        return rng.integers(-limit, limit + 1, shape, dtype=np.int32)

    pooled = weight(34, 5, 3, 3).repeat(2, axis=2).repeat(2, axis=3)
    return [
        (Dense("dense", weight(40, 70), Neuron(1024, 128, 300), weight(40)), 1),
        (Dense("graded", weight(5, 9, limit=50), Neuron(700, 300, 60_000)), 8),
        (
            Dense("wide", np.array([[1, 1], [-1, 1], [1, 0]]), Neuron(0, 4096, 60_000)),
            16,
        ),  # u wraps
        (
            Conv(
                "wide images",
                np.array([[[[1, -1]]], [[[1, 1]]]]),
                Neuron(0, 4096, 60_000),
                (1, 5, 6),
            ),
            16,
        ),
        (Dense("voltage", weight(3, 33), Neuron(4096, 0, NON_SPIKING_VTH)), 1),
        (Conv("table", weight(8, 2, 3, 3), Neuron(2000, 100, 150), (2, 7, 9), (1, 2), (1, 1)), 1),
        (Conv("window", weight(33, 12, 3, 3), Neuron(1024, 128, 900), (12, 6, 6)), 1),
        (Conv("pooled", pooled, Neuron(1024, 128, 900), (5, 9, 8), (2, 2), (2, 2)), 1),
        (Conv("images", weight(6, 3, 2, 2, limit=127), Neuron(4096, 300, 9_000), (3, 5, 5)), 8),
    ]
