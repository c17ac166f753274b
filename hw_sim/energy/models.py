"""The three energy models: one layer's counts and sizes to intervals of picojoules per term.

Pure functions of (counts, prices, options); what is not known stays unknown through sums and
products.

paper   E = e_mac MAC + e_add ACC on the headline counts; no bias, updates or memory. With Horowitz'
        fp32 values that is 4.6 MAC + 0.9 ACC pJ, the formula of most SNN papers. It is no price of
        a GPU, and none of Loihi.
memory  operations, memory accesses and addressing, after Lemaire et al., arXiv 2210.13107, with
        exact fan-out and prices per word instead of per 64 bits.
chip    E = S e_syn + U_act e_act + U_inact e_inact + Q e_tile + M (e_msg + h e_hop), and static
        power of all chips times latency once per inference. U_act are the updates that fire, or
        with `Options(active="touched")` all that an event or a bias reaches. Of a network that was
        mapped to cores (`knarr.hw_sim.energy.mapping`), U_act are the updates with an input, a bias
        or a potential, M the messages, one per spike and core that hears it, and h the links that
        they cross; without, M is Q where hops are told.

`step_times` gives the seconds of each step of a mapped network: that of its busiest core, and of
the barrier after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counting.counts import LayerCounts, LayerSizes
from knarr.hw_sim.energy.mapping import LOADS, LayerTraffic, Traffic
from knarr.hw_sim.energy.prices import PriceError, Profile
from knarr.hw_sim.json_values import JsonRecord


@dataclass(frozen=True)
class Interval(JsonRecord):
    """A nominal energy between bounds, in pJ; None is unknown."""

    lo: float | None
    nominal: float
    hi: float | None

    def __add__(self, other: Interval) -> Interval:
        """Add each bound to its like; what one of the two does not know, the sum does not know."""
        return Interval(
            None if self.lo is None or other.lo is None else self.lo + other.lo,
            self.nominal + other.nominal,
            None if self.hi is None or other.hi is None else self.hi + other.hi,
        )

    def times(self, count: float) -> Interval:
        """Return so many of it, at least 0; of nothing the energy is known to be 0."""
        if count == 0:
            return ZERO
        lo, hi = (None if bound is None else bound * count for bound in (self.lo, self.hi))
        return Interval(lo, self.nominal * count, hi)


ZERO = Interval(0.0, 0.0, 0.0)

MODELS = ("paper", "memory", "chip")
KB = 1024
MOST = 1e15
"""Largest of the options that are numbers: what is made of it is finite."""
PRECISION_BITS = {"int8": 8, "fp16": 16, "bf16": 16, "int32": 32, "fp32": 32}
SRAM_KB = {"sram_8k": 8, "sram_32k": 32, "sram_1m": 1024}


@dataclass(frozen=True)
class Options:
    """Facts that a model cannot read from counts or prices.

    Args:
        word_bits: of weights, states and activations in memory; None: those of the prices'
            precision.
        reuse_weights, reuse_inputs: times a fetched word of an ANN is used, at least 1 (memory).
        hops: mean hops of a spike between cores, None where the mapping is unknown (chip).
        on_chip_bytes: of a layer's buffer; larger ones are priced as DRAM (memory). None:
            everything is on the chip.
        latency_s: of one inference, None leaves static power out and says so (chip).
        active: updates that cost the price of an active one: those that fire, or all that an event
            or bias touches (chip).
    """

    word_bits: int | None = None
    reuse_weights: float = 1.0
    reuse_inputs: float = 1.0
    hops: float | None = None
    on_chip_bytes: float | None = None
    latency_s: float | None = None
    active: Literal["firing", "touched"] = "firing"

    def __post_init__(self) -> None:
        bits = self.word_bits
        if bits is not None and (not isinstance(bits, int) or not 1 <= bits <= 64):
            raise PriceError(f"word_bits: {bits}, needs a whole number in 1..64")
        for name in ("reuse_weights", "reuse_inputs"):
            value = getattr(self, name)
            if not 1 <= value <= MOST:
                raise PriceError(
                    f"{name}: {value}, a fetched word is used at least once, {MOST:g} times at most"
                )
        if self.active not in ("firing", "touched"):
            raise PriceError(f"active: {self.active!r}; choose firing or touched")
        for name in ("hops", "latency_s", "on_chip_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MOST:
                raise PriceError(f"{name}: {value}, needs a number in 0..{MOST:g}")

    def bits(self, profile: Profile) -> int:
        """Return the bits of a word: as told, or as the precision of the prices says; 32 where
        neither does.
        """
        return self.word_bits or PRECISION_BITS.get(profile.precision, 32)


def paper(counts: LayerCounts, profile: Profile) -> dict[str, Interval]:
    """Price the headline operations alone."""
    return {
        "acc": price_of(profile, "add").times(float(counts.acc)),
        "mac": price_of(profile, "mac").times(float(counts.mac)),
    }


def memory(
    counts: LayerCounts, sizes: LayerSizes, profile: Profile, options: Options, kind: str
) -> dict[str, Interval]:
    """Price operations, memory and addressing of one layer."""
    add, mac = price_of(profile, "add"), price_of(profile, "mac")
    word = options.bits(profile)

    def access(words: int, own: int | None = None) -> Interval:
        """Price one word of a memory of so many, of their own bits where these differ."""
        bits = own or word
        size = words * bits / 8
        off_chip = options.on_chip_bytes is not None and size > options.on_chip_bytes
        # Prices are of 64 bits.
        return (price_of(profile, "dram") if off_chip else sram(profile, size)).times(bits / 64)

    inputs, outputs = access(sizes.inputs), access(sizes.outputs)
    weights = access(sizes.weights + sizes.biases, sizes.weight_bits)
    states = access(sizes.states, sizes.state_bits)
    macs, accs, biases = float(counts.mac), float(counts.acc), float(counts.bias_adds)
    if kind == "ann":
        # Its own spikes are fetched as other activations are, and added.
        fetches = inputs.times((macs + accs) / options.reuse_inputs)
        fetches += weights.times((macs + accs + biases) / options.reuse_weights)
        return {
            "operations": mac.times(macs) + add.times(accs + biases),
            "memory": fetches + outputs.times(sizes.outputs),
            # Addresses are counted up along inputs, outputs and the taps of a kernel.
            "addressing": add.times(sizes.inputs + sizes.outputs + sizes.kernel),
        }
    events = float(counts.events)
    synops = float(counts.acc + counts.mac)
    updates, spikes = float(counts.neuron_updates), float(counts.spikes)
    leak = price_of(profile, "mul").times(updates) if sizes.leaky else ZERO
    # Finding the window of an event takes two multiplications and additions.
    window = mac.times(2 * events) if sizes.convolution else ZERO
    additions = add.times(accs + biases + spikes + 2 * updates)
    # States are read and written back, at every synapse and every update.
    fetches = inputs.times(events) + weights.times(synops + biases)
    fetches += states.times(2 * (synops + updates))
    return {
        "operations": additions + mac.times(macs) + leak,
        "memory": fetches + outputs.times(spikes),
        "addressing": window + add.times(synops),
    }


def chip(
    counts: LayerCounts,
    profile: Profile,
    options: Options,
    *,
    convolution: bool = False,
    traffic: LayerTraffic | None = None,
) -> dict[str, Interval]:
    """Price synapses, updates, spikes and messages of one layer.

    Args:
        counts, profile, options: of the layer; the prices; facts from elsewhere.
        convolution: whether the layer is one.
        traffic: of the layer on its cores, None where it was not mapped.
    """
    synapse = "synapse_conv" if convolution and has(profile, "synapse_conv") else "synapse"
    synapses = price_of(profile, synapse).times(float(counts.acc + counts.mac))
    if profile.scope == "all-in":  # fetch, update, spike and hop are in that price
        return {"synapses": synapses}
    spikes, updates = float(counts.spikes), float(counts.neuron_updates)
    fired = counts.spikes
    if options.active == "touched":
        # A neuron may fire untouched, from what it held.
        fired = max(fired, counts.touched_updates)
    # What only compares has no state to update.
    active = min(float(fired), updates)
    if traffic is not None:
        active = updates * traffic.updated
    busy = price_of(profile, "update_active").times(active)
    idle = price_of(profile, "update_inactive").times(updates - active)
    tile = price_of(profile, "spike_tile") if has(profile, "spike_tile") else ZERO
    terms = {"synapses": synapses, "updates": busy + idle, "spikes": tile.times(spikes)}
    if traffic is not None:
        messages = spikes * traffic.messages_per_spike
        if has(profile, "axon_message"):
            terms["messages"] = price_of(profile, "axon_message").times(messages)
        across = price_of(profile, "hop_x").times(messages * traffic.hops_x)
        terms["hops"] = across + price_of(profile, "hop_y").times(messages * traffic.hops_y)
    elif options.hops is not None:
        terms["hops"] = price_of(profile, "hop").times(spikes * options.hops)
    return terms


BARRIERS = {1: "barrier_1_tile", 2: "barrier_2_tiles", 4: "barrier_4_tiles", 29: "barrier_29_tiles"}
"""Tiles from which on a barrier takes so long; as SANA-FE looks it up."""


def step_times(profile: Profile, traffic: Traffic) -> npt.NDArray[np.float64]:
    """Compute the time of each step: the longest that a core takes to send what its neurons make or
    to receive what they are sent, and the barrier at the end.

    This is SANA-FE's timing model "simple" (src/schedule.cpp): links that are full delay nothing.

    Args:
        profile: with times of operations.
        traffic: of the mapped network.

    Returns:
        (3, samples, steps) seconds: lo, nominal, hi.

    Raises:
        PriceError: a price of time is missing.
    """
    barrier = BARRIERS[max(tiles for tiles in BARRIERS if tiles <= max(1, traffic.tiles))]
    found = []
    for bound in range(3):

        def time_of(term: str, at: int = bound) -> float:
            seconds = profile.record(term).si()[at]
            if seconds is None:
                raise PriceError(f"profile '{profile.name}': '{term}' needs both bounds")
            return seconds

        sending = {"neurons": "neuron", "updated": "update", "spikes": "spike"}
        sending |= {"messages_out": "message_out"}
        receiving = {"messages_in": "message_in", "synapses": "synapse"}
        receiving |= {"synapses_conv": "synapse_conv"}
        send, receive = (
            traffic.loads[..., [LOADS.index(load) for load in side]]
            @ np.array([time_of(f"time_{name}") for name in side.values()])
            for side in (sending, receiving)
        )
        busiest = np.maximum(send, receive).max(axis=-1)
        found.append(busiest + time_of(barrier))
    return np.stack(found)


def sram(profile: Profile, size_bytes: float) -> Interval:
    """Price one 64-bit access of a memory of this size: straight lines through 0 and the sizes that
    have prices, the last beyond.

    Source: energies of 8 KB, 32 KB and 1 MB in the profile; Lemaire et al. interpolate alike.
    """
    before, at = ZERO, 0.0
    for term, kilobytes in SRAM_KB.items():
        price, end = price_of(profile, term), float(kilobytes * KB)
        if size_bytes <= end:
            share = (size_bytes - at) / (end - at)
            return before.times(1 - share) + price.times(share)
        before, at = price, end
    return before


def price_of(profile: Profile, term: str) -> Interval:
    """Return the price of a term as an interval: energies in pJ, static power in W.

    Raises:
        PriceError: the profile has none, or prices nothing.
    """
    record = profile.record(term)
    assert record.nominal is not None  # profiles that price something are checked for it
    factor = {"nJ": 1e3, "uJ": 1e6, "mJ": 1e9}.get(record.unit, 1.0)
    lo, hi = (None if bound is None else bound * factor for bound in (record.lo, record.hi))
    return Interval(lo, record.nominal * factor, hi)


def has(profile: Profile, term: str) -> bool:
    """Tell whether a profile prices a term."""
    return any(record.term == term for record in profile.prices)


def used_terms(
    model: str, terms: Mapping[str, Interval], *, mapped: bool = False
) -> tuple[str, ...]:
    """Name the price terms that a model looks up; for provenance.

    Args:
        model: one of `MODELS`.
        terms: terms of the estimate, which of the chip model's are there depends on options.
        mapped: whether hops come from a mapping.
    """
    if model == "paper":
        return "add", "mac"
    if model == "memory":
        return "add", "mul", "mac", *SRAM_KB, "dram"
    used = ["synapse", "synapse_conv"]
    if "updates" in terms:
        used += ["update_active", "update_inactive", "spike_tile"]
    if "messages" in terms:
        used.append("axon_message")
    if "hops" in terms:
        used += ["hop_x", "hop_y"] if mapped else ["hop"]
    if "static" in terms:
        used.append("static")
    return tuple(used)
