"""Runs of an older knarr: whatever verb opens one, the answer is one line with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from test_cli import Result, knarr, net, one_line  # noqa: F401  (fixtures)

from knarr.pipeline.run_folder import LATER_FILES

Knarr = Callable[..., Result]

# As commit 0f53bde wrote it: no format, and settings that are there no more.
CONFIG = """\
recipe:
  name: eyes
  system: cnn
  seed: 0
  threads: 2
  data: {kind: eyes, validation_fraction: 0.1667, timesteps: 24, size: 48, frames_per_s: 30.0, subjects: 40,
    takes_per_emotion: 2, seed: 0, teacher_bins: 4, shift_px: 3}
  teacher:
    fit: {epochs: 40, batch_size: 32, learning_rate: 0.004, weight_decay: 0.001, processes: 1, optimiser: adamw,
      momentum: 0.9, amsgrad: false, schedule: one_cycle, decay: 0.94, patience: null, select: last, precision: full,
      tensorboard: false}
    width: 16
    dropout: 0.5
    label_smoothing: 0.1
  student:
    fit: {epochs: 26, batch_size: 32, learning_rate: 0.01, weight_decay: 0.001, processes: 1, optimiser: adamw,
      momentum: 0.9, amsgrad: false, schedule: one_cycle, decay: 0.94, patience: null, select: last, precision: full,
      tensorboard: false}
    channels: [16, 32]
    first_padding: 1
    tau_mem_s: 0.0667
    tau_readout_s: 0.2667
    logit_scale: 8.0
    kd_alpha: 0.5
    kd_temperature: 3.0
  deploy: {weight_bits: 8, lava_samples: 4, calibration_samples: 20, allow_approximate: false}
  chip: null
data_sha256: 2:6cd874b6d92578ffe149905e15381879b8a95d87062928f28e1e4715d4851317
data_root: eyes-48px-24f-40p-2t-0
cache: data
"""
WORDS = ("made by an older knarr (no format in config.yaml)", "make it again with `knarr pipeline")


@pytest.fixture(params=["finished", "begun", "nothing fitted"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run of the older version, as far as it came."""
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (tmp_path / "eyes-48px-24f-40p-2t-0").mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    if request.param != "nothing fitted":
        (folder / "teacher.safetensors").touch()
    if request.param == "finished":
        for name in (*LATER_FILES, "accuracy.json", "student.net", "energy.json"):
            (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "RUN"],
        ["verify", "RUN"],
        ["energy", "RUN"],
        ["energy", "RUN", "--profile", "horowitz_int8"],
        ["energy", "tiny.net", "--data", "RUN"],
        ["simulate", "tiny.net", "--data", "RUN"],
        ["report", "RUN"],
        ["export", "RUN"],
        ["deploy", "RUN"],
        ["train", "eyes", "--out", "RUN"],
        ["pipeline", "eyes", "--out", "RUN"],
        ["pareto", "eyes", "--out", "PARETO"],
    ],
)
def test_every_verb_says_so_in_one_line(
    knarr: Knarr,  # noqa: F811
    net: Path,  # noqa: F811
    older: Path,
    tmp_path: Path,
    arguments: list[str],
) -> None:
    if "PARETO" in arguments:
        older = older.rename(older.parent / "float")
    places = {"RUN": older, "PARETO": older.parent}
    before = {path: path.stat().st_mtime_ns for path in older.rglob("*")}
    result = knarr(*(places.get(argument, argument) for argument in arguments))
    one_line(result, 2, f"{older.name}: ", *WORDS)
    assert {path: path.stat().st_mtime_ns for path in older.rglob("*")} == before
    assert not list(older.parent.glob("data/*")), "data were generated for nothing"


def test_a_row_of_a_table_says_so(knarr: Knarr, tmp_path: Path) -> None:  # noqa: F811
    grid = {
        "name": "small",
        "title": "t",
        "recipe": "eyes",
        "seeds": [0],
        "rows": [{"name": "as it is"}],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(grid))
    folder = tmp_path / "runs" / "grids" / "small" / "as-it-is" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "evaluation.json").write_text(json.dumps({"format": 1}))
    one_line(knarr("table", "small.yaml"), 2, "seed-0: ", *WORDS)


def test_a_run_of_another_format_is_not_called_older(knarr: Knarr, older: Path) -> None:  # noqa: F811
    (older / "config.yaml").write_text("format: 7\n" + CONFIG)
    one_line(knarr("report", older), 2, "made by another knarr (format 7 in config.yaml)")
