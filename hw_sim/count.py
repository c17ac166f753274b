"""Exact synaptic operations of a chip network: every event times the outputs it really reaches, in int64.

Class of an event: that of its frame, the whole layer input at one (sample, time step). All values in {0, 1}: binary,
an addition (ACC). All in {-1, 0, 1}: ternary, an addition too. Anything else: graded, every non-zero element is a
multiply-accumulate (MAC). Never per batch, layer or run, so counts do not depend on batch size or sample order.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np
import numpy.typing as npt

from knarr.hw_sim.counts import LayerCounts, LayerSizes, LedgerRow, OperationCounts
from knarr.hw_sim.errors import CountError
from knarr.hw_sim.fanout import Int64, dense_padded, dense_valid, fanout, recurrent_fanout
from knarr.hw_sim.network import DECAY_UNITY, ChipNetwork, Conv, Layer, Recurrent
from knarr.hw_sim.recording import Recording
from knarr.hw_sim.simulate import simulate


@dataclass(frozen=True)
class InputEvents:
    """Events at each input position of a layer, summed over samples and steps, by what one costs.

    Args:
        acc, mac: (features,) int64 events in binary or ternary frames, and in graded ones.
        frames, binary, signed, graded: numbers of frames: all, and the non-silent ones by class.
    """

    acc: Int64
    mac: Int64
    frames: int
    binary: int
    signed: int
    graded: int

    @property
    def note(self) -> str:
        """One line for the ledger."""
        silent = self.frames - self.binary - self.signed - self.graded
        return (
            f"{self.frames} frames: {self.binary} binary, {self.signed} signed (counted as ACC), "
            f"{self.graded} graded (MAC), {silent} silent"
        )


def classify_events(events: npt.NDArray[np.generic]) -> InputEvents:
    """Sort the events of a layer's input by the class of their frame.

    Args:
        events: (samples, timesteps, *features), boolean, integer or float.

    Raises:
        CountError: a dtype that is no number, or NaN or infinity.
    """
    if events.dtype.kind not in "biuf":
        raise CountError(f"events: dtype {events.dtype} is not a number; pass integers")
    if events.dtype.kind == "f" and not np.isfinite(events).all():
        raise CountError("events: NaN or infinity is neither an event nor silence; find where it comes from")
    samples, timesteps = events.shape[:2]
    flat = events.reshape(samples, timesteps, -1)
    acc = np.zeros(flat.shape[2], dtype=np.int64)
    mac = np.zeros(flat.shape[2], dtype=np.int64)
    binary = signed = graded = 0
    for sample in flat:  # one sample at a time keeps the temporaries small
        active = sample != 0
        unit = active & (sample == 1)
        is_binary = (active == unit).all(axis=1)
        is_ternary = (active == (unit | (sample == -1))).all(axis=1)
        is_silent = ~active.any(axis=1)
        acc += active[is_ternary].sum(axis=0, dtype=np.int64)
        mac += active[~is_ternary].sum(axis=0, dtype=np.int64)
        binary += int((is_binary & ~is_silent).sum())
        signed += int((is_ternary & ~is_binary).sum())
        graded += int((~is_ternary).sum())
    return InputEvents(acc, mac, samples * timesteps, binary, signed, graded)


def count_events(network: ChipNetwork, inputs: npt.ArrayLike, recording: Recording) -> OperationCounts:
    """Operations of a network that already ran.

    Args:
        network: what ran.
        inputs: (samples, timesteps, *network.input.shape), what it was fed.
        recording: what came out, with the spikes of every layer (`record=("spikes",)`).

    Returns:
        Counts per inference: synaptic events, bias adds (steps times outputs), clocked updates (steps times neurons,
        the readout's included) and spikes. `dense_valid` and `dense_padded` are those of all steps.

    Raises:
        CountError: inputs or recorded spikes are missing or do not fit the network.
    """
    if network.input.neuron is not None:
        raise CountError(
            "network: driven by bias; its first synapses hear its input neurons, count those apart"
        )
    events: npt.NDArray[np.generic] = np.asarray(inputs)
    if (
        events.ndim != 2 + len(network.input.shape)
        or events.shape[2:] != network.input.shape
        or 0 in events.shape
    ):
        shape = ", ".join(map(str, network.input.shape))
        raise CountError(
            f"inputs: shape {events.shape}, needs (samples, timesteps, {shape}) with at least one of each"
        )
    samples, timesteps = events.shape[:2]
    layers: dict[str, LayerCounts] = {}
    sizes: dict[str, LayerSizes] = {}
    ledger: list[LedgerRow] = []
    arriving = network.input.shape
    for layer in network.layers:
        incoming = classify_events(events)
        spikes = _recorded_spikes(layer, recording, samples, timesteps)
        layers[layer.name] = _layer_counts(layer, incoming, spikes, samples, timesteps)
        sizes[layer.name] = _sizes(layer, prod(arriving))
        if not isinstance(layer, Conv) and len(arriving) > 1:
            ledger.append(LedgerRow(f"{layer.name}.flatten", "Flatten", "free", "moves no data"))
        ledger += _rows(layer, incoming)
        events, arriving = spikes, layer.output_shape
    readout = f"{network.readout.kind} of '{network.layers[-1].name}'; their sum and argmax over time cost nothing here"
    ledger.append(LedgerRow(f"{network.layers[-1].name}.output", "Readout", "free", readout))
    return OperationCounts(layers, tuple(ledger), samples, timesteps, "snn", sizes=sizes)


def _sizes(layer: Layer, inputs: int) -> LayerSizes:
    outputs, registers = prod(layer.output_shape), (layer.neuron.i_decay, layer.neuron.v_decay)
    back = layer.recurrent_int.size if isinstance(layer, Recurrent) else 0
    current = layer.neuron.i_decay < DECAY_UNITY
    return LayerSizes(
        inputs=inputs,
        outputs=outputs,
        weights=layer.weight_int.size + back,
        biases=0 if layer.bias_int is None else layer.bias_int.size,
        states=outputs * (2 if current else 1),
        kernel=layer.weight_int.shape[0] * prod(layer.weight_int.shape[2:]),
        convolution=isinstance(layer, Conv),
        leaky=any(0 < register < DECAY_UNITY for register in registers),
    )


def _recorded_spikes(
    layer: Layer, recording: Recording, samples: int, timesteps: int
) -> npt.NDArray[np.generic]:
    if layer.name not in recording.spikes:
        raise CountError(
            f"layer '{layer.name}': its spikes were not recorded; simulate with record=('spikes',)"
        )
    spikes = np.asarray(recording.spikes[layer.name])
    expected = (samples, timesteps, *layer.output_shape)
    if spikes.shape != expected:
        raise CountError(
            f"layer '{layer.name}': recorded spikes have shape {spikes.shape}, the network makes {expected}"
        )
    if not ((spikes == 0) | (spikes == 1)).all():
        raise CountError(f"layer '{layer.name}': recorded spikes hold values other than 0 and 1")
    if not layer.neuron.spikes and spikes.any():
        raise CountError(
            f"layer '{layer.name}': never fires, yet the recording holds its spikes; it is of another network"
        )
    return spikes


def _layer_counts(
    layer: Layer, incoming: InputEvents, spikes: npt.NDArray[np.generic], samples: int, timesteps: int
) -> LayerCounts:
    stored, nonzero = fanout(layer).reshape(-1), fanout(layer, nz=True).reshape(-1)
    neurons = prod(layer.output_shape)
    back = back_nonzero = returning = 0
    if isinstance(layer, Recurrent):
        # A spike of the last step would come back after the inference.
        events = np.asarray(spikes[:, :-1]).sum(axis=(0, 1), dtype=np.int64)
        returning = int(events.sum())
        back = int(events @ recurrent_fanout(layer))
        back_nonzero = int(events @ recurrent_fanout(layer, nz=True))
    return LayerCounts(
        acc=Fraction(int(incoming.acc @ stored) + back, samples),
        mac=Fraction(int(incoming.mac @ stored), samples),
        acc_nonzero=Fraction(int(incoming.acc @ nonzero) + back_nonzero, samples),
        mac_nonzero=Fraction(int(incoming.mac @ nonzero), samples),
        dense_valid=Fraction(timesteps * dense_valid(layer)),
        dense_padded=Fraction(timesteps * dense_padded(layer)),
        bias_adds=Fraction(0 if layer.bias_int is None else timesteps * neurons),
        neuron_updates=Fraction(timesteps * neurons),
        spikes=Fraction(int(np.asarray(spikes).sum(dtype=np.int64)), samples),
        events=Fraction(int(incoming.acc.sum() + incoming.mac.sum()) + returning, samples),
    )


def _rows(layer: Layer, incoming: InputEvents) -> list[LedgerRow]:
    operation = type(layer).__name__
    rows = [LedgerRow(layer.name, operation, "counted", incoming.note)]
    if layer.bias_int is not None:
        rows.append(
            LedgerRow(f"{layer.name}.bias", "Bias", "counted", "bias_adds: every step, silent ones too")
        )
    neuron = layer.neuron.name if layer.neuron.name not in ("", layer.name) else f"{layer.name}.neuron"
    rows.append(LedgerRow(neuron, "CUBA", "counted", "neuron_updates (clocked) and spikes"))
    return rows


def count(
    model: object, inputs: npt.ArrayLike, *, dt_s: float | None = None, pooling: str = "folded"
) -> OperationCounts:
    """Run a chip network on inputs and count what every layer did.

    Args:
        model: a `ChipNetwork`. NIR graphs are not counted yet: lower them first.
        inputs: (samples, timesteps, *features) integers, as `simulate` takes them.
        dt_s: length of a step in seconds; must agree with the network's where both are known. Counts do not use it.
        pooling: "folded", the only policy a chip network has: its pools are part of its synapses.

    Returns:
        Counts per inference (`count_events`).

    Raises:
        CountError: a model, dt_s or pooling that cannot be counted.
        ChipError: inputs that do not fit the network.
    """
    if not isinstance(model, ChipNetwork):
        raise CountError(
            f"model: {type(model).__name__} cannot be counted, only a ChipNetwork; lower the graph first "
            "(knarr.deploy.lower)"
        )
    if pooling != "folded":
        raise CountError(
            f"pooling: '{pooling}' asked for, a chip network has its pools folded; use pooling='folded'"
        )
    if dt_s is not None and model.dt_s is not None and dt_s != model.dt_s:
        raise CountError(f"dt_s: {dt_s} s asked for, the network steps {model.dt_s} s; leave dt_s out")
    return count_events(model, inputs, simulate(model, inputs, record=("spikes",)))
