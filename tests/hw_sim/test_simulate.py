"""`simulate` as people use it: bad input, long runs, many samples, Ctrl-C, and the command around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from knarr.cli import main
from knarr.deploy import DeployError, read_net, write_net
from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recurrent,
    compare,
    load_recording,
    simulate,
    simulation,
)

Call = Callable[..., tuple[int, str, str]]
ENGINES = ("auto", "torch", "reference")
BOTH = ("output", "spikes", "u", "v")


def conv_network(bits: int = 1) -> ChipNetwork:
    rng = np.random.default_rng(0)
    return ChipNetwork(
        (
            Conv("conv", rng.integers(-60, 64, (8, 2, 3, 3)), Neuron(1024, 128, 150), (2, 8, 8)),
            Dense("fc", rng.integers(-60, 64, (5, 288)), Neuron(1024, 128, 300)),
        ),
        InputCoding((2, 8, 8), bits),
        Readout("spikes"),
        dt_s=0.001,
    )


GOOD = (np.random.default_rng(1).random((3, 12, 2, 8, 8)) < 0.2).astype(np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (GOOD + 0.5, r"inputs: \d?\.5 among float64, the chip takes integers; encode floats"),
        (GOOD.astype(np.float32) * np.nan, "inputs: nan among float32"),
        (GOOD.astype(complex), "inputs: dtype complex128"),
        (GOOD.astype(str), "inputs: dtype <U"),
        (GOOD.astype("m8[s]"), "inputs: dtype timedelta64"),
        (GOOD.astype(object), "inputs: dtype object"),
        (
            GOOD[:, :, :1],
            r"inputs: shape \(3, 12, 1, 8, 8\), needs \(samples, timesteps, 2, 8, 8\)",
        ),
        (GOOD[0], r"inputs: shape \(12, 2, 8, 8\), needs"),
        (GOOD.reshape(3, 12, -1), r"inputs: shape \(3, 12, 128\), needs"),
        (GOOD[:0], "holds nothing; give at least one sample and one time step"),
        (GOOD[:, :0], "holds nothing; give at least one sample and one time step"),
        (2 * GOOD, r"values 0\.\.2, 1-bit input takes 0\.\.1; clip counts to spikes"),
        (-GOOD.astype(np.int8), r"values -1\.\.0, 1-bit input takes 0\.\.1"),
        (GOOD.astype(np.uint64) + 2**63, "1-bit input takes"),
        ([[1, 0], [1]], "inputs: not one array"),
        (None, "inputs: dtype object"),
        ("spikes.npy", "inputs: dtype <U10"),
    ],
)
def test_inputs_that_do_not_fit(engine: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ChipError, match=message) as found:
        simulate(conv_network(), inputs, engine=engine)
    assert "\n" not in str(found.value)


def test_payloads_beyond_the_message() -> None:
    network = conv_network(bits=3)
    assert simulate(network, 7 * GOOD).event_counts["fc"].sum() > 0
    with pytest.raises(ChipError, match=r"values 0\.\.8, 3-bit input takes 0\.\.7"):
        simulate(network, 8 * GOOD)


def test_a_network_that_check_refuses_still_simulates_but_does_not_reach_lava(
    tmp_path: Path,
) -> None:
    """Weights of 10 bits: no chip holds them, the arithmetic is defined, and the worker never starts."""
    network = ChipNetwork(
        (Dense("d", np.array([[600, -3]]), Neuron(4096, 0, 100)),),
        InputCoding((2,)),
        Readout("spikes"),
    )
    inputs = np.ones((1, 4, 2), dtype=np.uint8)
    assert simulate(network, inputs).output.sum() == 4
    with pytest.raises(DeployError, match="600"):
        write_net(network, tmp_path / "d.net")


def test_a_file_that_check_refuses(call: Call) -> None:
    with h5py.File("a.net", "r+") as file:
        file["layer/1/weight"][0, 0, 0, 0] = 600
    status, out, err = call("simulate", "a.net", "--data", "in.npy")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "a.net: not simulated, no chip runs it: error: layer 'conv'" in err


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.uint8, np.int16, np.uint16, np.int64, np.uint64]
)
def test_any_integers_are_the_same_integers(dtype: Any) -> None:
    wanted = simulate(conv_network(), GOOD, record=BOTH, engine="reference")
    for engine in ENGINES:
        got = simulate(conv_network(), GOOD.astype(dtype), record=BOTH, engine=engine)  # type: ignore[arg-type]
        assert compare(wanted, got) == []
    assert wanted.output.sum() > 0


def test_inputs_are_not_written_to() -> None:
    inputs = GOOD.copy()
    inputs.flags.writeable = False
    for engine in ENGINES:
        simulate(conv_network(), inputs, engine=engine)  # type: ignore[arg-type]
    backwards = np.asfortranarray(GOOD[:, :, :, ::-1])
    wanted = simulate(conv_network(), np.ascontiguousarray(backwards), engine="reference")
    assert compare(wanted, simulate(conv_network(), backwards)) == []


def long_network() -> ChipNetwork:
    """Every kind of memory a layer can have between steps."""
    rng = np.random.default_rng(2)
    weight = rng.integers(-90, 128, (6, 128))
    return ChipNetwork(
        (
            Conv("conv", rng.integers(-60, 64, (2, 2, 1, 1)), Neuron(300, 40, 90), (2, 8, 8)),
            Dense(
                "late", weight, Neuron(700, 60, 500), None, None, rng.integers(0, 9, weight.shape)
            ),
            Recurrent(
                "loop",
                rng.integers(-40, 90, (5, 6)),
                rng.integers(-90, 60, (5, 5)),
                Neuron(500, 50, 80),
                rng.integers(0, 4, 5),
            ),
            Dense("sum", rng.integers(-60, 64, (3, 5)), Neuron(200, 30, NON_SPIKING_VTH)),
        ),
        InputCoding((2, 8, 8)),
        Readout("voltage"),
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reset", [True, False])
def test_blocks_of_time_change_nothing(
    engine: Any, reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = (np.random.default_rng(3).random((3, 50, 2, 8, 8)) < 0.1).astype(np.uint8)
    wanted = simulate(long_network(), inputs, record=BOTH, engine="reference", reset=reset)
    assert min(counts.sum() for name, counts in wanted.event_counts.items() if name != "sum") > 100
    for size in (1, 40_000, 300_000):
        monkeypatch.setattr(simulation, "BLOCK_BYTES", size)
        calls: list[tuple[int, int]] = []
        got = simulate(
            long_network(),
            inputs,
            record=BOTH,
            engine=engine,
            reset=reset,
            progress=lambda *done, calls=calls: calls.append(done),  # type: ignore[misc]
        )
        assert compare(wanted, got) == []
        assert wanted.peak_sum == got.peak_sum
        assert all(np.array_equal(wanted.event_counts[n], c) for n, c in got.event_counts.items())
        assert calls[-1] == (150, 150)
        assert calls == sorted(calls)
        assert len(calls) > 3 or size > 1


MEMORY = """
import resource, sys
import numpy as np
from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout, simulate, simulation
simulation.BLOCK_BYTES = 2**24
rng = np.random.default_rng(0)
first = Dense("a", rng.integers(-60, 64, (500, 400)), Neuron(1024, 128, 500))
last = Dense("b", rng.integers(-60, 64, (4, 500)), Neuron(1024, 128, 500))
network = ChipNetwork((first, last), InputCoding((400,)), Readout("spikes"))
one = (rng.random((1, 40, 400)) < 0.1).astype(np.uint8)
samples = int(sys.argv[1])
inputs = np.broadcast_to(one, (samples, 40, 400))
simulate(network, inputs[:1], engine=sys.argv[2])
recording = simulate(network, inputs, engine=sys.argv[2])
assert recording.output.sum() == samples * recording.output[0].sum() > 0
own = recording.output.nbytes + sum(counts.nbytes for counts in recording.event_counts.values())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - own)
"""


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_many_samples_need_the_memory_of_few(engine: str) -> None:
    """Beyond what is returned; as inputs the same sample is shown again and again, which takes no memory."""
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", MEMORY, str(samples), engine],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for samples in (30, 3000)
    )
    # All samples at once would be 48 MB of inputs and 60 MB of spikes; blocks here are of 16.
    assert many < few + 40e6


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell is born deaf to it
import numpy as np
from knarr.hw_sim import ChipNetwork, Conv, InputCoding, Neuron, Readout, simulate
rng = np.random.default_rng(0)
layer = Conv("c", rng.integers(-60, 64, (64, 32, 5, 5)), Neuron(1024, 128, 2000), (32, 40, 40))
network = ChipNetwork((layer,), InputCoding((32, 40, 40)), Readout("spikes"))
inputs = (rng.random((8, 400, 32, 40, 40)) < 0.3).astype(np.uint8)
simulate(network, inputs[:1, :2], engine=sys.argv[1])
print("begun", flush=True)
simulate(network, inputs, engine=sys.argv[1])
print("done", flush=True)
"""


