"""Frozen results of sweeps and Pareto searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from knarr.pipeline.studies.sweep_file import Sweep
from knarr.train.recipe import with_settings
from knarr.train.settings import Recipe

BEST, SWEEP_PICTURE, PARETO_PICTURE = "best.yaml", "sweep.png", "pareto.png"
BITS: Final = "chip.weight_bits"
STEPS: Final = "chip.timesteps"
SHARE: Final = "chip.acc_share"

State: TypeAlias = Literal["finished", "pruned", "refused"]


@dataclass(frozen=True)
class SweepTrial:
    """A trial of a sweep that is done.

    Attributes:
        number: Its number, from 0.
        state: "finished"; "pruned", with the value of its last epoch; or "refused" by the recipe,
            see `reason`.
        value: Value of the metric; None where there is none.
        parameters: Dotted path -> value, in the order of the sweep's file.
        reason: Why the recipe refused it.
    """

    number: int
    state: State
    value: float | None
    parameters: dict[str, Any]
    reason: str = ""

    @property
    def folder(self) -> str:
        """Its folder below the sweep's."""
        return folder_name(self.number)


@dataclass(frozen=True)
class SweepResult:
    """A sweep with all its trials done.

    Attributes:
        sweep: What was asked for.
        out: Folder of the trials.
        trials: All trials, by number.
        importance: Dotted path -> share of what the better trials have in common (PED-ANOVA, arXiv
            2304.10255), adding up to 1; empty with few trials.
    """

    sweep: Sweep
    out: Path
    trials: tuple[SweepTrial, ...]
    importance: dict[str, float]

    def ranked(self) -> list[SweepTrial]:
        """Return finished trials from the best on, then pruned ones, then refused ones."""
        order = ("finished", "pruned", "refused")
        # Sorting puts low values first, and a metric such as accuracy is good where it is high.
        sign = -1.0 if self.sweep.maximise else 1.0

        def rank(trial: SweepTrial) -> tuple[int, float, int]:
            return order.index(trial.state), sign * (trial.value or 0.0), trial.number

        return sorted(self.trials, key=rank)

    @property
    def best(self) -> SweepTrial | None:
        """The first of the best finished trials; None where none finished."""
        trial = self.ranked()[0]  # a sweep has at least one trial
        return trial if trial.state == "finished" else None

    @property
    def recipe(self) -> Recipe | None:
        """Recipe of the best trial, with the sweep's name and "-best"."""
        if self.best is None:
            return None
        name = f"{self.sweep.settings.name}-best"
        return with_settings(self.sweep.recipe, {**self.best.parameters, "name": name})

    @property
    def files(self) -> dict[str, str]:
        """Paths of what `sweep` writes beside the trials."""
        files = {"picture": str(self.out / SWEEP_PICTURE)}
        return files if self.best is None else files | {"best_recipe": str(self.out / BEST)}


def folder_name(number: int) -> str:
    """Return the name of a trial's folder."""
    return f"trial-{number:05d}"


@dataclass(frozen=True)
class ParetoPoint:
    """A chip network among the others.

    Attributes:
        parameters: Weight bits, time steps, and the share of the lowered network's ACC that it may
            cost (None: all).
        facts: The content of point.json.
        front: Whether none is right as often on the validation clips and costs less, or costs no
            more and is right more often.
    """

    parameters: dict[str, Any]
    facts: dict[str, Any]
    front: bool = False

    @property
    def accuracy(self) -> float:
        """Accuracy on validation clips."""
        return float(self.facts["validation"]["correct"] / self.facts["validation"]["clips"])

    def energy(self, model: str) -> dict[str, Any]:
        """Return its interval in one of the models, pJ."""
        found: dict[str, Any] = self.facts["energy"][model]
        return found


@dataclass(frozen=True)
class ParetoResult:
    """A finished Pareto search.

    Attributes:
        recipe: Name of the recipe.
        model: Energy model by which the front is found.
        out: Folder of the search.
        float_validation: How many validation clips there are, and how many the float student
            decides rightly.
        points: The points from the cheapest on.
        refused: Trials that go onto no chip.
    """

    recipe: str
    model: str
    out: Path
    float_validation: dict[str, int]
    points: tuple[ParetoPoint, ...]
    refused: tuple[SweepTrial, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        # The facts of a point are point.json as it is, so that both say the same by the same names.
        facts = {
            "recipe": self.recipe,
            "model": self.model,
            "out": str(self.out),
            "float_validation": self.float_validation,
            "points": [
                {**_named(point.parameters), "front": point.front, **point.facts}
                for point in self.points
            ],
            "refused": [
                {**_named(trial.parameters), "reason": trial.reason} for trial in self.refused
            ],
        }
        # Without a point nothing is drawn, and a picture there would be an earlier search's.
        return facts | {"picture": str(self.out / PARETO_PICTURE)} if self.points else facts


def _named(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a point by the names of the JSON document."""
    return {path.removeprefix("chip."): parameters[path] for path in (BITS, STEPS, SHARE)}


def fronted(points: Sequence[ParetoPoint], model: str) -> list[ParetoPoint]:
    """Return the points from the cheapest on, those marked that no other one beats on validation
    clips.
    """

    def cost(point: ParetoPoint) -> float:
        return float(point.energy(model)["nominal_pj"])

    # Of equal costs the best comes first, so that only it is better than all before.
    ordered = sorted(points, key=lambda point: (cost(point), -point.accuracy))
    found, best = [], -1.0
    for point in ordered:
        found.append(replace(point, front=point.accuracy > best))
        best = max(best, point.accuracy)
    return found
