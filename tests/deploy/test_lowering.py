"""Graph to integers, integers to file, file to integers: literal registers, exact folding, refusals with a cure."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import norse.torch as snn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import DT_S, chain, cuba, li, lif
from netx_weights import netx_dense_weights

from knarr.deploy import DeployError, check, lower, read_net, write_net
from knarr.deploy.rules import netx_runs_exactly
from knarr.export import graph_hash, step_nir, to_nir
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
    simulate,
)
from knarr.hw_sim.engines.reference import synaptic_sum

WEIGHT = np.array([[0.5, -0.25, 0.1], [1.0, 0.0, -1.0]])


def test_lif_registers_by_hand() -> None:
    graph = chain((3,), (2,), fc=nir.Affine(WEIGHT, np.array([0.2, -0.4])), n=lif((2,)))
    (layer,) = lower(graph, DT_S).layers
    # g = dt/tau = 1/4, largest g*W = 1/4, so S is at most 127 / (1/4) = 508. All of it is made of
    # 0.05 / 4 = 1/80, and 4 * 80 is the largest power of two of it that fits.
    assert layer.weight_int.tolist() == [[40, -20, 8], [80, 0, -80]]
    assert layer.bias_int is not None
    assert layer.bias_int.tolist() == [16, -32]  # 320 * 0.05, 320 * -0.1
    assert (layer.neuron.i_decay, layer.neuron.v_decay, layer.neuron.vth_int) == (4096, 1024, 320)
    assert (layer.name, layer.neuron.name, layer.scale) == ("fc", "n", pytest.approx(64 * 320))


def test_cuba_and_readout_registers_by_hand() -> None:
    graph = chain(
        (3,),
        (1,),
        a=nir.Linear(WEIGHT),
        n=cuba((2,)),
        b=nir.Linear(np.array([[0.3, -0.6]])),
        out=li((1,)),
    )
    first, last = lower(graph, DT_S, input_bits=4).layers
    # g = r * w_in * (1/4) * (1/2) = 1/4 again
    assert (first.weight_int[1].tolist(), first.neuron.i_decay, first.neuron.v_decay) == (
        [80, 0, -80],
        2048,
        1024,
    )
    assert (last.weight_int.tolist(), last.neuron.v_decay, last.neuron.vth_int) == (
        [[32, -64]],
        512,
        NON_SPIKING_VTH,
    )
    network = lower(graph, DT_S, input_bits=4)
    assert (network.input.bits, network.readout.kind, network.dt_s) == (4, "voltage", DT_S)
    assert network.graph_hash == graph_hash(graph)


def pool(size: int) -> nir.AvgPool2d:
    return nir.AvgPool2d(np.array([size] * 2), np.array([size] * 2), np.array([0, 0]))


def conv_node(weight: np.ndarray, side: int, stride: int = 1, padding: int = 0) -> nir.Conv2d:
    two = np.ones(2, dtype=int)
    return nir.Conv2d(
        (side, side), weight, stride * two, padding * two, two, 1, np.zeros(len(weight))
    )


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 1, 0), (2, 1, 1), (2, 2, 1), (3, 1, 1)]
)
def test_pool_folds_exactly_into_a_convolution(size: int, stride: int, padding: int) -> None:
    rng = np.random.default_rng(0)
    side = 4 * size
    weight = rng.integers(-127, 128, (5, 2, 3, 3)) / 127
    weight[0, 0, 0, 0] = 1.0
    inside = 1 + (4 + 2 * padding - 3) // stride
    graph = chain(
        (2, side, side), (5, inside, inside), first=conv_node(np.ones((2, 2, 1, 1)), side), n0=lif((2, side, side)),
        p=pool(size), second=conv_node(weight, 4, stride, padding), n1=lif((5, inside, inside)),
    )  # fmt: skip
    layer = lower(graph, DT_S).layers[1]
    assert isinstance(layer, Conv)
    events = (rng.random((6, 2, side, side)) < 0.4).astype(np.int64)
    summed = events.reshape(6, 2, 4, size, 4, size).sum(
        axis=(3, 5)
    )  # sum-pooling without a pooling routine
    small = torch.from_numpy(np.rint(127 * weight)).double()
    expected = F.conv2d(
        torch.from_numpy(summed).double(), small, stride=stride, padding=padding
    ).numpy()
    assert np.abs(expected).max() > 100
    assert np.array_equal(synaptic_sum(layer, events), expected)


@pytest.mark.parametrize("side", [4, 5])
def test_pool_folds_exactly_into_a_linear_layer(side: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (3, 8)) / 127
    weight[0, 0] = 1.0
    graph = chain(
        (2, side, side), (3,), first=conv_node(np.ones((2, 2, 1, 1)), side), n0=lif((2, side, side)), p=pool(2),
        f=nir.Flatten({"input": np.array([2, 2, 2])}, 0, -1), fc=nir.Linear(weight), n1=lif((3,)),
    )  # fmt: skip
    layer = lower(graph, DT_S).layers[1]
    events = (rng.random((6, 2, side, side)) < 0.4).astype(np.int64)
    cells = events[:, :, :4, :4].reshape(6, 2, 2, 2, 2, 2).sum(axis=(3, 5)).reshape(6, 8)
    expected = cells @ np.rint(127 * weight).astype(np.int64).T
    assert np.abs(expected).max() > 100
    assert np.array_equal(synaptic_sum(layer, events), expected)


def test_chip_follows_the_float_network(student: snn.SequentialState) -> None:
    x = (np.random.default_rng(5).random((40, 20, 2, 18, 18)) < 0.2).astype(np.uint8)
    graph = to_nir(student, (2, 18, 18), DT_S, samples=x)
    network = lower(graph, DT_S)
    chip = simulate(network, x, record=("output", "spikes"))
    # The same integers as floats again: what is left between the two is the truncation of the chip's decays.
    floats = copy.deepcopy(graph)
    for layer, gain in zip(
        network.layers[:2], (1 / 4, 1 / 4), strict=True
    ):  # LIF 1/4; CubaLIF w_in 2 * 1/4 * 1/2
        synapse, neuron = floats.nodes[layer.name], floats.nodes[layer.neuron.name]
        assert layer.scale is not None
        scale = layer.scale / 64
        window = 1 if layer.name == "conv_0" else 2  # undo the folded pool
        synapse.weight = window**2 * layer.weight_int[:, :, ::window, ::window] / (scale * gain)
        if layer.bias_int is not None:
            synapse.bias = layer.bias_int / (scale * gain)
        neuron.v_threshold = np.full_like(neuron.v_threshold, layer.neuron.vth_int / scale)
    stepped, original = step_nir(floats, x, DT_S), step_nir(graph, x, DT_S)
    for layer, share in zip(network.layers[:2], (0.005, 0.05), strict=True):
        fired = stepped.spikes[layer.neuron.name]
        assert fired.sum() > 1000
        # Measured: 12 of 7,763 spikes in the first layer, 35 of 1,214 in the second, which hears the first's.
        assert (chip.spikes[layer.name] != fired).sum() < share * fired.sum()
    assert (
        network.readout.decide(chip.output) == original.output.sum(axis=1).argmax(axis=1)
    ).mean() >= 0.9


def branch(graph: nir.NIRGraph) -> nir.NIRGraph:
    graph.edges.append(("input", "output"))
    return graph


FC = {"fc": nir.Linear(WEIGHT)}
BIASED = nir.Affine(WEIGHT, np.ones(2))


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (
            chain((3,), (2,), **FC, n=lif((2,), v_leak=np.full(2, 0.1))),
            {},
            "node 'n': rests at v_leak, 0.1 V above v_reset",
        ),
        (
            chain((3,), (2,), **FC, n=lif((2,), v_reset=np.full(2, -0.1))),
            {},
            "node 'n': rests at v_leak, 0.1 V above v_reset",
        ),
        (
            chain((3,), (2,), fc=BIASED, n=cuba((2,))),
            {"input_bits": 4},
            "node 'fc': its bias passes the synaptic filter of 'n'",
        ),
        (chain((3,), (2,), **FC), {}, "node 'fc': no neuron follows it"),
        (
            chain((3,), (3,), t=nir.Threshold(np.ones(3))),
            {},
            "node 't': Threshold cannot stand here",
        ),
        (chain((3,), (2,), fc=nir.Linear(0 * WEIGHT), n=lif((2,))), {}, "all its weights are 0"),
        (
            chain((3,), (2,), **FC, n=lif((2,), v_threshold=np.zeros(2))),
            {},
            "v_threshold lies 0 above v_reset",
        ),
        (chain((3,), (2,), **FC, n=lif((2,), tau=np.full(2, 100.0))), {"ok": True}, ""),
        (
            branch(chain((3,), (3,), fc=nir.Linear(np.eye(3)), n=lif((3,)))),
            {},
            "its output is the sum of",
        ),
        (chain((3,), (2,), **FC, n=lif((2,))), {"chip": "loihi9"}, "chip: 'loihi9'"),
        (chain((3,), (2,), **FC, n=lif((2,))), {"weight_bits": 9}, "weight_bits: 9, allowed 2..8"),
        (chain((3,), (2,), **FC, n=lif((2,))), {"calibration": np.zeros(1)}, "calibration"),
        (
            chain((3,), (1,), **FC, n=li((2,)), f2=nir.Linear(np.ones((1, 2))), m=lif((1,))),
            {},
            "'n': never fires",
        ),
    ],
)
def test_lowering_refuses_by_name(
    graph: nir.NIRGraph, options: dict[str, Any], message: str
) -> None:
    if options.pop("ok", False):
        assert lower(graph, DT_S).layers[0].neuron.v_decay == 0  # an integrator: no leak at all
        return
    with pytest.raises(DeployError, match=message) as caught:
        lower(graph, DT_S, **options)
    assert "\n" not in str(caught.value)


NEURON = Neuron(2048, 512, 100, "n")


def small_network() -> ChipNetwork:
    rng = np.random.default_rng(0)
    conv = Conv(
        "conv", rng.integers(-100, 101, (4, 1, 3, 2), dtype=np.int32), NEURON, (2, 7, 8), (2, 1), (1, 0), (1, 2), 2,
        np.arange(4, dtype=np.int32) - 2, 3.5,
    )  # fmt: skip
    width = int(np.prod(conv.output_shape))
    dense = Dense(
        "fc",
        rng.integers(-100, 101, (3, width), dtype=np.int32),
        replace(NEURON, vth_int=NON_SPIKING_VTH, name="li"),
    )
    return ChipNetwork((conv, dense), InputCoding((2, 7, 8), 4), Readout("voltage"), 0.002, "abc")


def test_file_round_trip_keeps_every_field(tmp_path: Path) -> None:
    network, path = small_network(), tmp_path / "a.net"
    write_net(network, path)
    again = read_net(path)
    assert (again.input, again.readout, again.dt_s, again.graph_hash) == (
        network.input,
        network.readout,
        0.002,
        "abc",
    )
    for ours, theirs in zip(network.layers, again.layers, strict=True):
        assert type(ours) is type(theirs)
        for field, value in vars(ours).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(value, getattr(theirs, field))
            else:
                assert getattr(theirs, field) == value
    manifest = json.loads((tmp_path / "a.net.json").read_text())
    assert [layer["name"] for layer in manifest["layers"]] == ["conv", "fc"]
    with h5py.File(path) as file:
        assert [file[f"layer/{i}/type"][()] for i in range(4)] == [
            b"input",
            b"conv",
            b"flatten",
            b"dense",
        ]


def test_a_slayer_style_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "foreign.net"
    with h5py.File(path, "w") as file:
        file["layer/0/type"], file["layer/0/shape"] = np.array([b"input"]), np.array([3, 1, 1])
        group = file.create_group("layer/1")
        group["type"], group["shape"] = np.array([b"dense"]), np.array([2, 1, 1])
        group["weight"] = np.array([[2.0, -4.0, 6.0], [8.0, 10.0, -12.0]], dtype=np.float32)
        for key, value in {
            "type": np.array([b"LOIHI"]),
            "iDecay": 1024,
            "vDecay": 128,
            "vThMant": 80,
        }.items():
            group[f"neuron/{key}"] = value
    network = read_net(path)
    assert network.input == InputCoding((3,))
    assert network.layers[0].weight_int.tolist() == [[2, -4, 6], [8, 10, -12]]
    assert (network.layers[0].neuron.i_decay, network.dt_s) == (1024, None)


def put(key: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("layer", None), "no /layer group"),
        (put("layer/1", None), "without gaps"),
        (
            put("layer/1/type", b"mystery"),
            "layer 'mystery_1': /layer/1 is of type 'mystery', which is unknown",
        ),
        (
            put("layer/1/type", b"dense_rec"),
            "layer 'conv': /layer/1 has no weight_rec.* and 3 more",
        ),
        (put("layer/3/type", b"dense_rec"), "layer 'fc': /layer/3 has no weight_rec"),
        (put("layer/2/type", b"pool"), "type 'pool', which is not supported"),
        (
            put("layer/1/delay", 1),
            "layer 'conv': /layer/1/delay is a conv delay, which netx ignores",
        ),
        (
            put("layer/3/delay", 63),
            "layer 'fc': /layer/3/delay spans 63..63, allowed 0..62, netx clamps",
        ),
        (put("layer/3/delay", np.ones((2, 2), dtype=np.int64)), "/layer/3/delay is of shape"),
        (put("layer/1/weight", None), "/layer/1 has no weight;"),
        (put("layer/1/weight", np.full((4, 1, 3, 2), 0.5)), "weight is not made of integers"),
        (put("layer/1/neuron/iDecay", 409.5), "iDecay must be one integer"),
        (put("layer/1/neuron/iDecay", 5000), "iDecay 5000, hardware has 1..4096"),
        (put("layer/1/neuron/refDelay", 2), "refDelay is \\[2\\], allowed 1"),
        (put("layer/1/neuron", None), "no neuron group"),
        (put("layer/1/neuron/type", b"SDNN"), "neuron type 'SDNN'"),
        (put("layer/0/shape", np.array([2, 9, 8])), "shape says"),
        (put("layer/0/neuron/type", b"CUBA"), "/layer/0/neuron has no iDecay"),
        (put("layer/1/type", b"input"), "a second input"),
        (put("layer/2/type", b"flat"), "type 'flat', which is unknown"),
        (put("layer/3/weight", np.ones((3, 5), dtype=np.int32)), "has 5 inputs"),
    ],
)
def test_malformed_files_are_refused_in_one_line(
    change: Callable[[h5py.File], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.net"
    write_net(small_network(), path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(DeployError, match=message) as caught:
        read_net(path)
    assert "\n" not in str(caught.value)
    assert "a.net" in str(caught.value)


def dense_network(weight: object, **neuron: int) -> ChipNetwork:
    layer = Dense("fc", np.array(weight, dtype=np.int32), replace(NEURON, **neuron))
    return ChipNetwork((layer,), InputCoding((layer.in_features,)), Readout("spikes"))


def rules(network: ChipNetwork) -> set[str]:
    return {violation.rule for violation in check(network)}


def test_rules_at_their_boundaries() -> None:
    assert rules(dense_network([[127, -128]])) == set()
    assert rules(dense_network([[129, -128]])) == {"weights_fit_8_bits"}
    assert rules(dense_network([[254, -256]])) == set()
    assert "weights_fit_8_bits" in rules(dense_network([[256, -256]]))
    assert rules(dense_network([[0, 0]])) == {"weights_survive_netx"}
    assert rules(dense_network([[1, -1]], i_decay=1, v_decay=1)) == {"states_fit_registers"}
    assert rules(dense_network([[1, 0]], i_decay=1, v_decay=0)) == set()
    assert rules(dense_network([[1, -1]], i_decay=0)) == {
        "decays_fit_registers",
        "states_fit_registers",
    }
    assert rules(dense_network([[1, -1]], v_decay=4096)) == {"decays_fit_registers"}
    assert rules(dense_network([[1, -1]], vth_int=2**17 - 1)) == set()
    assert rules(dense_network([[1, -1]], vth_int=2**17)) == {"thresholds_fit_registers"}
    assert (
        rules(dense_network([[7, -1] + [127] * 257 + [121]])) == set()
    )  # 127 * 257 + 121 + 7 = 2**15 - 1
    assert rules(dense_network([[8, -1] + [127] * 257 + [121]])) == {"sums_fit_accumulator"}
    for bias, broken in ((4095, set()), (-4096, {"biases_fit_registers"})):
        layer = replace(dense_network([[1, -1]]).layers[0], bias_int=np.array([bias]))
        assert rules(ChipNetwork((layer,), InputCoding((2,)), Readout("spikes"))) == broken


def test_netx_replay_gives_the_documented_rows() -> None:
    assert netx_dense_weights(np.array([[3, -5], [255, -1]]))[1, 0] == 254  # clipped
    assert netx_dense_weights(np.array([[-4, -3]])).tolist() == [[-3, -3]]
    assert netx_dense_weights(np.array([[-4, -4]])).tolist() == [[0, 0]]
    assert netx_dense_weights(np.array([[300, 4]])).tolist() == [[0, 0]]
    assert netx_dense_weights(np.zeros((2, 2), dtype=int)) is None
    for exact in ([[3, -5], [127, -128]], [[1, 255]], [[-3, -5]], [[253, -255]]):
        assert netx_runs_exactly(np.array(exact))
    for wrong in (
        [[-4, -3]],
        [[0, -4, -3, -4], [-4, -4, -1, -3]],
        [[300, 4]],
        [[0, -129, -130, -4]],
        [[0, 0]],
    ):
        assert not netx_runs_exactly(np.array(wrong))


def test_a_broken_rule_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    path.write_text("old")
    with pytest.raises(
        DeployError, match=r"a\.net: not written, error: layer 'fc': weights -300\.\.1"
    ):
        write_net(dense_network([[1, -300]]), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- loops, and graphs that no exporter would write


def recurrent_graph() -> nir.NIRGraph:
    torch.manual_seed(0)
    parameters = snn.LIFParameters(
        tau_syn_inv=torch.tensor(512.0), tau_mem_inv=torch.tensor(256.0), v_th=torch.tensor(0.5)
    )
    cell = snn.LIFRecurrentCell(6, 12, parameters, dt=DT_S)
    return to_nir(snn.SequentialState(cell).eval(), (6,), DT_S)


def test_a_recurrent_cell_becomes_a_recurrent_layer() -> None:
    graph = recurrent_graph()
    network = lower(graph, DT_S)
    (layer,) = network.layers
    assert isinstance(layer, Recurrent)
    assert (layer.name, layer.neuron.name) == ("lif_0_in", "lif_0")
    assert (layer.neuron.i_decay, layer.neuron.v_decay) == (
        round(4096 * 0.512),
        round(4096 * 0.256),
    )
    w, back = graph.nodes["lif_0_in"].weight, graph.nodes["lif_0_rec"].weight
    largest = max(np.abs(w).max(), np.abs(back).max())
    assert np.array_equal(layer.weight_int, np.rint(127 * w / largest))
    assert np.array_equal(layer.recurrent_int, np.rint(127 * back / largest))
    x = (np.random.default_rng(1).random((40, 60, 6)) < 0.4).astype(np.int64)
    floats, chip = (
        step_nir(graph, x, DT_S).spikes["lif_0"],
        simulate(network, x, record=("spikes",)).spikes["lif_0_in"],
    )
    assert floats.mean() > 0.02
    cut = ChipNetwork(
        (Dense("lif_0_in", layer.weight_int, layer.neuron),), network.input, network.readout
    )
    without = simulate(cut, x, record=("spikes",)).spikes["lif_0_in"]
    # Rounded weights in a loop drift apart; they follow far better than a chip without the loop.
    assert np.mean(floats != chip) < 0.35 * np.mean(floats != without)
    assert abs(floats.mean() - chip.mean()) < 0.05 * floats.mean()


def plain(**changes: Any) -> nir.NIRGraph:
    one = np.ones(3)
    fields = {
        "tau": 0.004 * one,
        "r": one,
        "v_leak": 0 * one,
        "v_threshold": one,
        "v_reset": 0 * one,
        **changes,
    }
    nodes = {
        "input": nir.Input({"input": np.array([2])}), "fc": nir.Linear(np.ones((3, 2))), "lif": nir.LIF(**fields),
        "output": nir.Output({"output": np.array([3])}),
    }  # fmt: skip
    return nir.NIRGraph(
        nodes, [("input", "fc"), ("fc", "lif"), ("lif", "output")], type_check=False
    )


def cycle() -> nir.NIRGraph:
    """Two layers of which the second is heard by the first."""
    graph = plain()
    graph.nodes["more"] = nir.Linear(np.ones((3, 3)))
    graph.nodes["last"] = plain().nodes["lif"]
    graph.nodes["again"] = nir.Linear(np.ones((3, 3)))
    graph.edges = [edge for edge in graph.edges if edge != ("lif", "output")]
    graph.edges += [("lif", "more"), ("more", "last"), ("last", "output")]
    graph.edges += [("last", "again"), ("again", "lif")]
    return graph


def pooled(size: int) -> nir.NIRGraph:
    graph = plain()
    graph.nodes["input"] = nir.Input({"input": np.array([1, 2, 2])})
    graph.nodes["pool"] = nir.AvgPool2d(*(np.array([size, size]),) * 2, np.array([0, 0]))
    graph.edges = [("input", "pool"), ("pool", "fc"), ("fc", "lif"), ("lif", "output")]
    return graph


@pytest.mark.parametrize(
    ("graph", "options", "message"),
    [
        (cycle(), {}, "node 'again': closes a loop into 'lif' that a chip layer does not have"),
        (plain(tau=np.zeros(3)), {}, "node 'lif': tau is 0 s; a time constant is above 0"),
        (plain(tau=np.full(3, np.nan)), {}, "node 'lif': tau holds something else than finite"),
        (plain(v_threshold=np.full(3, np.inf)), {}, "v_threshold holds something else"),
        (plain(), {"input_bits": 0}, "input: 0 bits, allowed 1..16"),
        (plain(), {"input_bits": 17}, "input: 17 bits"),
        (pooled(3), {}, r"node 'pool': window \(3, 3\) is larger than"),
        (pooled(2), {}, r"node 'fc': receives \(1, 1, 1\)"),
    ],
)
def test_hand_made_faults_are_deploy_errors(
    graph: nir.NIRGraph, options: Any, message: str
) -> None:
    with pytest.raises(DeployError, match=message) as caught:
        lower(graph, DT_S, **options)
    assert "\n" not in str(caught.value)


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    write_net(small_network(), tmp_path / "a.net")
    time.sleep(1.1)  # HDF5 would note times in whole seconds
    write_net(small_network(), tmp_path / "b.net")
    for end in ("net", "net.json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()


@pytest.mark.parametrize(
    ("asked", "bits", "kind", "lowest", "limits"),
    [
        (None, 8, "events", 0, (-255, 255)),  # a payload goes as it is, whatever the calibration held
        (False, 8, "events", 0, (0, 255)),
        (None, 1, "events", 0, (0, 1)),
        (None, 1, "events", -1, (-1, 1)),
        (True, 1, "events", 0, (-1, 1)),
        (None, 1, "rate", 0, (0, 1)),
    ],
)  # fmt: skip
def test_inputs_have_a_sign_where_the_chip_takes_it_as_it_is(
    asked: bool | None, bits: int, kind: Any, lowest: int, limits: tuple[int, int]
) -> None:
    drawn = np.random.default_rng(3).integers(lowest, 2, (4, 20, 3))
    network = lower(
        chain((3,), (2,), **FC, n=lif((2,), r=np.full(2, 4.0))), DT_S, input_bits=bits, input_kind=kind, input_signed=asked, calibration=drawn
    )  # fmt: skip
    assert network.input.limits == limits
    if limits[0] < 0:
        assert simulate(network, -drawn).output.shape == (4, 20, 2)
