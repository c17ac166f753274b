"""Where a spiking network stops being cheaper than its baseline: how much activity, and how many steps, it can afford."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
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
        timesteps, timesteps_limit: steps of an inference, and how many would pay at this activity (graded frames stay).
        events_per_synapse: synaptic events over the dense operations of one pass; 4.6 / 0.9 = 5.1 is the most that the paper
            model allows any network.
        worst_layer: the layer that costs most.
        worst_share: of the whole energy.
    """

    activity_scale: float | None
    density: float
    density_limit: float | None
    timesteps: float
    timesteps_limit: float | None
    events_per_synapse: float
    worst_layer: str
    worst_share: float


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
    # And what is left of no steps are graded frames, which an input shows once or as often as it is given.
    none = energy(_scaled(snn, events=Fraction(0), steps=Fraction(0)))
    scale = (limit - silent) / (whole - silent) if whole > silent else None
    dense = float(snn.total.dense_valid)
    events = float(snn.total.acc + snn.total.mac)
    density = float(snn.total.acc) / dense
    layers = price(snn, profile, model=model, options=options).layers_pj
    worst = max(layers, key=lambda name: layers[name])
    return BreakEven(
        activity_scale=scale,
        density=density,
        density_limit=None if scale is None else max(0.0, scale * density),
        timesteps=float(snn.timesteps),
        timesteps_limit=float(snn.timesteps) * (limit - none) / (whole - none) if whole > none else None,
        events_per_synapse=events * float(snn.timesteps) / dense,
        worst_layer=worst,
        worst_share=layers[worst] / whole if whole else 0.0,
    )


def _scaled(counts: OperationCounts, *, events: Fraction, steps: Fraction) -> OperationCounts:
    """Binary events times `events`, everything done at every step times `steps`."""

    def layer(one: LayerCounts) -> LayerCounts:
        return replace(
            one,
            acc=one.acc * events,
            acc_nonzero=one.acc_nonzero * events,
            spikes=one.spikes * events,
            events=one.events * events,
            bias_adds=one.bias_adds * steps,
            neuron_updates=one.neuron_updates * steps,
        )

    layers: Mapping[str, LayerCounts] = {name: layer(one) for name, one in counts.layers.items()}
    return replace(counts, layers=layers)
