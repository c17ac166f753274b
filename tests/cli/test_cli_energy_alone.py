"""`knarr energy` of one network alone: a torch module of one's own, and an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_cli import Result, knarr, one_line  # noqa: F401  (knarr is a fixture)

from knarr.hw_sim import count_onnx, price

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


def onnx_file(
    path: Path,
    *nodes: onnx.NodeProto,
    domains: tuple[str, ...] = (),
    kind: int = TensorProto.FLOAT,
) -> Path:
    weight = helper.make_tensor("w", kind, (4, 3), np.ones(12))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *nodes],
        "graph",
        [helper.make_tensor_value_info("x", kind, (1, 4))],
        [helper.make_tensor_value_info("y", kind, (1, 3))],
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


@pytest.mark.parametrize(
    ("level", "each", "precision", "energy"),
    [(0, 4.6, "fp32", "7.36 nJ"), (4, 0.3, "int8", "480 pJ")],
)
def test_weights_of_4_bits_are_counted_and_priced_as_such(
    level: int,
    each: float,
    precision: str,
    energy: str,
    knarr: Knarr,  # noqa: F811
    folder: Path,
) -> None:
    """Packed codes of onnxruntime: turned into floats, or multiplied as int8 (accuracy_level 4), at 45 nm.

    5 rows of 32 on 10 columns; a float layer of 10 x 3 stands behind it.
    """
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["h"], "packed", domain="com.microsoft",
            K=32, N=10, bits=4, block_size=32, accuracy_level=level,
        ),
        helper.make_node("MatMul", ["h", "v"], ["y"], "head"),
    ]  # fmt: skip
    stored = {
        "w": np.full((10, 1, 16), 0x99, np.uint8),
        "s": np.ones(10, np.float32),
        "v": np.ones((10, 3), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 5, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 5, 3))],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), "m.onnx")
    facts = json.loads(knarr("energy", "m.onnx", "--json").stdout)
    assert facts["counts"]["precision"] == {"packed": precision, "head": "fp32"}
    assert facts["counts"]["sizes"]["packed"]["weight_bits"] == 4
    assert facts["counts"]["layers"]["packed"]["mac"] == 5 * 32 * 10
    layers = facts["energy"]["layers_pj"]
    assert layers == pytest.approx({"packed": 1600 * each, "head": 150 * 4.6})
    assert facts["literature_formula"]["nominal_pj"] == pytest.approx(1750 * 4.6)
    said = knarr("energy", "m.onnx").stdout
    assert max(map(len, said.splitlines())) <= 80
    (row,) = (line.strip("│ ") for line in said.splitlines() if "4 bits" in line)
    cells = [cell.strip() for cell in row.split("│")]
    assert cells == ["packed", precision, "4 bits", energy]
    # Read from memory: 320 codes of 4 bits, of 64 bits a price that grows with the buffer (8 KB: 10 pJ).
    memory = json.loads(knarr("energy", "m.onnx", "--json", "--model", "memory").stdout)
    wide = count_onnx("m.onnx")
    words = {name: replace(size, weight_bits=None) for name, size in (wide.sizes or {}).items()}
    as_floats = price(replace(wide, sizes=words), "horowitz", model="memory")
    bits = 32 if precision == "fp32" else 8
    fetched = [10 * (320 * n / 8 / 8192) * n / 64 for n in (bits, 4)]
    saved = as_floats.layers_pj["packed"] - memory["energy"]["layers_pj"]["packed"]
    assert saved == pytest.approx(1600 * (fetched[0] - fetched[1]))


def test_a_precision_without_prices_is_said(knarr: Knarr, folder: Path) -> None:  # noqa: F811
    onnx_file(folder / "m.onnx", helper.make_node("Relu", ["h"], ["y"]), kind=TensorProto.DOUBLE)
    said = knarr("energy", "m.onnx")
    assert said.returncode == 0
    assert "priced as fp32 throughout" in said.stdout
    assert "computes in fp64" in " ".join(said.stdout.split())


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


def test_no_option_is_passed_over_in_silence(knarr: Knarr, folder: Path) -> None:  # noqa: F811
    onnx_file(folder / "m.onnx", helper.make_node("Relu", ["h"], ["y"]))
    (folder / "g.nir").touch()
    for option in ("--labels=y.npy", "--all", "--reuse=4", "--dt=1", "--pooling=float", "--hops=1"):
        said = knarr("energy", "m.onnx", option)
        one_line(said, 2, f"{option.partition('=')[0]}: does not go with one network alone")
    for option in ("--steps=3", "--stepped", "--time-axis=1"):
        said = knarr("energy", "g.nir", "--data", "x.npy", option)
        one_line(said, 2, f"{option.partition('=')[0]}: goes with MODULE:FACTORY; leave it out")


def test_energies_have_a_unit_and_no_exponent(knarr: Knarr, folder: Path) -> None:  # noqa: F811
    onnx_file(folder / "m.onnx", helper.make_node("Relu", ["h"], ["y"]))
    said = knarr("energy", "m.onnx").stdout
    # 12 multiplications in fp32 at 4.6 pJ.
    assert "55.2 pJ" in said
    assert "e-0" not in said
