"""Places where a network may run, and what one inference costs there: energy that switching takes,
static power over the time it takes, input and output, latency and the energy-delay product, each
with bounds.

`places_of` is pure: counts, traffic between cores and measurements in, one `PlaceEnergy` per place
out. Whatever no source bounds is unknown and says why; nothing is guessed.

    static = P_static * chips * latency
    total = dynamic + static + input_output        (what is known of them)
    energy_delay_product = total * latency

On chips latency is the time of all steps (`knarr.hw_sim.energy.models.step_times`) and of waiting
for the input. On a GPU or CPU a small network costs its launch, which grows with its layers and
hardly with what they compute: the prices of the "device" profiles were measured on such networks,
datasheet floors of the multiplications are added, and of large networks the upper bound is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.energy.estimate import EnergyEstimate, price
from knarr.hw_sim.energy.mapping import Traffic
from knarr.hw_sim.energy.models import Options, step_times
from knarr.hw_sim.energy.prices import GRADES, Grade, PriceRecord, Profile, load_profile
from knarr.hw_sim.json_values import JsonRecord, plain

if TYPE_CHECKING:
    from knarr.hw_sim.energy.baseline import Baseline
    from knarr.hw_sim.energy.measure.protocol import Measurement

Unit = Literal["J", "s", "J s", "W"]
TERMS = ("dynamic", "static", "input_output", "total", "latency", "energy_delay_product")
"""Terms of every place, in the order in which they are shown."""
SMALL_MACS = 80e6
"""Multiplications that may cost more than a launch: at 382 pJ, which is 10 % of the peak of a V100, as
much as the dearest launch that was measured (30 mJ).
"""
LAYERS_MEASURED = 3
"""Layers of the network whose launch was measured (390-256-256-29)."""
NOT_PLACED = "the network was not placed on cores"


@dataclass(frozen=True)
class Quantity(JsonRecord):
    """A quantity between bounds.

    Args:
        low, nominal, high: in `unit`; None is unknown.
        unit: "J", "s", "J s" or "W".
        why_unknown: why one of the three is None, "" where none is.
    """

    low: float | None
    nominal: float | None
    high: float | None
    unit: Unit
    why_unknown: str = ""

    def __add__(self, other: Quantity) -> Quantity:
        """Add bound by bound; what one of the two does not know, the sum does not know."""
        low, nominal, high = (
            None if one is None or two is None else one + two
            for one, two in zip(self.bounds, other.bounds, strict=True)
        )
        return Quantity(low, nominal, high, self.unit, self._reasons(other))

    def times(self, other: Quantity | float, unit: Unit | None = None) -> Quantity:
        """Multiply bound by bound; both are at least 0. The unit is that of self unless given."""
        if not isinstance(other, Quantity):
            other = Quantity(other, other, other, self.unit)
        low, nominal, high = (
            None if one is None or two is None else one * two
            for one, two in zip(self.bounds, other.bounds, strict=True)
        )
        return Quantity(low, nominal, high, unit or self.unit, self._reasons(other))

    @property
    def bounds(self) -> tuple[float | None, float | None, float | None]:
        """Low, nominal and high."""
        return self.low, self.nominal, self.high

    def _reasons(self, other: Quantity) -> str:
        return "; ".join(dict.fromkeys(filter(None, (self.why_unknown, other.why_unknown))))


@dataclass(frozen=True)
class PlaceEnergy(JsonRecord):
    """One inference of a network at a place where it may run.

    Args:
        place: such as "Loihi 2" or "edge GPU, batch 1".
        network: whether the spiking network runs there or the network beside it.
        terms: name of `TERMS` -> quantity; energies in J, latency in s, the product in J s.
        grade: the worst of the prices used.
        sources: who says so.
        assumptions: what was taken for granted.
        not_included: what is left out of the total.
        breakdown: layer -> term of the chip model -> nominal energy, J; empty elsewhere.
    """

    place: str
    network: Literal["student", "baseline"]
    terms: Mapping[str, Quantity]
    grade: Grade
    sources: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
    not_included: tuple[str, ...] = ()
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump, with the terms by their names beside the rest."""
        rest = {name: plain(value) for name, value in vars(self).items() if name != "terms"}
        return {name: self.terms[name].to_json() for name in TERMS} | rest


@dataclass(frozen=True)
class PlaceOptions:
    """Prices to use for each place.

    Args:
        loihi1, loihi2: profiles of a chip; the first gives the nominal value, bounds are the widest
            of all.
        edge_gpu, cpu: profiles of kind "device".
        allow_partial: price what was counted where something was not.
    """

    loihi1: tuple[str, ...] = ("loihi1_cal", "loihi1_table")
    loihi2: tuple[str, ...] = ("loihi2",)
    edge_gpu: str = "edge_gpu"
    cpu: str = "cpu"
    allow_partial: bool = False


USUAL = PlaceOptions()


