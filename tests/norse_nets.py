"""Norse networks in the forms in which their authors write them, rebuilt small from what Norse's documentation shows.

Used by tests/export/test_norse_nets.py and by benchmarks/norse_modules.py, which writes docs/norse_modules.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import norse.torch as snn
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear, log_softmax, max_pool2d, relu, softmax

EASY = snn.LIFParameters(v_th=torch.tensor(0.3))
"""A threshold that untrained weights reach."""


class LoopedConvNet(nn.Module):
    """The convolutional net of the MNIST task: one step after the other into a tensor of voltages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1 = nn.Linear(6, 12)
        self.out = snn.LILinearCell(12, 5)
        self.lif0, self.lif1, self.lif2 = snn.LIFCell(EASY), snn.LIFCell(EASY), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = s2 = so = None
        voltages = torch.zeros(x.shape[0], x.shape[1], 5, device=x.device)
        for ts in range(x.shape[0]):
            z, s0 = self.lif0(3 * self.conv1(x[ts, :]), s0)
            z = max_pool2d(z, 2, 2)
            z, s1 = self.lif1(10 * self.conv2(z), s1)
            z = max_pool2d(z, 2, 2)
            z, s2 = self.lif2(3 * self.fc1(z.view(-1, 6)), s2)
            v, so = self.out(relu(z), so)
            voltages[ts, :, :] = v
        return voltages


class EncodedImages(nn.Module):
    """The MNIST task as a whole: an image as a constant current, the net, the largest voltage."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = snn.ConstantCurrentLIFEncoder(seq_length=14)
        self.net = LoopedConvNet()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.encoder(x.view(-1, 100) * 6.0)
        voltages = self.net(spikes.reshape(14, x.shape[0], 1, 10, 10))
        largest, _ = torch.max(voltages, 0)
        return log_softmax(largest, dim=1)


class ShownImages(nn.Module):
    """The CIFAR-10 task: the same image at every step, two SequentialStates, noise on the voltages."""

    def __init__(self) -> None:
        super().__init__()
        self.seq_length = 8
        self.features = snn.SequentialState(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            snn.LIFCell(EASY),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            snn.LIFCell(EASY),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classification = snn.SequentialState(nn.Linear(8 * 3 * 3, 4, bias=False), snn.LICell())

    def forward(self, x: Tensor) -> Tensor:
        voltages = torch.empty(self.seq_length, x.shape[0], 4, device=x.device)
        sf = sc = None
        for ts in range(self.seq_length):
            out, sf = self.features(x, sf)
            out, sc = self.classification(out, sc)
            voltages[ts, :, :] = out + 0.001 * torch.randn(x.shape[0], 4, device=x.device)
        largest, _ = torch.max(voltages, 0)
        return largest


class Speech(nn.Module):
    """The speech task: a recurrent cell, a weighted readout, the last voltage."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.readout = snn.LILinearCell(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        s = so = None
        for ts in range(x.shape[0]):
            z, s = self.cell(x[ts, :], s)
            v, so = self.readout(z, so)
        return log_softmax(v, dim=1)


