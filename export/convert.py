"""Export a Norse module: convert its layers to a NIR graph, write it, read it back, and certify it.

Neurons are written in seconds, as float64 copies, one value per neuron, with `w_in = tau_syn/dt` and IF's `r = 1/dt`.
Only a graph that passed the comparison with the live module is returned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nir
import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from norse.torch.functional.reset import reset_value
from torch import Tensor, nn

from knarr.export.arguments import as_dt, as_inputs, as_shape
from knarr.export.certificate import Certificate, certify, compare, replay_inputs
from knarr.export.errors import CertificateError, ExportError, reasons_of, refusal
from knarr.export.files import read, write
from knarr.export.graph.parameters import ints
from knarr.export.graph.topology import METADATA, NEURONS, Edge, bare_delays
from knarr.export.norse.layers import NEURON_CELLS, Layer, Layers
from knarr.export.norse.modules import INPUT, OUTPUT, Scale, SumPool2d
from knarr.export.norse.observe import CONSTANT, layers_of
from knarr.export.norse.rewrite import WRITTEN_FROM, is_odd_pool, rewrite

Shape = tuple[int, ...]
Float64 = npt.NDArray[np.float64]


def to_nir(
    module: nn.Module,
    input_shape: tuple[int, ...],
    dt_s: float,
    *,
    samples: npt.ArrayLike | None = None,
) -> nir.NIRGraph:
    """Export a Norse module as the certified NIR graph of one time step.

    The graph is written to a file, read back with type checks (ours and nir's own), stepped by `step_nir` and compared with
    the live module on random binary inputs and on `samples`: every spike and every float32 voltage must be equal.

    Args:
        module: any module of Norse's cells in eval mode: one step with its state, a loop over the first or second axis of
            its input, states that it keeps itself, or one input that it shows at every step. SequentialState,
            nn.Sequential and `StepGraph` of known layers are taken apart by their types; everything else is run
            on a small sample and recorded.
        input_shape: feature shape of one step without batch, (features,), (C, L) or (C, H, W).
        dt_s: time step, seconds; every neuron must have it as its dt.
        samples: (samples, timesteps, *input_shape) real inputs that drive every layer. With samples, they and not the
            random inputs must make every layer fire.

    Returns:
        The graph as read back; `graph.metadata["certificate"]` holds the certificate as JSON.

    Raises:
        ExportError: names what cannot be exported, or the first place where graph and module differ.
    """
    input_shape, dt_s = as_shape(input_shape), as_dt(dt_s)
    inputs = replay_inputs(input_shape) if samples is None else as_inputs(samples, "samples")
    graph, _ = _proved(module, input_shape, dt_s, inputs, certify, own=samples is not None)
    return graph


@dataclass(frozen=True)
class ExportCheck:
    """The answer to whether a module can be exported.

    Args:
        graph: the graph, where it can.
        reasons: why not, each with its layer and its cure; empty where it can.
        silent: layers that never fired on random inputs, so that nothing is proved about their spikes yet.
        certificate: what was compared, where it can.
    """

    graph: nir.NIRGraph | None
    reasons: tuple[str, ...]
    silent: tuple[str, ...] = ()
    certificate: Certificate | None = None


def check_export(module: nn.Module, input_shape: tuple[int, ...], dt_s: float) -> ExportCheck:
    """Tell whether a module can be exported, with every reason why not; weights need not be trained.

    Args:
        module, input_shape, dt_s: as for `to_nir`.

    Raises:
        ExportError: a shape or a time step that makes no sense.
    """
    input_shape, dt_s = as_shape(input_shape), as_dt(dt_s)
    try:
        graph, certificate = _proved(module, input_shape, dt_s, replay_inputs(input_shape), compare)
    except ExportError as error:
        return ExportCheck(None, reasons_of(error))
    silent = tuple(name for name, count in certificate.spikes.items() if count == 0)
    return ExportCheck(graph, (), silent, certificate)


Comparison = Callable[[nn.Module, nir.NIRGraph, npt.ArrayLike, float], Certificate]


def _proved(
    module: nn.Module,
    input_shape: Shape,
    dt_s: float,
    inputs: npt.NDArray[Any],
    comparison: Comparison,
    *,
    own: bool = False,
) -> tuple[nir.NIRGraph, Certificate]:
    """Return the graph of a module as a file holds it, and its certificate, which it also carries.

    Args:
        module, input_shape, dt_s: as for `to_nir`.
        inputs: what module and graph are compared on.
        comparison: `certify`, or `compare` where layers may be silent.
        own: whether the inputs are the user's.
    """
    layers, form = layers_of(module, input_shape)
    if own and form.steps:
        _fit(inputs, form.way, form.steps)
    plain, _ = rewrite(layers, input_shape)
    graph = _as_read(convert(plain, input_shape, dt_s))
    try:
        certificate = comparison(module, graph, inputs, dt_s)
    except CertificateError:
        # A current that adds up what loops back with what arrives, and then takes the sum, rounds as Delay nodes do.
        if not any(leaf.delayed for leaf in plain.leaves):
            raise
        graph = _as_read(convert(plain, input_shape, dt_s, delays="nodes"))
        certificate = comparison(module, graph, inputs, dt_s)
    graph.metadata["certificate"] = certificate.to_json()
    return graph, certificate


def _fit(samples: npt.NDArray[Any], way: str, steps: int) -> None:
    """Check samples for a module that takes a number of steps of its own.

    Raises:
        ExportError: other samples.
    """
    if way == CONSTANT and (samples != samples[:, :1]).any():
        raise ExportError(
            "samples: the module shows one input at every step; give (samples, 1, *features)"
        )
    if way != CONSTANT and samples.shape[1] < steps:
        raise ExportError(
            f"samples: have {samples.shape[1]} steps, the module takes {steps}; give as many"
        )


def _as_read(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return a graph as a file holds it: nir rounds and reshapes some fields when it writes."""
    with tempfile.TemporaryDirectory(prefix="knarr-export-") as folder:
        path = Path(folder) / "student.nir"
        write(graph, path)
        graph = read(path)
        try:
            nir.read(path, type_check=True)
        except Exception as error:  # nir raises what comes along
            raise ExportError(
                f"graph: nir's own type check refuses it ({error}); other readers would too"
            ) from error
    return graph


def array(tensor: Tensor) -> Float64:
    """Return a float64 copy: NIR must never alias live parameters."""
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float64)


