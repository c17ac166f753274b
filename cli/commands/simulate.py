"""`knarr simulate`: any .net file, any inputs, one of the engines."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.cli import output as progress
from knarr.cli.output import keep_apart, read_inputs
from knarr.deploy import DeployError, check, read_net, run_on_lava
from knarr.deploy.violation import fatal
from knarr.files import write_atomic
from knarr.hw_sim import ChipError, ChipNetwork, Recording, encode, save_recording, simulate
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.recording import RECORDABLE
from knarr.hw_sim.simulation import ENGINES, choose, plans

SHOWN_DECISIONS = 20


def simulate_file(
    net: Path,
    data: Path,
    out: Path | None,
    engine: str,
    *,
    record: str | None = None,
    picture: Path | None = None,
    sample: int = 0,
    labels: Path | None = None,
    split: Literal["test", "validation"] = "test",
    threads: int | None = None,
    timesteps: int | None = None,
    timeout_s: float | None = None,
    json: bool,
) -> dict[str, Any]:
    """Run a file and say what came out.

    Args:
        net: `.net` file.
        data: .npy of integers as the chip takes them or of data as the network's coding says, or a run folder: its test set.
        out: where the recording goes.
        engine: of `simulate`, or "lava".
        record: names of RECORDABLE with commas between; output and spikes where something is written.
        picture: PNG of one sample's spikes.
        sample: which one.
        labels: .npy of (samples,) classes; of the clips by default, where data is a run.
        split: of a run: its test set, or the training clips that it validates on.
        threads: of the simulator.
        timesteps: how many, where the inputs have no time axis.
        timeout_s: limit of a Lava run, seconds.
        json: all decisions, not the first few.

    Raises:
        DeployError, ChipError, LavaError: what is wrong with file, inputs or worker.
    """
    wanted = _wanted(record, out)
    if engine not in (*ENGINES, "lava"):
        raise ChipError(f"--engine: '{engine}' does not exist, choose {', '.join(ENGINES)} or lava")
    if sample and picture is None:
        raise ChipError("--sample: names what --picture draws; give that too")
    keep_apart(out, net, data, labels)
    keep_apart(picture, net, data, labels, out)
    if record is not None and out is None:
        raise ChipError("--record: names what is written; say where with --out")
    if engine == "lava" and threads is not None:
        raise ChipError(
            "--threads: goes with the simulator's engines, Lava starts processes of its own"
        )
    if engine != "lava" and timeout_s is not None:
        raise ChipError("--timeout: goes with --engine lava, the simulator stops at Ctrl-C")
    network = read_net(net)
    broken = fatal(check(network))
    if broken:
        raise DeployError(f"{net}: not simulated, no chip runs it: {broken[0]}")
    values, true = _samples(data, labels, split)
    events = check_inputs(
        network.input, encode(network.input, values, timesteps=timesteps), timesteps
    )
    if not 0 <= sample < len(events):
        raise ChipError(f"--sample: {sample}, there are 0..{len(events) - 1}")
    if true is not None and len(true) != len(events):
        raise ChipError(f"labels: {len(true)} for {len(events)} samples; give one each")
    if picture is not None and engine == "lava":
        wanted = tuple(dict.fromkeys((*wanted, "spikes")))
    started = time.perf_counter()
    recording = _run(net, network, events, engine, wanted, threads, timesteps, timeout_s)
    seconds = time.perf_counter() - started
    if out is not None:
        save_recording(recording, out)
    if picture is not None:
        _draw(network, events, recording, sample, picture, timesteps)
    decided = network.readout.decide(recording.output)
    samples, steps = recording.output.shape[:2]
    facts = {
        "engine": recording.engine,
        "samples": samples,
        "timesteps": steps,
        "readout": f"{network.readout.kind}, {network.readout.over_time} over time",
        "spikes": {name: int(counts.sum()) for name, counts in recording.event_counts.items()},
        "on_the_reference": _left(network, engine),
        "activity": _activity(network, recording)
        if json
        else _percent(_activity(network, recording)),
        "decisions": _shortened(decided, json=json),
        "recording": None if out is None else str(out),
        "picture": None if picture is None else str(picture),
        "seconds": round(seconds, 4) if json else f"{seconds:.3g}",
        "samples_per_second": round(samples / seconds, 2) if json else f"{samples / seconds:,.4g}",
    }
    if true is not None:
        right = int((decided == true).sum())
        facts["right"] = right if json else f"{right} of {samples}"
    return (
        facts if json else {name: value for name, value in facts.items() if value not in (None, {})}
    )


def _wanted(record: str | None, out: Path | None) -> tuple[str, ...]:
    if record is None:
        return ("output", "spikes") if out is not None else ("output",)
    names = tuple(name.strip() for name in record.split(","))
    unknown = [name for name in names if name not in RECORDABLE]
    if unknown:
        raise ChipError(f"--record: unknown {unknown}, choose from {', '.join(RECORDABLE)}")
    return names


def _samples(
    data: Path, labels: Path | None, split: Literal["test", "validation"]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    true = None if labels is None else read_inputs(labels)
    if true is not None and (true.ndim != 1 or true.dtype.kind not in "iu"):
        raise ChipError(
            f"{labels}: labels are (samples,) integers, these are {true.dtype} {true.shape}"
        )
    if not data.is_dir():
        if split != "test":
            raise ChipError(
                f"--split: {split} of a run; {data} is a file, give a run folder as --data"
            )
        return read_inputs(data), true
    from knarr.pipeline import stages
    from knarr.train.train import train_validation_split

    run = stages.reopen(data)
    held = run.data.test
    chosen: npt.NDArray[np.int64] = np.arange(len(held.labels))
    if split == "validation":
        held, (_, chosen) = run.data.train, train_validation_split(run.recipe, run.data)
    return run.on_chip(held).chip_inputs(chosen), held.labels[chosen] if true is None else true


def _run(
    net: Path,
    network: ChipNetwork,
    events: npt.NDArray[Any],
    engine: str,
    wanted: tuple[str, ...],
    threads: int | None,
    timesteps: int | None,
    timeout_s: float | None,
) -> Recording:
    if engine == "lava":
        # Lava counts nothing, so that spikes are recorded to be counted.
        record = tuple(dict.fromkeys((*wanted, "spikes")))
        count = progress.counter("Lava steps")
        return run_on_lava(
            net, events, record=record, timesteps=timesteps, timeout_s=timeout_s, progress=count
        )
    return simulate(
        network,
        events,
        timesteps=timesteps,
        engine=engine,  # type: ignore[arg-type]
        record=wanted,
        threads=threads,
        progress=progress.counter("samples x steps"),
    )


def _left(network: ChipNetwork, engine: str) -> dict[str, str]:
    """Layers that a fast engine leaves to the reference, and why: they take a thousand times as long."""
    if engine in ("lava", "reference"):
        return {}
    found = plans(network, choose(engine))
    return {
        layer.name: plan
        for layer, plan in zip(network.layers, found, strict=True)
        if isinstance(plan, str)
    }


def _activity(network: ChipNetwork, recording: Recording) -> dict[str, float]:
    """Spikes per neuron and step of every layer."""
    sizes = {layer.name: int(np.prod(layer.output_shape)) for layer in network.layers}
    return {
        name: round(float(counts.mean()) / sizes[name], 6)
        for name, counts in recording.event_counts.items()
        if name in sizes
    }


def _percent(rates: dict[str, float]) -> dict[str, str]:
    return {name: f"{rate:.2%}" for name, rate in rates.items()}


def _shortened(decided: npt.NDArray[np.int64], *, json: bool) -> list[int] | str:
    if json:
        return [int(decision) for decision in decided]
    shown = ", ".join(str(int(decision)) for decision in decided[:SHOWN_DECISIONS])
    more = f", ... ({len(decided):,} in all: --json)" if len(decided) > SHOWN_DECISIONS else ""
    return shown + more


def _draw(
    network: ChipNetwork,
    events: npt.NDArray[Any],
    recording: Recording,
    sample: int,
    picture: Path,
    timesteps: int | None,
) -> None:
    from knarr.pipeline.pictures import raster as raster_picture

    one = events[sample : sample + 1]
    if recording.spikes:
        spikes = {name: array[sample] for name, array in recording.spikes.items()}
    else:  # of this sample alone, whatever the others would need
        again = simulate(network, one, timesteps=timesteps, record=("spikes",))
        spikes = {name: array[0] for name, array in again.spikes.items()}
    silent = {layer.name for layer in network.layers if not layer.neuron.spikes}
    spikes = {name: values for name, values in spikes.items() if name not in silent}
    if network.input.neuron is None:
        spikes = {"input": one[0], **spikes}
    voltage = network.readout.kind == "voltage"
    figure = raster_picture.draw(
        spikes,
        recording.output[sample] if voltage else None,
        network.dt_s,
        f"Sample {sample} on the chip",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomic(picture, buffer.getvalue())
