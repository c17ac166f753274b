"""One step of each NIR neuron, in the brackets that reproduce Norse 1.1.0 bit for bit; `step.py` holds the equations."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch

from knarr.export.errors import ExportError


class NeuronStepper:
    """State and coefficients of one node.

    Args:
        name: for messages.
        node: LIF, CubaLIF, LI, CubaLI, IF, I or Threshold.
        dt_s: time step, seconds.
        dtype: of states and coefficients.
        unstable: step coefficients above 1 too, as forward Euler would.
        keep: remember spikes, voltages and currents of every step.

    Raises:
        ExportError: a coefficient outside (0, 1], where forward Euler means something else than the equation.
    """

    def __init__(
        self,
        name: str,
        node: Any,
        dt_s: float,
        dtype: torch.dtype,
        *,
        unstable: bool = False,
        keep: bool = True,
    ) -> None:
        self.name, self.node, self.dtype, self.unstable, self.keep = name, node, dtype, unstable, keep
        dt = torch.tensor(dt_s, dtype=dtype)
        self.threshold = self._tensor(node.v_threshold) if hasattr(node, "v_threshold") else None
        if self.threshold is not None:
            self.v_reset = self._tensor(node.v_reset)
        if isinstance(node, (nir.IF, nir.I)):
            self.gain = self._tensor(dt_s * np.asarray(node.r, dtype=np.float64))
            self.v_init = self.v_reset if isinstance(node, nir.IF) else torch.zeros((), dtype=dtype)
        else:
            tau = node.tau_mem if isinstance(node, (nir.CubaLIF, nir.CubaLI)) else node.tau
            self.a_mem = dt * self._inverse("tau_mem" if hasattr(node, "tau_mem") else "tau", tau, dt_s)
            self.v_leak, self.r = self._tensor(node.v_leak), self._tensor(node.r)
            self.v_init = self.v_leak
        if isinstance(node, (nir.CubaLIF, nir.CubaLI)):
            tau_syn = np.asarray(node.tau_syn, dtype=np.float64)
            self.a_syn = dt * self._inverse("tau_syn", tau_syn, dt_s)
            self.gain = self._tensor(np.asarray(node.w_in, dtype=np.float64) * dt_s / tau_syn)
        self.v: torch.Tensor | None = None
        self.i: torch.Tensor | None = None
        self.margin = float("inf")
        self.spikes: list[torch.Tensor] = []
        self.voltages: list[torch.Tensor] = []
        self.currents: list[torch.Tensor] = []

    def _tensor(self, array: object) -> torch.Tensor:
        return torch.as_tensor(np.array(array, dtype=np.float64)).to(self.dtype)

    def _inverse(self, field: str, tau_s: object, dt_s: float) -> torch.Tensor:
        tau = np.asarray(tau_s, dtype=np.float64)
        # float32 rounds dt/tau = 1 up at times; a whole step too much is another thing.
        if not ((tau > 0) & (self.unstable | (dt_s < tau * (1 + 1e-6)))).all():
            raise ExportError(
                f"node '{self.name}': {field} spans {tau.min():g}..{tau.max():g} s, and forward Euler with dt {dt_s:g} s needs "
                "at least dt; use a shorter dt or another model"
            )
        return self._tensor(1.0 / tau)

    def __call__(self, x: torch.Tensor, looping: torch.Tensor | None = None) -> torch.Tensor:
        """What the node gives at this step; `looping` is what came round a loop, added to a current last."""
        v = self.v_init.expand_as(x) if self.v is None else self.v
        if isinstance(self.node, (nir.CubaLIF, nir.CubaLI)):
            i = torch.zeros_like(x) if self.i is None else self.i
            i = (i - self.a_syn * i) + self.gain * x
            self.i = i if looping is None else i + self.gain * looping
            v = v + self.a_mem * ((self.v_leak - v) + self.r * self.i)
            self._note(self.currents, self.i)
        else:
            x = x if looping is None else x + looping
            if isinstance(self.node, (nir.IF, nir.I)):
                v = v + self.gain * x
            elif isinstance(self.node, nir.LIF):
                v = v + self.a_mem * ((self.r * x + self.v_leak) - v)
            else:
                v = v + self.a_mem * ((self.v_leak - v) + self.r * x)
        if self.threshold is None:
            self.v = v
            self._note(self.voltages, v)
            return v
        z = v > self.threshold
        self.margin = min(self.margin, float((v - self.threshold).abs().min()))
        self.v = torch.where(z, self.v_reset.expand_as(v), v)
        self._note(self.spikes, z)
        self._note(self.voltages, self.v)
        return z.to(self.dtype)

    def _note(self, steps: list[torch.Tensor], value: torch.Tensor) -> None:
        if self.keep:
            steps.append(value)
