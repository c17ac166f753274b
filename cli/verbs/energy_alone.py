"""`knarr energy` of one network alone: a torch module of a user's own, or an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knarr.cli.app import finish
from knarr.cli.errors import UsageError
from knarr.cli.files import check_out, keep_apart, read_array
from knarr.cli.output import show_progress


@dataclass(frozen=True)
class InputAxes:
    """The axes and steps of a module's inputs.

    Args:
        batch_axis, time_axis, steps: `batch_axis`, `time_axis` and `timesteps` of `count_torch`.
        stepped: the module is one step.
        shapes: ONNX input -> its whole shape.
    """

    batch_axis: int | None
    time_axis: int | None
    steps: int | None
    stepped: bool
    shapes: dict[str, tuple[int, ...]]


def is_alone(source: Path) -> bool:
    """Tell whether a source is a module's factory or an ONNX file."""
    return is_factory(source) or source.suffix.lower() == ".onnx"


def is_factory(source: Path) -> bool:
    """Tell whether a source reads as module:function and is no file."""
    return ":" in str(source) and not source.exists()


def energy_alone(
    source: Path,
    data: Path | None,
    layout: InputAxes,
    *,
    profile: str | None,
    model: str | None,
    allow_partial: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Count a network by itself, print what it costs, and end with 1 where it has no total."""
    from knarr.cli.text.energy_alone import print_alone
    from knarr.hw_sim import price_alone
    from knarr.pipeline import write_json

    check_out("--out", out)
    keep_apart(out, source, data)
    torch_only = {
        "--time-axis": layout.time_axis,
        "--steps": layout.steps,
        "--stepped": layout.stepped,
    }
    if is_factory(source):
        if layout.shapes:
            raise UsageError("--shape: goes with an ONNX file; a module takes what --data holds")
        if data is None:
            raise UsageError("--data: needed with a module: .npy of its inputs, samples first")
        counts = _of_module(str(source), data, layout)
        files: tuple[Path, ...] = (data,)
    else:
        for option, value in torch_only.items():
            if value not in (None, False):
                raise UsageError(f"{option}: goes with MODULE:FACTORY; an ONNX file is one pass")
        counts = _of_onnx(source, data, layout)
        files = (source,) if data is None else (source, data)
    facts = price_alone(
        counts,
        str(source),
        files=files,
        allow_partial=allow_partial,
        **{name: value for name, value in (("profile", profile), ("model", model)) if value},
    )
    if out is not None:
        write_json(out, facts)
    print_alone(facts, json=json)
    finish(facts["refused"] is None)


def _of_module(source: str, data: Path, layout: InputAxes) -> Any:
    from knarr.factories import build_network
    from knarr.hw_sim import count_torch
    from knarr.pipeline import Progress

    inputs = read_array(data)
    module = build_network(source, {}).eval()
    axis = 0 if layout.batch_axis is None else layout.batch_axis
    samples = inputs.shape[axis] if axis < inputs.ndim else None
    return count_torch(
        module,
        inputs,
        batch_axis=axis,
        time_axis=layout.time_axis,
        timesteps=layout.steps,
        stepped=layout.stepped,
        progress=lambda done: show_progress(Progress("Counting", done, samples, unit="samples")),
    )


def _of_onnx(source: Path, data: Path | None, layout: InputAxes) -> Any:
    from knarr.hw_sim import count_onnx

    inputs = None if data is None else read_array(data)
    if inputs is not None and inputs.dtype.kind in "bf":
        inputs = inputs.astype("float32")
    return count_onnx(source, inputs, input_shapes=layout.shapes, batch_axis=layout.batch_axis)
