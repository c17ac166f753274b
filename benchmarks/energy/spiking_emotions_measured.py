"""What one clip really costs the networks behind Table II: every layer's own events, counted, beside the paper's proxy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import published_model as published
import torch
from spiking_emotions_networks import (
    DT_S,
    FRAMES,
    HEAD,
    LAYERS,
    POLARITIES,
    SIZE_PX,
    Operands,
    ann_network,
    counted,
    fit_norms,
    operands,
    spiking_network,
    synapses,
)
from spiking_emotions_video import clip, density, dvs, grey

from knarr.export import to_nir, to_onnx, trace_module
from knarr.hw_sim.counting.count import count
from knarr.hw_sim.counting.counts import OperationCounts
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.hw_sim.energy import price

SEED, CERTIFIED_STEPS = 0, 4
SPIKING = ("folded", "float")
ANN = ("ANN dense", "ANN effective")


@dataclass(frozen=True)
class Measured:
    """One clip.

    Args:
        density: share of the input's elements that are events, in the steps after the float frame.
        rates: layer -> spikes per neuron and step, the head's too.
        counts: how -> counts without a head: the spiking network with pools "folded" and "float", the ANN on the same grey
            frames "ANN dense" and, zero activations skipped, "ANN effective".
        operands: dense ones.
        moved: spikes that fall otherwise when batch-norms are folded into weights, of how many decisions.
    """

    density: float
    rates: Mapping[str, float]
    counts: Mapping[str, OperationCounts]
    operands: Operands
    moved: tuple[int, int]

    def proxy_uj(self) -> dict[str, float]:
        """The paper's proxy at this clip's density, per layer, exact operands: e_add ops N density, conv1's float frame more."""
        dense = {
            name: one.dense_valid / FRAMES for name, one in synapses(self.counts["float"]).items()
        }
        found = {
            name: 1e-6 * FRAMES * self.density * published.slope_pj(0, float(ops))
            for name, ops in dense.items()
        }
        return {
            **found,
            LAYERS[0]: found[LAYERS[0]] + 1e-6 * published.constant_pj(self.operands.snn_first),
        }

    def energy_uj(self, how: str, model: str) -> dict[str, float]:
        """Layer -> energy; pools and activations go with the layer before them."""
        counts = self.counts[how]
        energy = price(counts, published.PROFILE, model=model).layers_pj
        found, at = [0.0] * len(LAYERS), -1
        for row, layer in counts.layers.items():
            at += layer.dense_valid > 0
            found[at] += 1e-6 * energy[row]
        return dict(zip(LAYERS, found, strict=True))

    def equivalent_density(self, how: str) -> float:
        """Density that the proxy would need to find as many operations: (ACC + MAC) / (N (f + O))."""
        done = self.counts[how].total.acc + self.counts[how].total.mac
        return float(done / (FRAMES * (self.operands.snn_first + self.operands.others)))


def measure() -> Measured:
    """Build, export, certify, run and count both networks."""
    torch.manual_seed(SEED)
    frames = grey(clip())
    shown = dvs(frames)
    spiking, ann = spiking_network(), ann_network()
    fit_norms(spiking, torch.from_numpy(shown))
    fit_norms(ann, torch.from_numpy(frames[None]))
    bare, inputs = counted(spiking), shown[None]
    graph = to_nir(bare, (POLARITIES, SIZE_PX, SIZE_PX), DT_S, samples=inputs[:, :CERTIFIED_STEPS])
    with tempfile.TemporaryDirectory(prefix="knarr-spiking-emotions-") as folder:
        path = Path(folder) / "ann.onnx"
        to_onnx(ann, (FRAMES, SIZE_PX, SIZE_PX), path)
        found = operands(graph, inputs[:, :1], path)
        passed = without_head(count_onnx(path, frames[None]))
    spikes, folded_spikes = (
        list(trace_module(one, inputs).spikes.values()) for one in (spiking, bare)
    )
    pairs = list(zip(spikes, folded_spikes, strict=False))  # the head is in one of them
    counts = {how: count(graph, inputs, dt_s=DT_S, pooling=how) for how in SPIKING}
    return Measured(
        density=density(shown),
        rates={name: float(z.mean()) for name, z in zip((*LAYERS, HEAD), spikes, strict=True)},
        counts={**counts, ANN[0]: passed, ANN[1]: effective(passed)},
        operands=found,
        moved=(sum(int((a != b).sum()) for a, b in pairs), sum(a.size for a, _ in pairs)),
    )


def without_head(counts: OperationCounts) -> OperationCounts:
    """Counts of the ANN up to its classifier, which the paper leaves out."""
    kept, names = {}, 0
    for row, layer in counts.layers.items():
        names += layer.dense_valid > 0
        if names <= len(LAYERS):
            kept[row] = layer
    return replace(counts, layers=kept)


def effective(counts: OperationCounts) -> OperationCounts:
    """The ANN with zero activations skipped: its effective multiplications as MAC."""
    assert counts.effective is not None  # it was run
    assert counts.effective_nonzero is not None
    done, nonzero = counts.effective, counts.effective_nonzero
    layers = {
        row: replace(layer, mac=done[row], mac_nonzero=nonzero[row]) if row in done else layer
        for row, layer in counts.layers.items()
    }
    return replace(counts, layers=layers)
