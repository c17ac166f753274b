"""`price`: energy of one inference, with interval, terms and one line of provenance; and ratios of
two such energies.

`ratio` refuses what cannot be compared. Whether a ranking holds under all models is the verdict's
matter (`knarr.pipeline.energy_report.verdict`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from knarr.hw_sim.counting.counts import LayerCounts, OperationCounts
from knarr.hw_sim.energy import models
from knarr.hw_sim.energy.mapping import Traffic
from knarr.hw_sim.energy.models import MODELS, ZERO, Interval, Options
from knarr.hw_sim.energy.prices import (
    GRADES,
    Family,
    PriceError,
    Profile,
    families,
    load_prices,
)
from knarr.hw_sim.json_values import JsonRecord


@dataclass(frozen=True)
class EnergyEstimate(JsonRecord):
    """Energy of one inference in picojoules.

    Args:
        lo_pj, nominal_pj, hi_pj: interval; a bound is None where a price used has none.
        layers_pj: layer name -> nominal energy.
        provenance: one line: price records and their worst grade.
        model, profile: what was asked for.
        kind: "snn" or "ann", as counted.
        node_nm, technology, precision, scope: of the prices; two energies compare only where these
            agree.
        terms: term of the model -> interval over all layers.
        layer_terms: layer name -> term -> nominal energy.
        notes: what the number leaves out.
        partial: it is a lower bound, since something of the model was not counted; `notes` name it.
        options: of the model, as used.
    """

    lo_pj: float | None
    nominal_pj: float
    hi_pj: float | None
    layers_pj: Mapping[str, float]
    provenance: str
    model: str
    profile: str
    kind: Literal["snn", "ann"]
    node_nm: int | None
    technology: str
    precision: str
    scope: str
    terms: Mapping[str, Interval]
    layer_terms: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    partial: bool
    options: Mapping[str, Any]


def price(
    counts: OperationCounts,
    profile: str | Path | Profile | Family = "horowitz_fp32",
    *,
    model: str = "paper",
    options: Options | None = None,
    allow_partial: bool = False,
    traffic: Traffic | None = None,
) -> EnergyEstimate:
    """Price one inference.

    Args:
        counts: of `count` or `count_onnx`; an ANN is priced on `mac` = dense valid multiplications.
        profile: a name of `profiles()`, a .toml file, or what `load_profile` gave; or a name of
            `families()`, such as "horowitz", whose prices every layer takes in its own precision
            (`counts.precision`), with weights and states read in their own bits.
        model: "paper", "memory" or "chip" (`knarr.hw_sim.energy.models`).
        options: of the model.
        allow_partial: price what was counted where something was not; the result is a lower bound
            and says so.
        traffic: between the cores of a mapped network (chip): messages, hops, updated neurons and
            chips in use.

    Returns:
        Interval, nominal energy per layer, terms, provenance.

    Raises:
        CountError: the counts have no total, and a part of them was not asked for.
        PriceError: unknown profile or model, or prices or sizes that the model needs and are not
            there.
    """
    if model not in MODELS:
        raise PriceError(f"model: '{model}' does not exist; choose from {list(MODELS)}")
    known = profile if isinstance(profile, (Profile, Family)) else load_prices(profile)
    prices = known if isinstance(known, Profile) else known.any
    told = options or Options()
    _ = counts.lower_bound if allow_partial else counts.total  # refuses counts that are not whole
    own, precisions = _own_prices(counts, known)
    layers = {
        name: _layer(counts, name, own[name], model, told, traffic, isinstance(known, Family))
        for name in counts.layers
    }
    terms: dict[str, Interval] = {}
    for parts in layers.values():
        for name, interval in parts.items():
            terms[name] = terms.get(name, ZERO) + interval
    notes = [
        f"LOWER BOUND, '{row.name}' ({row.operation}) is not in it: {row.status}, {row.note}"
        for row in counts.refused
    ]
    if model == "chip":
        chips = 1 if traffic is None else traffic.chips
        if not models.has(prices, "static"):
            notes.append(f"static power NOT included: profile '{prices.name}' has none")
        elif told.latency_s is None:
            notes.append("static power NOT included: no latency given")
        else:
            # Watts times seconds, in picojoules.
            power = models.price_of(prices, "static")
            terms["static"] = power.times(chips * told.latency_s * 1e12)
        if prices.scope == "all-in":
            notes.append(
                f"profile '{prices.name}' is all-in: updates, spikes and hops are in its synapses"
            )
        elif told.hops is None and traffic is None:
            notes.append("hops between cores NOT included: no placement given")
        notes.append("I/O and messages between host and chip NOT included")
    notes += precisions
    whole = sum(terms.values(), ZERO)
    looked_up = models.used_terms(model, terms, mapped=traffic is not None)
    computing = [own[name] for name, layer in counts.layers.items() if _computes(layer)]
    tables = {one.name: one for one in computing} or {prices.name: prices}
    words = {told.bits(one) for one in tables.values()}
    if model == "memory":
        shown = ", ".join(map(str, sorted(words)))
        notes.append(f"memory in words of {shown} bits")
        if isinstance(known, Family) and told.word_bits is None:
            notes.append("weights and states in the bits that they are stored in")
    # Prices of memory are those of the family.
    records = {
        record.id: record
        for one in tables.values()
        for record in (one.record(term) for term in looked_up if models.has(one, term))
    }
    used = list(records.values())
    if told.on_chip_bytes is None:
        # Nothing was off the chip.
        used = [record for record in used if record.term != "dram"]
    worst = max((record.grade for record in used), key=GRADES.index)
    ids = ", ".join(record.id for record in used)
    sources = "; ".join(dict.fromkeys(record.source for record in used))
    return EnergyEstimate(
        lo_pj=whole.lo,
        nominal_pj=whole.nominal,
        hi_pj=None if counts.refused else whole.hi,  # nobody knows what the rest would add
        layers_pj={name: sum(parts.values(), ZERO).nominal for name, parts in layers.items()},
        provenance=f"prices {ids} ({sources}); worst grade {worst}",
        model=model,
        profile=known.name,
        kind=counts.kind,
        node_nm=prices.node_nm,
        technology=prices.technology,
        precision=" + ".join(dict.fromkeys(one.precision for one in tables.values())),
        scope=prices.scope,
        terms=terms,
        layer_terms={
            name: {term: one.nominal for term, one in parts.items()}
            for name, parts in layers.items()
        },
        notes=tuple(notes),
        partial=bool(counts.refused),
        options={**asdict(told), "word_bits": words.pop() if len(words) == 1 else None},
    )


def _computes(layer: LayerCounts) -> bool:
    """Tell whether a layer does anything that a price of arithmetic is for."""
    return bool(layer.acc or layer.mac or layer.bias_adds or layer.neuron_updates)


def _own_prices(
    counts: OperationCounts, known: Profile | Family
) -> tuple[dict[str, Profile], list[str]]:
    """Return the profile of every layer, and notes on precisions that have no prices of their own.

    Raises:
        PriceError: counts that do not say how precise they are, or a precision without a price.
    """
    if isinstance(known, Profile):
        return dict.fromkeys(counts.layers, known), []
    if counts.precision is None:
        raise PriceError(
            f"profile '{known.name}': the counts do not say in which precision each layer computes; "
            f"name one of {', '.join(one.name for one in known.profiles.values())}"
        )
    found, notes = {}, []
    for name, layer in counts.layers.items():
        precision = counts.precision.get(name, "")
        if not _computes(layer):
            # What only moves or compares has nothing that a price of arithmetic is for.
            precision = precision if precision in known.profiles else next(iter(known.profiles))
        found[name], note = known.of(name, precision)
        notes += [note] if note else []
    return found, list(dict.fromkeys(notes))


def _layer(
    counts: OperationCounts,
    name: str,
    prices: Profile,
    model: str,
    options: Options,
    traffic: Traffic | None,
    own_bits: bool,
) -> dict[str, Interval]:
    layer = counts.layers[name]
    if model == "paper":
        return models.paper(layer, prices)
    if model == "chip":
        if counts.kind != "snn":
            raise PriceError(
                "model: 'chip' prices spiking networks; price an ANN by 'paper' or 'memory'"
            )
        if counts.pooling == "float":
            raise PriceError(
                "model: 'chip' has its pools in its synapses; count with pooling='folded'"
            )
        sizes = None if counts.sizes is None else counts.sizes.get(name)
        if traffic is not None and name not in traffic.layers:
            raise PriceError(f"layer '{name}': has no cores in the traffic; map this network")
        return models.chip(
            layer,
            prices,
            options,
            convolution=sizes is not None and sizes.convolution,
            traffic=None if traffic is None else traffic.layers[name],
        )
    if prices.scope == "all-in":
        raise PriceError(
            f"profile '{prices.name}': all-in prices hold memory already; use model='paper'"
        )
    if counts.sizes is None or name not in counts.sizes:
        raise PriceError(
            f"layer '{name}': the memory model needs its sizes; count the network again"
        )
    sizes = counts.sizes[name]
    if not own_bits or options.word_bits is not None:
        # Prices that were asked for by name are of words that are all alike.
        sizes = replace(sizes, weight_bits=None, state_bits=None)
    return models.memory(layer, sizes, prices, options, counts.kind)


def ratio(
    snn: EnergyEstimate,
    ann: EnergyEstimate,
    *,
    mix_technologies: bool = False,
    mix_precisions: bool = False,
) -> float:
    """Return E_snn / E_ann, nominal; below 1 the spiking network is cheaper.

    Each side may be priced in its own precision by one family of prices (`families`).

    Args:
        snn, ann: one inference each.
        mix_precisions: allow precisions that differ, in one technology: what each side computes
            in. Say so beside the number.
        mix_technologies: allow different models, nodes, precisions or scopes; such a number ranks
            nothing.

    Raises:
        PriceError: not an SNN and an ANN, technologies that differ, or an ANN that costs nothing.
    """
    if (snn.kind, ann.kind) != ("snn", "ann"):
        raise PriceError(f"ratio: of '{snn.kind}' to '{ann.kind}', needs 'snn' to 'ann'")
    same = ["model", "node_nm", "technology", "precision", "scope"]
    apart = snn.profile in families() and snn.profile == ann.profile
    if apart or mix_precisions:
        same.remove("precision")
    else:
        same.remove("technology")
    for name in same:
        left, right = getattr(snn, name), getattr(ann, name)
        # Two profiles of unknown node may be of different ones.
        unknown = name == "node_nm" and left is None and snn.profile != ann.profile
        if (left != right or unknown) and not mix_technologies:
            raise PriceError(
                f"ratio: {name} {left} vs {right}; price both sides with the same profile and model"
            )
    bits = snn.options.get("word_bits"), ann.options.get("word_bits")
    alike = apart or mix_precisions or mix_technologies or bits[0] == bits[1]
    if snn.model == "memory" and not alike:
        raise PriceError(
            f"ratio: words of {bits[0]} vs {bits[1]} bits; price both sides with the same options"
        )
    if ann.nominal_pj == 0:
        raise PriceError("ratio: the ANN costs 0 pJ, there is nothing to compare with")
    return snn.nominal_pj / ann.nominal_pj
