"""Operations that torch dispatches: against the graph's counts on random networks, and against hand counts of networks in
the styles in which their authors write them.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import norse.torch as norse
import numpy as np
import numpy.typing as npt
import pytest
import torch
from graphs import DT_S
from norse_nets import LoopedConvNet
from torch import Tensor, nn
from torch.nn import functional as F

from knarr.export import ExportError, to_nir
from knarr.hw_sim import CountError, LayerCounts, OperationCounts, count, count_torch

Array = npt.NDArray[Any]
NETWORKS = int(os.environ.get("KNARR_CONFORMANCE", "8"))
SYNAPTIC = (
    "acc", "mac", "acc_nonzero", "mac_nonzero", "signed", "events", "graded", "dense_valid", "dense_padded", "bias_adds",
    "pool_adds",
)  # fmt: skip


def amounts(layer: LayerCounts) -> dict[str, Fraction]:
    return {name: getattr(layer, name) for name in SYNAPTIC if getattr(layer, name)}


# Against the graph's counter


def neuron(rng: np.random.Generator) -> nn.Module:
    """A neuron that fires easily."""
    low = torch.tensor(float(rng.uniform(0.001, 0.02)))
    kinds: list[Callable[[], nn.Module]] = [
        lambda: norse.LIFBoxCell(norse.LIFBoxParameters(v_th=low), dt=DT_S),
        lambda: norse.LIFCell(norse.LIFParameters(v_th=low), dt=DT_S),
        lambda: norse.IAFCell(norse.IAFParameters(v_th=10 * low), dt=DT_S),
    ]
    return kinds[rng.integers(len(kinds))]()


def pruned(layer: nn.Module, rng: np.random.Generator) -> nn.Module:
    """Some weights are 0, and a bias may be."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter *= 3
            if "weight" in name:
                parameter[torch.from_numpy(rng.random(parameter.shape) < 0.3)] = 0
            elif "bias" in name and rng.random() < 0.3:
                parameter.zero_()
    return layer


def random_network(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """A step module: convolutions and pools, then dense and recurrent layers, and a readout."""
    torch.manual_seed(int(rng.integers(2**31)))
    layers: list[nn.Module] = []
    shape: tuple[int, ...] = (2, *(int(side) for side in rng.integers(6, 10, 2)))
    start = shape
    for _ in range(rng.integers(0, 3)):
        groups = int(rng.choice([1, 2]))
        conv = nn.Conv2d(
            shape[0], 2 * int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(0, 2)),
            dilation=int(rng.integers(1, 3)), groups=groups, bias=bool(rng.random() < 0.5),
        )  # fmt: skip
        layers += [pruned(conv, rng), neuron(rng)]
        shape = tuple(conv(torch.zeros(1, *shape)).shape[1:])
        if min(shape[1:]) >= 4 and rng.random() < 0.6:
            layers.append(nn.AvgPool2d(2, ceil_mode=False))
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
    layers.append(nn.Flatten())
    size = int(np.prod(shape))
    for _ in range(rng.integers(1, 3)):
        width = int(rng.integers(3, 9))
        layers.append(pruned(nn.Linear(size, width, bias=bool(rng.random() < 0.5)), rng))
        recurrent = rng.random() < 0.3
        if recurrent:
            easy = norse.LIFParameters(v_th=torch.tensor(0.002))
            layers += [neuron(rng), norse.LIFRecurrentCell(width, width, easy, dt=DT_S)]
        else:
            layers.append(neuron(rng))
        size = width
    layers += [pruned(nn.Linear(size, 3), rng), norse.LICell(dt=DT_S)]
    return norse.SequentialState(*layers).eval(), start


def random_inputs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    frames = (rng.random((2, 4, *shape)) < 0.4).astype(np.float32)
    for at in np.ndindex(2, 4):
        kind = rng.choice(["binary", "binary", "signed", "graded", "silent"])
        factor = {"graded": rng.integers(1, 4, shape), "silent": 0}.get(kind, 1)
        frames[at] *= rng.choice([-1, 1], shape) if kind == "signed" else factor
    return frames


