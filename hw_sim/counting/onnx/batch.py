"""Find the batch of an ONNX file: the axis along which inferences lie side by side.

Counts are per inference, so the batch is set to 1. The first axis of an input is that of the batch
in most files, and that of time steps or of frames in others (an LSTM as PyTorch makes it by default,
a clip whose frames are averaged). It is a batch where another size of it changes nothing but how
many results there are:

    every tensor has as many elements as before, or as many times more;
    no recurrent layer takes it for its sequence;
    some output grows with it.

So shapes are inferred at two sizes and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from knarr.hw_sim.errors import CountError

Shape = tuple[int, ...]

RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
"""Operations whose first input has the steps of a sequence first."""
TIMES = 2
"""The first axis is so many times as large when shapes are inferred again."""
CURES = "say its size with --shape {name}={shape}, or which axis is the batch with --batch-axis"


class OpenAxisError(CountError):
    """The first axis of an input is no batch, and the file leaves its size open.

    Args:
        message: as for any error.
        name: the input.
        rank: number of its axes.
    """

    def __init__(self, message: str, name: str, rank: int) -> None:
        super().__init__(message)
        self.name, self.rank = name, rank


@dataclass
class BatchAxes:
    """The batches of all inputs, as far as they are known.

    Args:
        axes: graph input -> its axis of the batch; None for an input that is whole as it is.
        doubtful: groups of inputs whose first axis may be a batch and is looked at: those of a group
            have the same unknown size.
        sizes: graph input -> size of the first axis that the file fixes, None where it leaves it open.
        shown: graph input -> its shape as the file writes it, for messages.
    """

    axes: dict[str, int | None] = field(default_factory=dict)
    doubtful: list[list[str]] = field(default_factory=list)
    sizes: dict[str, int | None] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)


def set_batch(
    path: Path, inputs: Mapping[str, Any], shapes: Mapping[str, Shape], batch_axis: int | None
) -> BatchAxes:
    """Give every input a static shape, with batch 1 where a batch may be; written into the model.

    Args:
        path: the file, for messages.
        inputs: graph input -> onnx.ValueInfoProto.
        shapes, batch_axis: those of `read_onnx`.

    Raises:
        CountError: a shape that does not fit, or an axis whose size nobody says.
    """
    unknown = sorted(shapes.keys() - inputs.keys())
    if unknown:
        raise CountError(
            f"{path}: has no input '{unknown[0]}', its inputs are {', '.join(inputs)}; name one"
        )
    found = BatchAxes()
    groups: dict[str, list[str]] = {}
    for name, value in inputs.items():
        dims = value.type.tensor_type.shape.dim
        found.shown[name] = ",".join(
            str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in dims
        )
        if name in shapes:
            _give(path, name, dims, shapes[name])
            found.axes[name] = None
            continue
        if not dims:
            raise CountError(f"{path}: input '{name}' has no shape; export with static shapes")
        axis = 0 if batch_axis is None else batch_axis
        if not 0 <= axis < len(dims):
            raise CountError(
                f"{path}: input '{name}' ({found.shown[name]}) has no axis {axis}; choose a batch axis it has"
            )
        found.axes[name] = axis
        fixed = int(dims[axis].dim_value) if dims[axis].HasField("dim_value") else None
        if batch_axis is not None:
            dims[axis].dim_value = 1
        elif fixed != 1:
            found.sizes[name] = fixed
            # Axes of one name have one size; an axis without a name is alone.
            groups.setdefault(dims[0].dim_param or f" {name}", []).append(name)
            if fixed is None:
                dims[0].dim_value = 1
        for at, dim in enumerate(dims):
            if not dim.HasField("dim_value") or dim.dim_value < 1:
                shown = dim.dim_param or "unknown"
                raise CountError(
                    f"{path}: input '{name}' axis {at} is {shown}; only the batch may be dynamic, "
                    + CURES.format(name=name, shape=found.shown[name])
                )
    found.doubtful = list(groups.values())
    return found


def _give(path: Path, name: str, dims: Any, shape: Shape) -> None:
    fixed = [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims]
    fits = len(fixed) == len(shape) and all(
        size in (None, given) for size, given in zip(fixed, shape, strict=True)
    )
    if not fits or min(shape, default=0) < 1:
        shown = ",".join("?" if size is None else str(size) for size in fixed)
        raise CountError(
            f"{path}: input '{name}' is of shape {shown}, not {shape}; correct the shape"
        )
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size


def shapes_of(value: Any) -> Shape:
    """Return the static shape of an onnx.ValueInfoProto."""
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def resize(model: Any, names: list[str]) -> None:
    """Make the first axes of inputs `TIMES` as large, in place."""
    for value in model.graph.input:
        if value.name in names:
            value.type.tensor_type.shape.dim[0].dim_value *= TIMES


def settle(
    path: Path,
    batch: BatchAxes,
    names: list[str],
    model: Any,
    shapes: Mapping[str, Shape],
    changed: Mapping[str, Shape] | None,
) -> None:
    """Decide whether the first axis of these inputs is a batch, and refuse what cannot be counted.

    Args:
        path: the file, for messages.
        batch: what is known; an input that is whole as it is loses its batch.
        names: the inputs of a group.
        model: onnx.ModelProto.
        shapes: tensor -> shape, at the sizes that are counted.
        changed: the same with the first axes `TIMES` as large; None where these do not go together.

    Raises:
        CountError: a batch other than 1 is fixed, or the first axis is no batch and its size open.
    """
    name = names[0]
    fixed = batch.sizes[name]
    shown = batch.shown[name]
    cure = CURES.format(name=name, shape=shown)
    sequence = None if changed is None else _sequence(model, shapes, changed)
    if changed is None or (sequence is None and _holds_sizes(model, changed)):
        # Some files hold initial states or reshapes of batch 1, and are right at no other.
        if fixed is None:
            return
        raise CountError(
            f"{path}: input '{name}' ({shown}) has a fixed first axis of {fixed}, and the file holds no shapes for "
            f"another: it may be a batch; export with batch 1 or a dynamic batch, or {cure}"
        )
    reason = sequence or _no_batch(model, shapes, changed)
    if reason is None:
        if fixed is None:
            return
        raise CountError(
            f"{path}: input '{name}' has a fixed batch of {fixed}, counts are per inference; "
            "export with batch 1 or a dynamic batch"
        )
    if fixed is None:
        raise OpenAxisError(
            f"{path}: axis 0 of input '{name}' ({shown}) is no batch: {reason}; {cure}",
            name,
            shown.count(",") + 1,
        )
    batch.axes |= dict.fromkeys(names)


def _holds_sizes(model: Any, changed: Mapping[str, Shape]) -> bool:
    """Tell whether a Reshape writes a size into the file that another batch does not fit."""
    for node in model.graph.node:
        if node.op_type == "Reshape" and {node.input[0], node.output[0]} <= changed.keys():
            before, after = changed[node.input[0]], changed[node.output[0]]
            if prod(before) != prod(after):
                return True
    return False


def _sequence(model: Any, shapes: Mapping[str, Shape], changed: Mapping[str, Shape]) -> str | None:
    """Return which recurrent layer takes an axis whose size changed for its sequence, if one does."""
    for node in model.graph.node:
        steps = node.input[0] if node.input else ""
        known = steps in shapes and steps in changed and len(shapes[steps]) == 3
        if node.op_type in RECURRENT and known and shapes[steps][0] != changed[steps][0]:
            return f"it is the sequence of {node.op_type} '{node.name or node.output[0]}'"
    return None


def _no_batch(model: Any, shapes: Mapping[str, Shape], changed: Mapping[str, Shape]) -> str | None:
    """Return what shows that an axis whose size changed is no batch; None where nothing does."""
    for tensor, shape in shapes.items():
        before, after = prod(shape), prod(changed.get(tensor, shape))
        if after not in (before, TIMES * before):
            return (
                f"tensor '{tensor}' has {before} elements for one of them and {after} for {TIMES}"
            )
    outputs = [value.name for value in model.graph.output]
    unknown = [name for name in outputs if name not in shapes or name not in changed]
    if not unknown and all(shapes[name] == changed[name] for name in outputs):
        return "no output carries it"
    return None
