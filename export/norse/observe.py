"""Find out what a module does by running it: which way it takes time, which layers it has, and what its neurons do.

A module may take one step and its state, loop over the first, second or last axis of its input, keep its states itself,
or show one input again and again. Each way is tried on a small input; the recording tells which one it was.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from knarr.export.arguments import as_inputs
from knarr.export.errors import CertificateError, ExportError, refusal
from knarr.export.graph.step import Trace
from knarr.export.graph.step_synapses import add_up
from knarr.export.norse.assemble import ForgetsError, OutputReading, assemble
from knarr.export.norse.layers import NEURON_CELLS, Layers, UnknownKindError, take_apart
from knarr.export.norse.recorder import ANY, LAST, LayoutError, ModuleRecorder, is_library
from knarr.export.norse.trace_leaves import trace_leaves
from knarr.export.norse.values import STEP, Held, StackedSteps, Value, origin

Way = str
TIME_FIRST, SAMPLES_FIRST, STATE, HELD, CONSTANT = (
    "time first",
    "samples first",
    "state",
    "held",
    "constant",
)
TIME_LAST = "time last"
WAYS: tuple[Way, ...] = (TIME_FIRST, SAMPLES_FIRST, STATE, HELD, CONSTANT, TIME_LAST)
SAMPLES, TIMESTEPS = 3, 5
"""Size of the input on which a module is tried; two different primes, to be told apart."""
MOST_STEPS = 1024
ROUNDING = 1e-4
"""Largest difference of a voltage, in parts of the largest of its layer. It is float32's rounding (6e-8) over sums of some
thousand terms; a layer that is missing, or wired elsewhere, differs by parts of a whole.
"""


@dataclass(frozen=True)
class TimeForm:
    """The form in which a module takes time and gives its output.

    Args:
        way: one of WAYS.
        steps: number of steps that it takes, whatever it is given; 0 where it takes those of its input.
        lead: leading axes of its output, ("T", "B") or ("B", "T"), before what it does with all steps.
        left_out: what it does behind the output of its last layer, in its order, such as "sum over time".
    """

    way: Way
    steps: int = 0
    lead: tuple[str, ...] = ("B", "T")
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Observation:
    """The record of what a module did with inputs.

    Args:
        layers: its layers in one time step.
        trace: outputs, spikes and voltages, by names of the layers.
        inputs: (samples, timesteps, *features) that went in, as a graph is to be given them.
        way: how the module takes time.
        recorded: whether the layers were found by running it, not by their types.
        lead: leading axes of the output that it gives its caller.
    """

    layers: Layers
    trace: Trace
    inputs: npt.NDArray[Any]
    way: Way
    recorded: bool = True
    lead: tuple[str, ...] = ("B", "T")


def observe(module: nn.Module, inputs: npt.ArrayLike) -> Observation:
    """Run a module on inputs and find out what it does.

    Args:
        module: in eval mode; it is copied, so that states it keeps begin as they are.
        inputs: (samples, timesteps, *features). A module that takes a number of steps of its own gets the first of
            them (or all again, where they are fewer), one that shows its input again and again the first alone.

    Raises:
        ExportError: what no graph holds, with all reasons; or a module that runs on no such input, or does something
            else on these inputs than on others.
    """
    floats = as_inputs(inputs)
    try:
        layers = take_apart(module)
    except UnknownKindError:
        layers, form = layers_of(module, tuple(floats.shape[2:]))
    else:
        return Observation(layers, trace_leaves(module, floats), floats, STATE, recorded=False)
    if form.way == CONSTANT:
        floats = np.repeat(floats[:, :1], form.steps, axis=1)
    elif form.steps:
        floats = floats[:, np.arange(form.steps) % floats.shape[1]]
    seen = _observe(_stateful(module), floats, form.way)
    if _structure(seen.layers) != _structure(layers):
        raise ExportError(
            "module: does not do the same on all inputs, so no graph does what it does; take out of forward what looks at the "
            "values of the data"
        )
    return seen


def trace_module(module: nn.Module, inputs: npt.ArrayLike) -> Trace:
    """Run a module and record what its neurons do.

    Args:
        module: as `to_nir` takes it. An nn.Sequential is run as the SequentialState of the same layers, since by itself
            it would lose every state.
        inputs: (samples, timesteps, *features).

    Returns:
        Output, spikes and voltages. Currents are left out: Norse keeps them as they are after their decay.

    Raises:
        ExportError: what cannot be exported; or another number of steps than the module takes.
    """
    seen = observe(module, inputs)
    given = np.shape(inputs)
    if seen.inputs.shape != given or (
        seen.way == CONSTANT and (seen.inputs != np.asarray(inputs)).any()
    ):
        same = ", all alike" if seen.way == CONSTANT else ""
        raise ExportError(
            f"module: takes {seen.inputs.shape[1]} steps{same}, these inputs have {given[1]}; give it as many"
        )
    return seen.trace


def layers_of(module: nn.Module, shape: tuple[int, ...]) -> tuple[Layers, TimeForm]:
    """Return the layers of a module, and how it takes time.

    Args:
        module: as `to_nir` takes it.
        shape: sizes of one step without batch.

    Raises:
        ExportError: as `observe`.
    """
    try:
        return take_apart(module), TimeForm(STATE)
    except UnknownKindError:
        module = _stateful(module)
    rng = np.random.default_rng(0)
    refused: list[tuple[int, ExportError]] = []
    for timesteps in _lengths(module):
        inputs = (rng.random((SAMPLES, timesteps, *shape)) < 0.5).astype(np.float32)
        short = False
        for way in _fitting(module):
            try:
                seen = _observe(module, inputs, way)
            except _NotRunError as error:
                refused.append((1, error))
                short = short or isinstance(error.__cause__, (IndexError, RuntimeError))
            except ForgetsError as error:
                refused.append((2, error))
            except ExportError as error:
                refused.append((0 if isinstance(error, LayoutError) else 3, error))
            else:
                taken = seen.inputs.shape[1]
                steps = taken if way == CONSTANT or taken != timesteps else 0
                return seen.layers, TimeForm(way, steps, seen.lead, seen.layers.left_out)
        if any(rank > 1 for rank, _ in refused) or not short:
            break
    # What a run that came to its end says is truer than an error about the axes of its input.
    raise max(refused, key=lambda pair: (pair[0], len(pair[1].reasons)))[1]


def time_form(module: nn.Module, shape: tuple[int, ...]) -> TimeForm:
    """Tell how a module takes time, trained or not.

    Args:
        module: as `to_nir` takes it; it is not changed.
        shape: sizes of one step, without batch and time.

    Raises:
        ExportError: a module that no graph holds, with all reasons.
    """
    return layers_of(copy.deepcopy(module).cpu().eval(), shape)[1]


def run_clips(module: nn.Module, clips: Tensor, form: TimeForm) -> Tensor:
    """Run a module on clips as it stands, with gradients, in the form in which it takes them.

    Args:
        module: in train or eval mode. States that it keeps itself are as before when it returns.
        clips: (B, T, *features).
        form: what `time_form` says of it.

    Returns:
        (B, T, *outputs); or what the module itself makes of all steps, where `form.left_out` names anything.
    """
    module = _stateful(module)
    if form.way in (STATE, HELD):
        keeps = module.modules() if form.way == HELD else ()
        kept = [(part, _own_values(part)) for part in keeps]
        outputs, held = [], None
        for frame in clips.unbind(1):
            given = module(frame) if held is None else module(frame, held)
            if form.way == STATE and isinstance(given, tuple):
                given, held = given
            outputs.append(_first(given))
        for part, values in kept:
            for name in _own_values(part).keys() - values.keys():
                delattr(part, name)
            vars(part).update(values)
        return torch.stack(outputs, 1)
    given = _first(module(_ARRANGED[form.way](clips)))
    if form.left_out:
        return given
    if form.lead == ("B", LAST):
        return given.movedim(-1, 1)
    return given if form.lead[0] == "B" else given.transpose(0, 1)


def _own_values(part: nn.Module) -> dict[str, Any]:
    """Return the attributes in which a module of the user's may keep a state."""
    return {name: value for name, value in vars(part).items() if not name.startswith("_")}