def of_graph(name: str, counts: OperationCounts) -> Counter[str]:
    """The rows of the dispatcher that are a row of the graph."""
    place = name.split("_")[1]
    found: Counter[str] = Counter()
    for row, layer in counts.layers.items():
        if row.split(".")[0] == place:
            found.update(amounts(layer))
    return found


def test_random_networks_count_as_their_graphs_do() -> None:
    """Layer by layer in every synaptic column, and in the folds that a pool has under its own policy."""
    seen: Counter[str] = Counter()
    seed = 0
    while seen["networks"] < NETWORKS:
        seed += 1
        rng = np.random.default_rng(seed)
        try:
            module, shape = random_network(rng)
        except RuntimeError:
            continue  # a kernel larger than its image
        inputs = random_inputs(rng, shape)
        try:
            graph = to_nir(module, shape, DT_S, samples=inputs)
        except ExportError as error:
            assert "never fired" in str(error)  # noqa: PT017
            continue
        seen["networks"] += 1
        wanted = count(graph, inputs, dt_s=DT_S, pooling="float")
        found = count_torch(module, inputs, time_axis=1, stepped=True)
        for name, layer in wanted.layers.items():
            ours = of_graph(name, found)
            if name.endswith("_in"):
                # Norse multiplies with a diagonal of zeros, which the graph knows to be no synapses.
                width = layer.recurrent_all_pairs - layer.recurrent_no_autapse
                ours["acc"] -= width
                neurons = graph.nodes[name.removesuffix("_in")].v_threshold.size
                ours["dense_valid"] -= 4 * neurons
                seen["recurrent"] += 1
            assert +ours == amounts(layer), (seed, name)
            seen.update(amounts(layer))
        assert not found.refused
        assert found.samples == wanted.samples
        assert found.timesteps == wanted.timesteps
    assert min(seen[name] for name in (*SYNAPTIC, "recurrent")) > 0


# Single operators, against torch's own arithmetic on masks of events and weights of ones

BOTH = ("acc", "mac")


