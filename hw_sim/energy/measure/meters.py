"""Energy counters of this machine, all read by zeus: NVIDIA (NVML) and AMD GPUs, the rails of a
Jetson, Apple's chips, and the packages of a processor (RAPL, or EMI under Windows).

zeus (extra `power`) is imported in `_zeus` alone, and on no other way does anything here touch a
counter. It numbers GPUs as CUDA_VISIBLE_DEVICES does, in the order of the PCI bus.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from knarr.hw_sim.energy.measure.protocol import MeasureError, Meter

INSTALL = "pip install 'knarr[power]'"


class ZeusMeter(Meter):
    """A counter of zeus.

    Args:
        name: of the device.
        source: the kind of counter, such as "NVML".
        millijoules: reads the counter.
        milliwatts: reads power now, None where there is none.
        power_limit_w: enforced, None where none is known.
        conditions: reads the temperature and the like.
        processes: reads the numbers of the processes that compute on it, None where nobody can say.
    """

    def __init__(
        self,
        name: str,
        source: str,
        millijoules: Callable[[], float],
        *,
        milliwatts: Callable[[], float] | None = None,
        power_limit_w: float | None = None,
        conditions: Callable[[], Mapping[str, float]] = dict,
        processes: Callable[[], frozenset[int]] | None = None,
    ) -> None:
        self.name, self.source, self.power_limit_w = name, source, power_limit_w
        self._millijoules, self._milliwatts = millijoules, milliwatts
        self._conditions, self._processes = conditions, processes
        self._own = {os.getpid()}
        self.check()

    def energy_j(self) -> float:
        """Return joules since some start."""
        return _asked(self._millijoules) / 1e3

    def power_w(self) -> float | None:
        """Return power now, W; None where there is nothing to poll."""
        return None if self._milliwatts is None else _asked(self._milliwatts) / 1e3

    def conditions(self) -> Mapping[str, float]:
        """Return the temperature and the like, units in the names."""
        return _asked(self._conditions)

    def adopt_own_process(self) -> None:
        """Take this process for one's own; call it once the device runs here."""
        if self._processes is None:
            return
        # In a container the driver may know this process by another number: the one that is new.
        running = _asked(self._processes)
        new = running - self._own
        if len(new) == 1 and os.getpid() not in running:
            self._own |= new
        self.check()

    def check(self) -> None:
        """Raise MeasureError where another process computes on the device; one that came and went is
        not seen.
        """
        if self._processes is None:
            return
        foreign = sorted(_asked(self._processes) - self._own)
        if foreign:
            raise MeasureError(
                f"device: processes {', '.join(map(str, foreign))} compute on it too; end them or wait (in a container, "
                "one of them may be an earlier measurement of this very process: start a new one)"
            )


