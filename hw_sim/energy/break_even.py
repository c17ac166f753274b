"""Where a spiking network stops being cheaper than its baseline: how much activity, and how many steps, it can afford."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil, log2
from pathlib import Path

from knarr.hw_sim.counts import LayerCounts, OperationCounts
from knarr.hw_sim.energy.estimate import price
from knarr.hw_sim.energy.models import Options
from knarr.hw_sim.energy.prices import PriceError, Profile


@dataclass(frozen=True)
class BreakEven:
    """At which the two energies are equal, under one model.

    Args:
        activity_scale: factor on all binary events; below 1 the network is not competitive at its activity. None where
            nothing it does depends on its activity.
        density, density_limit: events per synapse and step, and the largest that pays.
        rate, rate_limit: spikes per neuron and step, mean over all that update, and the largest that pays.
        timesteps, timesteps_limit: steps of an inference, and how many would pay at this activity (graded frames stay).
        events_per_synapse: synaptic events over the dense operations of one pass; 4.6 / 0.9 = 5.1 is the most that the paper
            model allows any network.
        worst_layer: the layer that costs most.
        worst_share: of the whole energy.
        worst_term: of that layer, the term that costs most.
        step_pj: what one more time step costs at this activity.
        spike_pj: what one more percent of activity costs, in every layer alike.
        quantised_rival_bits: an ANN with so many bits distinguishes as many values as this many steps do,
            ceil(log2(T + 1)); the fair rival of a rate code.
    """

    activity_scale: float | None
    density: float
    density_limit: float | None
    rate: float
    rate_limit: float | None
    timesteps: float
    timesteps_limit: float | None
    events_per_synapse: float
    worst_layer: str
    worst_share: float
    worst_term: str
    step_pj: float
    spike_pj: float
    quantised_rival_bits: int

    def to_json(self) -> dict[str, object]:
        """Plain dict for json.dump, with the same names."""
        return asdict(self)


def break_even(
    snn: OperationCounts,
    ann: OperationCounts,
    profile: str | Path | Profile = "horowitz_fp32",
    *,
    model: str = "paper",
    options: Options | None = None,
) -> BreakEven:
    """What the spiking network can afford against its baseline.

    Args:
        snn, ann: counted, both with a total.
        profile, model, options: as for `price`; both sides are priced alike.

    Raises:
        CountError: counts without a total.
        PriceError: prices that do not fit, or counts that are not of an SNN and an ANN.
    """
    if (snn.kind, ann.kind) != ("snn", "ann"):
        raise PriceError(f"break-even: of '{snn.kind}' and '{ann.kind}', needs 'snn' and 'ann'")

    def energy(counts: OperationCounts) -> float:
        return price(counts, profile, model=model, options=options).nominal_pj

    whole, limit = energy(snn), energy(ann)
    # Every model is linear in counts: what is left without binary events does not depend on activity.
    silent = energy(_scaled(snn, events=Fraction(0), steps=Fraction(1)))
    # And what is left of no steps is a graded frame that only the first one shows.
    none = energy(_scaled(snn, events=Fraction(0), steps=Fraction(0)))
    scale = (limit - silent) / (whole - silent) if whole > silent else None
    dense = float(snn.total.dense_valid)
    events = float(snn.total.acc + snn.total.mac)
    density = float(snn.total.acc) / dense if dense else 0.0
    estimate = price(snn, profile, model=model, options=options)
    layers = estimate.layers_pj
    worst = max(layers, key=lambda name: layers[name])
    updates = float(snn.total.neuron_updates)
    rate = float(snn.total.spikes) / updates if updates else 0.0
    return BreakEven(
        activity_scale=scale,
        density=density,
        density_limit=None if scale is None else max(0.0, scale * density),
        rate=rate,
        rate_limit=None if scale is None else max(0.0, scale * rate),
        timesteps=float(snn.timesteps),
        timesteps_limit=float(snn.timesteps) * (limit - none) / (whole - none) if whole > none else None,
        events_per_synapse=events * float(snn.timesteps) / dense if dense else 0.0,
        worst_layer=worst,
        worst_share=layers[worst] / whole if whole else 0.0,
        worst_term=max(estimate.layer_terms[worst], key=lambda term: estimate.layer_terms[worst][term]),
        step_pj=(whole - none) / float(snn.timesteps),
        spike_pj=(whole - silent) / 100,
        quantised_rival_bits=ceil(log2(float(snn.timesteps) + 1)),
    )


def _scaled(counts: OperationCounts, *, events: Fraction, steps: Fraction) -> OperationCounts:
    """Binary events times `events`, everything done at every step times `steps`."""
    macs = steps if counts.later_macs else Fraction(1)

    def layer(one: LayerCounts) -> LayerCounts:
        return replace(
            one,
            acc=one.acc * events,
            acc_nonzero=one.acc_nonzero * events,
            # Graded frames are what an input shows: they do not follow the activity. Where they come at every step, more
            # steps show more of them; a first frame alone stays.
            mac=one.mac * macs,
            mac_nonzero=one.mac_nonzero * macs,
            spikes=one.spikes * events,
            events=(one.events - one.graded) * events + one.graded * macs,
            graded=one.graded * macs,
            signed=one.signed * events,
            recurrent_all_pairs=one.recurrent_all_pairs * events,
            recurrent_no_autapse=one.recurrent_no_autapse * events,
            bias_adds=one.bias_adds * steps,
            neuron_updates=one.neuron_updates * steps,
            touched_updates=one.touched_updates * min(events, steps),
        )

    layers: Mapping[str, LayerCounts] = {name: layer(one) for name, one in counts.layers.items()}
    return replace(counts, layers=layers)