def neuron(layer: Layer, shape: Shape, dt_s: float) -> Any:
    """Return the NIR node of a cell.

    Args:
        layer: layer with a Norse cell or a PLIFBoxCell.
        shape: feature shape of its neurons.
        dt_s: time step, seconds; must be the cell's own.

    Raises:
        ExportError: another dt, a reset that NIR lacks, a coefficient outside (0, 1], a value that is no finite tensor.
    """
    cell: Any = layer.module
    if cell.dt != dt_s:
        raise ExportError(
            f"module '{layer.path}': its dt is {cell.dt} s, the export's dt_s is {dt_s}; use one dt throughout"
        )
    reset = getattr(cell.p, "reset_method", reset_value)
    if reset is not reset_value:
        raise ExportError(
            f"module '{layer.path}': reset method {getattr(reset, '__name__', reset)} is not in NIR; "
            "use reset_value (hard reset)"
        )

    def read(field: str) -> Float64:
        """Return a parameter of the cell, one value per neuron."""
        value = getattr(cell.p, field)
        if not isinstance(value, Tensor):
            raise ExportError(
                f"module '{layer.path}': {field} is a {type(value).__name__}, needs a tensor; use torch.tensor({value})"
            )
        values = array(value)
        if not np.isfinite(values).all():
            raise ExportError(f"module '{layer.path}': {field} is not finite; retrain or reload it")
        try:
            return np.array(np.broadcast_to(values, shape))
        except ValueError as error:
            raise ExportError(
                f"module '{layer.path}': {field} has shape {values.shape}, does not broadcast to its neurons {shape}; "
                "give one value or one per neuron"
            ) from error

    def time_constant(field: str) -> Float64:
        """Return the time constant, seconds, of which the cell holds the inverse."""
        inverse = read(field)
        # Judged in float32, the arithmetic in which Norse multiplies.
        step = np.float32(dt_s) * inverse.astype(np.float32)
        if (step <= 0).any() or (step > 1).any():
            raise ExportError(
                f"module '{layer.path}': dt * {field} spans {step.min():g}..{step.max():g}, allowed (0, 1]; "
                "forward Euler is unstable or stands still outside, use a longer time constant or a shorter dt"
            )
        return 1.0 / inverse

    if isinstance(cell, snn.IAFCell):
        # NIR: v' = r I, and one step of Norse adds the whole input.
        gain = np.full(shape, 1 / dt_s)
        return nir.IF(r=gain, v_threshold=read("v_th"), v_reset=read("v_reset"))
    fields: dict[str, Float64] = {"r": np.ones(shape), "v_leak": read("v_leak")}
    tau_mem_s = time_constant("tau_mem_inv")
    spiking = hasattr(cell.p, "v_th")
    if spiking:
        fields |= {"v_threshold": read("v_th"), "v_reset": read("v_reset")}
    # Norse's box cells feed the voltage directly, its other cells by way of a synaptic current.
    if not hasattr(cell.p, "tau_syn_inv"):
        kind: Any = nir.LIF if spiking else nir.LI
        return kind(tau=tau_mem_s, **fields)
    tau_syn_s = time_constant("tau_syn_inv")
    kind = nir.CubaLIF if spiking else nir.CubaLI
    # An input jumps the current by 1 in Norse, by w_in * dt / tau_syn in NIR.
    return kind(tau_mem=tau_mem_s, tau_syn=tau_syn_s, w_in=tau_syn_s / dt_s, **fields)


