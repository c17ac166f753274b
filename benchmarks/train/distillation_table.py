"""What a teacher changed, as Markdown: means over seeds, differences within seeds, both with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from stress_score import Interval, over_seeds

DRAWS: Final = 4000
INTRODUCTION: Final = """Written by `.venv/bin/python benchmarks/train/distillation.py`; what each task is, stands there. Accuracy, %,
on clips of people or recordings that were never trained on; mean over seeds and 95 % interval (Student's t). Both students of a seed
start alike and see the same batches, so differences are taken within seeds. "Over groups" draws held-out groups (people; recordings
where nobody's) with replacement, the same for both students; "helps" asks both intervals to leave 0 out."""

Seeds = Mapping[str, Mapping[str, Any]]
Array = npt.NDArray[np.float64]


def document(kept: Mapping[str, Seeds]) -> str:
    """Tables of what distillation.json holds; a seed counts when it is whole."""
    parts = [
        "# Does a teacher help?",
        INTRODUCTION,
        "| task, tested on | seeds | teacher | untaught | taught | taught - untaught, points | over groups | helps |",
        "|-|-|-|-|-|-|-|-|",
    ]
    rows, settings = [], []
    for task, seeds in kept.items():
        first = next(iter(seeds.values()))
        for name in first["passes"]:
            rows.append(_row(task, name, seeds))
        settings.append(f"* {task}: {_settings(first['settings'])}.")
    return (
        "\n\n".join(parts[:2])
        + "\n\n"
        + "\n".join([*parts[2:], *rows])
        + "\n\n"
        + "\n".join(settings)
        + "\n"
    )


def _row(task: str, name: str, seeds: Seeds) -> str:
    teacher, untaught, taught = (
        _shares(seeds, arm, name) for arm in ("teacher", "untaught", "taught")
    )
    difference = over_seeds((taught - untaught)[:, None])
    groups = _over_groups(seeds, name)
    cells = [
        f"{task}, {name}",
        str(len(seeds)),
        *(_text(over_seeds(100 * shares[:, None])) for shares in (teacher, untaught, taught)),
        f"{100 * difference.mean:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]",
        f"[{100 * groups.low:+.2f}, {100 * groups.high:+.2f}]",
        verdict(difference, groups),
    ]
    return f"| {' | '.join(cells)} |"


def verdict(seeds: Interval, groups: Interval) -> str:
    """Both intervals have to leave 0 out."""
    if seeds.low > 0 and groups.low > 0:
        return "yes"
    if seeds.high < 0 and groups.high < 0:
        return "no, it harms"
    return "not shown"


def _shares(seeds: Seeds, arm: str, name: str) -> Array:
    """(seeds,) accuracies."""
    return np.array([np.mean(_of(found, arm, name)) for found in seeds.values()])


def _of(found: Mapping[str, Any], arm: str, name: str) -> Array:
    """(clips,) share of passes in which it was right."""
    hits: Sequence[int] = found[f"{arm}, {name}"]
    return np.asarray(hits, np.float64) / found["passes"][name]


def _over_groups(seeds: Seeds, name: str) -> Interval:
    """Percentiles of the difference over draws of groups; what several seeds tested is drawn once for all of them."""
    owners: list[str] = []
    differences: list[Array] = []
    for seed, found in seeds.items():
        difference = _of(found, "taught", name) - _of(found, "untaught", name)
        # The official recordings are the same for every seed; those held out are not.
        whose = "official" if name.startswith("official") else seed
        owners += found.get("subjects", [f"{whose}/{clip}" for clip in range(len(difference))])
        differences.append(difference)
    together = np.concatenate(differences)
    _, group = np.unique(owners, return_inverse=True)
    sums, sizes = np.bincount(group, together), np.bincount(group)
    weights = np.random.default_rng(0).multinomial(
        len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS
    )
    low, high = np.percentile((weights @ sums) / (weights @ sizes), [2.5, 97.5])
    return Interval(float(together.mean()), float(low), float(high))


def _text(found: Interval) -> str:
    if np.isnan(found.low):
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} +- {found.mean - found.low:.2f}"


def _settings(settings: Mapping[str, Any]) -> str:
    if "loss" in settings:
        return ", ".join(f"{name} {value}" for name, value in settings["loss"].items())
    return f"alpha {settings['kd_alpha']}, temperature {settings['kd_temperature']}"
