"""Build the layers of one time step from what was recorded of a module.

The last step is taken apart, from the output and from what each population of neurons heard in it. What a value was one
step before is a delayed edge. That every other step does the same is not looked at here: the certificate compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import norse.torch as snn
import torch
from torch import Tensor, nn

from knarr.export.errors import ExportError, refusal
from knarr.export.norse.layers import KINDS, NO_OPS, Layer, Layers
from knarr.export.norse.modules import INPUT, OUTPUT, Scale, SumPool2d
from knarr.export.norse.recorder import ANY, LAST, LayoutError, ModuleRecorder, node_name
from knarr.export.norse.steps import as_cell
from knarr.export.norse.values import (
    STEP,
    Added,
    Applied,
    Fired,
    Given,
    GivenLast,
    Held,
    Joined,
    Neurons,
    Opaque,
    StackedSteps,
    Value,
    Viewed,
    at,
)

Wires = tuple[tuple[str, int], ...]
"""Names of layers and how many steps ago each gave what arrives."""
SUM = "sum over time"
CURES = {
    "relu": "a spiking network has neurons in its place",
    "maximum": "use AvgPool2d, or pool spikes",
    "max_pool2d": "NIR has no maximum, use AvgPool2d; a maximum of spikes is exact",
    "add": "put the constant into the bias of the layer before",
    "sub": "put the constant into the bias of the layer before",
    "conv3d": "wrap an nn.Conv2d in norse's Lift",
    "sigmoid": "a spiking network has neurons in its place",
    "tanh": "a spiking network has neurons in its place",
    "mul": "a graph multiplies by constants alone",
    "dropout": "call .eval() on the module first",
    "batch_norm": "call .eval() first, and track its running statistics",
    "pad": "give the padding to the convolution, with padding_mode='zeros'",
    "interpolate": "resize the data before",
}
"""Cures by the name of the function that stands between two layers."""


class ForgetsError(ExportError):
    """Neurons whose state does not go from step to step."""


@dataclass(frozen=True, eq=False)
class OutputReading:
    """The part of a module behind the output of its graph, and what it says about that output.

    Args:
        wires: what reaches the output.
        left_out: what the module does behind it, in its order.
        tensor: the module's own tensor that follows from the output; None where it is not known.
        lead: its leading axes; those of one step where it holds the last step, or what is made of all of them.
        behind: what was done to the output to get it, first to last, on (B, T, *features).
    """

    wires: Wires
    left_out: tuple[str, ...]
    tensor: Tensor | None
    lead: tuple[str, ...]
    behind: tuple[Callable[[Tensor], Tensor], ...]

    def expected(self, output: Tensor) -> Tensor:
        """Return what the tensor has to be.

        Args:
            output: the graph's output at every step, (B, T, *features).
        """
        if self.behind:
            for function in self.behind:
                output = function(output)
            return output
        if "T" not in "".join(self.lead):
            return output[:, -1]
        if self.lead == ("B", LAST):
            return output.movedim(1, -1)
        return output.transpose(0, 1) if "".join(self.lead) == "TB" else output


def assemble(
    recorder: ModuleRecorder, output: Value, given: Tensor
) -> tuple[Layers, OutputReading]:
    """Return the layers of one step, and how the module's output follows from them.

    Args:
        recorder: what was recorded, one step at least.
        output: where the module's output came from.
        given: the output itself.

    Raises:
        ExportError: what no graph holds; every reason that was found, in its `reasons`.
    """
    steps = max((len(neurons.given) for neurons in recorder.neurons), default=0)
    faults = list(dict.fromkeys(recorder.faults))
    if steps == 0 and not faults:
        faults.append(_no_neurons(recorder))
    # Behind neurons that are unknown, others may step in a way that says nothing.
    for neurons in recorder.neurons if not faults else ():
        if len(neurons.given) != steps or steps == 1:
            raise ForgetsError(
                f"module '{neurons.path}': steps {len(neurons.given)} times in a row where the module takes {max(steps, 2)} steps; "
                "hand the state that it gives back to it at the next step"
            )
    # Layers that the module does not hold itself step as its first neurons do.
    dt_s = next((neurons.dt for neurons in recorder.neurons if neurons.dt), 0.001)
    build = _Assembly(recorder, steps - 1, dt_s, faults)
    readout = OutputReading((), (), None, (), ())
    if not faults:
        readout = build.readout(output, given)
        build.place_delayed()
    else:
        # Every reason is worth telling, not only those that stand before the output.
        build.collect()
    if build.faults:
        raise refusal(build.faults)
    if not build.leaves:
        raise ExportError("module: no layers to export")
    if any(lag for _, lag in readout.wires):
        raise ExportError(
            "module: its output is a value of the step before; put a neuron in front of the output"
        )
    if any(leaf.name == INPUT for leaf in build.leaves):
        raise ExportError("module: a layer is called 'input'; rename it")
    names = tuple(name for name, _ in readout.wires)
    if len(set(names)) < len(names):
        raise ExportError(
            "module: its output adds the same layer twice, and NIR has no double edges; double the weights instead"
        )
    return Layers(tuple(build.leaves), names, build.rewrites, readout.left_out), readout


def _no_neurons(recorder: ModuleRecorder) -> str:
    """Say that a module has no neurons, and which of its layers stand where neurons could."""
    others = [
        f"'{path}' is {type(part).__name__}"
        for path, part in recorder.parts.items()
        if path and not any(part.children()) and type(part) not in (*KINDS, *NO_OPS)
    ]
    # A network of many layers has its kinds among the first few.
    shown = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
    seen = f" (layer {shown})" if others else ""
    return (
        f"module: no neurons of Norse stepped in it{seen}, so that there is nothing to export; put cells such as "
        "LIFBoxCell where it is to fire"
    )


@dataclass
class _Assembly:
    """Layers that are placed one after the other, sources first."""

    recorder: ModuleRecorder
    now: int
    dt_s: float
    faults: list[str]
    leaves: list[Layer] = field(default_factory=list)
    rewrites: dict[str, str] = field(default_factory=dict)
    placed: dict[str, Wires] = field(default_factory=dict)
    made: dict[tuple[Any, ...], str] = field(default_factory=dict)
    waiting: list[Neurons] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.taken = {INPUT, OUTPUT, *(neurons.name for neurons in self.recorder.neurons)}
        self.known = set(self.recorder.paths.values())

    # -- the output ------------------------------------------------------------------------------

    def readout(self, output: Value, given: Tensor) -> OutputReading:
        """Return what reaches the graph's output, and what the module does behind it."""
        left_out: list[str] = []
        value, every_step = output, False
        tensor: Tensor | None = given
        behind: list[Callable[[Tensor], Tensor]] = []
        while True:
            every_step = every_step or value.over_time
            lead, here = value.lead, at(value, self.now)
            last = self._behind(here)
            if last is None:
                break
            said, value, function = last
            left_out.append(said)
            every_step = every_step or said == SUM
            if isinstance(here, Opaque):
                tensor = here.made_of[here.roots.index(value)] if here.made_of else None
                behind = []
            elif function is None or lead != STEP:
                # How it was reshaped, or each step of it made, is not followed; a spike or a voltage still is.
                tensor = None
            else:
                behind.insert(0, function)
        if not every_step and value.time is not None:
            left_out.append("last step alone")
        base = here.argument if isinstance(here, Viewed) else here
        wires = self.wires(base if type(base) is not Given else here)
        return OutputReading(wires, tuple(left_out[::-1]), tensor, lead, tuple(behind))

    def _behind(self, value: Value) -> tuple[str, Value, Callable[[Tensor], Tensor] | None] | None:
        """Return what was done last to a value, to which, and the function itself.

        None stands where the graph can give the value, and for a function that is not known.
        """
        if isinstance(value, Opaque):
            roots = {id(self._core(at(root, self.now))): root for root in value.roots}
            if len({self._core(at(root, self.now)) for root in value.roots}) != 1:
                return None
            return value.what, next(iter(roots.values())), None
        if isinstance(value, Added):
            parts = self._flat(value)
            times = [part.time or 0 for part in parts]
            every = sorted(times) == list(range(self.now + 1))
            if every and self.now > 1 and len({self._core(part) for part in parts}) == 1:
                last = max(parts, key=lambda part: part.time or 0)
                return SUM, last, lambda output: output.sum(1)
        if isinstance(value, Applied) and isinstance(value.module, Scale):
            inner = self._behind(at(value.argument, self.now))
            return None if inner is None else ("scaling", value.argument, value.module)
        if isinstance(value, Viewed):
            inner = self._behind(value.argument)
            return None if inner is None else ("reshaping", value.argument, None)
        return None

    def _core(self, value: Value) -> Any:
        """Return what tells two values apart, whatever their steps."""
        if isinstance(value, Fired):
            return ("neurons", value.neurons.name)
        if isinstance(value, Applied):
            return (id(value.module), self._core(value.argument))
        if isinstance(value, Viewed):
            return ("view", value.features, self._core(value.argument))
        if isinstance(value, (Added, Joined)):
            return (type(value).__name__, *(self._core(part) for part in value.parts))
        if isinstance(value, StackedSteps):
            return self._core(value.steps[self.now])
        return ("input",) if type(value) is Given else id(value)

    # -- wires -----------------------------------------------------------------------------------

    def wires(self, value: Value) -> Wires:
        """Return the layers whose outputs, added up, are a value; place those that are not placed yet."""
        value = at(value, self.now)
        if isinstance(value, GivenLast):
            raise LayoutError("module: its first layer receives all steps at once")
        if type(value) is Given:
            ago = 0 if value.time is None else self.now - value.time
            if ago:
                return self._fault("module: uses its input of an earlier step; keep it in neurons")
            return ((INPUT, 0),)
        if isinstance(value, Fired):
            return self._neurons(value)
        if isinstance(value, Held):
            what = {"v": "voltage", "i": "current"}.get(value.field, value.field)
            return self._fault(
                f"module '{value.neurons.path}': its {what} is used as a value; a graph gives its spikes alone, use an LICell to read out"
            )
        if isinstance(value, Applied):
            return self._layer(value)
        if isinstance(value, Viewed):
            return self._flatten(value)
        if isinstance(value, Added):
            found: Wires = ()
            for part in self._flat(value):
                found += self.wires(part)
            return found
        if isinstance(value, Joined):
            return self._joined(value)
        if isinstance(value, Opaque):
            return self._opaque(value)
        return self._fault(f"module: a {type(value).__name__} reaches a layer")

    def _fault(self, text: str) -> Wires:
        self.faults.append(text)
        return ()

    def _opaque(self, value: Opaque) -> Wires:
        cure = CURES.get(value.what, "do it before the network or behind it, or leave it out")
        # What is behind an unknown function of Norse has been told where that was met.
        if not value.what.endswith(("_step", "_encode", "_encoder")):
            self.faults.append(
                f"{value.where} cannot be exported where it stands, before neurons; {cure}"
            )
        # A state of the step before, which an unknown neuron was given, has told its faults at that step.
        for root in value.roots:
            if root.time in (None, value.time):
                self.wires(root)
        return ()

    def _flat(self, value: Value) -> list[Value]:
        """Return the parts of a sum in the order in which they are added."""
        if not isinstance(value, Added):
            return [value]
        first, *rest = value.parts
        # a + (b + c) rounds as (b + c) + a does, and a graph adds from the left.
        if len(rest) == 1 and isinstance(rest[0], Added) and not isinstance(first, Added):
            return [*self._flat(rest[0]), first]
        return [part for each in value.parts for part in self._flat(each)]

    def _neurons(self, value: Fired) -> Wires:
        neurons, ago = value.neurons, self.now - (value.time or 0)
        if ago > 1:
            return self._fault(
                f"module '{neurons.path}': what it gave more than one step before is used; a graph knows the step before alone, so sum "
                "over time behind the last layer, or let an LICell add it up"
            )
        if ago:
            self.waiting.append(neurons)
        else:
            self.place(neurons)
        return ((neurons.name, ago),)

    def place(self, neurons: Neurons) -> None:
        """Place neurons behind what they hear."""
        if neurons.name in self.placed:
            return
        self.placed[neurons.name] = ()
        heard = neurons.heard[self.now] if self.now < len(neurons.heard) else None
        if heard is None:
            self._fault(f"module '{neurons.path}': hears nothing that comes from the input")
            return
        wires = self.wires(heard)
        path = neurons.path
        if neurons.kind == ANY:
            kernel, stride, padding, ceil_mode = neurons.parameters
            # Spikes are at least 0, so that zeros beyond an edge change no maximum.
            added: nn.Module = SumPool2d(kernel, stride)
            if any(padding) or ceil_mode:
                added = nn.AvgPool2d(kernel, stride, padding, ceil_mode, divisor_override=1)
            total = self._add("sum", path, added.eval(), wires, f"{neurons.name}_sum")
            self._add("max", path, _any(self.dt_s), ((total, 0),), neurons.name)
            self.rewrites[path] = "a maximum of spikes as their sum and neurons that fire on any"
            return
        if len(neurons.weights) == 1:
            weight = neurons.weights[0]
            into = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            into.weight = nn.Parameter(weight.detach())
            wires = ((self._add("linear", path, into.eval(), wires, f"{neurons.name}_in"), 0),)
        self._add("lif", path, as_cell(neurons), wires, neurons.name)

    def place_delayed(self) -> None:
        """Place the neurons that only later steps hear."""
        while self.waiting:
            self.place(self.waiting.pop())

    def collect(self) -> None:
        """Go through all neurons for the sake of their faults."""
        for neurons in self.recorder.neurons:
            if self.now < len(neurons.heard):
                self.place(neurons)

    def _layer(self, value: Applied) -> Wires:
        argument = at(value.argument, self.now)
        module = value.module
        if isinstance(argument, Joined) and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            split = self._split(value, argument)
            if split is not None:
                return split
        wires = self.wires(argument)
        key = (id(module), wires)
        if key not in self.made:
            self.made[key] = self._add(KINDS[type(module)], value.path, module, wires)
        return ((self.made[key], 0),)

    def _split(self, value: Applied, joined: Joined) -> Wires | None:
        """Return one synapse per part of a concatenation; their sum is the synapse of the whole."""
        module: Any = value.module
        if not isinstance(module, nn.Linear) and module.groups > 1:
            return None
        found: Wires = ()
        start = 0
        for number, part in enumerate(joined.parts):
            stop = start + part.features[0]
            wires = self.wires(part)
            key = (id(module), number, wires)
            if key not in self.made:
                own = _columns(module, start, stop, bias=number == 0)
                name = self._name(value.path, KINDS[type(module)])
                self.made[key] = self._add(
                    "", value.path, own, wires, self._free(f"{name}_part{number}")
                )
            found += ((self.made[key], 0),)
            start = stop
        self.rewrites[value.path] = (
            f"one synapse for each of the {len(joined.parts)} parts that it receives"
        )
        return found

    def _joined(self, value: Joined) -> Wires:
        """Put each part in its place by a synapse of ones, which changes no number."""
        found: Wires = ()
        total, start = value.features[0], 0
        for part in value.parts:
            size = part.features[0]
            weight = torch.zeros(total, size)
            weight[start : start + size] = torch.eye(size)
            place: Any
            if len(value.features) == 1:
                place = nn.Linear(size, total, bias=False)
            else:
                axes = len(value.features) - 1
                place = (nn.Conv2d if axes == 2 else nn.Conv1d)(size, total, 1, bias=False)
                weight = weight.reshape(total, size, *[1] * axes)
            place.weight = nn.Parameter(weight)
            found += ((self._add("join", "", place.eval(), self.wires(part)), 0),)
            start += size
        self.rewrites["a concatenation"] = "synapses of ones that put its parts in their places"
        return found

    def _flatten(self, value: Viewed) -> Wires:
        before, after = value.argument.features, value.features
        for first in range(len(before)):
            for last in range(first, len(before)):
                if (*before[:first], prod(before[first : last + 1]), *before[last + 1 :]) == after:
                    end = -1 if last == len(before) - 1 else last + 1
                    wires = self.wires(value.argument)
                    key = ("flatten", first, end, wires)
                    if key not in self.made:
                        flatten = nn.Flatten(first + 1, end).eval()
                        self.made[key] = self._add("flatten", "", flatten, wires)
                    return ((self.made[key], 0),)
        cure = (
            "give the data in the shape that is needed, as input_shape"
            if type(value.argument) is Given
            else "flatten alone"
        )
        self.wires(value.argument)
        return self._fault(
            f"module: brings {before} into the shape {after}, and a graph can only flatten; {cure}"
        )

    # -- layers ----------------------------------------------------------------------------------

    def _add(
        self, kind: str, path: str, module: nn.Module, wires: Wires, name: str | None = None
    ) -> str:
        name = name or self._free(self._name(path, kind))
        self.taken.add(name)
        now = tuple(source for source, ago in wires if not ago)
        before = tuple(source for source, ago in wires if ago)
        for names in (now, before):
            if len(set(names)) < len(names):
                self.faults.append(
                    f"module '{path}': receives the same output twice, and NIR has no double edges; double the weights instead"
                )
        if before and not isinstance(module, nn.Linear) and not hasattr(module, "dt"):
            self.faults.append(
                f"module '{path}': {type(module).__name__} receives a value of the step before; let it go through an nn.Linear"
            )
        self.leaves.append(Layer(name, path, module, now, before))
        return name

    def _name(self, path: str, kind: str) -> str:
        known = path in self.known
        return node_name(path, kind) if path and known else f"{kind}_{len(self.leaves)}"

    def _free(self, base: str) -> str:
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        return name