class Applied(nn.Module):
    """One weight, used by a function."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(shape, generator=generator)
        self.weight = nn.Parameter(weight * (torch.rand(shape, generator=generator) < 0.7))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def spikes(*shape: int, rate: float = 0.4, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


APPLIED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2, padding=2, dilation=2), (4, 3, 3), (3, 11)),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1, groups=2), (6, 2, 3, 2), (4, 5, 6)),
    "conv2d_same": (lambda x, w: F.conv2d(x, w, padding="same"), (6, 4, 3, 5), (4, 5, 6)),
    "conv3d": (lambda x, w: F.conv3d(x, w, stride=(1, 2, 1)), (2, 3, 2, 3, 2), (3, 4, 5, 4)),
    "transposed1d": (lambda x, w: F.conv_transpose1d(x, w, stride=3), (3, 2, 2), (3, 6)),
    "transposed2d": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1, groups=2),
        (4, 3, 3, 3),
        (4, 4, 5),
    ),
    "transposed_dilated": (
        lambda x, w: F.conv_transpose2d(x, w, stride=(1, 2), padding=2, dilation=2),
        (4, 3, 3, 3),
        (4, 6, 5),
    ),
    "linear": (F.linear, (7, 5), (5,)),
    "linear_tokens": (F.linear, (7, 5), (3, 4, 5)),
    "matmul_left": (lambda x, w: w @ x, (7, 5), (5, 3)),
    "addmm": (lambda x, w: torch.addmm(x.new_zeros(1), x[0], w), (5, 7), (3, 5)),
    "bmm": (lambda x, w: torch.bmm(x[0], w), (3, 5, 2), (3, 4, 5)),
    "baddbmm": (lambda x, w: torch.baddbmm(x.new_zeros(1), x[0], w), (3, 5, 2), (3, 4, 5)),
    "mv": (lambda x, w: torch.mv(w, x[0]), (7, 5), (5,)),
    "einsum": (lambda x, w: torch.einsum("bngi,goi->bngo", x, w), (2, 3, 5), (4, 2, 5)),
    "einsum_dots": (lambda x, w: torch.einsum("...i,oi->...o", x, w), (3, 5), (4, 2, 5)),
    "tensordot": (lambda x, w: torch.tensordot(x, w, ([1, 2], [0, 1])), (4, 5, 3), (4, 5)),
    "expanded": (lambda x, w: F.linear(x.expand(6, *x.shape[1:]), w), (7, 5), (5,)),
}  # fmt: skip


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("kind", ["binary", "signed", "graded"])
def test_a_product_with_stored_weights(name: str, kind: str) -> None:
    """The sum of what masks of events give with weights of ones is the number of events times their fan-out."""
    function, weights, shape = APPLIED[name]
    module = Applied(function, *weights).eval()
    x = spikes(3, *shape)
    if kind == "signed":
        x[spikes(*x.shape, seed=1) > 0] *= -1
    elif kind == "graded":
        x *= 1.5
    counts = count_torch(module, x)
    total = counts.total

    def summed(events: Tensor, weight: Tensor) -> Fraction:
        found = [function(one[None].double(), weight.double()).sum() for one in events]
        return Fraction(int(sum(found)), len(x))

    events, there = (x != 0).float(), (module.weight != 0).float()
    column, other = BOTH if kind != "graded" else BOTH[::-1]
    assert getattr(total, column) == summed(events, torch.ones_like(there)) > 0
    assert getattr(total, f"{column}_nonzero") == summed(events, there)
    assert getattr(total, other) == getattr(total, f"{other}_nonzero") == 0
    assert total.signed == (total.acc if kind == "signed" else 0)
    assert total.dense_valid == summed(torch.ones_like(x), torch.ones_like(there))
    assert total.dense_padded >= total.dense_valid
    assert "weight" in counts.layers or name in ("einsum_dots", "tensordot")


def test_a_frame_is_one_step_of_one_sample() -> None:
    """Three steps side by side, of which one is graded, are three frames; a batch is as many samples."""
    x = spikes(4, 3, 5, 6)  # samples, steps, tokens, features
    x[:, 1] *= 2
    module = nn.Linear(6, 7, bias=False).eval()
    by_step = (x != 0).sum((2, 3)) * 7
    for axes, moved in (((0, 1), x), ((1, 0), x.swapaxes(0, 1))):
        total = count_torch(module, moved, batch_axis=axes[0], time_axis=axes[1]).total
        assert total.mac == Fraction(int(by_step[:, 1].sum()), 4)
        assert total.acc == Fraction(int(by_step[:, [0, 2]].sum()), 4)
    # The steps of a frame belong together where nobody says that they are steps.
    assert count_torch(module, x).total.mac == Fraction(int(by_step.sum()), 4)
    folded = nn.Sequential(nn.Flatten(0, 1), module).eval()
    assert count_torch(folded, x, time_axis=1).total.acc > 0
    assert count_torch(module, x[0], batch_axis=None, time_axis=0).total.mac == int(by_step[0, 1])


# Two activations


def pairs_of(q: Tensor, k: Tensor) -> int:
    """Pairs of elements that meet in q k' and are both not 0, one by one."""
    met = 0
    for one, other in zip(q.flatten(0, -3), k.flatten(0, -3), strict=True):
        for row in one.tolist():
            met += sum(
                a != 0 != b for column in other.tolist() for a, b in zip(row, column, strict=True)
            )
    return met


class Attention(nn.Module):
    """q, k and v lie side by side in the last axis; written in one of the ways in which it is written."""

    def __init__(self, how: str, scale: float = 0.5) -> None:
        super().__init__()
        self.how, self.scale = how, scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, -1)
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        if self.how == "matmul":
            return (q @ k.transpose(-2, -1) * self.scale) @ v
        if self.how == "bmm":
            flat = [one.flatten(0, 1) for one in (q, k, v)]
            return torch.bmm(torch.bmm(flat[0], flat[1].mT) * self.scale, flat[2])
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        return torch.einsum("bhij,bhjd->bhid", scores, v)


