"""The stages of a run: each reads what the one before wrote and leaves its own file, whole or not
at all.

A stage whose files are there does nothing, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from knarr.deploy import (
    lower,
    read_deployable,
    read_net,
    require_lava,
    unrounded_weights,
    write_net,
)
from knarr.deploy import verify as verify_network
from knarr.export import read, require_certified, to_nir, write
from knarr.files import write_atomic
from knarr.hw_sim import (
    ChipNetwork,
    OperationCounts,
    count_events,
    load_recording,
    save_recording,
)
from knarr.hw_sim import simulate as simulate_network
from knarr.pipeline import evaluation_file
from knarr.pipeline.energy_report.accuracy import accuracy_of
from knarr.pipeline.energy_report.facts import TRADE_SAMPLES, energy_of
from knarr.pipeline.energy_report.pricing import Pricing
from knarr.pipeline.energy_report.schema import SCHEMA, read_energy
from knarr.pipeline.energy_report.verdict import verdict
from knarr.pipeline.evaluation import RunEvaluation, check_size
from knarr.pipeline.files import read_json, write_json
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.progress import OnProgress, ignore
from knarr.pipeline.run_folder import (
    BASELINE,
    ENERGY,
    EVALUATION,
    FITTED,
    GRAPH,
    LOWERED,
    NET,
    PICTURES,
    RECORDING,
    VERIFICATION,
    Run,
    open_run,
)
from knarr.pipeline.run_report import missing_pictures
from knarr.train import (
    STUDENT,
    TEACHER,
    Recipe,
    student_predictions,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.chip_fit import CHIP, ChipFit, mean_absolute_error
from knarr.train.clips import Clips, Indices
from knarr.train.datasets.arrays import AnyArray
from knarr.train.datasets.see.windows import WINDOWS
from knarr.train.train import train_validation_split
from knarr.train.train_chip import train_chip

if TYPE_CHECKING:
    import nir

FLOAT_FILES: Final = (TEACHER, STUDENT, GRAPH, f"{GRAPH}.json")
"""Files that a student needs to be lowered and fitted on."""
CERTIFY_SAMPLES: Final = 20
BASELINE_BYTES: Final = 2**30
"""Memory for the clips on which the baseline's zeros are counted; its other counts need no clips.
"""
BASELINE_BATCH: Final = 50
WEIGHTS_IN_WORDS: Final = {
    "last": "weights of the last epoch",
    "val": "weights of the best validation epoch",
    "best_on_test": "weights of the best epoch ON THE TEST SET",
}
"""Setting `fit.select` -> the weights that a fit keeps."""


def run(
    recipe: str | Recipe,
    folder: Path | str | None = None,
    *,
    data: Path | str | None = None,
    settings: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Run:
    """Run all stages of a recipe; called again, it goes on after the last finished one.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a recipe.
        folder: Folder of the run; runs/<recipe name> when left out.
        data: Folder of the data; None where knarr generates them.
        settings: Changes of the recipe, each `path=value`, such as "student.fit.epochs=3".
        on_progress: Called with an event whenever something is done.

    Raises:
        KnarrError: Whatever opening the run or one of its stages refuses.
    """
    opened = open_run(recipe, folder, data=data, settings=settings, on_progress=on_progress)
    # What a late stage lacks is named before the hours of a fit.
    if opened.system.has_baseline and not opened.has(BASELINE):
        import_module("knarr.export.onnx_files")
    if opened.recipe.chip is None and not opened.has(GRAPH):  # with it, opening has looked
        opened.system.assert_deployable(opened.data)
    if missing_pictures(opened.folder):
        import_module("knarr.pipeline.pictures.run")
    if not opened.has(VERIFICATION):
        require_lava()
    for stage in STAGES:
        stage(opened)
    return opened


# --- from data to a chip network


def train(run: Run) -> None:
    """Fit the teacher and distil the student from it."""
    on_test = run.recipe.chosen_on_test
    if not run.has(TEACHER) and run.recipe.fit_of("teacher") is not None:
        run.say("Training the teacher")
    show = FitProgress(run.on_progress, "teacher", on_test="teacher" in on_test)
    teacher = train_teacher(run.recipe, run.data, run.folder, (show,))
    if not run.has(STUDENT) and run.recipe.fit_of("student") is not None:
        run.say("Distilling the student" if run.system.has_teacher() else "Training the student")
    show = FitProgress(run.on_progress, "student", on_test="student" in on_test)
    train_student(run.recipe, run.data, teacher, run.folder, (show,))


def export(run: Run) -> None:
    """Write the student as a certified NIR graph, and the teacher, where it is a network, as ONNX to
    compare its cost with.

    Raises:
        ExportError: What cannot be exported, or a graph that differs from the student.
    """
    compares = run.system.has_baseline
    if run.has(GRAPH) and (run.has(BASELINE) or not compares):
        return
    run.say("Exporting: NIR with certificate" + (", ONNX" if compares else ""))
    teacher, student = run.networks()
    train, units = run.data.train, run.data.coding.units
    inputs = train.chip_inputs(np.arange(min(CERTIFY_SAMPLES, len(train.labels))))
    # The chip counts in integers, the float student in units of them.
    samples = inputs.astype(np.float32) / np.float32(units)
    module, dt_s = run.system.deployable(student), run.recipe.data.dt_s
    graph = to_nir(module, samples.shape[2:], dt_s, samples=samples)
    if compares:
        from knarr.export import to_onnx  # an extra that fits do without

        baseline = run.system.baseline(teacher, run.data)
        if isinstance(baseline, bytes):
            write_atomic(run.path(BASELINE), baseline)
        else:
            shape = run.system.baseline_inputs(train.batch(np.arange(1), None)).shape[1:]
            to_onnx(baseline.eval(), tuple(shape), run.path(BASELINE))
    write(graph, run.path(GRAPH))


def deploy(run: Run) -> None:
    """Write student.net: lowered, or with `chip:` lowered (lowered.net) and fitted on.

    chip.json says how the fit went.

    Raises:
        DeployError: A graph that no chip network can hold.
        RuntimeError: The file is not what was fitted, which is a fault in knarr.
    """
    chip = run.recipe.chip
    if run.has(NET) and (chip is None or run.has(FITTED)):
        return
    if chip is None:
        write_net(lower_student(run), run.path(NET))
        return
    if not run.has(LOWERED):
        write_net(lower_student(run), run.path(LOWERED))
    start = read_net(run.path(LOWERED))
    teacher, _ = run.networks()
    run.say(f"Fitting {chip.weight_bits}-bit integers in the chip's arithmetic")
    found = train_chip(
        run.recipe,
        run.data,
        teacher,
        start,
        run.folder,
        unrounded=unrounded_weights(_graph(run), start),
        callbacks=(FitProgress(run.on_progress, CHIP),),
    )
    write_net(found.network, run.path(NET))
    _check_fit(run, found)
    facts = {
        "weight_bits": chip.weight_bits,
        "epoch": found.epoch,
        "acc_goal": found.goal,
        "validation": {"lowered": found.start.to_json(), "kept": found.kept.to_json()},
    }
    # Last, since its presence says that the fit is over.
    write_json(run.path(FITTED), facts)
    run.say(_fit_in_words(found))


def _graph(run: Run) -> nir.NIRGraph:
    """Read a run's graph.

    Raises:
        CertificateError: It was edited or replaced since it was certified.
    """
    path = run.need(GRAPH, "export")
    graph = read(path)
    require_certified(graph, path)
    return graph


def lower_student(run: Run) -> ChipNetwork:
    """Lower a run's graph to integers, with the bits of `chip` where the recipe has it."""
    graph = _graph(run)
    settings, coding, chip = run.recipe.deploy, run.data.coding, run.recipe.chip
    bits = settings.weight_bits if chip is None else chip.weight_bits
    labels, clips = run.data.train.labels, run.on_chip(run.data.train)
    chosen = np.linspace(0, len(labels) - 1, settings.calibration_samples).round().astype(int)
    calibrated = f", calibrated on {len(chosen)} training samples" if len(chosen) else ""
    run.say(f"Lowering to {bits}-bit weights{calibrated}")
    return lower(
        graph,
        run.recipe.data.dt_s,
        weight_bits=bits,
        input_bits=coding.bits,
        input_units=coding.units,
        input_kind=coding.kind,
        input_signed=coding.signed,
        over_time=coding.over_time,
        votes=coding.votes,
        calibration=clips.chip_inputs(chosen) if len(chosen) else None,
        labels=labels[chosen] if len(chosen) and not run.data.targets else None,
        allow_approximate=settings.allow_approximate,
        progress=run.counter("layers"),
    )