def _any(dt_s: float) -> nn.Module:
    """Return neurons that fire on any input and forget it: their time constant is one step."""
    inverse = torch.tensor(1 / dt_s)
    # Rounded up it would decay by more than all.
    while float(torch.tensor(dt_s) * inverse) > 1:
        inverse = torch.nextafter(inverse, torch.tensor(0.0))
    p = snn.LIFBoxParameters(tau_mem_inv=inverse, v_th=torch.tensor(0.5))
    return snn.LIFBoxCell(p, dt=dt_s).eval()


def _columns(module: Any, start: int, stop: int, *, bias: bool) -> nn.Module:
    """Return the synapse of some of the input's features or channels."""
    weight = module.weight.detach()[:, start:stop]
    offset = module.bias.detach() if bias and module.bias is not None else None
    part: Any
    if isinstance(module, nn.Linear):
        part = nn.Linear(stop - start, len(weight), bias=offset is not None)
    else:
        part = type(module)(
            stop - start, len(weight), module.kernel_size, module.stride, module.padding,
            module.dilation, bias=offset is not None, padding_mode=module.padding_mode,
        )  # fmt: skip
    part.weight = nn.Parameter(weight.clone())
    if offset is not None:
        part.bias = nn.Parameter(offset)
    return part.eval()
