"""What a peer's process reads and writes; only NumPy and the standard library, since it may run without knarr.

A job folder holds job.json (settings) and, wherever job.json says, the stages and inputs of a workload as .npz. Renaming
result.npz into place comes last: that file is the only sign of success (see `knarr.deploy.lava.run.supervise`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy" / "lava"
SLAYER = ROOT / "build" / "slayer"
"""Folder with lava-dl's slayer; torch is knarr's own."""
I_KEEP, V_KEEP = (4096 - 1024) / 4096, (4096 - 128) / 4096


@dataclass(frozen=True, eq=False)
class PeerStage:
    """See `workloads.Stage`."""

    weight: npt.NDArray[np.int32]
    pooled: bool
    entering: tuple[int, ...]
    vth: int

    @property
    def conv(self) -> bool:
        return self.weight.ndim == 4

    @property
    def float_weight(self) -> npt.NDArray[np.float32]:
        """For a threshold of 1, and a mean instead of a sum of 2x2 pixels."""
        return (self.weight * ((4.0 if self.pooled else 1.0) / self.vth)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class PeerJob:
    """What a peer is to run.

    Args:
        folder: for the result.
        stages, inputs: of the workload; inputs (samples, timesteps, *features) uint8.
        settings: of the peer: repeats, whether to record all spikes, ...
    """

    folder: Path
    stages: tuple[PeerStage, ...]
    inputs: npt.NDArray[np.uint8]
    settings: dict[str, Any]

    def done(self, **arrays: npt.ArrayLike) -> None:
        """Write the result and end."""
        temporary = self.folder / "result.tmp.npz"
        np.savez(temporary, **arrays)
        os.replace(temporary, self.folder / "result.npz")


def read_job() -> PeerJob:
    """The job of the folder named on the command line; from now on this process ends when its starter does."""
    folder = Path(sys.argv[1])
    if "KNARR_STARTER_FD" in os.environ:
        die = sibling("worker")._die_with_starter
        pipe = int(os.environ["KNARR_STARTER_FD"])
        threading.Thread(target=die, args=(pipe, folder), daemon=True).start()
    settings = json.loads((folder / "job.json").read_text("utf-8"))
    with np.load(settings["workload"], allow_pickle=False) as arrays:
        stages = tuple(
            PeerStage(
                arrays[f"weight/{i}"],
                bool(arrays["pooled"][i]),
                tuple(int(n) for n in arrays[f"entering/{i}"]),
                int(vth),
            )
            for i, vth in enumerate(arrays["vth"])
        )
        return PeerJob(folder, stages, arrays["inputs"], settings)


def sibling(name: str) -> Any:
    """A module of deploy/lava/ by its file, without importing knarr."""
    spec = importlib.util.spec_from_file_location(name, DEPLOY / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py is not in {DEPLOY}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times
