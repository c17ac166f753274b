"""Changes of a spiking network: what they would buy, and how much activity and how many steps it
can afford.

`what_if` runs the network again with fewer steps or other thresholds, counts and prices it, and
compares its decisions. Nothing is extrapolated: every row is a run. Thresholds of all spiking
neurons are scaled together, since one factor is what a user can try without training; a network
trained for it would do better.

`break_even` says where a spiking network stops being cheaper than its baseline.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, inf, log2
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.arrays import Array
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.counting.chip import count_events
from knarr.hw_sim.counting.count import count
from knarr.hw_sim.counting.counts import LayerCounts, OperationCounts
from knarr.hw_sim.energy.estimate import EnergyEstimate, price
from knarr.hw_sim.energy.models import Options
from knarr.hw_sim.energy.prices import Family, PriceError, Profile
from knarr.hw_sim.json_values import JsonRecord
from knarr.hw_sim.network import NON_SPIKING_VTH, ChipNetwork, Readout
from knarr.hw_sim.simulation import simulate
from knarr.hw_sim.synapse_masks import SYNAPSES

SHARES = (1.0, 0.75, 0.5, 0.25)
FACTORS = (0.8, 1.25, 1.5, 2.0)
OF_BINARY_EVENTS = (
    "acc", "acc_nonzero", "spikes", "signed", "recurrent_all_pairs", "recurrent_no_autapse",
    "touched_updates",
)  # fmt: skip
"""Counts that are 0 where no binary event occurs."""


@dataclass(frozen=True)
class WhatIf(JsonRecord):
    """One run with something changed.

    Args:
        change: "timesteps" or "threshold".
        value: how many steps, or times which factor; the first row is the network as it is.
        acc, mac: per inference.
        energy_pj: nominal, per inference.
        relative: to the network as it is.
        agreement: share of samples decided as before.
        accuracy: share decided as the labels say, None without labels.
    """

    change: Literal["timesteps", "threshold"]
    value: float
    acc: float
    mac: float
    energy_pj: float
    relative: float
    agreement: float
    accuracy: float | None


def what_if(
    model: object,
    inputs: npt.ArrayLike,
    profile: str | Path | Profile | Family = "horowitz_fp32",
    *,
    dt_s: float | None = None,
    energy_model: str = "paper",
    options: Options | None = None,
    labels: npt.ArrayLike | None = None,
    readout: Readout | None = None,
    shares: Sequence[float] = SHARES,
    factors: Sequence[float] = FACTORS,
    progress: Callable[[int, int], Any] | None = None,
) -> tuple[WhatIf, ...]:
    """Run a network with fewer steps, and with other thresholds.

    Args:
        model: `ChipNetwork` or nir.NIRGraph.
        inputs: (samples, timesteps, *features); a few dozen samples are enough.
        profile, energy_model, options: as for `price`.
        dt_s: of a graph, seconds.
        labels: (samples,) classes.
        readout: how a graph's output is read (its kind does not matter); a chip network has its
            own.
        shares: of the steps; 1 is the network as it is and comes first.
        factors: of all thresholds, above 0.
        progress: called with (runs done, in all).

    Raises:
        PriceError: shares or factors that make no sense, or labels that do not fit.
        CountError, ChipError, knarr.export.ExportError: as of `count`.
    """
    if not all(0 < share <= 1 for share in shares) or not all(0 < f < inf for f in factors):
        raise PriceError(
            f"trade: shares {tuple(shares)} and factors {tuple(factors)}; needs 0..1 and numbers above 0"
        )
    frames = np.asarray(inputs)
    true = None if labels is None else np.asarray(labels)
    if true is not None and true.shape != frames.shape[:1]:
        raise PriceError(f"labels: {true.shape} for {len(frames)} samples; give one class each")
    steps = frames.shape[1]
    # All steps first: rows are compared with the first. Shares of few steps may round to the same.
    lengths = dict.fromkeys([steps, *(max(1, round(share * steps)) for share in shares)])
    runs: list[tuple[Literal["timesteps", "threshold"], float, Any, Array]] = []
    for length in lengths:
        runs.append(("timesteps", float(length), model, frames[:, :length]))
    for factor in factors:
        runs.append(("threshold", float(factor), with_thresholds(model, factor), frames))
    found: list[WhatIf] = []
    before: Array | None = None
    for change, value, network, shown in runs:
        counts, decided = _run(network, shown, dt_s, readout)
        energy = price(counts, profile, model=energy_model, options=options).nominal_pj
        before = decided if before is None else before
        now = found[0].energy_pj if found else energy
        found.append(
            WhatIf(
                change=change,
                value=value,
                acc=float(counts.total.acc),
                mac=float(counts.total.mac),
                energy_pj=energy,
                relative=energy / now if now else 1.0,
                agreement=float((decided == before).mean()),
                accuracy=None if true is None else float((decided == true).mean()),
            )
        )
        if progress is not None:
            progress(len(found), len(runs))
    return tuple(found)


def with_thresholds(model: Any, factor: float) -> Any:
    """Return the network with every threshold times a factor; a chip's are rounded and end at its
    register.

    Args:
        model: `ChipNetwork` or nir.NIRGraph.
        factor: above 0.
    """
    if isinstance(model, ChipNetwork):
        layers = []
        for layer in model.layers:
            neuron = layer.neuron
            # A readout has no threshold; and one that fires must not become one.
            if neuron.spikes:
                vth_int = np.asarray(neuron.vth_int)
                scaled = np.clip(np.rint(vth_int * factor), 0, NON_SPIKING_VTH - 1).astype(np.int64)
                silent = vth_int == NON_SPIKING_VTH
                neuron = replace(neuron, vth_int=np.where(silent, vth_int, scaled))
            layers.append(replace(layer, neuron=neuron))
        # What lowering noted is not true of other thresholds, but where it put synapses.
        kept = {key: model.lowering[key] for key in (SYNAPSES,) if key in model.lowering}
        return replace(model, layers=tuple(layers), lowering=kept)
    # Shallow copies: nodes are replaced, never written to.
    changed = copy.copy(model)
    changed.nodes = {name: _with_threshold(node, factor) for name, node in model.nodes.items()}
    return changed


def _with_threshold(node: Any, factor: float) -> Any:
    if hasattr(node, "nodes"):
        return with_thresholds(node, factor)
    changed = copy.copy(node)
    # NIR's spiking nodes have one of the two names.
    for field in ("v_threshold", "threshold"):
        if hasattr(node, field):
            setattr(changed, field, np.asarray(getattr(node, field)) * factor)
    return changed


def _run(
    model: Any, inputs: Array, dt_s: float | None, readout: Readout | None
) -> tuple[OperationCounts, Array]:
    """Return counts, and the class decided for each sample."""
    if isinstance(model, ChipNetwork):
        events = check_inputs(model.input, inputs)
        recording = simulate(model, events, record=("output", "spikes"))
        return count_events(model, events, recording), model.readout.decide(recording.output)
    # Chip networks are priced where nothing of graphs is installed.
    from knarr.export.graph.step import step_nir

    counts = count(model, inputs, dt_s=dt_s)
    output = step_nir(model, inputs, dt_s or 0.0).output
    return counts, (readout or Readout("spikes")).decide(output.reshape(*output.shape[:2], -1))


@dataclass(frozen=True)
class BreakEven(JsonRecord):
    """The point at which two energies are equal, under one model.

    Args:
        activity_scale: factor on all binary events; below 1 the network is not competitive at its
            activity. None where nothing it does depends on its activity.
        density, density_limit: events per synapse and step, and the largest that pays.
        rate, rate_limit: spikes per neuron and step, mean over all that update, and the largest
            that pays.
        timesteps, timesteps_limit: steps of an inference, and how many would pay at this activity
            (graded frames stay).
        events_per_synapse: synaptic events over the dense operations of one pass; 4.6 / 0.9 = 5.1
            is the most that the paper model allows any network.
        worst_layer: the layer that costs most.
        worst_share: of the whole energy.
        worst_term: of that layer, the term that costs most.
        step_pj: what one more time step costs at this activity.
        spike_pj: what one more percent of activity costs, in every layer alike.
        quantised_rival_bits: an ANN with so many bits distinguishes as many values as this many
            steps do, ceil(log2(T + 1)); the fair rival of a rate code.
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