@pytest.mark.parametrize("how", ["sdpa", "matmul", "bmm", "einsum"])
def test_attention_on_spikes(how: str) -> None:
    """An AND of two spikes is one addition; weights of the scores are graded, and added where v has a spike."""
    x = spikes(2, 2, 4, 9)
    total = count_torch(Attention(how).eval(), x).total
    q, k, v = x.chunk(3, -1)
    scores = torch.softmax(q @ k.mT * 0.5, -1) if how == "sdpa" else q @ k.mT
    assert scores.unique().numel() > 2
    assert total.acc * 2 == pairs_of(q, k) + pairs_of(scores, v.mT)
    assert total.mac == 0
    assert total.dense_valid == 2 * 2 * 4 * 4 * 3
    graded = count_torch(Attention(how).eval(), x * torch.tensor([2.0] * 6 + [1.0] * 3)).total
    assert graded.mac * 2 == pairs_of(q, k)
    assert graded.acc * 2 == pairs_of(
        torch.softmax(q @ k.mT, -1) if how == "sdpa" else scores, v.mT
    )


@pytest.mark.parametrize("how", ["sdpa", "matmul", "bmm", "einsum"])
def test_attention_by_step(how: str) -> None:
    """One graded step of three does not make the others graded."""
    x = spikes(1, 3, 2, 4, 9)[0]
    x[1] *= 2
    found = count_torch(Attention(how).eval(), x, batch_axis=None, timesteps=3).total
    q, k, v = x.chunk(3, -1)
    scores = torch.softmax(q @ k.mT * 0.5, -1) if how == "sdpa" else q @ k.mT
    graded = pairs_of(q[1], k[1]) + pairs_of(scores[1], v[1].mT)
    assert found.mac == graded
    assert found.acc == pairs_of(q, k) + pairs_of(scores, v.mT) - graded