def places_of(
    student: OperationCounts,
    traffic: Mapping[str, Traffic],
    baseline: OperationCounts | None = None,
    measured: Baseline | None = None,
    options: PlaceOptions = USUAL,
    *,
    unplaced: Mapping[str, str] | None = None,
) -> tuple[PlaceEnergy, ...]:
    """Price one inference everywhere it may run.

    Args:
        student: counts of the spiking network; with pools counted as "float" no chip is priced.
        traffic: title of a chip -> traffic of the student on its cores; chips without one have no
            latency and no static energy.
        baseline: counts of the network beside it, None for none.
        measured: what was measured of that network here.
        options: prices.
        unplaced: title of a chip -> why it has no traffic.

    Raises:
        CountError: the counts have no total, and a part of them was not asked for.
        PriceError: prices that a model needs and are not there.
    """
    found: list[PlaceEnergy] = []
    if student.kind == "snn" and student.pooling != "float":
        for title, profiles in (("Loihi 1", options.loihi1), ("Loihi 2", options.loihi2)):
            why = (unplaced or {}).get(title, NOT_PLACED)
            found.append(_on_chip(title, student, traffic.get(title), profiles, options, why))
    if baseline is not None:
        whole = baseline.lower_bound if options.allow_partial else baseline.total
        size = float(whole.dense_padded), len(baseline.layers)
        gpu, cpu = load_profile(options.edge_gpu), load_profile(options.cpu)
        found.append(_on_device("edge GPU, batch 1", gpu, "launch", *size))
        found.append(_on_device("edge GPU, large batch", gpu, "batched", *size))
        found.append(_on_device("CPU", cpu, "launch", *size))
    if measured is not None:
        for what in (measured.gpu, measured.cpu):
            found += [] if what is None else _as_measured(what)
    return tuple(found)


def _on_chip(
    title: str,
    counts: OperationCounts,
    traffic: Traffic | None,
    profiles: Sequence[str],
    options: PlaceOptions,
    unplaced: str,
) -> PlaceEnergy:
    prices = [load_profile(name) for name in profiles]
    told = Options(active="touched")
    estimates = [
        price(
            counts,
            profile,
            model="chip",
            options=told,
            allow_partial=options.allow_partial,
            traffic=traffic,
        )
        for profile in prices
    ]
    first = prices[0]
    all_in = first.scope == "all-in"
    dynamic = _widest([_energy(estimate) for estimate in estimates], "J")
    if traffic is None and not all_in:
        why = f"messages between cores: {unplaced}"
        dynamic = Quantity(dynamic.low, dynamic.nominal, None, "J", why)
    latency = _chip_latency(first, counts, traffic, unplaced)
    power = _of_record(first.record("static"), "W")
    chips = 1 if traffic is None else traffic.chips
    static = power.times(latency, "J").times(float(chips))
    not_included, assumptions = [], [*_assumptions(traffic, latency)]
    waiting = next((record for record in first.prices if record.term == "input_time"), None)
    if waiting is None:
        why = "no source bounds what it takes to bring inputs onto the chip and outputs off it"
        in_out = Quantity(0.0, None, None, "J", why)
        not_included.append("input and output")
        total = dynamic + static
    else:
        in_out = power.times(_of_record(waiting, "s"), "J").times(float(chips))
        assumptions.append(
            "input and output: nominal lies on the chip already, high waits for Ethernet"
        )
        total = dynamic + static + in_out
        latency += _of_record(waiting, "s")
    if traffic is None:
        not_included.append("static power and time")
        # A total of what switches alone would be read as one.
        total = Quantity(total.low, None, total.high, "J", unplaced)
    if any(one.partial for one in estimates):
        not_included.append("what was not counted: a lower bound")
    if all_in:
        assumptions.append("all-in: updates, spikes and messages are in the price of a synapse")
    used = [
        record
        for profile, estimate in zip(prices, estimates, strict=True)
        for record in _records_of(profile, estimate, traffic)
    ]
    return PlaceEnergy(
        place=title,
        network="student",
        terms=_terms(dynamic, static, in_out, total, latency),
        grade=_worst(used),
        sources=_sources(used),
        assumptions=tuple(assumptions),
        not_included=tuple(not_included),
        breakdown={
            layer: {term: energy * 1e-12 for term, energy in terms.items()}
            for layer, terms in estimates[0].layer_terms.items()
        },
    )


def _chip_latency(
    profile: Profile, counts: OperationCounts, traffic: Traffic | None, unplaced: str
) -> Quantity:
    if traffic is None:
        return Quantity(None, None, None, "s", unplaced)
    times = step_times(profile, traffic)
    # Traffic may have been counted on longer or shorter inferences than the counts.
    low, nominal, high = (float(value) for value in times.mean(axis=(1, 2)))
    steps = float(counts.timesteps)
    return Quantity(low * steps, nominal * steps, high * steps, "s")


def _assumptions(traffic: Traffic | None, latency: Quantity) -> Iterable[str]:
    if traffic is None:
        return
    cores = f"{traffic.cores} cores of {traffic.chips} chip" + ("s" if traffic.chips > 1 else "")
    yield f"{cores}, as knarr places layers; static power of whole chips"
    yield (
        "a step lasts as long as its busiest core, and a barrier; links that are full delay nothing"
    )
    if latency.nominal is not None:
        yield f"traffic counted on {traffic.samples} samples"
    if traffic.chips > 1:
        yield "chips lie side by side: a hop between two costs as one within"


