"""Write ONNX files that provably compute the same: any torch network, and one time step of a spiking student.

A network is the form of every non-spiking baseline. A student's step is an ordinary ONNX graph as well: states go in and
come out, and a caller loops. Both are compared with torch, by onnxruntime, before anything is written.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import itertools
import json
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnxruntime
import torch
from norse.torch.module.snn import SNNCell, SNNRecurrentCell
from torch import Tensor, nn

from knarr.export.arguments import as_shape
from knarr.export.errors import ExportError
from knarr.export.norse.layers import NEURON_CELLS, UnknownKindError, take_apart
from knarr.export.norse.modules import StepGraph
from knarr.export.norse.rewrite import as_module
from knarr.files import write_atomic

OPSET = 18
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which torch's exporter notes the modules that a node lies in."""
Float32 = npt.NDArray[np.float32]
CHECKED_BATCHES = (1, 3)
"""Batch sizes that are compared: 1 is what is counted, a larger one shows that the batch was not baked into the file."""
RELATIVE_TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest output. torch and onnxruntime sum float32 products in another
order: a sum of n terms differs by about sqrt(n) * 6e-8, 5e-6 for n = 6272, and layers add up. A wrong weight, pad or
axis differs by 1e-2 and more."""
TRACED_BATCH = 3
"""Batch size that is traced: torch bakes sizes of 0 and 1 into what it traces, and keeps others as symbols."""
LARGEST_BATCH = 1 << 20
"""Largest batch size of a file. torch 2.7 needs a bound: without, its recurrent layers exclude the largest integer."""


def to_onnx(module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Export a network in eval mode (batch-norm folds into the synapse before it) and check the file against torch.

    The file takes one float32 input "input" of shape (batch, *input_shape), batch dynamic, and gives one "output". It
    is checked before it is written, and written under a temporary name first, so a failed export leaves nothing.

    Args:
        module: network with float32 parameters in eval mode, from one tensor to one tensor.
        input_shape: shape of one sample, without batch.
        path: file to write.

    Raises:
        ExportError: train mode, a module that cannot be traced, or a file whose outputs differ from the module's by
            more than `RELATIVE_TOLERANCE` on random inputs.
        OSError: the file cannot be written.
    """
    path, input_shape = Path(path), as_shape(input_shape)
    if not isinstance(module, nn.Module):
        raise ExportError(f"module: {type(module).__name__} is no torch module; wrap it in one")
    _check_module(module)
    exported = _export(module, input_shape)
    _compare(module, input_shape, exported)
    write_atomic(path, exported)


