"""The recurrent Braille nets of the NIR paper from float to chip, on generated touches: how often the
chip decides as the graph does, lowered and fine-tuned towards the graph's own decisions.

    .venv/bin/python benchmarks/finetune/braille.py --graphs ../shared/data/braille --work build/finetune

Writes benchmarks/results/finetune_braille.json and .md; each fit leaves its file in --work.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nir
import numpy as np
import numpy.typing as npt
from data import touches

from knarr.deploy import lower, read_net, verify_network, write_net
from knarr.export import read, step_nir
from knarr.hw_sim import simulate
from knarr.pipeline.measures import paired_difference, wilson
from knarr.train import finetune

RESULTS = Path(__file__).parents[1] / "results"
GRAPHS = ("braille_noDelay_bias_zero", "braille_noDelay_noBias_subtract")
CLIPS = {"train": 600, "validation": 150, "test": 600}
DT_S, BITS, EPOCHS, LAVA, BATCH = 1e-4, (8, 4), 12, 4, 50
Values = npt.NDArray[Any]


def counts(graph: nir.NIRGraph, inputs: Values) -> Values:
    """Return the graph's output spikes of each class, (N, classes)."""
    parts = np.array_split(inputs, -(-len(inputs) // BATCH))
    return np.concatenate([step_nir(graph, part, DT_S).output.sum(axis=1) for part in parts])


def agreement(path: Path, graph: nir.NIRGraph, work: Path) -> dict[str, Any]:
    """Return how often the chip decides as one graph does."""
    data = {split: touches(number, seed) for seed, (split, number) in enumerate(CLIPS.items())}
    said = {split: counts(graph, inputs) for split, inputs in data.items()}
    labels = {split: found.argmax(1) for split, found in said.items()}
    facts: dict[str, Any] = {"classes": np.bincount(labels["test"]).tolist(), "networks": {}}
    for bits in BITS:
        lowered, fitted = (work / f"{path.stem}-{kind}{bits}.net" for kind in ("lowered", "fitted"))
        if not fitted.is_file():
            # A bias behind a synaptic filter is approximated, which the fit may mend.
            calibration = data["train"][:20]
            options: dict[str, Any] = {"weight_bits": bits, "allow_approximate": True}
            network = lower(graph, DT_S, calibration=calibration, **options)
            write_net(network, lowered)
            sides = {side: (data[side], labels[side]) for side in ("train", "validation")}
            found = finetune(
                network, graph, **sides, weight_bits=bits, teacher=said["train"], epochs=EPOCHS
            )
            write_net(found, fitted)
        right = {}
        for kind, net in (("lowered", lowered), ("fitted", fitted)):
            network = read_net(net)
            decided = network.readout.decide(simulate(network, data["test"]).output)
            right[kind] = decided == labels["test"]
            share = float(right[kind].mean())
            row = {"share": share, **asdict(wilson(share, len(decided)))}
            facts["networks"][f"{kind} {bits}"] = row
        row["gained"] = asdict(paired_difference(right["lowered"], right["fitted"]))
        proof = verify_network(fitted, data["test"][:LAVA])
        row["lava"] = [sum(row.mismatches for row in proof.rows if row.required), proof.holds]
    return facts


def document(found: dict[str, Any]) -> str:
    lines = [
        "# The NIR paper's Braille nets on the chip",
        "",
        f"Made by `benchmarks/finetune/braille.py`: {CLIPS['test']} generated touches on which the chip decides as the graph does, stepped in",
        "float; with 95 % intervals. Published through lava-dl: 48.6 % right of 95.0 % in float, on the recordings, which are not public.",
        "",
        "| graph | bits | lowered | fine-tuned | the fit gave back | Lava, integers that differ |",
        "|---|---|---|---|---|---|",
    ]

    def rate(row: dict[str, float]) -> str:
        return f"{100 * row['share']:.1f} % ({100 * row['lo']:.1f} .. {100 * row['hi']:.1f})"

    for name, facts in found.items():
        for bits in BITS:
            low, fit = (facts["networks"][f"{kind} {bits}"] for kind in ("lowered", "fitted"))
            value, lo, hi = (100 * fit["gained"][key] for key in ("value", "lo", "hi"))
            gained = f"{value:+.1f} ({lo:+.1f} .. {hi:+.1f})"
            lines.append(
                f"| {name} | {bits} | {rate(low)} | {rate(fit)} | {gained} | {fit['lava'][0]} |"
            )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=Path, required=True, help="folder of the paper's graphs")
    parser.add_argument("--work", type=Path, default=Path("build/finetune"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in GRAPHS:
        path = given.graphs / f"{name}.nir"
        found[name] = agreement(path, read(path), given.work)
        print(name, json.dumps(found[name]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "finetune_braille.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "finetune_braille.md").write_text(document(found))


if __name__ == "__main__":
    main()
