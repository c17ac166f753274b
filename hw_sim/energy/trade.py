"""What fewer steps or higher thresholds would buy: the network run again with them, counted, priced, and its decisions compared.

Nothing here is extrapolated: every row is a run. Thresholds of all spiking neurons are scaled together, since one factor is
what a user can try without training; a network trained for it would do better.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.count import count, count_events
from knarr.hw_sim.energy.estimate import price
from knarr.hw_sim.energy.models import Options
from knarr.hw_sim.energy.prices import PriceError, Profile
from knarr.hw_sim.inputs import check_inputs
from knarr.hw_sim.network import NON_SPIKING_VTH, ChipNetwork, Readout
from knarr.hw_sim.simulate import simulate

SHARES = (1.0, 0.75, 0.5, 0.25)
FACTORS = (0.8, 1.25, 1.5, 2.0)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Trade:
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

    def to_json(self) -> dict[str, object]:
        """Plain dict for json.dump, with the same names."""
        return asdict(self)


def trade(
    model: object,
    inputs: npt.ArrayLike,
    profile: str | Path | Profile = "horowitz_fp32",
    *,
    dt_s: float | None = None,
    energy_model: str = "paper",
    options: Options | None = None,
    labels: npt.ArrayLike | None = None,
    readout: Readout | None = None,
    shares: Sequence[float] = SHARES,
    factors: Sequence[float] = FACTORS,
    progress: Callable[[int, int], Any] | None = None,
) -> tuple[Trade, ...]:
    """Run a network with fewer steps, and with other thresholds.

    Args:
        model: `ChipNetwork` or nir.NIRGraph.
        inputs: (samples, timesteps, *features); a few dozen samples are enough.
        profile, energy_model, options: as for `price`.
        dt_s: of a graph, seconds.
        labels: (samples,) classes.
        readout: how a graph's output is read (its kind does not matter); a chip network has its own.
        shares: of the steps; 1 is the network as it is and comes first.
        factors: of all thresholds, above 0.
        progress: called with (runs done, in all).

    Raises:
        PriceError: shares or factors that make no sense, or labels that do not fit.
        CountError, ChipError, knarr.export.ExportError: as of `count`.
    """
    if not all(0 < share <= 1 for share in shares) or not all(np.isfinite(f) and f > 0 for f in factors):
        raise PriceError(
            f"trade: shares {tuple(shares)} and factors {tuple(factors)}; needs 0..1 and numbers above 0"
        )
    frames = np.asarray(inputs)
    true = None if labels is None else np.asarray(labels)
    if true is not None and true.shape != frames.shape[:1]:
        raise PriceError(f"labels: {true.shape} for {len(frames)} samples; give one class each")
    steps = frames.shape[1]
    lengths = list(dict.fromkeys([steps, *(max(1, round(share * steps)) for share in shares)]))
    runs: list[tuple[Literal["timesteps", "threshold"], float]] = [("timesteps", float(n)) for n in lengths]
    runs += [("threshold", float(factor)) for factor in factors]
    found: list[Trade] = []
    before: Array | None = None
    for change, value in runs:
        part = frames[:, : int(value)] if change == "timesteps" else frames
        altered = model if change == "timesteps" else with_thresholds(model, value)
        counts, decided = _run(altered, part, dt_s, readout)
        total = counts.total
        energy = price(counts, profile, model=energy_model, options=options).nominal_pj
        before = decided if before is None else before
        now = found[0].energy_pj if found else energy
        found.append(
            Trade(
                change=change,
                value=value,
                acc=float(total.acc),
                mac=float(total.mac),
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
    """The same network with every threshold times a factor; a chip's are rounded and end at its register.

    Args:
        model: `ChipNetwork` or nir.NIRGraph.
        factor: above 0.
    """
    if isinstance(model, ChipNetwork):
        layers = tuple(
            replace(layer, neuron=replace(layer.neuron, vth_int=_scaled(layer.neuron.vth_int, factor)))
            for layer in model.layers
        )
        return replace(model, layers=layers, lowering={})
    scaled = copy.copy(model)
    scaled.nodes = {name: _with_threshold(node, factor) for name, node in model.nodes.items()}
    return scaled


def _scaled(vth_int: int, factor: float) -> int:
    if vth_int == NON_SPIKING_VTH:
        return vth_int  # a readout, which has none
    return min(max(round(vth_int * factor), 0), NON_SPIKING_VTH - 1)


def _with_threshold(node: Any, factor: float) -> Any:
    if hasattr(node, "nodes"):
        return with_thresholds(node, factor)
    changed = copy.copy(node)
    for field in ("v_threshold", "threshold"):
        if hasattr(node, field):
            setattr(changed, field, np.asarray(getattr(node, field)) * factor)
    return changed


def _run(model: Any, inputs: Array, dt_s: float | None, readout: Readout | None) -> tuple[Any, Array]:
    if isinstance(model, ChipNetwork):
        events = check_inputs(model.input, inputs)
        recording = simulate(model, events, record=("output", "spikes"))
        return count_events(model, events, recording), model.readout.decide(recording.output)
    from knarr.export.step import step_nir  # imports torch and NIR, which chip networks do not need

    counts = count(model, inputs, dt_s=dt_s)
    output = step_nir(model, inputs, dt_s or 0.0).output
    return counts, (readout or Readout("spikes")).decide(output.reshape(*output.shape[:2], -1))
