"""Record what a module does while it runs: which tensor was made of which, and which neurons stepped when.

torch hands every function that it calls to a `TorchFunctionMode`; Norse's own functions that step neurons are met by
Python's profiler, since a module may call them by any name, in a cell or without one. What neither knows becomes an
`Opaque` value: harmless behind the last neuron, a reason to refuse in front of one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any

import norse
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from knarr.export.errors import ExportError
from knarr.export.graph.parameters import ints
from knarr.export.graph.step_synapses import sum_pool2d
from knarr.export.norse.modules import INPUT, OUTPUT, Scale, SumPool2d
from knarr.export.norse.steps import KNOWN, NeuronFunction, begins_at_rest, cure, is_unknown
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
    Shape,
    StackedSteps,
    Value,
    Viewed,
    at,
    is_spikes,
    latest,
    never_negative,
    view,
)

LAST = "T-"
"""The axis of time where it lies behind the features."""
ANY = "MaxPool2d"
"""Kind of the neurons that fire where any of a window fired: a maximum of spikes."""
_LIBRARIES = (Path(torch.__file__).parent, Path(norse.__file__).parent, Path(__file__).parent)
_SAME = {"get_data", "detach", "clone", "contiguous", "float", "to", "cpu", "cuda", "requires_grad", "type_as", "alias", "type"}  # fmt: skip
_DROPOUT = {"dropout", "dropout1d", "dropout2d", "feature_dropout", "alpha_dropout"}
_IN_PLACE = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__idiv__": "div"}  # fmt: skip
_RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "view_as", "reshape_as", "ravel"}
_TURNS = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}


@cache
def is_library(file: str) -> bool:
    """Tell whether code is torch's, Norse's or this package's, and not the user's."""
    return any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)


def node_name(path: str, kind: str) -> str:
    """Return what a module at a path is called in a graph, such as conv1, or conv_0 for the first of a row."""
    parts = [part for part in path.split(".") if part and part != "lifted_module"]
    name = "_".join(parts)
    return name if name and not name[0].isdigit() else "_".join((kind, *parts))


class LayoutError(ExportError):
    """The module reads its input's axes in another order than it was given in."""