class TwoPopulations(nn.Module):
    """The layer of the memory task: two recurrent populations side by side, one step and its state."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = snn.LIFRecurrentCell(8, 4, EASY), second
        self.readout = snn.LILinearCell(8, 2)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        a, b, c = (None, None, None) if state is None else state
        z_first, a = self.first(x, a)
        z_second, b = self.second(x, b)
        v, c = self.readout(torch.cat((z_first, z_second), -1), c)
        return v, (a, b, c)


class Policy(nn.Module):
    """The cart-pole task: both signs of the state as currents, concatenated, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = snn.ConstantCurrentLIFEncoder(10)
        self.lif = snn.LIFRecurrentCell(8, 6, EASY)
        self.dropout = nn.Dropout(p=0.5)
        self.readout = snn.LILinearCell(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        positive = self.encoder(relu(50 * x))
        negative = self.encoder(relu(-50 * x))
        x = torch.cat([positive, negative], dim=2)
        s = so = None
        voltages = torch.zeros(x.shape[0], x.shape[1], 2)
        for ts in range(x.shape[0]):
            z, s = self.lif(x[ts, :, :], s)
            v, so = self.readout(self.dropout(z), so)
            voltages[ts, :, :] = v
        largest, _ = torch.max(voltages, 0)
        return softmax(largest, dim=1)


class Integrators(nn.Module):
    """Weighted integrators between spiking layers, behind an encoder, as a list of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = snn.ConstantCurrentLIFEncoder(10)
        self.lif0, self.lif1 = snn.LIFCell(EASY), snn.LIFCell(EASY)
        self.li0, self.out = snn.LILinearCell(16, 10), snn.LILinearCell(10, 3)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.encoder(3 * images.view(images.shape[0], 16))
        s0 = i0 = s1 = so = None
        outputs = []
        for step in range(10):
            z, s0 = self.lif0(spikes[step], s0)
            z, i0 = self.li0(z, i0)
            z, s1 = self.lif1(4 * z, s1)
            v, so = self.out(z, so)
            outputs.append(v)
        return torch.stack(outputs).mean(0)


class Tutorial(nn.Module):
    """The network of the MNIST notebook: a hidden recurrent layer and a leaky readout."""

    def __init__(self, cell: type[nn.Module] = snn.LIFRecurrentCell) -> None:
        super().__init__()
        self.l1 = cell(12, 10, p=EASY, dt=0.001)
        self.fc_out = nn.Linear(10, 4, bias=False)
        self.out = snn.LICell(dt=0.001)

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        s1 = so = None
        voltages = []
        for ts in range(steps):
            z = x[ts, :, :, :].view(-1, 12)
            z, s1 = self.l1(z, s1)
            z = self.fc_out(z)
            vo, so = self.out(z, so)
            voltages += [vo]
        return torch.stack(voltages)


class EncodedTutorial(nn.Module):
    """The model of the MNIST notebook: encoder, network and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.snn = snn.PoissonEncoder(16, f_max=200), Tutorial()

    def forward(self, x: Tensor) -> Tensor:
        x = self.snn(self.encoder(x))
        x, _ = torch.max(x, 0)
        return log_softmax(x, dim=1)


class Functions(nn.Module):
    """No cell at all: Norse's functions, states and weights by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Parameter(0.6 * torch.randn(10, 6))
        self.w_out = nn.Parameter(0.6 * torch.randn(3, 10))
        self.p, self.p_out = EASY, snn.LIParameters()

    def forward(self, x: Tensor) -> Tensor:
        state = snn.LIFFeedForwardState(
            v=torch.zeros(x.shape[1], 10), i=torch.zeros(x.shape[1], 10)
        )
        so = snn.LIState(v=torch.zeros(x.shape[1], 3), i=torch.zeros(x.shape[1], 3))
        out = []
        for step in x:
            z, state = snn.lif_feed_forward_step(linear(step, self.w_in), state, self.p)
            v, so = snn.li_step(z, so, self.w_out, self.p_out)
            out.append(v)
        return torch.stack(out)


class Residual(nn.Module):
    """Samples first, a residual sum of spikes, the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.lif, self.lif_inner = snn.LIFBoxCell(BOX), snn.LIFBoxCell(BOX)
        self.fc, self.lif_out = nn.Linear(4 * 2 * 2, 3), snn.LIFBoxCell(BOX)

    def forward(self, x: Tensor) -> Tensor:
        a = b = c = None
        spikes = []
        for t in range(x.size(1)):
            z, a = self.lif(4 * self.norm(self.conv(x[:, t])), a)
            inner, b = self.lif_inner(4 * self.inner(z), b)
            z = z + inner
            z = avg_pool2d(z, 3)
            z, c = self.lif_out(6 * self.fc(z.flatten(1)), c)
            spikes.append(z)
        return torch.stack(spikes, dim=1).mean(dim=1)


BOX = snn.LIFBoxParameters(v_th=torch.tensor(0.04))


class OwnLoop(nn.Module):
    """A recurrence of one's own: the spikes of the step before through a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rec, self.out = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 2)
        self.lif, self.li = snn.LIFCell(EASY), snn.LICell()

    def forward(self, x: Tensor) -> Tensor:
        s = so = None
        z = torch.zeros(x.shape[1], 8)
        total: Any = 0
        for t in range(x.shape[0]):
            z, s = self.lif(self.fc(x[t]) + self.rec(z), s)
            v, so = self.li(self.out(z), so)
            total = total + v
        return total / x.shape[0]


class Keeps(nn.Module):
    """States that the module keeps itself, one step a call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 7), snn.LIFCell(EASY)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        z, self.state = self.lif(2 * self.fc(x), self.state)
        return z


