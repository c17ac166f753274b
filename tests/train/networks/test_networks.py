"""Networks of the three systems: the published counts, counted; gradients, devices, seeds; students that export and lower."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import norse.torch as snn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published_networks import TABLE_I
from pydantic import ValidationError
from shared_pieces import write_onnx
from torch import nn

from knarr.deploy import lower
from knarr.export import Certificate, ExportError, student_step_to_onnx, to_nir, to_onnx
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.train.networks.branch_merge import ScaleGate
from knarr.train.networks.chip_form import chip_form, plain
from knarr.train.networks.emotion import (
    Attention,
    EmotionSettings,
    EmotionStudent,
    EmotionTeacher,
    Fusion,
    Score,
    conv_l2,
)
from knarr.train.networks.gsr import (
    GsrRepeat,
    GsrRepeatSettings,
    GsrStudentSettings,
    build_gsr_student,
    run_frames,
)
from knarr.train.networks.heads import ClipDropout, decide, over_time, vote
from knarr.train.networks.mskd import (
    SEEN_NEURON,
    FramePerStep,
    MskdStudentSettings,
    MskdTeacherSettings,
    Seen,
    SeenSettings,
    build_mskd_student,
    build_mskd_teacher,
)
from knarr.train.networks.neurons import (
    BoxCell,
    DecayCell,
    NeuronSettings,
    ReadoutCell,
    fire,
    slope,
)
from knarr.train.networks.spiking_emotions import (
    SpikingEmotionsSettings,
    build_ann,
    build_plif_fang,
    build_voting_network,
    votes,
)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class OneIn(nn.Module):
    """One tensor in, one out, as ONNX files of `to_onnx` are."""

    def __init__(
        self, network: nn.Module, run: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.network, x)


def products(path: Path) -> dict[str, Fraction]:
    """Row -> multiplications, taps into the padding included as papers count them."""
    counts = count_onnx(path)
    assert counts.total.mac > 0  # raises where anything could not be counted
    return {name: row.dense_padded for name, row in counts.layers.items() if row.dense_padded}


def counted(
    network: nn.Module,
    run: Callable[[Any, torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    path: Path,
    *,
    checked: bool = True,
) -> dict[str, Fraction]:
    """`products` of a file, compared with torch by `to_onnx` or, where that takes long, as torch writes it."""
    module, file = OneIn(network, run).eval(), path / "network.onnx"
    if checked:
        to_onnx(module, shape, file)
    else:
        write_onnx(module, (torch.zeros(1, *shape),), file)
    return products(file)


# --- counts of SYSTEMS


@pytest.mark.parametrize(("steps", "giga"), [(4, "0.907"), (7, "1.454"), (13, "2.548")])
def test_seen_has_the_published_size(steps: int, giga: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Seen(SeenSettings())
    assert parameters(network) == 6_078_655
    assert sum(parameters(gate) for gate in network.gates) == 3 * 545

    def run(seen: Seen, clips: torch.Tensor) -> torch.Tensor:
        return seen(clips[:, 0], clips[:, 1]).logits

    rows = counted(network, run, (2, steps, 3, 90, 90), tmp_path)
    gates = sum(value for name, value in rows.items() if "gates" in name)
    assert gates == 3 * (64 * 8 + 8)  # published counts leave them out
    assert sum(rows.values()) - gates == 177_770_952 + steps * 182_345_536
    assert f"{float(sum(rows.values())) / 1e9:.3f}" == giga


@pytest.mark.parametrize(
    ("width", "size", "merged_size", "apart", "merged"),
    [
        (1.0, 6_075_975, 6_057_159, "182.3", "144.2"),
        (0.5, 1_523_495, 1_517_159, "53.7", "40.8"),
        (0.25, 383_127, 380_727, "17.4", "12.6"),
    ],
)
def test_mskd_students_have_the_computed_sizes(
    width: float, size: int, merged_size: int, apart: str, merged: str, tmp_path: Path
) -> None:
    student = build_mskd_student(MskdStudentSettings(width=width, readout="li"))
    assert parameters(student) == size + 3  # the gates' logits
    assert parameters(plain(student)) == merged_size
    rows = counted(student, lambda network, x: network(x)[0], (3, 90, 90), tmp_path, checked=False)
    assert f"{float(sum(rows.values())) / 1e6:.1f}" == apart
    rows = counted(
        plain(student), lambda network, x: network(x)[0], (3, 90, 90), tmp_path, checked=False
    )
    assert f"{float(sum(rows.values())) / 1e6:.1f}" == merged


def test_emotion_networks_have_the_published_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = EmotionTeacher(EmotionSettings()), EmotionStudent(EmotionSettings())
    assert (parameters(teacher), parameters(student)) == (2_046_210, 993_090)
    for network, with_statistics in ((teacher, 2_047_490), (student, 993_986)):
        kept = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
        assert parameters(network) + kept == with_statistics  # as Keras counts
    rows = counted(teacher, lambda net, x: net(x[:, :28], x[:, 28:]).logits, (29, 512), tmp_path)
    assert sum(rows.values()) == 89_731_328
    rows = counted(student, lambda net, x: net(x).logits, (1, 512), tmp_path)
    assert sum(rows.values()) == 39_322_880


def test_the_gsr_student_has_the_computed_size(tmp_path: Path) -> None:
    settings = GsrStudentSettings()
    form = chip_form(build_gsr_student(settings), snap=True)
    assert (parameters(form), settings.steps) == (14_722, 61)
    student_step_to_onnx(form, (32,), tmp_path / "step.onnx")
    assert settings.steps * sum(products(tmp_path / "step.onnx").values()) == 882_304


def test_spiking_emotions_have_the_published_operations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = TABLE_I["PLIF, V_th 0.4"]
    spiking, ann = build_voting_network(settings), build_ann(settings)
    assert parameters(spiking) == 6_462_213
    rows = counted(ann, lambda network, x: network(x), (68, 128, 128), tmp_path, checked=False)
    ops = list(rows.values())
    assert [ops[0], sum(ops[1:-1]), ops[-1]] == [310_915_584, 47_940_608, 2_048]
    rows = counted(
        spiking, lambda network, x: network(x)[0], (2, 128, 128), tmp_path, checked=False
    )
    ops = list(rows.values())
    assert [ops[0], sum(ops[1:-1]), ops[-1]] == [9_144_576, 47_940_608, 20_480]


def test_plif_fang_has_five_blocks_and_a_quarter() -> None:
    network = build_plif_fang(SpikingEmotionsSettings())
    shapes = [
        tuple(layer.weight.shape) for layer in network if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    assert shapes == [(128, 2, 3, 3), *[(128, 128, 3, 3)] * 4, (512, 2048), (20, 512)]
    assert not any(
        hasattr(layer, "bias") and layer.bias is not None
        for layer in network
        if "Batch" not in repr(layer)
    )


# --- every network: shapes, gradients, devices, seeds

SMALL_SEEN = SeenSettings(side_px=18, widths=(8, 12, 16, 10))
SMALL_EMOTION = EmotionSettings(
    eeg_channels=4, samples=96, width=8, heads=2, head_width=6, positions=12, classifier=6
)
SMALL_VOTES = SpikingEmotionsSettings(size_px=34, hidden=24, width=6, v_th=0.4)
SMALL_FANG = SpikingEmotionsSettings(size_px=32, v_th=0.4)
SMALL_MSKD = MskdStudentSettings(side_px=18, width=0.125)
SMALL_GSR = GsrStudentSettings(samples=96, hidden=12)
STEPS = 3


def clip(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))


EYES = (STEPS, 3, 18, 18)
Case = tuple[
    Callable[[], nn.Module],
    Callable[[Any, Any], torch.Tensor],
    tuple[tuple[int, ...], ...],
    tuple[int, ...],
]
NETWORKS: dict[str, Case] = {
    "SEEN": (lambda: Seen(SMALL_SEEN), lambda n, x: n(*x).logits, (EYES, EYES), (7,)),
    "SEEN, all frames": (
        lambda: Seen(SMALL_SEEN.model_copy(update={"frames": "all", "steps": STEPS})),
        lambda n, x: n(*x).step_logits, (EYES, EYES), (STEPS, 7),
    ),
    "frame per step": (
        lambda: build_mskd_teacher(MskdTeacherSettings(kind="frame_per_step", seen=SMALL_SEEN)),
        lambda n, x: n(*x).step_logits, (EYES, EYES), (STEPS, 7),
    ),
    "MSKD student": (lambda: build_mskd_student(SMALL_MSKD), lambda n, x: decide(n, *x).logits, (EYES,), (7,)),
    "MSKD student, grey, everything": (
        lambda: build_mskd_student(MskdStudentSettings(
            side_px=18, width=0.125, in_channels=1, gate="dynamic", conv_bias=True, norm=True, readout="li"
        )),
        lambda n, x: decide(n, *x).step_logits, ((STEPS, 1, 18, 18),), (STEPS, 7),
    ),
    "EmotionKD teacher": (lambda: EmotionTeacher(SMALL_EMOTION), lambda n, x: n(*x).logits, ((4, 96), (1, 96)), (2,)),
    "EmotionKD teacher, matched": (
        lambda: EmotionTeacher(SMALL_EMOTION.model_copy(update={"feat_proj": "linear_tokens", "score_pool": True})),
        lambda n, x: n(*x).logits.sum() + n(*x).matched, ((4, 96), (1, 96)), (72,),
    ),
    "EmotionKD student": (lambda: EmotionStudent(SMALL_EMOTION), lambda n, x: n(*x).logits, ((1, 96),), (2,)),
    "GSR student": (
        lambda: build_gsr_student(SMALL_GSR), lambda n, x: run_frames(n, x[0][:, 0].unfold(1, 32, 8), SMALL_GSR).logits, ((1, 96),), (2,)
    ),
    "GSR student, repeated": (
        lambda: GsrRepeat(GsrRepeatSettings(network=SMALL_EMOTION, steps=2)), lambda n, x: n(*x).logits, ((1, 96),), (2,)
    ),
    "voters": (
        lambda: build_voting_network(SMALL_VOTES), lambda n, x: votes(n, x[0], SMALL_VOTES).logits, ((STEPS, 2, 34, 34),), (2,)
    ),
    "PLIF-Fang": (
        lambda: build_plif_fang(SMALL_FANG), lambda n, x: votes(n, x[0], SMALL_FANG).logits, ((STEPS, 2, 32, 32),), (2,)
    ),
    "ANN": (lambda: build_ann(SMALL_VOTES), lambda n, x: n(*x), ((68, 34, 34),), (2,)),
}  # fmt: skip


def louder(network: nn.Module, gain: float) -> None:
    """Larger weights of every synapse, so that small networks fire."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight *= gain


