"""Table II of "Spiking Emotions" (CEUR-WS 3331 paper 8) from counted networks, and beside it what one clip really takes.

    .venv/bin/python benchmarks/energy/spiking_emotions.py              prints, writes benchmarks/results/spiking_emotions.*
    .venv/bin/python benchmarks/energy/spiking_emotions.py --json       prints the numbers instead of tables

About half a minute on one core, and 4 GB of memory: the certificate of the export keeps every voltage of its replay.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

import torch
from published_model import LEFT_OUT
from rich.console import Console
from spiking_emotions_measured import Measured, measure
from spiking_emotions_networks import HEAD
from spiking_emotions_pages import (
    Table,
    energy_table,
    events_table,
    operand_table,
    published_table,
    sentence,
    to_json,
)
from spiking_emotions_picture import draw
from spiking_emotions_table import COLUMNS, table
from spiking_emotions_video import PUBLISHED_DENSITY

RESULTS = Path(__file__).resolve().parent.parent / "results"
WIDTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print numbers, not tables")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that is written to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = measure()
    rows = table(measured.operands)
    tables = [operand_table(measured.operands), published_table(rows)]
    tables += [events_table(measured), energy_table(measured)]
    numbers = json.dumps(to_json(rows, measured), indent=1)
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / "spiking_emotions.json"
    path.write_text(numbers + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(tables, measured), "utf-8")
    draw(measured, path.with_suffix(".png"))
    if arguments.json:
        print(numbers)
        return
    console = Console(width=WIDTH)
    for one in tables:
        console.print(one.rich(), "")
    for text in (conditions(measured), sentence(measured)):
        print(textwrap.fill(text, WIDTH), end="\n\n")


def conditions(measured: Measured) -> str:
    """Of the measured half."""
    moved, decisions = measured.moved
    return (
        "Measured on one synthetic clip (moving shapes, sensor noise; seeded) whose events fill "
        f"{measured.density:.2%} of the input after the float frame; the paper reports {PUBLISHED_DENSITY:.2%} for its videos. "
        "Weights are UNTRAINED: torch's default initialisation, batch-norms with this clip's statistics; trained ones fire at other "
        f"rates. The untrained head fires at {measured.rates[HEAD]:.2%} and is left out of every count, as the paper does. Folding "
        f"the batch-norms moved {moved} of {decisions:,} decisions on this clip."
    )


def page(tables: list[Table], measured: Measured) -> str:
    """The Markdown file."""
    columns = "; ".join(f"{name}: {what}" for name, what in COLUMNS.items())
    operands, published, events, energy = (f"## {one.title}\n\n{one.markdown()}" for one in tables)
    left = "\n".join(f"- {line}" for line in LEFT_OUT)
    return f"""# Energy of Spiking Emotions: the published proxy and what is counted

Written by `.venv/bin/python benchmarks/energy/spiking_emotions.py`. The networks are a reconstruction: what fits the three operand
counts that the paper (CEUR-WS 3331 paper 8, Table II) prints. Prices: 45 nm, fp32, profile `horowitz_fp32`.

{operands}

{published}

{columns}. The model and its variants: `benchmarks/energy/published.py`. Only operands rounded first print all of the paper's numbers.

{events}

{conditions(measured)}

folded: a spike before a pool is delivered alone, over all cells of the map before the pool. float: pools are computed, their fractions
multiplied (MAC). taps: share of the synapses, over all steps, that an event takes. neurons fire: spikes per neuron and step.

{energy}

proxy: the paper's, at the density of this clip, exact operands. paper: prices of additions and multiplications alone. memory: after
Lemaire et al., with exact fan-out and no reuse of a fetched word on either side. The ANN hears the same grey frames; effective: activations that are 0 are skipped.

![energy per layer](spiking_emotions.png)

## What the proxy leaves out

{sentence(measured)}

In general:

{left}
"""


if __name__ == "__main__":
    main()
