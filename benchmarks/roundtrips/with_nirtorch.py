"""NIRTorch's `nir_to_torch` and `torch_to_nir`, whose neurons the caller brings: here Norse's cells; see worker.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import nirtorch
import norse.torch as snn
import numpy as np
import torch
from norse.torch.functional.iaf import IAFParameters
from torch import nn
from worker import FEATURES, NEURONS, Own, Run, binary, fill, over_time, serve, with_state

DT_S = 0.001


def read(path: Path, dt_s: float) -> Run:
    def tensor(array: Any) -> torch.Tensor:
        return torch.as_tensor(array).float()

    def box(node: nir.LIF) -> nn.Module:
        p = snn.LIFBoxParameters(
            tau_mem_inv=tensor(1 / node.tau),
            v_th=tensor(node.v_threshold / node.r),
            v_leak=tensor(node.v_leak / node.r),
            v_reset=tensor(node.v_reset / node.r),
        )
        return snn.LIFBoxCell(p, dt=dt_s)

    def lif(node: nir.CubaLIF) -> nn.Module:
        scale = node.r * node.w_in * dt_s / node.tau_syn
        p = snn.LIFParameters(
            tau_syn_inv=tensor(1 / node.tau_syn),
            tau_mem_inv=tensor(1 / node.tau_mem),
            v_th=tensor(node.v_threshold / scale),
            v_leak=tensor(node.v_leak / scale),
            v_reset=tensor(node.v_reset / scale),
        )
        return snn.LIFCell(p, dt=dt_s)

    def iaf(node: nir.IF) -> nn.Module:
        p = IAFParameters(
            v_th=tensor(node.v_threshold / node.r / dt_s),
            v_reset=tensor(node.v_reset / node.r / dt_s),
        )
        return snn.IAFCell(p, dt=dt_s)

    return with_state(
        nirtorch.nir_to_torch(nir.read(path), {nir.LIF: box, nir.CubaLIF: lif, nir.IF: iaf})
    )


class Residual(nn.Module):
    """Two layers, the first drive added to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = fill(nn.Linear(FEATURES, NEURONS, bias=False), 8.0)
        self.second = fill(nn.Linear(NEURONS, NEURONS, bias=False), 4.0)
        p = snn.LIFBoxParameters(
            tau_mem_inv=torch.full((NEURONS,), 100.0), v_th=torch.ones(NEURONS)
        )
        self.hidden, self.out = snn.LIFBoxCell(p, dt=DT_S), snn.LIFBoxCell(p, dt=DT_S)

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        drive = self.first(x)
        z, hidden = self.hidden(drive, None if state is None else state[0])
        y, out = self.out(self.second(z) + drive, None if state is None else state[1])
        return y, (hidden, out)


class Chain(Residual):
    """The same without the addition."""

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        z, hidden = self.hidden(self.first(x), None if state is None else state[0])
        y, out = self.out(self.second(z), None if state is None else state[1])
        return y, (hidden, out)


def export(net: nn.Module) -> Own:
    def lif(cell: Any) -> nir.LIF:
        p, one = cell.p, np.ones(NEURONS)
        return nir.LIF(
            tau=1 / p.tau_mem_inv.numpy(),
            r=one,
            v_leak=0 * one,
            v_threshold=p.v_th.numpy(),
            v_reset=0 * one,
        )

    inputs = binary((FEATURES,))
    stateful = {snn.LIFBoxCell}
    traced = _OneStep(net)
    graph = nirtorch.torch_to_nir(traced, {snn.LIFBoxCell: lif}, stateful_modules=stateful)
    return Own(graph, inputs, over_time(with_state(net), inputs), DT_S)


class _OneStep(nn.Module):
    """What the tracer can follow: the first step's output, without the state."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.first, self.second, self.hidden, self.out = net.first, net.second, net.hidden, net.out
        self.residual = type(net) is Residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drive = self.first(x)
        synapse = self.second(self.hidden(drive)[0])
        return self.out(synapse + drive if self.residual else synapse)[0]  # type: ignore[no-any-return]


if __name__ == "__main__":
    serve(
        ("nirtorch", "nir", "norse", "torch"),
        read,
        {
            "Linear, LIFBoxCell twice": lambda: export(Chain()),
            "the same, residual": lambda: export(Residual()),
        },
    )
