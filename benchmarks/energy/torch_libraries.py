"""Compares `count_torch` with hand counts on networks of snnTorch and SpikingJelly, as these libraries have them.

    .venv/bin/python benchmarks/energy/torch_libraries.py        writes benchmarks/results/count_torch.md

Both libraries lie in an environment of their own in build/, made with venv and pip, which sees the packages of the one that
runs this. The hand count knows nothing of dispatched operators: hooks keep what each layer heard, and a copy of the layer with
weights of ones is given its events, so that the sum of what comes out is the number of events times their fan-out.
"""

from __future__ import annotations

import argparse
import copy
import site
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from environments import environment
from torch import Tensor, nn
from torch.nn import functional as F

from knarr.hw_sim import count_torch

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "benchmarks" / "results" / "count_torch.md"
PACKAGES = ("snntorch==1.0.0", "spikingjelly==2.0.0", "loguru==0.7.3")
"""Without what they depend on, which is there: torch and numpy."""
STEPS = 4
Rows = dict[str, Counter[str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "torch_libraries")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        command = [with_libraries(arguments.environment), __file__, "--inside"]
        sys.exit(subprocess.run(command, check=False).returncode)
    torch.set_num_threads(1)
    text = page([(case, by_hand(case), dispatched(case)) for case in cases()])
    PAGE.write_text(text, "utf-8")
    print(text, end="")


def with_libraries(folder: Path) -> Path:
    """Return the interpreter of an environment with both libraries, which sees the packages of ours."""
    python = environment(folder, PACKAGES, "--no-deps")
    (own,) = folder.glob("lib/python*/site-packages")
    # A path alone would leave the links to knarr's own sources unread.
    lines = [f"import site; site.addsitedir({place!r})\n" for place in site.getsitepackages()]
    (own / "beside.pth").write_text("".join(lines), "utf-8")
    return python


@dataclass(frozen=True)
class Case:
    """One network and how it is called.

    Args:
        library, what: for the table.
        net: of the library, at rest.
        x: one sample.
        run: what gives it to the net, for the hand count.
        options: of `count_torch`.
    """

    library: str
    what: str
    net: nn.Module
    x: Tensor
    run: Callable[[nn.Module], Any]
    options: dict[str, Any]


def driven(module: nn.Module, spread: float = 0.5, mean: float = 0.1) -> nn.Module:
    """Weights under which neurons fire; the same ones always."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, mean, spread)
    return module.eval()


def cases() -> list[Case]:
    """Networks of the libraries' own tutorials and models, small enough for a minute."""
    import snntorch
    from snntorch import utils
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.model import sew_resnet, spikformer

    class Tutorial5(nn.Module):
        """The dense network of snnTorch's tutorial 5, with its loop."""

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(784, 100), snntorch.Leaky(beta=0.95)
            self.fc2, self.lif2 = nn.Linear(100, 10), snntorch.Leaky(beta=0.95)

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            spikes = []
            for _ in range(STEPS):
                spk1, mem1 = self.lif1(self.fc1(x), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                spikes.append(spk2)
            return torch.stack(spikes)

    class Tutorial6(nn.Module):
        """The convolutions of tutorial 6, whose neurons keep their state themselves."""

        def __init__(self) -> None:
            super().__init__()
            lif: dict[str, Any] = {"beta": 0.5, "init_hidden": True}
            self.net = nn.Sequential(
                nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snntorch.Leaky(**lif), nn.Conv2d(12, 64, 5), nn.MaxPool2d(2),
                snntorch.Leaky(**lif), nn.Flatten(), nn.Linear(64 * 4 * 4, 10), snntorch.Leaky(**lif, output=True),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            utils.reset(self.net)
            return torch.stack([self.net(x)[0] for _ in range(STEPS)])

    random = torch.Generator().manual_seed(2)
    image = torch.rand(1, 1, 28, 28, generator=random)
    found = [
        Case("snntorch", "tutorial 5, dense", driven(Tutorial5(), mean=0), image.flatten(1), lambda net: net(image.flatten(1)), {}),
        Case("snntorch", "tutorial 6, convolutions", driven(Tutorial6(), mean=0), image, lambda net: net(image), {}),
    ]  # fmt: skip
    clip = (torch.rand(STEPS, 1, 2, 16, 16, generator=random) < 0.3).float()
    clip[2] *= 3  # one step of greys
    for mode in "sm":
        net = nn.Sequential(
            layer.Conv2d(2, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron.IFNode(v_threshold=0.5), layer.MaxPool2d(2, 2),
            layer.Flatten(), layer.Linear(8 * 64, 10), neuron.LIFNode(tau=2.0),
        )  # fmt: skip
        functional.set_step_mode(net, mode)
        steps = mode == "s"
        found.append(
            Case(
                "spikingjelly",
                "conv, BN, IF, max pool, dense, " + ("step by step" if steps else "all steps in one call"),
                driven(net),
                clip,
                (lambda net: [net(one) for one in clip]) if steps else (lambda net: net(clip)),
                {"batch_axis": 1, "time_axis": 0, "stepped": steps},
            )
        )  # fmt: skip
    video = torch.rand(STEPS, 1, 3, 32, 32, generator=random)
    resnet = sew_resnet.sew_resnet18(
        cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10, v_threshold=0.5
    )
    functional.set_step_mode(resnet, "m")
    all_steps = {"batch_axis": 1, "time_axis": 0}
    found.append(
        Case("spikingjelly", "SEW ResNet-18, ADD", driven(resnet, 0.1), video, lambda net: net(video), all_steps)
    )  # fmt: skip
    former = spikformer.Spikformer(
        T=STEPS, in_channels=3, img_size_h=32, img_size_w=32, patch_size=16, num_classes=10, embed_dims=32, num_heads=4, depths=2
    )  # fmt: skip
    found.append(
        Case("spikingjelly", "Spikformer, 2 blocks", driven(former), video, lambda net: net(video), all_steps)
    )  # fmt: skip
    return found


APPLIED: dict[type[nn.Module], tuple[Callable[..., Tensor], int]] = {
    nn.Conv1d: (F.conv1d, 2),
    nn.Conv2d: (F.conv2d, 3),
}
"""Layer -> its function, and the axes of one frame."""


def reached(layer: Any, frame: Tensor) -> int:
    """Outputs that the events of one frame reach, each event by itself."""
    events = (frame != 0).double()[None]
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return int(F.linear(events, ones).sum())
    ((function, _),) = (found for kind, found in APPLIED.items() if isinstance(layer, kind))
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return int(function(events, ones, None, *geometry).sum())


def by_hand(case: Case) -> Rows:
    """Path of each layer of weights -> operations, and of each attention."""
    from spikingjelly.activation_based.layer import SpikingSelfAttention

    module = copy.deepcopy(case.net)
    found: Rows = {}

    def listen(path: str, axes: int) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            (x,) = inputs
            row = found.setdefault(path, Counter())
            for frame in x.reshape(-1, *x.shape[-axes:]):
                spikes = bool(((frame == 0) | (frame.abs() == 1)).all())
                row["acc" if spikes else "mac"] += reached(layer, frame)
            if layer.bias is not None and layer.bias.any():  # zeros are no bias
                row["bias_adds"] += output.numel()

        return hook

    def attend(path: str, heads: int) -> Callable[..., None]:
        """V K' of spikes, then that times Q: a pair costs one addition where neither is 0."""

        def hook(_lif: Any, _inputs: Any, spikes: Tensor) -> None:
            steps, samples, _, tokens = spikes.shape
            parts = spikes.double().reshape(steps, samples, 3, heads, -1, tokens).unbind(2)
            q, k, v = parts
            scores = torch.einsum("tnhcl,tnhdl->tnhcd", v, k)
            pairs = scores.sum() + torch.einsum("tnhcd,tnhdl->", (scores != 0).double(), q)
            found.setdefault(path, Counter())["acc"] += int(pairs)

        return hook

    for path, part in module.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(listen(path, 1))
        for kind, (_, axes) in APPLIED.items():
            if isinstance(part, kind):
                part.register_forward_hook(listen(path, axes))
        if isinstance(part, SpikingSelfAttention):
            part.qkv_lif.register_forward_hook(attend(path, part.num_heads))
    with torch.no_grad():
        case.run(module)
    return {path: +row for path, row in found.items()}


def dispatched(case: Case) -> Rows:
    """The same rows of `count_torch`; products without weights under the module that has them."""
    counts = count_torch(case.net, case.x, **case.options)
    _ = counts.total  # refuses where something was not counted
    found: Rows = {}
    for name, layer in counts.layers.items():
        if layer.dense_valid:
            row = {column: int(getattr(layer, column)) for column in ("acc", "mac", "bias_adds")}
            found.setdefault(name.removesuffix(".matmul"), Counter()).update(row)
    return {path: +row for path, row in found.items()}


def page(rows: list[tuple[Case, Rows, Rows]]) -> str:
    """The page; a case whose layers are not equal ends everything."""
    lines = []
    for case, wanted, found in rows:
        if found != wanted:
            apart = sorted(path for path in wanted | found if wanted.get(path) != found.get(path))
            sys.exit(
                f"{case.what}: by hand {[(path, wanted.get(path)) for path in apart]}, "
                f"count_torch {[(path, found.get(path)) for path in apart]}"
            )
        totals = sum(found.values(), Counter())
        cells = [f"{totals[column]:,}" for column in ("acc", "mac", "bias_adds")]
        made = f"{case.library} {version(case.library)}"
        lines.append(f"| {made} | {case.what} | {len(found)} | {' | '.join(cells)} | equal |")
    return HEAD.format(torch=version("torch"), steps=STEPS) + "\n".join(lines) + "\n"


HEAD = """\
# count_torch on networks of snnTorch and SpikingJelly

Written by `.venv/bin/python benchmarks/energy/torch_libraries.py` (torch {torch}), which ends with an error where one layer differs. Each
network is the library's own, or that of its tutorial, with random weights under which neurons fire, on one sample of {steps} steps.
By hand: hooks keep what each convolution and dense layer heard, its events go through the same layer with weights of ones, and
attention is counted pair by pair from the spikes of Q, K and V. ACC, MAC and bias additions of every layer are compared.

| library | network | rows | ACC | MAC | bias additions | layer by layer |
|---|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
