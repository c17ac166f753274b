"""ANNs that spike in part: additions of their spikes and multiplications of the rest, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch
from graphs import DT_S, chain, integrate
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from knarr.hw_sim import PriceError, count, count_onnx, count_torch, price
from knarr.hw_sim.counting.onnx.model import read_onnx
from knarr.hw_sim.counting.onnx.spikes import spike_tensors
from knarr.hw_sim.energy import ratio

ONES = np.ones((3, 2), np.float32)


def save(path: Path, nodes: Sequence[Any], weights: dict[str, Any], shape: Sequence[int]) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    path.write_bytes(model.SerializeToString())
    return path


def columns(counts: Any, name: str) -> tuple[int, ...]:
    layer = counts.layers[name]
    found = (layer.acc, layer.signed, layer.repeats, layer.mac, counts.effective[name])
    return tuple(int(value * counts.samples) for value in found)


@pytest.mark.parametrize(
    ("row", "acc", "signed", "mac", "effective"),
    [
        ([1, 0, 1], 4, 0, 0, 4),
        ([1, 0, -1], 4, 4, 0, 4),
        ([0, 0, 0], 0, 0, 6, 0),  # silence of a dense layer is computed like anything else
        ([1, 0, 2], 0, 0, 6, 4),  # a 2 among data is no sum of spikes
        ([0.5, 0, 0], 0, 0, 6, 2),
    ],
)
def test_a_row_of_data(
    row: list[float], acc: int, signed: int, mac: int, effective: int, tmp_path: Path
) -> None:
    plain = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "n"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    counts = count_onnx(
        save(tmp_path / "ann.onnx", plain, {"w": ONES}, [3]), np.array([row], np.float32)
    )
    assert columns(counts, "n") == (0, 0, 0, 6, effective), "an ANN is one, whatever its data"
    hybrid = [
        plain[0],
        helper.make_node("Greater", ["h", "two"], ["b"]),
        helper.make_node("Cast", ["b"], ["z"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["z", "v"], ["y"], "m"),
    ]
    weights = {"w": ONES, "two": np.float32(2), "v": np.ones((2, 1), np.float32)}
    path = save(tmp_path / "m.onnx", hybrid, weights, [3])
    counts = count_onnx(path, np.array([row], np.float32))
    assert columns(counts, "n") == (acc, signed, 0, mac, effective)
    lean = counts.skipping_zeros().layers["n"]
    assert (lean.acc, lean.mac) == (acc, effective - acc)
    assert counts.layers["n"].dense_valid == 6


def test_an_ann_of_binary_data_by_each_counter(tmp_path: Path) -> None:
    """Linear, ReLU, Linear on 0 and 1: an ANN is dense, count_torch and the graph judge what arrives."""
    weights = np.array([[1, -1], [1, 1], [-1, 1]], np.float32)
    frames = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 0]], np.float32)  # 4 ones
    after = np.maximum(frames @ weights, 0)  # (0, 0), (2, 0) and silence: 1 activation is left
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "a"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], "b"),
    ]
    head = np.ones((2, 3), np.float32)
    path = save(tmp_path / "ann.onnx", nodes, {"w": weights, "v": head}, [3])
    dense = count_onnx(path, frames)
    assert (columns(dense, "a"), columns(dense, "b")) == ((0, 0, 0, 18, 8), (0, 0, 0, 18, 3))

    module = nn.Sequential(
        nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False)
    ).eval()
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(weights.T))
        module[2].weight.fill_(1)
    judged = count_torch(module, torch.from_numpy(frames))
    first, second = judged.layers["0"], judged.layers["2"]
    assert (first.acc * 3, first.mac, first.dense_valid * 3) == (4 * 2, 0, 18)
    assert (second.acc, second.mac * 3, second.dense_valid * 3) == (0, (after != 0).sum() * 3, 18)

    graph = chain((3,), (2,), a=nir.Linear(weights.T), n=integrate((2,)))
    layer = count(graph, frames[:, None], dt_s=DT_S).layers["a"]
    assert (layer.acc, layer.mac, layer.dense_valid) == (first.acc, 0, first.dense_valid)
    # Only an ANN that is counted as one is a baseline.
    assert price(dense).kind == "ann"
    with pytest.raises(PriceError, match="of 'snn' to 'snn', needs 'snn' to 'ann'"):
        ratio(price(judged), price(judged))


def spiking(tail: Sequence[Any]) -> list[Any]:
    """Spikes z of x > 0 and q of x > 1, as comparisons that become numbers."""
    return [
        helper.make_node("Greater", ["x", "zero"], ["b"]),
        helper.make_node("Cast", ["b"], ["z"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["x", "one"], ["c"]),
        helper.make_node("Cast", ["c"], ["q"], to=TensorProto.FLOAT),
        *tail,
    ]


NUMBERS = {"zero": np.float32(0), "one": np.float32(1), "w": ONES}


def test_a_sum_of_two_spikes_is_two_additions(tmp_path: Path) -> None:
    weights = {**NUMBERS, "w": np.array([[1, 0], [1, 1], [1, 1]], np.float32)}
    nodes = spiking(
        [
            helper.make_node("Add", ["z", "q"], ["s"]),
            helper.make_node("MatMul", ["s", "w"], ["y"], "n"),
        ]
    )
    path = save(tmp_path / "m.onnx", nodes, weights, [3])
    counts = count_onnx(path, np.array([[2, 0.5, 0], [-1, -1, -1]], np.float32))
    # (2, 1, 0) on two outputs; the second sample is silent, and a silent spiking layer does nothing.
    assert columns(counts, "n") == (6, 0, 2, 0, 4)
    layer = counts.layers["n"]
    assert (layer.acc_nonzero * 2, layer.repeats_nonzero * 2) == (4, 1)
    lean = counts.skipping_zeros().layers["n"]
    assert (lean.acc, lean.mac, lean.mac_nonzero) == (layer.acc, 0, 0)
    row = next(row for row in counts.ledger if row.name == "n")
    assert "spikes arrive: 3 additions, and 0 multiplications are left" in row.note
    assert price(counts, "horowitz_fp32").nominal_pj == pytest.approx(3 * 0.9)
    # Each fetched word of the baseline is added, not multiplied.
    assert price(counts, "horowitz_fp32", model="memory").terms["operations"].nominal == 3 * 0.9


def test_attention_on_spikes_adds(tmp_path: Path) -> None:
    nodes = spiking(
        [
            helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["z", "k"], ["a"], "scores"),
            helper.make_node("MatMul", ["a", "x"], ["y"], "values"),
        ]
    )
    path = save(tmp_path / "m.onnx", nodes, NUMBERS, [2, 3])
    x = np.array([[[2, 0.5, 0], [2, 2, -1]]], np.float32)
    counts = count_onnx(path, x)
    z, q = (x[0] > 0).astype(int), (x[0] > 1).astype(int)
    scores = z @ q.T
    pairs = sum(int(z[i, c] * q[j, c]) for i in range(2) for j in range(2) for c in range(3))
    assert columns(counts, "scores") == (pairs, 0, 0, 0, pairs)
    # Scores are sums of spikes, and add the values that are not 0 as often as they say.
    reached = (x[0] != 0).sum(axis=1)
    added = int((scores * reached[None]).sum())
    once = int(((scores > 0) * reached[None]).sum())
    assert columns(counts, "values") == (added, 0, added - once, 0, once)


def test_probabilities_of_one_are_no_spikes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"]),
        helper.make_node("MatMul", ["p", "x"], ["y"], "n"),
    ]
    mask = np.triu(np.full((2, 2), -np.inf, np.float32), 1)
    path = save(tmp_path / "m.onnx", nodes, {"mask": mask}, [2, 2])
    counts = count_onnx(path, np.array([[[0.5, 0.2], [0.3, 0.1]]], np.float32))
    assert counts.layers["n"].acc == 0
    assert counts.layers["n"].mac == 8


def test_a_hybrid_whose_steps_are_unrolled(tmp_path: Path) -> None:
    """An image is convolved once; its spikes reach a spiking layer beside those of two steps."""
    rng = np.random.default_rng(2)
    image, event = (rng.normal(size=(2, 1, 3, 3)).astype(np.float32) for _ in range(2))
    weights = {
        **NUMBERS, "image": image, "event": event, "w": np.ones((32, 5), np.float32),
        "parts": np.array([1, 1, 1]), "flat": np.array([-1, 32]),
    }  # fmt: skip

    def fires(volts: str, name: str, above: str = "zero") -> list[Any]:
        return [
            helper.make_node("Greater", [volts, above], [name + "?"]),
            helper.make_node("Cast", [name + "?"], [name], to=TensorProto.FLOAT),
        ]

    nodes = [
        helper.make_node("Split", ["x", "parts"], ["x0", "x1", "x2"], axis=1),
        helper.make_node("Conv", ["x0", "image"], ["m"], "image_conv"),
        *fires("m", "lent"),
    ]
    for step in (1, 2):
        nodes += [
            *fires(f"x{step}", f"e{step}", "one"),
            helper.make_node("Conv", [f"e{step}", "event"], [f"c{step}"], f"event_{step}"),
            *([helper.make_node("Add", ["c1", "c2"], ["v2"])] if step == 2 else []),
            *fires("c1" if step == 1 else "v2", f"z{step}"),
            helper.make_node("Add", [f"z{step}", "lent"], [f"s{step}"]),
            helper.make_node("Reshape", [f"s{step}", "flat"], [f"f{step}"]),
            helper.make_node("MatMul", [f"f{step}", "w"], [f"y{step}"], f"head_{step}"),
        ]
    nodes.append(helper.make_node("Add", ["y1", "y2"], ["y"]))
    path = save(tmp_path / "m.onnx", nodes, weights, [3, 6, 6])
    x = rng.normal(size=(3, 3, 6, 6)).astype(np.float32)
    x[0, 1] = -1  # a silent step
    counts = count_onnx(path, x)

    def convolved(frame: Any, kernel: Any) -> Any:
        windows = np.lib.stride_tricks.sliding_window_view(frame, (3, 3), axis=(1, 2))
        return np.einsum("nyxab,oab->noyx", windows, kernel[:, 0])

    lent = (convolved(x[:, 0], image) > 0).astype(int)
    events = [(x[:, step] > 1).astype(np.float32) for step in (1, 2)]
    volts = convolved(events[0], event)
    sums = [(volts > 0) + lent, (volts + convolved(events[1], event) > 0) + lent]
    reach = np.zeros((6, 6), dtype=int)
    for y, at in np.ndindex(4, 4):
        reach[y : y + 3, at : at + 3] += 2
    by_hand = sum(int((one * reach).sum()) for one in events) + 5 * int(np.sum(sums))
    assert not events[0][0].any()
    assert int(counts.total.acc * 3) == by_hand > 100
    assert int(counts.total.repeats * 3) == 5 * np.count_nonzero(np.equal(sums, 2)) > 0
    assert counts.total.mac == counts.layers["image_conv"].mac == 4 * 4 * 9 * 2
    plain = count_onnx(path).total
    assert (plain.acc, plain.mac) == (0, counts.total.dense_valid)


def test_what_is_made_of_spikes(tmp_path: Path) -> None:
    """Names of spikes by construction, and none of what only looks like them."""
    half = np.float32(0.5)
    nodes = spiking(
        [
            helper.make_node("Mul", ["z", "half"], ["scaled"]),
            helper.make_node("Sub", ["one", "z"], ["rest"]),
            helper.make_node("Where", ["b", "one", "zero"], ["chosen"]),
            helper.make_node("Where", ["b", "x", "zero"], ["gated"]),
            helper.make_node("ReduceSum", ["z"], ["counted"], keepdims=1),
            helper.make_node("ReduceMean", ["z"], ["rate"], keepdims=1),
            helper.make_node("Round", ["x"], ["rounded"]),
            helper.make_node("Mul", ["z", "gated"], ["product"]),
            helper.make_node("Sum", ["scaled", "rest", "chosen", "gated", "counted", "rate", "rounded", "product"], ["y"]),
        ]
    )  # fmt: skip
    path = save(tmp_path / "m.onnx", nodes, {**NUMBERS, "half": half}, [3])
    onnx.checker.check_model(onnx.load(path))
    assert spike_tensors(read_onnx(path)) == {"z", "q", "rest", "chosen", "counted"}
