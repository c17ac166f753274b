"""`measure_gpu`: joules per inference of an ONNX file on an NVIDIA GPU. It measures the board, not
the host beside it.

The energy counter is that of NVML, NVIDIA's management library. All access goes through
`NvmlDevice`, by the module `pynvml` of the package nvidia-ml-py, which is imported in `open_nvml`
alone.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.measure.protocol import (
    USUAL_PLAN,
    Clock,
    MeasureError,
    Measurement,
    MeasurementPlan,
    Workload,
    measure_batches,
)
from knarr.hw_sim.energy.measure.workload import OnnxWorkload, prepare, require_provider
from knarr.hw_sim.energy.prices import Grade

PROVIDER: Final = "CUDAExecutionProvider"

CURES = {
    "NVMLError_LibraryNotFound": "there is no NVIDIA driver; install it, or measure on a machine with an NVIDIA GPU",
    "NVMLError_DriverNotLoaded": "the NVIDIA driver is installed but not loaded; load it or reboot",
    "NVMLError_LibRmVersionMismatch": "driver and library differ in version; reboot after the update",
    "NVMLError_InvalidArgument": "check the number of the device (nvidia-smi lists them)",
    "NVMLError_NotSupported": "the device does not have this; energy needs Volta or newer",
    "NVMLError_FunctionNotFound": "the driver is too old for it; update the driver",
    "NVMLError_NoPermission": "ask for the right to read it, or run as root",
}


class NvmlDevice:
    """One GPU. Every method raises MeasureError where NVML refuses.

    Args:
        module: `pynvml`.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, module: Any, handle: Any) -> None:
        self._module, self._handle = module, handle

    def count(self) -> int:
        """Count the GPUs of the machine."""
        return int(_call(self._module, "nvmlDeviceGetCount"))

    def name(self) -> str:
        """Return the product name."""
        return _text(self._get("Name"))

    def uuid(self) -> str:
        """Return a name that is unique in the world, such as "GPU-8f6d..."."""
        return _text(self._get("UUID"))

    def driver(self) -> str:
        """Return the version of the driver."""
        return _text(_call(self._module, "nvmlSystemGetDriverVersion"))

    def energy_mj(self) -> int:
        """Return millijoules since the driver was loaded; Volta and newer."""
        return int(self._get("TotalEnergyConsumption"))

    def power_mw(self) -> int:
        """Return milliwatts; an average over 1 s from Ampere on, but for the A100."""
        return int(self._get("PowerUsage"))

    def power_limit_mw(self) -> int:
        """Return the enforced limit, milliwatts."""
        return int(self._get("EnforcedPowerLimit"))

    def clock_mhz(self, domain: str) -> int:
        """Return the clock of "SM" or "MEM" now."""
        return int(self._get("ClockInfo", getattr(self._module, f"NVML_CLOCK_{domain}")))

    def mig_enabled(self) -> bool:
        """Tell whether the GPU is partitioned."""
        try:
            # Current and pending.
            return bool(self._get("MigMode")[0])
        except MeasureError as error:
            # GPUs and drivers before MIG.
            before = ("NVMLError_NotSupported", "NVMLError_FunctionNotFound")
            if type(error.__cause__).__name__ in before:
                return False
            raise

    def compute_pids(self) -> frozenset[int]:
        """Return the processes that compute on it."""
        return frozenset(int(process.pid) for process in self._get("ComputeRunningProcesses"))

    def close(self) -> None:
        """Let go of NVML."""
        self._module.nvmlShutdown()

    def _get(self, what: str, *arguments: object) -> Any:
        return _call(self._module, f"nvmlDeviceGet{what}", self._handle, *arguments)


def _call(module: Any, name: str, *arguments: object) -> Any:
    try:
        return getattr(module, name)(*arguments)
    except module.NVMLError as error:
        cure = CURES.get(type(error).__name__, "see the NVML manual")
        raise MeasureError(f"NVML: {name}: {error}; {cure}") from error


def _text(value: str | bytes) -> str:
    # Old versions of nvidia-ml-py give bytes.
    return value.decode() if isinstance(value, bytes) else value


def open_nvml(index: int, module: Any = None) -> NvmlDevice:
    """Open a GPU by NVML's number, which is that of nvidia-smi. Close it.

    Args:
        index: from 0.
        module: in place of `pynvml`.

    Raises:
        MeasureError: no nvidia-ml-py, no driver, or no such device.
    """
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError as error:
            raise MeasureError(
                "NVML: the package nvidia-ml-py is not installed; on a machine with an NVIDIA GPU install it "
                "(pip install nvidia-ml-py)"
            ) from error
    _call(module, "nvmlInit")
    try:
        count = _call(module, "nvmlDeviceGetCount")
        if not 0 <= index < count:
            raise MeasureError(
                f"device: {index} is none of the {count} GPUs that NVML sees; they count from 0"
            )
        return NvmlDevice(module, _call(module, "nvmlDeviceGetHandleByIndex", index))
    except BaseException:
        module.nvmlShutdown()
        raise


