"""What knarr counts in each case beside what NeuroBench said: equal to the operation, or by whose rule it differs.

A difference is named only where our operations, put together by NeuroBench's rule, are its number; any other is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from neurobench_cases import DT_S, Arrays, Case, arrays, norse_net
from neurobench_regroup import Frames, frames

from knarr.export import Trace, step_nir, to_nir
from knarr.hw_sim import LayerCounts, OperationCounts, count, count_torch

POLICIES = {
    "=": "ACC, MAC and dense taps are equal to the operation.",
    "C": "class: NeuroBench decides between AC and MAC once per call of a layer, over the whole batch, knarr for each frame "
    "(one sample, one step). Our frames grouped by call give its numbers.",
    "P": "pools: folded, every spike before a pool is delivered alone as an ACC; NeuroBench has the pool's fractions "
    "multiplied, as our count with pooling='float' has, which is compared in the row above.",
    "A": "autapses: a recurrent cell of Norse has none, so knarr leaves them out of the taps; NeuroBench has the diagonal in "
    "its dense number. With it our taps are its number.",
    "H": "hooks: Norse holds the weights of a recurrent cell as bare parameters, NeuroBench listens to layers and leaves "
    "the cell out. Our total without it is its total; with the same weights in nn.Linear it counts what knarr counts.",
    "T": "torch: count_torch of the Norse module as it stands, without an export, is layer by layer what NeuroBench hears sample "
    "by sample, and in all, `nz`, what the graph has. It hears the recurrent cell too, whose diagonal of zeros torch multiplies.",
}
"""Why a row is equal or not, by the letter in the table."""
SAME_ROW = {"lif_2_rec": "lif_2_in"}
"""Nodes that knarr counts in the row of another: what a neuron tells itself, in that of its inputs."""


class UnexplainedError(Exception):
    """Counts differ and no policy says why."""


class Said(NamedTuple):
    """NeuroBench's three numbers, per inference: additions, multiplications, and as if all were active."""

    acc: Fraction
    mac: Fraction
    dense: Fraction


class Row(NamedTuple):
    """A line of the table.

    Args:
        label: layer and pooling policy, or which of NeuroBench's runs this is.
        ours: None where the line above has it.
        theirs: None where NeuroBench says nothing of its own.
        verdict: letters of `POLICIES`.
    """

    label: str
    ours: LayerCounts | None
    theirs: Said | None
    verdict: str


class Ours(NamedTuple):
    """Everything of knarr about one case.

    Args:
        made: weights and inputs.
        trace: what the exported graph did.
        layers: row -> operations frame by frame, of each synapse in it.
        floating, folded: counts by the two policies for pools.
        dispatched: counts of the module by the operators that torch dispatches.
    """

    made: Arrays
    trace: Trace
    layers: Mapping[str, list[Frames]]
    floating: OperationCounts
    folded: OperationCounts
    dispatched: OperationCounts


def ours(case: Case) -> Ours:
    """Export, run and count a case."""
    made = arrays(case)
    inputs, net = made["inputs"], norse_net(made)
    graph = to_nir(net, inputs.shape[2:], DT_S, samples=inputs)
    trace = step_nir(graph, inputs, DT_S)
    layers: dict[str, list[Frames]] = {}
    for name, found in frames(graph, inputs, trace, DT_S).items():
        layers.setdefault(SAME_ROW.get(name, name), []).append(found)
    floating, folded = (
        count(graph, inputs, dt_s=DT_S, pooling=policy) for policy in ("float", "folded")
    )
    for name, parts in layers.items():
        counts = floating.layers[name]
        expected = tuple(map(sum, zip(*(part.by_frame() for part in parts), strict=True)))
        if expected != (counts.acc_nonzero, counts.mac_nonzero):
            raise UnexplainedError(f"layer '{name}': count says other operations than its frames")
    dispatched = count_torch(norse_net(made), inputs, time_axis=1, stepped=True)
    return Ours(made, trace, layers, floating, folded, dispatched)


def spikes(found: Ours) -> dict[str, str]:
    """Path of each neuron layer -> SHA-256 of its spikes, as the worker says it."""
    return {
        name.split("_")[1]: hashlib.sha256(np.ascontiguousarray(fired).tobytes()).hexdigest()
        for name, fired in found.trace.spikes.items()
    }


