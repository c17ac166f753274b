"""The report of a finished run: what its files say, as plain data and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from knarr.pipeline import evaluation_file
from knarr.pipeline.energy_report.schema import read_energy
from knarr.pipeline.files import expecting, read_json
from knarr.pipeline.run_folder import (
    CONFIG,
    ENERGY,
    EVALUATION,
    PICTURE_NAMES,
    PICTURES,
    VERIFICATION,
    read_config,
)

ON_TEST: Final = "chosen_on_test"
"""Key of the networks whose epoch was the best ON THE TEST DATA."""


def report(folder: Path | str) -> dict[str, Any]:
    """Return what the final table of a finished run says, as plain data.

    Raises:
        RunError: A file that is missing or holds something else.
        EvaluationError: An evaluation.json that is missing or damaged.
    """
    folder = Path(folder)
    chosen_on_test = _chosen_on_test(folder)
    energy, verification = read_energy(folder / ENERGY), read_json(folder / VERIFICATION)
    evaluation = evaluation_file.read(folder / EVALUATION)
    # The first pass is the test set as the chip was recorded on it; others are drawn.
    first = {network: rows[0] for network, rows in evaluation.predicted.items()}
    measured: dict[str, dict[str, Any]]
    if evaluation.targets:
        errors = {name: abs(seen - evaluation.labels).mean() for name, seen in first.items()}
        measured = {"mae": {name: float(error) for name, error in errors.items()}}
    else:
        measured = {
            "correct": {
                name: int((seen == evaluation.labels).sum()) for name, seen in first.items()
            }
        }
    with expecting(folder):
        pairs: dict[str, dict[str, int]] = {}
        for row in verification["rows"]:
            sums = pairs.setdefault(row["pair"], {"compared": 0, "mismatches": 0})
            for key in sums:
                sums[key] += row[key]
        return {
            "run": str(folder),
            "test_samples": len(evaluation.labels),
            **measured,
            **({ON_TEST: chosen_on_test} if chosen_on_test else {}),
            "energy": energy,
            "lava_samples": verification["samples"],
            "mismatches": pairs,
            "holds": verification["holds"],
            "pictures": [str(path) for path in sorted((folder / PICTURES).glob("*.png"))],
        }


def missing_pictures(folder: Path) -> list[str]:
    """Return the names of the pictures that a run's folder lacks."""
    return [name for name in PICTURE_NAMES if not (folder / PICTURES / f"{name}.png").is_file()]


def _chosen_on_test(folder: Path) -> list[str]:
    """Return what `Recipe.chosen_on_test` says of a run.

    It is read from plain values: recipes are checked by classes that stand beside their networks,
    and a report is read where no torch is installed.
    """
    recipe = read_config(folder).get("recipe")
    with expecting(folder / CONFIG):
        # A network may be none, or may not be fitted.
        fits = {name: (recipe[name] or {}).get("fit") for name in ("teacher", "student")}  # type: ignore[index]
        return [name for name, fit in fits.items() if fit and fit["select"] == "best_on_test"]


def divergence_text(row: dict[str, Any]) -> str:
    """Say where the two stages of a verification's row part first, and what each had there.

    Args:
        row: One layer, as `Verification.to_json` gives it, with a first divergence.
    """
    first = row["first"]
    left, _, right = row["pair"].split()
    index = first["index"]
    neuron = str(index[0]) if len(index) == 1 else f"({', '.join(map(str, index))})"
    sides = [_side(left, row["what"], first["left"]), _side(right, row["what"], first["right"])]
    return (
        f"{row['layer']} {row['what']}: sample {first['sample']}, step {first['timestep']}, "
        f"neuron {neuron}: {'; '.join(sides)}"
    )


def _side(stage: str, what: str, side: dict[str, Any]) -> str:
    if what != "spikes":
        return f"{stage} {what} {_number(side['value'])}"
    times = side["value"]
    text = f"{stage} {'is silent' if times == 0 else 'fires'}"
    if times not in (0, 1):  # neurons of other tools may fire several times a step
        text += f" {_number(times)} times"
    if side["v_reached"] is not None:
        text += f" at v {_number(side['v_reached'])}"
    if side["threshold"] is not None:
        text += f", threshold {_number(side['threshold'])}"
    return text + ("" if side["u"] is None else f", u {_number(side['u'])}")


def _number(value: float) -> str:
    # Integers of the chip are printed whole, voltages of floats are not.
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
