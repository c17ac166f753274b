"""One student step as ONNX: onnxruntime loops it and fires the same spikes as Norse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as snn
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from knarr.export import ExportError, PLIFBoxCell, StepGraph, student_step_to_onnx, trace_module
from knarr.export import onnx_files as onnx_student

DT_S = 1e-3


def lif(decay: float, v_leak: float = 0.0) -> snn.LIFBoxCell:
    p = snn.LIFBoxParameters(
        tau_mem_inv=torch.tensor(decay / DT_S), v_th=torch.tensor(0.4), v_leak=torch.tensor(v_leak)
    )
    return snn.LIFBoxCell(p, dt=DT_S)


def mixed() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [
        nn.Conv2d(2, 4, 3, stride=2), nn.BatchNorm2d(4), lif(0.25, 0.05), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 12),
        PLIFBoxCell(4e-3, DT_S, v_th=0.3), nn.Linear(12, 6), snn.IAFCell(dt=DT_S), snn.LIFRecurrentCell(6, 8, dt=DT_S),
        nn.Linear(8, 3), snn.LICell(dt=DT_S),
    ]  # fmt: skip
    return snn.SequentialState(*layers), (2, 10, 10)


def looped() -> tuple[nn.Module, tuple[int, ...]]:
    nodes = {
        "fc": nn.Linear(6, 12),
        "lif": snn.LIFCell(dt=DT_S),
        "rec": nn.Linear(12, 12),
        "out": nn.Linear(12, 3),
        "z": lif(0.5),
    }
    edges = [
        ("input", "fc"),
        ("fc", "lif"),
        ("rec", "lif"),
        ("lif", "out"),
        ("out", "z"),
        ("z", "output"),
    ]
    return StepGraph(nodes, edges, [("lif", "rec")]), (6,)


def loud(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.weight *= 6
            if isinstance(layer, snn.LIFRecurrentCell):
                layer.input_weights *= 4
    return module.eval()


@pytest.mark.parametrize("build", [mixed, looped])
@pytest.mark.parametrize("batch", [1, 5])
def test_onnxruntime_fires_the_same_spikes(
    build: Callable[[], tuple[nn.Module, tuple[int, ...]]], batch: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, shape = build()
    loud(module)
    path = tmp_path / "step.onnx"
    student_step_to_onnx(module, shape, path)
    x = (np.random.default_rng(1).random((batch, 150, *shape)) < 0.6).astype(np.float32)
    live = trace_module(module, x)
    assert all(z.sum() > 5 for z in live.spikes.values())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    states = json.loads(session.get_modelmeta().custom_metadata_map["knarr_states"])
    feed: dict[str, Any] = {}
    outputs = []
    for t in range(x.shape[1]):
        names = ["output", *states.values()]
        got = dict(zip(names, session.run(names, {"input": x[:, t], **feed}), strict=True))
        outputs.append(got["output"])
        feed = {name: got[after] for name, after in states.items()}
    if build is looped:
        assert np.array_equal(np.stack(outputs, 1), live.output)
    # Sums are rounded in another order, so voltages agree to 1e-4; the output of `looped` is spikes, equal without that.
    assert np.allclose(np.stack(outputs, 1), live.output, rtol=0, atol=1e-4)
    assert live.output.std() > 0.01


def test_the_file_is_an_ordinary_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, shape = looped()
    student_step_to_onnx(loud(module), shape, tmp_path / "step.onnx")
    model = onnx.load(tmp_path / "step.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [i.name for i in model.graph.input] == ["input", "lif.v", "lif.i", "z.v", "lif.before"]
    assert [o.name for o in model.graph.output] == [
        "output",
        "lif.v.next",
        "lif.i.next",
        "z.v.next",
        "lif.before.next",
    ]
    assert all(i.type.tensor_type.shape.dim[0].dim_param == "batch" for i in model.graph.input)


def test_a_step_that_differs_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, shape = looped()
    right = onnx_student._export_step

    def wrong(step: Any, input_shape: tuple[int, ...]) -> bytes:
        model = onnx.load_model_from_string(right(step, input_shape))
        for initializer in model.graph.initializer:
            if initializer.name.endswith("rec.weight"):
                values = onnx.numpy_helper.to_array(initializer) * 1.01
                initializer.CopyFrom(onnx.numpy_helper.from_array(values, initializer.name))
        return bytes(model.SerializeToString())

    monkeypatch.setattr(onnx_student, "_export_step", wrong)
    with pytest.raises(
        ExportError, match=r"differs from torch in \d+ of \d+ values at batch 1, step \d+"
    ):
        student_step_to_onnx(loud(module), shape, tmp_path / "step.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_used_twice_and_weights_that_are_no_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    module = loud(snn.SequentialState(shared, lif(0.3), shared, lif(0.3)))
    student_step_to_onnx(module, (5,), tmp_path / "a.onnx")
    names = {i.name for i in onnx.load(tmp_path / "a.onnx").graph.input}
    assert {"lif_1.v", "lif_3.v"} <= names
    with torch.no_grad():
        shared.weight[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"'0\.weight' holds NaN"):
        student_step_to_onnx(module, (5,), tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="module '1': ReLU is not known by its type"):
        student_step_to_onnx(
            snn.SequentialState(nn.Linear(3, 3), nn.ReLU()).eval(), (3,), tmp_path / "a.onnx"
        )
    with pytest.raises(ExportError, match="does not run on"):
        student_step_to_onnx(
            snn.SequentialState(nn.Linear(3, 3), lif(0.5)).eval(), (4,), tmp_path / "a.onnx"
        )
    assert list(tmp_path.iterdir()) == []
