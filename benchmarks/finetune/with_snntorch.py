"""Trains a net in snnTorch as its documentation shows, and exports it through NIR by its own
exporter.

    python benchmarks/finetune/with_snntorch.py conv FOLDER SEED EPOCHS

Reads `<split>_x.npy` and `<split>_y.npy` of train, validation and test in FOLDER. Writes what
snnTorch gives for each, `<split>_snntorch.npy` (output spikes of each class), and `net.nir`, last.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nir
import numpy as np
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate
from snntorch.export_nir import export_to_nir
from snntorch.utils import reset
from torch import Tensor, nn

BATCH = 50
BETA = 0.9
RATE = 5e-3


def leaky(*shape: int) -> nn.Module:
    # Arrays, since snnTorch writes a scalar as an array without axes, which nir refuses. The reset
    # is the default one, which subtracts the threshold a step after the spike.
    return snn.Leaky(
        beta=torch.full(shape, BETA),
        threshold=torch.ones(shape),
        spike_grad=surrogate.atan(),
        init_hidden=True,
    )


def conv_net(features: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(features[0], 16, 3, stride=2),
        leaky(16, 16, 16),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        leaky(32, 8, 8),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, classes),
        leaky(classes),
    )


def recurrent_net(features: tuple[int, ...], classes: int) -> nn.Module:
    hidden = 64
    loop = snn.RLeaky(
        beta=BETA, linear_features=hidden, spike_grad=surrogate.atan(), init_hidden=True
    )
    # With weights as torch draws them, one of three nets never leaves chance.
    with torch.no_grad():
        loop.recurrent.weight.mul_(0.2)
    return nn.Sequential(
        nn.Linear(features[0], hidden), loop, nn.Linear(hidden, classes), leaky(classes)
    )


NETS = {"conv": conv_net, "recurrent": recurrent_net}


def run(net: nn.Module, x: Tensor) -> Tensor:
    """Return the output spikes (T, B, classes) of clips (B, T, *features)."""
    reset(net)
    return torch.stack([net(x[:, step]) for step in range(x.shape[1])])


def scores(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(net, part.float()).sum(0) for part in x.split(BATCH)])


def main(kind: str, folder: Path, seed: int, epochs: int) -> None:
    if (folder / "net.nir").is_file():
        return
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    data = {
        split: tuple(torch.from_numpy(np.load(folder / f"{split}_{part}.npy")) for part in "xy")
        for split in ("train", "validation", "test")
    }
    x, y = data["train"]
    net = NETS[kind](tuple(x.shape[2:]), int(y.max()) + 1)
    steps = epochs * -(-len(x) // BATCH)
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    loss_of = SF.ce_count_loss()
    best, kept = -1, {}
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            loss = loss_of(run(net, x[batch].float()), y[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss) * len(batch)
        held, labels = data["validation"]
        right = int((scores(net, held).argmax(1) == labels).sum())
        print(f"epoch {epoch + 1}: loss {total / len(x):.3f}, {right} of {len(labels)}", flush=True)
        if right >= best:
            best = right
            kept = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    for split, (inputs, _) in data.items():
        np.save(folder / f"{split}_snntorch.npy", scores(net, inputs).numpy())
    reset(net)
    # Without ignore_dims the size of the batch goes into the file.
    nir.write(folder / "net.nir", export_to_nir(net, x[:1, 0].float(), ignore_dims=[0]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