def _linear(layer: Layer, shape: Shape) -> Any:
    linear: Any = layer.module
    if shape != (linear.in_features,):
        raise ExportError(
            f"module '{layer.path}': receives {shape}, needs ({linear.in_features},); flatten before it"
        )
    weight = array(linear.weight)
    return nir.Linear(weight) if linear.bias is None else nir.Affine(weight, array(linear.bias))


def _conv(layer: Layer, shape: Shape) -> Any:
    conv: Any = layer.module
    axes = len(conv.kernel_size)
    if len(shape) != 1 + axes or shape[0] != conv.in_channels:
        wanted = f"({conv.in_channels}, {'H, W' if axes == 2 else 'length'})"
        raise ExportError(
            f"module '{layer.path}': receives {shape}, needs {wanted}; reshape what comes before it"
        )
    sizes = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    fields: dict[str, Any] = {name: np.array(size) for name, size in sizes.items()}
    kind: Any = nir.Conv2d
    if axes == 1:
        # NIR holds plain integers for the one axis of a Conv1d.
        fields = {name: int(size[0]) for name, size in sizes.items()}
        kind = nir.Conv1d
    return kind(
        input_shape=shape[1] if axes == 1 else shape[1:],
        weight=array(conv.weight),
        groups=conv.groups,
        # NIR leaves open what a Conv without a bias is, so zeros are written.
        bias=np.zeros(conv.out_channels) if conv.bias is None else array(conv.bias),
        metadata=getattr(conv, WRITTEN_FROM, {}),
        **fields,
    )


def _pool(layer: Layer, shape: Shape) -> Any:
    pool: Any = layer.module
    kind: Any = nir.SumPool2d
    if isinstance(pool, nn.AvgPool2d):
        kind = nir.AvgPool2d
        if is_odd_pool(pool):  # `rewrite` left it, since it knows windows of images alone
            raise ExportError(
                f"module '{layer.path}': a pool that is padded, in ceil_mode or with a divisor of its own receives "
                f"{shape}, needs (C, H, W)"
            )
    return kind(
        kernel_size=np.array(ints(pool.kernel_size)),
        stride=np.array(ints(pool.stride)),
        padding=np.zeros(2, dtype=np.int64),
    )


