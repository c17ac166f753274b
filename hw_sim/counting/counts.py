"""Hold what an inference did: integers per layer, and a ledger that says what they cover.

A count never depends on a price. Numbers are exact rationals (a total over the samples, divided by
their number) in memory and floats in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal

from knarr.errors import one_line
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.json_values import JsonRecord, plain

Status = Literal["counted", "folded", "free", "unsupported", "not executed"]
REFUSED: tuple[Status, ...] = ("unsupported", "not executed")
"""A single row of these makes every total unknown."""
MOST_REASONS = 5
"""Rows that the message of a refused total names; the ledger has all."""
NONE = Fraction(0)
PART_OF = {
    "acc_nonzero": "acc",
    "mac_nonzero": "mac",
    "dense_valid": "dense_padded",
    "signed": "acc",
    "repeats": "acc",
    "repeats_nonzero": "acc_nonzero",
    "graded": "events",
    "touched_updates": "neuron_updates",
    "recurrent_no_autapse": "recurrent_all_pairs",
}
"""Count -> the one that it is a part of; where it is larger, the counter has slipped."""

JSON_NAMES = (
    "kind", "samples", "timesteps", "pooling", "layers", "total", "total_refused", "effective",
    "effective_nonzero", "sizes", "precision", "per_step", "spread", "total_spread", "ledger",
)  # fmt: skip
"""Names of `OperationCounts.to_json`, in the order in which files have them."""


@dataclass(frozen=True)
class LayerCounts:
    """Operations of one layer per inference, mean over samples, each at least 0.

    Args:
        acc: synaptic events of binary or ternary frames: one addition each. Bias and neuron updates
            are not in here. Of an ANN that was run on inputs: what its own spikes add, a sum of k
            spikes k times.
        mac: synaptic events of graded frames, one multiplication and addition each; for an ANN,
            `dense_valid` without the taps that spikes arrive at.
        acc_nonzero, mac_nonzero: the same without weights that are 0, which only sparse storage
            skips.
        dense_valid: taps whose both ends exist if every input were active at every step (all steps
            of an inference).
        dense_padded: the same with taps into the zero padding.
        bias_adds: additions of a bias, silent steps too.
        neuron_updates: clocked updates, steps times neurons, the readout's included; 0 for an ANN.
        spikes: spikes the layer sent; 0 for an ANN.
        events: non-zero elements that arrived, of the layer's own spikes too where they come back;
            0 for an ANN.
        signed: the part of `acc` from ternary frames that hold a -1.
        repeats: the part of `acc` that sums of spikes add again: k - 1 of the k additions of a sum of
            k spikes; 0 for a network whose branches are counted apart.
        repeats_nonzero: the same without weights that are 0.
        graded: the part of `events` in graded frames.
        touched_updates: (neuron, step) pairs that an event or a bias reaches; what event-driven
            hardware would update.
        recurrent_all_pairs: operations of the layer's own returning spikes if each neuron had a
            synapse to itself too.
        recurrent_no_autapse: the same without those; the one of the two that the synapses hold is
            in `acc`.
        pool_adds: additions of a pool that is not folded: one per event inside a window.
        merge_adds: additions where branches meet before a synapse: positions where more than one is
            not 0.
        comparisons: of max pools, one less than the elements of a window that exist, per output.
        elementwise: multiplications, additions and functions of single elements: scales, norms,
            activations.

    Raises:
        CountError: a negative or inexact number, or more synaptic events than synapses.
    """

    acc: Fraction
    mac: Fraction
    acc_nonzero: Fraction
    mac_nonzero: Fraction
    dense_valid: Fraction
    dense_padded: Fraction
    bias_adds: Fraction
    neuron_updates: Fraction
    spikes: Fraction
    events: Fraction = NONE
    signed: Fraction = NONE
    repeats: Fraction = NONE
    repeats_nonzero: Fraction = NONE
    graded: Fraction = NONE
    touched_updates: Fraction = NONE
    recurrent_all_pairs: Fraction = NONE
    recurrent_no_autapse: Fraction = NONE
    pool_adds: Fraction = NONE
    merge_adds: Fraction = NONE
    comparisons: Fraction = NONE
    elementwise: Fraction = NONE

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, Fraction)) or value < 0:
                raise CountError(
                    f"{field.name}: {value!r} is not an exact number >= 0; pass int or Fraction"
                )
            # An int becomes a Fraction too, so that means divide exactly.
            object.__setattr__(self, field.name, Fraction(value))
        for part, whole in PART_OF.items():
            if getattr(self, part) > getattr(self, whole):
                raise CountError(
                    f"{part}: {getattr(self, part)} > {getattr(self, whole)}, the count it is a part of"
                )
        events = self.acc - self.repeats + self.mac
        if events > self.dense_valid:
            raise CountError(f"acc + mac: {events} events > {self.dense_valid} taps that exist")

    @classmethod
    def mean(
        cls,
        totals: Mapping[str, int],
        samples: int = 1,
    ) -> LayerCounts:
        """Divide totals by the number of samples; fields without a total are 0."""
        means = {}
        for field in fields(cls):
            means[field.name] = Fraction(totals.get(field.name, 0), samples)
        return cls(**means)


@dataclass(frozen=True)
class LayerSizes:
    """Words a layer holds, whatever their width; what a memory has to be built for.

    Args:
        inputs, outputs: of one step.
        weights: stored ones; biases: likewise.
        states: words of neuron state, 0 for an ANN: one per neuron, two with a current that decays.
        kernel: output channels times taps of a convolution, its addresses; outputs of a dense
            layer.
        convolution: whether addresses of targets have to be computed.
        leaky: whether a state is multiplied at every update.
        weight_bits: bits of a stored weight, None where they are those of the layer's precision.
        state_bits: bits of a word of neuron state, likewise.
    """

    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    biases: int = 0
    states: int = 0
    kernel: int = 0
    convolution: bool = False
    leaky: bool = False
    weight_bits: int | None = None
    state_bits: int | None = None


@dataclass(frozen=True)
class Spread:
    """Synaptic operations (ACC + MAC) of single inferences: least, median, 95th percentile, most.

    Each value is that of an inference that occurred; nothing is interpolated.
    """

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True)
class LedgerRow:
    """Says what became of one node, neuron population or parameter tensor.

    Args:
        name: its name in the model.
        operation: what it is, such as "Conv".
        status: counted (in the numbers), folded (into another row), free (by policy, named in the
            note), unsupported (cannot be counted) or not executed (present but never ran).
        note: the policy, the reason, or what was seen.
    """

    name: str
    operation: str
    status: Status
    note: str = ""


@dataclass(frozen=True)
class OperationCounts(JsonRecord):
    """Counts of a model, per layer.

    Args:
        layers: layer name -> counts, input to output.
        ledger: one row for everything the model holds.
        samples: how many samples the means are over; 0 where shapes alone were counted.
        timesteps: steps of one inference, their mean where samples differ; 1 for an ANN.
        kind: "snn" or "ann".
        effective: ANN run on inputs only: layer name -> pairs of an activation and a weight left when
            zero activations are skipped: multiplications, and what spikes add once each.
        effective_nonzero: the same, zero weights skipped too.
        sizes: layer name -> its words, None where nobody asked.
        pooling: "folded" delivers each event before a pool alone, "float" counts what a pool gives;
            None for an ANN.
        per_step: layer name -> synaptic operations in each step, means over the samples.
        later_macs: whether graded frames arrive in other steps than the first.
        spread: layer name -> how they differ between samples; `total_spread` of all layers
            together.
        precision: layer name -> the numbers that it computes with, such as "fp32", "bf16" or "int8"
            (integers are added into wider ones), "" where a file does not say; None where nobody
            asked.

    Raises:
        CountError: a layer without a counted row in the ledger.
    """

    layers: Mapping[str, LayerCounts]
    ledger: tuple[LedgerRow, ...]
    samples: int
    timesteps: int | Fraction
    kind: Literal["snn", "ann"]
    effective: Mapping[str, Fraction] | None = None
    effective_nonzero: Mapping[str, Fraction] | None = None
    sizes: Mapping[str, LayerSizes] | None = None
    pooling: Literal["folded", "float"] | None = None
    per_step: Mapping[str, tuple[Fraction, ...]] | None = None
    later_macs: bool = False
    spread: Mapping[str, Spread] | None = None
    total_spread: Spread | None = None
    precision: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        counted = {row.name for row in self.ledger if row.status == "counted"}
        for name in self.layers:
            if name not in counted:
                raise CountError(
                    f"layer '{name}': has counts but no counted row in the ledger; add the row"
                )
        super().__post_init__()

    @property
    def refused(self) -> tuple[LedgerRow, ...]:
        """Rows that make the total unknown."""
        return tuple(row for row in self.ledger if row.status in REFUSED)

    @property
    def total(self) -> LayerCounts:
        """Sum over the layers.

        Raises:
            CountError: something in the model was not counted (the message names it), or nothing
                was.
        """
        if self.refused:
            reasons = "; ".join(
                one_line(
                    f"'{row.name}' ({row.operation}): {row.status}, {row.note or 'no reason given'}"
                )
                for row in self.refused[:MOST_REASONS]
            )
            more = len(self.refused) - MOST_REASONS
            if more > 0:
                reasons += f"; and {more} more"
            raise CountError(f"no total: {reasons}")
        return self.lower_bound

    @property
    def lower_bound(self) -> LayerCounts:
        """Sum over the layers that were counted, whatever was not: never call it a total.

        Raises:
            CountError: nothing was counted.
        """
        if not self.layers:
            raise CountError(
                "no total: the model holds no layer that is counted; 0 would say it costs nothing"
            )
        sums = {
            field.name: sum((getattr(layer, field.name) for layer in self.layers.values()), NONE)
            for field in fields(LayerCounts)
        }
        return LayerCounts(**sums)

    def skipping_zeros(self) -> OperationCounts:
        """Return the counts of the same ANN on hardware that skips activations that are 0.

        Its multiplications are the effective ones; its spikes skip theirs in any case.

        Raises:
            CountError: not run on inputs, so that nobody knows which activations are 0.
        """
        if self.effective is None or self.effective_nonzero is None:
            raise CountError("effective operations: not counted; run the model on inputs")
        layers = {
            name: replace(
                layer,
                mac=self.effective[name] - (layer.acc - layer.repeats),
                mac_nonzero=self.effective_nonzero[name]
                - (layer.acc_nonzero - layer.repeats_nonzero),
            )
            if name in self.effective
            else layer
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)

    def to_json(self) -> dict[str, object]:
        """Return a plain dict for json.dump: floats, the same names.

        `total` is None when it is refused, and `total_refused` says why.
        """
        values = super().to_json() | {"total": None, "total_refused": None}
        try:
            values["total"] = plain(self.total)
        except CountError as error:
            values["total_refused"] = str(error)
        return {name: values[name] for name in JSON_NAMES}
