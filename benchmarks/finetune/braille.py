"""The recurrent Braille nets of the NIR paper from float to chip, lowered and fine-tuned.

    .venv/bin/python benchmarks/finetune/braille.py --graphs ../shared/data/braille --work build/finetune

Their recordings are not public, so touches are generated: of 3,000 random ones the two that the
graph tells most reliably as each of its letters stand for it, and every clip is one of these with
noise of its own, on which the graph itself is not always right. Letters that it does not tell
reliably in any random touch are left out. Writes finetune_braille.json and .md in benchmarks/results; each fit
leaves its file in --work.
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
from data import spikes_of, touch_rates

from knarr.deploy import lower, read_net, verify_network, write_net
from knarr.export import read, step_nir
from knarr.hw_sim import simulate
from knarr.pipeline.measures import paired_difference, wilson
from knarr.train import finetune

RESULTS = Path(__file__).parents[1] / "results"
GRAPHS = ("braille_noDelay_bias_zero", "braille_noDelay_noBias_subtract")
CLIPS = {"train": 600, "validation": 150, "test": 600}
CANDIDATES, KINDS = 3000, 2
TRIED, AGAIN, OFTEN = 40, 10, 0.7
"""Touches that are tried for a letter, how often, and the share that has to be told as it."""
DT_S, BITS, EPOCHS, LAVA, BATCH = 1e-4, (8, 4), 12, 4, 50
Values = npt.NDArray[Any]


def counts(graph: nir.NIRGraph, inputs: Values) -> Values:
    """Return the graph's output spikes of each class, (N, classes)."""
    parts = np.array_split(inputs, -(-len(inputs) // BATCH))
    return np.concatenate([step_nir(graph, part, DT_S).output.sum(axis=1) for part in parts])


def letters(graph: nir.NIRGraph) -> tuple[Values, Values]:
    """Return rates of touches that stand for letters, and the class of each."""
    rates = touch_rates(CANDIDATES, 0)
    classes = counts(graph, spikes_of(rates, 0)).argmax(1)
    chosen = []
    for name in np.unique(classes):
        own = np.flatnonzero(classes == name)[:TRIED]
        # Once is chance: a letter is what is told again and again.
        again = counts(graph, spikes_of(rates[np.repeat(own, AGAIN)], 1)).argmax(1) == name
        often = again.reshape(len(own), AGAIN).mean(1)
        best = own[np.argsort(-often, kind="stable")[:KINDS]]
        chosen += best[np.sort(-often)[:KINDS] <= -OFTEN].tolist()
    return rates[chosen], classes[chosen]


def measured(path: Path, graph: nir.NIRGraph, work: Path) -> dict[str, Any]:
    """Return how often graph and chip tell the letter, and the difference."""
    rates, classes = letters(graph)
    data, labels = {}, {}
    for seed, (split, number) in enumerate(CLIPS.items(), start=1):
        drawn = np.arange(number) % len(rates)
        data[split], labels[split] = spikes_of(rates[drawn], seed), classes[drawn]
    float_right = counts(graph, data["test"]).argmax(1) == labels["test"]
    facts: dict[str, Any] = {"letters": np.unique(classes).tolist(), "graph": rate(float_right)}
    for bits in BITS:
        lowered, fitted = (work / f"{path.stem}-{kind}{bits}.net" for kind in ("lowered", "fitted"))
        if not fitted.is_file():
            # A bias behind a synaptic filter is approximated.
            calibration = data["train"][:20]
            network = lower(
                graph, DT_S, weight_bits=bits, allow_approximate=True, calibration=calibration
            )
            write_net(network, lowered)
            sides = {side: (data[side], labels[side]) for side in ("train", "validation")}
            found = finetune(
                network,
                graph,
                train=sides["train"],
                validation=sides["validation"],
                weight_bits=bits,
                teacher=counts(graph, data["train"]),
                epochs=EPOCHS,
            )
            write_net(found, fitted)
        right = {}
        for kind, net in (("lowered", lowered), ("fitted", fitted)):
            network = read_net(net)
            decided = network.readout.decide(simulate(network, data["test"]).output)
            right[kind] = decided == labels["test"]
            facts[f"{kind} {bits}"] = rate(right[kind]) | {
                "against_graph": asdict(paired_difference(float_right, right[kind]))
            }
        proof = verify_network(fitted, data["test"][:LAVA])
        differ = sum(row.mismatches for row in proof.rows if row.required)
        facts[f"fitted {bits}"] |= {"lava_mismatches": differ, "lava_holds": proof.holds}
    return facts


def rate(right: Values) -> dict[str, Any]:
    share = float(right.mean())
    interval = wilson(share, len(right))
    return {"share": share, "lo": interval.lo, "hi": interval.hi}


def document(found: dict[str, Any]) -> str:
    lines = [
        "# The NIR paper's Braille nets on the chip",
        "",
        f"Made by `benchmarks/finetune/braille.py`: {CLIPS['test']} held-out generated touches, whose letter is told rightly, with 95 %",
        "intervals, and the paired difference from the graph in float. Published through lava-dl, on recordings that are not public: 48.6 %,",
        "95.0 % in float.",
        "",
    ]
    for name, facts in found.items():
        lines += [
            f"## {name}",
            "",
            f"{len(facts['letters'])} of its letters.",
            "",
            "| network | right | against the graph | Lava, integers that differ |",
            "|---|---|---|---|",
        ]
        for key, row in facts.items():
            if key == "letters":
                continue
            share = f"{100 * row['share']:.1f} % ({100 * row['lo']:.1f} .. {100 * row['hi']:.1f})"
            against = ""
            if "against_graph" in row:
                value, lo, hi = (100 * row["against_graph"][end] for end in ("value", "lo", "hi"))
                against = f"{value:+.1f} ({lo:+.1f} .. {hi:+.1f})"
            title = "graph, in float" if key == "graph" else f"{key.replace(' ', ', ')} bits"
            lines.append(f"| {title} | {share} | {against} | {row.get('lava_mismatches', '')} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=Path, required=True, help="folder of the paper's graphs")
    parser.add_argument("--work", type=Path, default=Path("build/finetune"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in GRAPHS:
        path = given.graphs / f"{name}.nir"
        found[name] = measured(path, read(path), given.work)
        print(name, json.dumps(found[name]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "finetune_braille.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "finetune_braille.md").write_text(document(found))


if __name__ == "__main__":
    main()