def chip_decisions(
    run: Run, network: ChipNetwork, clips: Clips, chosen: Indices | None = None
) -> AnyArray:
    """Return what a chip network of a run sees in each clip.

    Args:
        run: An open run.
        network: The network, on the simulator.
        clips: A split of the run's data.
        chosen: Clips to look at; None for all.

    Returns:
        (N,) classes, or (N, k) float targets.
    """
    indices = np.arange(len(clips.labels)) if chosen is None else chosen
    inputs = run.on_chip(clips).chip_inputs(indices)
    return _seen(run, network, simulate_network(network, inputs).output)


def _seen(run: Run, network: ChipNetwork, output: AnyArray) -> AnyArray:
    return network.values(output) if run.data.targets else network.readout.decide(output)


def fork_run(run: Run, recipe: Recipe, folder: Path) -> Run:
    """Put the same teacher, student and graph in a folder of their own, to be deployed by another
    `chip`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FLOAT_FILES:
        # Copies, so that a later change of one run cannot reach the other.
        if not (folder / name).is_file():
            write_atomic(folder / name, run.path(name).read_bytes())
    return replace(run, recipe=recipe, folder=folder)


def _check_fit(run: Run, found: ChipFit) -> None:
    """Make sure that the file, on the simulator, is as good as training says, to the last digit.

    Raises:
        RuntimeError: It is not, and the file is removed.
    """
    train, (_, validation) = run.data.train, train_validation_split(run.recipe, run.data)
    path = run.path(NET)
    seen, labels = chip_decisions(run, read_net(path), train, validation), train.labels[validation]
    if run.data.targets:
        again = replace(found.kept, mae=mean_absolute_error(seen, labels))
    else:
        again = replace(found.kept, correct=int((seen == labels).sum()))
    if again != found.kept:
        path.unlink()
        raise RuntimeError(
            f"{path}: {again.in_words}, in training {found.kept.in_words}; "
            "this is a fault in knarr, report it"
        )


def _fit_in_words(found: ChipFit) -> str:
    before, after = found.start, found.kept
    kept = "no epoch was better than the lowered network, which is kept"
    if found.epoch is not None:
        kept = f"epoch {found.epoch + 1} is kept"
    missed = ""
    if found.goal is not None and after.accumulates > found.goal:
        missed = f"; the goal of {found.goal:,.0f} was NOT met, give it more epochs or acc_weight"
    return (
        f"  {kept}: {after.in_words}, lowered "
        f"{before.correct if before.mae is None else f'{before.mae:.4g}'}; {after.accumulates:,.0f} ACC per inference, "
        f"lowered {before.accumulates:,.0f}{missed}"
    )


# --- what the networks see


def chip_samples(
    run: Run, split: Literal["test", "validation"] = "test"
) -> tuple[npt.NDArray[Any], Indices | None]:
    """Return a run's clips as the chip takes them, and their classes.

    Args:
        run: An open run.
        split: "test", or the training clips that the run validates on.

    Returns:
        (N, T, *features) integers, and (N,) classes; None in their place where labels are float
        targets.
    """
    clips = run.data.test
    chosen = np.arange(len(clips.labels))
    if split == "validation":
        clips = run.data.train
        _, chosen = train_validation_split(run.recipe, run.data)
    labels = None if run.data.targets else clips.labels[chosen]
    return run.on_chip(clips).chip_inputs(chosen), labels


def record(run: Run) -> None:
    """Run the whole test set on the chip simulator."""
    if run.has(RECORDING):
        return
    run.say("Simulating the chip on the test set")
    network = read_net(run.need(NET, "deploy"))
    inputs, _ = chip_samples(run)
    recording = simulate_network(network, inputs, record=("output", "spikes"))
    save_recording(recording, run.path(RECORDING))


def simulate(run: Run) -> None:
    """Run the whole test set on the chip simulator, and write what every network sees in it.

    An evaluation of more passes that was made before the run had a chip is made again as it was.
    """
    record(run)
    windows, seed = 1, 0
    if run.has(EVALUATION):
        found = evaluation_file.read(run.path(EVALUATION))
        if _on_chip(run) <= found.predicted.keys():
            return
        windows, seed = max(map(len, found.predicted.values())), found.seed
    # What the chip sees at first stands in the recording.
    recording = load_recording(run.path(RECORDING))
    decided = _seen(run, read_net(run.need(NET, "deploy")), recording.output)
    _evaluate(run, windows, seed, lambda done, total: None, decided)


def evaluate(run: Run, *, windows: int = WINDOWS, seed: int = 0) -> RunEvaluation:
    """Write evaluation.json: what teacher, student and, where it was deployed, chip see in each
    test clip.

    Args:
        run: A trained run.
        windows: Passes over a test set that is seen through random windows; others are seen once.
        seed: Seed of the windows, and of the bootstrap.

    Raises:
        RecipeError: It is not trained yet.
        EvaluationError: A test set that cannot be measured, or more windows than a measure may
            take.
    """
    data = run.data
    if data.sampling is not None:
        # Before passes are drawn, which would take all memory first.
        classes = len(data.class_names)
        check_size(windows, classes, data.subjects, data.lights, RunEvaluation.draws)
    return _evaluate(run, windows, seed, run.counter("passes over the test set"))


def _on_chip(run: Run) -> set[str]:
    """Return the networks of an evaluation that are chip networks of this run."""
    return {name for name, file in (("chip", NET), ("lowered", LOWERED)) if run.has(file)}


def _evaluate(
    run: Run,
    windows: int,
    seed: int,
    show: Callable[[int, int], None],
    decided: AnyArray | None = None,
) -> RunEvaluation:
    """Evaluate a run; `decided` is what the chip sees in the first pass, where that is known."""
    data, recipe = run.data, run.recipe
    teacher, student = run.networks()
    passes = run.system.passes(data, windows, seed)
    chip = read_net(run.path(NET)) if run.has(NET) else None
    predicted: dict[str, list[AnyArray]] = {}
    for number, clips in enumerate(passes, start=1):
        if run.system.has_teacher(clips):
            seen = teacher_predictions(recipe, teacher, clips)
            predicted.setdefault("teacher", []).append(seen)
        predicted.setdefault("student", []).append(student_predictions(recipe, student, clips))
        if chip is not None:
            known = None if number > 1 else decided
            seen = chip_decisions(run, chip, clips) if known is None else known
            predicted.setdefault("chip", []).append(seen)
        show(number, len(passes))
    if run.has(LOWERED):
        # The chip without the fit of its integers, once: nobody asks for its interval.
        predicted["lowered"] = [chip_decisions(run, read_net(run.path(LOWERED)), data.test)]
    samples = len(data.test.labels)
    found = RunEvaluation(
        data=data.name,
        classes=data.class_names,
        targets=data.targets,
        # Numbers serve one test set; folds are pooled by names alone.
        names=data.names or tuple(f"{number}" for number in range(samples)),
        labels=data.test.labels,
        predicted={name: np.stack(rows) for name, rows in predicted.items()},  # type: ignore[misc]  # a dict of literals
        subjects=data.subjects,
        lights=data.lights,
        protocol=_protocol(run),
        sampling=data.sampling,
        folds=None if data.fold is None else np.full(samples, data.fold, np.int64),
        fold_count=data.fold_count,
        seed=seed,
    )
    evaluation_file.write(run.path(EVALUATION), found)
    return found


def _protocol(run: Run) -> str:
    teacher, student = (
        "weights as given" if fit is None else WEIGHTS_IN_WORDS[fit.select]
        for fit in map(run.recipe.fit_of, ("teacher", "student"))
    )
    alike = teacher == student or not run.system.has_teacher()
    words = student if alike else f"teacher: {teacher}, student: {student}"
    chip = run.recipe.chip
    if chip is not None:
        steps = "" if chip.timesteps is None else f" of the first {chip.timesteps} steps"
        words += f"; chip: {chip.weight_bits}-bit integers of the best validation epoch{steps}"
    return f"{run.data.protocol}; {words}" if run.data.protocol else words


# --- proof and cost


def verify(run: Run, *, samples: int | None = None, again: bool = False) -> None:
    """Compare Norse, NIR, simulator and Lava on the first test samples.

    Args:
        run: Exported and deployed.
        samples: Test samples; the recipe's `deploy.lava_samples` when left out.
        again: Whether to verify a run that was verified before.

    Raises:
        LavaError: Lava is not there, or fails.
    """
    if run.has(VERIFICATION) and not again:
        return
    chosen = np.arange(min(samples or run.recipe.deploy.lava_samples, len(run.data.test.labels)))
    run.say(f"Verifying on {len(chosen)} test samples: Norse, NIR, simulator, Lava")
    _, student = run.networks()
    result = verify_network(
        _graph(run),
        run.need(NET, "deploy"),
        run.on_chip(run.data.test).chip_inputs(chosen),
        run.recipe.data.dt_s,
        module=run.system.deployable(student),
        labels=None if run.data.targets else run.data.test.labels[chosen],
        progress=run.counter("Lava steps"),
    )
    # A picture of an earlier verification must not outlive it, should this process be killed.
    (run.path(PICTURES) / "verification.png").unlink(missing_ok=True)
    write_json(run.path(VERIFICATION), result.to_json())
    draw_pictures(run, "verification")


def energy(run: Run) -> None:
    """Write energy.json: what an inference of chip and teacher costs, on the test set.

    One that an older knarr wrote is made anew, and how right both sides are is brought up to date.

    Raises:
        RunError: An energy.json that is damaged.
    """
    path = run.path(ENERGY)
    if run.has(ENERGY):
        if read_json(path).get("schema") == SCHEMA:
            _bring_up_to_date(run, path)
            return
        run.say(f"{path}: written by another knarr; counting anew")
        (run.path(PICTURES) / "energy.png").unlink(missing_ok=True)
    run.say("Counting operations")
    recording = load_recording(run.need(RECORDING, "pipeline"))
    network = read_net(run.need(NET, "deploy"))
    # The recording has all events, so that nothing is simulated again.
    counts = count_events(network, chip_samples(run)[0], recording)
    facts = price_run(replace(run, on_progress=ignore), Pricing(), counts=counts)
    write_json(path, facts)


def _bring_up_to_date(run: Run, path: Path) -> None:
    """Put the run's evaluation beside its energy, where it was made later or made again."""
    facts = read_energy(path)
    found = _accuracy(run)
    if found is not None and found != facts["accuracy"]:
        facts = {**facts, "accuracy": found}
        write_json(path, {**facts, "verdict": verdict(facts)})


