"""Intervals of joules, in picojoules: what is not known stays unknown through sums and products.

The three energy models: one layer's counts and sizes to intervals per term. Pure functions of (counts, prices, options).

paper   E = e_mac MAC + e_add ACC on the headline counts; no bias, updates or memory. With Horowitz' fp32 values that is
        4.6 MAC + 0.9 ACC pJ, the formula of most SNN papers. It is no price of a GPU, and none of Loihi.
memory  operations, memory accesses and addressing, after Lemaire et al., arXiv 2210.13107, with exact fan-out and prices per
        word instead of per 64 bits.
chip    E = S e_syn + U_act e_act + U_inact e_inact + Q (e_tile + h e_hop), and static power times latency once per inference.
        U_act are the updates that fire, or with `Options(active="touched")` all that an event or a bias reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from knarr.hw_sim.counting.counts import LayerCounts, LayerSizes
from knarr.hw_sim.energy.prices import PriceError, PriceRecord, Profile


@dataclass(frozen=True)
class Interval:
    """A nominal energy between bounds, in pJ; None is unknown."""

    lo: float | None
    nominal: float
    hi: float | None

    def __add__(self, other: Interval) -> Interval:
        return Interval(
            _sum(self.lo, other.lo), self.nominal + other.nominal, _sum(self.hi, other.hi)
        )

    def times(self, count: float) -> Interval:
        """So many of it, at least 0; of nothing the energy is known to be 0."""
        if count == 0:
            return ZERO
        lo, hi = (None if bound is None else bound * count for bound in (self.lo, self.hi))
        return Interval(lo, self.nominal * count, hi)

    def to_json(self) -> dict[str, float | None]:
        """lo, nominal, hi."""
        return {"lo": self.lo, "nominal": self.nominal, "hi": self.hi}


ZERO = Interval(0.0, 0.0, 0.0)


def of_record(record: PriceRecord) -> Interval:
    """A price that is used has a nominal value."""
    assert record.nominal is not None
    return Interval(record.lo, record.nominal, record.hi)


def total(parts: list[Interval]) -> Interval:
    """Their sum."""
    found = ZERO
    for part in parts:
        found = found + part
    return found


def _sum(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


MODELS = ("paper", "memory", "chip")
KB = 1024
PRECISION_BITS = {"int8": 8, "fp16": 16, "int32": 32, "fp32": 32}
SRAM_KB = (("sram_8k", 8), ("sram_32k", 32), ("sram_1m", 1024))


@dataclass(frozen=True)
class Options:
    """What a model has to be told.

    Args:
        word_bits: of weights, states and activations in memory; None: those of the prices' precision.
        reuse_weights, reuse_inputs: times a fetched word of an ANN is used, at least 1 (memory).
        hops: mean hops of a spike between cores, None where the mapping is unknown (chip).
        on_chip_bytes: of a layer's buffer; larger ones are priced as DRAM (memory). None: everything is on the chip.
        latency_s: of one inference, None leaves static power out and says so (chip).
        active: updates that cost the price of an active one: those that fire, or all that an event or bias touches (chip).
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
            if not 1 <= getattr(self, name) < inf:
                raise PriceError(
                    f"{name}: {getattr(self, name)}, a fetched word is used at least once"
                )
        if self.active not in ("firing", "touched"):
            raise PriceError(f"active: {self.active!r}; choose firing or touched")
        for name in ("hops", "latency_s", "on_chip_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < inf:
                raise PriceError(f"{name}: {value}, needs a number from 0")

    def bits(self, profile: Profile) -> int:
        """Of a word: as told, or as the precision of the prices says; 32 where neither does."""
        return self.word_bits or PRECISION_BITS.get(profile.precision, 32)


def paper(counts: LayerCounts, profile: Profile) -> dict[str, Interval]:
    """Headline operations alone."""
    return {
        "acc": _price(profile, "add").times(float(counts.acc)),
        "mac": _price(profile, "mac").times(float(counts.mac)),
    }


def memory(
    counts: LayerCounts, sizes: LayerSizes, profile: Profile, options: Options, kind: str
) -> dict[str, Interval]:
    """Operations, memory and addressing of one layer."""
    add, mac = _price(profile, "add"), _price(profile, "mac")
    bits = options.bits(profile)

    def access(words: int) -> Interval:
        size = words * bits / 8
        off_chip = options.on_chip_bytes is not None and size > options.on_chip_bytes
        return (_price(profile, "dram") if off_chip else sram(profile, size)).times(bits / 64)

    inputs, outputs = access(sizes.inputs), access(sizes.outputs)
    weights, states = access(sizes.weights + sizes.biases), access(sizes.states)
    biases = float(counts.bias_adds)
    if kind == "ann":
        macs = float(counts.mac)
        return {
            "operations": mac.times(macs) + add.times(biases),
            "memory": inputs.times(macs / options.reuse_inputs)
            + weights.times((macs + biases) / options.reuse_weights)
            + outputs.times(sizes.outputs),
            "addressing": add.times(sizes.inputs + sizes.outputs + sizes.kernel),
        }
    synops, events = float(counts.acc + counts.mac), float(counts.events)
    updates, spikes = float(counts.neuron_updates), float(counts.spikes)
    leak = _price(profile, "mul").times(updates) if sizes.leaky else ZERO
    return {
        "operations": add.times(float(counts.acc) + biases + spikes + 2 * updates)
        + mac.times(float(counts.mac))
        + leak,
        "memory": inputs.times(events)
        + weights.times(synops + biases)
        + states.times(2 * (synops + updates))
        + outputs.times(spikes),
        "addressing": (mac.times(2 * events) if sizes.convolution else ZERO) + add.times(synops),
    }


def chip(
    counts: LayerCounts, profile: Profile, options: Options, *, convolution: bool = False
) -> dict[str, Interval]:
    """Synapses, updates and spikes of one layer; a neuron is active in a step in which it fires, or is touched."""
    synapse = "synapse_conv" if convolution and has(profile, "synapse_conv") else "synapse"
    synapses = _price(profile, synapse).times(float(counts.acc + counts.mac))
    if profile.scope == "all-in":  # fetch, update, spike and hop are in that price
        return {"synapses": synapses}
    spikes, updates = float(counts.spikes), float(counts.neuron_updates)
    # A neuron may fire untouched, from what it held; what only compares has no state to update.
    fired = (
        max(counts.spikes, counts.touched_updates) if options.active == "touched" else counts.spikes
    )
    active = min(float(fired), updates)
    terms = {
        "synapses": synapses,
        "updates": _price(profile, "update_active").times(active)
        + _price(profile, "update_inactive").times(updates - active),
        "spikes": _optional(profile, "spike_tile").times(spikes),
    }
    if options.hops is not None:
        terms["hops"] = _price(profile, "hop").times(spikes * options.hops)
    return terms


def sram(profile: Profile, size_bytes: float) -> Interval:
    """One 64-bit access of a memory of this size: straight lines through 0 and the sizes that have prices, the last beyond.

    Source: ENERGY of 8 KB, 32 KB and 1 MB in the profile; Lemaire et al. interpolate alike.
    """
    before, at = ZERO, 0.0
    for term, kilobytes in SRAM_KB:
        price, end = _price(profile, term), float(kilobytes * KB)
        if size_bytes <= end:
            share = (size_bytes - at) / (end - at)
            return before.times(1 - share) + price.times(share)
        before, at = price, end
    return before


def _price(profile: Profile, term: str) -> Interval:
    return of_record(profile.record(term))


def _optional(profile: Profile, term: str) -> Interval:
    return _price(profile, term) if has(profile, term) else ZERO


def has(profile: Profile, term: str) -> bool:
    """Whether a profile prices a term."""
    return any(record.term == term for record in profile.prices)


def used_terms(model: str, terms: Mapping[str, Interval]) -> tuple[str, ...]:
    """Names of price terms that a model looks up; for provenance."""
    return {
        "paper": ("add", "mac"),
        "memory": ("add", "mul", "mac", "sram_8k", "sram_32k", "sram_1m", "dram"),
        "chip": (
            "synapse",
            "synapse_conv",
            *(("update_active", "update_inactive", "spike_tile") if "updates" in terms else ()),
            *(("hop",) if "hops" in terms else ()),
            *(("static",) if "static" in terms else ()),
        ),
    }[model]