class ModuleRecorder(TorchFunctionMode):
    """Watches one run of a module.

    Args:
        module: the module that runs.

    Attributes:
        neurons: every population that stepped, in the order of its first step.
        faults: what no graph holds, met so far.
        lengths: sizes of the leading axes.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.neurons: list[Neurons] = []
        self.faults: list[str] = []
        self.lengths: dict[str, int] = {}
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.parts = dict(module.named_modules())
        self._owners: dict[int, str] = {}
        for path, part in module.named_modules():
            for parameter in part.parameters(recurse=False):
                self._owners.setdefault(id(parameter), path)
        self._values: Any = WeakTensorKeyDictionary()
        self._buffers: Any = WeakTensorKeyDictionary()
        self._made: dict[tuple[Any, ...], tuple[nn.Module, tuple[Any, ...]]] = {}
        self._maxima: dict[tuple[str, int, int], int] = {}
        # A frame of a function that is being stepped over, and what to do when it returns.
        self._inside: FrameType | None = None
        self._finish: Callable[[Any], None] = lambda result: None

    def give(self, x: Tensor, lead: tuple[str, ...], time: int | None = None) -> None:
        """Take a tensor as the module's input."""
        self.lengths |= {axis: x.shape[i] for i, axis in enumerate(lead)}
        self._values[x] = Given(lead, tuple(x.shape[len(lead) :]), time)

    def give_last(self, x: Tensor) -> None:
        """Take (B, *features, T) as the module's input."""
        self.lengths |= {"B": x.shape[0], "T": x.shape[-1]}
        self._values[x] = GivenLast(STEP, tuple(x.shape[1:]), None)

    def find(self, x: Any) -> Value | None:
        """Return where a tensor came from; None for what does not come from the input."""
        if not isinstance(x, Tensor):
            return None
        found: Value | None = self._values.get(x)
        if found is None and x in self._buffers:
            found = self._buffered(x)
        return found

    # -- running ---------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is called inside the block."""
        before = sys.getprofile()
        with torch.no_grad(), self:
            sys.setprofile(self._profile)
            try:
                yield
            finally:
                sys.setprofile(before)

    def _profile(self, frame: FrameType, event: str, result: Any) -> None:
        if event == "call" and self._inside is None:
            code = frame.f_code
            if code not in KNOWN and code is not sum_pool2d.__code__ and not is_unknown(code):
                return
            arguments = dict(frame.f_locals)
            self._inside = frame
            if code in KNOWN:
                with torch._C.DisableTorchFunction():
                    called = self._call(KNOWN[code], arguments, frame)
                self._finish = lambda given: self._stepped(called, given)
            elif code is sum_pool2d.__code__:
                self._finish = lambda given: self._sum_pooled(arguments, given)
            else:
                name = code.co_name
                whose = self._whose(name, frame.f_back)
                self.faults.append(f"{whose} cannot be exported; {cure(name)}")
                self._finish = lambda given: self._opaque(name, whose, arguments.values(), given)
        elif event == "return" and frame is self._inside:
            self._inside = None
            # None is also what an exception leaves behind.
            if result is not None:
                with torch._C.DisableTorchFunction():
                    self._finish(result)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, and note what its result was made of."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if self._inside is not None:
            return func(*args, **kwargs)
        if name == "__get__":
            name = f"get_{getattr(func.__self__, '__name__', '')}"
        known = [
            (x, value) for x in _tensors((args, kwargs)) if (value := self.find(x)) is not None
        ]
        if name == "__bool__" and known:
            _, where = self._place(sys._getframe(1))
            self.faults.append(
                f"module: asks in {where} whether a value of the network is true, so that what it does depends on the data; "
                "take the question out of forward"
            )
        plain = _IN_PLACE.get(name) or (name if name.startswith("__") else name.rstrip("_"))
        noted = args
        if plain != name and known and args and isinstance(args[0], Tensor):
            # A change in place overwrites its own operand, so the value before it is kept.
            with torch._C.DisableTorchFunction():
                noted = (args[0].detach().clone(), *args[1:])
            value = self.find(args[0])
            if value is not None:
                self._values[noted[0]] = value
        result = func(*args, **kwargs)
        # A buffer that is written into step by step belongs to no value before.
        if name == "__setitem__":
            self._write(args)
        elif known and any(True for _ in _tensors(result)):
            self._note(plain, noted, kwargs, result)
        return result

    # -- places ----------------------------------------------------------------------------------

    def _place(self, frame: FrameType | None) -> tuple[str, str]:
        """Return the path of the innermost module that is running, and where in the user's code it is called."""
        path, where = None, ""
        while frame is not None and (path is None or not where):
            own = frame.f_locals.get("self")
            if path is None and isinstance(own, nn.Module) and id(own) in self.paths:
                path = self.paths[id(own)]
            if not where and not is_library(frame.f_code.co_filename):
                where = f"{Path(frame.f_code.co_filename).name} line {frame.f_lineno}"
            frame = frame.f_back
        return path or "", where

    def _name(self, path: str, kind: str) -> str:
        """Return a new name for neurons."""
        base = node_name(path, kind)
        taken = {INPUT, OUTPUT, *(neurons.name for neurons in self.neurons)}
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        return name

    def _whose(self, what: str, frame: FrameType | None = None) -> str:
        """Return the words with which a message begins about a function that was just called."""
        path, where = self._place(frame or sys._getframe(2))
        part = self.parts.get(path)
        if part is not None and path and not list(part.children()):
            return f"module '{path}': {type(part).__name__}"
        return f"module{f' {path!r}' if path else ''}: '{what}' in {where}"

    # -- neurons ---------------------------------------------------------------------------------

    def _call(self, known: NeuronFunction, arguments: dict[str, Any], frame: FrameType) -> Neurons:
        """Return the neurons that a call steps, with what they hear."""
        x, state, p = arguments[known.inputs], arguments[known.state], arguments["p"]
        parts = {"v": state} if isinstance(state, Tensor) else state._asdict()
        held = {name: self.find(part) for name, part in parts.items()}
        weights = tuple(arguments[name] for name in known.weights)
        before = {name: value for name, value in held.items() if value is not None}
        source = next((v.neurons for v in before.values() if isinstance(v, (Held, Fired))), None)
        if source is None and not before:
            path, where = self._place(frame.f_back)
            neurons = Neurons(
                known.kind,
                self._name(path, known.kind.removesuffix("Cell").lower()),
                path or where,
                p,
                float(arguments["dt"]),
                weights,
                spiking=known.spiking,
            )
            if not begins_at_rest(known, state, p):
                self.faults.append(
                    f"module '{neurons.path}': begins with a state of its own, and a graph begins at rest; begin with state None"
                )
            self.neurons.append(neurons)
        elif source is None or not self._continues(source, held):
            name = source.path if source is not None else known.kind
            raise ExportError(
                f"module '{name}': its state is changed between two steps, or handed to other neurons; hand on what the cell "
                "gave back"
            )
        else:
            neurons = source
            if not _same(neurons.parameters, p) or any(
                a is not b for a, b in zip(neurons.weights, weights, strict=True)
            ):
                raise ExportError(
                    f"module '{neurons.path}': its parameters change from step to step; a graph has one value for all steps"
                )
        heard = self.find(x)
        if heard is not None and (heard.over_time or "1" in heard.lead):
            raise LayoutError(
                f"module '{neurons.path}': receives all steps at once, as if they were samples; step it in time"
            )
        neurons.heard.append(heard)
        return neurons

    def _continues(self, neurons: Neurons, held: dict[str, Value | None]) -> bool:
        """Tell whether a state is what the neurons gave back at their last step."""
        last = len(neurons.given) - 1
        for name, value in held.items():
            if isinstance(value, Viewed):
                value = value.argument
            field = isinstance(value, Held) and value.field == name
            # Recurrent neurons hold their spikes in their state, and what never fires gives its voltage.
            given = isinstance(value, Fired) and name == ("z" if neurons.spiking else "v")
            if not (field or given) or value.neurons is not neurons or value.time != last:  # type: ignore[union-attr]
                return False
        return True

    def _stepped(self, neurons: Neurons, result: Any) -> None:
        """Note what neurons gave and hold after a step."""
        out, state = result
        time, features = len(neurons.given), tuple(out.shape[1:])
        parts = {"v": state} if isinstance(state, Tensor) else state._asdict()
        shape = (len(out), *self._shape(neurons, features))
        neurons.given.append(out.detach().reshape(shape).clone())
        neurons.voltage.append(parts["v"].detach().expand(out.shape).reshape(shape).clone())
        for name, part in parts.items():
            self._values[part] = Held(STEP, features, time, neurons, name)
        # Last: what a cell gives may be a field of its state, too.
        self._values[out] = view(Fired(STEP, shape[1:], time, neurons), features)

    @staticmethod
    def _shape(neurons: Neurons, features: Shape) -> Shape:
        """Return the shape in which neurons are written.

        Neurons that are all alike and hear the input in another shape are written in the input's own, since NIR can
        flatten a shape and has no way back.
        """
        heard = neurons.heard[-1]
        base: Any = heard.argument if isinstance(heard, Viewed) else None
        while isinstance(base, Applied) and isinstance(base.module, Scale):
            base = base.argument
        fields = ("tau_mem_inv", "tau_syn_inv", "v_leak", "v_th", "v_reset")
        values = [getattr(neurons.parameters, name, None) for name in fields]
        alike = all(not isinstance(value, Tensor) or value.ndim == 0 for value in values)
        if not isinstance(heard, Viewed) or type(base) is not Given or neurons.weights or not alike:
            return features
        neurons.heard[-1] = heard.argument
        return heard.argument.features

    # -- functions of torch ----------------------------------------------------------------------

    def _note(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        value = None
        if isinstance(result, Tensor):
            value = self._function(name, args, kwargs, result)
        elif name == "unbind":
            self._unbound(args, kwargs, result)
            return
        if value is None:
            said = self._said(name, args, kwargs)
            self._opaque(said, self._whose(said), (*args, *kwargs.values()), result)
        else:
            self._values[result] = value

    def _function(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        """Return the value that a function gave; None where it is nothing that a graph holds."""
        first = self.find(args[0]) if args else self.find(kwargs.get("input"))
        if name in ("cat", "concat", "concatenate", "stack"):
            tensors = args[0] if args else kwargs["tensors"]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            together = self._stack if name == "stack" else self._cat
            return together(tensors, dim, result)
        if name in ("add", "__radd__", "sub", "__rsub__", "rsub", "mul", "__rmul__", "div", "true_divide", "neg"):  # fmt: skip
            return self._arithmetic(name, args, kwargs, result)
        if first is None:
            return None
        if name in _SAME:
            return first if result.is_floating_point() else None
        if name in _DROPOUT:
            training = kwargs.get("training", args[2] if len(args) > 2 else False)
            return None if training else first
        if name == "relu":
            return first if never_negative(first) else None
        if name == "unsqueeze" and first.lead == STEP and self._dim(args, kwargs, first) in (0, 1):
            self.lengths["1"] = 1
            lead = ("1", "B") if self._dim(args, kwargs, first) == 0 else ("B", "1")
            return replace(first, lead=lead)
        if name in _RESHAPES:
            return self._reshaped(first, tuple(result.shape))
        if name in _TURNS:
            return self._turned(name, first, args, kwargs)
        if name in ("__getitem__", "select"):
            return self._taken(name, first, args, kwargs)
        if name == "sum" and first.lead[:1] == ("S",) and self._dim(args, kwargs, first) == 0:
            return Added(first.lead[1:], first.features, first.time, first.roots)  # type: ignore[attr-defined]
        layer = _LAYERS.get(name)
        return None if layer is None else layer(self, first, args, kwargs, result)

    def _opaque(self, what: str, where: str, made_of: Any, result: Any) -> None:
        found = [(value, x) for x in _tensors(made_of) if (value := self.find(x)) is not None]
        roots, tensors = tuple(value for value, _ in found), tuple(x.detach() for _, x in found)
        for x in _tensors(result):
            lead = self._lead(x, roots)
            features = tuple(x.shape[len(lead) :])
            self._values[x] = Opaque(lead, features, latest(*roots), what, where, roots, tensors)

    def _said(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """Return what a function did, as a message names it."""
        first = self.find(args[0]) if args else None
        words = {
            "__getitem__": "indexing",
            "max": "maximum",
            "amax": "maximum",
            "matmul": "product",
        }
        said = words.get(name, name.strip("_"))
        if name in ("max", "amax", "sum", "mean") and first is not None:
            dim = self._dim(args, kwargs, first)
            over = dim is not None and dim < len(first.lead) and first.lead[dim] == "T"
            return f"{said} over time" if over else said
        return said

    def _lead(self, x: Tensor, roots: Sequence[Value]) -> tuple[str, ...]:
        """Return the leading axes that a result has in common with what it was made of."""
        for root in roots:
            sizes = tuple(self.lengths.get(axis, -1) for axis in root.lead)
            if tuple(x.shape[: len(sizes)]) == sizes:
                return root.lead
        return ("?",)

    @staticmethod
    def _dim(args: Sequence[Any], kwargs: dict[str, Any], value: Value) -> int | None:
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        if isinstance(dim, (tuple, list)) and len(dim) == 1:
            dim = dim[0]
        if not isinstance(dim, int) or isinstance(dim, bool):
            return None
        return dim if dim >= 0 else dim + len(value.lead) + len(value.features)

    # -- time ------------------------------------------------------------------------------------

    def _unbound(self, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        value = self.find(args[0])
        dim = self._dim(args, kwargs, value) if value is not None else None
        dim = 0 if dim is None and len(args) < 2 and not kwargs else dim
        if isinstance(value, GivenLast) and dim == len(value.features):
            for step, part in enumerate(result):
                self._values[part] = Given(STEP, value.features[:-1], step)
            return
        if isinstance(value, Given) and dim == 0 and value.lead[:1] == STEP:
            raise LayoutError("module: goes through the samples of its input as if they were steps")
        along_time = value is not None and dim is not None and value.lead[dim : dim + 1] == ("T",)
        if value is None or not along_time or len(value.lead) != 2:
            self._opaque("unbind", self._whose("unbind"), args, result)
            return
        for step, part in enumerate(result):
            self._values[part] = at(value, step)

    def _taken(
        self, name: str, value: Value, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Value | None:
        """Return one step of a value that holds all of them."""
        index = args[1] if len(args) > 1 else kwargs.get("index")
        if name == "select":
            index = (*[slice(None)] * int(args[1]), args[2]) if len(args) > 2 else None
        places = index if isinstance(index, tuple) else (index,)
        if isinstance(value, GivenLast):
            return self._taken_last(value, places)
        if Ellipsis in [p for p in places if not isinstance(p, Tensor)]:
            return (
                None
                if places[-1] is not Ellipsis
                else self._taken(name, value, (args[0], places[:-1]), {})
            )
        if all(isinstance(place, slice) and place == slice(None) for place in places):
            return value
        whole = isinstance(places[0], (slice, type(None)))
        if not whole and value.lead == STEP and isinstance(value, Given):
            raise LayoutError("module: takes single samples out of its input as if they were steps")
        steps = [(axis, p) for axis, p in enumerate(places) if not isinstance(p, slice)]
        rest = [p for p in places if isinstance(p, slice)]
        if len(steps) != 1 or any(p != slice(None) for p in rest) or len(value.lead) != 2:
            return None
        axis, place = steps[0]
        if isinstance(place, Tensor) and place.ndim == 0 and not place.is_floating_point():
            place = int(place)
        if not isinstance(place, int) or isinstance(place, bool) or axis > 1:
            return None
        if value.lead[axis] != "T":
            if not isinstance(value, Given):
                return None
            raise LayoutError("module: takes single samples out of its input as if they were steps")
        return at(value, place if place >= 0 else place + self.lengths["T"])

    def _taken_last(self, value: GivenLast, places: tuple[Any, ...]) -> Value | None:
        """Return one step of an input whose steps lie along the last axis."""
        *before, place = places
        if isinstance(place, Tensor) and place.ndim == 0 and not place.is_floating_point():
            place = int(place)
        plain = all(isinstance(p, slice) and p == slice(None) for p in before if p is not Ellipsis)
        all_axes = Ellipsis in before or len(places) == 1 + len(value.features)
        if not (plain and all_axes and isinstance(place, int) and not isinstance(place, bool)):
            return None
        step = place if place >= 0 else place + self.lengths["T"]
        return Given(STEP, value.features[:-1], step)

    def _write(self, args: Sequence[Any]) -> None:
        """Note that a step's value was written into a tensor of all steps."""
        target, index, brought = args
        value = self.find(brought)
        if value is None:
            if target in self._buffers or self._values.get(target) is not None:
                self._opaque("assignment", self._whose("assignment"), (target,), target)
                self._buffers.pop(target, None)
            return
        places = index if isinstance(index, tuple) else (index,)
        places = tuple(int(p) if isinstance(p, Tensor) and p.ndim == 0 else p for p in places)
        single = [axis for axis, place in enumerate(places) if isinstance(place, int)]
        plain = all(isinstance(p, int) or p is Ellipsis or p == slice(None) for p in places)
        step = places[single[0]] if len(single) == 1 else None
        whole = plain and len(single) == 1 and single[0] < 2 and value.lead == STEP
        written: dict[int, Value] = self._buffers.setdefault(target, {})
        if whole and value.time in (step, None) and self._values.get(target) is None:
            written[step if single[0] == 0 else -1 - int(step)] = value  # type: ignore[index, arg-type]
            return
        self._buffers.pop(target, None)
        self._opaque("assignment", self._whose("assignment"), (target, brought), target)

    def _buffered(self, x: Tensor) -> Value | None:
        """Return the value of a tensor into which every step was written."""
        written: dict[int, Value] = self._buffers[x]
        lead = ("B", "T") if any(place < 0 for place in written) else ("T", "B")
        steps = [
            written.get(t if lead[0] == "T" else -1 - t) for t in range(x.shape[lead.index("T")])
        ]
        if not steps or any(step is None for step in steps):
            return None
        self.lengths.setdefault("T", len(steps))
        return StackedSteps(
            lead, tuple(x.shape[2:]), None, tuple(step for step in steps if step is not None)
        )

    def _stack(self, tensors: Sequence[Any], dim: int, result: Tensor) -> Value | None:
        parts = [self.find(x) for x in tensors]
        if any(part is None or part.lead != STEP for part in parts):
            return None
        found = [part for part in parts if part is not None]
        if dim in (-1, result.ndim - 1) and dim not in (0, 1):
            dim = -1
        times = [part.time for part in found]
        if times == list(range(len(found))) and dim in (0, 1, -1):
            self.lengths.setdefault("T", len(found))
            lead = {0: ("T", "B"), 1: ("B", "T"), -1: ("B", LAST)}[dim]
            return StackedSteps(lead, found[0].features, None, tuple(found))
        if dim == 0:
            # What a sum along this axis makes an addition of.
            return Opaque(
                ("S", "B"),
                found[0].features,
                latest(*found),
                "stack",
                self._whose("stack"),
                tuple(found),
            )
        return None

    # -- shapes ----------------------------------------------------------------------------------

    def _reshaped(self, value: Value, shape: Shape) -> Value | None:
        sizes, features = self.lengths, prod(value.features)
        both = sizes.get("T", 0) * sizes.get("B", 0)
        leads = {value.lead: tuple(sizes.get(axis, both) for axis in value.lead)}
        if value.lead in (("T", "B"), ("B", "T")):
            leads[("".join(value.lead),)] = (both,)
        if "1" in value.lead:
            leads[STEP] = (sizes["B"],)
        if value.lead in (("TB",), ("BT",)):
            apart = tuple(value.lead[0])
            leads[apart] = tuple(sizes[axis] for axis in apart)
        for lead, length in leads.items():
            if shape[: len(lead)] == length and prod(shape[len(lead) :]) == features:
                return view(value, shape[len(lead) :], lead)
        return None

    def _turned(
        self, name: str, value: Value, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Value | None:
        """Return a value whose leading axes changed places."""
        count = len(value.lead) + len(value.features)
        # The same call on a tensor that holds the numbers of its axes tells where each of them went.
        axes = torch.empty(tuple(range(2, 2 + count)), device="meta")
        with torch._C.DisableTorchFunction():
            turned = getattr(torch.Tensor, name)(axes, *args[1:], **kwargs)
        order = [size - 2 for size in turned.shape]
        if isinstance(value, GivenLast):
            # Time that lay last may come first, and leaves an input like any other.
            front = order.index(count - 1)
            rest = [axis for axis in order if axis != count - 1]
            if front > 1 or rest != list(range(count - 1)):
                return None
            return Given(("T", "B") if front == 0 else ("B", "T"), value.features[:-1], None)
        leads = len(value.lead)
        if order[leads:] != list(range(leads, count)):
            return None
        return replace(value, lead=tuple(value.lead[axis] for axis in order[:leads]))

    def _cat(self, tensors: Sequence[Any], dim: int, result: Tensor) -> Value | None:
        parts = [self.find(x) for x in tensors]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or len({part.lead for part in found}) != 1:
            return None
        lead = found[0].lead
        axis = dim if dim >= 0 else dim + result.ndim
        times = [part.time for part in found]
        if (
            sorted(lead) == ["1", "B"]
            and axis == lead.index("1")
            and times == list(range(len(found)))
        ):
            # Single steps behind each other are all of them.
            self.lengths.setdefault("T", len(found))
            steps = tuple(replace(part, lead=STEP) for part in found)
            return StackedSteps(
                ("T", "B") if axis == 0 else ("B", "T"), found[0].features, None, steps
            )
        if axis != len(lead) or not found[0].features:
            return None
        features = tuple(result.shape[len(lead) :])
        return Joined(lead, features, latest(*found), tuple(found))

    # -- arithmetic ------------------------------------------------------------------------------

    def _arithmetic(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
            return None
        a, b = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        if name in ("__rsub__", "rsub"):
            a, b, name = b, a, "sub"
        left, right = self.find(a), self.find(b)
        if name == "neg":
            return None if left is None else self._scaled(left, -1.0)
        if name.strip("_") in ("add", "radd", "sub"):
            if name == "sub":
                if right is not None:
                    right = self._scaled(right, -1.0)
                elif left is not None:
                    return left if _is_zero(b) else None
            if left is not None and right is not None:
                if left.features != right.features or left.lead != right.lead:
                    return None
                return Added(left.lead, left.features, latest(left, right), (left, right))
            constant, value = (a, right) if left is None else (b, left)
            return value if _is_zero(constant) else None
        if left is not None and right is not None:
            return None
        if name in ("div", "true_divide"):
            divisor = torch.as_tensor(b, dtype=torch.float32)
            return None if left is None else self._scaled(left, divisor.reciprocal())
        constant, value = (a, right) if left is None else (b, left)
        return None if value is None else self._scaled(value, constant)

    def _scaled(self, value: Value, factor: Any) -> Value | None:
        scale = torch.as_tensor(factor, dtype=torch.float32).detach()
        # Leading axes of 1 stand for time and samples.
        while scale.ndim > len(value.features) and scale.shape[0] == 1:
            scale = scale[0]
        if scale.ndim > len(value.features) or not torch.isfinite(scale).all():
            return None
        if bool((scale == 1).all()):
            return value
        if isinstance(value, Viewed) and scale.ndim == 0:
            # One factor for all, whatever the shape: views stay outermost, where they cancel each other.
            inner = self._scaled(value.argument, factor)
            return None if inner is None else view(inner, value.features, value.lead)
        if isinstance(value, Joined) and scale.ndim == 0:
            parts = [self._scaled(part, factor) for part in value.parts]
            scaled = tuple(part for part in parts if part is not None)
            return replace(value, parts=scaled) if len(scaled) == len(parts) else None
        key = ("scale", tuple(scale.shape), tuple(scale.ravel().tolist()))
        return self._applied(key, lambda: Scale(scale), (), value, value.features)

    # -- layers ----------------------------------------------------------------------------------

    def _applied(
        self,
        key: tuple[Any, ...],
        make: Callable[[], nn.Module],
        parameters: Sequence[Any],
        value: Value,
        features: Shape,
    ) -> Value:
        """Return the value behind a layer, one layer for all calls with the same parameters."""
        path, where = self._place(sys._getframe(2))
        owners = [self._owners[id(p)] for p in parameters if id(p) in self._owners]
        ids = (*key, *(id(p) for p in parameters))
        if ids not in self._made:
            # The parameters are kept, so that their identities stay theirs.
            self._made[ids] = (make().eval(), tuple(parameters))
        module = self._made[ids][0]
        return Applied(
            value.lead, features, value.time, module, owners[0] if owners else path or where, value
        )

    def _linear(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        weight, bias = args[1], args[2] if len(args) > 2 else kwargs.get("bias")
        return self._dense(value, weight, bias, result, (weight, bias))

    def _product(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        matrix = args[1] if len(args) > 1 else kwargs.get("other")
        if not isinstance(matrix, Tensor) or matrix.ndim != 2:
            return None
        return self._dense(value, matrix.t(), None, result, (matrix,))

    def _dense(
        self, value: Value, weight: Tensor, bias: Any, result: Tensor, own: Sequence[Any]
    ) -> Value | None:
        if self.find(weight) is not None or self.find(bias) is not None or len(value.features) != 1:
            return None

        def make() -> nn.Module:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            return _with(layer, weight, bias)

        return self._applied(("linear",), make, own, value, tuple(result.shape[-1:]))

    def _conv(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        weight, bias, groups = given["weight"], given.get("bias"), given.get("groups", 1)
        axes = weight.ndim - 2
        if self.find(weight) is not None or len(value.lead) != 1 or len(value.features) != 1 + axes:
            return None
        padding = given.get("padding", 0)
        padding = padding if isinstance(padding, str) else ints(padding, axes)
        sizes = {name: ints(given.get(name, 1), axes) for name in ("stride", "dilation")}
        kind: Any = nn.Conv2d if axes == 2 else nn.Conv1d

        def make() -> nn.Module:
            layer = kind(
                weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),
                padding=padding, groups=groups, bias=bias is not None, **sizes,
            )  # fmt: skip
            return _with(layer, weight, bias)

        key = ("conv", padding, groups, *sizes.values())
        return self._applied(key, make, (weight, bias), value, tuple(result.shape[1:]))

    def _norm(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        names = (
            "input",
            "running_mean",
            "running_var",
            "weight",
            "bias",
            "training",
            "momentum",
            "eps",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        mean, var, weight, bias = (given.get(name) for name in names[1:5])
        if given.get("training") or mean is None or var is None or len(value.lead) != 1:
            return None
        kind: Any = nn.BatchNorm2d if len(value.features) == 3 else nn.BatchNorm1d

        def make() -> nn.Module:
            layer = kind(len(mean), eps=given.get("eps", 1e-5), affine=False)
            layer.running_mean, layer.running_var = mean.detach(), var.detach()
            layer.weight, layer.bias = weight, bias
            return layer

        own = (mean, var, weight, bias)
        return self._applied(("norm", given.get("eps")), make, own, value, value.features)

    def _pool(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        names = (
            "input",
            "kernel_size",
            "stride",
            "padding",
            "ceil_mode",
            "count_include_pad",
            "divisor_override",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given.pop("input", None)
        if given.get("stride") in (None, ()):
            given.pop("stride", None)
        return self._pooled(value, lambda: nn.AvgPool2d(**given), ("avg", str(given)), result)

    def _lp_pool(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        names = ("input", "norm_type", "kernel_size", "stride", "ceil_mode")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given.pop("input", None)
        return self._pooled(value, lambda: nn.LPPool2d(**given), ("lp", str(given)), result)

    def _sum_pooled(self, arguments: dict[str, Any], result: Tensor) -> None:
        value = self.find(arguments["x"])
        kernel, stride = ints(arguments["size"]), ints(arguments["stride"])
        if value is not None and not any(ints(arguments["padding"])):
            made = self._pooled(
                value,
                lambda: SumPool2d(arguments["size"], arguments["stride"]),
                ("sum", kernel, stride),
                result,
            )
            if made is not None:
                self._values[result] = made

    def _pooled(
        self, value: Value, make: Callable[[], nn.Module], key: tuple[Any, ...], result: Tensor
    ) -> Value | None:
        if len(value.lead) != 1 or len(value.features) != 3:
            return None
        if isinstance(value, Joined):
            parts = []
            for part in value.parts:
                features = (part.features[0], *result.shape[2:])
                parts.append(self._applied(key, make, (), part, features))
            return replace(value, features=tuple(result.shape[1:]), parts=tuple(parts))
        return self._applied(key, make, (), value, tuple(result.shape[1:]))

    def _maximum(
        self, value: Value, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor
    ) -> Value | None:
        """Return a maximum of spikes, which is neurons that fire on any of a window and forget."""
        names = (
            "input",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "ceil_mode",
            "return_indices",
        )
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        kernel = ints(given["kernel_size"])
        stride = ints(given.get("stride") or kernel)
        padding, ceil_mode = ints(given.get("padding", 0)), bool(given.get("ceil_mode"))
        alone = ints(given.get("dilation", 1)) == (1, 1)
        if not (is_spikes(value) and alone and value.lead == STEP and value.time is not None):
            return None
        path, where = self._place(sys._getframe(2))
        step = value.time
        # The calls of one step are told apart by their order: a function has no name of its own.
        turn = (path or where, step, 0)
        while turn in self._maxima:
            turn = (turn[0], step, turn[2] + 1)
        first = (turn[0], 0, turn[2])
        if step == 0:
            self._maxima[first] = len(self.neurons)
            self.neurons.append(
                Neurons(
                    ANY,
                    self._name(path, "max"),
                    path or where,
                    (kernel, stride, padding, ceil_mode),
                    0.0,
                )
            )
        if first not in self._maxima:
            return None
        self._maxima[turn] = self._maxima[first]
        neurons = self.neurons[self._maxima[first]]
        if len(neurons.given) != step:
            return None
        neurons.heard.append(value)
        neurons.given.append(result.detach().clone())
        return Fired(STEP, tuple(result.shape[1:]), step, neurons)


_LAYERS: dict[str, Any] = {
    "linear": ModuleRecorder._linear,
    "matmul": ModuleRecorder._product,
    "mm": ModuleRecorder._product,
    "__matmul__": ModuleRecorder._product,
    "conv1d": ModuleRecorder._conv,
    "conv2d": ModuleRecorder._conv,
    "batch_norm": ModuleRecorder._norm,
    "avg_pool2d": ModuleRecorder._pool,
    "lp_pool2d": ModuleRecorder._lp_pool,
    "max_pool2d": ModuleRecorder._maximum,
}


def _tensors(held: Any) -> Iterator[Tensor]:
    """Go through the tensors in nested arguments."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        yield from _tensors(held.values())
    elif isinstance(held, (list, tuple)) or type(held).__name__ == "dict_values":
        for part in held:
            yield from _tensors(part)


def _with(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    # A transposed view would be multiplied in another order than the graph's array, and round otherwise.
    layer.weight = nn.Parameter(weight.detach().contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def _is_zero(constant: Any) -> bool:
    if isinstance(constant, Tensor):
        return not bool(constant.any())
    return isinstance(constant, (int, float)) and constant == 0


def _same(first: Any, second: Any) -> bool:
    """Tell whether two sets of parameters hold the same values."""
    if first is second:
        return True
    fields = first._fields if hasattr(first, "_fields") else ()
    return bool(fields) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in ((getattr(first, name), getattr(second, name)) for name in fields)
    )
