"""Why a tool's spikes differ, each with a replay: knarr's side again with that one thing changed must differ no more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from rules import Reading, Rule, euler, replay

from knarr.export import step_nir

Replay = Callable[[nir.NIRGraph, torch.Tensor, float], torch.Tensor]


class Reason(NamedTuple):
    text: str
    replay: Replay | None = None


def at(dt_s: float) -> Replay:
    """knarr at another time step."""
    return lambda graph, inputs, _: torch.as_tensor(step_nir(graph, inputs.numpy(), dt_s).output)


def edited(**fields: Any) -> Replay:
    """knarr on a graph whose neurons have other parameters: numbers, or functions of (node, dt_s)."""

    def run(graph: nir.NIRGraph, inputs: torch.Tensor, dt_s: float) -> torch.Tensor:
        graph = copy.deepcopy(graph)
        for node in graph.nodes.values():
            for field, value in fields.items():
                if hasattr(node, "v_threshold") and hasattr(node, field):
                    new = value(node, dt_s) if callable(value) else value
                    setattr(
                        node, field, np.broadcast_to(new, node.v_threshold.shape).astype(np.float64)
                    )
        return torch.as_tensor(step_nir(graph, inputs.numpy(), dt_s).output)

    return run


def ruled(reading: Reading, loops: bool = True) -> Replay:
    return lambda graph, inputs, dt_s: replay(graph, inputs, dt_s, reading, loops)


def rockpool_reads(node: Any, dt_s: float) -> Rule:
    """from_nir: dt = tau_mem/(1+r), decays exp(-dt/tau), gain 1 in front of both."""
    dt_s = float((node.tau_mem / (1 + node.r)).min())
    return rockpool_steps(node, dt_s)


def rockpool_steps(node: Any, dt_s: float, many: bool = True) -> Rule:
    """nn/modules/torch/lif_torch.py and lif_neuron_torch.py."""
    cuba = isinstance(node, nir.CubaLIF)
    keep = np.exp(-dt_s / (node.tau_mem if cuba else node.tau))
    syn = np.exp(-dt_s / node.tau_syn) if cuba else None
    return Rule(
        keep,
        1.0,
        node.v_threshold,
        syn,
        bias=node.v_leak,
        reset="subtract",
        many=many,
        decay_first=True,
    )


def sinabs_steps(node: Any, dt_s: float, norm: bool = True, hard: bool = False) -> Rule:
    """layers/functional/lif.py; an IAF is the same with nothing lost."""
    keep = 1.0 if isinstance(node, nir.IF) else np.exp(-1.0 / node.tau)
    gain = 1 - keep if norm and not isinstance(node, nir.IF) else 1.0
    return Rule(keep, gain, node.v_threshold, reset="zero" if hard else "subtract", many=not hard)


LEAK = "LIF, v_leak and v_reset -0.5"
CUT, ONE = ", batch axis cut", ", one spike per step"
NO_R = Reason(
    "from_nir ignores r of LIF", edited(r=lambda n, dt: n.r if isinstance(n, nir.CubaLIF) else 1.0)
)
NO_RESET = Reason("v_reset is not read", edited(v_reset=0.0))
RANDOM_BIAS = Reason("its Affine sets weight.bias; the bias stays random")
GE = Reason("fires at v >= v_th, NIR at v > v_th", ruled(euler))
LATE_SUBTRACT = Reason(
    "subtracts v_th, one step late (the default); the file says reset to 0",
    ruled(lambda n, dt: euler(n, dt, reset="late subtract")),
)
LATE_ZERO = Reason(
    "resets one step late, when it has taken that step's input, which is lost",
    ruled(lambda n, dt: euler(n, dt, reset="late zero")),
)
ROCKPOOL = "dt = tau_mem/(1+r), w_in unread, decays exp(-dt/tau), v >= v_th, several spikes, subtract reset"
READS = Reason(f"reads {ROCKPOOL}", ruled(rockpool_reads))
NO_LOOP = Reason(
    "as above; a flat graph's loop brings nothing in one call", ruled(rockpool_reads, loops=False)
)

REASONS: dict[tuple[str, str], dict[str, Reason]] = {
    ("norse", "A"): {
        "LIF, scaled": NO_R,
        "LIF, CubaLIF, scaled": NO_R,
        "Conv2d, LIF, scaled": NO_R,
        "LIF, ties, scaled": NO_R,
        "LIF, v_reset -0.5": NO_RESET,
        LEAK: NO_RESET,
        f"{LEAK}, scaled": Reason(
            "neither r of LIF nor v_reset is read", edited(r=1.0, v_reset=0.0)
        ),
    },
    ("norse", "B"): {
        "LIFBoxCell, v_reset -0.5, to_nir(dt=1)": Reason(
            "to_nir drops v_reset", edited(v_reset=-0.5)
        ),
        "LIFCell, to_nir(dt=1)": Reason(
            "to_nir leaves w_in at 1; the cell's current jumps by 1, which is w_in = tau_syn/dt",
            edited(w_in=lambda n, dt: n.tau_syn / dt),
        ),
        "IAFCell": Reason(
            "to_nir writes r = 1; the cell adds x without dt, which is r = 1/dt",
            edited(r=lambda n, dt: 1 / dt),
        ),
    },
    ("nirtorch", "A"): {"LIF, bias": RANDOM_BIAS, "IF, bias": RANDOM_BIAS},
    ("snntorch", "A"): {
        "LIF": Reason("dt = 1e-4 is fixed in import_nir.py", at(1e-4)),
        "LIF, v_reset -0.5": NO_RESET,
    },
    ("snntorch", "B"): {
        "Leaky": LATE_SUBTRACT,
        "Synaptic": LATE_SUBTRACT,
        "Synaptic, zero reset": LATE_ZERO,
        "RLeaky, zero reset": LATE_ZERO,
    },
    ("sinabs", "A"): {
        "LIF, bias": Reason(
            "reads decay exp(-1/tau), gain 1, v >= v_th, several spikes a step, subtract reset",
            ruled(lambda n, dt: sinabs_steps(n, dt, norm=False)),
        ),
        "IF, bias": Reason(
            "reads v >= v_th, several spikes a step, subtract reset, v never below -v_th",
            ruled(lambda n, dt: sinabs_steps(n, dt)._replace(floor=-n.v_threshold)),
        ),
    },
    ("sinabs", "B"): {
        "LIF": Reason(
            "decay exp(-1/tau), v >= v_th, several spikes, subtract reset; none of it is in the file",
            ruled(sinabs_steps),
        ),
        "LIF, reset and single spike": Reason(
            "decay exp(-1/tau), not 1 - 1/tau", ruled(lambda n, dt: sinabs_steps(n, dt, hard=True))
        ),
        "LIF, norm_input=False, reset and single spike": Reason(
            "to_nir writes r = 1 with or without norm_input; decay exp(-1/tau)",
            ruled(lambda n, dt: sinabs_steps(n, dt, norm=False, hard=True)),
        ),
        "IAF": Reason(
            "several spikes a step and subtract reset; not in the file", ruled(sinabs_steps)
        ),
    },
    ("spikingjelly", "A"): {"LIF, ties": GE, "LIF, ties, scaled": GE},
    ("rockpool", "A"): {
        "CubaLIF": READS,
        "CubaLIF, scaled": READS,
        "CubaLIF, recurrent": NO_LOOP,
        "CubaLIF, recurrent, scaled": NO_LOOP,
        "CubaLIF, recurrent, scaled, nested": READS,
    },
    ("rockpool", "B"): {
        f"LIFTorch{CUT}": Reason(
            "no w_in in the file; decay exp(-dt/tau), several spikes, subtract reset",
            ruled(rockpool_steps),
        ),
        f"LIFTorch{CUT}{ONE}": Reason(
            "no w_in in the file; decay exp(-dt/tau), subtract reset",
            ruled(lambda n, dt: rockpool_steps(n, dt, many=False)),
        ),
        f"LIFNeuronTorch{CUT}": Reason(
            "decay exp(-dt/tau), several spikes, subtract reset", ruled(rockpool_steps)
        ),
        f"LIFNeuronTorch{CUT}{ONE}": Reason(
            "decay exp(-dt/tau), subtract reset",
            ruled(lambda n, dt: rockpool_steps(n, dt, many=False)),
        ),
    },
}
TWICE = "NIRTorch builds a nested graph twice where it meets it before its source"
ERRORS = (  # tool, words of the error, why
    ("norse", "(1x200 and 150x40)", "from_nir skips AvgPool2d, unsaid"),
    ("norse", "knarr gives shape", "from_nir skips AvgPool2d, unsaid"),
    ("norse", "tau spans", "to_nir writes tau * dt"),
    ("norse", "Scalar datasets", "0-d arrays, Norse's default"),
    ("snntorch", "r not supported in CubaLIF", "needs r = tau_mem/dt with its dt of 1e-4"),
    (
        "snntorch",
        "-> 0.input: [[40]]",
        "the call of its documentation: the batch axis goes into Input",
    ),
    ("snntorch", "'GraphModule' object", f"{TWICE}; import_from_nir nests every loop"),
    ("nirtorch", "'GraphModule' object", TWICE),
    ("spikingjelly", "'GraphModule' object", TWICE),
    ("snntorch", "-> 1.input: []", "0-d arrays, snnTorch's default"),
    ("sinabs", "argument 'v_reset'", "pins nir 1.0.4, which has no v_reset"),
    ("sinabs", "size of tensor", "from_nir skips Linear, unsaid"),
    ("sinabs", "KeyError", "from_nir knows no CubaLIF and no Linear"),
    ("sinabs", "truth value", "its check of v_leak takes parameters of one axis only"),
    ("sinabs", "One of data", "to_nir leaves input_shape unset"),
    ("rockpool", "'tau_mem'", "from_nir asks LIF for tau_mem; NIR says tau"),
    ("rockpool", "(1, 40)", "to_nir puts the batch axis into Input"),
)


def explain(tool: str, way: str, net: str) -> Reason | None:
    """The reason of a row that differs."""
    return REASONS.get((tool, way), {}).get(net)


def with_reason(tool: str, error: str) -> str:
    """An error and, where its reason is known, that."""
    reasons = [why for name, words, why in ERRORS if name == tool and words in error]
    return "; ".join([error.replace("|", "/"), *reasons[:1]])
