"""Accuracies of both sides beside what they cost: a cheaper network that is worse proves little."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from knarr.hw_sim import ChipNetwork, Readout, simulate
from knarr.pipeline.evaluation import RunEvaluation
from knarr.pipeline.measures import paired_difference, wilson

if TYPE_CHECKING:
    import nir

ACCURACY: Final = "accuracy"
ERROR: Final = "mean absolute error"
Scores = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def accuracy_of(evaluation: RunEvaluation) -> dict[str, Any]:
    """Return what the chip and the teacher see in a run's test samples, and their difference.

    Args:
        evaluation: Of the run.

    Returns:
        `accuracy` of energy.json: the value of each side with an interval, and the difference,
        paired by sample and drawn by people where samples are somebody's.
    """
    scores = {name: _scores(evaluation, name) for name in evaluation.predicted}
    return accuracy(
        scores.get("chip", scores.get("student")),
        scores.get("teacher"),
        subjects=evaluation.subjects,
        measure=ERROR if evaluation.targets else ACCURACY,
        level=evaluation.level,
        draws=evaluation.draws,
        seed=evaluation.seed,
    )


def accuracy(
    student: Scores | None,
    baseline: Scores | None,
    *,
    subjects: tuple[str, ...] | None = None,
    measure: str = ACCURACY,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    why_unknown: str = "",
) -> dict[str, Any]:
    """Return the same of scores.

    Args:
        student, baseline: (N,) what each network scores on each sample, 0 .. 1 or an error; None
            where nobody knows.
        subjects: (N,) person of each sample; None counts each as independent.
        measure: What a score is.
        level, draws, seed: Of the bootstrap.
        why_unknown: Why a side is None.
    """
    told = {"subjects": subjects, "level": level, "draws": draws, "seed": seed}
    sides = {"student": student, "baseline": baseline}
    found: dict[str, Any] = {
        name: None if scores is None else _estimate(scores, measure, told)
        for name, scores in sides.items()
    }
    difference = None
    if student is not None and baseline is not None:
        paired = paired_difference(baseline, student, **told)  # type: ignore[arg-type]  # a dict of literals
        difference = {"low": paired.lo, "nominal": paired.value, "high": paired.hi, "unit": ""}
        if paired.lo is None:
            why_unknown = "the samples are one person's" if subjects else "one sample"
        difference["why_unknown"] = why_unknown if paired.lo is None else ""
    elif baseline is None and not why_unknown:
        why_unknown = "it was not evaluated"
    people = len(set(subjects or ()))
    known = student if student is not None else baseline
    return {
        "measure": measure,
        **found,
        "difference": difference,
        "samples": 0 if known is None else len(known),
        "people": people or None,
        "level": level,
        "why_unknown": why_unknown,
    }


def accuracy_of_files(
    model: nir.NIRGraph | ChipNetwork,
    inputs: Array,
    labels: Array,
    *,
    dt_s: float | None = None,
    readout: Readout | None = None,
    baseline: Path | None = None,
    baseline_inputs: Array | None = None,
) -> dict[str, Any]:
    """Return how right a network and an ONNX file are on the same samples.

    Args:
        model: A NIR graph or a chip network.
        inputs: (samples, timesteps, *features); integers of the chip for a chip network.
        labels: (samples,) classes.
        dt_s: Time step of a graph, seconds.
        readout: How a graph's output is read; a chip network has its own.
        baseline: The file, None for none.
        baseline_inputs: One for each label; None runs nothing.
    """
    if isinstance(model, ChipNetwork):
        decided = model.readout.decide(simulate(model, inputs).output)
    else:
        from knarr.export.graph.step import step_nir

        output = step_nir(model, inputs, dt_s or 0.0).output
        flat = output.reshape(*output.shape[:2], -1)
        decided = (readout or Readout("spikes")).decide(flat)
    theirs, why = None, ""
    if baseline is not None and baseline_inputs is None:
        why = "it needs --baseline-data, one input for each label"
    elif baseline_inputs is not None and len(baseline_inputs) != len(labels):
        why = "--baseline-data does not give one input for each label"
    elif baseline is not None and baseline_inputs is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(baseline, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        seen = [session.run(None, {name: one[None]})[0].argmax() for one in baseline_inputs]
        theirs = (np.array(seen) == labels).astype(np.float64)
    return accuracy((decided == labels).astype(np.float64), theirs, why_unknown=why)


def _scores(evaluation: RunEvaluation, network: Any) -> Scores:
    """Return (N,) the share of passes that were right, or the mean absolute error."""
    seen = evaluation.predicted[network]
    if evaluation.targets:
        errors: Scores = np.abs(seen - evaluation.labels).mean(axis=(0, 2))
        return errors
    right: Scores = (seen == evaluation.labels).mean(axis=0)
    return right


def _estimate(scores: Scores, measure: str, told: dict[str, Any]) -> dict[str, Any]:
    value = float(scores.mean())
    if measure == ACCURACY and told["subjects"] is None:
        bounds = wilson(value, len(scores), told["level"])
        low, high, why = bounds.lo, bounds.hi, ""
    else:
        # Against zeros, a difference is the value itself.
        drawn = paired_difference(np.zeros(len(scores)), scores, **told)
        low, high = drawn.lo, drawn.hi  # type: ignore[assignment]  # None with one person
        why = "" if drawn.lo is not None else "the samples are one person's"
    return {"low": low, "nominal": value, "high": high, "unit": "", "why_unknown": why}