def _first(given: Any) -> Tensor:
    while isinstance(given, tuple):
        given = given[0]
    return torch.stack(given) if isinstance(given, list) else given


def _fitting(module: nn.Module) -> list[Way]:
    """Return the ways in which a module's forward can be called at all."""
    forward = inspect.signature(module.forward)
    fitting = []
    for way in WAYS:
        try:
            forward.bind(*((None, None) if way == STATE else (None,)))
        except TypeError:
            continue
        fitting.append(way)
    return fitting or [TIME_FIRST]


def _stateful(module: nn.Module) -> nn.Module:
    # By itself an nn.Sequential would lose every state.
    return snn.SequentialState(*module).eval() if type(module) is nn.Sequential else module


def _structure(layers: Layers) -> Any:
    """Return what two recordings of one module have in common."""
    rows = [(leaf.name, type(leaf.module), leaf.sources, leaf.delayed) for leaf in layers.leaves]
    return rows, layers.output, layers.left_out


def _lengths(module: nn.Module) -> list[int]:
    """Return the numbers of steps to try: ours, and whatever the module may have been told to take."""
    own = {
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, int) and not isinstance(value, bool) and 1 < value <= MOST_STEPS
    }
    return [TIMESTEPS, *sorted(own - {TIMESTEPS})]


