"""`measure_cpu`: joules per inference of an ONNX file on the processor's packages, memory modules
left out; of an Apple machine the whole chip.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.measure.meters import ZeusMeter, open_cpu
from knarr.hw_sim.energy.measure.protocol import (
    USUAL_PLAN,
    Clock,
    MeasureError,
    Measurement,
    MeasurementPlan,
    Workload,
    measure_batches,
)
from knarr.hw_sim.energy.measure.workload import OnnxWorkload, prepare
from knarr.hw_sim.energy.prices import Grade


@dataclass(frozen=True, kw_only=True)
class CpuMeasurement(Measurement):
    """Energy of an inference on the processor's packages.

    Args:
        packages: domains that were summed, and what was read.
        processor: architecture, as Python knows it.
        threads: of onnxruntime, 0 is every core.
        grade: "C": RAPL is a model of the vendor's, calibrated on silicon.
    """

    packages: str
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
    open_meter: Callable[[], ZeusMeter] = open_cpu,
    make_workload: Callable[..., Workload] = OnnxWorkload,
    clock: Clock | None = None,
) -> CpuMeasurement:
    """Measure an ONNX file on the CPU by RAPL, which zeus reads, and by the protocol of `measure_gpu`.

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
        open_meter, make_workload, clock: in place of zeus, onnxruntime and the machine's clock.

    Raises:
        MeasureError: no zeus, no RAPL or no right to read it, a file or inputs that do not fit, a
            window too short, a counter that stands still. Says why, and the cure.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    source, sizes, notes, macs = prepare(path, inputs, large_batch, counts)
    # type(), since True is an int too.
    if type(threads) is not int or threads < 0:
        raise MeasureError(f"threads: {threads}, needs an integer from 0 (every core)")
    meter = open_meter()

    def ready(batch: int) -> Workload:
        return make_workload(source, inputs, batch, "CPUExecutionProvider", threads=threads)

    measured, batch_notes = measure_batches(sizes, ready, meter, clock, plan)
    return CpuMeasurement(
        batches=measured,
        macs=macs,
        packages=f"{meter.source}: {meter.name}",
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
