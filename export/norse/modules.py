"""The one-step modules that Norse lacks: a neuron with a learnable time constant, exact sum pooling, a declared graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import norse.torch as snn
import torch
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)
from torch import Tensor, nn

from knarr.export.errors import ExportError
from knarr.export.graph.parameters import ints
from knarr.export.graph.step_synapses import add_up, sum_pool2d
from knarr.export.graph.topology import Edge, bare_delays

INPUT, OUTPUT = "input", "output"


class PLIFBoxCell(nn.Module):
    """LIFBoxCell whose membrane coefficient is learned: a = dt / tau_mem = sigmoid(w), so 0 < a < 1 at every step.

        v- = v + sigmoid(w) * ((x + v_leak) - v);  z = [v- > v_th];  v = v_reset where z

    Parametric LIF: Fang et al., ICCV 2021. `w` is a parameter, so optimisers and checkpoints see it.

    Args:
        tau_mem_s: time constant at the start, seconds, above dt.
        dt: time step, seconds.
        shape: shape of `w`: () is one time constant for the layer, the feature shape one per neuron.
        v_th, v_leak, v_reset: volts.
        method, alpha: Norse's surrogate gradient and its sharpness.

    Raises:
        ExportError: tau_mem_s is not above dt.
    """

    def __init__(
        self,
        tau_mem_s: float,
        dt: float = 0.001,
        *,
        shape: tuple[int, ...] = (),
        v_th: float = 1.0,
        v_leak: float = 0.0,
        v_reset: float = 0.0,
        method: str = "super",
        alpha: float = 100.0,
    ) -> None:
        super().__init__()
        if not all(isinstance(t, (int, float)) for t in (tau_mem_s, dt)) or not tau_mem_s > dt > 0:
            raise ExportError(
                f"PLIFBoxCell: tau_mem_s {tau_mem_s} s must be above dt {dt} s, which is above 0"
            )
        # w is the logit of the coefficient, so that no step of an optimiser can leave 0..1.
        a = torch.full(shape, dt / tau_mem_s)
        self.w = nn.Parameter(torch.logit(a))
        for name, value in (("v_th", v_th), ("v_leak", v_leak), ("v_reset", v_reset)):
            self.register_buffer(name, torch.tensor(float(value)))
        self.dt, self.method, self.alpha = dt, method, alpha

    @property
    def p(self) -> LIFBoxParameters:
        """Norse's parameters as they are now; they change while `w` is learned."""
        return LIFBoxParameters(
            tau_mem_inv=torch.sigmoid(self.w) / self.dt,
            v_th=self.v_th,
            v_leak=self.v_leak,
            v_reset=self.v_reset,
            method=self.method,
            alpha=self.alpha,
        )

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Step once; `x` is (B, *features) input, the state Norse's own."""
        p = self.p
        if state is None:
            state = LIFBoxFeedForwardState(v=p.v_leak)
        return lif_box_feed_forward_step(x, state, p, self.dt)

    def extra_repr(self) -> str:
        """Show time constant and step."""
        return f"tau_mem_s={(self.dt / torch.sigmoid(self.w.detach())).tolist()}, dt={self.dt}"


