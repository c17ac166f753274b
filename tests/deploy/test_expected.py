"""What a user's own tool computed, compared with what a graph means, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from graphs import DT_S, chain, li, lif

from knarr.deploy import DeployError, verify
from knarr.export import step_nir
from knarr.pipeline import divergence_text

SAMPLES, STEPS = 3, 20


def spiking(**change: Any) -> nir.NIRGraph:
    rng = np.random.default_rng(2)
    first, second = (nir.Linear(rng.normal(0.4, 1, shape)) for shape in ((6, 5), (4, 6)))
    return chain((5,), (4,), a=first, n=lif((6,)), b=second, m=lif((4,), **change))


@pytest.fixture
def inputs() -> np.ndarray[Any, Any]:
    return (np.random.default_rng(3).random((SAMPLES, STEPS, 5)) < 0.5).astype(np.float32)


@pytest.mark.parametrize("form", ["samples first", "time first", "bool", "nodes"])
def test_the_same_spikes_hold_in_any_form(form: str, inputs: np.ndarray[Any, Any]) -> None:
    trace = step_nir(spiking(), inputs, DT_S)
    expected: Any = {
        "samples first": trace.output,
        "time first": trace.output.swapaxes(0, 1),
        "bool": trace.output.astype(bool),
        "nodes": {"n": trace.spikes["n"], "m": trace.spikes["m"].swapaxes(0, 1)},
    }[form]
    result = verify(spiking(), None, inputs, DT_S, expected=expected)
    assert result.holds
    assert [row.layer for row in result.rows] == (["n", "m"] if form == "nodes" else ["m"])
    assert result.decisions["expected"] == result.decisions["NIR"]
    assert result.notes == ()


def test_the_first_layer_that_differs_is_named(inputs: np.ndarray[Any, Any]) -> None:
    trace = step_nir(spiking(), inputs, DT_S)
    theirs = {name: spikes.copy() for name, spikes in trace.spikes.items()}
    theirs["m"][1, 2, 3] ^= 1
    theirs["n"][0, 7, 1] ^= 1
    result = verify(spiking(), None, inputs, DT_S, expected=theirs)
    assert not result.holds
    assert [row.mismatches for row in result.rows] == [1, 1]
    first = result.rows[0].first
    assert first is not None
    assert (first.sample, first.timestep, first.index) == (0, 7, (1,))
    assert first.right.v_reached is not None
    assert result.notes[0] == "the first layer that differs is 'n': 1 of 360"


def test_a_difference_is_explained_by_step_and_lost_reset(inputs: np.ndarray[Any, Any]) -> None:
    def snntorch(shape: tuple[int, ...]) -> nir.LIF:
        return lif(shape, tau=np.full(shape, 5e-4), r=np.full(shape, 5.0))

    graph = chain((5,), (6,), a=spiking().nodes["a"], n=snntorch((6,)))
    # The threshold comes off one step late, as snnTorch does by default.
    v, fired, steps = np.zeros((SAMPLES, 6)), np.zeros((SAMPLES, 6)), []
    for x in inputs.swapaxes(0, 1):
        v = 0.8 * v + x @ graph.nodes["a"].weight.T - fired
        fired = (v > 1).astype(float)
        steps.append(fired)
    theirs = np.stack(steps)
    result = verify(graph, None, inputs, 1e-4, expected=theirs)
    assert not result.holds
    assert "reset_mechanism='zero'" in result.notes[1]
    assert "knarr finetune" in result.notes[2]
    result = verify(graph, None, inputs, 2e-4, expected=theirs)
    assert "--dt 0.0001 (snnTorch" in result.notes[1]


def test_arrays_with_time_first_on_both_sides_are_noticed(inputs: np.ndarray[Any, Any]) -> None:
    output = step_nir(spiking(), inputs, DT_S).output
    both = (array.swapaxes(0, 1) for array in (inputs, output))
    result = verify(spiking(), None, next(both), DT_S, expected=next(both))
    assert not result.holds
    assert "exchange axes 0 and 1" in result.notes[-1]


def test_readouts_may_differ_as_float32_sums_do(inputs: np.ndarray[Any, Any]) -> None:
    graph = chain((5,), (3,), a=nir.Linear(np.eye(3, 5)), r=li((3,)))
    output = step_nir(graph, inputs, DT_S).output
    assert verify(graph, None, inputs, DT_S, expected=output * (1 + 1e-6)).holds
    assert not verify(graph, None, inputs, DT_S, expected=output * 1.01).holds
    bare = chain((5,), (3,), a=nir.Linear(np.eye(3, 5)))
    (row,) = verify(bare, None, inputs, DT_S, expected=inputs[..., :3]).rows
    assert (row.layer, row.what, row.mismatches) == ("output", "v", 0)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (np.zeros((SAMPLES, STEPS - 1, 4)), r"shape \(3, 19, 4\), the graph gives \(3, 20, 4\)"),
        (np.zeros((SAMPLES, 4)), "the graph gives"),
        ({"a": np.zeros(3)}, "'a' is no neuron of the graph; compared are n, m, output"),
        ({}, "holds no array"),
        (np.full((SAMPLES, STEPS, 4), 0.3), "holds 0.3, and node 'm' fires"),
        (np.full((SAMPLES, STEPS, 4), np.nan), "finite"),
        (np.full((SAMPLES, STEPS, 4), "a"), "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    expected: Any, message: str, inputs: np.ndarray[Any, Any]
) -> None:
    with pytest.raises(DeployError, match=message):
        verify(spiking(), None, inputs, DT_S, expected=expected)


def test_axes_that_cannot_be_told_apart_are_refused(inputs: np.ndarray[Any, Any]) -> None:
    square = inputs[:, :SAMPLES]
    output = step_nir(spiking(), square, DT_S).output
    with pytest.raises(DeployError, match="cannot be told apart"):
        verify(spiking(), None, square, DT_S, expected=output)
    one = inputs[:1, :1]
    assert verify(spiking(), None, inputs[:1], DT_S, expected=step_nir(spiking(), inputs[:1], DT_S).output[0]).rows  # fmt: skip
    assert verify(spiking(), None, one, DT_S, expected=step_nir(spiking(), one, DT_S).output).rows


def test_something_to_compare_with_is_needed(inputs: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="nothing to compare"):
        verify(spiking(), None, inputs, DT_S)


def test_a_neuron_that_fires_twice_is_said_to(inputs: np.ndarray[Any, Any]) -> None:
    output = step_nir(spiking(), inputs, DT_S).output
    (row,) = verify(spiking(), None, inputs, DT_S, expected=2 * output).to_json()["rows"]
    assert "expected fires 2 times; NIR fires" in divergence_text(row)
