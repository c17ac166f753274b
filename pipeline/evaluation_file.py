"""The file `evaluation.json`: what a run's networks saw in each test sample.

Predictions are stored, so that folds can be pooled into one result over all people. Measures are
not: they follow from the predictions and are computed after reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from knarr.files import write_atomic
from knarr.hw_sim.json_values import plain
from knarr.pipeline.evaluation import SHARED, EvaluationError, RunEvaluation, StoredNetwork
from knarr.pipeline.measures import Measures
from knarr.pipeline.value_measures import ValueMeasures

MAX_BYTES: Final = 32 << 20  # 20 windows of DEAP's 19,200 take 1.5 MB


def measures_json(measures: Measures | ValueMeasures) -> dict[str, Any]:
    """Return measures as plain data with the names of their class; rates are 0 .. 1."""
    return plain(measures)


def evaluation_json(evaluation: RunEvaluation) -> dict[str, Any]:
    """Return an evaluation as the file holds it."""
    samples = ("names", "labels", "folds", "subjects", "lights")
    shared = {field: plain(getattr(evaluation, field)) for field in SHARED}
    if not evaluation.targets:
        del shared["targets"]  # of classes the file is what it always was
    return {
        "format": 2,
        **shared,
        "samples": {field: plain(getattr(evaluation, field)) for field in samples},
        "networks": {
            network: {"predicted": rows.tolist()} for network, rows in evaluation.predicted.items()
        },
    }


def write(path: Path, evaluation: RunEvaluation) -> None:
    """Write `evaluation.json`, whole or not at all.

    Raises:
        OSError: It cannot be written.
        EvaluationError: It is larger than such a file may be.
    """
    content = (_text(evaluation_json(evaluation)) + "\n").encode()
    if len(content) > MAX_BYTES:
        raise EvaluationError(f"{path}: {len(content)} bytes > {MAX_BYTES}; evaluate fewer windows")
    write_atomic(path, content)


def _text(value: object, indent: str = "") -> str:
    """Return JSON with one line for each entry, a list in one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = f"{indent} "
    lines = (f"{inner}{json.dumps(key)}: {_text(item, inner)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


# --- reading: a file of another machine may hold anything

PRINTABLE: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"  # a terminal obeys the others
Name = Annotated[str, Field(min_length=1, max_length=300, pattern=PRINTABLE)]
Class = Annotated[int, Field(ge=0, lt=1000)]
Value = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Label = TypeVar("Label")
"""A class, or the float targets of a sample."""


class _Samples(_Strict, Generic[Label]):
    names: list[Name]
    labels: list[Label]
    folds: list[Annotated[int, Field(ge=0, lt=100_000)]]
    subjects: list[Name] | None
    lights: list[Name] | None


class _Predicted(_Strict, Generic[Label]):
    predicted: list[list[Label]]


class _File(_Strict, Generic[Label]):
    format: Literal[2]
    data: Name
    classes: list[Name]
    targets: list[Name] = []
    task: Name | None
    protocol: Annotated[str, Field(max_length=1000, pattern=PRINTABLE)]
    sampling: Name | None
    fold_count: Annotated[int, Field(ge=1, le=100_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    level: Annotated[float, Field(gt=0, lt=1)]
    draws: Annotated[int, Field(ge=1, le=100_000)]
    samples: _Samples[Label]
    networks: dict[StoredNetwork, _Predicted[Label]]


def read(path: Path) -> RunEvaluation:
    """Read `evaluation.json`.

    Raises:
        EvaluationError: It is not there, too large, or not such a file; names the file, the place
            and the cure.
    """
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file; run `knarr evaluate` to make it")
    try:
        return _evaluation(_content(path))
    except EvaluationError as error:
        raise EvaluationError(
            f"{path}: {error}; remove it and run `knarr evaluate` again"
        ) from None


def _content(path: Path) -> _File[Any]:
    # `json` alone keeps the last of two equal keys, and reads NaN.
    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise EvaluationError(f"{_short(key)} is there twice")
            found[key] = value
        return found

    def refuse(constant: str) -> NoReturn:
        raise EvaluationError(f"holds {constant}, which is no number")

    if path.stat().st_size > MAX_BYTES:
        raise EvaluationError(f"{path.stat().st_size} bytes > {MAX_BYTES}")
    try:
        text = path.read_bytes().decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        values = isinstance(parsed, dict) and bool(parsed.get("targets"))
        kind: type[_File[Any]] = _File[list[Value]] if values else _File[Class]
        return kind.model_validate(parsed)
    except EvaluationError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(_short(part) for part in first["loc"]) or "file"
        raise EvaluationError(f"{place}: {first['msg']} ({error.error_count()} faults)") from None
    except (ValueError, RecursionError) as error:  # undecodable text is a ValueError too
        raise EvaluationError(f"not JSON ({error})") from None


def _evaluation(file: _File[Any]) -> RunEvaluation:
    samples, predicted = file.samples, {}
    for network, entry in file.networks.items():
        lengths = {len(row) for row in entry.predicted}
        # numpy makes no matrix of rows that differ, and names no network.
        if lengths != {len(samples.names)}:
            raise EvaluationError(
                f"networks.{network}: passes of {sorted(lengths)} samples "
                f"for {len(samples.names)} names"
            )
        predicted[network] = _array(f"networks.{network}", entry.predicted)
    shared = {field: getattr(file, field) for field in SHARED}
    return RunEvaluation(
        **{**shared, "classes": tuple(file.classes), "targets": tuple(file.targets)},
        names=tuple(samples.names),
        labels=_array("samples.labels", samples.labels),
        predicted=predicted,
        subjects=None if samples.subjects is None else tuple(samples.subjects),
        lights=None if samples.lights is None else tuple(samples.lights),
        folds=np.array(samples.folds, np.int64),
    )


def _array(where: str, values: list[Any]) -> np.ndarray[Any, Any]:
    try:
        return np.array(values)
    except ValueError:  # rows of different lengths
        raise EvaluationError(f"{where}: not the same number of targets everywhere") from None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