def test_masks_and_shared_heads() -> None:
    class Grouped(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    q, k, v = spikes(1, 4, 5, 3, seed=1), spikes(1, 2, 5, 3, seed=2), spikes(1, 2, 5, 3, seed=3)
    total = count_torch(Grouped().eval(), (q, k, v)).total
    shared = [one.repeat_interleave(2, 1) for one in (k, v)]
    seen = torch.ones(4, 5, 5).tril()  # no softmax weight is 0 but a masked one
    assert total.acc == pairs_of(q, shared[0]) + pairs_of(seen[None], shared[1].mT)
    assert total.dense_valid == 2 * 4 * 5 * 5 * 3


# What is refused, and what is free


class Works(nn.Module):
    """A function of the input as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.function = function

    def forward(self, *x: Tensor) -> Any:
        return self.function(self, *x)


@pytest.mark.parametrize(
    ("function", "name", "reason"),
    [
        (lambda _, x: torch.fft.rfft(x).abs(), "_fft_r2c", "no rule"),
        (lambda net, x: net.drop.train()(x), "drop.dropout", "eval"),
        (lambda net, x: net.norm.train()(torch.cat([x, x])), "norm.native_batch_norm", "eval"),
        (lambda _, x: F.conv1d(x[None], x[None]), "convolution", "depend on the input"),
        (lambda net, x: net.layer(torch.sort(x)[0]), "sort", "no rule"),
    ],
)
def test_what_has_no_rule_refuses_the_total(
    function: Callable[..., Any], name: str, reason: str
) -> None:
    counts = count_torch(Works(function).eval(), spikes(2, 4))
    (row,) = counts.refused
    assert row.name == name
    assert reason in row.note
    with pytest.raises(CountError, match="no total"):
        _ = counts.total


def test_what_runs_outside_of_torch_is_refused() -> None:
    def outside(_: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)

    with pytest.raises(CountError, match="outside of torch"):
        count_torch(Works(outside).eval(), spikes(2, 4))


def test_operators_of_a_library_are_looked_into() -> None:
    """A kernel in Python shows what it runs; one that loops by itself is refused."""
    library = torch.library.Library("knarr_test", "DEF")
    library.define("seen(Tensor x, Tensor w) -> Tensor")
    library.impl("seen", lambda x, w: F.linear(x, w) > 0.5, "CPU")
    library.define("hidden(Tensor x) -> Tensor")
    library.impl("hidden", lambda x: torch.from_numpy(x.numpy() + 1), "CPU")
    x = spikes(3, 4)
    seen = Works(lambda net, x: torch.ops.knarr_test.seen(x, net.layer.weight)).eval()
    assert count_torch(seen, x).total.acc == Fraction(int(x.sum()) * 4, 3)
    hidden = Works(lambda net, x: net.layer(torch.ops.knarr_test.hidden(x))).eval()
    assert [row.operation for row in count_torch(hidden, x).refused] == ["knarr_test::hidden"]


def test_what_needs_no_input_is_free() -> None:
    """Weights that are normalised at every call, and products of parameters alone."""

    def forward(net: Any, x: Tensor) -> Tensor:
        weight = net.layer.weight / net.layer.weight.norm()
        return F.linear(x, weight @ weight, net.layer.bias)

    counts = count_torch(Works(forward).eval(), spikes(2, 4))
    notes = {row.operation: row.note for row in counts.ledger if row.status == "free"}
    assert "no input" in notes["matmul"]
    assert "no input" in notes["div"]
    unread = [row.name for row in counts.ledger if "no call read it" in row.note]
    assert unread == ["norm.weight", "norm.bias"]
    (name,) = counts.layers
    assert name == "linear"
    assert counts.total.bias_adds == 4


def test_samples_start_alike_and_the_module_is_left_alone() -> None:
    """A state that a module keeps does not pass from one sample to the next, and none stays in the module."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)
            nn.init.constant_(self.layer.weight, 0.3)
            self.register_buffer("v", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.v = self.v + x.sum(0)
            return self.layer((self.v > 1).float())

    x = torch.ones(3, 4)
    module = Keeps().eval()
    assert count_torch(module, x).total.acc == 0  # one alone fires nothing
    assert count_torch(module, torch.stack([x, x], 1), time_axis=1, stepped=True).total.acc == 16
    assert not module.v.any()
    assert not module.v.is_inference()
    assert not module._forward_hooks


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (torch.ones(2, 4), {"batch_axis": 2}, "batch_axis: 2"),
        (torch.ones(0, 4), {}, "0. samples"),
        ((torch.ones(2, 4), torch.ones(3, 4)), {}, "samples along axis 0"),
        (torch.ones(2, 4), {"time_axis": 5}, "time_axis: 5"),
        (torch.ones(2, 4), {"time_axis": 1, "timesteps": 3}, "axis 1 of the input has 4"),
        (torch.ones(2, 4), {"timesteps": 0}, "from 1"),
        (torch.ones(2, 4), {"stepped": True}, "give time_axis"),
        (torch.tensor([[1.0, torch.nan, 0, 0]]), {}, "NaN"),
        (np.array([["a"]]), {}, "no array of numbers"),
        (torch.ones(2, 5), {}, r"one sample of shape \(1, 5\).*RuntimeError"),
        ((), {}, "inputs: none"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CountError, match=message):
        count_torch(nn.Linear(4, 4).eval(), inputs, **options)


def test_only_modules_are_counted() -> None:
    with pytest.raises(CountError, match="no torch module"):
        count_torch(torch.relu, torch.ones(2, 4))  # type: ignore[arg-type]


# Networks in the styles in which their authors write them, against hand counts of what their layers hear


class SurrogateSpike(torch.autograd.Function):
    """Spikes forward, an arctangent's slope backward, as all of these libraries have it."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient / (1 + (np.pi * v) ** 2)


class Leaky(nn.Module):
    """In snnTorch's style: the module may keep its membrane in a buffer, and resets by subtraction."""

    def __init__(self, beta: float, init_hidden: bool = False) -> None:
        super().__init__()
        self.init_hidden = init_hidden
        self.register_buffer("beta", torch.tensor(beta))
        self.register_buffer("mem", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor, mem: Tensor | None = None) -> Any:
        mem = self.mem if mem is None else mem
        if mem.shape != x.shape:
            mem = torch.zeros_like(x)
        reset = SurrogateSpike.apply(mem - 1).detach()
        mem = self.beta.clamp(0, 1) * mem + x - reset
        spikes = SurrogateSpike.apply(mem - 1)
        if self.init_hidden:
            self.mem = mem
            return spikes
        return spikes, mem


class StillImages(nn.Module):
    """snnTorch's tutorial: the same image at each of 6 steps, state in local variables."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(20, 12), Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(12, 4), Leaky(0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = torch.zeros(0), torch.zeros(0)
        spikes, mems = [], []
        for _ in range(6):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            mems.append(mem2)
        return torch.stack(spikes), torch.stack(mems)


class Node(nn.Module):
    """In SpikingJelly's style: single- or multi-step, a voltage that starts as a float, and no batch anywhere."""

    def __init__(self, multistep: bool) -> None:
        super().__init__()
        self.multistep, self.v = multistep, 0.0

    def step(self, x: Tensor) -> Tensor:
        if isinstance(self.v, float):
            self.v = torch.full_like(x, self.v)
        self.v = self.v + (x - self.v) / 2.0
        spike = SurrogateSpike.apply(self.v - 0.2)
        self.v = (1 - spike) * self.v
        return spike

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(one) for one in x]) if self.multistep else self.step(x)


