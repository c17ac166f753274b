"""Norse's own `to_nir` and `from_nir`; see worker.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import norse.torch as snn
import torch
from norse.torch.functional.iaf import IAFParameters
from torch import nn
from worker import FEATURES, NEURONS, Own, Run, binary, fill, over_time, serve, with_state

DT_S = 0.001


def read(path: Path, dt_s: float) -> Run:
    return with_state(snn.from_nir(nir.read(path), dt=dt_s))


def export(cell: nn.Module, drive: float, dt_s: float = DT_S, **options: float) -> Own:
    """Linear and `cell`, exported with `to_nir(..., **options)`; `dt_s` is the step at which to read the file."""
    net = snn.SequentialState(fill(nn.Linear(FEATURES, NEURONS), drive), cell)
    inputs = binary((FEATURES,))
    graph = snn.to_nir(net, inputs[0, 0], **options)
    return Own(graph, inputs, over_time(with_state(net), inputs), dt_s)


def full(value: float) -> torch.Tensor:
    return torch.full((NEURONS,), value)


def box(**more: Any) -> nn.Module:
    p = snn.LIFBoxParameters(tau_mem_inv=full(100.0), v_th=full(1.0), v_leak=full(0.0), **more)
    return snn.LIFBoxCell(p, dt=DT_S)


def lif() -> nn.Module:
    p = snn.LIFParameters(
        tau_syn_inv=full(200.0),
        tau_mem_inv=full(100.0),
        v_th=full(1.0),
        v_leak=full(0.0),
        v_reset=full(0.0),
    )
    return snn.LIFCell(p, dt=DT_S)


def iaf() -> nn.Module:
    return snn.IAFCell(IAFParameters(v_th=full(4.0), v_reset=full(0.0)), dt=DT_S)


if __name__ == "__main__":
    serve(
        ("norse", "nir", "nirtorch", "torch"),
        read,
        {
            "LIFBoxCell": lambda: export(box(), 8.0),
            "LIFBoxCell, read at dt*dt": lambda: export(box(), 8.0, DT_S * DT_S),
            "LIFBoxCell, to_nir(dt=1)": lambda: export(box(), 8.0, dt=1.0),
            "LIFBoxCell, v_reset -0.5, to_nir(dt=1)": lambda: export(
                box(v_reset=full(-0.5)), 8.0, dt=1.0
            ),
            "LIFBoxCell, scalar parameters": lambda: export(
                snn.LIFBoxCell(snn.LIFBoxParameters(tau_mem_inv=torch.tensor(100.0)), dt=DT_S), 8.0
            ),
            "LIFCell, to_nir(dt=1)": lambda: export(lif(), 2.0, dt=1.0),
            "IAFCell": lambda: export(iaf(), 1.0),
            "IAFCell, read at dt 1": lambda: export(iaf(), 1.0, 1.0),
        },
    )
