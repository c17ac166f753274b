"""Float, quantised after training and chip-exact accuracy, as Markdown; differences within seeds, with 95 % intervals over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from stress_score import over_seeds

INTRODUCTION: Final = """Written by `.venv/bin/python benchmarks/train/chip_exact.py`; what is fitted, and how, stands there. Accuracy in %, all test clips
of a seed together (N-MNIST: 200 recordings that the seed held out and the official 100; single eyes: people that the seed held out, 20
random windows a clip), mean over seeds. "After training" is lowered as it is, calibrated on 20 training samples. Differences are taken within
seeds; intervals are 95 % over seeds (Student's t, so wide with three). Chip-exact students were fitted for 10 more epochs than the float
one, those with half the ACC for 20: what they gain over it is not owed to integers alone. ACC: synaptic accumulates per inference on
test clips; the goal of "half the ACC" is half of what the 8-bit one needs on validation clips. "Kept": in how many seeds an epoch beat
the lowered network on validation clips."""
COLUMNS: Final = (
    "task, student", "seeds", "float", "after training", "chip-exact", "chip-exact - float, points", "chip-exact - after training",
    "chip-exact - 8 bits chip-exact", "ACC after training", "ACC chip-exact", "of the 8-bit ACC", "chip-exact kept",
)  # fmt: skip
WHOLE: Final = "8 bits"
Seeds = Mapping[str, Mapping[str, Any]]
Array = npt.NDArray[np.float64]


def document(kept: Mapping[str, Seeds]) -> str:
    """A row for each task and student; a seed counts where it has that student."""
    rows = [f"| {' | '.join(COLUMNS)} |", "|" + "-|" * len(COLUMNS)]
    for task, seeds in kept.items():
        names = [name for name in next(iter(seeds.values()), {}) if name not in ("float", "clips")]
        rows += [_row(task, name, seeds) for name in names]
    return f"# Training in the chip's arithmetic\n\n{INTRODUCTION}\n\n" + "\n".join(rows) + "\n"


def _row(task: str, name: str, seeds: Seeds) -> str:
    there = [found for found in seeds.values() if name in found]
    floats = np.array([_share(found["float"], found) for found in there])
    lowered, chip = (
        np.array([_share(found[name][which], found) for found in there])
        for which in ("lowered", "chip")
    )
    cost_before, cost = (
        np.array([found[name][which]["acc"] for found in there]) for which in ("lowered", "chip")
    )
    whole = np.array([found[WHOLE]["chip"]["acc"] for found in there])
    cells = [
        f"{task}, {name}",
        str(len(there)),
        *(f"{100 * shares.mean():.2f}" for shares in (floats, lowered, chip)),
        _points(chip - floats),
        _points(chip - lowered),
        ""
        if name == WHOLE
        else _points(chip - np.array([_share(found[WHOLE]["chip"], found) for found in there])),
        *(f"{costs.mean():,.0f}" for costs in (cost_before, cost)),
        f"{(cost / whole).mean():.2f}",
        f"{sum(found[name]['epoch'] is not None for found in there)} of {len(there)}",
    ]
    return f"| {' | '.join(cells)} |"


def _share(result: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Of all test clips, each pass of a test set as one more look at it."""
    right = sum(float(np.mean(passes)) for passes in result["right"].values())
    return right / sum(found["clips"].values())


def _points(differences: Array) -> str:
    interval = over_seeds(differences[:, None])
    if len(differences) < 2:
        return f"{100 * interval.mean:+.2f}"
    return f"{100 * interval.mean:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"
