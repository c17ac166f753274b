"""Norse's step loop over a SequentialState, float32, in a process of its own: `python with_norse.py JOB_FOLDER`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import norse.torch as snn
import numpy as np
import torch
from peer_job import I_KEEP, V_KEEP, PeerStage, read_job
from torch import nn
from torch_loop import StepLoop, run_loop, synapses


class NorseLoop(StepLoop):
    """Norse scales what enters v by the decay of v, 1/32 here, so weights are 32 times larger."""

    def __init__(self, stages: tuple[PeerStage, ...]) -> None:
        parameters = snn.LIFParameters(
            tau_syn_inv=torch.tensor(1 - I_KEEP),
            tau_mem_inv=torch.tensor(1 - V_KEEP),
            v_th=torch.tensor(1.0),
        )
        modules: list[nn.Module] = []
        for stage in stages:
            modules += [*synapses(stage, 1 / (1 - V_KEEP)), snn.LIFCell(parameters, dt=1.0)]
        self.model = snn.SequentialState(*modules)
        self.spiking = [module for module in self.model if isinstance(module, snn.LIFCell)]

    def sample(self, inputs: torch.Tensor) -> torch.Tensor:
        state = None
        out = []
        for step in inputs:
            spikes, state = self.model(step, state)
            out.append(spikes)
        return torch.stack(out)

    def hook(self, index: int, see: Callable[[torch.Tensor], None]) -> None:
        self.spiking[index].register_forward_hook(lambda module, given, got: see(got[0]))


if __name__ == "__main__":
    job = read_job()
    result = run_loop(NorseLoop(job.stages), job)
    job.done(**result, version=np.array(f"norse {version('norse')}, torch {torch.__version__}"))
