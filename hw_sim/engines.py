"""Which engines this machine has, and which one `auto` takes."""

from __future__ import annotations

from functools import cache

from knarr.hw_sim.engine import Engine, ReferenceEngine
from knarr.hw_sim.errors import ChipError
from knarr.hw_sim.fast import FastEngine
from knarr.hw_sim.native import load
from knarr.hw_sim.self_test import differs
from knarr.hw_sim.torch_engine import TorchEngine, cuda_device, torch_engine

ENGINES = ("auto", "fast", "torch", "reference")


def choose(name: str) -> Engine:
    """The engine of a name; "auto": CUDA where there is a device, else the compiled kernel, else torch, else the reference.

    Raises:
        ChipError: it does not work on this machine.
    """
    if name == "reference":
        return ReferenceEngine()
    if name == "auto" and cuda_device() is not None:
        on_device = torch_engine()
        if isinstance(on_device, TorchEngine):
            return on_device
    if name in ("auto", "fast"):
        compiled = _fast()
        if isinstance(compiled, FastEngine):
            return compiled
        if name == "fast":
            raise ChipError(f"engine: no compiled kernel, {compiled}; use auto, torch or reference")
    portable = torch_engine()
    if isinstance(portable, TorchEngine):
        return portable
    if name == "torch":
        raise ChipError(f"engine: torch does not run here, {portable}; use auto or reference")
    return ReferenceEngine()


@cache
def _fast() -> FastEngine | str:
    """With the best instructions that give the reference's integers on this processor."""
    kernel = load()
    if isinstance(kernel, str):
        return kernel
    wrong = ""
    for level in range(kernel.level, -1, -1):
        wrong = differs(FastEngine(kernel, level))
        if not wrong:
            return FastEngine(kernel, level)
    return f"it differs from the reference here: {wrong}; report it"