class Forgets(nn.Module):
    """A cell as if it were an activation: its state is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 7), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.lif(self.fc(x))
        return spikes


class Merged(nn.Module):
    """All steps through a convolution at once, as if they were samples, then a layer in time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif, self.fc, self.li = (
            nn.Conv2d(1, 3, 3), snn.LIF(EASY), nn.Linear(27, 4), snn.LI(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        y = self.conv(x.flatten(0, 1)).unflatten(0, (steps, batch))
        z, _ = self.lif(5 * y)
        v, _ = self.li(self.fc(z.flatten(2)))
        return v[-1]


class Asks(nn.Module):
    """A branch that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 5), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> Tensor:
        s, out = None, []
        for t in range(x.shape[0]):
            z, s = self.lif(4 * self.fc(x[t]), s)
            out.append(z if z.sum() > 3 else self.fc(z))
        return torch.stack(out)


class Wrapped(nn.Module):
    """A SequentialState that runs over time, and whose state is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.model = snn.SequentialState(
            nn.Linear(10, 12), snn.LIF(EASY), nn.Linear(12, 6), snn.LIF(EASY)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


class Skips(nn.Module):
    """An input that skips a layer, joined to its spikes by a concatenation of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.lif1, self.lif2 = snn.LIFCell(EASY), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        out = []
        for image in x:
            z, s1 = self.lif1(4 * self.conv1(image), s1)
            z, s2 = self.lif2(4 * self.conv2(torch.cat([image, z], dim=1)), s2)
            out.append(z)
        return torch.stack(out).sum(dim=0)


class TimeLast(nn.Module):
    """Steps along the last axis, as frames of event cameras are often kept."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 8), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> Tensor:
        s, out = None, []
        for t in range(x.shape[-1]):
            z, s = self.lif(4 * self.fc(x[..., t]), s)
            out.append(z)
        return torch.stack(out, dim=-1)


class Records(nn.Module):
    """Samples first, turned; spikes and voltages are recorded, and both are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 8), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s: Any = None
        spikes, voltages = [], []
        for step in x.permute(1, 0, 2):
            z, s = self.lif(4 * self.fc(step), s)
            spikes.append(z.unsqueeze(0))
            voltages.append(s.v)
        return torch.cat(spikes, dim=0), torch.stack(voltages)


class FeedsBack(nn.Module):
    """The last layer's spikes go back to the first; one step and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.back, self.fc2 = nn.Linear(6, 6), nn.Linear(4, 6, bias=False), nn.Linear(6, 4)
        self.lif, self.lif2 = snn.LIFCell(EASY), snn.LIFCell(EASY)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        a, b, y = (None, None, torch.zeros(x.shape[0], 4)) if state is None else state
        z, a = self.lif(4 * self.fc(x) + self.back(y), a)
        y, b = self.lif2(4 * self.fc2(z), b)
        return y, (a, b, y)


@dataclass(frozen=True)
class Net:
    """A network in its author's form.

    Args:
        form: what it shows, in a few words.
        source: where in Norse's documentation or tasks the form stands.
        build: makes it.
        shape: sizes of one step without batch.
        refused: words of the error, where it cannot be exported.
        left_out: what it does behind the output of its graph.
    """

    form: str
    source: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    refused: str = ""
    left_out: tuple[str, ...] = ()


def state(*layers: nn.Module) -> nn.Module:
    return snn.SequentialState(*layers)


def readme() -> nn.Module:
    return state(
        nn.Conv2d(1, 4, 3), snn.LIFCell(EASY), nn.MaxPool2d(2, 2), nn.Conv2d(4, 6, 3), snn.LIFCell(EASY),
        nn.MaxPool2d(2, 2), nn.Flatten(), nn.Linear(6, 5), snn.LICell(),
    )  # fmt: skip


def lifted() -> nn.Module:
    return state(
        snn.Lift(nn.Conv2d(2, 4, 3)), snn.LIF(EASY), snn.Lift(nn.AvgPool2d(2)), nn.Flatten(2),
        snn.LIFRecurrent(36, 8, EASY), snn.LIFRecurrent(8, 3, EASY),
    )  # fmt: skip


def lifted_cells() -> nn.Module:
    return nn.Sequential(
        snn.Lift(nn.Conv2d(1, 3, 3)), snn.Lift(snn.LIFBoxCell(BOX)), snn.Lift(nn.Flatten()),
        snn.Lift(nn.Linear(48, 6)), snn.Lift(snn.LIFBoxCell(BOX)),
    )  # fmt: skip


def fed_back() -> nn.Module:
    return snn.RecurrentSequential(nn.Linear(6, 6), snn.LIFBoxCell(BOX))


NETS: dict[str, Net] = {
    "readme": Net("SequentialState of cells, max pooling", "README", readme, (1, 10, 10)),
    "lifted": Net("SequentialState over time, Lift, LIFRecurrent", "SequentialState", lifted, (2, 8, 8)),
    "lifted cells": Net("nn.Sequential of Lift alone", "Lift", lifted_cells, (1, 6, 6)),
    "wrapped": Net("module around a SequentialState of LIF", "Working with Norse", Wrapped, (10,)),
    "conv net": Net("time loop into a tensor, max_pool2d, 10 * conv", "ConvNet", LoopedConvNet, (1, 10, 10)),
    "MNIST task": Net(
        "image as constant current, encoder inside", "task: mnist", EncodedImages, (1, 10, 10),
        left_out=("maximum over time", "log_softmax"),
    ),
    "CIFAR task": Net(
        "the same image at every step, noise on the output", "task: cifar10", ShownImages, (3, 6, 6),
        left_out=("add", "maximum over time"),
    ),
    "speech": Net(
        "recurrent cell, last voltage", "task: speech_commands", lambda: Speech(snn.LIFRecurrentCell(6, 9, EASY)), (6,),
        left_out=("last step alone", "log_softmax"),
    ),
    "speech LSNN": Net(
        "adaptive recurrent cell", "task: speech_commands", lambda: Speech(snn.LSNNRecurrentCell(6, 9)), (6,),
        refused="module 'cell': LSNNRecurrentCell cannot be exported; NIR has no adaptive threshold",
    ),
    "memory": Net(
        "two recurrent populations, concatenated", "task: memory", lambda: TwoPopulations(snn.LIFRecurrentCell(8, 4, EASY)), (8,)
    ),
    "memory LSNN": Net(
        "one of them adaptive", "task: memory", lambda: TwoPopulations(snn.LSNNRecurrentCell(8, 4)), (8,),
        refused="module 'second': LSNNRecurrentCell cannot be exported",
    ),
    "cart-pole": Net(
        "both signs of the input by relu", "task: cartpole", Policy, (4,), refused="'relu' in norse_nets.py line",
    ),
    "integrators": Net(
        "LILinearCell between spiking layers", "LILinearCell", Integrators, (4, 4), left_out=("mean over time",)
    ),
    "tutorial": Net("LIFRecurrentCell and LICell in a time loop", "notebook: MNIST", Tutorial, (3, 4)),
    "tutorial encoded": Net(
        "the same behind a Poisson encoder", "notebook: MNIST", EncodedTutorial, (3, 4),
        refused="module 'encoder': PoissonEncoder cannot be exported; it draws numbers",
    ),
    "functions": Net("lif_feed_forward_step and li_step by hand", "functional", Functions, (6,)),
    "residual": Net(
        "samples first, batch norm, residual sum", "Working with Norse", Residual, (2, 6, 6), left_out=("mean over time",)
    ),
    "own loop": Net(
        "recurrence by a Linear, mean by hand", "Working with Norse", OwnLoop, (6,), left_out=("sum over time", "scaling")
    ),
    "fed back": Net("RecurrentSequential", "RecurrentSequential", fed_back, (6,)),
    "time last": Net("steps along the last axis", "Working with Norse", TimeLast, (6,)),
    "records": Net("spikes and voltages returned, joined by cat", "Working with Norse", Records, (6,)),
    "feeds back": Net("last layer's spikes back to the first", "Working with Norse", FeedsBack, (6,)),
    "keeps": Net("state kept in the module", "Quickstart", Keeps, (5,)),
    "forgets": Net(
        "state thrown away", "Quickstart", Forgets, (5,), refused="module 'lif': steps 1 times in a row",
    ),
    "merged": Net(
        "steps as samples for the convolution", "LIF, LI", Merged, (1, 5, 5), left_out=("last step alone",)
    ),
    "skips": Net("concatenation of channels", "Working with Norse", Skips, (1, 6, 6), left_out=("sum over time",)),
    "asks": Net("branch on a value", "Working with Norse", Asks, (5,), refused="asks in norse_nets.py line"),
    "refractory": Net(
        "refractory cell", "LIFRefracCell", lambda: state(nn.Linear(5, 5), snn.LIFRefracCell()), (5,),
        refused="module '1': LIFRefracCell cannot be exported; NIR has no refractory period",
    ),
    "Izhikevich": Net(
        "Izhikevich neurons over time", "Izhikevich",
        lambda: state(nn.Linear(5, 5), snn.Izhikevich(snn.tonic_spiking)), (5,),
        refused="module '1': Izhikevich cannot be exported",
    ),
}  # fmt: skip


def made(name: str) -> nn.Module:
    """Return a network of the table, the same at every call, in eval mode."""
    torch.manual_seed(sum(name.encode()))
    net = NETS[name].build()
    # Norms that normalise, and weights with which spikes come through.
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = 0.1 * torch.randn(part.num_features)
            part.running_var = torch.rand(part.num_features) + 0.5
    return net.eval()
