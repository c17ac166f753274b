"""Networks of lava-dl slayer's own blocks, written by its own `export_hdf5`: `python slayer_export.py FOLDER SLAYER`.

Runs in a process of its own, since knarr and its tests never import lava; SLAYER is the folder that holds slayer. For each network <name>.net and <name>.npz with
`inputs` (samples, timesteps, *features), random spikes or bias mantissas; and `spikes/<i>`, what slayer's own float
emulation gave for each block with neurons, (samples, timesteps, *features), delayed by its one step per block.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

COMPATIBILITY = Path(__file__).parents[2] / "deploy" / "lava" / "compatibility.py"


def import_slayer(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("compatibility", COMPATIBILITY)
    assert spec is not None
    assert spec.loader is not None
    compatibility = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compatibility)
    return compatibility.import_slayer(folder)


slayer = import_slayer(Path(sys.argv[2]))
cuba = slayer.block.cuba
MeanOnlyBatchNorm = slayer.neuron.norm.MeanOnlyBatchNorm
WgtScaleBatchNorm = slayer.neuron.norm.WgtScaleBatchNorm
SAMPLES, TIMESTEPS = 2, 18


def neuron(
    threshold: float = 1.0, current: float = 0.3, voltage: float = 0.07, **more: Any
) -> dict[str, Any]:
    return {"threshold": threshold, "current_decay": current, "voltage_decay": voltage, **more}


def events() -> Any:
    """An input without neurons; slayer 0.6.0 fails on one that delays."""
    return cuba.Input(delay_shift=False)


def dense() -> list[Any]:
    """No input layer, biases from a batch norm, weight norm off and on, and slayer's readout of voltages."""
    return [
        cuba.Dense(neuron(norm=MeanOnlyBatchNorm), 9, 12, weight_scale=3),
        cuba.Dense(neuron(0.7, 1.0), 12, 8, weight_scale=2, weight_norm=True),
        cuba.Affine(neuron(), 8, 4, weight_scale=2),
    ]


def conv() -> list[Any]:
    """Kernels, strides, paddings and dilations that differ in height and width; groups, biases, weight norm."""
    return [
        events(),
        cuba.Conv(
            neuron(norm=MeanOnlyBatchNorm),
            2,
            4,
            (3, 2),
            stride=(2, 1),
            padding=(1, 0),
            weight_scale=3,
        ),
        cuba.Conv(
            neuron(0.8),
            4,
            6,
            (2, 3),
            padding=(0, 2),
            dilation=(1, 2),
            groups=2,
            weight_scale=3,
            weight_norm=True,
        ),
        cuba.Flatten(),
        cuba.Dense(neuron(0.7), 6 * 3 * 4, 5, weight_scale=4, weight_norm=True),
    ]


def loops() -> list[Any]:
    """Recurrence, and axonal delays, which netx puts on the synapses into the layer that has them."""
    return [
        events(),
        cuba.Dense(neuron(), 9, 12, weight_scale=3, delay=True),
        cuba.Recurrent(neuron(0.8), 12, 10, weight_scale=2, weight_norm=True),
        cuba.Dense(neuron(0.7), 10, 10, weight_scale=3, delay=True, delay_shift=True),
        cuba.Dense(neuron(0.5), 10, 5, weight_scale=3),
    ]


def driven() -> list[Any]:
    """An input layer with neurons of its own, driven by bias; its weight and bias, which netx ignores, change nothing."""
    return [
        cuba.Input(neuron(2.0, 1.0, 0.2), weight=1, bias=0),
        cuba.Conv(neuron(), 2, 3, 3, weight_scale=3),
        cuba.Flatten(),
        cuba.Dense(neuron(0.7), 3 * 5 * 3, 4, weight_scale=3),
    ]


def own_decays() -> list[Any]:
    """Decays of each neuron, which `write` makes differ."""
    return [
        cuba.Dense(neuron(shared_param=False), 9, 12, weight_scale=3),
        cuba.Dense(neuron(0.7, shared_param=False), 12, 7, weight_scale=3),
    ]


