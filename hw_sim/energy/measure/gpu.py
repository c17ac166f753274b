"""`measure_gpu`: joules per inference of an ONNX file on a GPU. It measures the board, not the host
beside it; of a Jetson or an Apple machine the whole chip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.measure.meters import ZeusMeter, open_gpu
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


@dataclass(frozen=True, kw_only=True)
class GpuMeasurement(Measurement):
    """Energy of an inference on a GPU's board.

    Args:
        device_index, device: CUDA's number, product name.
        counter: what was read, such as "NVML".
        power_limit_w: enforced limit, None where none is known.
        tf32: whether fp32 products may be computed in TF32.
        host_copies: whether inputs and outputs cross to the host within the window: never, they lie
            on the device.
        grade: "M", measured.
    """

    device_index: int
    device: str
    counter: str
    power_limit_w: float | None
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
    open_meter: Callable[[int], ZeusMeter] = open_gpu,
    make_workload: Callable[..., Workload] = OnnxWorkload,
    clock: Clock | None = None,
) -> GpuMeasurement:
    """Measure an ONNX file on a GPU by its energy counter, which zeus reads.

    It takes about (plan.window_s + 10) * plan.repeats seconds per batch size. Start it before anything else
    in the process uses CUDA, on a GPU that nobody else uses.

    Args:
        path: the file that is counted; static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; the first 64 batches are run in turn.
        device: CUDA's number, from 0.
        large_batch: the second batch size, from 2.
        tf32: let fp32 products be computed in TF32 (onnxruntime's default).
        counts: of `count_onnx` for energies per multiplication.
        plan: durations, and windows per batch size.
        open_meter, make_workload, clock: in place of zeus, onnxruntime on CUDA and the machine's
            clock.

    Raises:
        MeasureError: no zeus, GPU, driver or CUDA provider; MIG; another process on the device; a
            file or inputs that do not fit; a window too short; a counter that stands still. Says
            why, and the cure.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    source, sizes, notes, macs = prepare(path, inputs, large_batch, counts)
    # type(), since True is an int too.
    if type(device) is not int:
        raise MeasureError(f"device: {device!r}, needs a number from 0")
    if make_workload is OnnxWorkload:
        # Before a counter is looked for: without the provider it would not be used.
        require_provider(PROVIDER)
    meter = open_meter(device)

    def ready(batch: int) -> Workload:
        workload = make_workload(source, inputs, batch, PROVIDER, ordinal=device, tf32=tf32)
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
        device=meter.name,
        counter=meter.source,
        power_limit_w=meter.power_limit_w,
        precision=source.precision,
        tf32=tf32,
        sha256=source.sha256,
        notes=(*notes, *batch_notes),
    )
