"""`baseline`: what a non-spiking network costs here, measured where that can be done; floors and
reasons where not.

A floor is what a dense network cannot cost less than on a device, by its datasheet, if every unit
were busy all the time:

    floor_j = MAC_dense_padded * 2 * TDP / peak        (1 MAC = 2 operations)

It is a bound and never a consumption: small batches cost far more. `measure_gpu` gives the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.hw_sim.energy.measure.cpu import CpuMeasurement, measure_cpu
from knarr.hw_sim.energy.measure.gpu import GpuMeasurement, measure_gpu
from knarr.hw_sim.energy.measure.protocol import (
    USUAL_PLAN,
    MeasureError,
    Measurement,
    MeasurementPlan,
)
from knarr.hw_sim.energy.measure.workload import prepare
from knarr.hw_sim.energy.prices import Grade, load_profile
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.json_values import JsonRecord

LABEL = "a bound at 100 % utilisation, never consumption"
PROFILE = "gpu_floor"


@dataclass(frozen=True)
class Floor(JsonRecord):
    """The least energy of one inference on a device, from its datasheet.

    Args:
        device, precision: row of the profile `gpu_floor`, such as "v100" and "fp32".
        pj_per_mac: 2 TDP / peak, pJ, above 0.
        macs_dense_padded: multiplications of one inference, taps into the padding included.
        floor_j: their product, J.
        grade: "D", datasheet arithmetic.
        source: who says so, with TDP and peak.
        label: what the number is; print it beside the number.
    """

    device: str
    precision: str
    pj_per_mac: float
    macs_dense_padded: float
    floor_j: float
    grade: Grade
    source: str
    label: str = LABEL


def gpu_floors(counts: OperationCounts) -> tuple[Floor, ...]:
    """Compute the floors of one inference on every device and precision of the profile: 2 TDP / peak
    times the dense padded multiplications. TF32 has no row, and fp32 does not bound it.

    Args:
        counts: of `count_onnx` (of `count` for a spiking network that is run densely, all its
            steps).

    Raises:
        CountError: the counts have no total.
    """
    macs = float(counts.total.dense_padded)
    floors = []
    for record in load_profile(PROFILE).prices:
        # An id is `device_precision`, and names of devices may have underscores of their own.
        device, _, precision = record.id.rpartition("_")
        assert record.nominal is not None  # the test of the profile holds it to 2 TDP / peak
        floors.append(
            Floor(
                device=device,
                precision=precision,
                pj_per_mac=record.nominal,
                macs_dense_padded=macs,
                floor_j=macs * record.nominal * 1e-12,
                grade=record.grade,
                source=f"{record.source}: {record.note.partition(';')[0]}",
            )
        )
    return tuple(floors)


Kind = TypeVar("Kind", bound=Measurement)
NOTHING_TO_RUN = "no inputs were given, nothing was run"


@dataclass(frozen=True)
class Baseline(JsonRecord):
    """Floors and measurements of one ONNX file; what is None has a reason.

    Args:
        file: its name.
        sha256: of the file.
        floors: of every device and precision in the profile `gpu_floor`: bounds, never consumption.
        gpu, cpu: measured here.
        floors_refused, gpu_refused, cpu_refused: why there is none, "" where there is one.
    """

    file: str
    sha256: str
    floors: tuple[Floor, ...]
    gpu: GpuMeasurement | None
    cpu: CpuMeasurement | None
    floors_refused: str = ""
    gpu_refused: str = ""
    cpu_refused: str = ""


def baseline(
    path: str | Path,
    inputs: Array | None,
    *,
    plan: MeasurementPlan = USUAL_PLAN,
    large_batch: int = 64,
    counts: OperationCounts | None = None,
    on_gpu: Callable[..., GpuMeasurement] = measure_gpu,
    on_cpu: Callable[..., CpuMeasurement] = measure_cpu,
) -> Baseline:
    """Compute floors of a file, and measure its energy on this machine's GPU and CPU where they can
    be measured.

    Args:
        path: ONNX file, static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; None measures nothing.
        plan, large_batch: as `measure_gpu` and `measure_cpu` take them.
        counts: of `count_onnx`; counted here, with the inputs, where None.
        on_gpu, on_cpu: in place of those two, or them with other options.

    Returns:
        What was found. A GPU or CPU that cannot be measured is a reason in it, not an error.

    Raises:
        MeasureError: arguments, a file or inputs that no machine could measure.
        CountError: the file cannot be counted at all. Single operations that cannot only refuse the
            floors.
        FileNotFoundError: no such file.
    """
    # What no machine could measure is an error, before anything is counted or run.
    source, *_ = prepare(path, inputs, large_batch, None)
    if counts is None:
        runnable = inputs is not None and inputs.dtype == "float32"  # all that `count_onnx` runs
        counts = count_onnx(path, inputs if runnable else None)
    floors: tuple[Floor, ...] = ()
    floors_refused = ""
    try:
        floors = gpu_floors(counts)
    except CountError as error:
        floors_refused = str(error)
    whole = None if floors_refused else counts

    def tried(measure: Callable[..., Kind]) -> tuple[Kind | None, str]:
        if inputs is None:
            return None, NOTHING_TO_RUN
        try:
            return measure(path, inputs, plan=plan, large_batch=large_batch, counts=whole), ""
        except MeasureError as error:
            return None, str(error)

    gpu, gpu_refused = tried(on_gpu)
    cpu, cpu_refused = tried(on_cpu)
    return Baseline(
        source.path.name, source.sha256, floors, gpu, cpu, floors_refused, gpu_refused, cpu_refused
    )
