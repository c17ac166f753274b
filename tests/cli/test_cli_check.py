"""knarr check: whether a network will export, lower and fit, with every reason why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from knarr.cli import main

MODULE = """
import norse.torch as snn
import torch
from torch import nn

BOX = snn.LIFBoxParameters(v_th=torch.tensor(0.05))

def good(input_shape, dt_s=None):
    torch.manual_seed(0)
    assert input_shape == (1, 6, 6)
    assert dt_s is not None
    return snn.SequentialState(
        nn.Conv2d(1, 3, 3), snn.LIFBoxCell(BOX), nn.Flatten(), nn.Linear(48, 4), snn.LIFBoxCell(BOX)
    )

def resting():
    torch.manual_seed(0)
    above = snn.LIFBoxParameters(v_th=torch.tensor(0.05), v_leak=torch.tensor(0.02))
    return snn.SequentialState(
        nn.Linear(6, 5), snn.LIFBoxCell(above), nn.Linear(5, 2), snn.LIFBoxCell(above)
    )

def silent():
    net = snn.SequentialState(nn.Linear(6, 5, bias=False), snn.LIFBoxCell())
    nn.init.constant_(net[0].weight, 0.001)
    return net

def faulty():
    return snn.SequentialState(
        nn.Linear(6, 6), snn.LIFBoxCell(snn.LIFBoxParameters(v_th=1.0)), nn.Linear(7, 6), snn.LIFBoxCell(dt=0.002)
    )

def unknown():
    return snn.SequentialState(nn.Linear(6, 6), snn.LSNNCell(), nn.Linear(6, 6), snn.LIFRefracCell())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mychecked.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mychecked", raising=False)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, " ".join(printed.err.split())


def test_a_network_that_will_go(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "mychecked:good", "--input-shape", "1,6,6")
    assert (status, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "It will go to the chip." in out
    assert "2 layers of integers" in out
    assert "cores by" not in out
    status, out, _ = call(capsys, "mychecked:good", "--input-shape", "1,6,6", "--json")
    facts = json.loads(out)
    assert (status, facts["holds"], facts["not_exported"]) == (0, True, [])
    assert [layer["name"] for layer in facts["placement"]["layers"]] == ["conv_0", "linear_3"]


def test_every_reason_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "mychecked:faulty", "--input-shape", "6", "--json")
    first, second, third = json.loads(out)["not_exported"]
    assert status == 1
    assert "module '1': v_th is a float" in first
    assert "module '2': receives (6,), needs (7,)" in second
    assert "module '3': its dt is 0.002 s" in third
    status, out, _ = call(capsys, "mychecked:unknown", "--input-shape", "6")
    assert status == 1
    said = " ".join(out.split())
    assert "module '1': LSNNCell cannot be exported" in said
    assert "module '3': LIFRefracCell cannot be exported" in said
    assert "It will NOT go to the chip as it is." in said


def test_near_forms_are_told_for_every_layer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("mychecked:resting", "--input-shape", "6", "--json")
    status, out, _ = call(capsys, *arguments)
    facts = json.loads(out)
    assert (status, len(facts["approximations"])) == (1, 2)
    status, out, _ = call(capsys, *arguments, "--allow-approximate")
    assert (status, json.loads(out)["holds"]) == (0, True)


def test_silence_is_said_and_no_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "mychecked:silent", "--input-shape", "6")
    assert "node 'lif_1': silent on random inputs" in " ".join(out.split())
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mychecked:good", "--input-shape", "1,x"], "write sizes with commas"),
        (["mychecked:good", "--input-shape", "0,6,6"], "every size is a positive whole number"),
        (["mychecked:god", "--input-shape", "6"], "module 'mychecked' has no 'god'; write good"),
        (["mychecked", "--input-shape", "6"], "write package.module:function"),
        (["mychecked:good", "--input-shape", "1,6,6", "--dt", "0"], "dt_s: 0"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert words in err
