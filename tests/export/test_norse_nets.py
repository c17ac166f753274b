"""Norse modules in their authors' own form are recorded and certified, or refused by name."""

from __future__ import annotations

import json

import norse.torch as snn
import numpy as np
import pytest
import torch
from norse_nets import EASY, NETS, Keeps, Net, made
from torch import Tensor, nn

from knarr.export import (
    ExportError,
    certify,
    run_clips,
    step_nir,
    time_form,
    to_nir,
    trace_module,
)

DT_S = 0.001
EXPORTED = [name for name, net in NETS.items() if not net.refused]
REFUSED = [name for name, net in NETS.items() if net.refused]


def test_the_list_is_long_enough() -> None:
    assert len(NETS) >= 20
    assert len(EXPORTED) >= 15


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_with_no_difference(name: str) -> None:
    net, module = NETS[name], made(name)
    graph = to_nir(module, net.shape, DT_S)
    certificate = json.loads(graph.metadata["certificate"])
    assert min(certificate["spikes"].values()) > 0
    assert tuple(certificate["left_out"]) == net.left_out
    # Other data than those it was certified on: what the module does again is what the graph does.
    rng = np.random.default_rng(7)
    inputs = (rng.random((3, 24, *net.shape)) < 0.4).astype(np.float32)
    if name in ("MNIST task", "CIFAR task", "integrators"):
        steps = certificate["timesteps"]
        inputs = np.repeat(inputs[:, :1], steps, axis=1)
    live, stepped = trace_module(module, inputs), step_nir(graph, inputs, DT_S)
    assert set(live.spikes) == set(stepped.spikes)
    assert sum(int(z.sum()) for z in live.spikes.values()) > 0
    for node, spikes in live.spikes.items():
        assert np.array_equal(spikes, stepped.spikes[node]), node
    # Sums in another order round otherwise (`ROUNDING` in export/norse/observe.py), as do all steps through one
    # convolution at once; elsewhere bits are equal.
    if not certificate["rewrites"] and name != "merged":
        assert np.array_equal(live.output, stepped.output)
    np.testing.assert_allclose(
        live.output, stepped.output, rtol=0, atol=1e-4 * abs(live.output).max()
    )


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    with pytest.raises(ExportError) as caught:
        to_nir(made(name), NETS[name].shape, DT_S)
    assert NETS[name].refused in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["conv net", "residual", "speech", "merged"])
def test_the_output_is_the_modules_own(name: str) -> None:
    """The graph's output, and what was left out behind it, give what the module gives to its caller."""
    net, module = NETS[name], made(name)
    graph = to_nir(module, net.shape, DT_S)
    inputs = (np.random.default_rng(3).random((2, 12, *net.shape)) < 0.5).astype(np.float32)
    given = torch.tensor(step_nir(graph, inputs, DT_S).output)
    behind = {
        "conv net": lambda out: out.transpose(0, 1),
        "residual": lambda out: out.mean(1),
        "speech": lambda out: torch.log_softmax(out[:, -1], 1),
        "merged": lambda out: out[:, -1],
    }[name]
    x = torch.tensor(inputs)
    with torch.no_grad():
        result = module(x if name == "residual" else x.transpose(0, 1))
    # Float readouts: sums over time and other orders of sums round otherwise.
    assert torch.allclose(behind(given), result, rtol=0, atol=1e-4 * float(result.abs().max()))


class Looped(nn.Module):
    """One layer in a time loop; subclasses say what is done to what it gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif, self.second = nn.Linear(6, 6), snn.LIFCell(EASY), snn.LIFCell(EASY)

    def forward(self, x: Tensor) -> Tensor:
        a = b = None
        out = []
        for t in range(x.shape[0]):
            z, a = self.lif(3 * self.fc(x[t]), a)
            z, a = self.between(z, a, t)
            z, b = self.second(2 * z, b)
            out.append(z)
        return torch.stack(out)

    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        return z, state


class ResetsEveryThird(Looped):
    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        return z, state._replace(v=torch.zeros_like(state.v)) if t % 3 == 2 else state


class ReadsVoltage(Looped):
    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        return state.v, state


class Squares(Looped):
    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        return torch.sigmoid(z), state


class FirstStepOtherwise(Looped):
    """What it does later is not what it does first, which only the comparison finds."""

    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        return (3 * z if t < 2 else z), state


class HiddenQuestion(Looped):
    """A question that torch does not see: the numbers leave it first."""

    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        busy = float(z.detach().numpy().sum()) > 0.3 * z.numel()
        return (4 * z if busy else z), state


class ChangesThreshold(Looped):
    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        self.lif.p = self.lif.p._replace(v_th=self.lif.p.v_th * 1.1)
        return z, state


class ChangesUnseen(Looped):
    """A change in place of what was given already, through a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        out[:, :, 0].add_(1)
        return out


