"""The Lava twin of a workload (fixed_pt), in a process of its own: `python with_lava.py JOB_FOLDER`.

Dense, Conv and LIFReset processes, pooling as a grouped Conv of ones; shapes (W, H, C), kernels flipped, since Lava's Conv
is a true convolution. Start-up is not timed: the network runs a stretch first, which also fills its pipeline. Lava is imported
inside functions, since `main` makes it importable first.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from peer_job import PeerJob, PeerStage, read_job, sibling

DU, DV = 1023, 128
"""Lava adds 1 to du."""
COUNTS = 8
"""Message bits where 2x2 sums enter."""


@dataclass
class Twin:
    """The processes.

    Args:
        source: any of them runs all.
        neurons: (LIFReset, Lava step, from 0, at which it answers the first input) of every stage.
        steps_of_sample: after which neurons start anew.
    """

    source: Any
    steps_of_sample: int
    neurons: list[tuple[Any, int]] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)

    def run(self, steps: int) -> None:
        from lava.magma.core.run_conditions import RunSteps
        from lava.magma.core.run_configs import Loihi2SimCfg

        self.source.run(
            condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt")
        )

    def stretch(
        self, data: npt.NDArray[Any], index: int, samples: int, timesteps: int
    ) -> npt.NDArray[Any]:
        """(Lava steps, *lava shape) of a stage -> (samples, timesteps, *features), aligned to the inputs."""
        late = self.neurons[index][1]
        data = data[late : late + samples * timesteps]
        if data.ndim == 4:
            data = data.transpose(0, 3, 2, 1)
        return data.reshape(samples, timesteps, *data.shape[1:])


def twin(stages: tuple[PeerStage, ...], inputs: npt.NDArray[np.uint8], timesteps: int) -> Twin:
    """Build and connect it.

    Args:
        stages: of the workload.
        inputs: (steps, *features) of all samples end to end.
        timesteps: of a sample.
    """
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import Dense
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIFReset

    columns = np.moveaxis(inputs, 0, -1)
    if inputs.ndim == 4:
        columns = columns.transpose(2, 1, 0, 3)
    # Without empty columns the source would begin anew while the last stages still work.
    drain = 2 * len(stages)
    columns = np.concatenate(
        [columns, np.zeros((*columns.shape[:-1], drain), columns.dtype)], axis=-1
    )
    built = Twin(Source(data=columns.astype(np.int32)), timesteps)
    port, late = built.source.s_out, 0
    for stage in stages:
        if stage.pooled:
            channels = stage.entering[0]
            ones = np.ones((channels, 2, 2, 1), dtype=np.int32)
            pool = Conv(weight=ones, input_shape=port.shape, stride=2, groups=channels)
            port.connect(pool.s_in)
            built.parts.append(pool)
            port, late = pool.a_out, late + 1
        bits = COUNTS if stage.pooled else 0
        if stage.conv:
            kernel = np.ascontiguousarray(stage.weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1))
            synapse = Conv(weight=kernel, input_shape=port.shape, num_message_bits=bits)
            port.connect(synapse.s_in)
        else:
            weight = stage.weight
            if len(port.shape) == 3:
                wide, high, channels = port.shape
                weight = weight.reshape(-1, channels, high, wide).transpose(0, 3, 2, 1)
                weight = np.ascontiguousarray(weight.reshape(len(weight), -1))
                port = port.flatten()
            synapse = Dense(weights=weight, num_message_bits=bits)
            port.connect(synapse.s_in)
        late += 1
        lif = LIFReset(
            shape=synapse.a_out.shape, du=DU, dv=DV, vth=stage.vth, reset_interval=timesteps, reset_offset=late + 1
        )  # fmt: skip
        synapse.a_out.connect(lif.a_in)
        built.parts.append(synapse)
        built.neurons.append((lif, late))
        port = lif.s_out
    return built


def checked(job: PeerJob) -> dict[str, npt.NDArray[Any]]:
    """Spikes of every stage on the first `samples` and `steps` (settings), not timed: a sink for each is slow."""
    from lava.proc.io.sink import RingBuffer as Sink

    samples, steps = job.settings["samples"], job.settings["steps"]
    inputs = job.inputs[:samples, :steps]
    net = twin(job.stages, inputs.reshape(-1, *inputs.shape[2:]), steps)
    recorder = sibling("worker").Recorder()
    in_all = samples * steps + net.neurons[-1][1]
    for index, (lif, _) in enumerate(net.neurons):
        sink = Sink(shape=lif.s_out.shape, buffer=1)
        lif.s_out.connect(sink.a_in)
        recorder.record(sink, f"spikes/{index}", in_all, lif.s_out.shape)
        net.parts.append(sink)
    with sibling("worker")._Watch(net.source, job.folder):
        net.run(in_all)
    recorded = {
        key: net.stretch(data, int(key.partition("/")[2]), samples, steps).astype(np.uint8)
        for key, data in recorder.recorded.items()
    }
    net.source.stop()
    return recorded


def timed_run(job: PeerJob) -> dict[str, npt.NDArray[Any]]:
    """Seconds of each of `repeats` stretches of `steps` Lava steps, after `warm_up` of them; and the output on the way."""
    from lava.proc.io.sink import RingBuffer as Sink

    steps, repeats, warm_up = (job.settings[name] for name in ("steps", "repeats", "warm_up"))
    in_all = warm_up + steps * repeats
    timesteps = job.inputs.shape[1]
    inputs = job.inputs.reshape(-1, *job.inputs.shape[2:])
    net = twin(job.stages, inputs[: in_all + 1], timesteps)
    lif, late = net.neurons[-1]
    sink = Sink(shape=lif.s_out.shape, buffer=in_all)
    lif.s_out.connect(sink.a_in)
    times = []
    with sibling("worker")._Watch(net.source, job.folder):
        net.run(warm_up)
        for _ in range(repeats):
            start = time.perf_counter()
            net.run(steps)
            times.append(time.perf_counter() - start)
        data = np.moveaxis(sink.data.get(), -1, 0)[late:]
    net.source.stop()
    return {
        "times_s": np.array(times),
        "output": data.reshape(len(data), prod(data.shape[1:])).astype(np.uint8),
    }


def main() -> None:
    job = read_job()
    sibling("compatibility").prepare()
    result = checked(job) if job.settings["check"] else timed_run(job)
    job.done(
        **result, version=np.array(f"lava-nc {version('lava-nc')}, Python {sys.version.split()[0]}")
    )


if __name__ == "__main__":
    main()