class SumPool2d(nn.Module):
    """Sum pooling: y = sum of x over windows; exact for spikes, where LPPool2d averages and multiplies again.

    Args:
        kernel_size: (height, width) or one number.
        stride: the same; the kernel's when left out.
    """

    def __init__(
        self, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.kernel_size = ints(kernel_size)
        self.stride = self.kernel_size if stride is None else ints(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W)."""
        return sum_pool2d(x, self.kernel_size, self.stride, (0, 0))

    def extra_repr(self) -> str:
        """Show kernel and stride."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class Scale(nn.Module):
    """Multiplication by constants: y = x * scale.

    Args:
        scale: one number, or numbers that spread over the features.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (B, *features)."""
        return x * self.scale


class StepGraph(nn.Module):
    """One time step of a network with branches, residual adds and recurrence, as named nodes and edges.

    A node receives the sum of what its edges bring. A recurrent edge brings the value of the step before, 0 at first.

        StepGraph(
            {"fc": nn.Linear(4, 8), "lif": snn.LIFBoxCell(), "rec": nn.Linear(8, 8), "out": nn.Linear(8, 2)},
            edges=[("input", "fc"), ("fc", "lif"), ("rec", "lif"), ("lif", "out"), ("out", "output")],
            recurrent=[("lif", "rec")],
        )

    Args:
        nodes: name -> one-step module; "input" and "output" are the ends.
        edges: (source, target), without a delay.
        recurrent: (neuron, neuron or Linear), delayed by one step.

    Raises:
        ExportError: an edge to a missing node or twice, a loop without a recurrent edge, a node that nothing feeds.
    """

    def __init__(
        self, nodes: Mapping[str, nn.Module], edges: Sequence[Edge], recurrent: Sequence[Edge] = ()
    ) -> None:
        super().__init__()
        for name, node in nodes.items():
            # Dots separate the parts of a module's path, slashes those of a path in HDF5.
            bad = not isinstance(name, str) or name in ("", INPUT, OUTPUT) or set(name) & set("./")
            if bad:
                raise ExportError(
                    f"StepGraph: {name!r} cannot name a node; choose a text without dot and slash"
                )
            if not isinstance(node, nn.Module):
                raise ExportError(
                    f"StepGraph: node '{name}' is {type(node).__name__}, needs a torch module"
                )
        try:
            self.nodes = nn.ModuleDict(nodes)
        except KeyError as error:
            raise ExportError(
                f"StepGraph: {error}; torch keeps this name for itself, choose another"
            ) from error
        try:
            self.edges = tuple((str(s), str(t)) for s, t in edges)
            self.recurrent = tuple((str(s), str(t)) for s, t in recurrent)
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"StepGraph: edges are pairs of names, source and target ({error})"
            ) from error
        self._check_edges()
        self.order = self._order()
        stateful = {name for name, node in self.nodes.items() if is_stateful(node)}
        # The edges that a NIR graph reads as closing a loop; what they bring is added to a synaptic
        # current last. Where a reader would place the delays otherwise, the export writes each of
        # them as a node, an ordinary source.
        names = (INPUT, OUTPUT, *self.nodes)
        found = bare_delays(names, self.edges, self.recurrent, INPUT, stateful, OUTPUT)
        self.looping = found or frozenset()

    def _check_edges(self) -> None:
        every = (*self.edges, *self.recurrent)
        names = {INPUT, OUTPUT, *self.nodes}
        for edge in every:
            backwards = edge[0] == OUTPUT or edge[1] == INPUT
            if not set(edge) <= names or backwards or every.count(edge) > 1:
                raise ExportError(
                    f"StepGraph: edge {edge[0]} -> {edge[1]} is unknown, backwards or there twice"
                )
        for name in (*self.nodes, OUTPUT):
            if not any(target == name for _, target in every):
                raise ExportError(f"StepGraph: nothing feeds '{name}'; connect or remove it")
        for source, target in self.recurrent:
            into = self._module(target)
            takes = is_stateful(into) or isinstance(into, nn.Linear)
            if not is_stateful(self._module(source)) or not takes:
                raise ExportError(
                    f"StepGraph: recurrent edge {source} -> {target} must lead from a neuron to a neuron or Linear"
                )
        for name, node in self.nodes.items():
            # A Linear knows the width of the zeros it gets at the first step; other modules do not.
            fed = any(target == name for _, target in self.edges)
            if not fed and not isinstance(node, nn.Linear):
                raise ExportError(
                    f"StepGraph: only recurrent edges feed '{name}'; only a Linear may start so"
                )

    def _module(self, name: str) -> nn.Module | None:
        return self.nodes[name] if name in self.nodes else None  # noqa: SIM401 - a ModuleDict has no get

    def _order(self) -> tuple[str, ...]:
        waiting, done = [*self.nodes, OUTPUT], {INPUT}
        order: list[str] = []
        while waiting:
            ready = [n for n in waiting if all(s in done for s, t in self.edges if t == n)]
            if not ready:
                raise ExportError(
                    f"StepGraph: {waiting} form a loop; declare the edge that waits as recurrent"
                )
            order += ready
            done |= set(ready)
            waiting = [n for n in waiting if n not in done]
        return tuple(order)

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Step once.

        Args:
            x: (B, *features) input.
            state: what the step before returned; None before the first step.

        Returns:
            The output, and node -> its state, with "<node>.before" for what recurrent edges carry.
        """
        before = state or {}
        after: dict[str, Any] = {}
        value = {INPUT: x}
        for name in self.order:
            forward, looping = self._arriving(name, value, before)
            module = self._module(name)
            if module is None:
                value[name] = add_up(forward, looping)
                continue
            if not is_stateful(module):
                if not forward and not looping:
                    # The first step of a Linear that receives recurrent edges alone.
                    linear: Any = module
                    forward = [x.new_zeros(x.shape[0], linear.in_features)]
                elif not looping and any(target == name for _, target in self.recurrent):
                    # The silence before the first step is added as a graph adds it: what comes out lies in memory in
                    # the same order, and a product of matrices may round by that.
                    looping = [torch.zeros_like(forward[0])]
                value[name] = module(add_up(forward, looping))
                continue
            cell = before.get(name)
            if looping and forward and isinstance(module, (snn.LIFCell, snn.LICell)):
                # The current takes what loops back after what arrives forward, as LIFRecurrentCell does.
                total = add_up(forward)
                cell = module.state_fallback(total) if cell is None else cell
                cell = cell._replace(i=cell.i + total)
                forward = []
            value[name], after[name] = module(add_up(forward, looping), cell)
        for source, _ in self.recurrent:
            after[f"{source}.before"] = value[source]
        return value[OUTPUT], after

    def _arriving(
        self, name: str, value: dict[str, Tensor], before: dict[str, Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Collect what arrives at a node forward, and what comes round a loop."""
        forward: list[Tensor] = []
        looping: list[Tensor] = []
        # The edges of this step come first, in their order: a sum of three rounds by its order.
        arriving = [(edge, value.get(edge[0])) for edge in self.edges]
        arriving += [(edge, before.get(f"{edge[0]}.before")) for edge in self.recurrent]
        for edge, brought in arriving:
            if edge[1] != name or brought is None:
                continue
            (looping if edge in self.looping else forward).append(brought)
        return forward, looping


def is_stateful(module: nn.Module | None) -> bool:
    """Tell whether a module takes and returns a state beside its input."""
    return module is not None and "state" in inspect.signature(module.forward).parameters
