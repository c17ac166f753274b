"""How samples become runs of the Lava worker, and its results a Recording."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim import ChipNetwork, Conv, Dense, Recording, Recurrent
from knarr.hw_sim.layers import Layer
from knarr.hw_sim.recording import INPUT_LAYER

Arrays = dict[str, npt.NDArray[Any]]


def outlives_a_sample(layer: Layer) -> bool:
    """Whether spikes of a sample can arrive in the next: Lava's reset clears neurons, not what is under way to them."""
    return isinstance(layer, Recurrent) or (isinstance(layer, Dense) and layer.delay_int is not None)


@dataclass(frozen=True)
class Job:
    """What one worker is told.

    Args:
        net: the `.net` file.
        network: what it holds.
        record: names of `knarr.hw_sim.simulate`.
    """

    net: Path
    network: ChipNetwork
    record: tuple[str, ...]

    @property
    def driven(self) -> bool:
        return self.network.input.neuron is not None

    @property
    def isolated(self) -> bool:
        return any(outlives_a_sample(layer) for layer in self.network.layers)

    @property
    def layer_names(self) -> list[str]:
        """In netx's order: an input layer is one only where it has neurons."""
        return [*([INPUT_LAYER] if self.driven else []), *(layer.name for layer in self.network.layers)]

    def steps(self, samples: int, timesteps: int) -> int:
        """Time steps Lava runs: the pipeline is drained once per network, and some jobs take one per sample."""
        drained = samples if self.driven or self.isolated else 1
        return samples * timesteps + drained * len(self.layer_names)

    def batches(self, samples: int, timesteps: int, most_steps: int) -> list[slice]:
        """Samples of each worker run, as many as stay within `most_steps` time steps, at least one."""
        size = 1
        while size < samples and self.steps(size + 1, timesteps) <= most_steps:
            size += 1
        return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]

    def write(self, folder: Path, events: npt.NDArray[np.integer[Any]]) -> None:
        """job.json and inputs.npy; events are (samples, timesteps, *features)."""
        job = {
            "net": str(self.net.resolve()),
            "bits": self.network.input.bits,
            "readout": self.network.readout.kind,
            "record": list(self.record),
            "driven": self.driven,
            "isolated": self.isolated,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # netx feeds a first dense layer a vector
        flat = not self.driven and not isinstance(self.network.layers[0], Conv)
        ordered = events.reshape(*events.shape[:2], -1) if flat else events
        np.save(folder / "inputs.npy", ordered.astype(np.int64))


def read_result(folder: Path) -> Arrays:
    """Arrays of result.npz: output, and <kind>/<number of the layer>."""
    with np.load(folder / "result.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def as_recording(job: Job, parts: Sequence[Arrays]) -> Recording:
    """Batches after one another, under the layers' names."""
    result = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    recorded = {
        kind: {name: result[f"{kind}/{i}"] for i, name in enumerate(job.layer_names) if kind in job.record}
        for kind in ("spikes", "v", "u")
    }
    spikes = {name: array.astype(np.uint8) for name, array in recorded["spikes"].items()}
    return Recording(
        output=result["output"],
        spikes=spikes,
        v=recorded["v"],
        u=recorded["u"],
        event_counts={
            name: s.sum(axis=tuple(range(2, s.ndim)), dtype=np.int64) for name, s in spikes.items()
        },
        engine="lava",
    )
