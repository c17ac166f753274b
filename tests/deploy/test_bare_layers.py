"""Readouts without neurons, as slayer's Affine writes them, and registers that Lava has and hardware lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from knarr.cli import main
from knarr.deploy import DeployError, check, hardware_faults, read_net, run_on_lava, write_net
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout, compare, simulate


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    layers = (
        Dense("a", rng.integers(-60, 120, (6, 5)), Neuron(4096, 300, 20)),
        Dense("b", rng.integers(-100, 100, (3, 6)), Neuron(4096, 300, 20)),
    )
    path = tmp_path / "a.net"
    write_net(ChipNetwork(layers, InputCoding((5,)), Readout("spikes")), path)
    with h5py.File(path, "a") as file:
        del file["layer/2/neuron"]
        del file.attrs["knarr_manifest"]
    return path


def test_lava_and_simulator_give_a_bare_readout_the_same_voltages(bare: Path) -> None:
    """Of payloads with a sign, which no file says of its input and netx takes as they are."""
    network = read_net(str(bare), input_bits=4)
    assert network.readout.kind == "voltage"
    rng = np.random.default_rng(1)
    inputs = rng.integers(-15, 16, (2, 12, 5)) * (rng.random((2, 12, 5)) < 0.5)
    ours = simulate(network, inputs, record=("output", "spikes", "v"))
    lava = run_on_lava(bare, inputs, record=("output", "spikes", "v"), input_bits=4, timeout_s=90)
    assert compare(lava, ours) == []
    # It adds up for ever: no step forgets, and no spike resets.
    sent = ours.spikes["dense_1"].astype(np.int64)
    last = (sent @ network.layers[1].weight_int.T << 6).cumsum(axis=1)
    assert np.array_equal(ours.v["dense_2"], last)
    assert np.ptp(ours.v["dense_2"]) > 0


def test_payloads_of_a_file_that_does_not_say_what_it_is_fed(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.array([[[3, -2, 0, 1, -3]] * 4]))
    data = ("--data", str(tmp_path / "x.npy"))
    for verb in ("simulate", "energy"):
        for bits, status, said in (((), 2, "--input-bits"), (("--input-bits", "2"), 0, "")):
            with pytest.raises(SystemExit) as caught:
                main([verb, str(bare), *data, *bits])
            assert int(caught.value.code or 0) == status
            assert said in capsys.readouterr().err
    ours = tmp_path / "ours.net"
    network = read_net(bare, input_bits=2)
    write_net(replace(network, layers=network.layers[:1], readout=Readout("spikes")), ours)
    assert read_net(ours).input.limits == (-3, 3)
    with pytest.raises(DeployError, match=r"says itself that it is fed 2-bit inputs; leave it out"):
        read_net(ours, input_bits=8)


def test_rules_of_hardware_are_warnings_where_one_only_simulates_or_counts(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [one.rule for one in hardware_faults(read_net(bare))] == ["decays_fit_registers"] * 2
    assert {one.severity for one in check(bare) if one.rule == "bare_layers_are_known"} == {
        "warning"
    }
    np.save(tmp_path / "x.npy", np.ones((1, 4, 5), dtype=np.uint8))
    for verb, status in (("simulate", 0), ("energy", 0), ("verify", 1)):
        data = () if verb == "verify" else ("--data", str(tmp_path / "x.npy"))
        with pytest.raises(SystemExit) as caught:
            main([verb, str(bare), *data])
        printed = capsys.readouterr()
        assert int(caught.value.code or 0) == status
        assert "i_decay 0, hardware" in " ".join((printed.out + printed.err).split())
