"""NeuroBench's own counts, in its own environment: `python neurobench_worker.py FOLDER` prints them as JSON.

FOLDER holds what `neurobench_cases.arrays` made, one <case>.npz for each case. Nothing of knarr is here. Every number comes
out of NeuroBench: totals from `Benchmark.run`, layers from its `SynapticOperations` with the hook of one layer alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import norse.torch as norse
import numpy as np
import snntorch
import torch
from neurobench.benchmarks import Benchmark
from neurobench.metrics.workload import ActivationSparsity, MembraneUpdates, SynapticOperations
from neurobench.models import NeuroBenchModel, SNNTorchModel, TorchModel
from neurobench_cases import (
    CASES,
    DT_S,
    HIDDEN,
    LOOPED,
    SAMPLES,
    V_KEEP,
    V_TH,
    Arrays,
    convolutions,
    digest,
    lif_parameters,
    norse_net,
)
from neurobench_probes import probes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = ("neurobench", "snntorch", "norse", "torch", "numpy")
BATCHES = (1, 3, SAMPLES)
"""Samples per call of the network: every one alone, three and the one that is left, and all at once."""


class OverTime(nn.Module):
    """A step module over (samples, timesteps, *features), from rest."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, out = None, []
        for t in range(x.shape[1]):
            y, state = self.net(x[:, t], state)
            out.append(y)
        return torch.stack(out, 1)


class Looped(nn.Module):
    """Norse's LIFRecurrentCell with its weights in nn.Linear, where NeuroBench has hooks."""

    def __init__(self, made: Arrays) -> None:
        super().__init__()
        self.input = nn.Linear(HIDDEN, LOOPED, bias=False)
        self.recurrent = nn.Linear(LOOPED, LOOPED, bias=False)
        self.cell = norse.LIFCell(lif_parameters(), dt=DT_S)
        for layer, name in (
            (self.input, "2.input_weights"),
            (self.recurrent, "2.recurrent_weights"),
        ):
            layer.load_state_dict({"weight": torch.tensor(made[name])})

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        before, inner = state or (torch.zeros(len(x), LOOPED), None)
        spikes, inner = self.cell(self.input(x) + self.recurrent(before), inner)
        return spikes, (spikes, inner)


class Leaky(nn.Module):
    """One time step with snnTorch's Leaky, as NeuroBench's SNNTorchModel wants it.

    Leaky does not multiply its input by 1 - beta as Norse's LIF does, so its threshold is that much higher.
    """

    def __init__(self, made: Arrays) -> None:
        super().__init__()
        self.net = nn.Sequential(*convolutions(made, self.neuron))

    @staticmethod
    def neuron() -> nn.Module:
        reset = {"reset_mechanism": "zero", "reset_delay": False}
        return snntorch.Leaky(beta=V_KEEP, threshold=V_TH / (1 - V_KEEP), init_hidden=True, **reset)

    def reset(self) -> None:
        """Bring it to rest; snntorch.utils.reset, which NeuroBench calls otherwise, does not look into a Sequential."""
        for layer in self.net:
            if isinstance(layer, snntorch.Leaky):
                layer.reset_mem()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.net(x), None


def linear_net(made: Arrays) -> norse.SequentialState:
    first, lif, _, last, readout = norse_net(made)
    return norse.SequentialState(first, lif, Looped(made), last, readout).eval()


def wrapped(coding: str, made: Arrays) -> NeuroBenchModel:
    """A network of the case, its layers under "net." and the path of the case's arrays."""
    if coding == "snntorch":
        return SNNTorchModel(Leaky(made).eval())
    return TorchModel(OverTime(linear_net(made) if coding == "linear" else norse_net(made)).eval())


def counted(coding: str, made: Arrays) -> dict[str, Any]:
    """What NeuroBench says of one coding of one case."""
    inputs = torch.tensor(made["inputs"])
    model = wrapped(coding, made)
    report: dict[str, Any] = {"spikes": fired(model, inputs), "batches": {}}
    for size in BATCHES:
        loader = DataLoader(TensorDataset(inputs, torch.zeros(len(inputs))), batch_size=size)
        total = whole(model, loader, SynapticOperations)
        layers = layer_by_layer(model, loader)
        for name, value in total.items():
            if sum(layer[name] for layer in layers.values()) != value:
                raise RuntimeError(
                    f"{coding}: {name} of the layers does not add up to the total {value}"
                )
        report["batches"][str(size)] = {"total": total, "layers": layers}
    if coding == "snntorch":  # these two look at snnTorch's neurons alone; `loader` is one batch
        report["activation_sparsity"] = whole(model, loader, ActivationSparsity)
        report["membrane_updates"] = whole(model, loader, MembraneUpdates)
    return report


def whole(model: NeuroBenchModel, loader: Any, metric: type) -> Any:
    """One metric as users of NeuroBench get it."""
    benchmark = Benchmark(model, loader, [], [], [[], [metric]])
    result = benchmark.run(quiet=True)[metric.__name__]
    benchmark.workload_metric_manager.cleanup_hooks(model)
    if metric is SynapticOperations and not isinstance(result, dict):
        raise RuntimeError(f"NeuroBench met an error and says {result}")
    return result


def layer_by_layer(model: NeuroBenchModel, loader: Any) -> dict[str, dict[str, float]]:
    """Path -> what SynapticOperations says when it sees the hook of that layer alone."""
    paths = {id(module): name for name, module in model.__net__().named_modules()}
    model.register_hooks()
    metrics = [SynapticOperations() for _ in model.connection_hooks]
    for data in loader:
        predictions = model(data[0])
        for hook, metric in zip(model.connection_hooks, metrics, strict=True):
            metric(SimpleNamespace(connection_hooks=[hook]), predictions, data)
        model.reset_hooks()
    names = [paths[id(hook.layer)].removeprefix("net.") for hook in model.connection_hooks]
    model.cleanup_hooks()
    return {name: metric.compute() for name, metric in zip(names, metrics, strict=True)}


def fired(model: NeuroBenchModel, inputs: torch.Tensor) -> dict[str, str]:
    """Path of each neuron layer -> SHA-256 of its spikes, (samples, timesteps, *features) as uint8."""
    heard: dict[str, list[Any]] = {}

    def listen(path: str, layer: nn.Module) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            spikes = output[0] if isinstance(output, tuple) else output
            heard.setdefault(path, []).append(spikes.numpy().astype(np.uint8))

        return layer.register_forward_hook(hook)

    hooks = [listen(path, layer) for path, layer in spiking(model.__net__())]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return {
        path: hashlib.sha256(np.stack(steps, 1).tobytes()).hexdigest()
        for path, steps in heard.items()
    }


def spiking(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, layer in net.named_modules():
        if isinstance(layer, (norse.LIFBoxCell, norse.LIFRecurrentCell, Looped, snntorch.Leaky)):
            yield path.removeprefix("net."), layer


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}, "cases": {}}
    with torch.no_grad():
        for name, case in CASES.items():
            with np.load(Path(sys.argv[1]) / f"{name}.npz", allow_pickle=False) as file:
                made = {key: file[key] for key in file.files}
            codings = {coding: counted(coding, made) for coding in case.codings}
            report["cases"][name] = {"arrays": digest(made), "codings": codings}
        report["probes"] = probes()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
