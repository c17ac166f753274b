"""Groups and kernel sides survive the file format that cannot hold them."""

from __future__ import annotations

import copy
from pathlib import Path

import norse.torch as snn
import numpy as np
import pytest
import torch
from graphs import DT_S, spikes
from torch import nn

from knarr.deploy import lower
from knarr.export import read, to_nir, write
from knarr.export.graph.convolutions import GROUPS, KERNEL, restore_groups
from knarr.hw_sim import Conv, count

SHAPE = (4, 6, 6)


def neuron() -> snn.LIFBoxCell:
    return snn.LIFBoxCell(snn.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0)), dt=DT_S)


@pytest.fixture(scope="module")
def student() -> snn.SequentialState:
    torch.manual_seed(0)
    convs = (
        nn.Conv2d(4, 8, (3, 1), padding=(1, 0), groups=4, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    )
    with torch.no_grad():
        for conv in convs:
            conv.weight.mul_(4)  # so that both layers fire
    return snn.SequentialState(convs[0], neuron(), convs[1], neuron()).eval()


def test_counts_are_those_of_the_module(student: snn.SequentialState, tmp_path: Path) -> None:
    write(to_nir(student, SHAPE, DT_S), tmp_path / "g.nir")
    graph = read(tmp_path / "g.nir")
    inputs = spikes(3, 9, *SHAPE)
    counts = count(graph, inputs, dt_s=DT_S)
    # 2 channels a group x 3 taps x 6 x 6, less a tap at both borders; 8 channels x 256 taps that exist of 9 x 36
    assert counts.layers["conv_0"].dense_valid == 9 * 8 * 6 * (3 * 6 - 2)
    assert counts.layers["conv_2"].dense_valid == 9 * 8 * 256
    assert all(
        layer.acc == layer.acc_nonzero > 0 < layer.spikes for layer in counts.layers.values()
    )


def test_chip_networks_store_no_zeros_for_groups(student: snn.SequentialState) -> None:
    first, second = lower(to_nir(student, SHAPE, DT_S), DT_S).layers
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    assert (first.weight_int.shape, first.groups, first.padding) == ((8, 1, 3, 1), 4, (1, 0))
    assert (second.weight_int.shape, second.groups, second.padding) == ((8, 1, 3, 3), 8, (1, 1))


def test_what_the_metadata_cannot_mean_is_left_as_it_is(student: snn.SequentialState) -> None:
    node = to_nir(student, SHAPE, DT_S).nodes["conv_0"]
    assert restore_groups(node).groups == 4
    edited = copy.copy(node)
    edited.weight = np.ones_like(node.weight)
    assert restore_groups(edited) is edited
    for key, value in (
        (GROUPS, 3),
        (GROUPS, 0),
        (GROUPS, "many"),
        (KERNEL, np.array([2, 2])),
        (KERNEL, 1.5),
    ):
        odd = copy.copy(node)
        odd.metadata = {**node.metadata, key: value}
        found = restore_groups(odd)
        assert found is odd or np.count_nonzero(found.weight) == np.count_nonzero(node.weight)
