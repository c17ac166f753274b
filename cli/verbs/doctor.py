"""`knarr doctor`: which backends work on this machine, and why others do not."""

from __future__ import annotations

import json as json_module
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from rich.table import Table

from knarr.cli.output import make_console
from knarr.deploy import LavaError, lava_python, run_on_lava, write_net
from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    choose_engine,
    compare,
    simulate,
)

LAVA_LIMIT_S = 120.0


@dataclass(frozen=True)
class Finding:
    """One backend: whether it works, whether knarr needs it, and what to do when it does not."""

    backend: str
    works: bool
    needed: bool
    note: str


def examine() -> list[Finding]:
    """Every backend, tried for real."""
    return [
        _python(),
        *(_package(name) for name in ("torch", "norse", "nir", "onnxruntime")),
        _reference(),
        _engine("fast", "compiled kernel"),
        _engine("torch", "no compiler needed,"),
        _lava(),
        _gpu(),
    ]


def print_findings(*, json: bool) -> bool:
    """Print the findings; returns whether everything that is needed works."""
    findings = examine()
    if json:
        print(json_module.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table()
        table.add_column("backend")
        table.add_column("works")
        table.add_column("note", overflow="fold")
        for finding in findings:
            works = "yes" if finding.works else ("NO" if finding.needed else "no")
            table.add_row(finding.backend, works, finding.note)
        make_console().print(table)
    return all(finding.works for finding in findings if finding.needed)


def _python() -> Finding:
    ours = sys.version_info[:2] == (3, 10)
    return Finding(
        "Python",
        ours,
        True,
        f"{sys.version.split()[0]}" + ("" if ours else "; Lava-DL 0.6 needs 3.10"),
    )


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, True, f"not installed; pip install {name}")


def _tiny_network() -> ChipNetwork:
    rng = np.random.default_rng(0)
    hidden = Dense(
        "hidden", rng.integers(-60, 64, (5, 6), dtype=np.int32), Neuron(4096, 512, 40, "lif")
    )
    output = Dense(
        "output", rng.integers(-30, 64, (3, 5), dtype=np.int32), Neuron(4096, 512, 30, "lif_out")
    )
    return ChipNetwork((hidden, output), InputCoding((6,)), Readout("spikes"))


def _reference() -> Finding:
    inputs = np.random.default_rng(1).integers(0, 2, (2, 16, 6))
    spikes = int(
        simulate(_tiny_network(), inputs, engine="reference", record=("output", "spikes"))
        .spikes["hidden"]
        .sum()
    )
    return Finding("reference engine", spikes > 0, True, f"{spikes} spikes in a tiny network")


def _engine(name: str, note: str) -> Finding:
    """One of the fast engines, proved against the reference on this machine."""
    try:
        engine = choose_engine(name)
    except ChipError as error:
        return Finding(f"{name} engine", False, False, str(error).removeprefix("engine: "))
    inputs = np.random.default_rng(1).integers(0, 2, (2, 16, 6))
    record = ("output", "spikes", "u", "v")
    ours, other = (
        simulate(_tiny_network(), inputs, record=record, engine=each)  # type: ignore[arg-type]
        for each in (name, "reference")
    )
    if compare(ours, other):
        return Finding(
            f"{name} engine", False, False, "differs from the reference engine; report it"
        )
    note += f" {engine.description}"
    taken = "; engine auto takes it" if choose_engine("auto").name == name else ""
    return Finding(f"{name} engine", True, False, f"{note}{taken}")


def _lava() -> Finding:
    inputs = np.random.default_rng(1).integers(0, 2, (2, 16, 6))
    record = ("output", "spikes")
    try:
        with tempfile.TemporaryDirectory(prefix="knarr-doctor-") as folder:
            path = Path(folder) / "tiny.net"
            write_net(_tiny_network(), path)
            lava = run_on_lava(path, inputs, record=record, timeout_s=LAVA_LIMIT_S)
        differences = compare(simulate(_tiny_network(), inputs, record=record), lava)
        spikes = sum(int(layer.sum()) for layer in lava.spikes.values())
    except LavaError as error:
        return Finding("Lava simulator", False, False, f"{error} (interpreter {lava_python()})")
    if differences:
        return Finding("Lava simulator", False, False, f"differs from ours: {differences[0]}")
    if spikes == 0:
        return Finding(
            "Lava simulator", False, False, "nothing fired, so being equal to ours means nothing"
        )
    return Finding("Lava simulator", True, False, f"{spikes} spikes, equal to ours")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("CUDA", True, False, torch.cuda.get_device_name(0))
    try:
        subprocess.run(
            ["nvidia-smi"], capture_output=True, timeout=20, check=True, env=dict(os.environ)
        )
    except (OSError, subprocess.SubprocessError):
        return Finding(
            "CUDA", False, False, "no NVIDIA GPU or driver found; training runs on the CPU"
        )
    return Finding(
        "CUDA", False, False, f"there is a GPU, but torch {torch.__version__} cannot use its driver"
    )
