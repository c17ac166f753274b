"""Pareto searches: one float student, fitted on in the chip's arithmetic at each of several costs,
and which are worth it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from knarr.deploy import DeployError, read_net
from knarr.hw_sim import ChipError, count_events, simulate
from knarr.hw_sim.energy import places_of
from knarr.pipeline import stages
from knarr.pipeline.energy_report.facts import TRAFFIC_SAMPLES, on_cores
from knarr.pipeline.files import read_json, write_json, write_picture
from knarr.pipeline.pictures import SMALL
from knarr.pipeline.progress import OnProgress, ignore
from knarr.pipeline.run_folder import (
    FITTED,
    LOWERED,
    NET,
    Run,
    alone,
    claim_folder,
    open_run,
    read_run,
    release,
)
from knarr.pipeline.studies.engine import Report
from knarr.pipeline.studies.sweep_file import Choices, Sweep, SweepSettings
from knarr.pipeline.studies.sweeps import run_sweep
from knarr.train import Recipe, RecipeError, student_predictions
from knarr.train.chip_fit import mean_absolute_error
from knarr.train.datasets.arrays import AnyArray
from knarr.train.recipe import load_recipe, parse_setting, with_settings
from knarr.train.settings import ChipSettings, SettingsError
from knarr.train.systems.registry import check_networks
from knarr.train.train import train_validation_split

POINT, FLOAT, PICTURE = "point.json", "float", "pareto.png"
BITS: Final = "chip.weight_bits"
STEPS: Final = "chip.timesteps"
SHARE: Final = "chip.acc_share"
WHERE: Final = ("Loihi 2, total", "Loihi 2, dynamic", "Loihi 1, total", "Loihi 1, dynamic")
"""Places and terms by which a front may be found."""
MARKERS = "os^Dv<>p"
COLUMNS = 2
DECADE = 10
"""Costs that differ by more lie on a logarithmic axis."""


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
        """Accuracy on validation clips; of float targets the mean absolute error, negative, so that
        more of it is better as well.
        """
        return quality(self.facts["validation"])

    def energy(self, where: str) -> dict[str, Any]:
        """Return its energy somewhere, between bounds, J."""
        found: dict[str, Any] = self.facts["energy"][where]
        return found


def quality(measured: Mapping[str, Any]) -> float:
    """Return what the better of two networks has more of: its accuracy, or -(mean absolute error)."""
    if "mae" in measured:
        return -float(measured["mae"])
    return float(measured["correct"] / measured["clips"])


@dataclass(frozen=True)
class ParetoResult:
    """A finished Pareto search.

    Attributes:
        points: The points from the cheapest on.
        facts: Everything as plain data: recipe, energy, folder, how many validation clips
            there are and how many the float student decides rightly, points, and trials that go
            onto no chip.
    """

    points: tuple[ParetoPoint, ...]
    facts: dict[str, Any]


def pareto(
    name: str,
    *,
    bits: Sequence[int],
    steps: Sequence[int] = (),
    shares: Sequence[float] = (1.0,),
    by: str = WHERE[0],
    data: Path | None = None,
    out: Path | None = None,
    changes: Sequence[str] = (),
    storage: str | None = None,
    on_progress: OnProgress = ignore,
) -> ParetoResult:
    """Fit every combination that is not there yet, beside any other workers, and find those on the
    front.

    Args:
        name: Recipe; its `chip:` block, where it has one, says how trials are fitted.
        bits: Bits of the weights.
        steps: Numbers of time steps; none for all and half of them.
        shares: Shares of the lowered network's ACC that a student may cost; 1 for no goal.
        by: One of `WHERE`: place and term of the energy by which the front is found.
        data: Folder of the data; None where knarr generates them.
        out: Folder of the search; runs/pareto-<recipe> when left out.
        changes: `path=value` of settings.
        storage: Address of a database; None for a SQLite file in `out`.
        on_progress: Called with the progress of the search and of its fits.

    Raises:
        RecipeError: Settings that do not fit, or an energy or settings that do not exist.
        StudyError: The storage does not answer or holds another search.
    """
    if by not in WHERE:
        raise RecipeError(f"--by: '{by}' does not exist; choose from {'; '.join(WHERE)}")
    recipe = with_settings(load_recipe(name), dict(map(parse_setting, changes)))
    if recipe.chosen_on_test:
        raise RecipeError(
            f"recipe '{recipe.name}': {', '.join(recipe.chosen_on_test)} with select best_on_test looks at the test data, beside which "
            "nothing can be chosen; set fit.select to last or val"
        )
    folder = out if out is not None else Path("runs") / f"pareto-{recipe.name}"
    base = _float_run(recipe, data, folder, on_progress)
    length = base.data.test.chip_inputs(np.arange(1)).shape[1]
    wanted = steps or sorted({length, max(1, length // 2)}, reverse=True)
    # All steps are no setting: some losses take nothing else.
    limits = [None if step == length else step for step in wanted]
    _, root = read_run(base.folder)

    def fit(recipe: Recipe, folder: Path, report: Report) -> float:
        # Before anything is copied: a folder of another search is refused as it is.
        claim_folder(recipe, base.data, root, folder)
        return _fit(stages.fork_run(base, recipe, folder))

    result = run_sweep(
        _sweep(recipe, name, bits, limits, shares),
        fit,
        folder,
        storage=storage,
        data_sha256=base.data.fingerprint,
        on_progress=on_progress,
    )
    found, refused = [], []
    for trial in result.trials:
        if trial.reason:
            refused.append({**_named(trial.parameters), "reason": trial.reason})
        else:
            parameters = {**trial.parameters, STEPS: trial.parameters[STEPS] or length}
            point = ParetoPoint(parameters, read_json(folder / trial.folder / POINT))
            if by not in point.facts.get("energy", ()):
                raise RecipeError(
                    f"{folder}: its points were priced by another knarr; give another --out"
                )
            found.append(point)
    unknown = [one for one in found if one.energy(by)["nominal"] is None]
    if unknown:
        why = unknown[0].energy(by)["why_unknown"]
        raise RecipeError(f"--by '{by}': not known of {len(unknown)} points: {why}; take another")
    points = fronted(found, by)
    facts = {
        "recipe": recipe.name,
        "by": by,
        "out": str(folder),
        "float_validation": _float_validation(base),
        # The facts of a point are point.json as it is, so that both say the same by the same names.
        "points": [
            {**_named(each.parameters), "front": each.front, **each.facts} for each in points
        ],
        "refused": refused,
    }
    # Without a point nothing is drawn, and a picture there would be an earlier search's.
    if points:
        facts["picture"] = str(folder / PICTURE)
        write_picture(folder / PICTURE, draw_pareto(points, facts))
    return ParetoResult(tuple(points), facts)


def _float_run(recipe: Recipe, data: Path | None, folder: Path, on_progress: OnProgress) -> Run:
    """Return the run whose teacher, student and graph all trials share, making what is missing of
    it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The first of several workers makes it, and the others wait.
    with alone(folder / ".float.lock"):
        # The float student does not depend on `chip`, so one serves all points.
        base = open_run(
            recipe.model_copy(update={"chip": None}),
            folder / FLOAT,
            data=data,
            cache=folder.parent / "data",
            on_progress=on_progress,
        )
        # A student that no chip can be fitted with is refused before hours of its float fit.
        with_chip = recipe.model_copy(update={"chip": recipe.chip or ChipSettings()})
        check_networks(with_chip, base.data)
        stages.train(base)
        stages.export(base)
        release(base.folder)
    return base


