"""Norse -> NIR: one node per module, seconds and float64, refusing by name what NIR or the certificate cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nir
import norse.torch as snn
import numpy as np
import torch
from norse.torch.functional.reset import reset_value
from torch import nn

from knarr.export.errors import ExportError

Shape = tuple[int, ...]


def stages(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Leaf modules of a SequentialState in order, nested ones opened, as (node name, module); no-ops are left out."""
    if not isinstance(module, snn.SequentialState):
        raise ExportError(
            f"module: {type(module).__name__} is not a norse SequentialState; wrap the layers of one time step in one"
        )
    leaves = list(_leaves(module, ""))
    for index, (path, leaf) in enumerate(leaves):
        if isinstance(leaf, (nn.Identity, nn.Dropout)):
            continue
        if type(leaf) not in CONVERTERS:
            raise ExportError(
                f"module '{path}': {type(leaf).__name__} cannot be exported; supported are "
                f"{', '.join(sorted(t.__name__ for t in CONVERTERS))}{_CURES.get(type(leaf).__name__, '')}"
            )
        yield f"{CONVERTERS[type(leaf)][0]}_{index}", leaf


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, snn.SequentialState):
            yield from _leaves(child, child_path)
        else:
            yield child_path, child


def convert(module: nn.Module, input_shape: Shape, dt_s: float) -> nir.NIRGraph:
    """Build the graph of a one-step module, without proving anything (`to_nir` does).

    Args:
        module: SequentialState in eval mode.
        input_shape: feature shape of one time step, without batch: (features,) or (C, H, W).
        dt_s: time step, seconds; must equal every neuron's own dt.

    Raises:
        ExportError: names the module that cannot be exported, why, and what to do.
    """
    if module.training:
        raise ExportError("module: in train mode; call .eval() first")
    nodes: dict[str, Any] = {"input": nir.Input(input_type={"input": np.array(input_shape)})}
    edges: list[tuple[str, str]] = []
    previous, shape = "input", tuple(input_shape)
    for name, leaf in stages(module):
        for parameter_name, parameter in leaf.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ExportError(
                    f"node '{name}': {parameter_name} holds NaN or infinity; retrain or reload it"
                )
        nodes[name], shape = CONVERTERS[type(leaf)][1](name, leaf, shape, dt_s)
        edges.append((previous, name))
        previous = name
    if previous == "input":
        raise ExportError("module: no layers to export")
    nodes["output"] = nir.Output(output_type={"output": np.array(shape)})
    edges.append((previous, "output"))
    return nir.NIRGraph(
        nodes=nodes,
        edges=edges,
        metadata={
            "dt_s": float(dt_s),
            "integration": "forward Euler, synapse first",
            "reset": "hard reset",
            "time_unit": "s",
        },
    )


