"""Graphs of other tools: what every node means by hand, what the standard fills in, what it leaves open and we refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from knarr.export import ExportError, read, step_nir, write

Tree = dict[str, Any]


def save(path: Path, nodes: Tree, edges: list[tuple[str, str]], **top: Any) -> Path:
    """A NIR file by hand: whatever another exporter may leave out can be left out here."""

    def fill(group: Any, tree: Tree) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                fill(group.create_group(key), value)
            elif isinstance(value, (str, list)):
                group.create_dataset(key, data=value, dtype=h5py.string_dtype())
            else:
                group.create_dataset(key, data=value)

    with h5py.File(path, "w") as file:
        fill(
            file,
            {
                "version": "1.0",
                "node": {
                    "type": "NIRGraph",
                    "nodes": nodes,
                    "edges": [list(e) for e in edges],
                    **top,
                },
            },
        )
    return path


def ends(*shape: int, out: tuple[int, ...] | None = None) -> Tree:
    return {
        "input": {"type": "Input", "shape": np.array(shape)},
        "output": {"type": "Output", "shape": np.array(out or shape)},
    }


def line(
    path: Path, *nodes: Tree, shape: tuple[int, ...] = (2,), out: tuple[int, ...] | None = None
) -> Path:
    names = ["input", *(f"n{i}" for i in range(len(nodes))), "output"]
    tree = {**ends(*shape, out=out), **dict(zip(names[1:-1], nodes, strict=True))}
    return save(path, tree, list(zip(names[:-1], names[1:], strict=True)))  # noqa: RUF007


def run(path: Path, x: Any, dt_s: float = 1.0) -> Any:
    return step_nir(read(path), np.array(x, dtype=np.float32)[None], dt_s)


def test_scalars_and_missing_resets_are_filled_in_and_listed(tmp_path: Path) -> None:
    lif = {
        "type": "LIF",
        "tau": 2.0,
        "r": np.array([1.0]),
        "v_leak": 0.0,
        "v_threshold": np.array([1.0, 3.0]),
    }
    path = line(tmp_path / "a.nir", lif)
    graph = read(path)
    assert graph.nodes["n0"].tau.tolist() == [2.0, 2.0]
    assert graph.nodes["n0"].v_reset.tolist() == [0.0, 0.0]
    assert graph.metadata["knarr_filled"].splitlines() == [
        "node 'n0': v_reset missing, 0 by the NIR standard",
        "node 'n0': tau of shape () spread over (2,)",
        "node 'n0': r of shape (1,) spread over (2,)",
        "node 'n0': v_leak of shape () spread over (2,)",
    ]
    # a = 1/2: 3/2 > 1 fires; 3/2, 9/4 < 3
    assert run(path, [[3, 3], [3, 3]]).spikes["n0"][0].tolist() == [[1, 0], [1, 0]]
    write(graph, tmp_path / "b.nir")
    assert "knarr_filled" not in read(tmp_path / "b.nir").metadata or read(
        tmp_path / "b.nir"
    ).nodes["n0"].tau.shape == (2,)


def test_w_in_is_one_by_default(tmp_path: Path) -> None:
    cuba = {"type": "CubaLI", "tau_syn": 4.0, "tau_mem": 2.0, "r": 1.0, "v_leak": 0.0}
    path = line(tmp_path / "a.nir", cuba, shape=(1,))
    # g = 1/4: I = 1, 3/4; v = 1/2, 1/2 + (3/4 - 1/2)/2
    trace = run(path, [[4], [0]])
    assert trace.v["n0"].ravel().tolist() == [0.5, 0.625]
    assert trace.i["n0"].ravel().tolist() == [1.0, 0.75]


@pytest.mark.parametrize(
    ("node", "x", "expected"),
    [
        ({"type": "Scale", "scale": np.array([2.0, -1.0])}, [[1, 3]], [[2, -3]]),
        ({"type": "Threshold", "threshold": 1.0}, [[1, 1.5]], [[0, 1]]),
        ({"type": "I", "r": 2.0}, [[1, 0], [0.5, 1]], [[2, 0], [3, 2]]),
        ({"type": "Delay", "delay": np.array([0.0, 2.0])}, [[1, 1], [2, 2], [3, 3]], [[1, 0], [2, 0], [3, 1]]),
        ({"type": "Linear", "weight": np.array([[0.0, 1.0], [1.0, 1.0]])}, [[2, 3]], [[3, 5]]),
    ],
    ids=["Scale", "Threshold", "I", "Delay", "Linear"],
)  # fmt: skip
def test_nodes_by_hand(node: Tree, x: Any, expected: Any, tmp_path: Path) -> None:
    assert run(line(tmp_path / "a.nir", node), x).output[0].tolist() == expected


def test_images_and_signals_by_hand(tmp_path: Path) -> None:
    pool = {
        "type": "SumPool2d",
        "kernel_size": np.array([2, 1]),
        "stride": np.array([2, 1]),
        "padding": np.array([0, 0]),
    }
    path = line(tmp_path / "a.nir", pool, shape=(1, 2, 2), out=(1, 1, 2))
    assert run(path, [[[[1, 2], [3, 5]]]]).output.ravel().tolist() == [4, 7]
    conv = {
        "type": "Conv1d", "weight": np.array([[[1.0, 10.0]], [[0.0, 1.0]]]), "stride": 1, "padding": 1, "dilation": 1, "groups": 1,
        "bias": np.array([0.0, 0.5]),
    }  # fmt: skip
    path = line(tmp_path / "b.nir", conv, shape=(1, 2), out=(2, 3))
    assert read(path).nodes["n0"].input_shape == 2
    assert run(path, [[[3, 4]]]).output[0, 0].tolist() == [[30, 43, 4], [3.5, 4.5, 0.5]]
    grouped = {
        "type": "Conv2d", "weight": np.ones((2, 1, 1, 2)), "stride": np.array([1, 1]), "padding": np.array([0, 0]),
        "dilation": np.array([1, 1]), "groups": 2, "bias": np.zeros(2),
    }  # fmt: skip
    path = line(
        tmp_path / "c.nir", grouped, shape=(2, 1, 2), out=(2, 1, 1)
    )  # nir's own type check refuses both
    assert run(path, [[[[1, 2]], [[3, 4]]]]).output.ravel().tolist() == [3, 7]


def integrate(threshold: float) -> Tree:
    return {"type": "IF", "r": 1.0, "v_threshold": threshold}


def test_a_nested_graph_with_a_loop_by_hand(tmp_path: Path) -> None:
    """The recurrent layers of snnTorch and Rockpool are nested graphs: neuron, weights, and an edge back."""
    inner = {
        "type": "NIRGraph",
        "nodes": {
            **ends(1),
            "if": integrate(1.5),
            "w": {"type": "Affine", "weight": np.array([[2.0]]), "bias": np.array([0.25])},
        },
        "edges": [["input", "if"], ["if", "w"], ["w", "if"], ["if", "output"]],
    }
    path = line(tmp_path / "a.nir", inner, shape=(1,))
    graph = read(path)
    assert isinstance(graph.nodes["n0"], nir.NIRGraph)
    # w brings 0.25 + 2 z[t-1], z[-1] = 0:  0.25+1 = 1.25;  1.25+0.25+1 = 2.5 fires, v = 0;  2.25 fires;  2.25 fires
    trace = step_nir(graph, np.array([[[1.0], [1.0], [0.0], [0.0]]]), 1.0)
    assert trace.spikes["n0.if"].ravel().tolist() == [0, 1, 1, 1]
    write(graph, tmp_path / "b.nir")
    again = step_nir(read(tmp_path / "b.nir"), np.array([[[1.0], [1.0], [0.0], [0.0]]]), 1.0)
    assert again.spikes["n0.if"].ravel().tolist() == [0, 1, 1, 1]


def test_a_delay_in_a_loop_is_the_loops_whole_delay(tmp_path: Path) -> None:
    nodes = {**ends(1), "if": integrate(0.5), "d": {"type": "Delay", "delay": 2.0}}
    path = save(
        tmp_path / "a.nir", nodes, [("input", "if"), ("if", "output"), ("if", "d"), ("d", "if")]
    )
    assert run(path, [[1], [0], [0], [0], [0]]).output.ravel().tolist() == [1, 0, 1, 0, 1]


def test_order_comes_from_edges_and_not_from_names(tmp_path: Path) -> None:
    one = {"type": "Linear", "weight": np.array([[2.0]])}
    two = {"type": "Affine", "weight": np.array([[1.0]]), "bias": np.array([1.0])}
    outputs = []
    for first, second in (("z", "a"), ("a", "z")):
        nodes = {**ends(1), first: one, second: two}
        edges = [(second, "output"), (first, second), ("input", first)]
        outputs.append(run(save(tmp_path / f"{first}.nir", nodes, edges), [[3]]).output.item())
    assert outputs == [7.0, 7.0]


def conv2d(**changes: Any) -> Tree:
    fields = {
        "type": "Conv2d", "weight": np.ones((1, 1, 2, 2)), "stride": np.array([1, 1]), "padding": np.array([0, 0]),
        "dilation": np.array([1, 1]), "groups": 1, "bias": np.zeros(1),
    }  # fmt: skip
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


LIF = {"type": "LIF", "tau": 2.0, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0}
AVG = {
    "type": "AvgPool2d",
    "kernel_size": np.array([2, 2]),
    "stride": np.array([2, 2]),
    "padding": np.array([1, 1]),
}
WIDE = {
    "type": "NIRGraph",
    "nodes": {"input": {"type": "Input", "shape": np.array([1])}, "a": LIF},
    "edges": [["input", "a"]],
}
OPEN: dict[str, tuple[Any, str]] = {
    "r missing": ([{k: v for k, v in LIF.items() if k != "r"}], "node 'n0': LIF without r, which NIR leaves open"),
    "bias missing": ([conv2d(bias=None)], "node 'n0': Conv2d without bias"),
    "one value per channel": ([{**LIF, "tau": np.array([1.0, 2.0, 3.0])}], r"tau has shape \(3,\) for neurons of \(1, 4, 4\)"),
    "unknown field": ([{**LIF, "refractory": 2.0}], "LIF has no field 'refractory'"),
    "unknown type": ([{"type": "MaxPool2d"}], "node 'n0': type 'MaxPool2d' is unknown"),
    "padded average": ([AVG], "AvgPool2d with padding .* does not say whether the mean counts the zeros"),
    "NaN": ([{**LIF, "tau": float("nan")}], "node 'n0': tau holds something else than finite numbers"),
    "text for a number": ([{**LIF, "tau": "long"}], "node 'n0': tau is no array of numbers"),
    "same with stride": ([conv2d(padding="same", stride=np.array([2, 2]))], "padding 'same' with stride"),
    "zero stride": ([conv2d(stride=np.array([0, 1]))], "node 'n0': window .* not possible"),
    "a window too large": ([conv2d(weight=np.ones((1, 1, 9, 9)))], "is larger than"),
    "wrong input_shape": ([conv2d(input_shape=np.array([5, 5]))], "input_shape .* and receives"),
    "nested without output": ([WIDE], "node 'n0': nested graph with 0 Output nodes"),
    "groups that do not divide": ([conv2d(groups=2)], "in 2 groups is no Conv2d"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPEN)
def test_what_nir_leaves_open_is_refused_by_name(case: str, tmp_path: Path) -> None:
    nodes, message = OPEN[case]
    path = line(tmp_path / "a.nir", *nodes, shape=(1, 4, 4))
    with pytest.raises(ExportError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


EYE: Tree = {"type": "Linear", "weight": np.eye(2)}
LOOPS: dict[str, tuple[Tree, list[tuple[str, str]], str]] = {
    "synapses alone": (
        {"a": EYE, "b": EYE}, [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")], "cycle without neuron or delay"
    ),
    "entered twice": (
        {"a": LIF, "b": LIF}, [("input", "a"), ("input", "b"), ("a", "b"), ("b", "a"), ("b", "output")], "entered at more than one"
    ),
    "no target": ({"a": LIF}, [("input", "a"), ("a", "nowhere"), ("a", "output")], "names 'nowhere', which is not a node"),
    "twice": ({"a": LIF}, [("input", "a"), ("input", "a"), ("a", "output")], "stands twice"),
    "unfed": ({"a": LIF, "b": LIF}, [("input", "a"), ("a", "output")], "node 'b': nothing feeds it"),
    "sizes": ({"a": EYE, "b": {"type": "Linear", "weight": np.ones((2, 3))}}, [("input", "a"), ("a", "b"), ("b", "output")], "takes"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOOPS)
def test_edges_without_a_meaning_are_refused(case: str, tmp_path: Path) -> None:
    nodes, edges, message = LOOPS[case]
    with pytest.raises(ExportError, match=message):
        read(save(tmp_path / "a.nir", {**ends(2), **nodes}, edges))


def test_delays_that_are_no_whole_steps_are_refused(tmp_path: Path) -> None:
    path = line(tmp_path / "a.nir", {"type": "Delay", "delay": 1.5e-3})
    with pytest.raises(ExportError, match="not a whole number of steps"):
        run(path, [[1, 1]], 1e-3)
    assert run(path, [[1, 2], [0, 0], [0, 0], [0, 0]], 5e-4).output[0].tolist() == [
        [0, 0],
        [0, 0],
        [0, 0],
        [1, 2],
    ]


def test_time_constants_below_dt_are_refused_when_stepping(tmp_path: Path) -> None:
    """What Norse 1.1.0 itself writes: every time constant multiplied by dt."""
    path = line(tmp_path / "a.nir", {**LIF, "tau": 1e-5})
    with pytest.raises(
        ExportError, match=r"node 'n0': tau spans 1e-05\.\.1e-05 s, and forward Euler with dt 0.001"
    ):
        run(path, [[1, 1]], 1e-3)
