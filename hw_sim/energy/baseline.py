"""`baseline`: what a non-spiking network costs here, measured where that can be done; floors and
reasons where not.

A floor is what a dense network cannot cost less than on a device, by its datasheet, if every unit
were busy all the time:

    floor_j = MAC_dense_padded * 2 * TDP / peak        (1 MAC = 2 operations)

It is a bound and never a consumption: small batches cost far more. `measure_gpu` gives the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.hw_sim.energy.measure.cpu import CpuMeasurement, measure_cpu
from knarr.hw_sim.energy.measure.gpu import GpuMeasurement, measure_gpu
from knarr.hw_sim.energy.measure.protocol import MeasureError, Measurement, MeasurementPlan
from knarr.hw_sim.energy.measure.workload import batches, check_inputs, read_source
from knarr.hw_sim.energy.prices import Grade, PriceError, PriceRecord, load_profile
from knarr.hw_sim.errors import CountError

LABEL = "a bound at 100 % utilisation, never consumption"
PROFILE = "gpu_floor"


@dataclass(frozen=True)
class Floor:
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

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump, with the same names."""
        return asdict(self)


def gpu_floor(counts: OperationCounts, device: str, precision: str) -> Floor:
    """Compute the floor of one inference: 2 TDP / peak times the dense padded multiplications.

    Args:
        counts: of `count_onnx` (of `count` for a spiking network that is run densely, all its
            steps).
        device: a device of the profile `gpu_floor`, or a part of its name that only one has, such
            as "h200".
        precision: one that the device has, such as "fp32"; TF32 has no row, fp32 does not bound it.

    Raises:
        PriceError: unknown device or precision; says which there are.
        CountError: the counts have no total.
    """
    records = _records()
    devices = dict.fromkeys(name for name, _ in records)
    # A whole name wins over parts of others; parts end at underscores.
    found = [device] if device in devices else [n for n in devices if f"_{device}_" in f"_{n}_"]
    if len(found) != 1:
        problem = "does not exist" if not found else f"may be any of {', '.join(found)}"
        raise PriceError(f"device: '{device}' {problem}; choose one of {', '.join(devices)}")
    record = records.get((found[0], precision))
    if record is None:
        known = [of for name, of in records if name == found[0]]
        raise PriceError(
            f"precision: '{precision}' of device '{found[0]}' does not exist; choose one of {', '.join(known)}"
        )
    return _floor(counts, found[0], precision, record)


def gpu_floors(counts: OperationCounts) -> tuple[Floor, ...]:
    """Compute the floors of every device and precision of the profile.

    Raises:
        CountError: the counts have no total.
    """
    return tuple(_floor(counts, *names, record) for names, record in _records().items())


def _floor(counts: OperationCounts, device: str, precision: str, record: PriceRecord) -> Floor:
    assert record.nominal is not None  # the test of the profile holds it to 2 TDP / peak
    macs = float(counts.total.dense_padded)
    return Floor(
        device=device,
        precision=precision,
        pj_per_mac=record.nominal,
        macs_dense_padded=macs,
        floor_j=macs * record.nominal * 1e-12,
        grade=record.grade,
        source=f"{record.source}: {record.note.partition(';')[0]}",
    )


def _records() -> dict[tuple[str, str], PriceRecord]:
    """Return device and precision -> price; an id of the profile is `device_precision`."""
    records = {}
    for record in load_profile(PROFILE).prices:
        # Names of devices may have underscores of their own.
        device, _, precision = record.id.rpartition("_")
        records[device, precision] = record
    return records


Kind = TypeVar("Kind", bound=Measurement)
NOTHING_TO_RUN = "no inputs were given, nothing was run"


@dataclass(frozen=True)
class Baseline:
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

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump, units in the names."""
        return {
            **vars(self),
            "floors": [floor.to_json() for floor in self.floors],
            "gpu": None if self.gpu is None else self.gpu.to_json(),
            "cpu": None if self.cpu is None else self.cpu.to_json(),
        }


def baseline(
    path: str | Path,
    inputs: Array | None,
    *,
    device: int = 0,
    window_s: float = 10.0,
    repeats: int = 3,
    large_batch: int = 64,
    tf32: bool = True,
    counts: OperationCounts | None = None,
    on_gpu: Callable[..., GpuMeasurement] = measure_gpu,
    on_cpu: Callable[..., CpuMeasurement] = measure_cpu,
) -> Baseline:
    """Compute floors of a file, and measure its energy on this machine's GPU and CPU where they can
    be measured.

    Args:
        path: ONNX file, static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; None measures nothing.
        device, window_s, repeats, large_batch, tf32: as `measure_gpu` takes them; those that
            `measure_cpu` has go there too.
        counts: of `count_onnx`; counted here, with the inputs, where None.
        on_gpu, on_cpu: in place of those two.

    Returns:
        What was found. A GPU or CPU that cannot be measured is a reason in it, not an error.

    Raises:
        MeasureError: arguments, a file or inputs that no machine could measure.
        CountError: the file cannot be counted at all. Single operations that cannot only refuse the
            floors.
        FileNotFoundError: no such file.
    """
    plan = MeasurementPlan(window_s=window_s, repeats=repeats)
    # What no machine could measure is an error, before anything is counted or run.
    source = read_source(path)
    batches(source, large_batch)
    if inputs is not None:
        check_inputs(source, inputs)
    if counts is None:
        runnable = inputs is not None and inputs.dtype == "float32"  # all that `count_onnx` runs
        counts = count_onnx(path, inputs if runnable else None)
    floors: tuple[Floor, ...] = ()
    floors_refused = ""
    try:
        floors = gpu_floors(counts)
    except CountError as error:
        floors_refused = str(error)
    gpu, gpu_refused = None, NOTHING_TO_RUN
    cpu, cpu_refused = None, NOTHING_TO_RUN
    if inputs is not None:
        shared: dict[str, Any] = {
            "plan": plan,
            "large_batch": large_batch,
            "counts": None if floors_refused else counts,
        }
        gpu, gpu_refused = _tried(lambda: on_gpu(path, inputs, device=device, tf32=tf32, **shared))
        cpu, cpu_refused = _tried(lambda: on_cpu(path, inputs, **shared))
    return Baseline(
        source.path.name, source.sha256, floors, gpu, cpu, floors_refused, gpu_refused, cpu_refused
    )


def _tried(measure: Callable[[], Kind]) -> tuple[Kind | None, str]:
    try:
        return measure(), ""
    except MeasureError as error:
        return None, str(error)
