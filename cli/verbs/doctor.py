"""The checks of `knarr doctor`: which backends work on this machine, and why others do not.

A module of its own, since it imports every backend and the other verbs must not.
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np

from knarr.cli.output import make_table, show
from knarr.deploy import LavaError, lava_python, run_on_lava, write_net
from knarr.extras import MissingExtraError, cure
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

LAVA_LIMIT_S: Final = 120.0
# States too: spikes alone may agree by luck.
RECORD: Final = ("output", "spikes", "u", "v")
Verdict = tuple[bool, str]
"""(does it work, how it works or what to do about it)."""
Check = Callable[[], Verdict]

_RANDOM = np.random.default_rng(0)
_HIDDEN = Neuron(4096, 512, 40, "lif")
_OUTPUT = Neuron(4096, 512, 30, "lif_out")
TINY: Final = ChipNetwork(
    (
        Dense("hidden", _RANDOM.integers(-60, 64, (5, 6), dtype=np.int32), _HIDDEN),
        Dense("output", _RANDOM.integers(-30, 64, (3, 5), dtype=np.int32), _OUTPUT),
    ),
    InputCoding((6,)),
    Readout("spikes"),
)
"""A network that fires, so that being equal means something."""
INPUTS: Final = np.random.default_rng(1).integers(0, 2, (2, 16, 6))


def print_findings(*, json: bool) -> bool:
    """Try every backend for real and print what was found.

    Returns:
        Whether everything that knarr needs works.
    """
    needed: dict[str, Check] = {
        "Python": _check_python,
        "nir": partial(_check_package, "nir"),
        "reference engine": _check_reference,
    }
    # Packages of an extra each, which a user may do without.
    extras = ("torch", "norse", "onnxruntime", "matplotlib", "lightning")
    optional: dict[str, Check] = {
        **{name: partial(_check_package, name) for name in extras},
        "fast engine": partial(_check_engine, "fast", "compiled kernel"),
        "torch engine": partial(_check_engine, "torch", "no compiler needed,"),
        "Lava simulator": _check_lava,
        "CUDA": _check_gpu,
    }
    verdicts = {backend: check() for backend, check in {**needed, **optional}.items()}
    if json:
        facts = [
            {"backend": backend, "works": works, "needed": backend in needed, "note": note}
            for backend, (works, note) in verdicts.items()
        ]
        print(json_module.dumps(facts, indent=2))
    else:
        table = make_table("", "backend", "works", "note", left=3, fold=("note",))
        for backend, (works, note) in verdicts.items():
            no = "NO" if backend in needed else "no"
            table.add_row(backend, "yes" if works else no, note)
        show(table)
    return all(verdicts[backend][0] for backend in needed)


def _check_python() -> Verdict:
    found = sys.version.split()[0]
    works = sys.version_info >= (3, 11)
    return works, found if works else f"{found}; knarr needs 3.11 or newer"


def _check_package(name: str) -> Verdict:
    try:
        return True, version(name)
    except PackageNotFoundError:
        return False, cure(name)


def _check_reference() -> Verdict:
    recording = simulate(TINY, INPUTS, engine="reference", record=RECORD)
    spikes = int(recording.spikes["hidden"].sum())
    return spikes > 0, f"{spikes} spikes in a tiny network"


def _check_engine(name: str, note: str) -> Verdict:
    """Prove one of the fast engines against the reference on this machine."""
    try:
        engine = choose_engine(name)
    # The engine says itself what it lacks on this machine.
    except ChipError as error:
        return False, str(error).removeprefix("engine: ")
    ours, theirs = (
        simulate(TINY, INPUTS, record=RECORD, engine=each)  # type: ignore[arg-type]
        for each in (name, "reference")
    )
    if compare(ours, theirs):
        return False, "differs from the reference engine; report it"
    taken = "; engine auto takes it" if choose_engine("auto").name == name else ""
    return True, f"{note} {engine.description}{taken}"


def _check_lava() -> Verdict:
    record = ("output", "spikes")
    try:
        with tempfile.TemporaryDirectory(prefix="knarr-doctor-") as folder:
            path = Path(folder) / "tiny.net"
            write_net(TINY, path)
            lava = run_on_lava(path, INPUTS, record=record, timeout_s=LAVA_LIMIT_S)
    except LavaError as error:
        return False, f"{error} (interpreter {lava_python()})"
    differences = compare(simulate(TINY, INPUTS, record=record), lava)
    if differences:
        return False, f"differs from ours: {differences[0]}"
    spikes = sum(int(layer.sum()) for layer in lava.spikes.values())
    if spikes == 0:
        return False, "nothing fired, so being equal to ours means nothing"
    return True, f"{spikes} spikes, equal to ours"


def _check_gpu() -> Verdict:
    try:
        import torch
    except MissingExtraError as error:
        return False, str(error)
    if torch.cuda.is_available():
        return True, torch.cuda.get_device_name(0)
    # torch says the same of a machine without a GPU and of a driver too old for it.
    try:
        subprocess.run(["nvidia-smi"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False, "no NVIDIA GPU or driver found; training runs on the CPU"
    return False, f"there is a GPU, but torch {torch.__version__} cannot use its driver"
