"""Pass: a row of float layers into integers, layer by layer, each hearing what the chip's layers before it sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

from knarr.deploy.errors import DeployError
from knarr.deploy.lowering.chain import Chain
from knarr.deploy.lowering.report import decide_behind, describe, measure, send, wanted_of
from knarr.deploy.lowering.scales import from_spikes, from_weights
from knarr.export import ExportError, step_nir
from knarr.hw_sim import ChipError, InputCoding, Readout
from knarr.hw_sim.coding import check_inputs
from knarr.hw_sim.network import Layer

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Task:
    """What is lowered: the folded graph and the layers read from it, how it is fed and read, and on which grid."""

    folded: nir.NIRGraph
    chain: Chain
    coding: InputCoding
    readout: Readout
    dt_s: float
    weight_bits: int


@dataclass(frozen=True)
class Lowered:
    """Layers of integers, what is known of each, and of the whole where it was measured; facts are JSON values."""

    layers: tuple[Layer, ...]
    facts: tuple[dict[str, Any], ...]
    overall: dict[str, Any] | None = None


def _arriving(coding: InputCoding, level: int) -> tuple[float, int]:
    """Units and bits of what a layer receives: only the first may hear more than spikes."""
    return (coding.units, coding.bits) if level == 0 else (1.0, 1)


def from_weights_alone(chain: Chain, coding: InputCoding, weight_bits: int, dt_s: float) -> Lowered:
    """The widest scales, nothing measured.

    Raises:
        DeployError: a layer that one scale cannot hold.
    """
    layers, facts = [], []
    for level, layer in enumerate(chain.layers):
        units, bits = _arriving(coding, level)
        chosen = from_weights(layer, weight_bits, units)
        layers.append(chosen.layer)
        facts.append(describe(layer, chosen, units, bits, dt_s))
    return Lowered(tuple(layers), tuple(facts))


def calibrate(
    task: Task,
    samples: npt.ArrayLike,
    labels: npt.ArrayLike | None,
    progress: Callable[[int, int], None] | None,
) -> Lowered:
    """Scales by agreement with the float graph, and what the integers cost on the same samples.

    Args:
        task: what is lowered.
        samples: (samples, timesteps, *features) integers as the chip gets them.
        labels: (samples,) classes, or None.
        progress: called with (layers done, in all).

    Raises:
        DeployError: samples that do not fit or leave a layer silent, or a layer that no legal scale can hold.
    """
    try:
        events = check_inputs(task.coding, samples)
    except (ChipError, ValueError) as error:
        raise DeployError(f"calibration: {error}") from error
    true = _labels(labels, len(events))
    values = events.reshape(*events.shape[:2], *task.chain.input_shape) / task.coding.units
    try:
        floats = step_nir(task.folded, values, task.dt_s)
    except ExportError as error:
        raise DeployError(f"graph: not calibrated, {error}") from error
    float_classes = _decide(task.readout, floats.output)
    classes_in_all = int(np.prod(floats.output.shape[2:])) // task.readout.votes
    if true is not None and not 0 <= true.min() <= true.max() < classes_in_all:
        raise DeployError(
            f"labels: {true.min()}..{true.max()}, the network has classes 0..{classes_in_all - 1}"
        )
    arriving: npt.NDArray[np.integer[Any]] = events
    layers, found = [], []
    for level, layer in enumerate(task.chain.layers):
        units, bits = _arriving(task.coding, level)
        name, wanted = layer.neuron.name, wanted_of(layer, floats)
        if layer.neuron.fires and not wanted.any():
            raise DeployError(
                f"node '{name}': never fires on the calibration samples, so they say nothing about it; give others"
            )
        chosen = from_spikes(layer, task.weight_bits, units, bits, arriving, wanted)
        sent = send(chosen.layer, bits, arriving)
        arriving = sent.out
        if level + 1 < len(task.chain.layers):
            heard = sent.out.reshape(wanted.shape)
            classes = decide_behind(task.folded, name, heard, task.dt_s, task.readout)
        else:
            classes = _decide(task.readout, sent.out)
        facts = describe(layer, chosen, units, bits, task.dt_s) | measure(
            layer, chosen, sent, wanted, units
        )
        facts["classes_kept"] = int((classes == float_classes).sum())
        if true is not None:
            facts["correct"] = int((classes == true).sum())
        layers.append(chosen.layer)
        found.append(facts)
        if progress is not None:
            progress(level + 1, len(task.chain.layers))
    overall = {
        "samples": int(events.shape[0]),
        "timesteps": int(events.shape[1]),
        "classes_kept": found[-1]["classes_kept"],
    }
    if true is not None:
        overall |= {
            "correct_float": int((float_classes == true).sum()),
            "correct_chip": found[-1]["correct"],
        }
    return Lowered(tuple(layers), tuple(found), overall)


def _labels(labels: npt.ArrayLike | None, samples: int) -> Labels | None:
    if labels is None:
        return None
    true = np.asarray(labels)
    if true.shape != (samples,) or true.dtype.kind not in "iu":
        raise DeployError(
            f"labels: {true.dtype}{true.shape}, needs one integer for each of {samples} samples"
        )
    return true


def _decide(readout: Readout, output: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return readout.decide(output.reshape(*output.shape[:2], -1))