def break_even(
    snn: OperationCounts,
    ann: OperationCounts,
    profile: str | Path | Profile | Family = "horowitz_fp32",
    *,
    model: str = "paper",
    options: Options | None = None,
) -> BreakEven:
    """Compute what the spiking network can afford against its baseline.

    Args:
        snn, ann: counted, both with a total.
        profile, model, options: as for `price`; both sides are priced alike.

    Raises:
        CountError: counts without a total.
        PriceError: prices that do not fit, or counts that are not of an SNN and an ANN.
    """
    if (snn.kind, ann.kind) != ("snn", "ann"):
        raise PriceError(f"break-even: of '{snn.kind}' and '{ann.kind}', needs 'snn' and 'ann'")

    def priced(counts: OperationCounts) -> EnergyEstimate:
        return price(counts, profile, model=model, options=options)

    estimate = priced(snn)
    whole, limit = estimate.nominal_pj, priced(ann).nominal_pj
    # Every model is linear in counts: what is left without binary events does not depend on
    # activity.
    silent = priced(_without_events(snn, steps=1)).nominal_pj
    # And what is left of no steps is a graded frame that only the first one shows.
    none = priced(_without_events(snn, steps=0)).nominal_pj
    scale = (limit - silent) / (whole - silent) if whole > silent else None
    total, timesteps = snn.total, float(snn.timesteps)
    dense, updates = float(total.dense_valid), float(total.neuron_updates)
    density = float(total.acc) / dense if dense else 0.0
    rate = float(total.spikes) / updates if updates else 0.0
    events = float(total.acc + total.mac)
    layers = estimate.layers_pj
    worst = max(layers, key=lambda name: layers[name])
    terms = estimate.layer_terms[worst]
    return BreakEven(
        activity_scale=scale,
        density=density,
        density_limit=None if scale is None else max(0.0, scale * density),
        rate=rate,
        rate_limit=None if scale is None else max(0.0, scale * rate),
        timesteps=timesteps,
        timesteps_limit=timesteps * (limit - none) / (whole - none) if whole > none else None,
        events_per_synapse=events * timesteps / dense if dense else 0.0,
        worst_layer=worst,
        worst_share=layers[worst] / whole if whole else 0.0,
        worst_term=max(terms, key=lambda term: terms[term]),
        step_pj=(whole - none) / timesteps,
        spike_pj=(whole - silent) / 100,
        quantised_rival_bits=ceil(log2(timesteps + 1)),
    )


def _without_events(counts: OperationCounts, *, steps: int) -> OperationCounts:
    """Return counts without binary events, and without the steps too where `steps` is 0, not 1."""
    # Graded frames are what an input shows: they do not follow the activity. Where they come at
    # every step, more steps show more of them; a first frame alone stays.
    graded = steps if counts.later_macs else 1
    layers: Mapping[str, LayerCounts] = {
        name: replace(
            one,
            mac=one.mac * graded,
            mac_nonzero=one.mac_nonzero * graded,
            events=one.graded * graded,
            graded=one.graded * graded,
            bias_adds=one.bias_adds * steps,
            neuron_updates=one.neuron_updates * steps,
            **dict.fromkeys(OF_BINARY_EVENTS, Fraction(0)),
        )
        for name, one in counts.layers.items()
    }
    return replace(counts, layers=layers)
