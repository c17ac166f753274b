"""Count the operations of an inference, exactly and without knowing what one costs.

- `count`: the entry for networks that spike, from arrays or data loaders.
- `chip`: chip networks of integers, simulated here or recorded elsewhere.
- `graph`: NIR graphs, counted while their stepper runs them; imported only for a graph, since it
  needs torch.
- `onnx`: ONNX files, the baseline of a network that does not spike.
- `torch_count`: any torch module as it stands, by the operators that it dispatches; `torch_operators`
  says what each of them costs, `torch_products` counts those that multiply.
- `fan_out`: how many outputs an event reaches, through kernels and the pools folded into them.
- `tally`: sums over frames of events, per layer, step and sample.
- `counts`: what an inference did, and the ledger of what the numbers cover.
"""

from typing import TYPE_CHECKING

from knarr.hw_sim.counting.chip import count_events
from knarr.hw_sim.counting.count import count
from knarr.hw_sim.counting.counts import (
    LayerCounts,
    LedgerRow,
    OperationCounts,
)
from knarr.lazy import lazy_face

if TYPE_CHECKING:
    from knarr.hw_sim.counting.onnx.count import count_onnx
    from knarr.hw_sim.counting.torch_count import count_torch
else:
    __getattr__, __dir__ = lazy_face(__name__)

__all__ = [
    "LayerCounts",
    "LedgerRow",
    "OperationCounts",
    "count",
    "count_events",
    "count_onnx",
    "count_torch",
]