class Folded(nn.Module):
    """seq_to_ann_forward: steps and batch in one axis for layers without a state."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:])


class Spikformer(nn.Module):
    """Patches of images as tokens, attention on spikes without a softmax, branches added up: Zhou et al. 2023, small."""

    def __init__(self, steps: int = 4, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.steps, self.heads = steps, heads
        self.patches = nn.Sequential(nn.Conv2d(2, width, 2, 2, bias=False), nn.BatchNorm2d(width))
        self.patch_lif = Node(multistep=True)
        self.projections = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv1d(width, width, 1, bias=False), nn.BatchNorm1d(width))
                for name in ("q", "k", "v", "out")
            }
        )
        self.lifs = nn.ModuleDict(
            {name: Node(multistep=True) for name in ("q", "k", "v", "attn", "out")}
        )
        self.head = nn.Linear(width, 3)
        self.heard: list[tuple[Tensor, Tensor]] = []

    def branch(self, name: str, x: Tensor) -> Tensor:
        t, b, c, n = x.shape
        return self.lifs[name](self.projections[name](x.flatten(0, 1)).reshape(t, b, c, n))

    def forward(self, image: Tensor) -> Tensor:
        x = image.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        t, b = x.shape[:2]
        y = self.patches(x.flatten(0, 1))
        x = self.patch_lif(y.reshape(t, b, *y.shape[1:])).flatten(3)
        q, k, v = (
            self.branch(name, x)
            .transpose(-1, -2)
            .reshape(t, b, -1, self.heads, x.shape[2] // self.heads)
            .transpose(2, 3)
            for name in "qkv"
        )
        attn = q @ k.transpose(-2, -1) * 0.125
        self.heard += [(q, k), (attn, v.transpose(-2, -1))]
        mixed = self.lifs["attn"]((attn @ v).transpose(3, 4).reshape(t, b, x.shape[2], -1))
        x = x + self.branch("out", mixed)
        return self.head(x.flatten(3).mean(3)).mean(0)


def driven(module: nn.Module) -> nn.Module:
    """Weights under which neurons fire; the same ones always."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.1, 0.5)
    return module.eval()


