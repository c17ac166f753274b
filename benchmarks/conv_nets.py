"""Export and lower random convolutional nets as people write them, and say which are refused and why.

    .venv/bin/python benchmarks/conv_nets.py --nets 200 --seed 0

Every net is a row of blocks (convolution, perhaps batch-norm, neurons, perhaps pooling, in both orders) with strides 1 and 2,
pools of 2 and 3, plain, padded or in ceil_mode, odd sizes, paddings and 'same', then one or two dense layers. It runs on knarr 0f53bde as well, in that
commit's own environment, so that the two can be compared on the same nets.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import norse.torch as snn
import numpy as np
import torch
from torch import nn

from knarr.deploy import DeployError, lower
from knarr.export import ExportError, to_nir

DT_S = 1e-3
TIMESTEPS = 6


def neurons(random: Random, kind: str, threshold: float) -> nn.Module:
    """Draw a layer of neurons; what it hears may have a bias unless it filters its input."""
    v_th = torch.tensor(threshold)
    tau = random.choice([50.0, 100.0, 200.0])
    if kind == "box":
        return snn.LIFBoxCell(snn.LIFBoxParameters(tau_mem_inv=torch.tensor(tau), v_th=v_th))
    if kind == "iaf":
        return snn.IAFCell(snn.IAFParameters(v_th=v_th))
    syn = torch.tensor(random.choice([200.0, 400.0]))
    return snn.LIFCell(snn.LIFParameters(tau_mem_inv=torch.tensor(tau), tau_syn_inv=syn, v_th=v_th))


def pooling(random: Random) -> nn.Module:
    """Draw a pool, one in three with windows that pass an edge."""
    size, stride = random.choice([(2, 2), (2, 2), (3, 3), (3, 2)])
    edge = random.choice([{}, {}, {"padding": 1}, {"ceil_mode": True}, {}, {}])
    if edge.get("padding") or random.random() < 0.7:
        return nn.AvgPool2d(size, stride, **edge)
    return nn.LPPool2d(1, size, stride, **edge)


def draw(seed: int) -> tuple[nn.Module, tuple[int, int, int], str]:
    """Draw a net.

    Returns:
        The module, its input shape, and how it reads.
    """
    random = Random(seed)
    torch.manual_seed(seed)
    side = random.choice([24, 27, 28, 31, 32, 33, 34])
    shape = (random.choice([1, 2, 3]), side, random.choice([side, side, side - 1]))
    kind = random.choice(["box", "box", "iaf", "lif"])
    layers: list[nn.Module] = []
    here: torch.Tensor = torch.zeros(1, *shape)
    for _ in range(random.choice([2, 2, 3, 3, 4])):
        channels = random.choice([4, 6, 8])
        kernel = random.choice([3, 3, 3, 5, 2, 4, 1])
        stride = random.choice([1, 1, 1, 2])
        padding: Any = random.choice([0, kernel // 2, kernel // 2])
        if stride == 1 and random.random() < 0.25:
            padding = "same"
        around = kernel if padding == "same" else 2 * padding
        if min(here.shape[2:]) + around < kernel + 2:
            break
        # A synaptic current would filter a bias, which authors of such nets leave out.
        bias = kind != "lif" and random.random() < 0.7
        norm = kind != "lif" and random.random() < 0.35
        block: list[nn.Module] = [
            nn.Conv2d(here.shape[1], channels, kernel, stride, padding, bias=bias)
        ]
        if norm:
            block.append(_seen(nn.BatchNorm2d(channels)))
        cells = neurons(random, kind, 0.2)
        with torch.no_grad():
            sides = block[0](here).shape[2:]
        pool = pooling(random) if random.random() < 0.65 and min(sides) >= 6 else None
        if pool is not None and random.random() < 0.25:
            block += [pool, cells]
        else:
            block += [cells] + ([pool] if pool is not None else [])
        if random.random() < 0.2:
            block.append(nn.Dropout(0.2))
        layers += block
        with torch.no_grad():
            for layer in block:
                if not _is_cell(layer):
                    here = layer.eval()(here)
    layers.append(nn.Flatten())
    width = int(np.prod(here.shape[1:]))
    if random.random() < 0.4:
        layers += [nn.Linear(width, 20, bias=kind != "lif"), neurons(random, kind, 0.2)]
        width = 20
    layers.append(nn.Linear(width, 10, bias=kind != "lif"))
    layers.append(neurons(random, kind, 0.2) if random.random() < 0.6 else snn.LICell())
    if isinstance(layers[-1], snn.LICell):
        layers[-2] = nn.Linear(width, 10, bias=False)
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight *= 2.0
    module = snn.SequentialState(*layers).eval()
    _make_fire(layers, events(shape, seed))
    return module, shape, " ".join(_written(layer) for layer in layers)


def _is_cell(layer: nn.Module) -> bool:
    return isinstance(layer, (snn.LIFBoxCell, snn.IAFCell, snn.LIFCell, snn.LICell))


def _seen(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return a batch-norm with statistics, as training leaves them."""
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        norm.weight.uniform_(0.7, 1.3)
        norm.bias.normal_(0, 0.1)
    return norm


