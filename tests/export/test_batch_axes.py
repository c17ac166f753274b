"""Batch and time axes that exporters write into the ends of a graph, and NIR does not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from knarr.export import FILLED, ExportError, graph_input_shape, read, step_nir


def write(path: Path, shape: tuple[int, ...], *between: Any, out: tuple[int, ...]) -> Path:
    """Write a chain with an Input and an Output of these shapes."""
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
    nodes |= {f"n{number}": node for number, node in enumerate(between)}
    nodes["output"] = nir.Output({"output": np.array(out)})
    edges = list(zip(list(nodes), list(nodes)[1:], strict=False))
    nir.write(path, nir.NIRGraph(nodes, edges, type_check=False))
    return path


def linear(inputs: int, outputs: int) -> nir.Linear:
    return nir.Linear(np.ones((outputs, inputs), dtype=np.float32))


def lif(shape: tuple[int, ...]) -> nir.LIF:
    one = np.ones(shape, dtype=np.float32)
    return nir.LIF(one * 2e-3, one * 2, one * 0, one * 0.5, v_reset=one * 0)


def conv(inputs: int) -> nir.Conv2d:
    weight = np.ones((3, inputs, 3, 3), dtype=np.float32)
    return nir.Conv2d((4, 4), weight, (1, 1), (1, 1), (1, 1), 1, np.zeros(3, dtype=np.float32))


def flatten(start: int) -> nir.Flatten:
    return nir.Flatten({"input": np.array([1, 3, 4, 4])}, start, -1)


@pytest.mark.parametrize("batch", [(1,), (1, 1)])
def test_leading_axes_of_one_are_dropped_and_listed(batch: tuple[int, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "a.nir", (*batch, 6), linear(6, 4), lif((*batch, 4)), out=(*batch, 4))
    graph = read(path)
    assert graph_input_shape(graph) == (6,)
    assert graph.nodes["n1"].tau.shape == (4,)
    assert f"leading axes {batch} of {(*batch, 6)} dropped" in graph.metadata[FILLED]
    assert step_nir(graph, np.ones((2, 5, 6)), 1e-3).spikes["n1"].any()


def test_a_channel_of_one_stays(tmp_path: Path) -> None:
    nodes = (conv(1), lif((3, 4, 4)), flatten(0), linear(48, 2))
    graph = read(write(tmp_path / "a.nir", (1, 4, 4), *nodes, out=(2,)))
    assert graph_input_shape(graph) == (1, 4, 4)
    assert FILLED not in graph.metadata


@pytest.mark.parametrize("start", [0, 1])
def test_a_flatten_may_count_with_the_batch(start: int, tmp_path: Path) -> None:
    nodes = (conv(1), lif((1, 3, 4, 4)), flatten(start), linear(48, 2))
    graph = read(write(tmp_path / "a.nir", (1, 1, 4, 4), *nodes, out=(1, 2)))
    assert graph_input_shape(graph) == (1, 4, 4)
    assert step_nir(graph, np.ones((2, 5, 1, 4, 4)), 1e-3).output.shape == (2, 5, 2)


def test_other_axes_are_dropped_where_the_user_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nir", (2, 40, 6), linear(6, 4), lif((4,)), out=(2, 40, 4))
    with pytest.raises(ExportError, match=r"batch or time, give --input-shape 6 "):
        read(path)
    assert graph_input_shape(read(path, (6,))) == (6,)
    with pytest.raises(ExportError, match=r"does not end in the input shape \(5,\)"):
        read(path, (5,))


def test_a_shape_that_is_missing_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nir", (), linear(6, 4), lif((4,)), out=())
    with pytest.raises(ExportError, match="--input-shape"):
        read(path)
    graph = read(path, (6,))
    assert "shape missing, (6,) as given" in graph.metadata[FILLED]


def test_an_axis_that_no_shape_explains_is_no_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nir", (1, 4, 4), linear(6, 4), lif((4,)), out=(4,))
    with pytest.raises(ExportError, match=r"receives \(1, 4, 4\), .* alone; correct one$"):
        read(path)
