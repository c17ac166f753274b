"""What is recorded of a run, filled in block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.engine import Ran
from knarr.hw_sim.network import ChipNetwork
from knarr.hw_sim.recording import Recording


class Keep:
    """Arrays over all samples and steps of a run.

    Args:
        network: what runs.
        record: of RECORDABLE.
        shape: (samples, timesteps).
    """

    def __init__(self, network: ChipNetwork, record: tuple[str, ...], shape: tuple[int, int]) -> None:
        self.network, self.record, self.shape = network, record, shape
        self.arrays: dict[str, dict[str, npt.NDArray[Any]]] = {name: {} for name in ("spikes", "u", "v")}
        self.counts: dict[str, npt.NDArray[np.int64]] = {}
        self.peaks: dict[str, int] = {}
        outputs = int(np.prod(network.output_shape))
        self.output = np.zeros((*shape, outputs), dtype=np.int64)

    def put(self, name: str, samples: slice, steps: slice, ran: Ran, *, peak: bool = True) -> None:
        """Of one layer in one block."""
        counts = self.counts.setdefault(name, np.zeros(self.shape, dtype=np.int64))
        counts[samples, steps] = ran.counts
        if peak:
            self.peaks[name] = max(self.peaks.get(name, 0), ran.peak)
        for kind, values in (("spikes", ran.spikes), ("u", ran.u), ("v", ran.v)):
            if kind in self.record:
                assert values is not None  # it was wanted
                arrays = self.arrays[kind]
                if name not in arrays:
                    dtype = np.uint8 if kind == "spikes" else np.int64
                    arrays[name] = np.empty((*self.shape, *values.shape[2:]), dtype=dtype)
                arrays[name][samples, steps] = values
        if name == self.network.layers[-1].name:
            last = ran.v if self.network.readout.kind == "voltage" else ran.spikes
            assert last is not None  # it was wanted
            self.output[samples, steps] = last.reshape(*last.shape[:2], -1)

    def recording(self, shape: tuple[int, int], engine: str) -> Recording:
        """All of it, as (samples, timesteps) of `shape`: a run without reset laid its samples end to end."""

        def of(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            return {name: array.reshape(*shape, *array.shape[2:]) for name, array in arrays.items()}

        return Recording(
            output=self.output.reshape(*shape, -1),
            spikes=of(self.arrays["spikes"]),
            v=of(self.arrays["v"]),
            u=of(self.arrays["u"]),
            event_counts=of(self.counts),
            peak_sum=self.peaks,
            engine=engine,
        )
