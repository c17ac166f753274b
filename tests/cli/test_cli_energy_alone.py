"""`knarr energy` of one network alone: a torch module of one's own, and an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_cli import Result, knarr, one_line  # noqa: F401  (knarr is a fixture)

Knarr = Callable[..., Result]
MODULE = """
from torch import nn


class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return sum(self.layer(one) for one in x.unbind(1))


def network():
    return Looped()


def step():
    return nn.Linear(4, 3, bias=False)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "alone_net.py").write_text(MODULE)
    inputs = np.zeros((2, 5, 4), dtype=np.float32)
    inputs[0, :3] = 1  # 12 events in the first sample, none in the second
    np.save(tmp_path / "x.npy", inputs)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def onnx_file(path: Path, *nodes: onnx.NodeProto, domains: tuple[str, ...] = ()) -> Path:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3), np.ones(12))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3))],
        [weight],
    )
    imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def test_a_module_is_counted_and_priced(knarr: Knarr, folder: Path) -> None:  # noqa: F811
    said = knarr("energy", "alone_net:network", "--data", "x.npy", "--time-axis", "1")
    assert said.returncode == 0
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert "literature formula" in said.stdout
    assert "Loihi" not in said.stdout
    told = knarr("energy", "alone_net:network", "--data", "x.npy", "--json", "--out", "e.json")
    facts = json.loads(told.stdout)
    assert facts == json.loads((folder / "e.json").read_text())
    assert facts["counts"]["layers"]["layer"]["acc"] == facts["counts"]["total"]["acc"] == 18
    assert facts["energy"]["nominal_pj"] == pytest.approx(0.9 * 18)
    assert {row["status"] for row in facts["counts"]["ledger"]} == {"counted", "free", "folded"}
    stepped = knarr(
        "energy", "alone_net:step", "--data", "x.npy", "--time-axis", "1", "--stepped", "--json"
    )
    assert json.loads(stepped.stdout)["counts"]["total"]["acc"] == 18


def test_an_onnx_file_is_counted_and_priced(knarr: Knarr, folder: Path) -> None:  # noqa: F811
    onnx_file(folder / "m.onnx", helper.make_node("Relu", ["h"], ["y"]))
    said = knarr("energy", "m.onnx")
    assert said.returncode == 0
    assert max(map(len, said.stdout.splitlines())) <= 80
    assert said.stdout.startswith("1 Where it runs")
    assert "edge GPU" in said.stdout
    assert "floor, v100 fp32" in said.stdout
    facts = json.loads(knarr("energy", "m.onnx", "--json").stdout)
    assert facts["counts"]["total"]["mac"] == 12
    assert facts["places"]["edge GPU, batch 1"]["total"]["unit"] == "J"
    assert list(facts["sha256"]) == ["m.onnx"]


def test_what_has_no_rule_ends_with_1_and_one_line(knarr: Knarr, folder: Path) -> None:  # noqa: F811
    """Names of a file are its author's words: no control character and no page of them reaches a terminal."""
    steering = "\x1b[2J" + "long " * 4000
    node = helper.make_node("Strange", ["h"], ["y"], name=steering, domain="com.example")
    onnx_file(folder / "m.onnx", node, domains=("com.example",))
    said = knarr("energy", "m.onnx")
    assert said.returncode == 1
    assert "\x1b" not in said.stdout + said.stderr
    assert len(said.stdout) < 2500
    assert "NOT COUNTED" in said.stdout
    bound = knarr("energy", "m.onnx", "--allow-partial")
    assert bound.returncode == 0
    assert "at least" in bound.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alone_net:network",), "--data: needed with a module"),
        (("alone_net:network", "--data", "x.npy", "--shape", "x=1"), "--shape"),
        (("alone_net:absent", "--data", "x.npy"), "has no 'absent'"),
        (("alone_net:network", "--data", "x.npy", "--batch-axis", "7"), "batch_axis: 7"),
        (("m.onnx", "--stepped"), "--stepped"),
        (("m.onnx", "--steps", "3"), "--steps"),
        (("absent.onnx",), "no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    knarr: Knarr,  # noqa: F811
    folder: Path,
) -> None:
    onnx_file(folder / "m.onnx", helper.make_node("Relu", ["h"], ["y"]))
    one_line(knarr("energy", *arguments), 2, message)
