"""`measure_cpu`: joules per inference of an ONNX file on the processor's packages, memory modules left out."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knarr.hw_sim.counts import OperationCounts
from knarr.hw_sim.energy.measurement import BatchMeasurement, Macs, MeasureError, macs_of, measurement_json
from knarr.hw_sim.energy.onnx_source import Array, OnnxSource, batches, check_inputs, read_source
from knarr.hw_sim.energy.onnx_workload import OnnxWorkload
from knarr.hw_sim.energy.prices import Grade
from knarr.hw_sim.energy.protocol import Clock, Plan, SystemClock, Workload, measure_batch
from knarr.hw_sim.energy.rapl import POWERCAP, RaplMeter


@dataclass(frozen=True)
class CpuMeasurement:
    """What an inference took, per batch size.

    Args:
        batches: batch 1 (latency), then the large one (throughput) where the file can run it.
        macs: multiplications of one inference, None where nobody gave counts.
        packages: domains that were summed.
        processor: architecture, as Python knows it.
        threads: of onnxruntime, 0 is every core.
        precision: of the file's weights.
        sha256: of the file.
        notes: what to know before the numbers are used.
        grade: "C": RAPL is a model of the vendor's, calibrated on silicon.
    """

    batches: tuple[BatchMeasurement, ...]
    macs: Macs | None
    packages: tuple[str, ...]
    processor: str
    threads: int
    precision: str
    sha256: str
    notes: tuple[str, ...]
    grade: Grade = "C"

    def to_json(self) -> dict[str, object]:
        """Plain dict for json.dump, units in the names."""
        return measurement_json(self) | {"packages": list(self.packages)}


def measure_cpu(
    path: str | Path,
    inputs: Array,
    *,
    window_s: float = 10.0,
    repeats: int = 3,
    large_batch: int = 64,
    threads: int = 0,
    counts: OperationCounts | None = None,
    plan: Plan | None = None,
    powercap: Path = POWERCAP,
    make_workload: Callable[[OnnxSource, Array, int, int], Workload] | None = None,
    clock: Clock | None = None,
) -> CpuMeasurement:
    """Measure an ONNX file on the CPU by RAPL, by the protocol of `measure_gpu`.

    The counters are those of whole packages: whatever else runs on the machine is in gross_j, and what runs all the time
    is in idle_w. Leave the machine alone meanwhile, about (window_s + 10) * repeats seconds per batch size.

    Args:
        path: the file that is counted; static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; the first 64 batches are run in turn.
        window_s: looped inference per window, at least 8.
        repeats: windows per batch size, at least 3.
        large_batch: the second batch size, from 2.
        threads: of onnxruntime, 0 takes every core.
        counts: of `count_onnx` for energies per multiplication.
        plan: all durations, in place of `window_s` and `repeats`.
        powercap, make_workload, clock: in place of Linux' folder of counters, onnxruntime and the machine's clock.

    Raises:
        MeasureError: no RAPL or no right to read it, a file or inputs that do not fit, a window too short, a counter
            that stands still. Says why, and the cure.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    plan = plan or Plan(window_s=window_s, repeats=repeats)
    source = read_source(path)
    check_inputs(source, inputs)
    sizes, notes = batches(source, large_batch)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise MeasureError(f"threads: {threads}, needs an integer from 0 (every core)")
    macs = None if counts is None else macs_of(counts)
    meter = RaplMeter(powercap)
    measured = []
    for batch in sizes:
        workload = (make_workload or cpu_workload)(source, inputs, batch, threads)
        measured.append(measure_batch(workload, meter, clock or SystemClock(), plan))
        del workload  # its threads must not spin in the idle time of the next one
    return CpuMeasurement(
        batches=tuple(measured),
        macs=macs,
        packages=meter.packages,
        processor=platform.processor() or platform.machine(),
        threads=threads,
        precision=source.precision,
        sha256=source.sha256,
        notes=(
            *notes,
            "packages only: memory modules, disks and fans are not in it",
            *(note for batch in measured for note in batch.notes),
        ),
    )


def cpu_workload(source: OnnxSource, inputs: Array, batch: int, threads: int) -> Workload:
    """The file in onnxruntime's CPUExecutionProvider."""
    return OnnxWorkload(source, inputs, batch, "CPUExecutionProvider", threads=threads)
