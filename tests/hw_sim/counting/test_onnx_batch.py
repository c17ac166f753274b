"""The batch of an ONNX file is found from its graph, and what is none is counted whole or refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from knarr.hw_sim import CountError, count_onnx

HIDDEN, FEATURES, STEPS = 4, 3, 10


def save(
    path: Path, nodes: Sequence[Any], weights: dict[str, Any], shapes: dict[str, Sequence[Any]]
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in shapes.items()],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def ones(*shape: int) -> Any:
    return np.ones(shape, dtype=np.float32)


def lstm(path: Path, steps: Any) -> Path:
    """Time first, as torch.nn.LSTM is by default, all steps given back."""
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=HIDDEN)
    weights = {"w": ones(1, 4 * HIDDEN, FEATURES), "r": ones(1, 4 * HIDDEN, HIDDEN)}
    return save(path, [node], weights, {"x": [steps, 1, FEATURES]})


MACS = STEPS * 4 * HIDDEN * (FEATURES + HIDDEN)


def test_steps_of_a_sequence_are_no_batch(tmp_path: Path) -> None:
    assert count_onnx(lstm(tmp_path / "a.onnx", STEPS)).total.mac == MACS
    path = lstm(tmp_path / "b.onnx", "time")
    with pytest.raises(CountError, match=r"axis 0 of input 'x' \(time,1,3\) is no batch: it is the "
                       r"sequence of LSTM 'lstm'; say its size with --shape"):  # fmt: skip
        count_onnx(path)
    # Samples tell how many steps there are, and are not taken for so many inferences.
    counted = count_onnx(path, ones(STEPS, 1, FEATURES))
    assert (counted.samples, counted.total.mac) == (1, MACS)
    assert count_onnx(path, ones(2, STEPS, 1, FEATURES)).samples == 2
    shapes = {"x": (STEPS, 1, FEATURES)}
    assert count_onnx(path, input_shapes=shapes).total.mac == MACS
    counted = count_onnx(path, ones(STEPS, 1, FEATURES), input_shapes=shapes)
    assert (counted.samples, counted.total.mac) == (1, MACS)
    counted = count_onnx(path, ones(2, STEPS, 1, FEATURES), input_shapes=shapes)
    assert counted.samples == 2
    with pytest.raises(CountError, match=r"shape \(9, 1, 3\), needs \(samples, 10, 1, 3\)"):
        count_onnx(path, ones(9, 1, FEATURES), input_shapes=shapes)


def test_another_axis_may_be_the_batch(tmp_path: Path) -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=HIDDEN)
    weights = {"w": ones(1, 4 * HIDDEN, FEATURES), "r": ones(1, 4 * HIDDEN, HIDDEN)}
    path = save(tmp_path / "a.onnx", [node], weights, {"x": [STEPS, "batch", FEATURES]})
    with pytest.raises(CountError, match="axis 1 is batch; only the batch may be dynamic, say"):
        count_onnx(path)
    assert count_onnx(path, batch_axis=1).total.mac == MACS
    assert count_onnx(path, ones(5, STEPS, FEATURES), batch_axis=1).samples == 5
    with pytest.raises(CountError, match="has no axis 7"):
        count_onnx(path, batch_axis=7)


@pytest.mark.parametrize("frames", [8, "frames"])
def test_frames_that_no_output_carries_are_no_batch(frames: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("ReduceMean", ["c"], ["y"], "mean", axes=[0, 2, 3]),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"w": ones(4, 2, 3, 3)}, {"x": [frames, 2, 6, 6]})
    whole = 8 * 4 * 2 * 9 * 16
    if frames == 8:
        assert count_onnx(path).total.mac == whole
    else:
        with pytest.raises(CountError, match="no batch: no output carries it"):
            count_onnx(path)
        assert count_onnx(path, input_shapes={"x": (8, 2, 6, 6)}).total.mac == whole


def test_tokens_that_attend_to_each_other_are_no_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["s"], "scores"),
        helper.make_node("MatMul", ["s", "x"], ["y"], "mix"),
    ]
    path = save(tmp_path / "a.onnx", nodes, {}, {"x": ["tokens", 3]})
    with pytest.raises(
        CountError, match="no batch: tensor 's' has 1 elements for one of them and 4"
    ):
        count_onnx(path)
    assert count_onnx(path, input_shapes={"x": (5, 3)}).total.mac == 2 * 5 * 5 * 3


def test_a_real_batch_stays_one(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "fc")
    path = save(tmp_path / "a.onnx", [node], {"w": ones(4, 2)}, {"x": ["batch", 4]})
    assert count_onnx(path).total.mac == 8
    path = save(tmp_path / "b.onnx", [node], {"w": ones(4, 2)}, {"x": [16, 4]})
    with pytest.raises(CountError, match=r"b.onnx: input 'x' has a fixed batch of 16") as caught:
        count_onnx(path)
    assert "not a valid ONNX file" not in str(caught.value)
    assert count_onnx(path, input_shapes={"x": (16, 4)}).total.mac == 16 * 8


def test_shapes_that_are_given_fit_the_file(tmp_path: Path) -> None:
    path = lstm(tmp_path / "a.onnx", "time")
    for shape in ((5, 2, FEATURES), (5, 1), (0, 1, FEATURES)):
        with pytest.raises(CountError, match="input 'x' is of shape"):
            count_onnx(path, input_shapes={"x": shape})
    with pytest.raises(CountError, match="has no input 'z', its inputs are x"):
        count_onnx(path, input_shapes={"z": (1, 2)})


@pytest.mark.parametrize("operation", ["RegexFullMatch", "StringSplit", "StringNormalizer"])
def test_operations_without_a_bound_are_no_constants(operation: str, tmp_path: Path) -> None:
    text = np.array(["a" * 60 + "b"], dtype=object)
    options: dict[str, Any] = {"pattern": "(a+)+$"} if operation == "RegexFullMatch" else {}
    outputs = ["z", "n"] if operation == "StringSplit" else ["z"]
    nodes = [
        helper.make_node(operation, ["s"], outputs, "text", **options),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])], [numpy_helper.from_array(text, "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    started = time.monotonic()
    rows = {row.name: row.status for row in count_onnx(path).ledger}
    assert rows["text"] == "not executed"
    assert time.monotonic() - started < 20
