"""Table II of "Spiking Emotions" and its text, recomputed from counted operands at three roundings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import published_model as model
from spiking_emotions_networks import FRAMES, Operands
from spiking_emotions_video import PUBLISHED_DENSITY

PUBLISHED_STEPS = 30
COLUMNS = {
    "R": "operands rounded to 0.1 M, as printed",
    "X": "first layers exact, the others rounded",
    "E": "all exact",
}


@dataclass(frozen=True)
class Row:
    """One number of the paper.

    Args:
        what: the number.
        unit: of `values`.
        values: column -> recomputed number.
        printed: what the paper prints, None where it prints nothing.
        text: a number as the paper would print it.
    """

    what: str
    unit: str
    values: Mapping[str, float]
    printed: str | None
    text: Callable[[float], str]

    def match(self, column: str) -> bool | None:
        """Whether this column prints as the paper has it; None where the paper has nothing."""
        return None if self.printed is None else self.text(self.values[column]) == self.printed

    def to_json(self) -> dict[str, object]:
        """Numbers, unrounded, and what matches."""
        match = {column: self.match(column) for column in self.values}
        return {
            "what": self.what,
            "unit": self.unit,
            **self.values,
            "printed": self.printed,
            "match": match,
        }


def columns(exact: Operands) -> dict[str, Operands]:
    """Operands of each column."""
    near = Operands(*(model.rounded(one) for one in exact))
    return {"R": near, "X": exact._replace(others=near.others), "E": exact}


def table(exact: Operands) -> list[Row]:
    """Every number, in uJ but for the break-even."""
    told = columns(exact)

    def row(
        what: str,
        printed: str | None,
        number: Callable[[Operands], float],
        text: Callable[[float], str] = _millijoule,
        unit: str = "uJ",
    ) -> Row:
        scale = 1e-6 if unit == "uJ" else 1.0
        return Row(
            what, unit, {name: scale * number(one) for name, one in told.items()}, printed, text
        )

    def snn(
        steps: int, density: float = 1.0, scales: model.Density = "steps"
    ) -> Callable[[Operands], float]:
        return lambda one: model.snn_pj(one.snn_first, one.others, steps, density, scales)

    dense, share = f"N = {FRAMES}", f"x {PUBLISHED_DENSITY:.4f}".replace("0.", ".")
    return [
        row("ANN", "1.65 mJ", lambda one: model.ann_pj(one.ann_first, one.others)),
        row(
            "slope", "51.3", lambda one: model.slope_pj(one.snn_first, one.others), "{:.1f}".format
        ),
        row("constant", "33.67", lambda one: model.constant_pj(one.snn_first), "{:.2f}".format),
        row(f"N = {PUBLISHED_STEPS}", "1.57 mJ", snn(PUBLISHED_STEPS)),
        row("break-even N", "N < 32", lambda one: model.break_even_steps(*one), _below, "steps"),
        row(f"{dense} {share}, constant not scaled", "0.41 mJ", snn(FRAMES, PUBLISHED_DENSITY)),
        row(
            f"{dense} {share}, constant scaled",
            "0.41 mJ",
            snn(FRAMES, PUBLISHED_DENSITY, "everything"),
        ),
        row(
            f"{dense} {share}, all but the float frame",
            "0.41 mJ",
            snn(FRAMES, PUBLISHED_DENSITY, "events"),
        ),
        row(f"{dense}, density 1", None, snn(FRAMES)),
    ]


def _millijoule(microjoule: float) -> str:
    return f"{microjoule / 1000:.2f} mJ"


def _below(steps: float) -> str:
    return f"N < {math.ceil(steps)}"
