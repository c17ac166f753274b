"""NIR graph -> integer chip network, pass by pass.

fold          pooling and scales into synapses                              knarr.export.fold
read_chain    a row of layers; every neuron in the chip's gauge             chain.py, normalise.py
scale_search  one scale per layer, from weights or from agreement           scale_search.py
quantise      integers                                                      quantise.py
measure       what that did, layer by layer, for the manifest               lowering_report.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.chain import Chain, read_chain
from knarr.deploy.errors import DeployError
from knarr.deploy.lowering_report import decide_behind, describe, measure, send, wanted_of
from knarr.deploy.scale_search import Chosen, from_spikes, from_weights
from knarr.export import ExportError, Trace, fold, graph_hash, step_nir
from knarr.export.arguments import as_dt
from knarr.hw_sim import ChipError, ChipNetwork, InputCoding, Readout
from knarr.hw_sim.simulate import check_inputs

Inputs = npt.NDArray[np.int64]


def lower(
    graph: nir.NIRGraph,
    dt_s: float,
    *,
    chip: str = "loihi2",
    weight_bits: int = 8,
    input_bits: int = 1,
    calibration: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    allow_approximate: bool = False,
    input_units: float = 1.0,
    input_kind: Literal["events", "graded", "rate", "direct"] = "events",
    over_time: Literal["sum", "mean", "last"] = "sum",
    votes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ChipNetwork:
    """Lower a graph to integers.

    Args:
        graph: any that `step_nir` runs and whose nodes form a row: synapses (Linear, Affine, Conv1d, Conv2d), neurons (LIF,
            CubaLIF, IF; last also LI, CubaLI, I), pooling, Scale, Flatten, Delay. A neuron behind a dense synapse may hear
            itself through one Linear or Affine.
        dt_s: time step, seconds.
        chip: "loihi2".
        weight_bits: signed bits of a weight, 2..8.
        input_bits: 1 for spikes, more for graded input 0..2**input_bits-1.
        calibration: (samples, timesteps, *features) integers as the chip will get them: scales and thresholds are then chosen by
            agreement with the float graph, and errors measured. Never test data. None: scales come from the weights alone.
        labels: (samples,) classes of the calibration samples, to report accuracies.
        allow_approximate: map what has no exact form as nearly as the chip can; needs calibration, which measures the error.
        input_units: integers per unit of the float graph's input, such as 255 for frames of 0..1 sent as 8 bits.
        input_kind: how data become those integers (`InputCoding.kind`).
        over_time, votes: how a decision is read (`Readout`).
        progress: called with (layers done, in all).

    Returns:
        A network named after the graph's nodes: layers after synapses, neurons after neurons. `lowering` holds what was
        rewritten, approximated and measured.

    Raises:
        DeployError: a node, a structure or a parameter that the chip cannot hold; names it, the reason and the cure.
    """
    if chip != "loihi2":
        raise DeployError(f"chip: '{chip}' is not known; choose loihi2")
    if not 2 <= weight_bits <= 8:
        raise DeployError(f"weight_bits: {weight_bits}, allowed 2..8")
    if allow_approximate and calibration is None:
        raise DeployError(
            "allow_approximate: nothing to measure the error of an approximation on; give calibration samples"
        )
    if labels is not None and calibration is None:
        raise DeployError("labels: they are classes of calibration samples; give calibration")
    try:
        as_dt(dt_s)
        folded = fold(graph, keep_groups=True)
        chain = read_chain(folded, dt_s, approximate=allow_approximate)
    except ExportError as error:
        raise DeployError(f"graph: not lowered, {error}") from error
    try:
        coding = InputCoding(chain.input_shape, input_bits, None, float(input_units), input_kind)
        readout = Readout("spikes" if chain.layers[-1].neuron.fires else "voltage", over_time, votes)
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other options or another input shape") from error
    work = _Work(folded, chain, coding, readout, float(dt_s), weight_bits)
    if calibration is None:
        work.by_weights()
    else:
        work.by_spikes(calibration, labels, progress)
    try:
        return ChipNetwork(
            tuple(chosen.layer for chosen in work.chosen),
            coding,
            readout,
            float(dt_s),
            graph_hash(graph),
            work.notes(),
        )
    except ChipError as error:
        raise DeployError(f"graph: {error}; choose other options") from error


class _Work:
    def __init__(
        self,
        folded: nir.NIRGraph,
        chain: Chain,
        coding: InputCoding,
        readout: Readout,
        dt_s: float,
        weight_bits: int,
    ) -> None:
        self.folded, self.chain, self.coding, self.readout = folded, chain, coding, readout
        self.dt_s, self.weight_bits = dt_s, weight_bits
        self.chosen: list[Chosen] = []
        self.layers: list[dict[str, Any]] = []
        self.overall: dict[str, Any] = {}

    def _incoming(self, level: int) -> tuple[float, int]:
        """Units and bits of what a layer receives: only the first may hear more than spikes."""
        return (self.coding.units, self.coding.bits) if level == 0 else (1.0, 1)

    def by_weights(self) -> None:
        for level, layer in enumerate(self.chain.layers):
            units, bits = self._incoming(level)
            self.chosen.append(from_weights(layer, self.weight_bits, units))
            self.layers.append(describe(layer, self.chosen[-1], bits, self.dt_s))

    def by_spikes(
        self,
        calibration: npt.ArrayLike,
        labels: npt.ArrayLike | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        events, truth = self._samples(calibration, labels)
        floats = self._step(events)
        wanted_class = self._decide(floats.output)
        arriving: npt.NDArray[np.integer[Any]] = events
        classes = wanted_class
        for level, layer in enumerate(self.chain.layers):
            units, bits = self._incoming(level)
            name = layer.neuron.name
            wanted = wanted_of(layer, floats)
            if layer.neuron.fires and not wanted.any():
                raise DeployError(
                    f"node '{name}': never fires on the calibration samples, so they say nothing about it; give others"
                )
            self.chosen.append(from_spikes(layer, self.weight_bits, units, bits, arriving, wanted))
            made = self.chosen[-1]
            sent = send(made.layer, bits, arriving)
            facts = describe(layer, made, bits, self.dt_s)
            facts |= measure(layer, made, sent, wanted, units)
            arriving = sent.out
            if level + 1 < len(self.chain.layers):
                shape = wanted.shape
                classes = decide_behind(self.folded, name, sent.out.reshape(shape), self.dt_s, self.readout)
            else:
                classes = self._decide(sent.out)
            facts["classes_kept"] = int((classes == wanted_class).sum())
            if truth is not None:
                facts["correct"] = int((classes == truth).sum())
            self.layers.append(facts)
            if progress is not None:
                progress(level + 1, len(self.chain.layers))
        self.overall = {
            "samples": int(events.shape[0]),
            "timesteps": int(events.shape[1]),
            "classes_kept": int((classes == wanted_class).sum()),
        }
        if truth is not None:
            self.overall |= {
                "correct_float": int((wanted_class == truth).sum()),
                "correct_chip": int((classes == truth).sum()),
            }

    def _samples(
        self, calibration: npt.ArrayLike, labels: npt.ArrayLike | None
    ) -> tuple[Inputs, npt.NDArray[np.integer[Any]] | None]:
        likeness = ChipNetwork(
            (from_weights(self.chain.layers[0], self.weight_bits, self.coding.units).layer,),
            self.coding,
            Readout("spikes" if self.chain.layers[0].neuron.fires else "voltage"),
        )
        try:
            events = check_inputs(likeness, calibration)
        except ChipError as error:
            raise DeployError(f"calibration: {error}") from error
        truth = None if labels is None else np.asarray(labels)
        if truth is not None and (truth.shape != events.shape[:1] or truth.dtype.kind not in "iu"):
            raise DeployError(
                f"labels: {truth.dtype}{truth.shape}, needs one integer for each of {len(events)} samples"
            )
        return events, truth

    def _step(self, events: Inputs) -> Trace:
        shape = tuple(int(n) for n in next(
            node for node in self.folded.nodes.values() if isinstance(node, nir.Input)
        ).input_type["input"])  # fmt: skip
        values = events.reshape(*events.shape[:2], *shape) / self.coding.units
        try:
            return step_nir(self.folded, values, self.dt_s)
        except ExportError as error:
            raise DeployError(f"graph: not calibrated, {error}") from error

    def _decide(self, output: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return self.readout.decide(output.reshape(*output.shape[:2], -1))

    def notes(self) -> dict[str, Any]:
        neurons = [layer.neuron for layer in self.chain.layers]
        folded = str(self.folded.metadata.get("folded", ""))
        return {
            "weight_bits": self.weight_bits,
            "folded": folded.splitlines(),
            "rewrites": [line for neuron in neurons for line in neuron.rewrites],
            "approximations": [line for neuron in neurons for line in neuron.approximations],
            "calibration": self.overall or None,
            "layers": self.layers,
        }
