"""Checks of every engine and peer once, then interleaved rounds in which each runs in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import engines
import machine
import numpy as np
import roofline
from peers import run_peer
from ratios import Round
from workloads import Workload

from knarr.deploy import LavaError
from knarr.hw_sim import Recording, simulate

FLOAT_TOLERANCE = 0.10
"""Float peers round elsewhere, so single spikes differ; each layer must fire as often as ours within this share."""


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Args:
        key: in the results.
        tool: of `peers.run_peer`.
        about: how it computes.
        percents: activities it runs at; what costs the same at any runs at one.
        exact: every spike must be ours.
    """

    key: str
    tool: str
    about: str
    percents: tuple[int, ...]
    exact: bool = False


PEERS = (
    Peer("Lava", "lava", "fixed_pt, exact; its processes share all cores", (10, 3), exact=True),
    Peer("Norse", "norse", "float32 step loop, 1 thread", (10, 3)),
    Peer("snnTorch", "snntorch", "float32 step loop, 1 thread", (10,)),
    Peer("slayer", "slayer", "lava-dl, integer neurons on float32 sums, 1 thread", (10,)),
)
LAVA_STEPS = {"W1": (64, 256, 3), "W2s": (12, 16, 3), "W2": (12, 12, 3)}
"""Steps that are not timed, steps of a timed stretch, stretches; a sample of W1 has 64 steps, of the others 68."""
LAVA_CHECKED_SAMPLES = {"W1": 4}
LOOP_REPEATS = {"W1": 5, "W2s": 2, "W2": 2}
SLAYER_REPEATS = {"W1": 5, "W2s": 1, "W2": 1}


@dataclass
class Case:
    """A workload as it is measured.

    Args:
        work: the network and its inputs.
        file: of it, for peers.
        expected: the reference's spikes for the first sample.
        cost: of one sample.
        engines: of knarr that run it.
        peers: that run it, with the interpreter of each.
    """

    work: Workload
    file: Path
    expected: Recording
    cost: roofline.Work
    engines: list[engines.Engine] = field(default_factory=list)
    peers: dict[Peer, str] = field(default_factory=dict)

    def leave_out(self, wrong: set[str]) -> None:
        """Engines and peers that failed the checks run in no round."""
        self.engines = [engine for engine in self.engines if engine.key not in wrong]
        self.peers = {peer: python for peer, python in self.peers.items() if peer.key not in wrong}

    def described(self) -> dict[str, Any]:
        spikes = [int(self.expected.spikes[layer.name].sum()) for layer in self.work.network.layers]
        rates = [
            count / (self.work.timesteps * prod(stage.out))
            for count, stage in zip(spikes, self.work.stages, strict=True)
        ]
        return {
            "samples": len(self.work.inputs),
            "timesteps": self.work.timesteps,
            "vth": self.work.vth,
            "spikes": spikes,
            "rates": rates,
            "synops": self.cost.synops,
            "neuron_steps": self.cost.neuron_steps,
            "macs": self.cost.macs,
        }


