"""Small NIR graphs for tests of lowering: rows of nodes, neurons with plain parameters."""

from __future__ import annotations

import itertools
from typing import Any

import nir
import numpy as np

DT_S = 0.001


def chain(
    input_shape: tuple[int, ...], output_shape: tuple[int, ...], **nodes: Any
) -> nir.NIRGraph:
    names = ["input", *nodes, "output"]
    ends = {
        "input": nir.Input({"input": np.array(input_shape)}),
        "output": nir.Output({"output": np.array(output_shape)}),
    }
    return nir.NIRGraph({**ends, **nodes}, list(itertools.pairwise(names)), type_check=False)


def loop(graph: nir.NIRGraph, neuron: str, **synapse: Any) -> nir.NIRGraph:
    """Let a neuron hear itself through one node, or directly."""
    for name, node in synapse.items():
        graph.nodes[name] = node
        graph.edges += [(neuron, name), (name, neuron)]
    if not synapse:
        graph.edges.append((neuron, neuron))
    return graph


def fill(shape: tuple[int, ...], **fields: float) -> dict[str, Any]:
    return {name: np.full(shape, value, dtype=np.float64) for name, value in fields.items()}


def lif(shape: tuple[int, ...], **change: Any) -> nir.LIF:
    return nir.LIF(**{**fill(shape, tau=0.004, r=1, v_leak=0, v_threshold=1, v_reset=0), **change})


def cuba(shape: tuple[int, ...], **change: Any) -> nir.CubaLIF:
    plain = fill(
        shape, tau_syn=0.002, tau_mem=0.004, r=1, v_leak=0, v_threshold=1, v_reset=0, w_in=2
    )
    return nir.CubaLIF(**{**plain, **change})


def integrate(shape: tuple[int, ...], **change: Any) -> nir.IF:
    """IF with r = 1/dt: adds its input to v."""
    return nir.IF(**{**fill(shape, r=1 / DT_S, v_threshold=1, v_reset=0), **change})


def li(shape: tuple[int, ...], **change: Any) -> nir.LI:
    return nir.LI(**{**fill(shape, tau=0.008, r=1, v_leak=0), **change})


def on_grid(rng: np.random.Generator, *shape: int, limit: int = 127) -> np.ndarray[Any, Any]:
    """Weights of k/64, the largest 127/64: with the scale 64 they are integers, and float sums of them exact."""
    weight = rng.integers(-limit, limit + 1, shape)
    weight.flat[0] = 127
    return weight / 64


def conv2d(weight: np.ndarray[Any, Any], **fields: Any) -> nir.Conv2d:
    plain = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": np.zeros(len(weight))}
    return nir.Conv2d(input_shape=None, weight=weight, **{**plain, **fields})


def conv1d(weight: np.ndarray[Any, Any], **fields: Any) -> nir.Conv1d:
    plain = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": np.zeros(len(weight))}
    return nir.Conv1d(input_shape=None, weight=weight, **{**plain, **fields})


def flatten(*shape: int) -> nir.Flatten:
    return nir.Flatten({"input": np.array(shape)}, 0, -1)


def pool(kind: Any, size: int) -> Any:
    return kind(np.array([size] * 2), np.array([size] * 2), np.array([0, 0]))


def spikes(*shape: int, seed: int = 0, rate: float = 0.3) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.uint8)
