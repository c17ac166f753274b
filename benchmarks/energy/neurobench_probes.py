"""Networks of a few lines whose operations can be counted by hand, and what NeuroBench says of them.

Each is a reason why the comparison is with its own numbers and not the measure of ours. Runs in NeuroBench's environment.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import snntorch
import torch
import torch.nn.functional as F
from neurobench.benchmarks import Benchmark
from neurobench.metrics.utils.layers import single_layer_MACs
from neurobench.metrics.workload import ActivationSparsityByLayer, SynapticOperations
from neurobench.models import SNNTorchModel, TorchModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Probe(NamedTuple):
    """What is run, what it costs by hand and what NeuroBench says; `made` gives the latter."""

    what: str
    by_hand: str
    made: Callable[[], str]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class First(nn.Module):
    """The output of an LSTM without its state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class Named(nn.Module):
    """Called with a keyword, which pre-hooks do not see."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(input=x)


class Nested(nn.Module):
    """A neuron that needs four ones in a row to fire, in a Sequential, before a Linear that hears its spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            snntorch.Leaky(1.0, threshold=3.5, init_hidden=True), nn.Linear(1, 1)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.net(x), None


def operations(model: Any, inputs: torch.Tensor) -> str:
    loader = DataLoader(TensorDataset(inputs, torch.zeros(len(inputs))), batch_size=1)
    benchmark = Benchmark(model, loader, [], [], [[], [SynapticOperations]])
    with (
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.redirect_stderr(io.StringIO()),
    ):
        found = benchmark.run()["SynapticOperations"]
    benchmark.workload_metric_manager.cleanup_hooks(model)
    errors = [line for line in said.getvalue().splitlines() if line.startswith("Error")]
    if not isinstance(found, dict):
        return f"{found}; printed: {errors[0]}"
    said_classes = (("AC", found["Effective_ACs"]), ("MAC", found["Effective_MACs"]))
    return ", ".join(f"{number:.8g} {name}" for name, number in said_classes if number) or "0"


def of(net: nn.Module, *shape: int, samples: int = 1) -> str:
    return operations(TorchModel(net), torch.ones(samples, *shape))


def twice() -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    nn.init.ones_(layer.weight)
    return nn.Sequential(nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.ReLU()))


def large() -> str:
    """4099 * 4099 is odd and above 2^24, so float32 has no such number."""
    return of(nn.Sequential(nn.Linear(4099, 4099, bias=False)), 4099)


def carried() -> str:
    """Two samples of three ones, one after the other: at rest the neuron does not get to fire."""
    return operations(SNNTorchModel(Nested()), torch.ones(2, 3, 1))


def dense_cell() -> str:
    """By hand 4 * 3 * (2 + 3) products with weights, f * c and i * g, o * tanh(c): whatever the state holds."""
    rest = torch.zeros(1, 3)
    dense, _ = single_layer_MACs((torch.ones(1, 2), (rest, rest)), nn.LSTMCell(2, 3), total=True)
    return f"{dense} Dense"


def by_layer() -> str:
    try:
        Benchmark(
            TorchModel(nn.Sequential(nn.ReLU())), None, [], [], [[], [ActivationSparsityByLayer]]
        )
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "runs"


PROBES = {
    "functional": Probe("F.linear of 4 ones, 3 outputs", "12 AC", lambda: of(Functional(), 4)),
    "root": Probe(
        "an nn.Linear(4, 3) as the whole network", "12 AC", lambda: of(nn.Linear(4, 3), 4)
    ),
    "keyword": Probe("nn.Linear(4, 3), called inner(input=x)", "12 AC", lambda: of(Named(), 4)),
    "lstm": Probe(
        "nn.Linear(4, 3) and then nn.LSTM(3, 2)",
        "12 AC and the LSTM's",
        lambda: of(nn.Sequential(nn.Linear(4, 3), First()), 4),
    ),
    "error": Probe(
        "the same, two samples one by one: the layer that fails in the first is not heard in the second",
        "12 AC and the LSTM's",
        lambda: of(nn.Sequential(nn.Linear(4, 3), First()), 4, samples=2),
    ),
    "transposed": Probe(
        "nn.ConvTranspose2d(1, 1, 2) of one pixel",
        "4 AC",
        lambda: of(nn.Sequential(nn.ConvTranspose2d(1, 1, 2)), 1, 1, 1),
    ),
    "shared": Probe(
        "one nn.Linear(4, 4) in two branches of the module tree, called once in each",
        "16 AC, 16 MAC",
        lambda: of(twice(), 4),
    ),
    "large": Probe("nn.Linear(4099, 4099) of ones", f"{4099 * 4099} AC", large),
    "carried": Probe(
        "a neuron nested in a Sequential, two samples that are silent from rest", "0 AC", carried
    ),
    "cell": Probe(
        "Dense of nn.LSTMCell(2, 3) at rest", f"{4 * 3 * (2 + 3) + 6 + 3} Dense", dense_cell
    ),
    "by_layer": Probe("ActivationSparsityByLayer as the only metric", "runs", by_layer),
}


def probes() -> dict[str, dict[str, str]]:
    """Name -> what is run, by hand, and what NeuroBench says."""
    with torch.no_grad():
        return {
            name: {"what": probe.what, "by_hand": probe.by_hand, "neurobench": probe.made()}
            for name, probe in PROBES.items()
        }
