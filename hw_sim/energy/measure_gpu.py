"""`measure_gpu`: joules per inference of an ONNX file on an NVIDIA GPU. It measures the board, not the host beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from knarr.hw_sim.counts import OperationCounts
from knarr.hw_sim.energy.measurement import BatchMeasurement, Macs, MeasureError, macs_of, measurement_json
from knarr.hw_sim.energy.nvml import NvmlDevice, NvmlMeter, cuda_ordinal, open_nvml
from knarr.hw_sim.energy.onnx_source import Array, OnnxSource, batches, check_inputs, read_source
from knarr.hw_sim.energy.onnx_workload import OnnxWorkload, require_provider
from knarr.hw_sim.energy.prices import Grade
from knarr.hw_sim.energy.protocol import Clock, Plan, SystemClock, Workload, measure_batch

MakeWorkload = Callable[[OnnxSource, Array, int, int, bool], Workload]


@dataclass(frozen=True)
class GpuMeasurement:
    """What an inference took, per batch size.

    Args:
        batches: batch 1 (latency), then the large one (throughput) where the file can run it.
        macs: multiplications of one inference, None where nobody gave counts.
        device_index, device, driver: NVML's number, product name, version.
        power_limit_w: enforced limit.
        precision: of the file's weights; tf32: whether fp32 products may be computed in TF32.
        sha256: of the file.
        notes: what to know before the numbers are used.
        host_copies: whether inputs and outputs cross to the host within the window: never, they lie on the device.
        grade: "M", measured.
    """

    batches: tuple[BatchMeasurement, ...]
    macs: Macs | None
    device_index: int
    device: str
    driver: str
    power_limit_w: float
    precision: str
    tf32: bool
    sha256: str
    notes: tuple[str, ...]
    host_copies: bool = False
    grade: Grade = "M"

    def to_json(self) -> dict[str, object]:
        """Plain dict for json.dump, units in the names."""
        return measurement_json(self)


def measure_gpu(
    path: str | Path,
    inputs: Array,
    *,
    device: int = 0,
    window_s: float = 10.0,
    repeats: int = 3,
    large_batch: int = 64,
    tf32: bool = True,
    counts: OperationCounts | None = None,
    plan: Plan | None = None,
    open_device: Callable[[int], NvmlDevice] = open_nvml,
    make_workload: MakeWorkload | None = None,
    clock: Clock | None = None,
) -> GpuMeasurement:
    """Measure an ONNX file on a GPU by the counter nvmlDeviceGetTotalEnergyConsumption (Volta and newer).

    It takes about (window_s + 10) * repeats seconds per batch size. Start it before anything else in the process uses
    CUDA, on a GPU that nobody else uses.

    Args:
        path: the file that is counted; static shapes beyond the batch.
        inputs: (samples, *shape) of the file's type; the first 64 batches are run in turn.
        device: NVML's number, that of nvidia-smi.
        window_s: looped inference per window, at least 8.
        repeats: windows per batch size, at least 3.
        large_batch: the second batch size, from 2.
        tf32: let fp32 products be computed in TF32 (onnxruntime's default).
        counts: of `count_onnx` for energies per multiplication.
        plan: all durations, in place of `window_s` and `repeats`.
        open_device, make_workload, clock: in place of NVML, onnxruntime on CUDA and the machine's clock.

    Raises:
        MeasureError: no GPU, driver, nvidia-ml-py or CUDA provider; MIG; another process on the device; a file or inputs
            that do not fit; a window too short; a counter that stands still. Says why, and the cure.
        CountError: the counts have no total.
        FileNotFoundError: no such file.
    """
    plan = plan or Plan(window_s=window_s, repeats=repeats)
    source = read_source(path)
    check_inputs(source, inputs)
    sizes, notes = batches(source, large_batch)
    macs = None if counts is None else macs_of(counts)
    if isinstance(device, bool) or not isinstance(device, int):
        raise MeasureError(f"device: {device!r}, needs a number from 0")
    with closing(open_device(device)) as gpu:  # closed on KeyboardInterrupt too
        if make_workload is None:
            require_provider("CUDAExecutionProvider")
            make_workload = cuda_workload
        meter = NvmlMeter(gpu)
        ordinal = cuda_ordinal(gpu, device)
        measured = []
        for batch in sizes:
            workload = make_workload(source, inputs, batch, ordinal, tf32)
            workload.run()  # the CUDA context of this process exists from here on
            meter.adopt_own_process()
            measured.append(measure_batch(workload, meter, clock or SystemClock(), plan))
            del workload  # before the next one asks for memory
        if source.precision == "fp32" and tf32:
            notes = (*notes, "TF32 is allowed: the fp32 floors of gpu_floor do not bound this run")
        return GpuMeasurement(
            batches=tuple(measured),
            macs=macs,
            device_index=device,
            device=gpu.name(),
            driver=gpu.driver(),
            power_limit_w=gpu.power_limit_mw() / 1e3,
            precision=source.precision,
            tf32=tf32,
            sha256=source.sha256,
            notes=(*notes, *(note for batch in measured for note in batch.notes)),
        )


def cuda_workload(source: OnnxSource, inputs: Array, batch: int, ordinal: int, tf32: bool) -> Workload:
    """The file in onnxruntime's CUDAExecutionProvider; no node may run on the CPU."""
    return OnnxWorkload(source, inputs, batch, "CUDAExecutionProvider", ordinal=ordinal, tf32=tf32)
