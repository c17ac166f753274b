"""What the files of a finished run say, as plain data and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knarr.pipeline.files import read_json
from knarr.pipeline.run_folder import ACCURACY, ENERGY, PICTURES, VERIFICATION

ON_TEST = "chosen_on_test"
"""Key of the networks whose epoch was the best ON THE TEST DATA."""


def report(folder: Path) -> dict[str, Any]:
    """Everything the final table says, as plain data."""
    accuracy, energy, verification = (
        read_json(folder / name) for name in (ACCURACY, ENERGY, VERIFICATION)
    )
    mismatches: dict[str, dict[str, int]] = {}
    for row in verification["rows"]:
        pair = mismatches.setdefault(row["pair"], {"compared": 0, "mismatches": 0})
        pair["compared"] += row["compared"]
        pair["mismatches"] += row["mismatches"]
    return {
        "run": str(folder),
        "test_samples": accuracy["samples"],
        "correct": accuracy["correct"],
        **({ON_TEST: accuracy[ON_TEST]} if accuracy.get(ON_TEST) else {}),
        "chip": {
            **energy["student"]["counts"]["total"],
            "energy_pj": energy["student"]["energy"]["nominal_pj"],
        },
        "teacher": {
            **energy["baseline"]["counts"]["total"],
            "energy_pj": energy["baseline"]["energy"]["nominal_pj"],
        },
        "energy_ratio": energy["ratio"],
        "provenance": energy["student"]["energy"]["provenance"],
        "lava_samples": verification["samples"],
        "mismatches": mismatches,
        "holds": verification["holds"],
        "pictures": [str(path) for path in sorted((folder / PICTURES).glob("*.png"))],
    }


def divergence_text(row: dict[str, Any]) -> str:
    """Where a row's stages part first, and what each had there."""
    first = row["first"]
    names = row["pair"].split()[0], row["pair"].split()[2]
    index = (
        "(" + ", ".join(str(i) for i in first["index"]) + ")"
        if len(first["index"]) > 1
        else first["index"][0]
    )
    sides = (
        _side(name, row["what"], first[key])
        for name, key in zip(names, ("left", "right"), strict=True)
    )
    return (
        f"{row['layer']} {row['what']}: sample {first['sample']}, step {first['timestep']}, neuron {index}: "
        + "; ".join(sides)
    )


def _side(stage: str, what: str, side: dict[str, Any]) -> str:
    if what != "spikes":
        return f"{stage} {what} {_number(side['value'])}"
    text = f"{stage} {'fires' if side['value'] else 'is silent'}"
    if side["v_reached"] is not None:
        text += f" at v {_number(side['v_reached'])}"
    if side["threshold"] is not None:
        text += f", threshold {_number(side['threshold'])}"
    return text + ("" if side["u"] is None else f", u {_number(side['u'])}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
