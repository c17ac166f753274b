"""Float targets (two steering angles) in what compares many runs: sweeps, tables, Pareto searches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knarr.cli import main
from knarr.pipeline import StudyError, pareto, sweep, table
from knarr.pipeline.studies.grid import GridError

NETWORKS = """
import norse.torch as snn
import torch
from torch import nn

def student(outputs, dt_s, hidden=8):
    torch.manual_seed(3)
    lif = snn.LIFBoxParameters(tau_mem_inv=torch.tensor(0.2 / dt_s), v_th=torch.tensor(0.05))
    readout = snn.LIBoxParameters(tau_mem_inv=torch.tensor(0.25 / dt_s))
    return snn.SequentialState(
        nn.Linear(4, hidden, bias=False), snn.LIFBoxCell(lif, dt=dt_s),
        nn.Linear(hidden, outputs, bias=False), snn.LIBoxCell(readout, dt=dt_s))
"""
RECIPE = """
name: steering
system: custom
data: {kind: arrays, train: train.npz, test: test.npz, dt_s: 0.001, targets: [left, right]}
student: {network: steernets:student, fit: {epochs: 2, learning_rate: 0.05, select: val}}
chip: {weight_bits: 6, epochs: 1}
deploy: {lava_samples: 1}
"""
SWEEP = """
name: tried
recipe: steering.yaml
trials: 2
metric: validation_mae
search: {student.arguments.hidden: {values: [4, 8]}}
"""
TABLE = """
name: both
title: Steering
recipe: steering.yaml
seeds: [0]
columns: [mae, rmse, mae/left]
rows: [{name: student}, {name: its chip, runs_of: student, network: chip}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, clips in (("train", 60), ("test", 20)):
        inputs = rng.random((clips, 6, 4)) < rng.random((clips, 1, 4))
        labels = inputs[:, :, :2].mean(axis=1) - 0.5
        np.savez(tmp_path / f"{name}.npz", inputs=inputs, labels=labels, groups=np.arange(clips) // 4 + 1000 * len(name))  # fmt: skip
    for name, text in (("steernets.py", NETWORKS), ("steering.yaml", RECIPE), ("tried.yaml", SWEEP), ("both.yaml", TABLE)):  # fmt: skip
        (tmp_path / name).write_text(text)
    return tmp_path


def test_sweeps_find_the_smaller_error(folder: Path) -> None:
    found = sweep(folder / "tried.yaml", out=folder / "sweep")
    errors = {trial.parameters["student.arguments.hidden"]: trial.value for trial in found.trials}
    assert set(errors) == {4, 8}
    assert all(0 < error < 0.5 for error in errors.values())
    assert found.best is not None
    assert found.best.value == min(errors.values())
    wrong = folder / "wrong.yaml"
    wrong.write_text(SWEEP.replace("validation_mae", "validation_accuracy"))
    with pytest.raises(StudyError, match="float targets"):
        sweep(wrong, out=folder / "other")


def test_tables_have_errors_in_the_unit_of_the_targets(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = table(str(folder / "both.yaml"), out=folder / "grids", fit=True)
    with pytest.raises(SystemExit) as caught:
        main(["table", str(folder / "both.yaml"), "--out", str(folder / "grids")])
    assert int(caught.value.code or 0) == 0
    assert "mean absolute error" in capsys.readouterr().out
    for row in found.summary.rows:
        assert row.finished == row.wanted == 1
        assert set(row.rates) == {"mae", "rmse", "mae/left"}
        for rate in row.rates.values():
            assert rate is not None
            assert 0 < rate.value < 0.5
    wrong = folder / "wrong.yaml"
    wrong.write_text(TABLE.replace("[mae, rmse, mae/left]", "[war]"))
    with pytest.raises(GridError, match="float targets"):
        table(str(wrong), out=folder / "grids")


def test_a_pareto_search_weighs_errors_against_energy(folder: Path) -> None:
    found = pareto(str(folder / "steering.yaml"), bits=(8, 4), steps=(6,), out=folder / "search")  # fmt: skip
    assert len(found.points) == 2
    for point in found.points:
        validation = point.facts["validation"]
        assert 0 < validation["mae"] < 1
        assert point.accuracy == -validation["mae"]
    best = min(found.points, key=lambda point: point.facts["validation"]["mae"])
    assert best.front
    assert "mae" in found.facts["float_validation"]