def cuda_ordinal(
    device: NvmlDevice, index: int, environment: Mapping[str, str] = os.environ
) -> int:
    """Return CUDA's number of a GPU: CUDA sorts the fastest first, NVML by PCI bus, and a wrong one
    would be measured idle.

    Raises:
        MeasureError: with several GPUs, an order or a selection that does not tell.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    shown = [entry.strip() for entry in (visible or "").split(",") if entry.strip()]
    uuid = device.uuid()
    by_bus = device.count() == 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if visible is None and by_bus:
        return index
    for ordinal, entry in enumerate(shown):
        # CUDA takes the beginning of a UUID for the whole.
        if (entry == str(index) and by_bus) or (not entry.isdigit() and uuid.startswith(entry)):
            return ordinal
    if not by_bus and (visible is None or any(entry.isdigit() for entry in shown)):
        raise MeasureError(
            f"device: {index} of {device.count()} GPUs, and CUDA may number them otherwise; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    raise MeasureError(
        f"device: {index} is not in CUDA_VISIBLE_DEVICES={visible}; add it or choose another"
    )


class NvmlMeter:
    """A GPU as a `Meter`. Make it before CUDA is started here: a process that computes on it by
    then is another's.

    Args:
        device: of `open_nvml`.

    Raises:
        MeasureError: MIG, or a process of somebody else on the device.
    """

    def __init__(self, device: NvmlDevice) -> None:
        self._device = device
        self._own = {os.getpid()}
        if device.mig_enabled():
            raise MeasureError(
                "device: MIG is enabled, and energy is counted for the whole GPU; disable MIG "
                "(nvidia-smi -mig 0) or measure on another device"
            )
        self.check()

    def adopt_own_process(self) -> None:
        """Take this process for one's own; call it once CUDA runs here."""
        # In a container NVML may know this process by another number: the one that is new.
        new = self._device.compute_pids() - self._own
        if len(new) == 1 and os.getpid() not in self._device.compute_pids():
            self._own |= new
        self.check()

    def energy_j(self) -> float:
        """Return joules since the driver was loaded."""
        return self._device.energy_mj() / 1e3

    def power_w(self) -> float | None:
        """Return power now, W."""
        return self._device.power_mw() / 1e3

    def conditions(self) -> Mapping[str, float]:
        """Return the clocks of processors and memory."""
        return {
            f"{domain.lower()}_clock_mhz": self._device.clock_mhz(domain)
            for domain in ("SM", "MEM")
        }

    def check(self) -> None:
        """Raise MeasureError where another process computes on the GPU; one that came and went is
        not seen.
        """
        foreign = sorted(self._device.compute_pids() - self._own)
        if foreign:
            raise MeasureError(
                f"device: processes {', '.join(map(str, foreign))} compute on it too; end them or wait (in a container, "
                "one of them may be an earlier measurement of this very process: start a new one)"
            )


@dataclass(frozen=True, kw_only=True)
class GpuMeasurement(Measurement):
    """Energy of an inference on a GPU's board.

    Args:
        device_index, device, driver: NVML's number, product name, version.
        power_limit_w: enforced limit.
        tf32: whether fp32 products may be computed in TF32.
        host_copies: whether inputs and outputs cross to the host within the window: never, they lie
            on the device.
        grade: "M", measured.
    """

    device_index: int
    device: str
    driver: str
    power_limit_w: float
    tf32: bool
    host_copies: bool = False
    grade: Grade = "M"


def measure_gpu(
    path: str | Path,
    inputs: Array,
    *,
    device: int = 0,
    large_batch: int = 64,
    tf32: bool = True,
    counts: OperationCounts | None = None,
    plan: MeasurementPlan = USUAL_PLAN,
    open_device: Callable[[int], NvmlDevice] = open_nvml,
    make_workload: Callable[..., Workload] = OnnxWorkload,
    clock: Clock | None = None,
) -> GpuMeasurement:
    """Measure an ONNX file on a GPU by the counter nvmlDeviceGetTotalEnergyConsumption (Volta and
    newer).

    It takes about (plan.window_s + 10) * plan.repeats seconds per batch size. Start it before anything else
    in the process uses CUDA, on a GPU that nobody else uses.

    Args:
        path: the file that is counted; static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; the first 64 batches are run in turn.
        device: NVML's number, that of nvidia-smi.
        large_batch: the second batch size, from 2.
        tf32: let fp32 products be computed in TF32 (onnxruntime's default).
        counts: of `count_onnx` for energies per multiplication.
        plan: durations, and windows per batch size.
        open_device, make_workload, clock: in place of NVML, onnxruntime on CUDA and the machine's
            clock.

    Raises:
        MeasureError: no GPU, driver, nvidia-ml-py or CUDA provider; MIG; another process on the
            device; a file or inputs that do not fit; a window too short; a counter that stands
            still. Says why, and the cure.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    source, sizes, notes, macs = prepare(path, inputs, large_batch, counts)
    # type(), since True is an int too.
    if type(device) is not int:
        raise MeasureError(f"device: {device!r}, needs a number from 0")
    with closing(open_device(device)) as gpu:  # closed on KeyboardInterrupt too
        if make_workload is OnnxWorkload:
            # Before CUDA is looked for: without the provider it would not be used.
            require_provider(PROVIDER)
        meter = NvmlMeter(gpu)
        ordinal = cuda_ordinal(gpu, device)

        def ready(batch: int) -> Workload:
            workload = make_workload(source, inputs, batch, PROVIDER, ordinal=ordinal, tf32=tf32)
            workload.run()  # the CUDA context of this process exists from here on
            meter.adopt_own_process()
            return workload

        measured, batch_notes = measure_batches(sizes, ready, meter, clock, plan)
        if source.precision == "fp32" and tf32:
            notes = (*notes, "TF32 is allowed: the fp32 floors of gpu_floor do not bound this run")
        return GpuMeasurement(
            batches=measured,
            macs=macs,
            device_index=device,
            device=gpu.name(),
            driver=gpu.driver(),
            power_limit_w=gpu.power_limit_mw() / 1e3,
            precision=source.precision,
            tf32=tf32,
            sha256=source.sha256,
            notes=(*notes, *batch_notes),
        )
