"""Shared fixtures: where real data lies, a small trained run, and which skips are allowed."""

from __future__ import annotations

import os

# Before torch: idle threads that spin slow a busy two-core machine tenfold (the knarr command sets it too).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import norse.torch as snn
import numpy as np
import pytest
import torch
from hypothesis import settings
from shared_pieces import real_data
from torch import nn

ALLOWED_SKIPS = (
    # The fast engine's kernel is optional, and so are the instructions it can use.
    "no C compiler on this machine",
    "this processor has no such instructions",
    # Energy of a GPU is measured where there is one.
    "no NVIDIA GPU:",
    # The real recordings are not part of the project; tests name them when they are not beside it.
    "real data not found",
)

LONG_FILES = (
    "train/test_ddp.py",
    "deploy/test_kill.py",
    "pipeline/test_sweep.py",
    "hw_sim/counting/test_count_oracle.py",
    "pipeline/test_crossing.py",
    "deploy/test_lava.py",
    "deploy/test_install.py",
    "pipeline/test_from_python.py",
    "pipeline/test_chip_fit.py",
    "pipeline/test_shared_study.py",
    "export/test_export_grid.py",
    "hw_sim/counting/test_architectures.py",
    "deploy/test_slayer.py",
    "pipeline/test_stress_line.py",
)
"""Files of tests that take longest, begun first: one begun last would keep a single worker busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get(
        "KNARR_STRICT_SKIPS"
    ):  # the same examples at every commit; elsewhere new ones are looked for
        settings.register_profile("repeatable", derandomize=True)
        settings.load_profile("repeatable")
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if (
        not report.skipped
        or not os.environ.get("KNARR_STRICT_SKIPS")
        or hasattr(report, "wasxfail")
    ):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid}: skipped for a reason that is not listed in tests/conftest.py: {reason}"
        )


@pytest.fixture(scope="session")
def nmnist_root() -> Path:
    """The folder of real N-MNIST recordings, from KNARR_SHARED_DATA or beside the project."""
    return real_data("nmnist_small")


DT_S = 0.001


def lif_box(decay: float = 0.25, v_th: float = 0.5) -> snn.LIFBoxCell:
    parameters = snn.LIFBoxParameters(
        tau_mem_inv=torch.tensor(decay / DT_S), v_th=torch.tensor(v_th)
    )
    return snn.LIFBoxCell(parameters, dt=DT_S)


def lif_cuba(decay_syn: float = 0.5, decay_mem: float = 0.25, v_th: float = 0.5) -> snn.LIFCell:
    parameters = snn.LIFParameters(
        tau_syn_inv=torch.tensor(decay_syn / DT_S),
        tau_mem_inv=torch.tensor(decay_mem / DT_S),
        v_th=torch.tensor(v_th),
    )
    return snn.LIFCell(parameters, dt=DT_S)


def li_box(decay: float = 0.125) -> snn.LIBoxCell:
    return snn.LIBoxCell(p=snn.LIBoxParameters(tau_mem_inv=torch.tensor(decay / DT_S)), dt=DT_S)


def conv_student(seed: int = 0, gain: float = 6.0) -> snn.SequentialState:
    """Bias, both kinds of LIF, padding, stride and two pools on (2, 18, 18); fires on random input."""
    torch.manual_seed(seed)
    student = snn.SequentialState(
        nn.Conv2d(2, 4, 4, stride=2),
        lif_box(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        lif_cuba(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5, bias=False),
        li_box(),
    )
    with torch.no_grad():
        for parameter in student.parameters():
            parameter *= gain
    return student.eval()


@pytest.fixture(scope="session")
def cells() -> SimpleNamespace:
    """Builders of small Norse modules; `dt_s` is their time step, seconds."""
    return SimpleNamespace(
        dt_s=DT_S, lif_box=lif_box, lif_cuba=lif_cuba, li_box=li_box, conv_student=conv_student
    )


@pytest.fixture
def student() -> snn.SequentialState:
    return conv_student()


@pytest.fixture
def spikes() -> np.ndarray:
    """(4, 20, 2, 18, 18) random 0 and 1."""
    return (np.random.default_rng(7).random((4, 20, 2, 18, 18)) < 0.2).astype(np.uint8)