def _trace(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    dynamic_shapes: Any,
    inputs: list[str],
    outputs: list[str],
) -> Any:
    """Return the ONNX model of a module, the first axis of its inputs and outputs called "batch".

    Raises:
        ExportError: torch cannot trace the module, or ONNX does not have one of its operations.
    """
    try:
        with _silence():
            # Traced apart from the conversion, which would try less strict ways to trace after this one.
            program = torch.export.export(
                module, arguments, dynamic_shapes=dynamic_shapes, strict=False
            )
            converted = torch.onnx.export(
                program,
                arguments,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert converted is not None
        model = converted.model_proto
    except Exception as error:  # tracing runs the module's own code; torch's errors share no base
        cause = error.__cause__ or error
        reason = str(cause).strip().partition("\n")[0]
        ours = (str(Path(torch.__file__).parent), __file__)
        frames = traceback.extract_tb(cause.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
        where = f"{Path(theirs[-1].filename).name}:{theirs[-1].lineno}: " if theirs else ""
        raise ExportError(
            f"module: cannot be exported for input {tuple(arguments[0].shape[1:])} ({where}{reason}); "
            "it may not branch on values, nor depend on one size of the batch"
        ) from error
    # torch 2.7 names two outputs that are one value by the later name, and its alias otherwise.
    named = {value.name: name for value, name in zip(model.graph.output, outputs, strict=True)}
    if len(named) < len(outputs):
        raise ExportError("module: two of its outputs are one value, which this torch cannot name")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [named.get(name, name) for name in names]
    for value in model.graph.output:
        value.name = named[value.name]
    _name_nodes(model.graph)
    _clean(model)
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        if axes:
            axes[0].dim_param = "batch"
    return model


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep torch's notes on its own insides, and its listing of a trace that fails, from the caller's standard error.

    A module's own warnings were shown when it ran.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _name_nodes(graph: Any) -> None:
    """Name nodes by the modules they come from, "/features.0/Conv": these are the rows of a count."""
    weights = {tensor.name for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, "['']")
        # The last scope is the operation, and the first one of all is the module itself.
        path = ["", *ast.literal_eval(scopes)[1:-1]][-1]
        for name in node.input:
            # A convolution into which a batch norm was folded is told by its own weight.
            if name in weights and name.endswith(".weight"):
                path = name.removesuffix(".weight")
        node.name = named = f"/{path}/{node.op_type}" if path else f"/{node.op_type}"
        for count in itertools.count(1):
            if node.name not in taken:
                break
            node.name = f"{named}_{count}"
        taken.add(node.name)


def _clean(model: Any) -> None:
    """Take out torch's notes on the trace: its symbols, and where on this machine the module's code lies."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]


def _open_session(
    exported: bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    # One thread: the comparison should not depend on how many cores a machine has.
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other base
        raise ExportError(f"module: onnxruntime does not take the file ({error})") from error


def _run_session(
    session: onnxruntime.InferenceSession, feed: dict[str, Float32], batch: int
) -> list[Float32]:
    try:
        return list(session.run(None, feed))
    except Exception as error:
        raise ExportError(f"module: the file does not run at batch {batch} ({error})") from error


def _check_module(module: nn.Module) -> None:
    training = [
        name or "the module itself" for name, part in module.named_modules() if part.training
    ]
    if training:
        raise ExportError(f"module: {training[0]} is in train mode; call module.eval() first")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(
                f"module: '{name}' is {tensor.dtype}, the file takes float32; call module.float()"
            )


def _samples(module: nn.Module, input_shape: tuple[int, ...], batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return torch.randn((batch, *input_shape), generator=generator).to(device)


def _run(module: nn.Module, inputs: Tensor) -> Float32:
    try:
        with torch.no_grad():
            output = module(inputs)
    except Exception as error:  # the module's own code may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ExportError(
            f"module: cannot be exported for input {tuple(inputs.shape[1:])} ({reason}); see that it runs"
        ) from error
    if not isinstance(output, Tensor):
        raise ExportError(f"module: returns {type(output).__name__}, needs one tensor; wrap it")
    if output.ndim < 1 or output.numel() == 0:
        raise ExportError(f"module: returns shape {tuple(output.shape)}, needs a batch of values")
    return np.asarray(output.cpu().numpy())


def _export(module: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    inputs = _samples(module, input_shape, TRACED_BATCH)
    _run(module, inputs)
    batch = torch.export.Dim("batch", max=LARGEST_BATCH)
    model = _trace(module, (inputs,), ({0: batch},), ["input"], ["output"])
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _compare(module: nn.Module, input_shape: tuple[int, ...], exported: bytes) -> None:
    session = _open_session(exported, onnxruntime.SessionOptions())
    for batch in CHECKED_BATCHES:
        inputs = _samples(module, input_shape, batch)
        expected = _run(module, inputs)
        (got,) = _run_session(session, {"input": inputs.cpu().numpy()}, batch)
        if got.shape != expected.shape or len(got) != batch:
            raise ExportError(
                f"module: batch {batch} gives shape {got.shape} in onnxruntime and {expected.shape} in torch; "
                "keep the batch as the first axis"
            )
        if not np.isfinite(expected).all():
            raise ExportError(
                f"module: outputs of random inputs are not finite at batch {batch}; check its weights"
            )
        difference = float(np.abs(got - expected).max())
        scale = float(np.abs(expected).max())
        # NaN in the file's output compares false, so the negated comparison refuses it.
        if not difference <= RELATIVE_TOLERANCE * scale:
            raise ExportError(
                f"module: onnxruntime differs from torch by {difference:g} at batch {batch}, allowed "
                f"{RELATIVE_TOLERANCE:g} of {scale:g}; the file is not this module"
            )


NEXT = ".next"
CHECKED_STEPS = 16


def student_step_to_onnx(module: nn.Module, input_shape: tuple[int, ...], path: Path) -> None:
    """Export one time step and check it against the live module, step by step, with onnxruntime.

    The file takes "input" (batch, *input_shape) and one tensor per state, such as "lif_1.v", and gives "output" and the
    states after the step, "lif_1.v.next". States may be left out: their defaults are the states before the first step. The
    batch axis is dynamic. `metadata_props["knarr_states"]` lists the pairs.

        outputs = session.run(None, {"input": x[:, 0]})
        outputs = session.run(None, {"input": x[:, 1], **dict(zip(state_names, outputs[1:]))})

    Args:
        module: one-step Norse module in eval mode, of the layers `to_nir` takes.
        input_shape: feature shape of one step without batch.
        path: file to write.

    Raises:
        ExportError: a layer that cannot be exported, or a step that differs from the module's: a spike, but where the voltage
            is within the tolerance of the threshold, or another value by more than `RELATIVE_TOLERANCE` of the largest.
        OSError: the file cannot be written.
    """
    path, input_shape = Path(path), as_shape(input_shape)
    try:
        graph = as_module(take_apart(module))
    except UnknownKindError as error:
        raise ExportError(
            f"{error}; a step is written as ONNX for these alone, `to_nir` takes other modules too"
        ) from error
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"module: '{name}' holds NaN or infinity; retrain or reload it")
    step = _Step(graph, input_shape).eval()
    exported = _export_step(step, input_shape)
    _check(step, input_shape, exported)
    write_atomic(path, exported)


class _Step(nn.Module):
    """The student with its state as a flat list of tensors."""

    def __init__(self, graph: StepGraph, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.student = copy.deepcopy(graph)  # a module named graph is none that torch exports
        for cell in self.student.nodes.values():
            if isinstance(cell, (SNNCell, SNNRecurrentCell)):
                # Norse leaves gradients on parameters it starts from, which tracing refuses.
                values = cell.p._asdict().items()
                free = {key: v.detach() for key, v in values if isinstance(v, Tensor)}
                cell.p = cell.p._replace(**free)
        try:
            with torch.no_grad():
                _, state = graph(torch.zeros(1, *input_shape), None)
        except Exception as error:  # the user's own parameters may lead anywhere
            raise ExportError(
                f"module: does not run on {input_shape} ({str(error).splitlines()[0]})"
            ) from error
        self.kinds: dict[str, Any] = {key: type(value) for key, value in state.items()}
        self.names: list[str] = []
        for key, kind in self.kinds.items():
            self.names += [f"{key}.{f}" for f in kind._fields] if issubclass(kind, tuple) else [key]
        values = zip(self.names, _tensors(state), strict=True)
        self.initial = [self._at_start(name, value) for name, value in values]

    def _at_start(self, name: str, value: Tensor) -> Tensor:
        key, _, field = name.rpartition(".")
        # Currents, spikes and what recurrent edges carry are 0 before the first step.
        if field != "v":
            return torch.zeros_like(value)
        p: Any = self.student.nodes[key].p
        # An IAFCell has no leak and starts at its reset.
        start = p.v_leak if hasattr(p, "v_leak") else p.v_reset
        return start.detach().expand_as(value).clone()

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the output and the states after the step, in the order of `names`."""
        # A default state is of one sample: every sample of the batch starts so.
        parts = iter([value.expand(x.shape[0], *value.shape[1:]) for value in state])
        before: dict[str, Any] = {}
        for key, kind in self.kinds.items():
            if issubclass(kind, tuple):
                before[key] = kind(*itertools.islice(parts, len(kind._fields)))
            else:
                before[key] = next(parts)
        output, after = self.student(x, before)
        return (output, *_tensors(after))


def _tensors(state: dict[str, Any]) -> list[Tensor]:
    """List the tensors of a state; a StepGraph returns its nodes in the same order at every step."""
    found: list[Tensor] = []
    for part in state.values():
        found += part if isinstance(part, tuple) else [part]
    return found


def _export_step(step: _Step, input_shape: tuple[int, ...]) -> bytes:
    arguments = (torch.zeros(TRACED_BATCH, *input_shape), *step.initial)
    inputs = ["input", *step.names]
    outputs = ["output", *(name + NEXT for name in step.names)]
    batch = torch.export.Dim("batch", max=LARGEST_BATCH)
    # States are traced as of one sample, which the step gives to each: so a file takes both, a state and its default.
    model = _trace(step, arguments, ({0: batch}, ({},) * len(step.names)), inputs, outputs)
    read = {name for node in model.graph.node for name in node.input}
    # Nothing reads some states, such as the spikes of the step before.
    taken = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(taken)
    pairs = {}
    for name, value in zip(step.names, step.initial, strict=True):
        if name in read:
            # An initializer under an input's name is its default value.
            model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
            pairs[name] = name + NEXT
    entry = model.metadata_props.add()
    entry.key, entry.value = "knarr_states", json.dumps(pairs)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _check(step: _Step, input_shape: tuple[int, ...], exported: bytes) -> None:
    options = onnxruntime.SessionOptions()
    # It warns that default states are no constants, which is their purpose.
    options.log_severity_level = 3
    session = _open_session(exported, options)
    taken = {value.name for value in session.get_overridable_initializers()}
    for batch in CHECKED_BATCHES:
        generator = torch.Generator().manual_seed(batch)
        state = step.initial
        feed: dict[str, Float32] = {}  # the first step runs on the defaults
        for t in range(CHECKED_STEPS):
            x = (torch.rand((batch, *input_shape), generator=generator) < 0.4).float()
            with torch.no_grad():
                output, *state = step(x, *state)
            got = _run_session(session, {"input": x.numpy(), **feed}, batch)
            after = {name: value.numpy() for name, value in zip(step.names, state, strict=True)}
            # In the order the layers act, and the output last.
            expected = {**after, "output": output.numpy()}
            _compare_step(step, expected, [*got[1:], got[0]], f"batch {batch}, step {t}")
            # Both sides go on from torch's states, so that roundings do not add up.
            feed = {name: value for name, value in after.items() if name in taken}


def _compare_step(
    step: _Step, expected: dict[str, Float32], got: list[Float32], where: str
) -> None:
    flipped = False  # a neuron stood on its threshold: what it feeds in this step may differ
    for (name, ours), theirs in zip(expected.items(), got, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(
                f"module: '{name}' has shape {theirs.shape} in onnxruntime, {ours.shape} in torch at {where}"
            )
        if not np.isfinite(ours).all():
            raise ExportError(
                f"module: '{name}' is not finite at {where}; check its weights and voltages"
            )
        tolerance = RELATIVE_TOLERANCE * max(float(np.abs(ours).max(initial=0)), 1.0)
        differs = ~(np.abs(ours - theirs) <= tolerance)
        on_threshold = _on_threshold(step, name, ours, theirs, tolerance)
        if (differs & ~on_threshold).any() and not flipped:
            raise ExportError(
                f"module: '{name}' differs from torch in {int(differs.sum())} of {differs.size} values at {where}, by "
                f"{float(np.abs(ours - theirs).max()):g}; the file is not this module"
            )
        flipped |= bool((differs & on_threshold).any())


def _on_threshold(step: _Step, name: str, ours: Float32, theirs: Float32, tolerance: float) -> Any:
    """Mark where a neuron may fire on one side alone, because its voltage is at the threshold but for rounding."""
    key, _, field = name.rpartition(".")
    cell = dict(step.student.nodes.items()).get(key)
    if field not in ("v", "z") or not isinstance(cell, NEURON_CELLS) or not hasattr(cell.p, "v_th"):
        return np.zeros(ours.shape, dtype=np.bool_)
    if field == "z":  # comes before v in the state; v of the same step judges it
        return np.ones(ours.shape, dtype=np.bool_)
    threshold: Float32 = np.broadcast_to(cell.p.v_th.detach().numpy(), ours.shape)
    # The side that fired holds its reset, below the threshold; the larger one is the voltage of the side that did not.
    return np.abs(np.maximum(ours, theirs) - threshold) <= tolerance