FLAT = ("gates", "attention.key.bias", "gate_logits")
"""Parameters whose gradient is 0 in real numbers or may be: a bias in front of a batch-norm or a softmax."""


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name: str) -> None:
    build, run, shapes, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = build()
    if "SEEN" in name or "MSKD" in name or name == "voters":
        louder(network, 3)  # a layer that hears only silence learns nothing of it
    out = run(network, [clip(*s, seed=i) for i, s in enumerate(shapes)])
    assert tuple(out.shape) == (4, *shape)
    assert bool(torch.isfinite(out).all())
    loss: Any = (out - clip(*shape, seed=9)).square().mean()
    loss.backward()
    found = dict(network.named_parameters())
    assert len(found) > 5
    for key, parameter in found.items():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
        before_norm = key.endswith("bias") and parameter.grad.abs().max() < 1e-6
        assert bool(parameter.grad.any()) or before_norm or any(part in key for part in FLAT), key


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_stays_behind_on_another_device_or_dtype(name: str) -> None:
    build, run, shapes, shape = NETWORKS[name]
    inputs = [clip(*s) for s in shapes]
    torch.manual_seed(0)
    network = build().double()
    out = run(network, [x.double() for x in inputs])
    assert out.dtype == torch.float64
    moved = run(network.float().to("meta"), [x.to("meta") for x in inputs])
    assert (moved.device.type, moved.dtype, tuple(moved.shape)) == (
        "meta",
        torch.float32,
        (4, *shape),
    )
    tensors = [
        t for m in network.modules() for t in vars(m).values() if isinstance(t, torch.Tensor)
    ]
    assert tensors == []  # parameters and buffers lie in torch's own tables


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_makes_a_network(name: str) -> None:
    build = NETWORKS[name][0]
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    torch.manual_seed(3)
    fresh = build()
    fresh.load_state_dict(states[0])  # everything that was drawn or learned is in it
    build, run, shapes, _ = NETWORKS[name]
    torch.manual_seed(1)
    inputs = [clip(*s) for s in shapes]
    assert torch.equal(run(fresh.eval(), inputs), run(build().eval(), inputs))


