"""Files that lava-dl slayer exports from its own blocks: read, simulated and run on Lava as they are.

slayer's own float emulation is a third, independent witness: shifted by its one step per block it fires alike. It lies in a
folder made for these tests, which is fetched the first time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from knarr.deploy import DeployError, check, install_lava, read_net, run_on_lava, write_net
from knarr.hw_sim import Conv, Dense, Recurrent, compare, simulate
from knarr.hw_sim.recording import INPUT_LAYER

EXPORT = Path(__file__).with_name("slayer_export.py")
SLAYER = Path(__file__).parents[2] / "build" / "slayer"
ALL = ("output", "spikes", "v", "u")
LIMIT_S = 120.0
NETWORKS = ("dense", "conv", "loops", "driven", "own_decays")


@pytest.fixture(scope="module")
def slayer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of exported networks."""
    install_lava(SLAYER, slayer=True)
    folder = tmp_path_factory.mktemp("slayer")
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-I", str(EXPORT), str(folder), str(SLAYER)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=LIMIT_S, check=False
        )
    assert done.returncode == 0, (folder / "log.txt").read_text()[-2000:]
    return folder


def load(folder: Path, name: str) -> tuple[Path, npt.NDArray[Any], list[npt.NDArray[Any]]]:
    """The file, its inputs, and what slayer's blocks sent."""
    with np.load(folder / f"{name}.npz") as arrays:
        own = [arrays[f"spikes/{i}"] for i in range(len(arrays.files) - 1)]
        return folder / f"{name}.net", arrays["inputs"], own


def test_every_kind_is_among_them(slayer: Path) -> None:
    seen: set[str] = set()
    for name in NETWORKS:
        network = read_net(slayer / f"{name}.net")
        for layer in network.layers:
            seen |= {type(layer).__name__} | ({"bias"} if layer.bias_int is not None else set())
            seen |= {"delay"} if isinstance(layer, Dense) and layer.delay_int is not None else set()
            seen |= {type(layer.neuron.i_decay).__name__}
            seen |= {"groups"} if isinstance(layer, Conv) and layer.groups > 1 else set()
            seen |= {"dilation"} if isinstance(layer, Conv) and layer.dilation == (1, 2) else set()
            if layer.bias_int is not None:
                assert layer.bias_int.any()
            if isinstance(layer, Dense) and layer.delay_int is not None:
                assert len(np.unique(layer.delay_int)) > 2
        seen |= {network.readout.kind} | ({"driven"} if network.input.neuron is not None else set())
    assert seen == {
        "Dense", "Conv", "Recurrent", "bias", "delay", "groups", "dilation", "spikes", "voltage", "driven",
        "int", "ndarray",
    }  # fmt: skip
    conv, recurrent = (
        read_net(slayer / "conv.net").layers[0],
        read_net(slayer / "loops.net").layers[1],
    )
    assert isinstance(conv, Conv)
    assert (conv.weight_int.shape, conv.stride, conv.padding) == ((4, 2, 3, 2), (2, 1), (1, 0))
    assert isinstance(recurrent, Recurrent)
    assert recurrent.recurrent_int.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_lava_runs_it_as_the_simulator_does(name: str, slayer: Path) -> None:
    path, inputs, _ = load(slayer, name)
    assert [str(violation) for violation in check(path) if violation.severity == "error"] == []
    network = read_net(path)
    ours = simulate(network, inputs, record=ALL)
    lava = run_on_lava(path, inputs, record=ALL, timeout_s=LIMIT_S)
    assert [str(divergence) for divergence in compare(lava, ours)] == []
    names = {layer.name for layer in network.layers}
    names |= {INPUT_LAYER} if network.input.neuron is not None else set()
    assert set(lava.u) == set(lava.v) == set(lava.spikes) == names
    silent = network.layers[-1].name if network.readout.kind == "voltage" else None
    for layer in names:
        assert len(np.unique(lava.v[layer])) > 10
        assert lava.spikes[layer].sum() > 20 or layer == silent


@pytest.mark.parametrize("name", NETWORKS)
def test_slayer_itself_fires_alike(name: str, slayer: Path) -> None:
    path, inputs, own = load(slayer, name)
    network = read_net(path)
    ours = simulate(network, inputs, record=("spikes", "v"))
    names = ([INPUT_LAYER] if network.input.neuron is not None else []) + [
        layer.name for layer in network.layers
    ]
    assert len(own) == len(names)
    for level, (layer, sent) in enumerate(zip(names, own, strict=True), start=1):
        readout = network.readout.kind == "voltage" and level == len(names)
        late = level - 1 if readout else level  # slayer's readout does not add its step
        expected = (
            ours.v[layer] / 4096 if readout else ours.spikes[layer]
        )  # slayer holds v in units of 2**12
        np.testing.assert_array_equal(sent[:, late:], expected[:, :-late], err_msg=layer)
        assert sent[:, late:].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, slayer: Path, tmp_path: Path) -> None:
    network = read_net(slayer / f"{name}.net")
    write_net(network, tmp_path / "again.net")
    assert read_net(tmp_path / "again.net") == network


def test_a_transform_of_the_input_is_a_warning(slayer: Path) -> None:
    found = [violation for violation in check(slayer / "driven.net") if violation.layer == "input"]
    assert [(violation.rule, violation.severity) for violation in found] == [
        ("nothing_is_unread", "warning")
    ]
    assert (
        "/layer/0 has weight and bias, which netx applies to nothing; apply them to the inputs"
        in found[0].message
    )


REFUSED = {
    "pool": (
        "types_are_known",
        r"layer 'pool_2': /layer/2 is of type 'pool', which is not supported",
    ),
    "conv_delay": (
        "delays_are_kept",
        r"layer 'conv_1': /layer/1/delay is a conv delay, which netx ignores",
    ),
    "recurrent_delay": (
        "delays_are_kept",
        r"/layer/0/delay in dense_rec makes netx drop the weight exponent",
    ),
    "batch_norm_scale": (
        "nothing_is_unread",
        r"/layer/0/neuron/weight_exp is \[[1-9]\.0\], allowed 0",
    ),
    "graded": ("nothing_is_unread", r"/layer/0/neuron/gradedSpike is \[True\], allowed 0"),
    "full_decay": ("decays_fit_registers", r"layer 'dense_0': v_decay 4096, hardware has 0..4095"),
    "slow": ("decays_fit_registers", r"layer 'dense_0': i_decay 0, hardware has 1..4096"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_netx_would_not_run_is_refused(name: str, slayer: Path) -> None:
    rule, message = REFUSED[name]
    path, inputs, _ = load(slayer, f"refused_{name}")
    errors = [violation for violation in check(path) if violation.severity == "error"]
    assert {violation.rule for violation in errors} == {rule}
    with pytest.raises(DeployError, match=message) as caught:
        run_on_lava(path, inputs)
    assert "\n" not in str(caught.value)


def test_a_batch_norm_scale_is_lost_indeed(slayer: Path, tmp_path: Path) -> None:
    """Without the factor that netx does not read, slayer's own spikes are others."""
    path, inputs, own = load(slayer, "refused_batch_norm_scale")
    path = Path(shutil.copy(path, tmp_path))
    with h5py.File(path, "a") as file:
        exponent = float(file["layer/0/neuron/weight_exp"][0])
        del file["layer/0/neuron/weight_exp"]
    assert exponent >= 1
    spikes = simulate(read_net(path), inputs, record=("spikes",)).spikes["dense_0"]
    assert (spikes[:, :-1] != own[0][:, 1:]).sum() > 20