@pytest.mark.parametrize("engine", ["auto", "torch", "reference"])
def test_ctrl_c_stops_it_and_leaves_nothing(engine: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        assert child.stdout.readline() == "begun\n"
        time.sleep(0.7)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        child.wait(10)  # a bound on waiting; it takes a fraction of a second
        assert child.stdout.read() == ""
        assert "KeyboardInterrupt" in child.stderr.read()
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)
    finally:
        child.kill()
        child.communicate()


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)
    write_net(conv_network(), tmp_path / "a.net")
    np.save("in.npy", GOOD)
    np.save("labels.npy", np.array([0, 1, 2]))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knarr", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_the_command_records_what_is_named(call: Call, tmp_path: Path) -> None:
    network = read_net(tmp_path / "a.net")
    status, out, err = call(
        "simulate", "a.net", "--data", "in.npy", "--record", "output,u,v", "--out", "r.npz", "--picture",
        "r.png", "--labels", "labels.npy", "--json",
    )  # fmt: skip
    assert status == 0, err
    facts = json.loads(out)
    wanted = simulate(network, GOOD, record=("output", "u", "v"), engine="reference")
    assert compare(wanted, load_recording(Path("r.npz"))) == []
    decided = network.readout.decide(wanted.output)
    assert facts["decisions"] == decided.tolist()
    assert facts["right"] == int((decided == [0, 1, 2]).sum())
    assert facts["spikes"] == {
        name: int(counts.sum()) for name, counts in wanted.event_counts.items()
    }
    assert facts["activity"]["conv"] == pytest.approx(
        wanted.event_counts["conv"].mean() / 288, abs=1e-6
    )
    assert facts["seconds"] > 0
    # Seconds are printed with four decimals, of which so short a run leaves few.
    assert facts["samples_per_second"] == pytest.approx(3 / facts["seconds"], rel=0.5)
    assert Path("r.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(1), "inputs: shape (), needs (samples, timesteps, 2, 8, 8)"),
        (GOOD[:0], "holds nothing; give at least one sample and one time step"),
        (GOOD + 0.5, "among float64, the chip takes integers"),
    ],
)
def test_data_that_is_none(call: Call, data: np.ndarray[Any, Any], message: str) -> None:
    np.save("odd.npy", data)
    status, out, err = call("simulate", "a.net", "--data", "odd.npy", "--picture", "r.png")
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())
    assert not Path("r.png").exists()