def open_gpu(index: int, zeus: Any = None) -> ZeusMeter:
    """Open a GPU, or the chip around it on a Jetson.

    Args:
        index: from 0, as CUDA numbers those that it may see.
        zeus: in place of the module `zeus.device`.

    Raises:
        MeasureError: no zeus, no GPU, no such number, one without an energy counter, MIG, or a
            process of somebody else on it.
    """
    device = _zeus() if zeus is None else zeus
    try:
        gpus = _asked(device.get_gpus)
    except MeasureError as error:
        return _open_chip(device, error)
    if not 0 <= index < len(gpus):
        raise MeasureError(
            f"device: {index} is none of the {len(gpus)} GPUs that zeus sees; they count from 0, "
            "of those in CUDA_VISIBLE_DEVICES"
        )
    if len(gpus) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # A wrong one would be measured idle.
        raise MeasureError(
            f"device: {index} of {len(gpus)} GPUs, and CUDA may number them otherwise; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    gpu = gpus.gpus[index]
    if not _asked(gpu.supports_get_total_energy_consumption):
        raise MeasureError(
            f"device: {gpu.get_name()} has no energy counter; NVIDIA's have one from Volta on"
        )
    nvidia = type(gpu).__module__.endswith("nvidia")
    if nvidia and _mig(gpu):
        raise MeasureError(
            "device: MIG is enabled, and energy is counted for the whole GPU; disable MIG "
            "(nvidia-smi -mig 0) or measure on another device"
        )
    return ZeusMeter(
        _asked(gpu.get_name),
        "NVML" if nvidia else "AMD SMI",
        gpu.get_total_energy_consumption,
        milliwatts=gpu.get_instant_power_usage,
        power_limit_w=_asked(gpu.get_power_management_limit) / 1e3,
        conditions=lambda: {"temperature_c": float(gpu.get_gpu_temperature())},
        processes=(lambda: _pids(gpu)) if nvidia else None,
    )


def open_cpu(zeus: Any = None) -> ZeusMeter:
    """Open the packages of the processor, or the chip of an Apple machine. Whatever else runs there
    is counted too: it shows as drift of idle power. Memory modules are left out.

    Raises:
        MeasureError: no zeus, no counters, or this user may not read them.
    """
    device = _zeus() if zeus is None else zeus
    try:
        zones = _asked(device.get_cpus).cpus
    except MeasureError as error:
        return _open_chip(device, error)
    # The whole platform (psys) holds the packages, which would count twice.
    packages = [package for package in zones if _zone(package).startswith("package")]
    if not packages:
        raise MeasureError("RAPL: no package among the counters; it cannot be used")

    def millijoules() -> float:
        return float(sum(one.get_total_energy_consumption().cpu_mj for one in packages))

    return ZeusMeter(", ".join(_zone(one) for one in packages), "RAPL", millijoules)


def _zone(package: Any) -> str:
    """Return the name of a zone of RAPL; counters of other systems have none and are packages."""
    file = getattr(package, "rapl_file", None)
    return str(getattr(file, "name", "package"))


def _open_chip(device: Any, before: MeasureError) -> ZeusMeter:
    """Open the one chip of a Jetson or an Apple machine."""
    try:
        chip = _asked(device.get_soc)
    except MeasureError as error:
        reasons = " ".join(_line(each.__cause__ or each) for each in (before, error))
        raise MeasureError(
            f"zeus: no energy counter on this machine ({reasons}); it needs an NVIDIA GPU from Volta "
            "on with its driver, an AMD GPU with ROCm, a Jetson, an Apple chip, or RAPL, which root may read and a virtual "
            "machine or container usually lacks"
        ) from error
    kind = type(chip).__name__

    def millijoules() -> float:
        found = chip.get_total_energy_consumption()
        total = getattr(found, "total_energy_mj", None)  # of a Jetson's input rail
        if total is not None:
            return float(total)
        parts = ("cpu_total_mj", "gpu_mj", "dram_mj", "ane_mj")  # of Apple's chips
        return float(sum(getattr(found, part, None) or 0 for part in parts))

    return ZeusMeter(kind, f"rails of {kind}", millijoules)


def _zeus() -> Any:
    try:
        return _Devices()
    except ImportError as error:
        raise MeasureError(
            f"zeus: not installed, and it reads the energy counters; {INSTALL}"
        ) from error


class _Devices:
    """Three functions of zeus, from three modules."""

    def __init__(self) -> None:
        self.get_gpus = importlib.import_module("zeus.device.gpu").get_gpus
        self.get_cpus = importlib.import_module("zeus.device.cpu").get_cpus
        self.get_soc = importlib.import_module("zeus.device.soc").get_soc


def _mig(gpu: Any) -> bool:
    """Tell whether a GPU of NVIDIA is partitioned, which zeus does not say."""
    nvml = importlib.import_module("pynvml")
    try:
        return bool(nvml.nvmlDeviceGetMigMode(gpu.handle)[0])  # current, and pending
    except nvml.NVMLError:
        return False  # GPUs and drivers before MIG


def _pids(gpu: Any) -> frozenset[int]:
    """Return the processes that compute on a GPU of NVIDIA, which zeus does not say."""
    nvml = importlib.import_module("pynvml")
    return frozenset(int(one.pid) for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu.handle))


def _asked(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # zeus' and NVML's errors share no base
        raise MeasureError(
            f"zeus: a counter cannot be read ({_line(error)}); see the manual of the device, and the rights of this user"
        ) from error


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".") + "."
