"""What every `with_*.py` shares: it runs in the tool's own interpreter, next to no knarr, and talks by files.

The folder holds `jobs.json` = {case: {"dt_s": ...}} with `<case>.nir` and `<case>.npz` (inputs) for each. The worker
writes `<case>.out.npz` (spikes) for each, `own<n>.nir` and `own<n>.npz` (inputs, spikes, dt_s) for the tool's own nets,
and `report.json` with versions, the names of those nets, the first line of every error, and notes.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nir
import numpy as np
import torch

Run = Callable[[torch.Tensor], torch.Tensor]
Array = Any  # the tools' environments have numpy of different ages
SAMPLES, TIMESTEPS, FEATURES, NEURONS = 8, 100, 40, 60
IMAGE = (2, 10, 10)


class Own(NamedTuple):
    """A net of the tool: its graph, its own run on `inputs`, and the time step its exporter has in mind."""

    graph: Any
    inputs: torch.Tensor
    spikes: torch.Tensor
    dt_s: float


def serve(
    packages: tuple[str, ...],
    read: Callable[[Path, float], Run],
    own: Mapping[str, Callable[[], Own]],
    *,
    whole: bool = False,
) -> None:
    """Do every job in the folder named on the command line.

    Args:
        packages: whose versions the report gives, the tool first.
        read: (file, dt_s) -> a fresh net, (samples, *features) -> spikes of one step.
        own: case -> net of the tool, exported and run by the tool.
        whole: the net takes (samples, timesteps, *features) at once.
    """
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    errors: dict[str, str] = {}
    notes: dict[str, str] = {}
    jobs = json.loads((folder / "jobs.json").read_text("utf-8"))
    for case, job in jobs.items():
        inputs = torch.as_tensor(np.load(folder / f"{case}.npz")["inputs"])
        path, dt_s = folder / f"{case}.nir", float(job["dt_s"])
        torch.manual_seed(3)
        try:
            with torch.no_grad():
                spikes, notes[case] = run(partial(read, path, dt_s), inputs, whole)
            np.savez(folder / f"{case}.out.npz", spikes=spikes.numpy())
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is a line of the table
            errors[case] = first_line(error)
    for number, make in enumerate(own.values()):
        torch.manual_seed(1)
        path = folder / f"own{number}.nir"
        try:
            with torch.no_grad():
                net = make()
            nir.write(path, net.graph)
            arrays = {
                "inputs": net.inputs.numpy(),
                "spikes": net.spikes.numpy(),
                "dt_s": np.array(net.dt_s),
            }
            np.savez(path.with_suffix(".npz"), **arrays)
        except Exception as error:  # noqa: BLE001 - as above
            errors[path.stem] = first_line(error)
    versions = [f"{p} {importlib.metadata.version(p)}" for p in packages]
    report = {"versions": versions, "own": list(own), "errors": errors, "notes": notes}
    (folder / "report.json").write_text(json.dumps(report), "utf-8")


def run(fresh: Callable[[], Run], inputs: torch.Tensor, whole: bool) -> tuple[torch.Tensor, str]:
    """Spikes (samples, timesteps, *features), and a note where a net takes no batch.

    Args:
        fresh: makes a net without state.
    """
    if whole:
        return fresh()(inputs), ""
    try:
        return over_time(fresh(), inputs), ""
    except RuntimeError as error:
        one_by_one = []
        for sample in inputs:
            net = fresh()
            one_by_one.append(torch.stack([net(x) for x in sample]))
        return torch.stack(one_by_one), f"without batch axis; with it {first_line(error)}"


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def over_time(step: Run, inputs: torch.Tensor) -> torch.Tensor:
    """Call `step` with the (samples, *features) of every time step and stack what it returns."""
    return torch.stack([step(inputs[:, t]) for t in range(inputs.shape[1])], 1)


def with_state(module: Callable[[torch.Tensor, Any], Any]) -> Run:
    """A step function out of (x, state) -> (y, state)."""
    state: Any = None

    def step(x: torch.Tensor) -> torch.Tensor:
        nonlocal state
        y, state = module(x, state)
        return y

    return step


def binary(shape: tuple[int, ...], density: float = 0.3) -> torch.Tensor:
    """Random spikes (samples, timesteps, *shape)."""
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(SAMPLES, TIMESTEPS, *shape, generator=generator) < density).float()


def fill(layer: torch.nn.Module, drive: float) -> torch.nn.Module:
    """Random weights whose sum over a fan-in is about `drive`, with as much spread; the bias is small.

    Args:
        drive: mean of what a neuron gets when all inputs are 1.
    """
    with torch.no_grad():
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        fan_in = weight[0].numel()
        weight.copy_((torch.randn(weight.shape) * 2 / fan_in**0.5 + 1 / fan_in) * drive)
        bias = layer.bias
        if isinstance(bias, torch.Tensor):
            bias.copy_(torch.randn(bias.shape) * 0.1 * drive)
    return layer
