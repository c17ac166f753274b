"""Measured energy: the arithmetic and the protocol on a simulated machine, every refusal, and the real parts that exist here."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from shared_pieces import write_onnx
from torch import nn

from knarr.export.onnx_files import to_onnx
from knarr.hw_sim.counting.counts import LedgerRow, OperationCounts
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.hw_sim.energy import load_profile
from knarr.hw_sim.energy.baseline import LABEL, Floor, baseline, gpu_floors
from knarr.hw_sim.energy.measure.cpu import measure_cpu
from knarr.hw_sim.energy.measure.gpu import measure_gpu
from knarr.hw_sim.energy.measure.meters import ZeusMeter, open_cpu, open_gpu
from knarr.hw_sim.energy.measure.protocol import (
    BatchMeasurement,
    Clock,
    MeasuredWindow,
    MeasureError,
    MeasurementPlan,
    integrate_j,
    macs_of,
    measure_batch,
    per_mac_pj,
    spread,
)
from knarr.hw_sim.energy.measure.workload import (
    MAX_BATCHES,
    OnnxSource,
    OnnxWorkload,
    read_source,
    require_provider,
    split,
)
from knarr.hw_sim.errors import ChipError, CountError

RUN_S = 0.01
IDLE_W, LOAD_W = 100.0, 400.0


@dataclass
class World:
    """A machine in which time passes only when somebody sleeps or runs: clock, GPU and load in one."""

    time_s: float = 0.0
    energy_j: float = 1000.0
    run_s: float = RUN_S
    idle_w: Callable[[float], float] = lambda time_s: IDLE_W
    load_w: float = LOAD_W
    polled_factor: float = 1.0
    gpus: int = 1
    mig: bool = False
    pids: set[int] = field(default_factory=set)
    own_pid: int | None = field(default_factory=os.getpid)
    frozen: bool = False
    interrupt_at_s: float = float("inf")
    opened: int = 0
    running: bool = False
    queued: float = 0.0  # part of a run that is still to come when the call returns
    queue_s: float = 0.0
    batches: list[int] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)
    batch: int = 1

    def passes(self, seconds: float, watts: float) -> None:
        self.time_s += seconds
        self.energy_j += 0 if self.frozen else seconds * watts

    # Clock
    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.running = False
        self.passes(seconds, self.idle_w(self.time_s))

    # Workload
    def run(self) -> None:
        if self.time_s >= self.interrupt_at_s:
            raise KeyboardInterrupt
        if self.own_pid is not None:
            self.pids.add(self.own_pid)
        self.running = True
        run_s = self.run_s * self.batch**0.5
        self.queue_s += self.queued * run_s
        self.passes((1 - self.queued) * run_s, self.load_w)

    def synchronise(self) -> None:
        self.passes(self.queue_s, self.load_w)
        self.queue_s = 0.0

    def workload(
        self,
        source: OnnxSource,
        inputs: Any,
        batch: int,
        provider: str,
        *,
        ordinal: int,
        tf32: bool,
    ) -> World:
        assert provider == "CUDAExecutionProvider"
        self.batch = batch
        self.batches.append(batch)
        self.ordinals.append(ordinal)
        return self

    # zeus
    def open(self, index: int) -> ZeusMeter:
        self.opened += 1
        return open_gpu(index, FakeZeus(gpus=[FakeGpu(self) for _ in range(self.gpus)]))


@dataclass
class FakeGpu:
    """A GPU of zeus, by its names and units."""

    handle: World
    counts: bool = True

    def get_name(self) -> str:
        return "Simulated GPU"

    def supports_get_total_energy_consumption(self) -> bool:
        return self.counts

    def get_total_energy_consumption(self) -> int:
        return round(self.handle.energy_j * 1e3)

    def get_instant_power_usage(self) -> int:
        world = self.handle
        watts = world.load_w if world.running else world.idle_w(world.time_s)
        return round(watts * 1e3 * world.polled_factor)

    def get_power_management_limit(self) -> int:
        return 700_000

    def get_gpu_temperature(self) -> int:
        return 66 if self.handle.running else 40


FakeGpu.__module__ = "zeus.device.gpu.nvidia"


class FakeZeus:
    """The three functions of zeus that are used; what is not there raises as zeus does."""

    def __init__(
        self,
        gpus: list[Any] | None = None,
        cpus: list[Any] | None = None,
        chip: Any = None,
    ) -> None:
        self.gpus, self.cpus, self.chip = gpus, cpus, chip

    def get_gpus(self) -> Any:
        if self.gpus is None:
            raise RuntimeError("NVML and AMDSMI unavailable.")
        return SizedGpus(self.gpus)

    def get_cpus(self) -> Any:
        if self.cpus is None:
            raise RuntimeError("RAPL unavailable.")
        return SimpleNamespace(cpus=self.cpus)

    def get_soc(self) -> Any:
        if self.chip is None:
            raise RuntimeError("No observable SoC was found.")
        return self.chip


@dataclass
class SizedGpus:
    gpus: list[Any]

    def __len__(self) -> int:
        return len(self.gpus)


class FakePynvml:
    """Processes and partitions, which zeus does not tell; a handle is the simulated machine."""

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetMigMode(self, handle: World) -> list[int]:  # noqa: N802
        return [int(handle.mig), 1]  # current, and pending

    def nvmlDeviceGetComputeRunningProcesses(self, handle: World) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in handle.pids]


@pytest.fixture(autouse=True)
def _pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakePynvml())


@pytest.fixture(autouse=True)
def _no_cuda_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    ).eval()
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    to_onnx(module, (2, 4, 4), path)
    return path


PADDED = 4 * 4 * 3 * 2 * 9 + 48 * 5


@pytest.fixture(scope="module")
def fixed_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    def export(batch: int) -> Path:
        path = tmp_path_factory.mktemp("onnx") / f"fixed{batch}.onnx"
        write_onnx(nn.Linear(4, 2).eval(), (torch.zeros(batch, 4),), path)
        return path

    return export


@pytest.fixture(scope="module")
def samples() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(3).random((5, 2, 4, 4), dtype=np.float32)


def measured(world: World, path: Path, inputs: Any, **options: Any) -> Any:
    return measure_gpu(
        path, inputs, open_meter=world.open, make_workload=world.workload, clock=world, **options
    )


# Floors


def floor_of(counts: OperationCounts, device: str, precision: str) -> Floor:
    floors = {(floor.device, floor.precision): floor for floor in gpu_floors(counts)}
    return floors[device, precision]


def test_floors_are_twice_tdp_over_peak() -> None:
    rows = [record.id.rpartition("_")[::2] for record in load_profile("gpu_floor").prices]
    assert len(rows) == 10
    devices = {"v100", "a100_sxm", "h100_sxm_h200", "agx_orin", "orin_nano", "orin_nano_super"}
    assert {device for device, _ in rows} == devices
    for record in load_profile("gpu_floor").prices:
        found = re.match(r"([\d.]+) W and ([\d.]+) T operations per second, dense;", record.note)
        assert found is not None
        watts, tera = map(float, found.groups())
        assert record.nominal == pytest.approx(2 * watts / tera, rel=1e-4)


def test_a_floor_is_labelled_and_counts_padded_multiplications(onnx_file: Path) -> None:
    counts = count_onnx(onnx_file)
    floor = floor_of(counts, "v100", "fp32")
    assert floor.macs_dense_padded == PADDED == counts.total.dense_padded > counts.total.dense_valid
    assert floor.floor_j == pytest.approx(PADDED * 38.2166e-12)
    assert (floor.grade, floor.label) == ("D", "a bound at 100 % utilisation, never consumption")
    assert (
        floor.source == "vendor datasheet, as copied: 300 W and 15.7 T operations per second, dense"
    )
    ids = [record.id for record in load_profile("gpu_floor").prices]
    assert [f"{row.device}_{row.precision}" for row in gpu_floors(counts)] == ids
    assert json.loads(json.dumps(floor.to_json()))["floor_j"] == floor.floor_j


def test_no_floor_of_what_was_not_counted() -> None:
    counts = OperationCounts({}, (LedgerRow("n", "Erf", "unsupported", "no rule"),), 0, 1, "ann")
    with pytest.raises(CountError, match="no total: 'n'"):
        gpu_floors(counts)
    with pytest.raises(CountError, match="no total: 'n'"):
        macs_of(counts)


# Arithmetic

WINDOW = MeasuredWindow(
    batch=4,
    runs=250,
    duration_s=10.0,
    energy_j=4000.0,
    idle_before_w=90.0,
    idle_after_w=110.0,
    polled_j=4200.0,
)


def test_gross_and_net_of_a_window() -> None:
    assert WINDOW.inferences == 1000
    assert WINDOW.idle_w == 100.0
    assert WINDOW.power_w == 400.0
    assert WINDOW.gross_j == 4.0
    assert WINDOW.net_j == 3.0  # (4000 - 100 * 10) / 1000
    assert WINDOW.run_ms == 40.0
    assert WINDOW.idle_drift == pytest.approx(20 / 90)
    assert WINDOW.polled_difference == pytest.approx(0.05)
    assert replace(WINDOW, polled_j=None).polled_difference is None
    assert replace(WINDOW, energy_j=500.0).net_j == -0.5  # shown, not clamped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"energy_j": 0.0},
            r"window: energy 0\.0 J, needs more than 0; the energy counter stands still",
        ),
        ({"energy_j": -3.0}, r"window: energy -3\.0 J"),
        ({"energy_j": float("nan")}, "window: energy nan J"),
        ({"idle_before_w": 0.0}, r"window: idle power before 0\.0 W"),
        ({"idle_after_w": -1.0}, r"window: idle power after -1\.0 W"),
        ({"duration_s": 0.0}, r"window: lasted 0\.0 s"),
        ({"duration_s": float("inf")}, "window: lasted inf s"),
        ({"runs": 0}, "window: 0 runs of batch 4"),
        ({"batch": 0}, "window: 250 runs of batch 0"),
    ],
)
def test_a_window_that_cannot_be_energy_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        replace(WINDOW, **change)


def test_spread_and_energy_per_multiplication() -> None:
    found = spread([1.0, 2.0, 6.0])
    assert (found["mean"], found["lo"], found["hi"]) == (3.0, 1.0, 6.0)
    # ((2)^2 + 1 + 3^2) / 2, and a root is rounded.
    assert found["std"] == pytest.approx(7**0.5)
    assert per_mac_pj(4.0, 2e12) == 2.0
    assert per_mac_pj(4.0, None) is None
    assert per_mac_pj(4.0, 0.0) is None
    assert integrate_j([(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)]) == 15.0 + 40.0
    with pytest.raises(MeasureError, match=r"windows: of batches \[4\], needs two or more"):
        BatchMeasurement((WINDOW,), 0)
    with pytest.raises(MeasureError, match=r"windows: of batches \[4, 8\]"):
        BatchMeasurement((WINDOW, replace(WINDOW, batch=8)), 0)


def test_notes_of_a_batch() -> None:
    steady = replace(WINDOW, idle_before_w=100.0, idle_after_w=105.0)
    assert steady.idle_drift == 0.05
    assert (
        BatchMeasurement((steady, steady), 0).notes == ()
    )  # 5 % drift and 5 % difference are allowed
    bad = replace(steady, idle_after_w=106.0, polled_j=3000.0, energy_j=900.0)
    bad = replace(bad, polled_j=900.0 * 0.85)
    notes = BatchMeasurement((steady, bad), 1).notes
    assert len(notes) == 3
    assert "idle power drifts by 6% (> 5%)" in notes[0]
    assert "differs from the energy counter by -15% (> 10%)" in notes[1]
    assert "net_j below 0 is noise" in notes[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 7.99}, r"window_s: 7\.99, needs at least 8 s"),
        ({"window_s": float("nan")}, "window_s: nan"),
        ({"window_s": float("inf")}, "window_s: inf"),
        ({"window_s": 5.0}, r"window_s: 5\.0, needs at least 8 s"),
        ({"repeats": 2}, "repeats: 2, needs at least 3"),
        ({"repeats": 1}, "repeats: 1, needs at least 3"),
        ({"repeats": 3.0}, r"repeats: 3\.0"),
        ({"warm_up_s": 0.5}, r"warm_up_s: 0\.5, needs at least 1 s"),
        ({"settle_s": 0.0}, r"settle_s: 0\.0"),
        ({"idle_s": 1.0}, r"idle_s: 1\.0, needs at least 2 s"),
        ({"poll_s": 0.0}, r"poll_s: 0\.0"),
    ],
)
def test_a_plan_that_sensors_cannot_follow_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MeasureError, match=message):
        MeasurementPlan(**options)


# The protocol on a simulated GPU


def test_joules_per_inference_on_a_simulated_gpu(
    onnx_file: Path, samples: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    world = World()
    counts = count_onnx(onnx_file, samples)
    found = measured(world, onnx_file, samples, large_batch=16, counts=counts)
    assert world.batches == [1, 16]
    assert world.ordinals == [0, 0]
    assert [batch.batch for batch in found.batches] == [1, 16]
    for batch, run_s in zip(found.batches, (RUN_S, 4 * RUN_S), strict=True):
        assert len(batch.windows) == 3
        assert batch.discarded == 0
        for window in batch.windows:
            assert window.duration_s >= 10.0
            assert window.gross_j == pytest.approx(LOAD_W * run_s / batch.batch, rel=1e-4)
            assert window.net_j == pytest.approx((LOAD_W - IDLE_W) * run_s / batch.batch, rel=1e-4)
            assert window.polled_j == pytest.approx(window.energy_j, rel=1e-4)
            assert window.conditions == {"temperature_c": 66}  # under load, not after
    assert (found.device, found.counter, found.power_limit_w) == ("Simulated GPU", "NVML", 700.0)
    assert (found.precision, found.tf32, found.host_copies, found.grade) == (
        "fp32",
        True,
        False,
        "M",
    )
    assert found.notes == ("TF32 is allowed: the fp32 floors of gpu_floor do not bound this run",)

    values = json.loads(json.dumps(found.to_json()))
    first, second = values["batches"]
    assert first["gross_j"]["mean"] == pytest.approx(4.0, rel=1e-4)
    assert first["gross_j"]["lo"] <= first["gross_j"]["mean"] <= first["gross_j"]["hi"]
    assert first["net_j"]["mean"] == pytest.approx(3.0, rel=1e-4)
    assert first["power_w"]["mean"] == pytest.approx(LOAD_W, rel=1e-4)
    assert first["idle_w"]["mean"] == pytest.approx(IDLE_W, rel=1e-4)
    assert first["run_ms"]["mean"] == first["ms_per_inference"] == pytest.approx(10.0)
    assert second["run_ms"]["mean"] == pytest.approx(40.0)
    assert second["ms_per_inference"] == pytest.approx(2.5)
    effective = float(sum((counts.effective or {}).values(), Fraction(0)))
    assert 0 < effective < PADDED
    assert first["gross_pj_per_dense_padded_mac"] == pytest.approx(4e12 / PADDED, rel=1e-4)
    assert first["net_pj_per_dense_padded_mac"] == pytest.approx(3e12 / PADDED, rel=1e-4)
    assert first["gross_pj_per_effective_mac"] == pytest.approx(4e12 / effective, rel=1e-4)
    assert first["net_pj_per_effective_mac"] == pytest.approx(3e12 / effective, rel=1e-4)
    assert values["macs"] == {"dense_padded": PADDED, "effective": effective}
    assert len(values["sha256"]) == 64


def test_work_that_is_still_queued_is_waited_for_at_both_ends(
    onnx_file: Path, samples: Any
) -> None:
    found = measured(World(queued=0.5), onnx_file, samples)
    for window in found.batches[0].windows:
        assert window.duration_s == pytest.approx(20.0, rel=1e-2)
        assert window.gross_j == pytest.approx(LOAD_W * RUN_S, rel=1e-3)


def test_without_counts_there_is_no_energy_per_multiplication(
    onnx_file: Path, samples: Any
) -> None:
    found = measured(World(), onnx_file, samples, tf32=False)
    values = found.to_json()
    assert values["macs"] is None
    assert values["batches"][0]["gross_pj_per_dense_padded_mac"] is None
    assert values["batches"][1]["net_pj_per_effective_mac"] is None
    assert found.notes == ()


def test_a_fixed_batch_is_measured_alone_and_said(fixed_file: Callable[[int], Path]) -> None:
    world = World()
    found = measured(world, fixed_file(1), np.zeros((3, 4), np.float32), tf32=False)
    assert world.batches == [1]
    assert found.notes == (
        "the file has a fixed batch of 1, batch 64 cannot run; export with a dynamic batch to measure it",
    )
    with pytest.raises(
        MeasureError, match=r"fixed batch of 4; export with a dynamic batch, or batch 1"
    ):
        measured(World(), fixed_file(4), np.zeros((3, 4), np.float32))


def idle_steps(*watts: float) -> Callable[[float], float]:
    """Idle power at the n-th look, that is at the n-th pair of sleeps (settle, measure)."""
    calls = iter([watt for watt in watts for _ in range(2)])
    return lambda time_s: next(calls)


def test_windows_around_which_idle_power_drifts_are_repeated() -> None:
    # Looks before and after windows: 100 -> 110 drifts, 110 -> 111 and 111 -> 110 hold, 110 -> 90 drifts, 90 -> 91 holds.
    world = World(idle_w=idle_steps(100, 110, 111, 110, 90, 91))
    found = measure_batch(world, world.open(0), world, MeasurementPlan())
    assert [(window.idle_before_w, window.idle_after_w) for window in found.windows] == [
        pytest.approx((110, 111), rel=1e-3),
        pytest.approx((111, 110), rel=1e-3),
        pytest.approx((90, 91), rel=1e-3),
    ]
    assert found.discarded == 2
    assert found.notes == ()
    assert found.windows[0].net_j == pytest.approx((LOAD_W - 110.5) * RUN_S, rel=1e-3)


def test_idle_power_that_never_settles_ends_after_twice_the_repeats_and_is_said() -> None:
    world = World(idle_w=idle_steps(100, 120, 100, 108, 100, 130, 100))
    found = measure_batch(world, world.open(0), world, MeasurementPlan())
    drifts = [window.idle_drift for window in found.windows]
    assert drifts == pytest.approx(
        [1 / 6, 0.08, 8 / 108], rel=1e-2
    )  # the least three of six, in their order
    assert found.discarded == 3
    assert "idle power drifts by 17% (> 5%) in every try" in found.notes[0]


def test_polled_power_that_differs_is_reported_beside_the_counter(
    onnx_file: Path, samples: Any
) -> None:
    found = measured(World(polled_factor=0.57), onnx_file, samples, tf32=False)
    window = found.batches[0].windows[0]
    assert window.polled_j == pytest.approx(0.57 * window.energy_j, rel=1e-3)
    assert window.gross_j == pytest.approx(LOAD_W * RUN_S, rel=1e-3)  # the counter's
    assert "integrated power differs from the energy counter by -43% (> 10%)" in found.notes[0]


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (World(frozen=True), r"idle power before 0\.0 W, needs more than 0|energy 0\.0 J"),
        (
            World(mig=True),
            "device: MIG is enabled, and energy is counted for the whole GPU; disable MIG",
        ),
        (World(pids={1, 77}), "device: processes 1, 77 compute on it too; end them or wait"),
        (World(pids={77}, own_pid=None), "device: processes 77 compute on it too"),
        (
            World(gpus=2),
            "device: 0 of 2 GPUs, and CUDA may number them otherwise; set CUDA_DEVICE_ORDER",
        ),
    ],
)
def test_a_gpu_that_cannot_be_trusted_is_refused(
    onnx_file: Path, samples: Any, world: World, message: str
) -> None:
    with pytest.raises(MeasureError, match=message):
        measured(world, onnx_file, samples)


def test_a_zero_joule_window_is_refused(onnx_file: Path, samples: Any) -> None:
    with pytest.raises(
        MeasureError, match=r"window: energy 0\.0 J, needs more than 0; the energy counter"
    ):
        measured(World(load_w=0.0), onnx_file, samples)


def test_a_process_that_comes_during_the_measurement_is_refused(
    onnx_file: Path, samples: Any
) -> None:
    world = World()

    def intrude(time_s: float) -> float:
        if time_s > 20:
            world.pids.add(4321)
        return IDLE_W

    world.idle_w = intrude
    with pytest.raises(MeasureError, match="processes 4321 compute on it too"):
        measured(world, onnx_file, samples)
    assert 20 < world.time_s < 45  # after the window it came in


def test_in_a_container_the_new_process_is_our_own(onnx_file: Path, samples: Any) -> None:
    other = os.getpid() + 100_000
    assert len(measured(World(own_pid=other), onnx_file, samples).batches) == 2
    assert (
        len(measured(World(own_pid=None), onnx_file, samples).batches) == 2
    )  # some show no process at all
    world = World(own_pid=other)
    meter = world.open(0)
    world.pids |= {other, 5}
    with pytest.raises(MeasureError, match="compute on it too"):
        meter.adopt_own_process()
    world = World()
    meter = world.open(0)
    world.pids |= {os.getpid(), 5}
    with pytest.raises(MeasureError, match="processes 5 compute on it too"):
        meter.adopt_own_process()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"large_batch": 1}, "large_batch: 1, needs an integer from 2"),
        ({"large_batch": 2.5}, r"large_batch: 2\.5"),
        ({"device": "cuda"}, "device: 'cuda', needs a number from 0"),
    ],
)
def test_arguments_are_refused_before_the_device_is_opened(
    onnx_file: Path, samples: Any, options: dict[str, Any], message: str
) -> None:
    world = World()
    with pytest.raises(MeasureError, match=message):
        measured(world, onnx_file, samples, **options)
    assert world.opened == 0
    assert world.batches == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 2, 4, 4)), "inputs: float64, the file needs a float32 array"),
        ([1.0], "inputs: list, the file needs a float32 array"),
        (np.zeros((2, 4, 4), np.float32), r"inputs: shape \(2, 4, 4\), needs \(samples, 2, 4, 4\)"),
        (np.zeros((0, 2, 4, 4), np.float32), "with at least one sample"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(onnx_file: Path, inputs: Any, message: str) -> None:
    for call in (measure_gpu, measure_cpu, baseline):
        with pytest.raises(MeasureError, match=message):
            call(onnx_file, inputs)


# zeus


def test_counters_of_zeus_and_their_units() -> None:
    world = World(energy_j=12.345)
    meter = open_gpu(0, FakeZeus(gpus=[FakeGpu(world)]))
    assert (meter.energy_j(), meter.power_w()) == (12.345, 100.0)
    assert (meter.name, meter.source, meter.power_limit_w) == ("Simulated GPU", "NVML", 700.0)
    assert meter.conditions() == {"temperature_c": 40}


def test_a_gpu_of_amd_tells_no_processes() -> None:
    class AmdGpu(FakeGpu):
        pass

    world = World(pids={77}, mig=True)
    meter = open_gpu(0, FakeZeus(gpus=[AmdGpu(world)]))
    assert meter.source == "AMD SMI"
    meter.adopt_own_process()
    meter.check()


def test_an_old_gpu_without_the_counter_is_refused() -> None:
    with pytest.raises(
        MeasureError, match=r"Simulated GPU has no energy counter; .* from Volta on"
    ):
        open_gpu(0, FakeZeus(gpus=[FakeGpu(World(), counts=False)]))


@pytest.mark.parametrize("index", [-1, 2])
def test_a_device_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(MeasureError, match=f"device: {index} is none of the 2 GPUs that zeus sees"):
        World(gpus=2).open(index)


def test_of_several_gpus_the_order_must_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasureError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        World(gpus=2).open(1)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert World(gpus=2).open(1).name == "Simulated GPU"


def test_a_gpu_before_mig_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakePynvml()

    def unknown(handle: World) -> list[int]:
        raise FakePynvml.NVMLError("Not Supported")

    monkeypatch.setattr(module, "nvmlDeviceGetMigMode", unknown)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert World(mig=True).open(0).name == "Simulated GPU"


def test_a_counter_that_cannot_be_read_is_no_measurement(onnx_file: Path, samples: Any) -> None:
    gpu = FakeGpu(World())
    gpu.get_total_energy_consumption = lambda: 1 // 0  # type: ignore[method-assign]
    with pytest.raises(MeasureError, match=r"zeus: a counter cannot be read .*by zero"):
        open_gpu(0, FakeZeus(gpus=[gpu])).energy_j()


class Jetson:
    def get_total_energy_consumption(self) -> Any:
        return SimpleNamespace(cpu_energy_mj=1000.0, gpu_energy_mj=2000.0, total_energy_mj=5500.0)


class AppleSilicon:
    def get_total_energy_consumption(self) -> Any:
        return SimpleNamespace(cpu_total_mj=1000, gpu_mj=2000, dram_mj=None, ane_mj=500)


@pytest.mark.parametrize(("chip", "joules"), [(Jetson(), 5.5), (AppleSilicon(), 3.5)])
def test_one_chip_is_measured_whole(chip: Any, joules: float) -> None:
    name = type(chip).__name__
    for meter in (open_gpu(0, FakeZeus(chip=chip)), open_cpu(FakeZeus(chip=chip))):
        assert (meter.energy_j(), meter.power_w()) == (joules, None)
        assert (meter.name, meter.source) == (name, f"rails of {name}")


def test_a_machine_without_counters_says_what_it_needs() -> None:
    for open_meter in (lambda: open_gpu(0, FakeZeus()), lambda: open_cpu(FakeZeus())):
        with pytest.raises(
            MeasureError,
            match=r"zeus: no energy counter on this machine \(.*unavailable\. No observable SoC",
        ):
            open_meter()


def test_without_the_package_the_cure_is_named(
    onnx_file: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zeus.device.gpu", None)
    with pytest.raises(MeasureError, match=r"zeus: not installed, .* pip install 'knarr\[power\]'"):
        measure_gpu(onnx_file, samples, make_workload=World().workload)
    with pytest.raises(MeasureError, match=r"pip install 'knarr\[power\]'"):
        measure_cpu(onnx_file, samples)


# onnxruntime


def test_the_bound_session_computes_what_a_plain_one_does(onnx_file: Path, samples: Any) -> None:
    plain = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    expected = plain.run(None, {"input": samples})[0]
    assert np.ptp(expected) > 0
    source = read_source(onnx_file)
    for batch in (1, 3):
        workload = OnnxWorkload(source, samples, batch, "CPUExecutionProvider", threads=1)
        order = [row for rows in split(np.arange(5)[:, None], batch) for row in rows[:, 0]]
        assert set(order) == set(range(5))
        for k in range(len(order) // batch + 1):  # once round, and the first batch again
            workload.run()
            workload.synchronise()
            number = k % (len(order) // batch)
            got = workload._bindings[number].copy_outputs_to_cpu()[0]
            rows = order[number * batch : (number + 1) * batch]
            np.testing.assert_allclose(got, expected[rows], rtol=1e-4, atol=1e-6)


def test_batches_cover_the_samples_up_to_a_limit() -> None:
    assert [list(chunk) for chunk in split(np.arange(5), 2)] == [[0, 1], [2, 3], [4, 0]]
    assert [list(chunk) for chunk in split(np.arange(2), 5)] == [[0, 1, 0, 1, 0]]
    assert len(split(np.arange(1000), 1)) == MAX_BATCHES


def test_what_a_file_says(
    onnx_file: Path, fixed_file: Callable[[int], Path], tmp_path: Path
) -> None:
    source = read_source(onnx_file)
    assert (source.input_name, source.sample_shape, source.dtype.name) == (
        "input",
        (2, 4, 4),
        "float32",
    )
    assert (source.fixed_batch, source.precision) == (None, "fp32")
    assert source.batch_name is not None
    assert read_source(fixed_file(1)).fixed_batch == 1
    half = tmp_path / "half.onnx"
    write_onnx(nn.Linear(4, 2).half().eval(), (torch.zeros(1, 4).half(),), half)
    assert (read_source(half).precision, read_source(half).dtype.name) == ("fp16", "float16")
    broken = tmp_path / "broken.onnx"
    for content in (b"no protobuf", b""):
        broken.write_bytes(content)
        with pytest.raises(MeasureError, match=r"broken\.onnx: not a valid ONNX file"):
            read_source(broken)
    with pytest.raises(FileNotFoundError):
        read_source(tmp_path / "none.onnx")


def test_more_inputs_or_dynamic_shapes_are_refused(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    path = tmp_path / "two.onnx"
    zeros = torch.zeros(3, 4)
    write_onnx(Sum().eval(), (zeros, zeros), path, ["a", "b"])
    with pytest.raises(MeasureError, match=r"inputs \['a', 'b'\], exactly one can be fed"):
        read_source(path)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    write_onnx(nn.ReLU().eval(), (zeros,), path, ["a"], free)
    with pytest.raises(
        MeasureError, match="input 'a' is not static; only the batch may be dynamic"
    ):
        read_source(path)


def test_a_missing_provider_names_the_package() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        require_provider("CUDAExecutionProvider")
        return
    with pytest.raises(
        MeasureError, match=r"no CUDAExecutionProvider, only .*; .* by onnxruntime-gpu"
    ):
        require_provider("CUDAExecutionProvider")


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    onnx_file: Path, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime built with CUDA but without its libraries: it logs, and hands out a session on the CPU."""
    asked: dict[str, Any] = {}
    real = onnxruntime.InferenceSession

    def session(path: Path, options: Any, providers: Any, **others: Any) -> Any:
        asked.update(options=options, providers=providers, **others)
        return real(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(
        MeasureError, match="runs on CPUExecutionProvider instead of CUDAExecutionProvider"
    ):
        OnnxWorkload(
            read_source(onnx_file), samples, 1, "CUDAExecutionProvider", ordinal=2, tf32=False
        )
    assert asked["providers"] == [("CUDAExecutionProvider", {"device_id": "2", "use_tf32": "0"})]
    assert asked["enable_fallback"] == 0
    assert asked["options"].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("libcublasLt.so.12: not found\nand more")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(
        MeasureError, match=r"cannot run .* \(libcublasLt\.so\.12: not found\); on a GPU"
    ):
        OnnxWorkload(read_source(onnx_file), samples, 1, "CUDAExecutionProvider")


# RAPL


@dataclass
class Packages:
    """Two packages and the platform that holds them, in zeus' words."""

    def __post_init__(self) -> None:
        self.world = World(energy_j=0.0, run_s=0.1)

    def open(self) -> ZeusMeter:
        shares = {"package-0": 0.25, "package-1": 0.75, "psys": 1.5}
        return open_cpu(FakeZeus(cpus=[self._zone(name, part) for name, part in shares.items()]))

    def _zone(self, name: str, share: float) -> Any:
        def read() -> Any:
            return SimpleNamespace(cpu_mj=self.world.energy_j * share * 1e3, dram_mj=1e9)

        return SimpleNamespace(
            rapl_file=SimpleNamespace(name=name), get_total_energy_consumption=read
        )

    def workload(
        self, source: OnnxSource, inputs: Any, batch: int, provider: str, *, threads: int
    ) -> World:
        assert provider == "CPUExecutionProvider"
        self.world.batch = batch
        return self.world


def measured_cpu(packages: Packages, path: Path, inputs: Any, **options: Any) -> Any:
    return measure_cpu(
        path,
        inputs,
        open_meter=packages.open,
        make_workload=packages.workload,
        clock=packages.world,
        **options,
    )


def test_packages_are_summed(onnx_file: Path, samples: Any) -> None:
    counts = count_onnx(onnx_file, samples)
    found = measured_cpu(Packages(), onnx_file, samples, large_batch=4, counts=counts)
    assert found.packages == "RAPL: package-0, package-1"  # psys holds both
    for batch, run_s in zip(found.batches, (0.1, 0.2), strict=True):
        for window in batch.windows:
            assert window.gross_j == pytest.approx(LOAD_W * run_s / batch.batch, rel=1e-5)
            assert window.net_j == pytest.approx((LOAD_W - IDLE_W) * run_s / batch.batch, rel=1e-5)
            assert window.polled_j is None
    values = json.loads(json.dumps(found.to_json()))
    assert values["batches"][0]["net_pj_per_dense_padded_mac"] == pytest.approx(
        30e12 / PADDED, rel=1e-4
    )
    assert values["notes"] == ["packages only: memory modules, disks and fans are not in it"]
    assert values["threads"] == 0


def test_a_platform_without_packages_is_refused() -> None:
    zone = SimpleNamespace(rapl_file=SimpleNamespace(name="psys"))
    with pytest.raises(MeasureError, match="RAPL: no package among the counters"):
        open_cpu(FakeZeus(cpus=[zone]))


@pytest.mark.parametrize("threads", [-1, 1.5, True])
def test_threads_are_checked(onnx_file: Path, samples: Any, threads: Any) -> None:
    with pytest.raises(MeasureError, match=r"threads: .*, needs an integer from 0"):
        measured_cpu(Packages(), onnx_file, samples, threads=threads)


# Baseline


def without_counters(*arguments: Any, **options: Any) -> Any:
    return measure_cpu(*arguments, **options, open_meter=lambda: open_cpu(FakeZeus()))


def test_a_machine_without_counters_gives_floors_and_reasons(onnx_file: Path, samples: Any) -> None:
    def on_gpu(*arguments: Any, **options: Any) -> Any:
        return measure_gpu(
            *arguments,
            **options,
            open_meter=lambda index: open_gpu(index, FakeZeus()),
            make_workload=World().workload,
        )

    found = baseline(onnx_file, samples, on_gpu=on_gpu, on_cpu=without_counters)
    assert (found.gpu, found.cpu) == (None, None)
    assert "zeus: no energy counter on this machine" in found.gpu_refused
    assert "RAPL unavailable" in found.cpu_refused
    assert found.floors == gpu_floors(count_onnx(onnx_file))
    assert found.floors_refused == ""
    values = json.loads(json.dumps(found.to_json()))
    assert values["gpu"] is None
    assert values["file"] == "small.onnx"
    assert {floor["label"] for floor in values["floors"]} == {LABEL}
    assert all(floor["floor_j"] > 0 for floor in values["floors"])


def test_what_can_be_measured_is_in_the_baseline(onnx_file: Path, samples: Any) -> None:
    packages = Packages()
    seen: list[Any] = []

    def on_gpu(path: Path, inputs: Any, **options: Any) -> Any:
        seen.append(options)
        return measured(World(), path, inputs, **options)

    def on_cpu(path: Path, inputs: Any, **options: Any) -> Any:
        return measured_cpu(packages, path, inputs, **options)

    plan = MeasurementPlan(window_s=9.0, repeats=4)
    found = baseline(onnx_file, samples, plan=plan, large_batch=8, on_gpu=on_gpu, on_cpu=on_cpu)
    assert (seen[0]["plan"], seen[0]["large_batch"]) == (plan, 8)
    values = json.loads(json.dumps(found.to_json()))
    assert (values["gpu_refused"], values["cpu_refused"]) == ("", "")
    for part, gross_j in (("gpu", 4.0), ("cpu", 40.0)):
        first = values[part]["batches"][0]
        assert len(first["windows"]) == 4
        assert first["gross_j"]["mean"] == pytest.approx(gross_j, rel=1e-3)
        assert first["net_pj_per_effective_mac"] > first["net_pj_per_dense_padded_mac"] > 0


def test_without_inputs_nothing_is_run(onnx_file: Path) -> None:
    found = baseline(onnx_file, None)
    assert found.gpu_refused == found.cpu_refused == "no inputs were given, nothing was run"
    assert len(found.floors) == 10


def test_what_cannot_be_counted_has_no_floor_but_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "tan.onnx"
    write_onnx(
        nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval(),
        (torch.zeros(3, 4),),
        path,
        axes={0: torch.export.Dim("batch")},
    )
    counts = OperationCounts({}, (LedgerRow("n", "Erf", "unsupported", "no rule"),), 0, 1, "ann")
    found = baseline(
        path,
        np.zeros((2, 4), np.float32),
        counts=counts,
        on_gpu=lambda path, inputs, **options: measured(World(), path, inputs, **options),
        on_cpu=without_counters,
    )
    assert found.floors == ()
    assert found.floors_refused.startswith("no total: 'n' (Erf)")
    assert found.gpu is not None
    assert found.gpu.macs is None


def test_wrong_arguments_are_errors_and_not_reasons(onnx_file: Path, samples: Any) -> None:
    with pytest.raises(MeasureError, match="window_s: 3"):
        baseline(onnx_file, samples, plan=MeasurementPlan(window_s=3))
    with pytest.raises(MeasureError, match="large_batch: 0"):
        baseline(onnx_file, samples, large_batch=0)


def test_errors_are_errors_of_the_chip_side() -> None:
    assert issubclass(MeasureError, ChipError)


def test_the_clock_of_the_machine_moves() -> None:
    clock = Clock()
    start_s = clock.now_s()
    clock.sleep(0.0)
    assert clock.now_s() >= start_s


# A real GPU


def test_a_real_gpu(onnx_file: Path, samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole protocol on device 0, where there is one and everything it needs is installed."""
    monkeypatch.delitem(sys.modules, "pynvml")  # the simulated one
    try:
        require_provider("CUDAExecutionProvider")
        open_gpu(0)
    except MeasureError as error:
        pytest.skip(f"no NVIDIA GPU: {error}")
    counts = count_onnx(onnx_file, samples)
    found = measure_gpu(
        onnx_file, samples, plan=MeasurementPlan(window_s=8.0), large_batch=256, counts=counts
    )
    one, many = found.batches
    assert 0 < many.windows[0].gross_j < one.windows[0].gross_j
    assert one.windows[0].power_w > one.windows[0].idle_w
    floor = floor_of(
        counts, "h100_sxm_h200", "fp16"
    )  # the least there is in any floating-point precision
    assert one.windows[0].gross_j > floor.floor_j