def _sweep(
    recipe: Recipe,
    name: str,
    bits: Sequence[int],
    steps: Sequence[int | None],
    shares: Sequence[float],
) -> Sweep:
    """Return all combinations, as a sweep that may grow no further."""
    goals = [None if share == 1 else share for share in shares]
    searched = {BITS: bits, STEPS: steps, SHARE: goals}
    settings = SweepSettings(
        name=f"pareto-{recipe.name}"[:100],
        recipe=name,
        sampler="grid",
        search={path: Choices(values=tuple(values)) for path, values in searched.items()},
    )
    # What is searched is taken out of the recipe's own block.
    searched_too = dict.fromkeys(("acc_per_inference", "acc_share", "timesteps"))
    chip = (recipe.chip or ChipSettings()).model_copy(update=searched_too)
    count = math.prod(map(len, searched.values()))
    return Sweep(settings, recipe.model_copy(update={"chip": chip}), count)


def _fit(run: Run) -> float:
    """Lower and fit one student, write its point.json, and return its accuracy on validation clips.

    Raises:
        SettingsError: The student goes onto no chip.
    """
    if run.has(LOWERED):
        read_net(run.path(LOWERED))  # a damaged file can be cured and is no result
    try:
        stages.deploy(run)
    except (DeployError, ChipError) as error:
        # This student at these bits goes onto no chip: a result, the others go on.
        raise SettingsError(str(error)) from error
    point = ParetoPoint({}, _measured(run))
    write_json(run.path(POINT), point.facts)
    return point.accuracy


def _measured(run: Run) -> dict[str, Any]:
    """Return accuracy on validation and test clips, and what an inference on the former costs."""
    fitted = read_json(run.path(FITTED))
    network = read_net(run.path(NET))
    inputs, _ = stages.chip_samples(run, "validation")
    counts = count_events(network, inputs, simulate(network, inputs, record=("output", "spikes")))
    # Beside the front and without a say in it, so their cost is not counted.
    test = run.data.test
    seen = stages.chip_decisions(run, network, test)
    traffic, _, unplaced = on_cores(network, inputs[:TRAFFIC_SAMPLES])
    places = {one.place: one for one in places_of(counts, traffic, unplaced=unplaced)}
    energy = {}
    for where in WHERE:
        name, _, term = where.partition(", ")
        energy[where] = {**places[name].terms[term].to_json(), "grade": places[name].grade}
    return {
        "epoch": fitted["epoch"],
        "acc_goal": fitted["acc_goal"],
        "validation": fitted["validation"]["kept"],
        "lowered": fitted["validation"]["lowered"],
        "test": _measure(seen, test.labels),
        "counts": {name: float(getattr(counts.total, name)) for name in ("acc", "mac", "spikes")},
        "energy": energy,
    }