def _written(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        return f"conv(k{layer.kernel_size[0]} s{layer.stride[0]} p{layer.padding})"
    if isinstance(layer, (nn.AvgPool2d, nn.LPPool2d)):
        padded = f" p{layer.padding}" if getattr(layer, "padding", 0) else ""
        return f"pool({layer.kernel_size}/{layer.stride}{padded}{' ceil' * layer.ceil_mode})"
    return type(layer).__name__


def _make_fire(layers: list[nn.Module], x: np.ndarray[Any, Any]) -> None:
    """Lower the thresholds of layers that stay silent, as an untrained net's would."""
    flow = torch.as_tensor(x, dtype=torch.float32)
    with torch.no_grad():
        for layer in layers:
            if not _is_cell(layer):
                steps = [layer(step) for step in flow.unbind(1)]
                flow = torch.stack(steps, 1)
                continue
            for _ in range(12):
                state, steps = None, []
                for step in flow.unbind(1):
                    out, state = layer(step, state)
                    steps.append(out)
                if isinstance(layer, snn.LICell) or float(torch.stack(steps).mean()) > 0.02:
                    break
                layer.p = layer.p._replace(v_th=layer.p.v_th / 2)
            flow = torch.stack(steps, 1)


def events(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Draw spikes that drive a net."""
    rng = np.random.default_rng(seed)
    return (rng.random((2, TIMESTEPS, *shape)) < 0.4).astype(np.float32)


def attempt(seed: int) -> tuple[str, str, str]:
    """Export and lower one net.

    Returns:
        "lowered", "dense" or "relays" (how), or "refused"; the net; and the reason.
    """
    module, shape, written = draw(seed)
    try:
        graph = to_nir(module, shape, DT_S, samples=events(shape, seed))
        network = lower(graph, DT_S)
    except (ExportError, DeployError) as error:
        return "refused", f"{shape} {written}", str(error)
    lines = network.lowering["rewrites"]
    how = "lowered"
    if any("as a dense layer" in line for line in lines):
        how = "dense"
    elif any("relay neurons" in line for line in lines):
        how = "relays"
    return how, f"{shape} {written}", ""


def main() -> None:
    """Draw nets and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    reasons = []
    for seed in range(options.seed, options.seed + options.nets):
        how, written, reason = attempt(seed)
        found[how] += 1
        if reason:
            reasons.append({"seed": seed, "net": written, "reason": reason})
            print(f"{seed}: {written}\n    {reason}", flush=True)
    print(f"{options.nets} nets: {dict(sorted(found.items()))}")
    if options.out:
        options.out.write_text(json.dumps({"counts": found, "refused": reasons}, indent=1))


if __name__ == "__main__":
    main()
