"""snnTorch's step loop over Synaptic neurons, float32, in an environment of its own: `python with_snntorch.py JOB_FOLDER`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import snntorch as snn
import torch
from peer_job import I_KEEP, V_KEEP, PeerStage, read_job
from torch import nn
from torch_loop import StepLoop, run_loop, synapses


class SynapticLoop(StepLoop):
    """Reset to zero in the step of the spike, as on the chip."""

    def __init__(self, stages: tuple[PeerStage, ...]) -> None:
        self.synapses = [nn.Sequential(*synapses(stage)) for stage in stages]
        self.neurons = [
            snn.Synaptic(
                alpha=I_KEEP, beta=V_KEEP, threshold=1.0, reset_mechanism="zero", reset_delay=False
            )
            for _ in stages
        ]

    def sample(self, inputs: torch.Tensor) -> torch.Tensor:
        states = [neuron.reset_mem() for neuron in self.neurons]
        out = []
        for spikes in inputs:
            for index, (synapse, neuron) in enumerate(
                zip(self.synapses, self.neurons, strict=True)
            ):
                spikes, *states[index] = neuron(synapse(spikes), *states[index])
            out.append(spikes)
        return torch.stack(out)

    def hook(self, index: int, see: Callable[[torch.Tensor], None]) -> None:
        self.neurons[index].register_forward_hook(lambda module, given, got: see(got[0]))


if __name__ == "__main__":
    job = read_job()
    result = run_loop(SynapticLoop(job.stages), job)
    job.done(
        **result, version=np.array(f"snntorch {version('snntorch')}, torch {torch.__version__}")
    )
