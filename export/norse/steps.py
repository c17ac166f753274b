"""The functions of Norse that step neurons: which cell each of them is, and which no graph can hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import norse.torch as snn
import norse.torch.functional as norse_functional
from norse.torch.functional import iaf, leaky_integrator, leaky_integrator_box, lif, lif_box
from norse.torch.functional.adjoint import lif_adjoint
from torch import Tensor, nn

from knarr.export.norse.values import Neurons


@dataclass(frozen=True)
class NeuronFunction:
    """A function that steps neurons once.

    Args:
        kind: name of the cell that does the same.
        inputs, state: names of the arguments that bring them.
        weights: names of the arguments that bring weights.
        spiking: whether it gives spikes.
    """

    kind: str
    inputs: str
    state: str = "state"
    weights: tuple[str, ...] = ()
    spiking: bool = True


_BOTH = ("input_weights", "recurrent_weights")
_INTO = ("input_weights",)
_FUNCTIONS: tuple[tuple[Callable[..., Any], NeuronFunction], ...] = (
    (lif.lif_feed_forward_step, NeuronFunction("LIFCell", "input_spikes")),
    (lif_adjoint.lif_feed_forward_adjoint_step, NeuronFunction("LIFCell", "input", "s")),
    (lif.lif_step, NeuronFunction("LIFRecurrentCell", "input_spikes", weights=_BOTH)),
    (lif_adjoint.lif_adjoint_step, NeuronFunction("LIFRecurrentCell", "input", "s", weights=_BOTH)),
    (lif.lif_current_encoder, NeuronFunction("LIFBoxCell", "input_current", "voltage")),
    (lif_box.lif_box_feed_forward_step, NeuronFunction("LIFBoxCell", "input_tensor")),
    (iaf.iaf_feed_forward_step, NeuronFunction("IAFCell", "input_spikes")),
    (
        leaky_integrator.li_feed_forward_step,
        NeuronFunction("LICell", "input_tensor", spiking=False),
    ),
    (
        leaky_integrator.li_step,
        NeuronFunction("LICell", "input_spikes", weights=_INTO, spiking=False),
    ),
    (
        leaky_integrator_box.li_box_feed_forward_step,
        NeuronFunction("LIBoxCell", "input_tensor", spiking=False),
    ),
    (
        leaky_integrator_box.li_box_step,
        NeuronFunction("LIBoxCell", "input_spikes", weights=_INTO, spiking=False),
    ),
)
KNOWN: dict[CodeType, NeuronFunction] = {function.__code__: known for function, known in _FUNCTIONS}
"""Code of a function -> the neurons that it steps."""

_FOLDER = Path(norse_functional.__file__).parent
_UNKNOWN_ENDS = ("_step", "_step_sparse", "_step_linear", "_encode", "_current_encoder")
# It only calls a function that is known, step by step.
_LOOPS = ("constant_current_lif_encode",)
CURES = {
    "lsnn": "NIR has no adaptive threshold, use LIFRecurrentCell",
    "ada_lif": "NIR has no adaptive threshold, use LIFCell",
    "lif_adex": "NIR has no adaptive exponential neuron, use LIFCell",
    "lif_ex": "NIR has no exponential neuron, use LIFCell",
    "lif_refrac": "NIR has no refractory period, use LIFCell",
    "lif_mc": "NIR has no compartments, use LIFRecurrentCell",
    "coba_lif": "NIR has no conductances, use LIFCell",
    "izhikevich": "NIR has no Izhikevich neuron, use LIFCell",
    "iaf": "give the weights to an nn.Linear before an IAFCell",
    "lif_correlation": "NIR has no correlation sensors, use LIFRecurrentCell",
    "poisson": "it draws numbers, which no graph holds; encode the data before, and export the module behind the encoder",
    "signed_poisson": "it draws numbers, which no graph holds; encode the data before, and export the module behind the encoder",
    "population": "encode the data before, and export the module behind the encoder",
    "spike_latency": "encode the data before, and export the module behind the encoder",
}
"""First letters of a function's name -> what to do; the longest that fits counts."""


def is_unknown(code: CodeType) -> bool:
    """Tell whether code is one of Norse's functions that step or encode, and that no graph can hold."""
    name = code.co_name
    steps = name.endswith(_UNKNOWN_ENDS) and name not in _LOOPS and code not in KNOWN
    return steps and Path(code.co_filename).is_relative_to(_FOLDER)


def cure(name: str) -> str:
    """Return what to do about one of Norse's functions."""
    fitting = [start for start in CURES if name.startswith(start)]
    known = "use LIFCell, LIFBoxCell, LIFRecurrentCell, IAFCell, LICell or LIBoxCell"
    return CURES[max(fitting, key=len)] if fitting else known


def begins_at_rest(known: NeuronFunction, state: Any, parameters: Any) -> bool:
    """Tell whether a state is the one before the first step: no current, no spike, the voltage of rest."""
    rest = parameters.v_reset if known.kind == "IAFCell" else parameters.v_leak
    if isinstance(state, Tensor):
        return bool((state == rest).all())
    fields = state._asdict()
    still = all(not bool(value.any()) for name, value in fields.items() if name != "v")
    return still and bool((fields["v"] == rest).all())


def as_cell(neurons: Neurons) -> nn.Module:
    """Return the Norse cell that does what recorded neurons did."""
    p, dt = neurons.parameters, neurons.dt
    if neurons.kind == "LIFRecurrentCell":
        into, back = neurons.weights
        # Without `autapses` Norse would write zeros into the caller's own weights.
        made = snn.LIFRecurrentCell(
            into.shape[1],
            into.shape[0],
            p,
            input_weights=nn.Parameter(into.detach()),
            recurrent_weights=nn.Parameter(back.detach()),
            autapses=True,
            dt=dt,
        )
    elif neurons.kind == "LIFBoxCell":
        known = {
            name: getattr(p, name) for name in snn.LIFBoxParameters._fields if hasattr(p, name)
        }
        made = snn.LIFBoxCell(snn.LIFBoxParameters(**known), dt=dt)
    else:
        made = getattr(snn, neurons.kind)(p, dt=dt)
    return made.eval()