class _NotRunError(ExportError):
    """The module raised something itself."""


def _observe(module: nn.Module, inputs: npt.NDArray[Any], way: Way) -> Observation:
    try:
        running = copy.deepcopy(module)
    except Exception as error:  # a module may hold anything
        raise ExportError(
            f"module: cannot be copied ({type(error).__name__}: {error}); set states that it keeps to None first"
        ) from error
    x = torch.as_tensor(inputs).to(torch.float32)
    recorder = ModuleRecorder(running)
    try:
        output = _RUN[way](recorder, running, x)
    except ExportError as error:
        # An unknown neuron explains whatever follows from it.
        if recorder.faults:
            raise refusal(recorder.faults) from error
        raise
    except Exception as error:  # the user's own code may lead anywhere
        if recorder.faults:
            raise refusal(recorder.faults) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        own = [f for f in traceback.extract_tb(error.__traceback__) if not is_library(f.filename)]
        where = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
        raise _NotRunError(
            f"module: does not run on steps of {tuple(x.shape[2:])} ({reason}{where}); see that this is the shape of one step, "
            "without batch and time, and that it takes any number of samples and steps"
        ) from error
    layers, readout = assemble(recorder, *output)
    steps = len(recorder.neurons[0].given)
    if way == CONSTANT:
        x = x[:, :1].expand(len(x), steps, *x.shape[2:])
    trace = _trace(recorder, layers, x)
    _require_output(readout, torch.as_tensor(trace.output))
    return Observation(layers, trace, x[:, :steps].numpy(), way, lead=readout.lead)


def _require_output(readout: OutputReading, output: Tensor) -> None:
    """Check that what the module gave its caller follows from the output of its layers.

    Raises:
        CertificateError: it does not, so that something between the two was not seen.
    """
    if readout.tensor is None:
        return
    expected, found = readout.expected(output), readout.tensor
    apart = float("inf")
    if expected.numel() == found.numel():
        apart = float((expected.reshape(found.shape) - found).abs().max())
    largest = max(float(expected.abs().max()), float(found.abs().max()))
    # Written so that NaN does not pass; sums in another order round.
    if not apart <= ROUNDING * largest:
        raise CertificateError(
            f"module: gives its caller something else than its last layer gives, by {apart:g} of {largest:g}; take out of "
            "forward what changes tensors in place"
        )


_Run = Callable[[ModuleRecorder, nn.Module, Tensor], tuple[Value, Tensor]]
"""Runs a module on (samples, timesteps, *features); gives its output and where that came from."""


_ARRANGED: dict[Way, Callable[[Tensor], Tensor]] = {
    # Steps lie in memory as a graph's stepper finds them: another order may sum, and round, in another order.
    TIME_FIRST: lambda x: x.transpose(0, 1),
    SAMPLES_FIRST: lambda x: x,
    TIME_LAST: lambda x: x.movedim(1, -1),
    CONSTANT: lambda x: x[:, 0].contiguous(),
}
"""Functions that arrange (B, T, *features) as a module that is called once takes them."""


def _over_time(way: Way, lead: tuple[str, ...]) -> _Run:
    def run(recorder: ModuleRecorder, module: nn.Module, x: Tensor) -> tuple[Value, Tensor]:
        given = _ARRANGED[way](x)
        recorder.give(given, lead)
        with recorder.watching():
            result = module(given)
        return _output(recorder, result)

    return run


def _last(recorder: ModuleRecorder, module: nn.Module, x: Tensor) -> tuple[Value, Tensor]:
    given = _ARRANGED[TIME_LAST](x)
    recorder.give_last(given)
    with recorder.watching():
        result = module(given)
    return _output(recorder, result)