def by_hand(
    module: nn.Module, run: Callable[[nn.Module], Any], frames: int
) -> dict[str, Counter[str]]:
    """Path of each layer -> operations: what it hears in one sample's run, times what one event reaches.

    `frames`: leading entries that are a frame each, where more than one lie side by side.
    """
    found: dict[str, Counter[str]] = {}

    def listen(path: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            (x,) = inputs
            for frame in x.detach() if len(x) == frames > 1 else x.detach()[None]:
                frame = frame[None] if len(x) == frames > 1 else frame
                column = "acc" if bool(((frame == 0) | (frame == 1)).all()) else "mac"
                ones = copy.deepcopy(layer)
                ones._forward_hooks.clear()
                ones.weight = nn.Parameter(torch.ones_like(layer.weight))
                ones.bias = None
                reached = int(ones((frame != 0).float()).sum())
                found.setdefault(path, Counter()).update({column: reached})
            if layer.bias is not None:
                found[path]["bias_adds"] += output.numel()

        return hook

    for path, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            part.register_forward_hook(listen(path))
    with torch.no_grad():
        run(module)
    return {path: +row for path, row in found.items()}


def rows(counts: OperationCounts) -> dict[str, Counter[str]]:
    return {
        name: Counter(
            {c: int(getattr(layer, c)) for c in (*BOTH, "bias_adds") if getattr(layer, c)}
        )
        for name, layer in counts.layers.items()
        if layer.dense_valid
    }


def test_in_the_style_of_snntorch() -> None:
    x = torch.rand(1, 20, generator=torch.Generator().manual_seed(2))
    net = driven(StillImages())
    found = count_torch(net, x)
    wanted = by_hand(copy.deepcopy(net), lambda net: net(x), 1)
    assert rows(found) == wanted
    assert wanted["fc1"]["mac"] == 6 * 20 * 12
    assert 0 < wanted["fc2"]["acc"] < 6 * 12 * 4
    assert found.layers["lif1"].elementwise > 0
    hidden = driven(
        nn.Sequential(nn.Linear(20, 12), Leaky(0.9, True), nn.Linear(12, 4), Leaky(0.9, True))
    )
    clip = spikes(1, 6, 20)
    wanted = by_hand(copy.deepcopy(hidden), lambda net: [net(clip[:, t]) for t in range(6)], 1)
    assert rows(count_torch(hidden, clip, time_axis=1, stepped=True)) == wanted
    assert wanted["2"]["acc"] > 0


@pytest.mark.parametrize("multistep", [False, True])
def test_in_the_style_of_spikingjelly(multistep: bool) -> None:
    wrap = Folded if multistep else nn.Sequential
    net = driven(
        nn.Sequential(
            wrap(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
            Node(multistep),
            wrap(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)),
            Node(multistep),
        )
    )
    x = spikes(4, 1, 2, 6, 6)  # steps first
    x[2] *= 3
    one_call = (lambda net: net(x)) if multistep else (lambda net: [net(one) for one in x])
    wanted = by_hand(copy.deepcopy(net), one_call, 4 if multistep else 1)
    found = count_torch(net, x, batch_axis=1, time_axis=0, stepped=not multistep)
    assert rows(found) == wanted
    (first, last) = wanted.values()
    assert first["acc"] > first["mac"] > 0
    assert last["acc"] > 0
    assert found.layers["0.layers.1" if multistep else "0.1"].elementwise == 2 * 4 * 4 * 36


def test_a_spiking_transformer() -> None:
    net = driven(Spikformer())
    x = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    by_layer = copy.deepcopy(net)
    wanted = by_hand(by_layer, lambda net: net(x), 4)
    found = rows(count_torch(net, x, timesteps=4))
    attention = found.pop("matmul")
    assert found == wanted
    assert attention == {"acc": sum(pairs_of(*pair) for pair in by_layer.heard)}
    assert attention["acc"] > 0
    assert by_layer.heard[1][0].unique().numel() > 2  # scores are graded, v is spikes
    assert wanted["projections.q.0"]["acc"] > 0
    assert wanted["projections.out.0"]["acc"] > 0
    assert wanted["patches.0"] == {"mac": 4 * 2 * 36 * 8}


def test_in_the_form_of_norses_documentation() -> None:
    """One step after the other in a loop, with functions of torch between; LILinearCell keeps its weight itself."""
    net = driven(LoopedConvNet())
    x = spikes(7, 1, 1, 10, 10, rate=0.8)
    counts = count_torch(net, x, batch_axis=1)
    heard: list[Tensor] = []
    by_layer = copy.deepcopy(net)
    by_layer.lif2.register_forward_hook(lambda _net, _inputs, output: heard.append(output[0]))
    wanted = by_hand(by_layer, lambda net: net(x), 1)
    found = rows(counts)
    assert found.pop("out.input_weights") == {"acc": 5 * int(torch.stack(heard).sum())}
    assert found == wanted
    assert wanted["conv2"]["acc"] > 0
    assert counts.layers["conv1"].dense_valid == 7 * 64 * 9 * 4
