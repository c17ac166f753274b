"""The networks that knarr and NeuroBench both count, and their inputs; needs neither of them.

Weights are whole 64ths, inputs whole eighths and decays powers of two, so that a few steps are exact in float32 whatever the
order of additions: two codings of one network fire the same spikes, and only the counting can differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import norse.torch as norse
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Arrays = dict[str, npt.NDArray[Any]]
DT_S = 0.001
SAMPLES, TIMESTEPS, CLASSES = 4, 6, 5
IMAGE, FEATURES, HIDDEN, LOOPED = (2, 10, 10), 24, 20, 16
V_KEEP, I_KEEP, V_TH = 0.75, 0.5, 0.5
"""What a neuron keeps of its voltage and of its current per step, and its threshold."""


class Case(NamedTuple):
    """One comparison.

    Args:
        seed: of its weights and inputs.
        what: what is particular about it, in words.
        codings: how the network is written for NeuroBench: "norse" as knarr exports it, "snntorch" with its Leaky,
            "linear" as Norse's recurrent cell with its weights in nn.Linear instead of bare parameters.
        graded: which (samples, timesteps) hear eighths instead of 0 and 1, as indices.
        signed: half of the events are -1.
        pruned: share of the weights that are 0.
        recurrent: Linear, LIF, recurrent LIF, Linear, LI instead of the convolutions.
    """

    seed: int
    what: str
    codings: tuple[str, ...] = ("norse", "snntorch")
    graded: tuple[slice, slice] | None = None
    signed: bool = False
    pruned: float = 0.0
    recurrent: bool = False


EVERY = slice(None)
CASES = {
    "binary": Case(1, "inputs of 0 and 1"),
    "signed": Case(6, "inputs of -1, 0 and 1", signed=True),
    "first": Case(2, "first frame of eighths, then 0 and 1", graded=(EVERY, slice(0, 1))),
    "mixed": Case(
        3, "two samples of eighths, two of 0 and 1, in one batch", graded=(slice(0, 2), EVERY)
    ),
    "pruned": Case(
        4,
        "half of the weights are 0; first frame of eighths",
        graded=(EVERY, slice(0, 1)),
        pruned=0.5,
    ),
    "loop": Case(
        5, "a recurrent layer, inputs of 0 and 1", codings=("norse", "linear"), recurrent=True
    ),
}


def arrays(case: Case) -> Arrays:
    """Inputs (samples, timesteps, *features) and, under the path of its module, every weight and bias of a case."""
    rng = np.random.default_rng(case.seed)
    made: Arrays = {"inputs": _inputs(case, rng)}
    if case.recurrent:
        shapes = {"0.weight": (HIDDEN, FEATURES), "2.input_weights": (LOOPED, HIDDEN)}
        shapes |= {"2.recurrent_weights": (LOOPED, LOOPED), "3.weight": (CLASSES, LOOPED)}
    else:
        shapes = {"0.weight": (8, 2, 3, 3), "2.weight": (12, 2, 3, 3), "6.weight": (HIDDEN, 48)}
        shapes |= {"8.weight": (CLASSES, HIDDEN)}
    for path, shape in shapes.items():
        # What makes a third of the neurons fire: spread by fan-in, and little more excitation than inhibition.
        spread = 256 / np.sqrt(np.prod(shape[1:]) * (1 - case.pruned))
        weight = np.rint(spread * (0.1 + rng.standard_normal(shape))) * (
            rng.random(shape) >= case.pruned
        )
        made[path] = (weight / 64).astype(np.float32)
        if path == "2.recurrent_weights":
            np.fill_diagonal(made[path], 0)  # Norse takes them out: no neuron hears itself
    if not case.recurrent:
        made["0.bias"] = (rng.integers(-8, 9, 8) / 64).astype(np.float32)
    return made


def _inputs(case: Case, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    shape = (SAMPLES, TIMESTEPS, *((FEATURES,) if case.recurrent else IMAGE))
    events = rng.random(shape) < 0.25
    values = np.ones(shape)
    if case.graded is not None:
        values[case.graded] = rng.integers(1, 17, shape)[case.graded] / 8
    if case.signed:
        values = rng.choice([-1.0, 1.0], shape)
    return (events * values).astype(np.float32)


def digest(made: Arrays) -> str:
    """SHA-256 of what `arrays` gave: names, shapes, types and values."""
    sha = hashlib.sha256()
    for name in sorted(made):
        array = np.ascontiguousarray(made[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def norse_net(made: Arrays) -> norse.SequentialState:
    """One time step as a Norse module, what knarr exports."""
    looped = "2.recurrent_weights" in made
    recurrent = _recurrent_layers(made) if looped else convolutions(made, _lif_box)
    readout = norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=_inverse(0.875)), dt=DT_S)
    return norse.SequentialState(*recurrent, readout).eval()


def convolutions(made: Arrays, neuron: Callable[[], nn.Module]) -> list[nn.Module]:
    """Layers up to the readout's synapse, with the given neurons."""
    return [
        load(nn.Conv2d(2, 8, 3, padding=1), made, "0"),
        neuron(),
        load(nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4, bias=False), made, "2"),
        neuron(),
        nn.AvgPool2d(2),  # of 5 x 5 pixels: the last row and column are in no window
        nn.Flatten(),
        load(nn.Linear(48, HIDDEN, bias=False), made, "6"),
        neuron(),
        load(nn.Linear(HIDDEN, CLASSES, bias=False), made, "8"),
    ]


def _recurrent_layers(made: Arrays) -> list[nn.Module]:
    weights = {
        name: nn.Parameter(torch.tensor(made[f"2.{name}"]))
        for name in ("input_weights", "recurrent_weights")
    }
    looped = norse.LIFRecurrentCell(HIDDEN, LOOPED, lif_parameters(), **weights, dt=DT_S)
    first = load(nn.Linear(FEATURES, HIDDEN, bias=False), made, "0")
    return [first, _lif_box(), looped, load(nn.Linear(LOOPED, CLASSES, bias=False), made, "3")]


def load(layer: Any, made: Arrays, path: str) -> nn.Module:
    """Give a layer the weights that the case has for its path, and no others."""
    layer.load_state_dict(
        {name: torch.tensor(made[f"{path}.{name}"]) for name in layer.state_dict()}
    )
    return layer


def lif_parameters() -> norse.LIFParameters:
    return norse.LIFParameters(
        tau_syn_inv=_inverse(I_KEEP), tau_mem_inv=_inverse(V_KEEP), v_th=torch.tensor(V_TH)
    )


def _lif_box() -> nn.Module:
    parameters = norse.LIFBoxParameters(tau_mem_inv=_inverse(V_KEEP), v_th=torch.tensor(V_TH))
    return norse.LIFBoxCell(parameters, dt=DT_S)


def _inverse(keep: float) -> torch.Tensor:
    """1 / tau of a neuron that keeps this share per step."""
    return torch.tensor((1 - keep) / DT_S)
