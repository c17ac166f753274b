"""Everything that other counters pass over in silence is counted here, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
from graphs import DT_S, chain, lif, spikes
from shared_pieces import write_onnx
from torch import nn
from torch.nn import functional

from knarr.export import ExportError, to_nir
from knarr.hw_sim import CountError, count, count_onnx


class Functional(nn.Module):
    """A convolution without a layer, and weights in a bare Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(3, 2, 3, 3))
        self.matrix = nn.Parameter(torch.ones(4, 48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.conv2d(x, self.kernel).flatten(1), self.matrix)


class Last(nn.Module):
    """The output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)[0]


def macs(module: nn.Module, *shape: int, path: Path) -> int:
    write_onnx(module.eval(), (torch.ones(1, *shape),), path)
    return int(count_onnx(path).total.dense_padded)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (Functional(), (2, 6, 6), 3 * 16 * 18 + 4 * 48),
        (nn.Linear(5, 7), (5,), 35),  # a single layer as the whole model
        (nn.ConvTranspose2d(2, 3, 2), (2, 4, 4), 2 * 16 * 3 * 4),
        (Last(nn.LSTM(4, 3, batch_first=True)), (5, 4), 5 * 4 * (3 * 4 + 3 * 3)),
        (Last(nn.GRU(4, 3, batch_first=True)), (5, 4), 5 * 3 * (3 * 4 + 3 * 3)),
    ],
    ids=["functional", "root", "transposed", "lstm", "gru"],
)
def test_baselines(
    module: nn.Module, shape: tuple[int, ...], expected: int, tmp_path: Path
) -> None:
    assert macs(module, *shape, path=tmp_path / "m.onnx") == expected


def test_weights_of_a_recurrent_cell_are_bare_parameters() -> None:
    torch.manual_seed(0)
    cell = snn.LIFRecurrentCell(6, 5, dt=DT_S)
    with torch.no_grad():
        for weight in (cell.input_weights, cell.recurrent_weights):
            weight.mul_(10)
    inputs = spikes(2, 9, 6)
    counts = count(to_nir(snn.SequentialState(cell).eval(), (6,), DT_S), inputs, dt_s=DT_S)
    (row,) = counts.layers.values()
    back = row.recurrent_no_autapse
    assert back > 0
    assert row.acc == 5 * int(inputs.sum()) / 2 + back


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (snn.SequentialState(nn.Linear(6, 5), snn.LIFAdExCell(dt=DT_S)), (6,), "LIFAdExCell"),
        (snn.SequentialState(nn.LSTM(6, 5), snn.LIFBoxCell(dt=DT_S)), (6,), "LSTM"),
        (
            snn.SequentialState(nn.ConvTranspose1d(6, 5, 2), snn.LIFBoxCell(dt=DT_S)),
            (6, 4),
            "ConvTranspose1d",
        ),
    ],
)
def test_students_are_refused_by_name(
    module: nn.Module, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        to_nir(module.eval(), shape, DT_S)


def test_synapses_without_a_layer_are_counted_in_a_student() -> None:
    student = snn.SequentialState(Functional(), snn.LIFBoxCell(dt=DT_S)).eval()
    counts = count(to_nir(student, (2, 6, 6), DT_S), np.ones((1, 1, 2, 6, 6)), dt_s=DT_S)
    # The convolution's 4 x 4 x 3 outputs of 2 x 3 x 3 weights; sums of 18 are floats to the matrix.
    assert counts.total.acc == 4 * 4 * 3 * 18
    assert counts.total.mac == 48 * 4


class Spiking(nir.ir.node.NIRNode):  # type: ignore[misc]
    """A neuron of somebody's own."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}


def test_graphs_are_refused_by_node() -> None:
    graph = chain((6,), (5,), a=nir.Linear(np.ones((5, 6))), mine=Spiking())
    with pytest.raises(ExportError, match=r"'mine'.*Spiking"):
        count(graph, spikes(2, 3, 6), dt_s=DT_S)
    with pytest.raises(CountError, match="Sequential cannot be counted"):
        count(nn.Sequential(nn.Linear(6, 5)), spikes(2, 3, 6), dt_s=DT_S)
    assert count(chain((6,), (6,), n=lif((6,))), spikes(2, 3, 6), dt_s=DT_S).total.acc > 0
