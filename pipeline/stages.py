"""The stages of a run: each reads what the one before wrote and leaves its own file, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from knarr.deploy import DeployError, check, fatal, lower, read_net, unrounded_weights, write_net
from knarr.deploy import verify as verify_network
from knarr.export import read, to_nir, to_onnx, write
from knarr.files import write_atomic
from knarr.hw_sim import ChipNetwork, count_events, count_onnx, load_recording, save_recording
from knarr.hw_sim import simulate as simulate_network
from knarr.hw_sim.energy import baseline, what_if
from knarr.pipeline.energy_facts import DIGITAL as PROFILE
from knarr.pipeline.energy_facts import (
    NOT_ASKED,
    TRADE_SAMPLES,
    Pricing,
    energy_facts,
    energy_of,
)
from knarr.pipeline.files import write_json
from knarr.pipeline.fit_progress import FitProgress
from knarr.pipeline.progress import OnProgress
from knarr.pipeline.run_folder import (
    ACCURACY,
    BASELINE,
    ENERGY,
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
from knarr.train import (
    Recipe,
    student_predictions,
    teacher_predictions,
    train_student,
    train_teacher,
)
from knarr.train.clips import Clips, Indices
from knarr.train.train import STUDENT, TEACHER, train_validation_split
from knarr.train.train_chip import CHIP, ChipFit, train_chip

FLOAT_FILES: Final = (TEACHER, STUDENT, GRAPH, f"{GRAPH}.json")
"""Files that a student needs to be lowered and fitted on."""
CERTIFY_SAMPLES = 20
BASELINE_BYTES = 2**30
"""Of the clips on which the baseline's zeros are counted; its other counts do not depend on them."""
BASELINE_BATCH = 50


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
        KnarrError: Whatever a stage refuses, see `open_run` and the stages.
    """
    opened = open_run(recipe, folder, data=data, settings=settings, on_progress=on_progress)
    for stage in STAGES:
        stage(opened)
    return opened


def train(run: Run) -> None:
    on_test = run.recipe.chosen_on_test
    if not run.has(TEACHER):
        run.say("Training the teacher")
    show = FitProgress(run.on_progress, "teacher", on_test="teacher" in on_test)
    teacher = train_teacher(run.recipe, run.data, run.folder, (show,))
    if not run.has(STUDENT):
        run.say("Distilling the student")
    show = FitProgress(run.on_progress, "student", on_test="student" in on_test)
    train_student(run.recipe, run.data, teacher, run.folder, (show,))


def export(run: Run) -> None:
    if run.has(GRAPH, BASELINE):
        return
    run.say("Exporting: NIR with certificate, ONNX")
    teacher, student = run.networks()
    train, coding = run.data.train, run.data.coding
    inputs = train.chip_inputs(np.arange(min(CERTIFY_SAMPLES, len(train.labels))))
    samples = inputs.astype(np.float32) / np.float32(coding.units)
    graph = to_nir(
        run.system.deployable(student), samples.shape[2:], run.recipe.data.dt_s, samples=samples
    )
    baseline = run.system.baseline(teacher, run.data).eval()
    shape = run.system.baseline_inputs(train.batch(np.arange(1), None)).shape[1:]
    to_onnx(baseline, tuple(shape), run.path(BASELINE))
    write(graph, run.path(GRAPH))


def deploy(run: Run) -> None:
    """Write student.net: lowered, or with `chip:` lowered (lowered.net) and fitted on (chip.json says how that went)."""
    if run.has(NET) and (run.recipe.chip is None or run.has(FITTED)):
        return
    if run.recipe.chip is None:
        write_net(lowered(run), run.path(NET))
        return
    if not run.has(LOWERED):
        write_net(lowered(run), run.path(LOWERED))
    start = read_net(run.path(LOWERED))
    teacher, _ = run.networks()
    run.say(f"Fitting {run.recipe.chip.weight_bits}-bit integers in the chip's arithmetic")
    found = train_chip(
        run.recipe,
        run.data,
        teacher,
        start,
        run.folder,
        unrounded=unrounded_weights(read(run.path(GRAPH)), start),
        callbacks=(FitProgress(run.on_progress, CHIP),),
    )
    write_net(found.network, run.path(NET))
    _check(run, run.path(NET), found)
    facts = {
        "weight_bits": run.recipe.chip.weight_bits,
        "epoch": found.epoch,
        "acc_goal": found.goal,
        "validation": {"lowered": asdict(found.start), "kept": asdict(found.kept)},
    }
    write_json(run.path(FITTED), facts)
    run.say(_said(found))


def lowered(run: Run) -> ChipNetwork:
    """The run's graph in integers, with the bits of `chip` where the recipe has it."""
    graph = read(run.need(GRAPH, "export"))
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
        over_time=coding.over_time,
        votes=coding.votes,
        calibration=clips.chip_inputs(chosen) if len(chosen) else None,
        labels=labels[chosen] if len(chosen) else None,
        allow_approximate=settings.allow_approximate,
        progress=run.counter("layers"),
    )