def refused() -> dict[str, list[Any]]:
    """What slayer exports and netx leaves out, corrupts or stops at."""
    image = [events(), cuba.Conv(neuron(), 2, 4, 3, weight_scale=3)]
    return {
        "refused_pool": [*image, cuba.Pool(neuron(0.2), 2, weight_scale=30)],
        "refused_conv_delay": [events(), cuba.Conv(neuron(), 2, 4, 3, weight_scale=3, delay=True)],
        "refused_recurrent_delay": [cuba.Recurrent(neuron(), 9, 6, weight_scale=3, delay=True)],
        "refused_batch_norm_scale": [
            cuba.Dense(neuron(norm=WgtScaleBatchNorm), 9, 6, weight_scale=20)
        ],
        "refused_graded": [cuba.Dense(neuron(graded_spike=True), 9, 6, weight_scale=3)],
        "refused_no_neuron": [cuba.Affine(neuron(), 9, 6, dynamics=False)],
        "refused_full_decay": [cuba.Dense(neuron(voltage=1.0), 9, 6, weight_scale=3)],
        "refused_slow": [cuba.Dense(neuron(current=0.0001), 9, 6, weight_scale=3)],
    }


def rest(blocks: list[Any]) -> None:
    """Recurrent blocks keep their states from one call to the next."""
    for block in blocks:
        inner = getattr(block, "neuron", None)
        if inner is not None:
            inner.current_state = torch.zeros(1)
            inner.voltage_state = torch.zeros(1)


def forward(blocks: list[Any], x: torch.Tensor) -> list[torch.Tensor]:
    outputs = []
    rest(blocks)
    for block in blocks:
        x = block(x)
        outputs.append(x)
    return outputs


def write(name: str, blocks: list[Any], inputs: np.ndarray[Any, Any], folder: Path) -> None:
    """Settle shapes, batch norms and delays, run slayer, export."""
    x = torch.from_numpy(np.moveaxis(inputs, 1, -1)).float()  # (samples, *features, timesteps)
    if name == "driven":
        x = x / 64  # slayer's states are chip states / 4096, a bias mantissa counts 64 of these
    for block in blocks:
        block.train()
    for _ in range(4):
        forward(blocks, x)
    for block in blocks:
        block.eval()
        if name == "own_decays" and getattr(block, "neuron", None) is not None:
            for decay in (block.neuron.current_decay, block.neuron.voltage_decay):
                decay.data = decay.data * torch.linspace(0.3, 1.9, decay.numel())
        if getattr(block, "delay", None) is not None:
            block.delay.delay.data = 6 * torch.rand(block.delay.delay.shape)
    with torch.no_grad():
        outputs = forward(blocks, x)
    spiking = [
        out
        for block, out in zip(blocks, outputs, strict=True)
        if getattr(block, "neuron", None) is not None
    ]
    arrays = {f"spikes/{i}": np.moveaxis(out.numpy(), -1, 1) for i, out in enumerate(spiking)}
    np.savez(folder / f"{name}.npz", inputs=inputs, **arrays)
    with h5py.File(folder / f"{name}.net", "w") as file:
        for index, block in enumerate(blocks):
            block.export_hdf5(file.create_group(f"layer/{index}"))


def main(folder: Path) -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)

    def spikes(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.random((SAMPLES, TIMESTEPS, *shape)) < 0.4).astype(np.int64)

    flat, image = spikes(9), spikes(2, 7, 5)
    builders: list[tuple[Callable[[], list[Any]], np.ndarray[Any, Any]]] = [
        (dense, flat), (conv, image), (loops, flat), (own_decays, flat),
        # Even mantissas: slayer's input block rounds them to its grid of weights.
        (driven, 2 * rng.integers(-10, 60, (SAMPLES, TIMESTEPS, 2, 7, 5))),
    ]  # fmt: skip
    for build, inputs in builders:
        write(build.__name__, build(), inputs, folder)
    for name, blocks in refused().items():
        write(name, blocks, image if isinstance(blocks[0], cuba.Input) else flat, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