def checks(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each engine and peer: how many spikes were compared and differ; `error` says why its speed is not to be printed."""
    for engine in case.engines:
        try:
            yield (
                engine.key,
                {"compared": engines.check(engine, case.work, case.expected), "differ": 0},
            )
        except engines.WrongSpikesError as error:
            yield engine.key, {"error": str(error)}
    for peer, python in case.peers.items():
        try:
            yield peer.key, _check_peer(peer, python, case)
        except LavaError as error:
            yield peer.key, {"error": str(error)}


def _check_peer(peer: Peer, python: str, case: Case) -> dict[str, Any]:
    samples = LAVA_CHECKED_SAMPLES.get(case.work.name, 1) if peer.tool == "lava" else 1
    steps = case.work.timesteps
    got = run_peer(peer.tool, python, case.file, check=True, samples=samples, steps=steps)
    inputs = case.work.inputs[:samples]
    expected = (
        case.expected if samples == 1 else simulate(case.work.network, inputs, record=("spikes",))
    )
    compared = differ = 0
    ours, theirs = [], []
    for index, layer in enumerate(case.work.network.layers):
        want = expected.spikes[layer.name].reshape(samples, steps, -1)
        have = got[f"spikes/{index}"].reshape(want.shape)
        compared += want.size
        differ += int((want != have).sum())
        ours.append(int(want.sum()))
        theirs.append(int(have.sum()))
    result: dict[str, Any] = {
        "compared": compared, "differ": differ, "spikes": theirs, "expected": ours, "version": str(got["version"])
    }  # fmt: skip
    far = [abs(b - a) > FLOAT_TOLERANCE * a for a, b in zip(ours, theirs, strict=True)]
    if not all(theirs):
        result["error"] = f"silent layers: {theirs}"
    elif peer.exact and differ:
        result["error"] = f"{differ} of {compared} spikes differ"
    elif any(far):
        result["error"] = f"fires {theirs}, not {ours}"
    return result


def one_round(case: Case, *, backwards: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Times of every engine and peer on a workload, one after the other; `error` instead where it failed.

    Args:
        case: to run.
        backwards: last first, so that no one always follows the same.
    """
    runners: list[engines.Engine | Peer] = [*case.engines, *case.peers]
    for runner in reversed(runners) if backwards else runners:
        try:
            if isinstance(runner, Peer):
                yield runner.key, _time_peer(runner, case.peers[runner], case)
            else:
                yield runner.key, engines.time_engine(runner, case.work, case.expected)
        except (engines.WrongSpikesError, LavaError) as error:
            yield runner.key, {"error": str(error)}


def _time_peer(peer: Peer, python: str, case: Case) -> dict[str, Any]:
    work = case.work
    if peer.tool == "lava":
        return _time_lava(python, case)
    repeats = (SLAYER_REPEATS if peer.tool == "slayer" else LOOP_REPEATS)[work.name]
    got = run_peer(peer.tool, python, case.file, check=False, repeats=repeats)
    times = [float(t) / len(work.inputs) for t in got["times_s"]]
    return {
        "s_per_sample": median(times),
        "times_s": times,
        "samples": len(work.inputs),
        "repeats": repeats,
    }


def _time_lava(python: str, case: Case) -> dict[str, Any]:
    work = case.work
    warm_up, steps, repeats = LAVA_STEPS[work.name]
    got = run_peer(
        "lava", python, case.file, check=False, warm_up=warm_up, steps=steps, repeats=repeats
    )  # fmt: skip
    output = got["output"]
    samples = -(-len(output) // work.timesteps)
    ours = simulate(work.network, work.inputs[:samples]).output.reshape(-1, output.shape[1])[
        : len(output)
    ]
    if not np.array_equal(output, ours):
        raise engines.WrongSpikesError(
            f"Lava, {work.title}: the timed run gave other output than the reference"
        )
    times = [float(t) / steps * work.timesteps for t in got["times_s"]]
    return {
        "s_per_sample": median(times),
        "times_s": times,
        "steps": steps,
        "warm_up_steps": warm_up,
        "repeats": repeats,
        "extrapolated": steps < work.timesteps,
    }


def as_rounds(kept: list[dict[str, Any]], wrong: Mapping[str, Mapping[str, str]]) -> list[Round]:
    """Seconds per sample, without what failed in a round or in the checks.

    Args:
        kept: rounds as main.py keeps them: {"times": {workload: {engine: result}}}.
        wrong: workload -> engine -> why its speed is not to be printed.
    """
    return [
        {
            title: {
                key: result["s_per_sample"]
                for key, result in results.items()
                if "error" not in result and key not in wrong.get(title, {})
            }
            for title, results in one["times"].items()
        }
        for one in kept
    ]


def circumstances(program: Path | str) -> dict[str, Any]:
    """Load and peaks of this moment."""
    others = machine.busy_cores()
    return {
        "load": machine.load(),
        "busy_cores": others,
        "peaks": None if isinstance(program, str) else roofline.peaks(program),
    }
