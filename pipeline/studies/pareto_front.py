"""Pareto searches: one float student, fitted on in the chip's arithmetic at each of several costs,
and which are worth it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from knarr.deploy import DeployError, read_net
from knarr.hw_sim import ChipError, count_events, price, simulate
from knarr.pipeline import stages
from knarr.pipeline.energy_facts import Pricing
from knarr.pipeline.files import read_json, write_json, write_png
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
from knarr.pipeline.studies.pictures import draw_pareto
from knarr.pipeline.studies.results import (
    BITS,
    PARETO_PICTURE,
    SHARE,
    STEPS,
    ParetoPoint,
    ParetoResult,
    fronted,
)
from knarr.pipeline.studies.sweep_file import Sweep, SweepSettings
from knarr.pipeline.studies.sweeps import run_sweep
from knarr.train import Recipe, RecipeError, student_predictions
from knarr.train.recipe import load_recipe, parse_setting, with_settings
from knarr.train.settings import ChipSettings, SettingsError
from knarr.train.systems.registry import check_networks
from knarr.train.train import train_validation_split

POINT, FLOAT = "point.json", "float"


def pareto(
    name: str,
    *,
    bits: Sequence[int],
    steps: Sequence[int] = (),
    shares: Sequence[float] = (1.0,),
    model: str = "paper",
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
        model: Energy model by which the front is found.
        data: Folder of the data; None where knarr generates them.
        out: Folder of the search; runs/pareto-<recipe> when left out.
        changes: `path=value` of settings.
        storage: Address of a database; None for a SQLite file in `out`.
        on_progress: Called with the progress of the search and of its fits.

    Raises:
        RecipeError: Settings that do not fit, or a model or settings that do not exist.
        StudyError: The storage does not answer or holds another search.
    """
    models = [_label(*pair) for pair in Pricing().pairs()]
    if model not in models:
        raise RecipeError(f"--model: '{model}' does not exist; choose from {', '.join(models)}")
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
    root = read_run(base.folder)[1]

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
    points = []
    for trial in result.trials:
        if trial.state == "finished":
            parameters = {**trial.parameters, STEPS: trial.parameters[STEPS] or length}
            points.append(ParetoPoint(parameters, read_json(folder / trial.folder / POINT)))
    found = ParetoResult(
        recipe.name,
        model,
        folder,
        _float_validation(base),
        tuple(fronted(points, model)),
        tuple(trial for trial in result.trials if trial.reason),
    )
    if points:
        write_png(folder / PARETO_PICTURE, draw_pareto(found.points, found.to_json()))
    return found


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
    settings = SweepSettings.model_validate(
        {
            "name": f"pareto-{recipe.name}"[:100],
            "recipe": name,
            "sampler": "grid",
            "search": {path: {"values": values} for path, values in searched.items()},
        }
    )
    # What is searched is taken out of the recipe's own block.
    chip = (recipe.chip or ChipSettings()).model_copy(
        update={"acc_per_inference": None, "acc_share": None, "timesteps": None}
    )
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
    facts = _measured(run)
    write_json(run.path(POINT), facts)
    return float(facts["validation"]["correct"] / facts["validation"]["clips"])


def _measured(run: Run) -> dict[str, Any]:
    """Return accuracy on validation and test clips, and what an inference on the former costs."""
    fitted = read_json(run.path(FITTED))
    network = read_net(run.path(NET))
    _, chosen = train_validation_split(run.recipe, run.data)
    inputs = run.on_chip(run.data.train).chip_inputs(chosen)
    counts = count_events(network, inputs, simulate(network, inputs, record=("output", "spikes")))
    # Beside the front and without a say in it, so their cost is not counted.
    test = run.data.test
    right = int((stages.chip_decisions(run, network, test) == test.labels).sum())
    pricing = Pricing()
    energy = {}
    for model, profile in pricing.pairs():
        priced = price(counts, profile, model=model, options=pricing.options)
        energy[_label(model, profile)] = {
            name: getattr(priced, name) for name in ("nominal_pj", "lo_pj", "hi_pj", "provenance")
        }
    return {
        "epoch": fitted["epoch"],
        "acc_goal": fitted["acc_goal"],
        "validation": fitted["validation"]["kept"],
        "lowered": fitted["validation"]["lowered"],
        "test": {"clips": len(test.labels), "correct": right},
        "counts": {name: float(getattr(counts.total, name)) for name in ("acc", "mac", "spikes")},
        "energy": energy,
    }


def _float_validation(base: Run) -> dict[str, int]:
    train, (_, chosen) = base.data.train, train_validation_split(base.recipe, base.data)
    seen = student_predictions(base.recipe, base.networks()[1], train, chosen)
    return {"clips": len(chosen), "correct": int((seen == train.labels[chosen]).sum())}


def _label(model: str, profile: Any) -> str:
    # Only the chip's model has several profiles.
    return model if model != "chip" else f"chip:{profile.name}"