def _flatten(layer: Layer, shape: Shape) -> Any:
    flatten: Any = layer.module
    end = flatten.end_dim if flatten.end_dim >= 0 else len(shape) + 1 + flatten.end_dim
    if not 1 <= flatten.start_dim <= end <= len(shape):
        raise ExportError(
            f"module '{layer.path}': flattens {flatten.start_dim}..{flatten.end_dim} of {shape} and the batch before it; "
            "flatten features only: nn.Flatten()"
        )
    # NIR counts dimensions without the batch.
    last = -1 if end == len(shape) else end - 1
    return nir.Flatten(
        input_type={"input": np.array(shape)}, start_dim=flatten.start_dim - 1, end_dim=last
    )


def _scale(layer: Layer, shape: Shape) -> Any:
    scale: Any = layer.module
    return nir.Scale(np.array(np.broadcast_to(array(scale.scale), shape)))


# Each converter takes the one type it stands under; `take_apart` lets no subclass through.
CONVERTERS: dict[type[nn.Module], Callable[[Layer, Shape], Any]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.AvgPool2d: _pool,
    SumPool2d: _pool,
    nn.Flatten: _flatten,
    Scale: _scale,
}


def _require_finite(layer: Layer) -> None:
    for name, parameter in layer.module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ExportError(
                f"module '{layer.path}': {name} holds NaN or infinity; retrain or reload it"
            )


def synapse(layer: Layer, shape: Shape) -> tuple[Any, Shape]:
    """Return the NIR node of a stateless layer and the shape that leaves it.

    Raises:
        ExportError: the layer does not fit what it receives, holds NaN or infinity, or does what NIR cannot say.
    """
    _require_finite(layer)
    node = CONVERTERS[type(layer.module)](layer, shape)
    # Asking torch is safer than computing the shape again beside it.
    try:
        with torch.no_grad():
            device = next((p.device for p in layer.module.parameters()), torch.device("cpu"))
            given = layer.module(torch.zeros(1, *shape, device=device))
    except RuntimeError as error:
        raise ExportError(
            f"module '{layer.path}': does not take {shape} ({str(error).splitlines()[0]})"
        ) from error
    return node, tuple(given.shape[1:])


def convert(
    layers: Layers, input_shape: Shape, dt_s: float, *, delays: Literal["edges", "nodes"] = "edges"
) -> nir.NIRGraph:
    """Build the graph of plain layers; `rewrite` makes them plain.

    Args:
        layers: the layers of a one-step module in eval mode.
        input_shape: feature shape of one time step, without batch: (features,), (C, L) or (C, H, W).
        dt_s: time step, seconds; must equal every neuron's own dt.
        delays: how to write edges that wait one step: bare where that says the same, or all as Delay nodes.

    Raises:
        ExportError: names the module that cannot be exported, why, and what to do.
    """
    build = _Build(input_shape, dt_s)
    delayed: dict[str, list[Edge]] = {}
    faults: list[str] = []
    for layer in layers.leaves:
        try:
            build.add(layer)
        except ExportError as error:
            faults.append(str(error))
            # Layers behind it may have faults of their own, as long as its shape is known.
            if not build.skip(layer):
                break
        for source in layer.delayed:
            delayed.setdefault(layer.owner, []).append((source, layer.name))
    if faults:
        raise refusal(faults)
    build.nodes[OUTPUT] = nir.Output(
        output_type={"output": np.array(build.arriving("output", layers.output))}
    )
    build.edges += [(source, OUTPUT) for source in layers.output]
    # Each StepGraph knows its own loops alone, so each decides alone how its delays are written.
    for own in delayed.values():
        build.delay(own, nodes=delays == "nodes")
    return nir.NIRGraph(
        nodes=build.nodes,
        edges=build.edges,
        metadata={"dt_s": dt_s, **METADATA},
        type_check=False,
    )


