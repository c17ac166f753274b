"""Recordings: the integers that a run of a chip network leaves behind, whichever engine ran, and
their exact comparison.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from knarr.files import replacing
from knarr.hw_sim.arrays import Int64, IntArray, Mask, UInt8
from knarr.hw_sim.errors import ChipError

FORMAT = 1
RECORDABLE = ("output", "spikes", "v", "u")
KINDS = ("spikes", "v", "u", "event_counts", "peak_sum")
"""Fields of a recording that have an entry for each layer."""
INPUT_LAYER = "input"
"""Name under which the spikes and voltages of an input layer with neurons are recorded."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Integers recorded while a chip network ran.

    Column t of every array answers input t: the pipeline delay of the engine is already removed.

    Args:
        output: (samples, timesteps, outputs) int64: spikes 0/1 or chip voltages, as the network's
            readout says.
        spikes: layer name -> (samples, timesteps, *features) uint8 of 0/1; only recorded layers.
        v: layer name -> (samples, timesteps, *features) int64 chip voltages after reset; only
            recorded layers.
        u: layer name -> the same of currents.
        event_counts: layer name -> (samples, timesteps) int64 spikes of the layer in each step;
            every layer.
        peak_sum: layer name -> largest |synaptic sum| that occurred; the chip's accumulator ends at
            2**15 - 1. Empty where the engine does not say (Lava).
        engine: which engine ran.
    """

    output: Int64
    spikes: Mapping[str, UInt8] = field(default_factory=dict)
    v: Mapping[str, Int64] = field(default_factory=dict)
    u: Mapping[str, Int64] = field(default_factory=dict)
    event_counts: Mapping[str, Int64] = field(default_factory=dict)
    peak_sum: Mapping[str, int] = field(default_factory=dict)
    engine: str = ""


@dataclass(frozen=True)
class Divergence:
    """First place where two recordings differ in one recorded array.

    Args:
        what: the array, such as "spikes of 'fc'".
        mismatches, compared: integers that differ, and all of the array.
        sample, timestep, index: place of the first difference in time; `index` is within one step.
        a, b: the two integers there.
    """

    what: str
    mismatches: int
    compared: int
    sample: int
    timestep: int
    index: tuple[int, ...]
    a: int
    b: int

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.mismatches} of {self.compared} differ, first at sample {self.sample}, "
            f"time step {self.timestep}, index {self.index}: {self.a} vs {self.b}"
        )


def compare(a: Recording, b: Recording) -> list[Divergence]:
    """Return the first divergence of each array that both recordings hold; empty when every integer
    is equal.

    Raises:
        ChipError: the two hold different layers or shapes, so that equality would not mean
            anything.
    """
    pairs: list[tuple[str, IntArray, IntArray]] = [("output", a.output, b.output)]
    for kind in ("spikes", "v", "u"):
        left, right = getattr(a, kind), getattr(b, kind)
        if set(left) != set(right):
            raise ChipError(
                f"recordings: {kind} of layers {sorted(left)} vs {sorted(right)}; record the same layers"
            )
        pairs += [(f"{kind} of '{name}'", left[name], right[name]) for name in left]
    found = []
    for what, one, other in pairs:
        # numpy would broadcast shapes that differ, and call them equal.
        if one.shape != other.shape:
            raise ChipError(f"recordings: {what} has shape {one.shape} vs {other.shape}")
        differs = one != other
        if not differs.any():
            continue
        sample, step, *index = at = first_difference(differs)
        found.append(
            Divergence(
                what,
                int(differs.sum()),
                one.size,
                sample,
                step,
                tuple(index),
                int(one[at]),
                int(other[at]),
            )
        )
    return found


def first_difference(differs: Mask) -> tuple[int, ...]:
    """Return the place (sample, time step, *index) of the first difference.

    Earliest in time comes first, then by sample: what comes later may only follow from it.

    Args:
        differs: (samples, timesteps, *features), True at least once.
    """
    by_time = differs.swapaxes(0, 1)
    step, sample, *index = (int(i) for i in np.unravel_index(by_time.argmax(), by_time.shape))
    return (sample, step, *index)


def save_recording(recording: Recording, path: Path) -> None:
    """Write a recording as .npz, to a temporary name first; a killed run leaves the old file or the
    new one.
    """
    arrays: dict[str, Any] = {"output": recording.output}
    for kind in KINDS:
        for name, values in getattr(recording, kind).items():
            arrays[f"{kind}/{name}"] = np.asarray(values)
    arrays["engine"] = np.array(recording.engine)
    arrays["format"] = np.array(FORMAT)
    # Into an open file: given a path, numpy would add .npz to its name.
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_recording(path: Path) -> Recording:
    """Read what `save_recording` wrote.

    Raises:
        ChipError: the file is not a recording; nothing is unpickled.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if int(arrays["format"]) != FORMAT:
                raise ChipError(
                    f"{path}: recording format {arrays['format']}, this version reads {FORMAT}"
                )
            kinds: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
            for key in arrays.files:
                # A layer's name may hold slashes of its own: only the first ends the kind.
                kind, _, name = key.partition("/")
                if name:
                    kinds[kind][name] = arrays[key]
            kinds["peak_sum"] = {name: int(peak) for name, peak in kinds["peak_sum"].items()}
            return Recording(output=arrays["output"], engine=str(arrays["engine"]), **kinds)
    except (ChipError, FileNotFoundError):
        raise
    # What numpy, zipfile and zlib raise between them on damaged or foreign files.
    except (
        OSError,
        LookupError,
        ValueError,
        EOFError,
        TypeError,  # a single array, which is no context
        RuntimeError,
        BadZipFile,
        zlib.error,
    ) as error:
        raise ChipError(
            f"{path}: not a recording ({error}); write one with `knarr simulate --record`"
        ) from error
