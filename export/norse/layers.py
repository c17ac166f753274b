"""Take a one-step Norse module apart: its leaves, and which leaf's output each of them receives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count

import norse.torch as snn
from torch import nn

from knarr.export.errors import ExportError
from knarr.export.norse.modules import INPUT, OUTPUT, PLIFBoxCell, Scale, StepGraph, SumPool2d

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.AvgPool2d: "pool",
    nn.LPPool2d: "pool",
    SumPool2d: "pool",
    Scale: "scale",
    nn.Flatten: "flatten",
    nn.BatchNorm1d: "norm",
    nn.BatchNorm2d: "norm",
    snn.LIFBoxCell: "lif",
    snn.LIFCell: "lif",
    snn.LIFRecurrentCell: "lif",
    PLIFBoxCell: "lif",
    snn.IAFCell: "if",
    snn.LIBoxCell: "readout",
    snn.LICell: "readout",
}
"""The modules that can be exported, by exact type, and the first part of their nodes' names.

A subclass may do something else than its base, so it is not taken for it.
"""
NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
NEURON_CELLS = (
    snn.LIFBoxCell, snn.LIFCell, snn.LIFRecurrentCell, PLIFBoxCell, snn.IAFCell, snn.LIBoxCell, snn.LICell
)  # fmt: skip


class UnknownKindError(ExportError):
    """A module that is not one of those taken apart by their type; what it does may be recorded still."""


@dataclass(frozen=True)
class Layer:
    """One leaf of a module.

    Args:
        name: name of its NIR node.
        path: path of the module, as torch's `get_submodule` takes it.
        module: the leaf.
        sources: layers (or "input") whose output of this step it receives, summed.
        delayed: layers whose output of the step before it receives too.
        owner: path of the StepGraph that declares those.
    """

    name: str
    path: str
    module: nn.Module
    sources: tuple[str, ...]
    delayed: tuple[str, ...] = ()
    owner: str = ""


@dataclass(frozen=True)
class Layers:
    """All leaves of a module.

    Args:
        leaves: sources before targets, but for delayed ones.
        output: names that reach the output, summed.
        rewrites: module path -> what stands in its place already, where that is not the module itself.
        left_out: what the module does behind its output, and no graph holds.
    """

    leaves: tuple[Layer, ...]
    output: tuple[str, ...]
    rewrites: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Value:
    """The value on an edge: a sum of outputs of layers, of this step and of the step before."""

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def __add__(self, other: _Value) -> _Value:
        return _Value(self.now + other.now, self.before + other.before)


@dataclass
class _ModuleWalk:
    """A walk through a module that collects its leaves."""

    leaves: list[Layer] = field(default_factory=list)
    promised: dict[str, _Value] = field(default_factory=dict)  # what recurrent edges will carry

    def visit(
        self,
        module: nn.Module,
        path: str,
        value: _Value,
        prefix: str,
        number: count[int],
        name: str | None = None,
    ) -> _Value:
        """Take a module apart that receives `value`; return what it gives. A leaf is called `name` or by number."""
        if type(module) in (snn.SequentialState, nn.Sequential):
            if getattr(module, "return_hidden", False):
                raise ExportError(
                    f"module '{path}': return_hidden gives every layer's output, a graph has one; set it to False"
                )
            inner, numbers = (prefix, number) if name is None else (f"{prefix}{name}_", count())
            if type(module) is nn.Sequential and path:
                _no_state(module, path)
            # named_children would leave out a module that stands in two places.
            for child_name, child in module._modules.items():
                if child is not None:
                    value = self.visit(child, _join(path, child_name), value, inner, numbers)
            return value
        if type(module) is StepGraph:
            inner = prefix if not path else f"{prefix}{name or f'graph_{next(number)}'}_"
            return self._graph(module, path, value, inner)
        # A layer that is left out uses up a number too, so that names do not change when a Dropout goes.
        own_number = next(number)
        if type(module) in NO_OPS:
            return value
        if type(module) not in KINDS:
            where = f"module '{path}'" if path else "module"
            known = ", ".join(sorted(kind.__name__ for kind in KINDS))
            raise UnknownKindError(
                f"{where}: {type(module).__name__} is not known by its type; known are {known}"
            )
        leaf_name = prefix + (name or f"{KINDS[type(module)]}_{own_number}")
        self.leaves.append(Layer(leaf_name, path or "", module, value.now, value.before))
        return _Value((leaf_name,))

    def _graph(self, graph: StepGraph, path: str, value: _Value, prefix: str) -> _Value:
        values = {INPUT: value}
        for name in graph.order:
            arriving = _Value()
            for source, target in graph.edges:
                if target == name:
                    arriving += values[source]
            # A recurrent source may come later in the order: what it gives is filled in by `finish`.
            for source, target in graph.recurrent:
                if target == name:
                    arriving += _Value(before=(f"{path}>{source}",))
            if name == OUTPUT:
                values[name] = arriving
                continue
            values[name] = self.visit(
                graph.nodes[name], _join(path, f"nodes.{name}"), arriving, prefix, count(), name
            )
            self.promised[f"{path}>{name}"] = values[name]
        return values[OUTPUT]

    def finish(self, output: _Value) -> Layers:
        """Fill in what recurrent edges carry, and check what NIR cannot hold."""
        leaves = []
        for leaf in self.leaves:
            delayed: tuple[str, ...] = ()
            for key in leaf.delayed:
                promised = self.promised[key]
                if promised.before:
                    raise ExportError(
                        f"module '{leaf.path}': receives '{key[1:]}' two steps late; use one recurrent edge"
                    )
                delayed += promised.now
            for names in (leaf.sources, delayed):
                if len(set(names)) < len(names):
                    raise ExportError(
                        f"module '{leaf.path}': receives the same output twice, and NIR has no double edges; "
                        "double the weights instead"
                    )
            owner = leaf.delayed[0].split(">")[0] if leaf.delayed else ""
            leaves.append(replace(leaf, delayed=delayed, owner=owner))
        if output.before:
            raise ExportError(
                "module: its output is a value of the step before; put a neuron in front of the output"
            )
        taken = [leaf.name for leaf in leaves]
        for name in taken:
            if taken.count(name) > 1:
                raise ExportError(
                    f"module: two layers would be called '{name}'; rename a node of the StepGraph"
                )
        return Layers(tuple(leaves), output.now)


def require_still(module: nn.Module) -> None:
    """Check that a module does the same at every call, and nothing besides what its class does.

    Raises:
        ExportError: a part in train mode, with forward hooks, or with a forward of its own.
    """
    for path, part in module.named_modules():
        if part.training:
            raise ExportError(
                f"module '{path}': in train mode; call .eval() on the whole module first"
            )
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            raise ExportError(
                f"module '{path}': has forward hooks or another forward than its class, which no graph holds; remove them"
            )


def take_apart(module: nn.Module) -> Layers:
    """Return the leaves of a one-step module: SequentialState, nn.Sequential, StepGraph, nested in any way.

    Raises:
        UnknownKindError: another module is in it, which has to be watched while it runs.
        ExportError: names the module that cannot be exported, the reason and the cure.
    """
    require_still(module)
    if type(module) not in (snn.SequentialState, nn.Sequential, StepGraph):
        raise UnknownKindError(
            f"module: {type(module).__name__} is neither SequentialState, nn.Sequential nor StepGraph"
        )
    for path, part in module.named_modules():
        activation = getattr(part, "activation", None)
        if activation is not None and not str(getattr(activation, "__module__", "")).startswith(
            "norse."
        ):
            raise ExportError(
                f"module '{path}': its activation is not Norse's own; use a plain cell"
            )
    walk = _ModuleWalk()
    output = walk.visit(module, "", _Value((INPUT,)), "", count())
    layers = walk.finish(output)
    # A cell in two places would keep two states, and its parameters could not tell which.
    seen: dict[int, str] = {}
    for leaf in layers.leaves:
        first = seen.setdefault(id(leaf.module), leaf.path)
        if isinstance(leaf.module, NEURON_CELLS) and first != leaf.path:
            raise ExportError(
                f"module '{leaf.path}': the same neuron cell as '{first}'; give each layer a cell of its own"
            )
    if not layers.leaves:
        raise ExportError("module: no layers to export")
    return layers


def _no_state(module: nn.Sequential, path: str) -> None:
    for name, part in module.named_modules():
        if isinstance(part, (*NEURON_CELLS, snn.SequentialState, StepGraph)):
            raise ExportError(
                f"module '{_join(path, name)}': {type(part).__name__} inside an nn.Sequential inside a network would lose "
                "its state at every step; use SequentialState there"
            )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