def _records_of(
    profile: Profile, estimate: EnergyEstimate, traffic: Traffic | None
) -> list[PriceRecord]:
    ids = estimate.provenance
    timed = ("static", "input_time")
    return [
        record
        for record in profile.prices
        if f" {record.id}," in ids
        or f" {record.id} (" in ids
        or (traffic is not None and record.term.startswith(("time_", "barrier_")))
        or record.term in timed
    ]


def _on_device(
    place: str, profile: Profile, term: Literal["launch", "batched"], macs: float, layers: int
) -> PlaceEnergy:
    records = {record.term: record for record in profile.prices}
    used: list[PriceRecord] = []

    def cost(name: str, unit: Unit, times: float = 1.0) -> Quantity:
        if name not in records or times == 0:
            return Quantity(0.0, 0.0, 0.0, unit)
        used.append(records[name])
        return _of_record(records[name], unit).times(times)

    dynamic, static = cost(term, "J"), cost(f"{term}_idle", "J")
    latency = cost(f"{term}_time", "s")
    assumptions = [
        "not measured here: published launches of small networks",
        "copies between host and device are in the launch",
    ]
    more = max(0, layers - LAYERS_MEASURED)
    if term == "launch":
        dynamic += cost("launch_layer", "J", more)
        static += cost("launch_layer_idle", "J", more)
        latency += cost("launch_layer_time", "s", more)
    dynamic += cost("mac", "J", macs)
    beyond = ""
    if macs >= SMALL_MACS:
        beyond = f"{macs:.3g} multiplications are no small network: measure it"
    elif term == "batched" and more:
        beyond = f"batches were measured on {LAYERS_MEASURED} layers, not on {layers}: measure it"
    if beyond:
        dynamic, static, latency = (
            Quantity(one.low, one.nominal, None, one.unit, beyond)
            for one in (dynamic, static, latency)
        )
    return PlaceEnergy(
        place=place,
        network="baseline",
        terms=_terms(dynamic, static, Quantity(0.0, 0.0, 0.0, "J"), dynamic + static, latency),
        grade=_worst(used),
        sources=_sources(used),
        assumptions=tuple(assumptions),
        not_included=("the host beside the device",) if place != "CPU" else (),
    )


def _as_measured(found: Measurement) -> list[PlaceEnergy]:
    """Return a place for each batch size that was measured."""
    gpu = getattr(found, "device", None)
    name = gpu or "CPU of this machine"
    places = []
    for batch in found.batches:
        windows = batch.windows
        dynamic = _spread([window.net_j for window in windows], "J")
        idle = _spread([window.gross_j - window.net_j for window in windows], "J")
        latency = _spread([window.run_ms * 1e-3 for window in windows], "s")
        total = _spread([window.gross_j for window in windows], "J")
        places.append(
            PlaceEnergy(
                place=f"{name}, batch {batch.batch}, measured",
                network="baseline",
                terms=_terms(dynamic, idle, Quantity(0.0, 0.0, 0.0, "J"), total, latency),
                grade=found.grade,
                sources=(
                    f"measured here, {len(windows)} windows of {windows[0].duration_s:.1f} s",
                ),
                assumptions=("inputs and outputs lie on the device", *batch.notes),
                not_included=("the host beside the device",) if gpu else (),
            )
        )
    return places


def _terms(
    dynamic: Quantity, static: Quantity, in_out: Quantity, total: Quantity, latency: Quantity
) -> dict[str, Quantity]:
    product = total.times(latency, "J s")
    return dict(zip(TERMS, (dynamic, static, in_out, total, latency, product), strict=True))


def _energy(estimate: EnergyEstimate) -> tuple[float | None, float | None, float | None]:
    low, nominal, high = (
        None if value is None else value * 1e-12
        for value in (estimate.lo_pj, estimate.nominal_pj, estimate.hi_pj)
    )
    return low, nominal, high


def _widest(
    found: Sequence[tuple[float | None, float | None, float | None]], unit: Unit
) -> Quantity:
    """Return the nominal value of the first, between the outermost values that any gives."""
    # A nominal value is a bound where its profile has none of its own.
    lows = [nominal if low is None else low for low, nominal, _ in found]
    highs = [nominal if high is None else high for _, nominal, high in found]
    known = [value for value in lows if value is not None]
    above = [value for value in highs if value is not None]
    if found[0][2] is None:
        return Quantity(min(known), found[0][1], None, unit, "something was not counted")
    return Quantity(min(known), found[0][1], max(above), unit)


def _spread(values: Sequence[float], unit: Unit) -> Quantity:
    return Quantity(min(values), sum(values) / len(values), max(values), unit)


def _of_record(record: PriceRecord, unit: Unit) -> Quantity:
    low, nominal, high = record.si()
    return Quantity(low, nominal, high, unit, record.why_no_bounds)


def _worst(records: Sequence[PriceRecord]) -> Grade:
    return max((record.grade for record in records), key=GRADES.index)


def _sources(records: Sequence[PriceRecord]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(record.source for record in records))
