"""Results of a verification: frozen, plain numbers, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Side:
    """One neuron in one step, as one stage saw it.

    Numbers are floats in the graph's units, or integers in the chip's.

    Args:
        value: what was compared: spike 0 or 1, voltage or current.
        u: current of the neuron, None where the stage keeps none.
        v: voltage after the reset.
        v_reached: voltage before the reset, which met the threshold; None where it cannot be had.
        threshold: the neuron fires above it; None for neurons that never fire.
    """

    value: float
    u: float | None = None
    v: float | None = None
    v_reached: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class FirstDivergence:
    """Earliest mismatch of a comparison: in time first, then by sample.

    Args:
        sample, timestep: place of the mismatch.
        index: index of the neuron in its layer: (feature,) or (channel, row, column).
        left, right: what the pair's two stages had there.
    """

    sample: int
    timestep: int
    index: tuple[int, ...]
    left: Side
    right: Side


@dataclass(frozen=True)
class Comparison:
    """One layer, two stages, one quantity.

    Args:
        pair: such as "hw_sim = Lava"; "=" must be equal, "~" is measured only (float against
            integers).
        layer: the node's name.
        what: "spikes", "v" or "u".
        compared, mismatches: how many values.
        active: values other than 0, left and right: the spikes, so that equal silence is seen for
            what it is.
        by_step: mismatches in each time step.
        first: earliest mismatch, None when equal.
    """

    pair: str
    layer: str
    what: Literal["spikes", "v", "u"]
    compared: int
    mismatches: int
    active: tuple[int, int]
    by_step: tuple[int, ...]
    first: FirstDivergence | None

    @property
    def required(self) -> bool:
        """True where the pair must be equal."""
        return "=" in self.pair

    @property
    def rates(self) -> tuple[float, float] | None:
        """Spikes per neuron and time step, left and right; None for states."""
        if self.what != "spikes":
            return None
        return self.active[0] / self.compared, self.active[1] / self.compared

    @property
    def rate_error(self) -> float | None:
        """|right - left| / left of the spike rates; None for states, and for a silent left."""
        left, right = self.active
        if self.what != "spikes" or not left:
            return None
        return abs(right - left) / left

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, text and sequences."""
        return {**asdict(self), "rates": self.rates, "rate_error": self.rate_error}


@dataclass(frozen=True)
class Raster:
    """Spikes of a few neurons of one sample, to be drawn.

    Args:
        pair, layer, sample: the comparison that is drawn.
        neurons: flat indices in the layer, rising.
        left, right: per neuron, the time steps in which it fired.
        first: (time step, flat neuron) of the first divergence, None when equal.
    """

    pair: str
    layer: str
    sample: int
    neurons: tuple[int, ...]
    left: tuple[tuple[int, ...], ...]
    right: tuple[tuple[int, ...], ...]
    first: tuple[int, int] | None


@dataclass(frozen=True)
class Verification:
    """All comparisons of a verification.

    Args:
        rows: pair by pair, layers in order.
        samples, timesteps: how many were run.
        decisions: stage -> class of each sample.
        labels: true class of each sample, where they were given.
        raster: the sample with the first divergence; None where no layer fires.
        notes: what may explain a difference, a sentence each.
    """

    rows: tuple[Comparison, ...]
    samples: int
    timesteps: int
    decisions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    labels: tuple[int, ...] | None = None
    raster: Raster | None = None
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True when every pair that must be equal is equal and no compared layer is silent.

        A layer is alive when it fires; one that never fires by its nature, a readout, when its
        voltage ever leaves 0.
        """
        required = [row for row in self.rows if row.required]
        spiking = {(row.pair, row.layer) for row in required if row.what == "spikes"}
        alive = []
        for row in required:
            # The voltage speaks for layers that have no row of spikes.
            readout = row.what == "v" and (row.pair, row.layer) not in spiking
            if row.what == "spikes" or readout:
                alive.append(row.active[0] > 0)
        return bool(alive) and all(alive) and all(row.mismatches == 0 for row in required)

    @property
    def correct(self) -> dict[str, int] | None:
        """Stage -> samples it decides as labelled; None without labels."""
        if self.labels is None:
            return None
        return {
            stage: sum(a == b for a, b in zip(decided, self.labels, strict=True))
            for stage, decided in self.decisions.items()
        }

    @property
    def decided_differently(self) -> int | None:
        """Samples on which float and chip decide differently; None without a float stage."""
        # Stages of a kind decide alike where the verification holds, so one of each speaks for it.
        floats, chips = (
            [self.decisions[stage] for stage in stages if stage in self.decisions]
            for stages in (("Norse", "NIR"), ("hw_sim", "Lava"))
        )
        if not floats or not chips:
            return None
        return sum(a != b for a, b in zip(floats[0], chips[0], strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, text and sequences."""
        return {
            "holds": self.holds,
            "samples": self.samples,
            "timesteps": self.timesteps,
            "rows": [row.to_json() for row in self.rows],
            "decisions": dict(self.decisions),
            "labels": self.labels,
            "correct": self.correct,
            "decided_differently": self.decided_differently,
            "raster": None if self.raster is None else asdict(self.raster),
            "notes": list(self.notes),
        }