def _float_validation(base: Run) -> dict[str, float]:
    train, (_, chosen) = base.data.train, train_validation_split(base.recipe, base.data)
    seen = student_predictions(base.recipe, base.networks()[1], train, chosen)
    return _measure(seen, train.labels[chosen])


def _measure(seen: AnyArray, labels: AnyArray) -> dict[str, float]:
    """Return how many clips there are, and how many are right, or the mean absolute error."""
    if labels.dtype.kind == "f":
        return {"clips": len(labels), "mae": mean_absolute_error(seen, labels)}
    return {"clips": len(labels), "correct": int((seen == labels).sum())}


def _named(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a point by the names of the JSON document."""
    return {path.removeprefix("chip."): parameters[path] for path in (BITS, STEPS, SHARE)}


def fronted(points: Sequence[ParetoPoint], by: str) -> list[ParetoPoint]:
    """Return the points from the cheapest on, those marked that no other one beats on validation
    clips.
    """

    def rank(point: ParetoPoint) -> tuple[float, float]:
        # Of equal costs the best comes first, so that only it is better than all before.
        return point.energy(by)["nominal"], -point.accuracy

    ordered = sorted(points, key=rank)
    best_before = accumulate((point.accuracy for point in ordered), max, initial=-math.inf)
    return [
        replace(point, front=point.accuracy > best)
        for point, best in zip(ordered, best_before, strict=False)
    ]


# --- picture


@mpl.rc_context(SMALL)
def draw_pareto(points: Sequence[ParetoPoint], facts: dict[str, Any]) -> Figure:
    """Draw the points by all energies that are known; the front is drawn where it was found.

    Args:
        points: The points, at least one.
        facts: `ParetoResult.facts` of the search.
    """
    # What some point does not know cannot be drawn beside the others.
    drawn_by = [
        where
        for where in points[0].facts["energy"]
        if all(point.energy(where)["nominal"] is not None for point in points)
    ]
    errors = "mae" in points[0].facts["validation"]
    axis = f"{'-(mean absolute error)' if errors else 'accuracy'} on validation clips"
    rows = -(-len(drawn_by) // COLUMNS)  # rounded up
    figure = Figure(figsize=(10, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    for where, panel in zip(drawn_by, axes.flat, strict=False):
        _panel(panel, points, where, facts)
    for panel in axes.flat[len(drawn_by) :]:
        panel.set_visible(False)
    for row in axes:
        row[0].set_ylabel(axis, fontsize=10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    # All panels have the same entries, and a label may stand there twice.
    drawn = dict(zip(labels, handles, strict=True))
    names = sorted(drawn)
    marks = [drawn[name] for name in names]
    figure.legend(marks, names, loc="outside lower center", ncols=6)
    figure.suptitle(
        f"{facts['recipe']}: what accuracy costs; small marks: small ACC goals; bars: intervals of the prices"
    )
    return figure


def _panel(axes: Axes, points: Sequence[ParetoPoint], where: str, facts: dict[str, Any]) -> None:
    steps = sorted({point.parameters[STEPS] for point in points}, reverse=True)
    bits = sorted({point.parameters[BITS] for point in points}, reverse=True)
    costs = [point.energy(where)["nominal"] * 1e6 for point in points]
    unknown = False
    for point, cost in zip(points, costs, strict=True):
        energy, values, share = point.energy(where), point.parameters, point.parameters[SHARE]
        spread = None
        # Where one bound is unknown, half a bar would look like a sharp price.
        if energy["low"] is None or energy["high"] is None:
            unknown = True
        else:
            spread = [[cost - energy["low"] * 1e6], [energy["high"] * 1e6 - cost]]
        axes.errorbar(
            cost,
            point.accuracy,
            xerr=spread,
            capsize=2,
            elinewidth=0.8,
            linestyle="none",
            marker=MARKERS[steps.index(values[STEPS]) % len(MARKERS)],
            color=f"C{bits.index(values[BITS])}",
            markersize=4 + 4 * (1 if share is None else share),
            # One entry of the legend for all shares, which the size of the mark tells apart.
            label=f"{values[BITS]} bits, {values[STEPS]} steps" if share is None else None,
        )
    if where == facts["by"]:
        front = [pair for pair in zip(costs, points, strict=True) if pair[1].front]
        paid = [cost for cost, _ in front]
        won = [point.accuracy for _, point in front]
        axes.step(paid, won, where="post", color="black", linewidth=0.8, label="front")
    right = quality(facts["float_validation"])
    axes.axhline(right, color="gray", linestyle=":", linewidth=1, label="float student")
    # A cost of 0, of a student without spikes, has no logarithm.
    if min(costs) > 0 and max(costs) > DECADE * min(costs):
        axes.set_xscale("log")
    note = " (a bound is unknown)" if unknown else ""
    axes.set_xlabel(f"{where}, uJ per inference{note}")
    axes.grid(visible=True, alpha=0.3)