def test_the_command_speaks_to_people(call: Call) -> None:
    np.save("many.npy", np.tile(GOOD, (10, 1, 1, 1, 1)))
    status, out, _ = call("simulate", "a.net", "--data", "many.npy")
    assert status == 0
    assert "(30 in all: --json)" in " ".join(out.split())
    assert "samples per second" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--record", "spikes"), "--record: names what is written; say where with --out"),
        (
            ("--record", "weights", "--out", "r.npz"),
            "--record: unknown ['weights'], choose from output, spikes",
        ),
        (("--sample", 3, "--picture", "r.png"), "--sample: 3, there are 0..2"),
        (("--labels", "in.npy"), "labels: shape (3, 12, 2, 8, 8) for 3 samples"),
        (("--picture", "a.net"), "a.net: is read as a.net; give another name to write to"),
        (("--engine", "lava", "--threads", 2), "--threads: goes with the simulator's engines"),
        (("--sample", 1), "--sample: names what --picture draws"),
        (("--timeout", 3), "--timeout: goes with --engine lava"),
        (("--timesteps", 5), "timesteps: 5 asked for, the inputs have 12"),
    ],
)
def test_options_that_do_not_go(call: Call, options: tuple[Any, ...], message: str) -> None:
    status, out, err = call("simulate", "a.net", "--data", "in.npy", *options)
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())
    assert not Path("r.npz").exists()


@pytest.mark.parametrize("dtype", [">i2", "<u8", "?", "f4", ">f8"])
def test_inputs_are_read_by_their_values(dtype: str) -> None:
    """Tools save spikes as floats, in any order of bytes and axes: the same numbers run alike."""
    given = np.asfortranarray((GOOD > 0).astype(dtype))
    ours = simulate(conv_network(), (GOOD > 0).astype(np.uint8))
    assert np.array_equal(simulate(conv_network(), given).output, ours.output)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**40, 0.25])
def test_floats_that_are_no_integers_are_refused(value: float) -> None:
    given = GOOD.astype(float)
    given.flat[3] = value
    with pytest.raises(ChipError, match=r"among float64, the chip takes integers"):
        simulate(conv_network(), given)


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_that_see_nothing_but_padding(engine: str) -> None:
    """One pixel across, padded to three and walked in steps of two: oneDNN of torch 2.3 died of it."""
    weight = np.random.default_rng(0).integers(-100, 100, (6, 2, 2, 1))
    neuron = Neuron(4096, 512, 100)
    layer = Conv("c", weight, neuron, (2, 17, 1), (2, 2), (0, 1), bias_int=np.arange(6) * 40)
    network = ChipNetwork((layer,), InputCoding((2, 17, 1)), Readout("spikes"))
    inputs = (np.random.default_rng(1).random((2, 64, 2, 17, 1)) < 0.3).astype(np.uint8)
    ours = simulate(network, inputs, record=BOTH, engine=engine)  # type: ignore[arg-type]
    assert compare(ours, simulate(network, inputs, record=BOTH, engine="reference")) == []
    assert ours.spikes["c"].any()