class _Build:
    """A graph that grows layer by layer, with the shape that leaves each node."""

    def __init__(self, input_shape: Shape, dt_s: float) -> None:
        self.dt_s = dt_s
        start = nir.Input(input_type={"input": np.array(input_shape)})
        self.nodes: dict[str, Any] = {INPUT: start}
        self.edges: list[Edge] = []
        self.shapes = {INPUT: input_shape}
        self.arrives_at: dict[str, Shape] = {}

    def arriving(self, path: str, sources: tuple[str, ...]) -> Shape:
        """Return the one shape in which all sources arrive."""
        shapes = {self.shapes[source] for source in sources}
        if len(shapes) != 1:
            raise ExportError(
                f"module '{path}': receives {sorted(shapes)}, which do not add up; bring them to one shape"
            )
        return shapes.pop()

    def add(self, layer: Layer) -> None:
        """Add the node of a layer and the edges of this step that lead to it."""
        name, module = layer.name, layer.module
        if isinstance(module, snn.LIFRecurrentCell):
            self._recurrent(layer)
            return
        if not layer.sources:  # StepGraph lets only a Linear live on delayed inputs alone
            linear: Any = module
            shape: Shape = (int(linear.in_features),)
        else:
            shape = self.arriving(layer.path, layer.sources)
        self.arrives_at[name] = shape
        if isinstance(module, NEURON_CELLS):
            self.nodes[name] = neuron(layer, shape, self.dt_s)
            self.shapes[name] = shape
        else:
            self.nodes[name], self.shapes[name] = synapse(layer, shape)
        self.edges += [(source, name) for source in layer.sources]

    def skip(self, layer: Layer) -> bool:
        """Note the shape that leaves a layer which has no node; return whether it is known."""
        shapes = {self.shapes[source] for source in layer.sources}
        if len(shapes) != 1:
            return False
        shape = shapes.pop()
        if isinstance(layer.module, nn.Linear):
            shape = (layer.module.out_features,)
        elif not isinstance(layer.module, NEURON_CELLS):
            try:
                with torch.no_grad():
                    shape = tuple(layer.module(torch.zeros(1, *shape)).shape[1:])
            except (RuntimeError, ValueError):
                return False
        elif isinstance(layer.module, snn.LIFRecurrentCell):
            shape = (int(layer.module.hidden_size),)
        self.arrives_at[layer.name] = self.shapes[layer.name] = shape
        return True

    def _recurrent(self, layer: Layer) -> None:
        """Add a LIFRecurrentCell as Linear(W_in) -> CubaLIF, and CubaLIF -> Linear(W_rec) -> CubaLIF."""
        cell: Any = layer.module
        name, shape = layer.name, self.arriving(layer.path, layer.sources)
        w_in, w_rec = array(cell.input_weights), array(cell.recurrent_weights)
        if shape != (w_in.shape[1],):
            raise ExportError(
                f"module '{layer.path}': receives {shape}, needs ({w_in.shape[1]},); flatten before it"
            )
        _require_finite(layer)
        if layer.delayed:
            raise ExportError(
                f"module '{layer.path}': a recurrent edge into a cell that is recurrent itself; use LIFCell and StepGraph"
            )
        self.nodes[f"{name}_in"] = nir.Linear(w_in)
        self.nodes[f"{name}_rec"] = nir.Linear(w_rec)
        self.nodes[name] = neuron(layer, (len(w_in),), self.dt_s)
        self.shapes[name] = (len(w_in),)
        self.edges += [(source, f"{name}_in") for source in layer.sources]
        self.edges += [(f"{name}_in", name), (name, f"{name}_rec"), (f"{name}_rec", name)]

    def delay(self, delayed: list[Edge], *, nodes: bool) -> None:
        """Add edges that wait one step: as bare edges where NIR's reader delays just these, as Delay nodes elsewhere."""
        stateful = {name for name, node in self.nodes.items() if isinstance(node, NEURONS)}
        names = list(self.nodes)
        bare = bare_delays(names, self.edges, delayed, INPUT, stateful, OUTPUT)
        if bare is not None and not nodes:
            self.edges += delayed
            return
        for source, target in delayed:
            name = f"{source}_to_{target}_delay"
            if self.shapes[source] != self.arrives_at[target]:
                raise ExportError(
                    f"module: recurrent edge '{source}' -> '{target}' brings {self.shapes[source]}, needs "
                    f"{self.arrives_at[target]}; correct one of the two"
                )
            self.nodes[name] = nir.Delay(np.full(self.shapes[source], self.dt_s))
            self.edges += [(source, name), (name, target)]
