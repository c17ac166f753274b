"""W3, a recurrent network with delays: knarr beside Norse's step loop and Lava, in turn: `python recurrent.py [ROUNDS]`.

Norse runs the float twin in this process on one thread: a LIFRecurrentCell, and an output layer that looks up for every
synapse what its input sent as many steps ago as its delay says; and once more without any delays, which Norse does not have. Lava runs the `.net` file in a worker of its own; its seconds
per step are the difference of a long and a short run, so that its start-up is left out. No speed is printed where the integers
of knarr are not those of the reference, or of Lava not those of knarr.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import norse.torch as snn
import numpy as np
import torch
from workloads import I_DECAY, V_DECAY, Bytes, spoken_digits

from knarr.deploy import run_on_lava, write_net
from knarr.hw_sim import ChipNetwork, compare, simulate

SAMPLES = 64
LAVA_STEPS = (50, 1550)
"""Time steps of the short and of the long run: samples laid end to end."""


class WrongIntegersError(Exception):
    """Two engines gave other integers: a speed would mean nothing."""


class NorseTwin:
    """The float twin, stepped through time.

    Norse scales what enters v by the decay of v, 1/32 here, so weights are 32 times larger and thresholds are 1.
    """

    def __init__(self, network: ChipNetwork) -> None:
        hidden, out = network.layers
        gain = 4096 / V_DECAY
        parameters = snn.LIFParameters(
            tau_syn_inv=torch.tensor(I_DECAY / 4096),
            tau_mem_inv=torch.tensor(V_DECAY / 4096),
            v_th=torch.tensor(1.0),
        )
        forward, back, last = (
            torch.tensor(weight * (gain / layer.neuron.vth_int), dtype=torch.float32)
            for weight, layer in (
                (hidden.weight_int, hidden),
                (hidden.recurrent_int, hidden),  # type: ignore[union-attr]  # W3's first layer
                (out.weight_int, out),
            )
        )
        self.cell = snn.LIFRecurrentCell(
            forward.shape[1], len(forward), p=parameters, dt=1.0, autapses=True
        )
        self.cell.input_weights.data, self.cell.recurrent_weights.data = forward, back
        self.out = snn.LIFCell(parameters, dt=1.0)
        self.last = last
        self.delay = torch.tensor(out.delay_int)  # type: ignore[union-attr]  # and its second

    def run(self, inputs: torch.Tensor, *, delays: bool) -> torch.Tensor:
        """(timesteps, samples, channels) -> (samples, outputs) spikes in all."""
        longest = int(self.delay.max()) + 1
        samples, neurons = inputs.shape[1], self.last.shape[1]
        sent = torch.zeros(longest, samples, neurons)
        of_synapse = torch.arange(neurons).expand_as(self.delay)
        state = state_out = None
        total = torch.zeros(samples, len(self.last))
        for t, step in enumerate(inputs):
            fired, state = self.cell(step, state)
            if delays:
                sent[t % longest] = fired
                arrived = sent[(t - self.delay) % longest, :, of_synapse]
                sums = (arrived * self.last[..., None]).sum(1).T
            else:
                sums = fired @ self.last.T
            spikes, state_out = self.out(sums, state_out)
            total += spikes
        return total


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def lava_seconds_per_step(network: ChipNetwork, inputs: Bytes) -> float:
    """Return the seconds of one time step of one sample, start-up left out.

    Raises:
        WrongIntegersError: Lava's spikes are not knarr's.
    """
    times = []
    endless = inputs.reshape(1, -1, inputs.shape[2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w3.net"
        write_net(network, path)
        for steps in LAVA_STEPS:
            start = time.perf_counter()
            ran = run_on_lava(path, endless[:, :steps], timeout_s=600)
            times.append(time.perf_counter() - start)
            if not np.array_equal(ran.output, simulate(network, endless[:, :steps]).output):
                raise WrongIntegersError(f"W3, {steps} steps: Lava's spikes are not knarr's")
    return (times[1] - times[0]) / (LAVA_STEPS[1] - LAVA_STEPS[0])


def main(rounds: int) -> None:
    """Print the ratios of every round, and their medians."""
    torch.set_num_threads(1)
    network, inputs = spoken_digits(SAMPLES)
    wanted = simulate(
        network, inputs[:2], engine="reference", record=("output", "spikes", "u", "v")
    )
    got = simulate(network, inputs[:2], engine="fast", record=("output", "spikes", "u", "v"))
    if compare(wanted, got) or wanted.peak_sum != got.peak_sum:
        raise WrongIntegersError(f"W3: {compare(wanted, got)[0]}")
    spikes = {name: int(counts[0].sum()) for name, counts in wanted.event_counts.items()}
    print(
        f"W3, sample 0: {int(inputs[0].sum())} events in, spikes {spikes}; equal to the reference"
    )
    norse = NorseTwin(network)
    floats = torch.from_numpy(inputs).movedim(1, 0).float().contiguous()
    peers = ("norse", "norse without delays", "lava")
    found: dict[str, list[float]] = {name: [] for name in (*peers, "one thread", "two threads")}
    for _ in range(rounds):
        with torch.no_grad():
            for name, delays in (("norse", True), ("norse without delays", False)):
                took = seconds(lambda delays=delays: norse.run(floats, delays=delays))
                found[name].append(took / SAMPLES)
        found["lava"].append(lava_seconds_per_step(network, inputs) * inputs.shape[1])
        for name, threads in (("one thread", 1), ("two threads", 2)):
            runs = [
                seconds(
                    lambda threads=threads: simulate(
                        network, inputs, engine="fast", threads=threads
                    )
                )
                for _ in range(30)
            ]
            found[name].append(min(runs) / SAMPLES)
        row = {name: f"{times[-1] * 1e6:,.0f} us" for name, times in found.items()}
        print(row, f"load {os.getloadavg()[0]:.1f}", flush=True)
    for peer in peers:
        for name in ("one thread", "two threads"):
            ratios = [p / k for p, k in zip(found[peer], found[name], strict=True)]
            print(
                f"{peer} / knarr, {name}: {median(ratios):,.0f} [{min(ratios):,.0f}-{max(ratios):,.0f}]"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
