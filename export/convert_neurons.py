"""Norse cells -> NIR neurons: seconds, float64 copies, one value per neuron, `w_in = tau_syn/dt`, IF `r = 1/dt`."""

from __future__ import annotations

from typing import Any

import nir
import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from norse.torch.functional.reset import reset_value

from knarr.export.errors import ExportError
from knarr.export.layers import Layer
from knarr.export.modules import PLIFBoxCell

Shape = tuple[int, ...]
Float64 = npt.NDArray[np.float64]


def array(tensor: torch.Tensor) -> Float64:
    """A float64 copy: NIR must never alias live parameters."""
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float64)


def neuron(layer: Layer, shape: Shape, dt_s: float) -> Any:
    """The NIR node of a cell.

    Args:
        layer: with a Norse cell or a PLIFBoxCell.
        shape: of its neurons.
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
    read = _Reader(layer, cell.p, shape, dt_s)
    if isinstance(cell, snn.IAFCell):
        # NIR: v' = r I, and one step of Norse adds the whole input.
        return nir.IF(
            r=np.full(shape, 1 / dt_s), v_threshold=read.voltage("v_th"), v_reset=read.voltage("v_reset")
        )
    fields: dict[str, Float64] = {"r": np.ones(shape), "v_leak": read.voltage("v_leak")}
    tau_mem_s = read.time_constant("tau_mem_inv")
    if isinstance(cell, (snn.LIFBoxCell, PLIFBoxCell, snn.LIFCell, snn.LIFRecurrentCell)):
        fields |= {"v_threshold": read.voltage("v_th"), "v_reset": read.voltage("v_reset")}
    if isinstance(cell, (snn.LIFBoxCell, PLIFBoxCell)):
        return nir.LIF(tau=tau_mem_s, **fields)
    if isinstance(cell, snn.LIBoxCell):
        return nir.LI(tau=tau_mem_s, **fields)
    tau_syn_s = read.time_constant("tau_syn_inv")
    # An input jumps the current by 1 in Norse, by w_in * dt / tau_syn in NIR.
    fields |= {"tau_mem": tau_mem_s, "tau_syn": tau_syn_s, "w_in": tau_syn_s / dt_s}
    return nir.CubaLI(**fields) if isinstance(cell, snn.LICell) else nir.CubaLIF(**fields)


class _Reader:
    def __init__(self, layer: Layer, parameters: Any, shape: Shape, dt_s: float) -> None:
        self.where, self.p, self.shape, self.dt_s = f"module '{layer.path}'", parameters, shape, dt_s

    def voltage(self, field: str) -> Float64:
        value = getattr(self.p, field)
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"{self.where}: {field} is a {type(value).__name__}, needs a tensor; use torch.tensor({value})"
            )
        values = array(value)
        if not np.isfinite(values).all():
            raise ExportError(f"{self.where}: {field} is not finite; retrain or reload it")
        try:
            return np.array(np.broadcast_to(values, self.shape))
        except ValueError as error:
            raise ExportError(
                f"{self.where}: {field} has shape {values.shape}, does not broadcast to its neurons {self.shape}; "
                "give one value or one per neuron"
            ) from error

    def time_constant(self, field: str) -> Float64:
        inverse = self.voltage(field)
        step = np.float32(self.dt_s) * inverse.astype(np.float32)
        if (step <= 0).any() or (step > 1).any():
            raise ExportError(
                f"{self.where}: dt * {field} spans {step.min():g}..{step.max():g}, allowed (0, 1]; "
                "forward Euler is unstable or stands still outside, use a longer time constant or a shorter dt"
            )
        return 1.0 / inverse