# --- cells


def test_slopes_and_ties_by_hand() -> None:
    over = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5])
    assert slope(over, "box", 0.5).tolist() == [0, 1, 1, 1, 0]
    atan = slope(torch.tensor([0.0, 1 / math.pi]), "atan", 2.0)
    assert atan.tolist() == pytest.approx([1.0, 0.5])
    cases: tuple[tuple[Any, list[int]], ...] = (("gt", [0, 0, 0, 1, 1]), ("ge", [0, 0, 1, 1, 1]))
    for fires, spikes in cases:
        x = over.clone().requires_grad_()
        z = fire(x, NeuronSettings(coefficient=0.5, surrogate="box", width=0.3, fires=fires))
        total: Any = z.sum()
        total.backward()
        assert z.tolist() == spikes
        assert x.grad is not None
        assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_cells_by_hand() -> None:
    neuron = NeuronSettings(coefficient=0.75, v_th=1.0)
    decay, x = DecayCell(neuron), [torch.tensor([[v]]) for v in (1.0, 0.5, 1.0, 2.0, 0.0)]
    box, state_d, state_b = BoxCell(neuron, 0.5), None, None
    charged, fired = [], []
    for one in x:
        z, state_d = decay(one, state_d)
        fired.append(float(z))
        z, state_b = box(one, state_b)
        charged.append((float(state_b.peak), float(state_b.v), float(z)))
        assert float(state_d.peak) >= float(state_d.v)
    # 1 is a tie; 1/4 + 1/2; 3/16 + 1 fires; 2 fires; 0
    assert fired == [0, 0, 1, 1, 0]
    # 3/4; 3/4 + 3/4 * (1/2 - 3/4) = 9/16; 9/16 + 3/4 * 7/16 = 57/64; 57/64 + 3/4 * 71/64 = 441/256 fires
    assert charged == [
        (0.75, 0.75, 0),
        (0.5625, 0.5625, 0),
        (57 / 64, 57 / 64, 0),
        (441 / 256, 0, 1),
        (0, 0, 0),
    ]
    membrane = DecayCell(neuron, "membrane")
    out, state = membrane(torch.tensor([[3.0]]))
    assert (float(out), float(state.v)) == (3.0, 0.0)