class CopiesState(Looped):
    """Detached states are the same numbers, and no reason to refuse."""

    def between(self, z: Tensor, state: snn.LIFFeedForwardState, t: int) -> tuple[Tensor, object]:
        return z, snn.LIFFeedForwardState(state.v.detach(), state.i.clone())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ResetsEveryThird, "module 'lif': its state is changed between two steps"),
        (ReadsVoltage, "module 'lif': its voltage is used as a value"),
        (Squares, "'sigmoid' in test_norse_nets.py line"),
        (FirstStepOtherwise, "certificate: node 'second'"),
        (HiddenQuestion, "does not do the same on all inputs|certificate: node 'second'"),
        (ChangesUnseen, "gives its caller something else than its last layer gives"),
        (ChangesThreshold, "module 'lif': its parameters change from step to step"),
    ],
)
def test_what_is_not_what_a_graph_does_is_refused(kind: type[Looped], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        to_nir(kind().eval(), (6,), DT_S)


def test_copied_states_are_followed() -> None:
    assert "second" in to_nir(CopiesState().eval(), (6,), DT_S).nodes


def test_the_module_stays_as_it_was() -> None:
    module = Keeps().eval()
    torch.manual_seed(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_nir(module, (5,), DT_S)
    assert module.state is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_state_that_is_there_already_is_refused() -> None:
    module = Keeps().eval()
    with torch.no_grad():
        module(torch.ones(3, 5))
    with pytest.raises(ExportError, match="module 'lif': begins with a state of its own"):
        to_nir(module, (5,), DT_S)


def test_every_reason_is_told() -> None:
    module = snn.SequentialState(
        nn.Linear(4, 4), snn.LSNNCell(), nn.Linear(4, 4), snn.LIFRefracCell(), nn.Linear(4, 4), nn.Sigmoid(), snn.LIFCell()
    ).eval()  # fmt: skip
    with pytest.raises(ExportError) as caught:
        to_nir(module, (4,), DT_S)
    said = "\n".join(caught.value.reasons)
    assert "module '1': LSNNCell" in said
    assert "module '3': LIFRefracCell" in said
    assert "module '5': Sigmoid" in said
    assert "and 2 more" in str(caught.value)


def test_samples_of_another_length_than_the_module_takes_are_refused() -> None:
    inputs = np.ones((2, 5, 4, 4), dtype=np.float32)
    inputs[:, 2:] = 0
    with pytest.raises(ExportError, match="shows one input at every step"):
        to_nir(made("integrators"), (4, 4), DT_S, samples=inputs)
    with pytest.raises(ExportError, match="takes 10 steps, all alike, these inputs have 5"):
        trace_module(made("integrators"), inputs)


def test_a_graph_of_another_module_is_found_out() -> None:
    module = made("functions")
    graph = to_nir(module, (6,), DT_S)
    with torch.no_grad():
        module.w_out[0, 0] += 0.1
    inputs = (np.random.default_rng(0).random((4, 20, 6)) < 0.5).astype(np.float32)
    # The readout alone differs, which no spike tells.
    with pytest.raises(ExportError, match="certificate: node 'li'"):
        certify(module, graph, inputs, DT_S)


def test_a_bare_cell_and_a_looped_layer_are_exported() -> None:
    cell = snn.LIFBoxCell(snn.LIFBoxParameters(v_th=torch.tensor(0.2))).eval()
    assert set(to_nir(cell, (4,), DT_S).nodes) == {"input", "lifbox", "output"}
    looped = snn.SequentialState(nn.Linear(4, 3), snn.LIF(EASY)).eval()
    nn.init.constant_(looped[0].weight, 0.5)
    assert set(to_nir(looped, (4,), DT_S).nodes) == {"input", "linear_0", "lif_1", "output"}


def test_nets_of_the_table_are_whole() -> None:
    assert all(isinstance(net, Net) and net.form and net.source for net in NETS.values())


class Own(nn.Module):
    """A loop over time in the manner of tutorials; `end` is what is done with every step's output."""

    def __init__(self, end: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.end = end
        self.weight = nn.Parameter(30 * torch.randn(6, 8))
        self.lif, self.fc, self.li = snn.LIFCell(), nn.Linear(8, 2), snn.LICell()

    def forward(self, x: Tensor) -> Tensor:
        x = (x.movedim(-1, 0) if self.end == "time last" else x).requires_grad_(False)
        first = second = None
        steps, total = [], torch.zeros(x.shape[1], 2)
        spikes = torch.zeros(x.shape[1], 8)
        for frame in x:
            z, first = self.lif(frame @ self.weight, first)
            y, second = self.li(self.fc(z), second)
            steps.append(y)
            spikes += z
            total += y
        if self.end == "raises":
            raise IndexError("no such step")
        if self.end == "spikes added up":
            return self.fc(spikes)
        if self.end == "in place":
            return total
        every = torch.stack(steps)
        return every.softmax(-1).max(0)[0] if self.end == "softmax" else every


@pytest.mark.parametrize(
    ("end", "left_out", "way"),
    [
        ("in place", ("sum over time",), "time first"),
        ("softmax", ("softmax", "maximum over time"), "time first"),
        ("every step", (), "time first"),
        ("time last", (), "time last"),
    ],
)
def test_idioms_of_loops_are_followed(end: str, left_out: tuple[str, ...], way: str) -> None:
    module = Own(end).eval()
    form = time_form(module, (6,))
    assert (form.way, form.left_out) == (way, left_out)
    inputs = (np.random.default_rng(2).random((3, 7, 6)) < 0.5).astype(np.float32)
    graph = to_nir(module, (6,), DT_S, samples=inputs)
    assert json.loads(graph.metadata["certificate"])["left_out"] == list(left_out)
    if not left_out:
        given = run_clips(module, torch.as_tensor(inputs), form).detach().numpy()
        assert given.std() > 0
        assert np.array_equal(given, trace_module(module, inputs).output)


def test_reasons_say_what_to_do_and_where() -> None:
    with pytest.raises(
        ExportError, match=r"module 'lif': what it gave more than one step before"
    ) as caught:
        to_nir(Own("spikes added up").eval(), (6,), DT_S)
    # One reason, however many steps the sum has.
    assert caught.value.reasons == (str(caught.value),)
    with pytest.raises(
        ExportError, match=r"IndexError: no such step, test_norse_nets.py line \d+\); see"
    ):
        to_nir(Own("raises").eval(), (6,), DT_S)