def _array(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A float64 copy: NIR must never alias live parameters."""
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float64)


def _feature(name: str, field: str, value: object, shape: Shape) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not isinstance(value, torch.Tensor):
        raise ExportError(
            f"node '{name}': {field} is a {type(value).__name__}, needs a tensor; use torch.tensor({value})"
        )
    array = _array(value)
    if not np.isfinite(array).all():
        raise ExportError(f"node '{name}': {field} is not finite")
    try:
        return np.array(np.broadcast_to(array, shape))
    except ValueError as error:
        raise ExportError(
            f"node '{name}': {field} has shape {array.shape}, does not broadcast to {shape}"
        ) from error


def _time_constant(
    name: str, field: str, inverse: object, shape: Shape, dt_s: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    inverse_array = _feature(name, field, inverse, shape)
    step = np.float32(dt_s) * inverse_array.astype(np.float32)
    if (step <= 0).any() or (step > 1).any():
        raise ExportError(
            f"node '{name}': dt * {field} spans {step.min():g}..{step.max():g}, allowed (0, 1]; "
            "forward Euler is unstable or stands still outside"
        )
    return 1.0 / inverse_array


def _check_cell(name: str, cell: nn.Module, dt_s: float) -> None:
    if cell.dt != dt_s:
        raise ExportError(
            f"node '{name}': its dt is {cell.dt} s, the export's dt_s is {dt_s}; use one dt throughout"
        )
    reset = getattr(cell.p, "reset_method", reset_value)
    if reset is not reset_value:
        raise ExportError(
            f"node '{name}': reset method {getattr(reset, '__name__', reset)} is not in NIR; use reset_value (hard reset)"
        )


def _lif_box(name: str, cell: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    _check_cell(name, cell, dt_s)
    p: Any = cell.p
    return nir.LIF(
        tau=_time_constant(name, "tau_mem_inv", p.tau_mem_inv, shape, dt_s),
        r=np.ones(shape),
        v_leak=_feature(name, "v_leak", p.v_leak, shape),
        v_threshold=_feature(name, "v_th", p.v_th, shape),
        v_reset=_feature(name, "v_reset", p.v_reset, shape),
    ), shape


def _lif(name: str, cell: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    _check_cell(name, cell, dt_s)
    p: Any = cell.p
    tau_syn_s = _time_constant(name, "tau_syn_inv", p.tau_syn_inv, shape, dt_s)
    return nir.CubaLIF(
        tau_syn=tau_syn_s,
        tau_mem=_time_constant(name, "tau_mem_inv", p.tau_mem_inv, shape, dt_s),
        r=np.ones(shape),
        v_leak=_feature(name, "v_leak", p.v_leak, shape),
        v_threshold=_feature(name, "v_th", p.v_th, shape),
        v_reset=_feature(name, "v_reset", p.v_reset, shape),
        w_in=tau_syn_s / dt_s,  # an input jumps the current by 1 in Norse, by w_in * dt / tau_syn in NIR
    ), shape


def _li_box(name: str, cell: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    _check_cell(name, cell, dt_s)
    p: Any = cell.p
    tau_s = _time_constant(name, "tau_mem_inv", p.tau_mem_inv, shape, dt_s)
    return nir.LI(tau=tau_s, r=np.ones(shape), v_leak=_feature(name, "v_leak", p.v_leak, shape)), shape


def _linear(name: str, layer: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    assert isinstance(layer, nn.Linear)  # the table chose this converter by type
    if shape != (layer.in_features,):
        raise ExportError(f"node '{name}': receives {shape}, needs ({layer.in_features},); flatten before it")
    weight = _array(layer.weight)
    out = (layer.out_features,)
    return (nir.Linear(weight) if layer.bias is None else nir.Affine(weight, _array(layer.bias))), out


def _conv2d(name: str, layer: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    assert isinstance(layer, nn.Conv2d)  # the table chose this converter by type
    if len(shape) != 3 or shape[0] != layer.in_channels:
        raise ExportError(f"node '{name}': receives {shape}, needs ({layer.in_channels}, H, W)")
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ExportError(
            f"node '{name}': padding {layer.padding!r} of mode '{layer.padding_mode}'; use numbers and zeros"
        )
    if layer.groups != 1:
        raise ExportError(f"node '{name}': {layer.groups} groups are not exported yet; use a dense kernel")
    if layer.kernel_size[0] != layer.kernel_size[1]:
        raise ExportError(
            f"node '{name}': kernel {layer.kernel_size} is not square, which NIR 1.0.8 reads back wrongly; pad it with zeros"
        )
    bias = np.zeros(layer.out_channels) if layer.bias is None else _array(layer.bias)
    node = nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=_array(layer.weight),
        stride=np.array(layer.stride),
        padding=np.array(layer.padding),
        dilation=np.array(layer.dilation),
        groups=layer.groups,
        bias=bias,
    )
    return node, _output_shape(layer, shape)


def _avg_pool(name: str, layer: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    assert isinstance(layer, nn.AvgPool2d)  # the table chose this converter by type
    kernel, stride, padding = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
    if layer.ceil_mode or layer.divisor_override is not None or any(padding):
        raise ExportError(
            f"node '{name}': ceil_mode, divisor_override and padding are not in NIR; pad or crop before it"
        )
    pool = nir.AvgPool2d(kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding))
    return pool, _output_shape(layer, shape)


def _flatten(name: str, layer: nn.Module, shape: Shape, dt_s: float) -> tuple[Any, Shape]:
    assert isinstance(layer, nn.Flatten)  # the table chose this converter by type
    if layer.start_dim != 1 or layer.end_dim not in (-1, len(shape)):
        raise ExportError(
            f"node '{name}': flattens {layer.start_dim}..{layer.end_dim}; flatten all features: nn.Flatten()"
        )
    # NIR counts dimensions without the batch.
    node = nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
    return node, (int(np.prod(shape)),)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _output_shape(layer: nn.Module, shape: Shape) -> Shape:
    return tuple(layer(torch.zeros(1, *shape)).shape[1:])


Converter = Callable[[str, nn.Module, Shape, float], tuple[Any, Shape]]
CONVERTERS: dict[type[nn.Module], tuple[str, Converter]] = {
    nn.Linear: ("linear", _linear),
    nn.Conv2d: ("conv", _conv2d),
    nn.AvgPool2d: ("pool", _avg_pool),
    nn.Flatten: ("flatten", _flatten),
    snn.LIFBoxCell: ("lif", _lif_box),
    snn.LIFCell: ("lif", _lif),
    snn.LIBoxCell: ("readout", _li_box),
}
_CURES = {
    "BatchNorm2d": "; fold it into the layer before it with knarr.train.fold_batch_norm",
    "BatchNorm1d": "; fold it into the layer before it with knarr.train.fold_batch_norm",
    "MaxPool2d": "; NIR has no maximum, use AvgPool2d",
    "ReLU": "; a spiking network has neurons in its place",
    "Lift": "; export the one-step cells, time is the graph's own",
}
