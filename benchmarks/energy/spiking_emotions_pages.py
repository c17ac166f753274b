"""The results as tables, for a terminal of 100 columns and for Markdown, and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import published_model as published
from rich.table import Table as RichTable
from spiking_emotions_measured import ANN, SPIKING, Measured
from spiking_emotions_networks import FRAMES, HEAD, LAYERS, Operands, synapses
from spiking_emotions_table import COLUMNS, Row
from spiking_emotions_video import PUBLISHED_DENSITY

from knarr.hw_sim.energy import price, ratio

HOW = (*SPIKING, *ANN)


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column a label."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def rich(self) -> RichTable:
        """For a terminal."""
        made = RichTable(title=self.title, title_justify="left")
        for at, name in enumerate(self.head):
            made.add_column(name, justify="right" if at else "left")
        for row in self.rows:
            made.add_row(*row)
        return made

    def markdown(self) -> str:
        """For a page."""
        lines = [self.head, ("---", *["---:"] * (len(self.head) - 1)), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def operand_table(found: Operands) -> Table:
    """What was counted in the networks."""
    rows = [
        (what, f"{number:,}", f"{published.rounded(number) / 1e6:.1f} M")
        for what, number in zip(
            ("ANN, first layer (F)", "SNN, first layer (f)", "others (O)"), found, strict=True
        )
    ]
    return Table("Operations, counted", ("operand", "counted", "rounded"), rows)


def published_table(rows: Sequence[Row]) -> Table:
    """Recomputed and printed numbers."""
    said = {True: "yes", False: "no", None: "-"}

    def cells(row: Row) -> tuple[str, ...]:
        numbers = (f"{row.values[column]:.2f}" for column in COLUMNS)
        match = " ".join(said[row.match(column)] for column in COLUMNS)
        return (row.what, *numbers, row.printed or "absent", match)

    head = ("uJ", *COLUMNS, "printed", f"match {' '.join(COLUMNS)}")
    return Table("Table II, recomputed", head, [cells(row) for row in rows])


def events_table(measured: Measured) -> Table:
    """What arrives and what fires."""
    folded, pooled = (synapses(measured.counts[how]) for how in SPIKING)
    rows = []
    for name in LAYERS:
        kinds = [(folded[name].acc, folded[name].mac), (pooled[name].acc, pooled[name].mac)]
        numbers = [f"{float(number) / 1e6:.2f}" for pair in kinds for number in pair]
        heard = [
            float((one.acc + one.mac) / one.dense_valid) for one in (folded[name], pooled[name])
        ]
        rows.append((name, *numbers, *map(_percent, heard), _percent(measured.rates[name])))
    rows.append((HEAD, *["-"] * 6, _percent(measured.rates[HEAD])))
    head = (
        "10^6 per clip",
        "folded: ACC",
        "MAC",
        "float: ACC",
        "MAC",
        "taps, folded",
        "float",
        "neurons fire",
    )
    return Table(f"Synaptic operations of {FRAMES} steps, and what is active", head, rows)


def energy_table(measured: Measured) -> Table:
    """Energy per layer under both models."""
    proxy = measured.proxy_uj()
    rows = []
    for model in ("paper", "memory"):
        energies = {how: measured.energy_uj(how, model) for how in HOW}
        first = proxy if model == "paper" else {}
        for name in LAYERS:
            rows.append(
                (
                    f"{model}: {name}",
                    _uj(first.get(name)),
                    *(_uj(one[name]) for one in energies.values()),
                )
            )
        sums = [sum(one.values()) for one in (first, *energies.values())]
        rows.append((f"{model}: all", *(_uj(one or None) for one in sums)))
        for against in ANN:
            base = sum(energies[against].values())
            rows.append(
                (
                    f"{model}: all / {against}",
                    *(f"{one / base:.2f}" if one else "-" for one in sums),
                )
            )
    return Table("Energy of one clip, uJ", ("", "proxy", *HOW), rows)


def sentence(measured: Measured) -> str:
    """What the proxy leaves out, with this clip's numbers."""
    proxy = sum(measured.proxy_uj().values())
    folded, pooled, dense, skipped = (sum(measured.energy_uj(how, "paper").values()) for how in HOW)
    rates = ", ".join(_percent(measured.rates[name]) for name in LAYERS[:-1])
    limit = published.break_even_density(*measured.operands, FRAMES)
    return (
        f"The paper's proxy puts the density of the input ({_percent(measured.density)}) on every layer behind a pool and leaves out "
        f"what those layers hear: here the convolutions fire at {rates}, a pool of 2 x 2 delivers up to four spikes where the "
        f"proxy counts one position, and so the same clip takes {folded / 1000:.2f} mJ with additions alone (pools folded) and "
        f"{pooled / 1000:.2f} mJ if pools are computed and their fractions multiplied, where the proxy says {proxy / 1000:.2f} mJ and "
        f"the ANN takes {dense / 1000:.2f} mJ ({skipped / 1000:.2f} mJ with its zeros skipped); as a density on all of the proxy's "
        f"operations that is {_percent(measured.equivalent_density('folded'))}, and above {_percent(limit)} the ANN is cheaper."
    )


def to_json(rows: Sequence[Row], measured: Measured) -> dict[str, object]:
    """Everything, unrounded."""
    ann = {
        model: {how: price(measured.counts[how], model=model) for how in HOW}
        for model in ("paper", "memory")
    }
    return {
        "operands": measured.operands._asdict(),
        "table": [row.to_json() for row in rows],
        "left_out": list(published.LEFT_OUT),
        "measured": {
            "weights": "untrained",
            "timesteps": FRAMES,
            "density": measured.density,
            "published_density": PUBLISHED_DENSITY,
            "rates": dict(measured.rates),
            "equivalent_density": {how: measured.equivalent_density(how) for how in SPIKING},
            "spikes_moved_by_folding": list(measured.moved),
            "proxy_uj": measured.proxy_uj(),
            "energy_uj": {
                model: {how: measured.energy_uj(how, model) for how in HOW} for model in ann
            },
            "ratio": {
                model: {
                    how: {base: ratio(found[how], found[base]) for base in ANN} for how in SPIKING
                }
                for model, found in ann.items()
            },
            "operations": {
                how: {
                    name: {
                        "acc": float(one.acc),
                        "mac": float(one.mac),
                        "events": float(one.events),
                    }
                    for name, one in synapses(measured.counts[how]).items()
                }
                for how in HOW
            },
            "sentence": sentence(measured),
        },
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _uj(number: float | None) -> str:
    return "-" if number is None else f"{number:,.2f}"
