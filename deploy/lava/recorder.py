"""Records in memory that Lava's processes share, being forks of the worker: the worker loads this file beside it.

Lava's own way to read what a sink or monitor holds takes 20 us for every number: minutes for a network of some size.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

recorded: dict[str, Any] = {}
"""Key -> (steps, *lava shape) int32, which holds all that a register of the chip can."""


def record(process: Any, key: str, steps: int, shape: tuple[int, ...]) -> None:
    """Let a sink, or the one probe of a monitor, write into an array of its own."""
    memory = mmap.mmap(-1, 4 * steps * math.prod(int(n) for n in shape))
    recorded[key] = np.frombuffer(memory, dtype=np.int32).reshape(steps, *shape)
    process.proc_params["recorded_as"] = key


def install() -> None:
    """Make sinks and monitors write each step into their array instead of a Var of theirs; before Lava forks."""
    from lava.proc.io.sink import AbstractPyReceiveModel
    from lava.proc.monitor.models import PyMonitorModel

    def receive(model: Any) -> None:
        recorded[model.proc_params["recorded_as"]][model.time_step - 1] = model.a_in.recv()

    def read(model: Any) -> None:
        state = getattr(model, model.proc_params["RefPorts"][0]).read()
        recorded[model.proc_params["recorded_as"]][model.time_step - 1] = state

    AbstractPyReceiveModel.run_spk = receive
    PyMonitorModel.run_post_mgmt = read
