"""`measure_cpu`: joules per inference of an ONNX file on the processor's packages, memory modules
left out.

They come from RAPL, the energy counters of Intel (and AMD) processors, as Linux shows them in
/sys/class/powercap. Only packages are summed. Cores, uncore and the like are parts of a package;
`psys` holds the packages; DRAM is counted outside of them and left out, as many processors have no
counter of it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.measure.protocol import (
    USUAL_PLAN,
    Clock,
    MeasureError,
    Measurement,
    MeasurementPlan,
    Meter,
    Workload,
    measure_batches,
)
from knarr.hw_sim.energy.measure.workload import OnnxWorkload, prepare
from knarr.hw_sim.energy.prices import Grade

POWERCAP = Path("/sys/class/powercap")


class RaplMeter(Meter):
    """The packages of the machine as a `Meter`. Whatever else runs on them is counted too.

    Clocks differ between cores and moments, so there are no conditions. Nobody has a processor alone:
    every load is accepted, and that of others shows as drift of idle power.

    Args:
        powercap: folder of the counters.

    Raises:
        MeasureError: no counters, or this user may not read them.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # With two colons they are parts of a package, which would count twice.
        zones = [
            zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1
        ]
        self._zones = [zone for zone in zones if _read(zone / "name").startswith("package")]
        if not self._zones:
            raise MeasureError(
                f"RAPL: no package under {powercap}; it needs Linux on an Intel or AMD processor with the module "
                "intel_rapl_msr, and a virtual machine or container usually has none"
            )
        self.packages = tuple(_read(zone / "name") for zone in self._zones)
        self._range_uj = [_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._last_uj = self._counters_uj()
        self._total_uj = 0

    def energy_j(self) -> float:
        """Return joules of all packages since this meter was made; a counter that wrapped once
        between two calls is right.
        """
        now_uj = self._counters_uj()
        for now, last, span in zip(now_uj, self._last_uj, self._range_uj, strict=True):
            self._total_uj += wrapped_difference(now, last, span)
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def power_w(self) -> float | None:
        """Return None, since RAPL has no power."""
        # Counters wrap after a few minutes of load: read this often, none can wrap twice unseen.
        self.energy_j()
        return None

    def _counters_uj(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]


def wrapped_difference(now: int, last: int, span: int) -> int:
    """Return counts from `last` to `now` of a counter that goes from `span` to 0.

    The step back itself, at most 61 uJ, is lost.
    """
    return now - last if now >= last else span - last + now


def _number(path: Path) -> int:
    text = _read(path)
    try:
        return int(text)
    except ValueError:
        raise MeasureError(
            f"RAPL: {path} holds '{text}', not a number; the counter cannot be used"
        ) from None


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except PermissionError as error:
        raise MeasureError(
            f"RAPL: {path} may be read by root only, as energy gives secrets away (CVE-2020-8694); run as root, or let "
            "root give you the right to read it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MeasureError(
            f"RAPL: {path} cannot be read ({error}); the counter cannot be used"
        ) from error


@dataclass(frozen=True, kw_only=True)
class CpuMeasurement(Measurement):
    """Energy of an inference on the processor's packages.

    Args:
        packages: domains that were summed.
        processor: architecture, as Python knows it.
        threads: of onnxruntime, 0 is every core.
        grade: "C": RAPL is a model of the vendor's, calibrated on silicon.
    """

    packages: tuple[str, ...]
    processor: str
    threads: int
    grade: Grade = "C"


def measure_cpu(
    path: str | Path,
    inputs: Array,
    *,
    large_batch: int = 64,
    threads: int = 0,
    counts: OperationCounts | None = None,
    plan: MeasurementPlan = USUAL_PLAN,
    powercap: Path = POWERCAP,
    make_workload: Callable[..., Workload] = OnnxWorkload,
    clock: Clock | None = None,
) -> CpuMeasurement:
    """Measure an ONNX file on the CPU by RAPL, by the protocol of `measure_gpu`.

    The counters are those of whole packages: whatever else runs on the machine is in gross_j, and
    what runs all the time is in idle_w. Leave the machine alone meanwhile, about
    (plan.window_s + 10) * plan.repeats seconds per batch size.

    Args:
        path: the file that is counted; static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; the first 64 batches are run in turn.
        large_batch: the second batch size, from 2.
        threads: of onnxruntime, 0 takes every core.
        counts: of `count_onnx` for energies per multiplication.
        plan: durations, and windows per batch size.
        powercap, make_workload, clock: in place of Linux' folder of counters, onnxruntime and the
            machine's clock.

    Raises:
        MeasureError: no RAPL or no right to read it, a file or inputs that do not fit, a window too
            short, a counter that stands still. Says why, and the cure.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    source, sizes, notes, macs = prepare(path, inputs, large_batch, counts)
    # type(), since True is an int too.
    if type(threads) is not int or threads < 0:
        raise MeasureError(f"threads: {threads}, needs an integer from 0 (every core)")
    meter = RaplMeter(powercap)

    def ready(batch: int) -> Workload:
        return make_workload(source, inputs, batch, "CPUExecutionProvider", threads=threads)

    measured, batch_notes = measure_batches(sizes, ready, meter, clock, plan)
    return CpuMeasurement(
        batches=measured,
        macs=macs,
        packages=meter.packages,
        # Linux often leaves the first one empty.
        processor=platform.processor() or platform.machine(),
        threads=threads,
        precision=source.precision,
        sha256=source.sha256,
        notes=(
            *notes,
            "packages only: memory modules, disks and fans are not in it",
            *batch_notes,
        ),
    )