def decided(run: Run, network: ChipNetwork, clips: Clips, chosen: Indices | None = None) -> Indices:
    """(N,) class that a chip network of a run sees in each clip, or in each of the chosen ones."""
    indices = np.arange(len(clips.labels)) if chosen is None else chosen
    return network.readout.decide(
        simulate_network(network, run.on_chip(clips).chip_inputs(indices)).output
    )


def fork_run(run: Run, recipe: Recipe, folder: Path) -> Run:
    """The same teacher, student and graph in a folder of their own, to be deployed by another `chip`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FLOAT_FILES:
        if not (folder / name).is_file():
            write_atomic(folder / name, run.path(name).read_bytes())
    return replace(run, recipe=recipe, folder=folder)


def _check(run: Run, path: Path, found: ChipFit) -> None:
    """The file, on the simulator, is right as often as the training log says.

    Raises:
        RuntimeError: it is not, and the file is removed.
    """
    train, (_, validation) = run.data.train, train_validation_split(run.recipe, run.data)
    correct = int(
        (decided(run, read_net(path), train, validation) == train.labels[validation]).sum()
    )
    if correct != found.kept.correct:
        path.unlink()
        raise RuntimeError(
            f"{path}: right on {correct} validation clips, in training on {found.kept.correct}; this is a fault in knarr, report it"
        )


def _said(found: ChipFit) -> str:
    before, after = found.start, found.kept
    how = (
        "no epoch was better than the lowered network, which is kept"
        if found.epoch is None
        else f"epoch {found.epoch + 1} is kept"
    )
    missed = found.goal is not None and after.accumulates > found.goal
    what = (
        f"; the goal of {found.goal:,.0f} was NOT met, give it more epochs or acc_weight"
        if missed
        else ""
    )
    return (
        f"  {how}: {after.correct} of {after.clips} validation clips right, lowered {before.correct}; "
        f"{after.accumulates:,.0f} ACC per inference, lowered {before.accumulates:,.0f}{what}"
    )


def simulate(run: Run) -> None:
    """The whole test set on the chip simulator, and how often teacher, student and chip are right."""
    if run.has(RECORDING, ACCURACY):
        return
    run.say("Simulating the chip on the test set")
    network = read_net(run.need(NET, "deploy"))
    test = run.data.test
    inputs = run.on_chip(test).chip_inputs(np.arange(len(test.labels)))
    recording = simulate_network(network, inputs, record=("output", "spikes"))
    teacher, student = run.networks()
    chosen = {
        "teacher": teacher_predictions(run.recipe, teacher, test),
        "student": student_predictions(run.recipe, student, test),
        "chip": network.readout.decide(recording.output),
    }
    if run.has(LOWERED):
        # What the chip would have been without fitting its integers on.
        chosen["lowered"] = decided(run, read_net(run.path(LOWERED)), test)
    correct = {name: int((picked == test.labels).sum()) for name, picked in chosen.items()}
    save_recording(recording, run.path(RECORDING))
    facts = {"samples": len(test.labels), "correct": correct}
    on_test = run.recipe.chosen_on_test
    write_json(run.path(ACCURACY), facts | ({"chosen_on_test": on_test} if on_test else {}))


def verify(run: Run, *, samples: int | None = None, again: bool = False) -> None:
    """Norse, NIR, simulator and Lava on the first test samples."""
    if run.has(VERIFICATION) and not again:
        return
    chosen = np.arange(min(samples or run.recipe.deploy.lava_samples, len(run.data.test.labels)))
    run.say(f"Verifying on {len(chosen)} test samples: Norse, NIR, simulator, Lava")
    _, student = run.networks()
    result = verify_network(
        read(run.need(GRAPH, "export")),
        run.need(NET, "deploy"),
        run.on_chip(run.data.test).chip_inputs(chosen),
        run.recipe.data.dt_s,
        module=run.system.deployable(student),
        labels=run.data.test.labels[chosen],
        progress=run.counter("Lava steps"),
    )
    (run.path(PICTURES) / "verification.png").unlink(missing_ok=True)  # of an earlier verification
    write_json(run.path(VERIFICATION), result.to_json())
    from knarr.pipeline.pictures import run as draw

    draw.redraw_verification(run)


def energy(run: Run) -> None:
    """Counts and prices of chip and teacher, per inference on the test set."""
    if run.has(ENERGY):
        return
    run.say("Counting operations")
    network, recording = (
        read_net(run.need(NET, "deploy")),
        load_recording(run.need(RECORDING, "pipeline")),
    )
    test = run.data.test
    everything = np.arange(len(test.labels))
    student = count_events(network, run.on_chip(test).chip_inputs(everything), recording)
    path, frames = run.need(BASELINE, "export"), _baseline_inputs(run)
    teacher = count_onnx(path, frames)
    # What a change would buy is for choosing one, so it is shown on training samples.
    chosen = np.arange(min(TRADE_SAMPLES, len(run.data.train.labels)))
    shown = run.on_chip(run.data.train).chip_inputs(chosen)
    trades = what_if(network, shown, PROFILE, labels=run.data.train.labels[chosen])
    measured = baseline(path, None, counts=teacher).to_json()
    measured |= {"gpu_refused": NOT_ASKED, "cpu_refused": NOT_ASKED}
    of = f"{len(chosen)} training samples"
    facts = energy_facts(
        student, teacher, Pricing(), trades=trades, trades_of=of, measured=measured
    )
    write_json(run.path(ENERGY), facts)


def price_run(
    run: Run,
    pricing: Pricing,
    *,
    baseline_inputs: npt.NDArray[Any] | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """Count a run's inferences anew and price them as asked; the run's own energy.json stays as it is.

    Args:
        run: Deployed and exported.
        pricing: Prices and models.
        baseline_inputs: Inputs of the baseline; its test samples when left out.
        measure: Whether to measure the baseline on this machine.
    """
    train, (inputs, labels) = run.data.train, chip_samples(run)
    chosen = np.arange(min(TRADE_SAMPLES, len(train.labels)))
    return energy_of(
        read_deployable(run.need(NET, "deploy"), "counted"),
        inputs,
        pricing,
        labels=labels,
        baseline=run.need(BASELINE, "export"),
        baseline_inputs=_baseline_inputs(run) if baseline_inputs is None else baseline_inputs,
        choosing=(run.on_chip(train).chip_inputs(chosen), train.labels[chosen]),
        measure=measure,
        on_progress=run.on_progress,
    )


def read_deployable(path: Path, verb: str) -> ChipNetwork:
    """Read a .net file that a chip can run.

    Args:
        path: The file.
        verb: What would be done with it ("simulated"), for the error.

    Raises:
        DeployError: No netx file, or one that breaks a rule of the chip.
    """
    network = read_net(path)
    broken = fatal(check(network))
    if broken:
        raise DeployError(f"{path}: not {verb}, no chip runs it: {broken[0]}")
    return network


def chip_samples(
    run: Run, split: Literal["test", "validation"] = "test"
) -> tuple[npt.NDArray[Any], Indices]:
    """Return a run's clips as the chip takes them, and their labels.

    Args:
        run: An open run.
        split: "test", or the training clips that the run validates on.

    Returns:
        (N, T, *features) integers, and (N,) classes.
    """
    clips = run.data.test
    chosen = np.arange(len(clips.labels))
    if split == "validation":
        clips = run.data.train
        _, chosen = train_validation_split(run.recipe, run.data)
    return run.on_chip(clips).chip_inputs(chosen), clips.labels[chosen]


def _baseline_inputs(run: Run) -> npt.NDArray[np.float32]:
    """(n, *features) of the test set: all of it, or as many evenly spaced clips as BASELINE_BYTES hold."""
    test, whole = run.data.test, len(run.data.test.labels)

    def part(chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return run.system.baseline_inputs(test.batch(chosen, None)).numpy()

    each = part(np.arange(1)).nbytes
    kept = (
        np.linspace(0, whole - 1, min(whole, max(1, BASELINE_BYTES // each)))
        .round()
        .astype(np.int64)
    )
    return np.concatenate(
        [part(kept[at : at + BASELINE_BATCH]) for at in range(0, len(kept), BASELINE_BATCH)]
    )


def draw_pictures(run: Run) -> None:
    from knarr.pipeline.pictures import run as draw

    draw.draw_all(run)


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
