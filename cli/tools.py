"""`knarr simulate`: any .net file, any inputs, one of the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from knarr.cli import progress
from knarr.deploy import read_net, run_on_lava
from knarr.hw_sim import ChipError, encode, save_recording, simulate


def simulate_file(
    net: Path,
    inputs: Path,
    out: Path | None,
    engine: str,
    timeout_s: float | None,
    timesteps: int | None = None,
) -> dict[str, Any]:
    """Run a file and say what came out.

    Raises:
        DeployError, ChipError, LavaError: what is wrong with file, inputs or worker.
    """
    keep_apart(out, net, inputs)
    network = read_net(net)
    events = encode(network.input, read_inputs(inputs), timesteps=timesteps)
    record = ("output", "spikes")
    if engine == "lava":
        recording = run_on_lava(
            net,
            events,
            record=record,
            timesteps=timesteps,
            timeout_s=timeout_s,
            progress=progress.counter("Lava steps"),
        )
    else:
        recording = simulate(network, events, timesteps=timesteps, engine=engine, record=record)  # type: ignore[arg-type]
    if out is not None:
        save_recording(recording, out)
    return {
        "engine": recording.engine,
        "samples": int(recording.output.shape[0]),
        "timesteps": int(recording.output.shape[1]),
        "readout": f"{network.readout.kind}, {network.readout.over_time} over time",
        "spikes": {name: int(spikes.sum()) for name, spikes in recording.spikes.items()},
        "decisions": [int(decision) for decision in network.readout.decide(recording.output)],
        "recording": None if out is None else str(out),
    }


def keep_apart(out: Path | None, *inputs: Path | None) -> None:
    """Refuse to write over what is read, or over the file of facts beside it.

    Raises:
        ChipError: `out` is one of the inputs.
    """
    if out is None:
        return
    mine = {path.resolve() for path in (out, out.with_name(f"{out.name}.json"))}
    for path in inputs:
        if path is not None and mine & {path.resolve(), path.with_name(f"{path.name}.json").resolve()}:
            raise ChipError(f"{out}: is read as {path}; give another name to write to")


def read_inputs(path: Path) -> np.ndarray[Any, Any]:
    """An array of numbers from a .npy file; nothing is unpickled."""
    if not path.is_file():
        raise ChipError(f"{path}: no such file; save integers with numpy.save")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ChipError(f"{path}: not a .npy array of numbers ({error}); save one with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise ChipError(f"{path}: holds several arrays; save one with numpy.save")
    return array
