"""Values that a module handles while it is recorded: where each tensor came from.

A value has leading axes (`T` time, `B` samples, `TB` both in one), the sizes behind them, and the step it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import Tensor, nn

Shape = tuple[int, ...]
STEP = ("B",)
"""Leading axes of a value of one time step."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the module.

    Args:
        lead: leading axes, outermost first.
        features: sizes behind the leading axes.
        time: the step it belongs to; None for all steps at once, and for what is the same at every step.
    """

    lead: tuple[str, ...]
    features: Shape
    time: int | None

    @property
    def over_time(self) -> bool:
        """Tell whether the tensor holds every step."""
        return any("T" in axis for axis in self.lead)


class Given(Value):
    """The module's input."""


class GivenLast(Given):
    """The module's input with its steps along the last axis, which `features` counts too."""


@dataclass(eq=False)
class Neurons:
    """One population of neurons: the calls of one cell, each with the state that the call before gave back.

    Args:
        kind: name of the Norse cell that does the same, or `ANY` for a maximum of spikes.
        name: name of its node.
        path: path of the cell in the module, or the place of the call.
        parameters, dt: Norse's own.
        weights: input and recurrent weights, where the function takes them.
        heard: what each call got; None for what does not come from the input.
        given, voltage: tensors of every call, (B, *features).
        spiking: whether `given` are spikes.
        state: tensors of the state that the last call gave back, by field.
    """

    kind: str
    name: str
    path: str
    parameters: Any
    dt: float
    weights: tuple[Tensor, ...] = ()
    heard: list[Value | None] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    voltage: list[Tensor] = field(default_factory=list)
    spiking: bool = True


@dataclass(frozen=True, eq=False)
class Fired(Value):
    """The output of neurons at one step."""

    neurons: Neurons


@dataclass(frozen=True, eq=False)
class Held(Value):
    """A field of the state that neurons gave back at one step."""

    neurons: Neurons
    field: str


@dataclass(frozen=True, eq=False)
class Applied(Value):
    """The output of a layer without a state."""

    module: nn.Module
    path: str
    argument: Value


@dataclass(frozen=True, eq=False)
class Viewed(Value):
    """The same numbers in another shape."""

    argument: Value


@dataclass(frozen=True, eq=False)
class Added(Value):
    """A sum."""

    parts: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Joined(Value):
    """Parts behind each other along the first axis of the features."""

    parts: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class StackedSteps(Value):
    """A value of every step, put together."""

    steps: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Opaque(Value):
    """The result of something that no graph holds.

    Args:
        what: name of the function.
        where: place of the call.
        roots: the values it was made of.
        made_of: their tensors.
    """

    what: str
    where: str
    roots: tuple[Value, ...]
    made_of: tuple[Tensor, ...] = ()


def at(value: Value, step: int) -> Value:
    """Return the value of one step; what is the same at every step stays as it is."""
    if isinstance(value, StackedSteps):
        return value.steps[step]
    if not value.over_time:
        return value
    here: dict[str, Any] = {"lead": STEP, "time": step}
    if isinstance(value, Viewed):
        # A step may be a view itself, and two of them may cancel each other.
        return view(at(value.argument, step), value.features)
    if isinstance(value, Applied):
        here["argument"] = at(value.argument, step)
    elif isinstance(value, (Added, Joined)):
        here["parts"] = tuple(at(part, step) for part in value.parts)
    elif isinstance(value, Opaque):
        here["roots"] = tuple(at(root, step) for root in value.roots)
        pairs = list(zip(value.roots, value.made_of, strict=False))
        # Steps and samples in one axis are not told apart here.
        known = all(not {"TB", "BT"} & set(root.lead) for root, _ in pairs)
        here["made_of"] = tuple(_step_of(root, x, step) for root, x in pairs) if known else ()
    return replace(value, **here)


def _step_of(value: Value, x: Tensor, step: int) -> Tensor:
    """Return the part of a value's tensor that belongs to one step."""
    if not value.over_time:
        return x
    return x.select(value.lead.index("T"), step) if "T" in value.lead else x[..., step]


def latest(*values: Value) -> int | None:
    """Return the last step that values belong to."""
    times = [value.time for value in values if value.time is not None]
    return max(times) if times else None


def view(value: Value, features: Shape, lead: tuple[str, ...] | None = None) -> Value:
    """Return the value with other sizes behind the leading axes, and no more views on top of each other than needed."""
    lead = value.lead if lead is None else lead
    base = value.argument if isinstance(value, Viewed) else value
    if base.features == features:
        return replace(base, lead=lead)
    if isinstance(base, Joined) and len(features) == 1:
        # The parts of a flattened concatenation lie behind each other, too.
        parts = tuple(view(part, (prod(part.features),), lead) for part in base.parts)
        return Joined(lead, features, base.time, parts)
    return Viewed(lead, features, base.time, base)


def origin(value: Value | None) -> str | None:
    """Return the path of the layer that a value comes out of, None where that is not one layer."""
    if isinstance(value, (Fired, Held)):
        return value.neurons.path
    if isinstance(value, Applied):
        return value.path
    if isinstance(value, Viewed):
        return origin(value.argument)
    if isinstance(value, StackedSteps):
        found = {origin(step) for step in value.steps}
        return found.pop() if len(found) == 1 else None
    return None


def is_spikes(value: Value | None) -> bool:
    """Tell whether a value holds nothing but 0 and 1."""
    if isinstance(value, Fired):
        return value.neurons.spiking
    if isinstance(value, Viewed):
        return is_spikes(value.argument)
    if isinstance(value, Joined):
        return all(is_spikes(part) for part in value.parts)
    return isinstance(value, StackedSteps) and all(is_spikes(step) for step in value.steps)


def never_negative(value: Value | None) -> bool:
    """Tell whether a value holds nothing below 0, so that a rectifier changes nothing."""
    if isinstance(value, Applied):
        pools = (nn.AvgPool2d, nn.LPPool2d)
        return isinstance(value.module, pools) and never_negative(value.argument)
    if isinstance(value, Viewed):
        return never_negative(value.argument)
    if isinstance(value, (Added, Joined)):
        return all(never_negative(part) for part in value.parts)
    if isinstance(value, StackedSteps):
        return all(never_negative(step) for step in value.steps)
    return is_spikes(value)
