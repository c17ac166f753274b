"""The engines that this machine has, each proved against the reference before it is used for the
first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from knarr.extras import MissingExtraError
from knarr.hw_sim.arrays import Int32
from knarr.hw_sim.engines.base import Engine, LayerRequest, RunRequest
from knarr.hw_sim.engines.native import FastEngine, load
from knarr.hw_sim.engines.reference import ReferenceEngine, at_rest, run_layer
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.network import NON_SPIKING_VTH, Conv, Dense, Layer, Neuron, Recurrent

ENGINES = ("auto", "fast", "torch", "reference")


def choose_engine(name: str) -> Engine:
    """Return the engine of a name.

    Args:
        name: one of `ENGINES`; "auto" is CUDA where there is a device, else the compiled kernel,
            else torch, else the reference.

    Raises:
        ChipError: it does not work on this machine.
    """
    order = [name] if name in ("fast", "torch") else []
    if name == "auto":
        order = ["torch", "fast"] if cuda_device() is not None else ["fast", "torch"]
    for candidate in order:
        engine = fast_engine() if candidate == "fast" else torch_engine()
        if not isinstance(engine, str):
            return engine
        if name == "fast":
            raise ChipError(f"engine: no compiled kernel, {engine}; use auto, torch or reference")
        if name == "torch":
            raise ChipError(f"engine: torch does not run here, {engine}; use auto or reference")
    return ReferenceEngine()


@cache
def fast_engine() -> FastEngine | str:
    """Return the compiled kernel with the best instructions that give the reference's integers
    here, or why there is none.
    """
    kernel = load()
    if isinstance(kernel, str):
        return kernel
    wrong = ""
    for level in range(kernel.level, -1, -1):
        engine = FastEngine(kernel, level)
        wrong = differs(engine)
        if not wrong:
            return engine
    return f"it differs from the reference here: {wrong}; report it"


@cache
def torch_engine() -> Engine | str:
    """Return the torch engine on the best device, or why there is none."""
    # Not at the top: torch takes seconds to import, and need not be there.
    try:
        from knarr.hw_sim.engines.torch import TorchEngine
    except MissingExtraError as error:
        return str(error)
    device = cuda_device() or "cpu"
    engine = TorchEngine(device)
    try:
        wrong = differs(engine)
    except RuntimeError as error:  # torch's own, among them those of CUDA
        return f"it fails on {device} ({error})"
    if wrong:
        return f"it differs from the reference on {device}: {wrong}; report it"
    return engine


@cache
def cuda_device() -> str | None:
    """Return the CUDA device that torch would use, or None."""
    # torch is not asked on machines without NVIDIA's driver (dxg: under Windows).
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return None
    try:
        import torch
    except ImportError:
        return None
    return "cuda" if torch.cuda.is_available() else None


def differs(engine: Engine) -> str:
    """Say where an engine and the reference disagree on small layers of every kind and activity;
    empty where nowhere.

    The layers meet what can go wrong: every way of summing, wraps, and payloads of 16 bits, which
    arithmetic of reduced precision (TF32, bfloat16, Winograd) does not keep. Sums stay below what
    engines hand back to the reference, so that all are compared.
    """
    rng = np.random.default_rng(0)
    # All layers are drawn before the first event is.
    for layer, bits, signed in list(_layers(rng)):
        shape = layer.input_shape if isinstance(layer, Conv) else (layer.in_features,)
        laid_out = engine.lay_out(layer, shape, bits, signed)
        if isinstance(laid_out, str):
            if isinstance(layer, Recurrent) or getattr(layer, "delay_int", None) is not None:
                continue  # which not every engine takes
            return f"layer '{layer.name}' is not taken, {laid_out}"
        for rate in (0.05, 0.6):
            size = (2, 13, *shape)
            events = (rng.random(size) < rate) * rng.integers(1, 2**bits, size)
            if signed:
                events *= rng.choice([-1, 1], size)
            request = RunRequest(
                chain=[laid_out],
                events=events,
                bits=bits,
                wanted=[LayerRequest(spikes=True, states=True)],
                states=[None],
                threads=1,
                carry=False,
                signed=signed,
            )
            results = engine.run(request)
            if results is None:
                return f"layer '{layer.name}' is handed back at activity {rate}"
            spikes, u, v, _ = run_layer(layer, events, at_rest(layer, 2))
            for name, right in (("spikes", spikes), ("u", u), ("v", v)):
                if not np.array_equal(getattr(results[0], name), right):
                    return f"{name} of layer '{layer.name}' at activity {rate}"
    return ""


def _layers(rng: np.random.Generator) -> Iterator[tuple[Layer, int, bool]]:
    """Draw layers, each with the bits of its input and whether it has a sign."""

    def weight(*shape: int, limit: int = 60) -> Int32:
        return rng.integers(-limit, limit + 1, shape, dtype=np.int32)

    corners = weight(34, 5, 3, 3)
    pooled = corners.repeat(2, axis=2).repeat(2, axis=3)
    usual = Neuron(1024, 128, 900)
    keeps_current = Neuron(0, 4096, 60_000)  # u wraps
    pairs = np.array([[1, 1], [-1, 1], [1, 0]])
    pairs_of_pixels = np.array([[1, -1], [1, 1]]).reshape(2, 1, 1, 2)
    yield Dense("dense", weight(40, 70), Neuron(1024, 128, 300), weight(40)), 1, False
    yield Dense("graded", weight(5, 9, limit=50), Neuron(700, 300, 60_000)), 8, False
    yield Dense("wide", pairs, keeps_current), 16, False
    yield Conv("wide images", pairs_of_pixels, keeps_current, (1, 5, 6)), 16, False
    yield Dense("voltage", weight(3, 33), Neuron(4096, 0, NON_SPIKING_VTH)), 1, False
    table = weight(8, 2, 3, 3)
    yield Conv("table", table, Neuron(2000, 100, 150), (2, 7, 9), (1, 2), (1, 1)), 1, False
    yield Conv("window", weight(33, 12, 3, 3), usual, (12, 6, 6)), 1, False
    yield Conv("pooled", pooled, usual, (5, 9, 8), (2, 2), (2, 2)), 1, False
    images = weight(6, 3, 2, 2, limit=127)
    yield Conv("images", images, Neuron(4096, 300, 9_000), (3, 5, 5)), 8, False
    own = Neuron(1024, rng.integers(50, 400, 40), rng.integers(100, 900, 40))
    yield Dense("own registers", weight(40, 70), own), 1, False
    by_pixel = Neuron(rng.integers(500, 4096, 150), 128, rng.integers(100, 900, 150))
    yield Conv("own of pixels", weight(6, 3, 2, 2), by_pixel, (3, 6, 6)), 4, True
    yield Dense("signed", weight(33, 70), usual), 1, True
    yield Recurrent("loop", weight(40, 30), weight(40, 40), Neuron(1024, 128, 300)), 1, False
    late = np.broadcast_to(rng.integers(0, 9, 50, dtype=np.int32), (20, 50))
    yield Dense("delays of inputs", weight(20, 50), usual, delay_int=late), 1, False
    each = rng.integers(0, 9, (20, 50), dtype=np.int32)
    yield Dense("delays of synapses", weight(20, 50), usual, delay_int=each), 4, True