def _accuracy(run: Run) -> dict[str, Any] | None:
    if not run.has(EVALUATION):
        return None
    return accuracy_of(evaluation_file.read(run.path(EVALUATION)))


def price_run(
    run: Run,
    pricing: Pricing,
    *,
    counts: OperationCounts | None = None,
    baseline_inputs: npt.NDArray[Any] | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """Price a run's inferences as asked; the run's own energy.json stays as it is.

    Args:
        run: Deployed and exported.
        pricing: Prices and models.
        counts: Operations of the chip network on the test set; counted when left out.
        baseline_inputs: Inputs of the baseline; the test samples when left out.
        measure: Whether to measure the baseline on this machine.

    Returns:
        The content of energy.json.
    """
    train, (inputs, labels) = run.data.train, chip_samples(run)
    files = {name: run.path(name) for name in (GRAPH, NET) if run.has(name)}
    # What a change would buy is for choosing one, so it is shown on training samples.
    chosen = np.arange(min(TRADE_SAMPLES, len(train.labels)))
    baseline = None
    if run.system.has_baseline:
        baseline = run.need(BASELINE, "export")
        baseline_inputs = _baseline_inputs(run) if baseline_inputs is None else baseline_inputs
        files[BASELINE] = baseline
    return energy_of(
        read_deployable(run.need(NET, "deploy"), "counted"),
        inputs,
        pricing,
        labels=labels,
        counts=counts,
        baseline=baseline,
        baseline_inputs=baseline_inputs,
        choosing=(
            run.on_chip(train).chip_inputs(chosen),
            None if run.data.targets else train.labels[chosen],
        ),
        measure=measure,
        accuracy=_accuracy(run),
        files=files,
        on_progress=run.on_progress,
    )


def _baseline_inputs(run: Run) -> npt.NDArray[np.float32]:
    """Return (n, *features) of the test set: all of it, or as many evenly spaced clips as
    BASELINE_BYTES hold.
    """
    test, whole = run.data.test, len(run.data.test.labels)

    def inputs_of(chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return run.system.baseline_inputs(test.batch(chosen, None)).numpy()

    wanted = min(whole, max(1, BASELINE_BYTES // inputs_of(np.arange(1)).nbytes))
    kept = np.linspace(0, whole - 1, wanted).round().astype(np.int64)
    # In batches: floats of a whole test set would lie in memory twice.
    batches = np.array_split(kept, np.arange(BASELINE_BATCH, len(kept), BASELINE_BATCH))
    return np.concatenate([inputs_of(batch) for batch in batches])


def draw_pictures(run: Run, again: str | None = None) -> None:
    """Draw samples, raster, energy and verification; those already there are kept.

    Args:
        run: A run with all files that the pictures show.
        again: Name of the one picture to draw, whether or not it is there; None for all.
    """
    from knarr.pipeline.pictures.run import draw_run  # matplotlib takes a second

    draw_run(run, again)


STAGES: Final[tuple[Callable[[Run], Any], ...]] = (
    train,
    export,
    deploy,
    simulate,
    verify,
    energy,
    draw_pictures,
)
"""All stages in their order."""
