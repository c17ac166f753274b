"""`baseline`: what a non-spiking network costs here, measured where that can be done; floors and reasons where not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from knarr.hw_sim.count_onnx import count_onnx
from knarr.hw_sim.counts import OperationCounts
from knarr.hw_sim.energy.floor import Floor, gpu_floors
from knarr.hw_sim.energy.measure_cpu import CpuMeasurement, measure_cpu
from knarr.hw_sim.energy.measure_gpu import GpuMeasurement, measure_gpu
from knarr.hw_sim.energy.measurement import MeasureError
from knarr.hw_sim.energy.onnx_source import Array, batches, check_inputs, read_source
from knarr.hw_sim.energy.protocol import Plan
from knarr.hw_sim.errors import CountError

Measurement = TypeVar("Measurement", GpuMeasurement, CpuMeasurement)
NOTHING_TO_RUN = "no inputs were given, nothing was run"


@dataclass(frozen=True)
class Baseline:
    """Floors and measurements of one ONNX file; what is None has a reason.

    Args:
        file: its name; sha256: of it.
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
        """Plain dict for json.dump, units in the names."""
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
    """Floors of a file, and its energy on this machine's GPU and CPU where they can be measured.

    Args:
        path: ONNX file, static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; None measures nothing.
        device, window_s, repeats, large_batch, tf32: of `measure_gpu`; those that `measure_cpu` has go there too.
        counts: of `count_onnx`; counted here, with the inputs, where None.
        on_gpu, on_cpu: in place of those two.

    Returns:
        What was found. A GPU or CPU that cannot be measured is a reason in it, not an error.

    Raises:
        MeasureError: arguments, a file or inputs that no machine could measure.
        CountError: the file cannot be counted at all. Single operations that cannot only refuse the floors.
        FileNotFoundError: no such file.
    """
    plan = Plan(window_s=window_s, repeats=repeats)
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


def _tried(measure: Callable[[], Measurement]) -> tuple[Measurement | None, str]:
    try:
        return measure(), ""
    except MeasureError as error:
        return None, str(error)
