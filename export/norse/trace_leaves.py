"""Run the live module step by step, and record every neuron under the name that its NIR node has."""

from __future__ import annotations

from typing import Any

import norse.torch as snn
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from knarr.export.arguments import as_inputs
from knarr.export.errors import ExportError
from knarr.export.graph.step import Trace, stacked
from knarr.export.norse.layers import NEURON_CELLS, take_apart


def trace_leaves(module: nn.Module, inputs: npt.ArrayLike) -> Trace:
    """Run a module whose leaves are known by their types, and record what its neurons do.

    Args:
        module: SequentialState, nn.Sequential or StepGraph in eval mode. An nn.Sequential is run as the SequentialState
            of the same layers, since by itself it would lose every state.
        inputs: (samples, timesteps, *features).

    Returns:
        Output, spikes and voltages. Currents are left out: Norse keeps them as they are after their decay.

    Raises:
        ExportError: a layer that cannot be exported, or one neuron cell in two places.
    """
    x = torch.as_tensor(as_inputs(inputs)).to(torch.float32)
    leaves = [leaf for leaf in take_apart(module).leaves if isinstance(leaf.module, NEURON_CELLS)]
    # Hooks get the module alone; a cell stands in one place, so its identity gives its name.
    names = {id(leaf.module): leaf.name for leaf in leaves}
    spikes: dict[str, list[Tensor]] = {}
    voltages: dict[str, list[Tensor]] = {}

    def remember(cell: nn.Module, _: Any, result: Any) -> None:
        out, state = result
        name = names[id(cell)]
        voltages.setdefault(name, []).append(state.v.detach())
        if hasattr(cell.p, "v_th"):
            spikes.setdefault(name, []).append(out.detach())

    if type(module) is nn.Sequential:
        module = snn.SequentialState(*module).eval()
    handles = [leaf.module.register_forward_hook(remember) for leaf in leaves]
    outputs, state = [], None
    try:
        with torch.no_grad():
            for t in range(x.shape[1]):
                out, state = module(x[:, t], state)
                outputs.append(out)
    except Exception as error:  # the user's own parameters may lead anywhere
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ExportError(
            f"module: does not run on {tuple(x.shape)} ({reason}); check its shapes and dtypes"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        output=torch.stack(outputs, 1).cpu().numpy(),
        spikes={name: z.astype(np.uint8) for name, z in stacked(spikes).items()},
        v=stacked(voltages),
    )