def test_a_reset_lets_a_gradient_through_only_where_asked() -> None:
    for detach, expected in ((True, 0.0), (False, -0.5 * 2.0)):
        cell = DecayCell(
            NeuronSettings(coefficient=0.5, surrogate="box", width=9.0, detach_reset=detach)
        )
        x = torch.tensor([[2.0]], requires_grad=True)
        _, state = cell(x)
        out, after = cell(torch.zeros(1, 1), state)
        # v = (1 - z) x is 0 here; d v / d x = (1 - z) - x dz/dx = -2 where the reset passes it on, and half of it stays
        after.peak.sum().backward()
        assert x.grad is not None
        assert (float(out), float(x.grad)) == (0.0, expected)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("snap", [False, True])
def test_cells_equal_their_twins_of_norse_in_every_bit(learned: bool, snap: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    cell = BoxCell(
        NeuronSettings(coefficient=0.3, learned=learned, v_th=0.3),
        1 / 30,
        snap=snap and not learned,
    )
    readout = ReadoutCell(0.3, 1 / 30, snap=snap and not learned)
    if learned:
        with torch.no_grad():
            cell.get_parameter("w").fill_(-0.7123)
    for ours, twin in ((cell, cell.norse()), (readout, readout.norse())):
        state, other, fired = None, None, 0.0
        for _ in range(50):
            x = 2 * torch.rand(8, 40, generator=generator) - 0.5
            out, state = ours(x, state)
            expected, other = twin(x, other)
            assert torch.equal(out, expected)
            assert torch.equal(state.v, other.v)
            fired += float(expected.mean()) / 50
        assert 0.05 < fired < 0.95
    snapped: Any = cell.norse(snap=True)
    k = float(snapped.p.tau_mem_inv) * snapped.dt * 4096
    assert k == pytest.approx(
        round(4096 * float(torch.sigmoid(torch.tensor(-0.7123)) if learned else 0.3)), abs=1e-3
    )


def test_a_norse_cell_that_hears_a_times_less_is_seens_neuron() -> None:
    x = clip(30, 200, seed=3).double()
    seens, norses = DecayCell(SEEN_NEURON).double(), BoxCell(SEEN_NEURON, 4 / 30).double()
    state, other, fired, differing = None, None, 0, 0
    for t in range(30):
        z, state = seens(x[:, t], state)
        same, other = norses(x[:, t] / 0.8, other)
        torch.testing.assert_close(other.peak, state.peak, rtol=0, atol=1e-6)  # 0.8 in float32
        fired, differing = fired + int(z.sum()), differing + int((z != same).sum())
    assert fired > 1000
    assert differing == 0
    weights = []
    for coefficient in (1.0, 0.8):
        torch.manual_seed(0)
        neuron = SEEN_NEURON.model_copy(update={"coefficient": coefficient})
        student = build_mskd_student(
            SMALL_MSKD.model_copy(update={"neuron": neuron, "snap": False})
        )
        weights.append(
            [one.detach() for name, one in student.named_parameters() if "branches" not in name]
        )
    assert len(weights[0]) == 8  # gates, join, two convolutions, two linear layers with biases
    for one, louder_one in list(zip(*weights, strict=True))[1:]:
        torch.testing.assert_close(one / 0.8, louder_one)


def test_seen_is_its_equations_step_by_step() -> None:
    torch.manual_seed(0)
    network = Seen(SMALL_SEEN).eval()
    with torch.no_grad():
        for layer in (
            *network.scales,
            network.join,
            network.second,
            network.third,
            network.hidden,
            network.head,
        ):
            layer.weight *= 3
    events, frames = clip(*EYES, seed=1), clip(*EYES, seed=2)
    with torch.no_grad():
        got = network(events, frames)
        static = network.stem(torch.cat([frames[:, 0], frames[:, -1]], 1))
        maps = [scale(static) for scale in network.scales]
        gates = torch.cat(
            [gate(one).flatten(1) for gate, one in zip(network.gates, maps, strict=True)], 1
        )
        shares = torch.exp(gates) / torch.exp(gates).sum(1, keepdim=True)

        def trunk(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat(
                [shares[:, i, None, None, None] * part for i, part in enumerate(parts)], 1
            )

        lent = (network.third(network.second(network.join(trunk(maps)))) > 0.3).float()
        v: dict[str, torch.Tensor] = {}
        seen: set[float] = set()

        def neuron(name: str, x: torch.Tensor) -> torch.Tensor:
            v[name] = 0.2 * v.get(name, torch.zeros(())) + x
            z = (v[name] > 0.3).float()
            v[f"peak {name}"], v[name] = v[name], v[name] * (1 - z)
            return z

        for t in range(STEPS):
            parts = [F.conv2d(events[:, t], s.weight, None, 2, s.padding) for s in network.scales]
            z = neuron("1", F.conv2d(trunk(parts), network.join.weight))
            z = neuron("2", F.conv2d(z, network.second.weight, None, 2, 1))
            z = neuron("3", F.conv2d(z, network.third.weight, None, 4, 1))
            heard = (z + lent).flatten(1)
            seen |= set(heard.flatten().tolist())
            neuron("5", network.head(neuron("4", network.hidden(heard))))
            torch.testing.assert_close(got.step_logits[:, t], v["peak 5"])
    assert seen == {0, 1, 2}  # what the linear layer hears is not binary
    assert all(0.02 < float(rate) < 0.98 for rate in got.rates)
    torch.testing.assert_close(got.logits, got.step_logits.mean(1))


def test_seens_convolutions_learn_through_the_lent_spikes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = Seen(SMALL_SEEN)
    cell = network.static_cell
    monkeypatch.setattr(cell, "forward", lambda x, state=None: (torch.zeros_like(x), None))
    network(clip(*EYES, seed=1), clip(*EYES, seed=2)).logits.square().mean().backward()
    learning = {
        name.split(".")[0] for name, one in network.named_parameters() if one.grad is not None
    }
    assert learning == {"hidden", "head"}


@pytest.mark.parametrize("readout", ["mean_membrane", "last_membrane", "mean_spike", "last_spike"])
def test_readouts_of_seen(readout: Any) -> None:
    torch.manual_seed(0)
    network = Seen(SMALL_SEEN.model_copy(update={"readout": readout})).eval()
    got = network(3 * clip(*EYES, seed=1), 3 * clip(*EYES, seed=2))
    values = got.step_logits if "membrane" in readout else (got.step_logits > 0.3).float()
    assert torch.equal(got.logits, values.mean(1) if "mean" in readout else values[:, -1])


def test_a_frozen_teacher_gives_logits_of_every_step() -> None:
    teacher = build_mskd_teacher(MskdTeacherSettings(seen=SMALL_SEEN)).eval().requires_grad_(False)
    assert isinstance(teacher, Seen)
    assert isinstance(
        build_mskd_teacher(MskdTeacherSettings(kind="frame_per_step", seen=SMALL_SEEN)),
        FramePerStep,
    )
    out = teacher(clip(*EYES), clip(*EYES))
    assert not out.logits.requires_grad
    assert (out.logits.shape, out.step_logits.shape) == ((4, 7), (4, STEPS, 7))


# --- EmotionKD


def test_attention_has_wide_heads_and_kerass_limits() -> None:
    torch.manual_seed(0)
    for init, limits in (("fans", (0.1021, 0.1021)), ("tf25", (0.0361, 0.0765))):
        attention = Attention(64, 8, 64, init)  # type: ignore[arg-type]
        attention.reset()
        for layer, limit in (
            (attention.query, limits[0]),
            (attention.value, limits[0]),
            (attention.out, limits[1]),
        ):
            assert float(layer.weight.abs().max()) == pytest.approx(limit, abs=2e-4)
            assert not layer.bias.any()
    x = torch.randn(2, 61, 64)
    heads = [
        layer(x).reshape(2, 61, 8, 64).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    ]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 61, 512)
    torch.testing.assert_close(attention(x), attention.out(mixed))


def test_first_weights_are_kerass() -> None:
    torch.manual_seed(0)
    student = EmotionStudent(EmotionSettings())
    kernel = student.head.over_time.weight
    assert float(kernel.abs().max()) == pytest.approx(math.sqrt(6 / (32 + 64 * 32)), rel=0.01)
    assert float(student.encoder.positions.abs().max()) == pytest.approx(0.05, rel=0.01)
    assert not any(
        one.any() for name, one in student.named_parameters() if name.endswith("over_time.bias")
    )
    norms = [m for m in student.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(norms) == 7
    both = sum(float(w.square().sum()) for w in (kernel, student.head.over_channels.weight))
    assert float(conv_l2(student)) == pytest.approx(1e-3 * both)


def test_a_fusion_reads_the_later_eeg_and_the_published_defect_is_an_option() -> None:
    parts = [clip(12, 8, seed=i) for i in range(4)]
    results = {}
    for defect in (False, True):
        torch.manual_seed(0)
        fusion = Fusion(SMALL_EMOTION.model_copy(update={"bug_compat_imf": defect})).eval()
        results[defect] = fusion(*parts)
        ea, ga, eb, gb = parts
        later = torch.cat([ea if defect else eb, gb], 1)
        assert torch.equal(
            results[defect], fusion.first(torch.cat([ea, ga], 1)) + fusion.second(later)
        )
    assert results[False].shape == (4, 24, 8)
    assert not torch.equal(results[False][:, :12], results[True][:, :12])
    assert torch.equal(results[False][:, 12:], results[True][:, 12:])


def test_scores_gate_their_own_input() -> None:
    x = clip(5, 8)
    for pool in (False, True):
        torch.manual_seed(0)
        gate = Score(8, pool).eval()
        share = gate(x) / x
        assert float(share.abs().max()) < 1
        assert (
            float(share.std(1).mean()) == pytest.approx(0.0, abs=1e-6)
            if pool
            else float(share.std(1).mean()) > 0.01
        )


def test_features_match_the_students() -> None:
    eeg, gsr = clip(4, 96), clip(1, 96)
    for how in ("mean_halves", "linear_tokens", "gsr_half"):
        torch.manual_seed(0)
        teacher = EmotionTeacher(SMALL_EMOTION.model_copy(update={"feat_proj": how})).eval()
        out = teacher(eeg, gsr)
        assert (out.features.shape, out.matched.shape) == ((4, 144), (4, 72))
        of_eeg, of_gsr = out.features[:, :72], out.features[:, 72:]
        if how == "mean_halves":
            assert torch.equal(out.matched, (of_eeg + of_gsr) / 2)
        if how == "gsr_half":
            assert torch.equal(out.matched, of_gsr)
    assert EmotionStudent(SMALL_EMOTION)(gsr).features.shape == (4, 72)


# --- runs over time


def test_layer_by_layer_is_step_by_step() -> None:
    torch.manual_seed(0)
    network = build_voting_network(SMALL_VOTES).eval()
    x = clip(STEPS, 2, 34, 34)
    ran = over_time(network, x, record=True)
    state, steps = None, []
    for t in range(STEPS):
        out, state = network(x[:, t], state)
        steps.append(out)
    assert torch.equal(ran.outputs, torch.stack(steps, 1))
    assert len(ran.rates) == len(ran.spikes) == len(ran.membranes) == 5
    assert torch.equal(ran.spikes[-1], ran.outputs)
    assert torch.equal(ran.spikes[0], (ran.membranes[0] > 0.4).float())
    assert float(ran.rates[0]) == pytest.approx(float(ran.spikes[0].mean()))
    assert 0.05 < float(ran.rates[0]) < 0.95


def test_dropout_keeps_its_mask_through_a_clip() -> None:
    torch.manual_seed(0)
    network = snn.SequentialState(ClipDropout(0.5), nn.Identity())
    ones = torch.ones(2, 5, 100)
    out = over_time(network.train(), ones).outputs
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert set(out.flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out, over_time(network, ones).outputs)
    assert torch.equal(over_time(network.eval(), ones).outputs, ones)


def test_votes_are_mean_rates_of_groups() -> None:
    spikes = torch.zeros(1, 4, 20)
    spikes[0, 0, :5] = 1  # 5 of 10 negative neurons in one step of four
    spikes[0, :, 10:13] = 1  # 3 of 10 positive ones in every step
    assert vote(spikes, 2).tolist() == [[pytest.approx(0.125), pytest.approx(0.3)]]


def test_pure_spikes_leave_the_float_frame_out() -> None:
    torch.manual_seed(0)
    pure = SMALL_VOTES.model_copy(update={"pure_spike": True})
    network = build_voting_network(pure).eval()
    x = (clip(STEPS, 2, 34, 34) > 1).float()
    got = votes(network, x, pure)
    assert got.step_logits.shape == (4, STEPS - 1, 2)
    assert torch.equal(got.logits, votes(network, x[:, 1:], SMALL_VOTES).logits)
    torch.testing.assert_close(got.step_logits.mean(1), got.logits)
    with pytest.raises(ValueError, match="no steps left"):
        votes(network, x[:, :1], pure)


def test_variants_of_table_i_differ_where_they_say() -> None:
    built = {
        name: build_voting_network(one.model_copy(update={"hidden": 4}))
        for name, one in TABLE_I.items()
    }
    learned = {
        name: sum(key.endswith(".w") for key, _ in net.named_parameters())
        for name, net in built.items()
    }
    assert learned == {name: 0 if name == "LIF" else 5 for name in TABLE_I}
    pools = {
        name: {type(m) for m in net if "Pool" in type(m).__name__} for name, net in built.items()
    }
    assert [name for name, kind in pools.items() if kind == {nn.MaxPool2d}] == [
        "PLIF, V_th 0.4, max-pool"
    ]
    thresholds = [
        float(next(m for m in net if isinstance(m, BoxCell)).v_th) for net in built.values()
    ]
    assert thresholds == pytest.approx([1, 1, 0.8, 0.4, 0.4, 0.4])
    cell = next(m for m in built["PLIF"] if isinstance(m, BoxCell))
    assert float(cell.get_parameter("w")) == 0.0  # -ln(tau - 1) at tau = 2


def test_the_gsr_student_hears_frames_and_sums_its_depths() -> None:
    settings = GsrStudentSettings(samples=48, hidden=5)
    frames = torch.arange(48.0).unfold(0, 32, 8).unsqueeze(0)
    assert frames.shape == (1, settings.steps, 32)
    torch.manual_seed(0)
    student = build_gsr_student(settings).eval()
    ran = over_time(student, frames / 16, record=True)
    for feature, kept in (("membrane", ran.membranes), ("spike", ran.spikes)):
        out = run_frames(student, frames / 16, settings.model_copy(update={"feature": feature}))
        assert torch.equal(out.features, (kept[1] + kept[2] + kept[3]).reshape(1, 15))
        assert torch.equal(out.logits, ran.outputs.mean(1))


# --- to the chip


def settled(network: snn.SequentialState, inputs: torch.Tensor, gain: float) -> snn.SequentialState:
    """Statistics of these inputs, linear layers larger, eval mode: every layer fires."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = 1.0
            if isinstance(module, nn.Linear):
                module.weight *= gain
        over_time(network.train(), inputs)
    return network.eval()


def events(*shape: int) -> torch.Tensor:
    return (torch.rand(2, 8, *shape, generator=torch.Generator().manual_seed(4)) < 0.1).float()


def signals(*shape: int) -> torch.Tensor:
    return torch.rand(2, 8, *shape, generator=torch.Generator().manual_seed(4))


VOTES_32 = SpikingEmotionsSettings(size_px=32, hidden=48, width=16, v_th=0.4, dropout=0.5)
EXPORTS: dict[str, tuple[Callable[[], snn.SequentialState], Any, tuple[int, ...], float, dict[str, Any]]] = {
    "MSKD student": (
        lambda: build_mskd_student(MskdStudentSettings(side_px=32, width=0.25, readout="li", norm=True)),
        signals, (3, 32, 32), 4 / 30, {"input_bits": 8, "input_units": 255.0, "input_kind": "graded"},
    ),
    "GSR student": (
        lambda: build_gsr_student(GsrStudentSettings()),
        signals, (32,), 0.0625, {"input_bits": 8, "input_units": 255.0, "input_kind": "graded"},
    ),
    "PLIF voters": (lambda: build_voting_network(VOTES_32), events, (2, 32, 32), 0.001, {"votes": 10}),
    "LIF voters": (
        lambda: build_voting_network(VOTES_32.model_copy(update={"neuron": "lif"})),
        events, (2, 32, 32), 0.001, {"votes": 10},
    ),
}  # fmt: skip


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("name", EXPORTS)
def test_students_are_certified_and_lowered(name: str, snap: bool) -> None:
    build, inputs, shape, dt_s, options = EXPORTS[name]
    torch.manual_seed(0)
    x = inputs(*shape)
    student = settled(build(), x, 3.0)
    form = chip_form(student, snap=snap)
    graph = to_nir(form, shape, dt_s, samples=x.numpy())
    certificate = Certificate.from_json(graph.metadata["certificate"])
    cells = sum(isinstance(module, BoxCell) for module in student)
    assert certificate.rewrites == {}  # nothing left to fold: every layer is its own node
    assert len(certificate.spikes) == cells >= 4
    if not snap:
        # The trained student is what was certified, but for batch-norms that now lie in the weights.
        ran = over_time(plain(student), x)
        state, outputs = None, []
        for t in range(x.shape[1]):
            out, state = form(x[:, t], state)
            outputs.append(out)
        torch.testing.assert_close(torch.stack(outputs, 1), ran.outputs, rtol=0, atol=1e-5)
    network = lower(graph, dt_s, **options)
    assert len(network.layers) == sum(isinstance(m, (BoxCell, ReadoutCell)) for m in student)
    trained = [m for m in student if isinstance(m, (BoxCell, ReadoutCell))]
    shares = [
        float(torch.sigmoid(m.w)) if hasattr(m, "w") else float(m.tau_mem_inv) * m.dt
        for m in trained
    ]
    assert [layer.neuron.v_decay for layer in network.layers] == [
        round(4096 * share) for share in shares
    ]


def test_what_no_chip_runs_is_refused_by_name() -> None:
    def form(**changes: Any) -> snn.SequentialState:
        return chip_form(build_mskd_student(SMALL_MSKD.model_copy(update=changes)))

    with pytest.raises(ValueError, match="'dynamic' depends on the image"):
        form(gate="dynamic", readout="li")
    with pytest.raises(ValueError, match="gives its membrane"):
        form(readout="membrane")
    with pytest.raises(ValueError, match="fires 'ge'"):
        chip_form(build_voting_network(SMALL_VOTES.model_copy(update={"fires": "ge"})))
    with pytest.raises(ExportError, match="gives more than one output"):
        to_nir(GsrRepeat(GsrRepeatSettings(network=SMALL_EMOTION)).eval(), (1, 96), 0.001)
    with pytest.raises(ExportError, match="no neurons of Norse stepped in it"):
        to_nir(
            build_gsr_student(SMALL_GSR.model_copy(update={"norm": "none"})).eval(), (32,), 0.0625
        )


def test_settings_are_frozen_and_checked() -> None:
    settings = SeenSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.side_px = 3
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: MskdStudentSettings(width=0.3), "is not whole"),
        (lambda: MskdStudentSettings(widht=0.5), "Extra inputs"),  # type: ignore[call-arg]
        (lambda: NeuronSettings(coefficient=1.0, learned=True), "no value of a sigmoid"),
        (lambda: NeuronSettings(coefficient=1.2), "less than or equal to 1"),
        (lambda: EmotionSettings(samples=1024), "give 125 tokens"),
        (lambda: EmotionSettings(samples=16), "tokens"),
        (lambda: GsrStudentSettings(samples=16), "choose a shorter one"),
        (lambda: SpikingEmotionsSettings(size_px=20), "leaves nothing"),
    ]
    for make, message in refused:
        with pytest.raises(ValidationError, match=message):
            make()
    with pytest.raises(ValueError, match="five pools need"):
        build_plif_fang(SpikingEmotionsSettings(size_px=24))
    with pytest.raises(ValueError, match="without the stem"):
        Seen(SeenSettings(channels=2))
    seen = Seen(SMALL_SEEN)
    with pytest.raises(ValueError, match="frames: shape"):
        seen(clip(*EYES), clip(2, 3, 18, 18))
    with pytest.raises(ValueError, match="frames: shape"):
        FramePerStep(SMALL_SEEN)(clip(*EYES), clip(2, 3, 18, 18))
    every = Seen(SMALL_SEEN.model_copy(update={"frames": "all", "steps": 2}))
    with pytest.raises(ValueError, match="frames='all' needs 2"):
        every(clip(*EYES), clip(*EYES))


def test_gates_have_the_published_size_and_a_softmax() -> None:
    gate = ScaleGate(64)
    assert parameters(gate) == 545
    assert (
        NeuronSettings(coefficient=0.8, v_th=0.3, surrogate="box", width=0.5, detach_reset=False)
        == SEEN_NEURON
    )
    copied = copy.deepcopy(gate).eval()
    assert copied(torch.ones(2, 64, 5, 5)).shape == (2, 1, 1, 1)
    assert np.isfinite(float(copied(torch.ones(1, 64, 5, 5))))
