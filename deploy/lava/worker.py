"""The one script that imports Lava. Runs alone: `python -I lava_worker.py JOB_FOLDER`, started by `knarr.deploy.lava`.

Reads job.json and inputs.npy, writes progress.json while it runs and, last of all, renames result.npz into place: that
file's existence is the only sign of success. An exception in any of Lava's child processes, or a kill of one, hangs `run`
for ever, so a thread looks after them and the starter watches the clock, the log and fault.json.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

WATCH_S = 0.25
CHUNK_STEPS = 200  # between two writings of progress.json


def _load_sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py must lie beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _die_with_starter(alive: int, job_folder: Path) -> None:
    """End the whole group when the process that started us is gone: Lava's children would otherwise run for ever.

    Args:
        alive: reading end of a pipe that the starter holds open; its end-of-file is the starter's end.
        job_folder: removed, since the starter cannot do it any more.
    """
    process_group = _load_sibling("process_group")
    os.read(alive, 1)
    group = os.getpgrp()
    try:
        process_group.kill_group(group, spare=os.getpid())
        for _ in range(20):  # the main thread may still be writing
            shutil.rmtree(job_folder, ignore_errors=True)
            if not job_folder.exists():
                break
            time.sleep(0.05)
    finally:
        os.killpg(group, signal.SIGKILL)


class _Watch:
    """Looks after Lava's processes while one network runs; `with` it around all use of the network but its stop.

    A process that raised sends its traceback down a pipe that nobody reads: printed to the log. One that ended, killed or
    not, leaves the others waiting: told in fault.json.
    """

    def __init__(self, net: Any, job_folder: Path) -> None:
        self.net, self.job_folder = net, job_folder
        self.looking, self.running = threading.Lock(), True

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        with self.looking:  # Lava's own stop reads the same pipes and would wait for what we took
            self.running = False
        if error is not None:
            traceback.print_exception(error)  # before stop, which may hang after a fault

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_S)
            with self.looking:
                if not self.running or self._fault():
                    return

    def _fault(self) -> bool:
        infrastructure = getattr(
            getattr(self.net, "_runtime", None), "_messaging_infrastructure", None
        )
        memory = getattr(getattr(infrastructure, "smm", None), "_manager", None)
        manager = getattr(memory, "_process", None)
        for process in [
            *(getattr(infrastructure, "actors", None) or []),
            *([manager] if manager else []),
        ]:
            status = process.exitcode  # before the pipe, which is written before the end
            failure = None
            with contextlib.suppress(
                OSError, EOFError, ValueError
            ):  # its pipe closes when the run ends
                failure = getattr(process, "exception", None)
            if failure:
                print(failure[1], file=sys.stderr, flush=True)  # noqa: T201 - to the log
                return True
            if status is not None:
                _write_json(self.job_folder / "fault.json", {"status": status})
                return True
        return False


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def run(job_folder: Path) -> None:
    """Run a batch of equally long samples: in one pipelined, resetting run, or each in a network of its own.

    job.json: net (path), bits, readout, record, driven (inputs are bias mantissas of the input layer), isolated (spikes
    under way in delays and loops would reach the next sample). inputs.npy: (samples, timesteps, *features) integers.
    result.npz: output, and spikes/<i>, v/<i>, u/<i> of each of netx's layers; (samples, timesteps, *features), time aligned
    to the inputs.
    """
    import numpy as np

    job = json.loads((job_folder / "job.json").read_text(encoding="utf-8"))
    inputs = np.load(job_folder / "inputs.npy", allow_pickle=False)
    batches = (
        [inputs[s : s + 1] for s in range(len(inputs))]
        if job["driven"] or job["isolated"]
        else [inputs]
    )
    results = []
    for number, batch in enumerate(batches):

        def progress(done: int, of: int, number: int = number) -> None:
            _write_json(
                job_folder / "progress.json", {"steps": number * of + done, "of": len(batches) * of}
            )

        results.append(_run_batch(job, batch, progress, job_folder))
    result = {key: np.concatenate([part[key] for part in results]) for key in results[0]}
    temporary = job_folder / "result.tmp.npz"
    np.savez(temporary, **result)
    os.replace(temporary, job_folder / "result.npz")


def _run_batch(job: Any, inputs: Any, progress: Any, job_folder: Path) -> dict[str, Any]:
    """One network, one run; what was recorded."""
    import numpy as np
    from lava.lib.dl import netx
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.monitor.process import Monitor

    samples, timesteps = inputs.shape[:2]
    driven = job["driven"]
    alone = driven or job["isolated"]  # one sample from rest, nothing to reset
    net = netx.hdf5.Network(
        net_config=job["net"],
        input_message_bits=0 if job["bits"] == 1 else job["bits"],
        reset_interval=None if alone else timesteps,
        reset_offset=1,  # layer by layer, one step later each, so that pipelined samples equal isolated ones
    )
    layers = list(net.layers)
    # An input layer with neurons answers in the step it is driven, any other layer one step after it is fed.
    late = 0 if driven else 1
    steps = samples * timesteps + len(layers)

    columns = np.moveaxis(inputs.reshape(samples * timesteps, *inputs.shape[2:]), 0, -1)
    if inputs.ndim == 5:
        columns = columns.transpose(2, 1, 0, 3)  # (C, H, W, t) -> Lava's (W, H, C, t)
    # Without the zero columns the source would begin anew while the last layers still work.
    columns = np.concatenate(
        [columns, np.zeros((*columns.shape[:-1], len(layers) + 1), dtype=columns.dtype)], axis=-1
    )
    waiting: dict[int, list[tuple[Any, Any]]] = {}  # step -> biases that begin there
    if alone:
        # A layer would integrate its bias before the first input reaches it, and what it fires could not be taken back.
        for index, layer in enumerate(layers[1 if driven else 0 :], start=1 if driven else 0):
            bias = layer.neuron.bias_mant
            waiting.setdefault(index + late, []).append(
                (bias, np.broadcast_to(bias.init, bias.shape).copy())
            )
            bias.init = np.zeros(bias.shape, dtype=np.int32)
    if driven:
        layers[0].neuron.bias_mant.init = columns[..., 0].astype(np.int32)
    else:
        source = Source(data=columns.astype(np.int32))
        source.s_out.connect(net.inp)

    last = len(layers) - 1
    voltage_readout = job["readout"] == "voltage"
    recorder = _load_sibling("recorder")
    recorder.install()
    for index, layer in enumerate(layers):
        if "spikes" in job["record"] or (index == last and not voltage_readout):
            sink = Sink(shape=layer.out.shape, buffer=1)
            layer.out.connect(sink.a_in)
            recorder.record(sink, f"spikes/{index}", steps, layer.out.shape)
        for state in ("v", "u"):
            if state in job["record"] or (state == "v" and index == last and voltage_readout):
                var = getattr(layer.neuron, state)
                monitor = Monitor()
                monitor.probe(var, 1)
                recorder.record(monitor, f"{state}/{index}", steps, var.shape)

    def aligned(data: Any, index: int) -> Any:
        """(steps, *lava shape) -> (samples, timesteps, *features): layer l (from 0) answers column k in step k + late + l."""
        data = data[index + late : index + late + samples * timesteps]
        if data.ndim == 4:
            data = data.transpose(0, 3, 2, 1)
        return data.astype(np.int64, order="C").reshape(samples, timesteps, *data.shape[1:])

    done = 0
    try:
        with _Watch(net, job_folder):
            while done < steps:
                for bias, value in waiting.pop(done, []):
                    bias.set(value.astype(np.int32))
                chunk = 1 if driven or waiting else min(timesteps, CHUNK_STEPS)
                if (
                    driven and done
                ):  # the bias of the steps after the last sample does not matter: nobody looks at them
                    layers[0].neuron.bias_mant.set(
                        columns[..., min(done, columns.shape[-1] - 1)].astype(np.int32)
                    )
                now = min(chunk, steps - done)
                net.run(
                    condition=RunSteps(num_steps=now), run_cfg=Loihi2SimCfg(select_tag="fixed_pt")
                )
                done += now
                progress(done, steps)
    finally:
        net.stop()
    result = {
        key: aligned(array, int(key.partition("/")[2])) for key, array in recorder.recorded.items()
    }
    result["output"] = result[f"v/{last}" if voltage_readout else f"spikes/{last}"].reshape(
        samples, timesteps, -1
    )
    return result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if "KNARR_STARTER_FD" in os.environ:
        pipe = int(os.environ["KNARR_STARTER_FD"])
        threading.Thread(target=_die_with_starter, args=(pipe, folder), daemon=True).start()
    # Lava's processes meet at sockets whose names the system cuts at 107 bytes, which a long TMPDIR passes: name them from here.
    multiprocessing.current_process()._config["tempdir"] = "."  # type: ignore[attr-defined]
    run(folder)