def _steps(*, state: bool) -> _Run:
    def run(recorder: ModuleRecorder, module: nn.Module, x: Tensor) -> tuple[Value, Tensor]:
        held: Any = None
        values: list[Value] = []
        outputs: list[Tensor] = []
        for t in range(x.shape[1]):
            given = x[:, t]
            recorder.give(given, STEP, t)
            with recorder.watching():
                result = module(given, held) if state else module(given)
            if state:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise LayoutError(
                        "module: takes a state and gives none back; return (output, state)"
                    )
                held = result[1]
            value, output = _output(recorder, result)
            values.append(value)
            outputs.append(output)
            if value.time not in (t, None):
                raise LayoutError("module: its output is not that of the step")
        longest = max((len(neurons.given) for neurons in recorder.neurons), default=0)
        if longest not in (0, 1, x.shape[1]):
            raise LayoutError("module: steps its neurons more than once in a call")
        recorder.lengths["T"] = x.shape[1]
        every = StackedSteps(("T", "B"), values[-1].features, None, tuple(values))
        return every, torch.stack(outputs)

    return run


_RUN: dict[Way, _Run] = {
    TIME_FIRST: _over_time(TIME_FIRST, ("T", "B")),
    SAMPLES_FIRST: _over_time(SAMPLES_FIRST, ("B", "T")),
    STATE: _steps(state=True),
    HELD: _steps(state=False),
    CONSTANT: _over_time(CONSTANT, STEP),
    TIME_LAST: _last,
}


def _output(recorder: ModuleRecorder, result: Any) -> tuple[Value, Tensor]:
    """Return the one output of a module with where it came from; states beside it are no outputs."""
    first = result
    while isinstance(first, tuple) and first:
        first, *others = first
        own = recorder.find(first)
        more = [
            value
            for value in (recorder.find(other) for other in others)
            if value is not None and not _is_state(value) and value is not own
        ]
        if isinstance(first, Tensor) and more:
            paths = [path for path in map(origin, [own, *more]) if path is not None]
            named = f" (of {', '.join(map(repr, paths))})" if len(paths) > len(more) else ""
            raise ExportError(
                f"module: gives more than one output{named}, a graph has one; return the one that is wanted"
            )
    if isinstance(first, list) and first and all(isinstance(x, Tensor) for x in first):
        # A list of every step's output.
        with recorder:
            first = torch.stack(first)
    value = recorder.find(first)
    if value is None:
        raise ExportError(
            f"module: its output ({type(first).__name__}) cannot be followed back to its input; return a tensor that torch's "
            "own functions made of it"
        )
    return value, first


def _is_state(value: Value) -> bool:
    """Tell whether a value is a state that neurons hold, or a record of it over time."""
    steps = value.steps if isinstance(value, StackedSteps) else (value,)
    return all(isinstance(step, Held) for step in steps)


def _trace(recorder: ModuleRecorder, layers: Layers, x: Tensor) -> Trace:
    """Return what the neurons of the layers did, and the output that follows."""
    placed = {leaf.name for leaf in layers.leaves}
    own = [neurons for neurons in recorder.neurons if neurons.name in placed]
    given = {neurons.name: torch.stack(neurons.given, 1) for neurons in own}
    spikes = {neurons.name: given[neurons.name] for neurons in own if neurons.spiking}
    # Neurons that forget at once hold no voltage from step to step.
    voltages = {
        neurons.name: torch.zeros_like(given[neurons.name])
        if neurons.kind == ANY
        else torch.stack(neurons.voltage, 1)
        for neurons in own
    }
    return Trace(
        output=_given_out(layers, given, x).numpy(),
        spikes={name: z.numpy().astype(np.uint8) for name, z in spikes.items()},
        v={name: v.numpy() for name, v in voltages.items()},
    )


def _given_out(layers: Layers, given: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the layers' output at every step, of what the module's own neurons gave."""
    outputs = []
    before: dict[str, Tensor] = {}
    steps = next(iter(given.values())).shape[1]
    for t in range(steps):
        values = {"input": x[:, t]}
        for leaf in layers.leaves:
            if leaf.name in given:
                values[leaf.name] = given[leaf.name][:, t]
            elif not isinstance(leaf.module, NEURON_CELLS):
                arriving = [values[name] for name in leaf.sources if name in values]
                late = [before[name] for name in leaf.delayed if name in before]
                if not arriving and not late:
                    linear: Any = leaf.module
                    arriving = [x.new_zeros(len(x), linear.in_features)]
                with torch.no_grad():
                    values[leaf.name] = leaf.module(add_up(arriving, late))
        outputs.append(add_up([values[name] for name in layers.output], []))
        before = values
    return torch.stack(outputs, 1).detach()