def rows(found: Ours, codings: Mapping[str, Any]) -> list[Row]:
    """The table of one case.

    Args:
        found: our side.
        codings: NeuroBench's report on each coding of it.

    Raises:
        UnexplainedError: another spike, or a difference without a policy.
    """
    runs = {}
    for coding, report in codings.items():
        if report["spikes"] != spikes(found):
            raise UnexplainedError(f"coding '{coding}': fired other spikes than the exported graph")
        runs |= {(coding, int(size)): run for size, run in report["batches"].items()}
    made: list[Row] = []
    letters: dict[tuple[str, int], str] = dict.fromkeys(runs, "")
    for name in found.layers:  # without the pool, a row of its own that has no synapses
        if not any(_said(run["layers"], name) for run in runs.values()):
            raise UnexplainedError(f"layer '{name}': NeuroBench hears it in no coding")
        counts = found.floating.layers[name]
        pooled = found.folded.layers[name] != counts
        verdicts = {}
        for key, run in runs.items():
            said = _said(run["layers"], name)
            verdicts[key] = said, _verdict(found, name, key[1], said)
            letters[key] += verdicts[key][1]
        made += _block(f"{name} float" if pooled else name, counts, verdicts)
        if pooled:
            made.append(Row(f"{name} folded", found.folded.layers[name], None, "P"))
    totals = {
        key: (_read(run["total"]), _of_total(found, key, run, letters[key]))
        for key, run in runs.items()
    }
    made += _block("total", found.floating.total, totals)
    if found.folded.total != found.floating.total:
        made.append(Row("total folded", found.folded.total, None, "P"))
    check_dispatched(found, runs["norse", 1]["layers"])
    made.append(Row("  by count_torch", found.dispatched.total, None, "T"))
    return made


def check_dispatched(found: Ours, said: Mapping[str, Mapping[str, float]]) -> None:
    """Hold every layer of `count_torch` to NeuroBench's, sample by sample, and the whole to the graph.

    Raises:
        UnexplainedError: they differ by an operation.
    """
    for path, value in said.items():
        layer, theirs = found.dispatched.layers.get(path), _read(value)
        if layer is None or (layer.acc_nonzero, layer.mac_nonzero) != (theirs.acc, theirs.mac):
            raise UnexplainedError(f"layer '{path}': count_torch is not {theirs}")
    mine, graph = found.dispatched.total, found.floating.total
    if (mine.acc_nonzero, mine.mac_nonzero) != (graph.acc_nonzero, graph.mac_nonzero):
        raise UnexplainedError("total: count_torch is not the count of the graph")


def _block(
    label: str, counts: LayerCounts, verdicts: Mapping[tuple[str, int], tuple[Said | None, str]]
) -> list[Row]:
    """One line for our numbers, and one for each of NeuroBench's runs that says something else than the runs before."""
    made: list[Row] = []
    ordered = sorted(verdicts, key=lambda run: -run[1])  # whole batches first
    for coding, size in ordered:
        said, verdict = verdicts[coding, size]
        if any((said, verdict) == (row.theirs, row.verdict) for row in made):
            continue
        run = f"  batch of {size}" if coding == ordered[0][0] else f"  coded {coding}"
        made.append(Row(run if made else label, None if made else counts, said, verdict))
    return made


def _verdict(found: Ours, name: str, batch: int, said: Said | None) -> str:
    """Letters that explain one layer in one run."""
    if said is None:
        return "H"
    counts, letters = found.floating.layers[name], ""
    if (counts.acc_nonzero, counts.mac_nonzero) != (said.acc, said.mac):
        by_call = map(sum, zip(*(part.by_call(batch) for part in found.layers[name]), strict=True))
        if tuple(by_call) != (said.acc, said.mac):
            raise UnexplainedError(
                f"layer '{name}', batch of {batch}: {said}, and not by NeuroBench's rule"
            )
        letters += "C"
    if counts.dense_valid != said.dense:
        letters += _of_taps(found, name, said.dense)
    return letters or "="


def _of_taps(found: Ours, name: str, dense: Fraction) -> str:
    if sum(part.dense for part in found.layers[name]) * found.floating.timesteps == dense:
        return "A"
    raise UnexplainedError(
        f"layer '{name}': {found.floating.layers[name].dense_valid} taps, NeuroBench has {dense}"
    )


def _of_total(found: Ours, key: tuple[str, int], run: Mapping[str, Any], letters: str) -> str:
    """Letters of a total: its layers', where they add up."""
    said, seen = _read(run["total"]), [_said(run["layers"], name) for name in found.layers]
    if tuple(sum(values) for values in zip(*(one for one in seen if one), strict=True)) != said:
        raise UnexplainedError(f"{key}: the layers are not NeuroBench's total {said}")
    return "".join(sorted(set(letters) - {"="})) or "="


def _said(layers: Mapping[str, Mapping[str, float]], name: str) -> Said | None:
    """NeuroBench on one of our rows: the layers of the same place, added up; None where it heard none."""
    place = name.split("_")[1]
    there = [_read(value) for path, value in layers.items() if path.split(".")[0] == place]
    return (
        Said(*(sum(values, Fraction(0)) for values in zip(*there, strict=True))) if there else None
    )


def _read(value: Mapping[str, float]) -> Said:
    """Its floats are quarters here, so nothing is rounded."""
    return Said(*(Fraction(value[name]) for name in ("Effective_ACs", "Effective_MACs", "Dense")))
