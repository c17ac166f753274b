"""The fast engines give the integers of the reference engine, whatever the network and the input."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knarr.hw_sim import (
    NON_SPIKING_VTH,
    ChipError,
    ChipNetwork,
    Conv,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    Recording,
    Recurrent,
    compare,
    simulate,
    simulation,
)
from knarr.hw_sim.engines import native as fast
from knarr.hw_sim.engines import selection
from knarr.hw_sim.engines.base import LayerRequest, RunRequest
from knarr.hw_sim.engines.native import LISTS, TABLE, WORDS, FastEngine, FastLayer, Kernel, load
from knarr.hw_sim.engines.reference import ReferenceEngine
from knarr.hw_sim.engines.selection import differs
from knarr.hw_sim.engines.torch import TorchEngine, TorchLayer
from knarr.hw_sim.network import Layer, register_array, register_range
from knarr.hw_sim.simulation import laid_out_layers

NETWORKS = 2000 if "KNARR_CONFORMANCE" in os.environ else 600
ROOT = Path(__file__).parents[2]
ALL = ("output", "spikes", "u", "v")
kernel = load()
# Where there is a compiler a missing kernel is a fault, and these tests fail.
needs_kernel = pytest.mark.skipif(
    isinstance(kernel, str) and shutil.which("cc") is None, reason="no C compiler on this machine"
)


def pick(rng: np.random.Generator, *options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def neuron(rng: np.random.Generator, scale: int) -> Neuron:
    extreme = (0, 1, 4095, 4096, int(rng.integers(0, 4097)), int(rng.integers(20, 1500)))
    high = int(pick(rng, 1, 8, scale, scale, 20 * scale))
    return Neuron(
        pick(rng, *extreme, 4096), pick(rng, *extreme), int(rng.integers(0, max(1, high)))
    )


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    limit = int(
        pick(rng, 1, 3, 20, 127, 127, 127, 255, 255, 900, *([30000] if rng.random() < 0.1 else []))
    )
    values = rng.integers(-limit, limit + 1, shape)
    sign = pick(rng, 0, 0, 0, 1, -1)
    values = sign * np.abs(values) if sign else values
    return values * int(pick(rng, 1, 1, 2, 8))


def layer(rng: np.random.Generator, name: str, shape: tuple[int, ...], fan: int) -> Layer:
    cell = neuron(rng, fan)
    if len(shape) == 3 and rng.random() < 0.75:
        c, h, w = shape
        groups = int(pick(rng, 1, 1, *[g for g in (2, c) if c % g == 0]))
        outputs = groups * int(pick(rng, 1, 2, 3, 33 if groups == 1 else 4))
        kernel_shape = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
        kernel = weights(rng, outputs, c // groups, *kernel_shape)
        stride, padding = (
            (int(rng.integers(1, 3)), int(rng.integers(1, 3))),
            (int(rng.integers(0, 3)), int(rng.integers(0, 3))),
        )
        dilation = pick(rng, (1, 1), (1, 1), (2, 1), (1, 2))
        if rng.random() < 0.4:  # 2x2 pooling folded in
            kernel = kernel.repeat(2, axis=2).repeat(2, axis=3)
            stride, padding, dilation = (
                (2 * stride[0], 2 * stride[1]),
                (2 * padding[0], 2 * padding[1]),
                (1, 1),
            )
        bias = pick(rng, None, rng.integers(-min(3 * fan, 60_000), min(3 * fan, 60_000), outputs))
        return Conv(name, kernel, cell, (c, h, w), stride, padding, dilation, groups, bias)
    inputs, outputs = int(np.prod(shape)), int(pick(rng, 1, 3, 31, 32, 33, 70))
    weight = weights(rng, outputs, inputs)
    if len(shape) == 3 and rng.random() < 0.4:
        c, h, w = shape
        pooled = np.zeros((outputs, c, h, w), dtype=np.int64)
        cells = weights(rng, outputs, c, h // 2, w // 2).repeat(2, axis=2).repeat(2, axis=3)
        pooled[:, :, : cells.shape[2], : cells.shape[3]] = cells
        weight = pooled.reshape(outputs, inputs)
    bias = (
        pick(rng, None, rng.integers(-min(3 * fan, 60_000), min(3 * fan, 60_000), outputs))
        if rng.random() < 0.95
        else np.full(outputs, 70_000)
    )
    if rng.random() < 0.1:
        return Recurrent(name, weight, weights(rng, outputs, outputs), cell, bias)
    if rng.random() < 0.1:
        return Dense(
            name, weight, cell, bias, None, rng.integers(0, int(pick(rng, 1, 4)), weight.shape)
        )
    return Dense(name, weight, cell, bias)


def draw(seed: int) -> tuple[ChipNetwork, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    while True:
        image = rng.random() < 0.7
        side = (int(rng.integers(1, 9)), int(rng.integers(1, 9)))
        shape: tuple[int, ...] = (
            (int(pick(rng, 1, 2, 3, 33)), *side) if image else (int(pick(rng, 1, 7, 32, 65)),)
        )
        bits = int(pick(rng, 1, 1, 1, 2, 8, 9, 16))
        layers: list[Layer] = []
        here = shape
        try:
            for level in range(int(rng.integers(1, 4))):
                layers.append(
                    layer(rng, f"layer{level}", here, 40 * (2**bits - 1 if level == 0 else 1))
                )
                here = layers[-1].output_shape
            if rng.random() < 0.3:
                last = layers[-1]
                fields = {name: getattr(last, name) for name in last.__dataclass_fields__}
                cell = Neuron(last.neuron.i_decay, last.neuron.v_decay, NON_SPIKING_VTH)
                layers[-1] = type(last)(**{**fields, "neuron": cell})
        except (ChipError, ValueError):
            continue  # a kernel larger than what is left of the image
        kind = "spikes" if layers[-1].neuron.spikes else "voltage"
        network = ChipNetwork(tuple(layers), InputCoding(shape, bits), Readout(kind))  # type: ignore[arg-type]
        size = (int(rng.integers(1, 4)), int(pick(rng, 1, 2, 9, 40)), *shape)
        active = rng.random(size) < pick(rng, 0.0, 0.05, 0.5, 1.0)
        return network, active * rng.integers(1, 2**bits, size)


def everything(chain: list[Any], inputs: np.ndarray[Any, Any], bits: int) -> RunRequest:
    """Ask one thread for all arrays of every layer."""
    wanted = [LayerRequest(spikes=True, states=True)] * len(chain)
    return RunRequest(chain, inputs, bits, wanted, [None] * len(chain), threads=1, carry=False)


def same(one: Recording, other: Recording) -> list[str]:
    found = [str(divergence) for divergence in compare(one, other)]
    for name, counts in one.event_counts.items():
        if not np.array_equal(counts, other.event_counts[name]):
            found.append(f"counts of {name}")
    return found + (
        [] if one.peak_sum == other.peak_sum else [f"peaks {one.peak_sum} {other.peak_sum}"]
    )


def cases(
    network: ChipNetwork, inputs: np.ndarray[Any, Any], recording: Recording
) -> dict[str, bool]:
    """Which of the arithmetic's corners a run has met."""
    layers = network.layers
    registers = {
        value
        for one in layers
        for register in (one.neuron.i_decay, one.neuron.v_decay)
        for value in register_range(register)
    }
    return {
        # Beyond one wrap u would have to jump by more than 2**23 between two steps.
        "wrap": any((np.abs(np.diff(u, axis=1)) > 2**23).any() for u in recording.u.values()),
        "clip": any((np.abs(v) == 2**23 - 1).any() for v in recording.v.values()),
        "tie": any(
            (
                recording.v[one.name] == 64 * register_array(one.neuron.vth_int, one.output_shape)
            ).any()
            for one in layers
            if register_range(one.neuron.vth_int)[0]
        ),
        "silent input": not inputs.any(),
        "all on": bool(inputs.all()),
        "one step": inputs.shape[1] == 1,
        "decay 0": 0 in registers,
        "decay 4096": 4096 in registers,
    }


@needs_kernel
@pytest.mark.parametrize(("part", "dots_above"), [(0, None), (1, -1), (2, 1000), (3, None)])
def test_every_integer_of_random_networks(
    part: int, dots_above: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dots_above is not None:  # dot products wherever they can, or nowhere
        monkeypatch.setattr(fast, "CONV_DOTS_ABOVE", dots_above)
        monkeypatch.setattr(fast, "DENSE_DOTS_ABOVE", dots_above)
    fired = taken = left = dots = 0
    seen = dict.fromkeys(
        ("wrap", "clip", "tie", "silent input", "all on", "one step", "decay 0", "decay 4096"), 0
    )
    modes: set[tuple[str, int, bool]] = set()
    for seed in range(part, NETWORKS, 4):
        network, inputs = draw(seed)
        reset = seed % 5 > 0
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference", reset=reset)
        except ChipError:  # sums beyond 2**53
            continue
        monkeypatch.setattr(simulation, "BLOCK_BYTES", (2**28, 3000)[seed % 3 == 0])
        got = simulate(
            network, inputs, record=ALL, engine="fast", threads=1 + seed % 5, reset=reset
        )
        assert same(wanted, got) == [], seed
        fired += sum(int(z.sum()) for z in wanted.spikes.values())
        for name, met in cases(network, inputs, wanted).items():
            seen[name] += met
        for found in laid_out_layers(network, selection.choose_engine("fast")):
            if isinstance(found, FastLayer):
                modes.add((type(found.view.layer).__name__, found.struct.mode, found.view.pooled))
                taken += 1
                dots += found.struct.dot is not None
            else:
                left += 1
    assert fired > 10_000
    assert min(seen.values()) >= NETWORKS // 300, seen
    assert taken > 3 * left
    assert dots > taken / 4
    assert {("Conv", TABLE, False), ("Conv", LISTS, False), ("Conv", LISTS, True), ("Conv", WORDS, False), ("Dense", WORDS, True)} <= modes  # fmt: skip


def test_the_torch_engine_on_random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    fired = taken = left = pooled = 0
    for seed in range(0, NETWORKS, 1 if NETWORKS == 2000 else 4):
        network, inputs = draw(seed)
        reset = seed % 5 > 0
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference", reset=reset)
        except ChipError:  # sums beyond 2**53
            continue
        monkeypatch.setattr(simulation, "BLOCK_BYTES", (2**28, 3000)[seed % 3 == 0])
        assert (
            same(wanted, simulate(network, inputs, record=ALL, engine="torch", reset=reset)) == []
        ), seed
        fired += sum(int(z.sum()) for z in wanted.spikes.values())
        for found in laid_out_layers(network, selection.choose_engine("torch")):
            taken, left = taken + isinstance(found, TorchLayer), left + isinstance(found, str)
            pooled += isinstance(found, TorchLayer) and found.view.pooled
    assert fired > 10_000
    assert taken > 3 * left
    assert pooled > NETWORKS / 50


def test_the_path_of_devices_on_the_cpu() -> None:
    """Unfolded products and torch's integer neurons, as on CUDA, where torch runs anywhere."""
    engine = TorchEngine("cpu:0")
    assert engine.device != "cpu"  # which is what the engine asks
    assert differs(engine) == ""
    fired = 0
    for seed in range(60):
        network, inputs = draw(seed)
        chain = laid_out_layers(network, engine)
        if any(isinstance(found, str) for found in chain):
            continue
        wanted = simulate(network, inputs, record=ALL, engine="reference")
        ran = engine.run(everything(chain, inputs, network.input.bits))
        if ran is None:
            continue
        for one, got in zip(network.layers, ran, strict=True):
            for name in ("spikes", "u", "v"):
                assert np.array_equal(getattr(got, name), getattr(wanted, name)[one.name]), (
                    seed,
                    name,
                )
            assert np.array_equal(got.counts, wanted.event_counts[one.name])
            fired += int(got.counts.sum())
    assert fired > 1000


@needs_kernel
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_instruction_set_gives_the_same(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(kernel, Kernel)
    if level > kernel.level:
        # It would fault; the levels below are compared here, this one where there are such processors.
        pytest.skip("this processor has no such instructions")
    monkeypatch.setattr(simulation, "_LAID_OUT", {})
    assert_equals_reference(FastEngine(kernel, level))


@needs_kernel
def test_the_build_for_other_processors_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARM and macOS build this one; tests/test_packaging.py looks at what installs it."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (extension,) = config["tool"]["setuptools"]["ext-modules"]
    library = tmp_path / "plain.so"
    machine = ["-march=x86-64"] if platform.machine() == "x86_64" else []
    command = ["cc", "-shared", "-fPIC", "-DKNARR_PLAIN", *machine]
    command += extension["extra-compile-args"] + ["-o", str(library)]
    command += [str(ROOT / source) for source in extension["sources"]]
    command += [f"-l{name}" for name in extension["libraries"]]
    subprocess.run(command, check=True, timeout=200)
    code = subprocess.run(["objdump", "-d", library], check=True, capture_output=True).stdout
    assert b"<knarr_run>" in code
    assert re.search(rb"%[yz]mm", code) is None
    plain = Kernel(ctypes.CDLL(str(library)))
    assert plain.level == 0
    monkeypatch.setattr(simulation, "_LAID_OUT", {})
    assert_equals_reference(FastEngine(plain, 0))


def assert_equals_reference(engine: FastEngine) -> None:
    assert differs(engine) == ""
    compared = 0
    for seed in range(120):
        network, inputs = draw(seed)
        chain = laid_out_layers(network, engine)
        if any(isinstance(found, str) for found in chain):
            continue
        ran = engine.run(everything(chain, inputs, network.input.bits))
        if ran is None:
            continue
        wanted = simulate(network, inputs, record=ALL, engine="reference")
        for one, got in zip(network.layers, ran, strict=True):
            assert np.array_equal(got.spikes, wanted.spikes[one.name]), seed  # type: ignore[arg-type]
            assert np.array_equal(got.v, wanted.v[one.name]), seed  # type: ignore[arg-type]
            assert np.array_equal(got.u, wanted.u[one.name]), seed  # type: ignore[arg-type]
            compared += int(wanted.spikes[one.name].sum())
    assert compared > 1000


@needs_kernel
def test_sums_too_large_for_the_kernel_go_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.full((3, 300), 900, dtype=np.int32)
    network = ChipNetwork(
        (Dense("d", weight, Neuron(2000, 100, 2**17)),), InputCoding((300,)), Readout("spikes")
    )
    inputs = np.ones((2, 9, 300), dtype=np.uint8)
    wanted = simulate(network, inputs, record=ALL, engine="reference")
    assert wanted.peak_sum["d"] == 270_000 > 2**17
    assert same(wanted, simulate(network, inputs, record=ALL, engine="fast")) == []
    monkeypatch.setattr(fast, "MAX_SUM", 2**30)
    assert same(wanted, simulate(network, inputs, record=ALL, engine="fast")) != []  # which is why


@needs_kernel
def test_an_engine_that_errs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions that give other integers on some processor are left for lesser ones, and the engine for torch."""
    assert isinstance(kernel, Kernel)
    right = FastEngine.run

    def wrong_above(limit: int) -> Any:
        def run(self: FastEngine, request: RunRequest) -> Any:
            ran = right(self, request)
            if self.level > limit and ran is not None and ran[0].u is not None:
                ran[0].u = ran[0].u + 1
            return ran

        return run

    for limit, level in ((kernel.level, kernel.level), (0, 0), (-1, None)):
        monkeypatch.setattr(FastEngine, "run", wrong_above(limit))
        selection.fast_engine.cache_clear()
        found = selection.fast_engine()
        assert getattr(found, "level", None) == level
    assert (
        selection.fast_engine()
        == "it differs from the reference here: u of layer 'dense' at activity 0.05; report it"
    )
    assert selection.choose_engine("auto").name == "torch"
    selection.fast_engine.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "gpu"}, "engine: 'gpu' does not exist, choose auto, fast, torch, reference"),
        ({"threads": 0}, "threads: 0, needs a whole number from 1"),
        ({"threads": 1.5}, "threads: 1.5, needs a whole number from 1"),
        ({"engine": "reference", "threads": 2}, "the reference engine has 1"),
        ({"record": "spikes"}, "record: 'spikes' is no list of words"),
        ({"record": None}, "record: None is no list of words"),
        ({"engine": ["fast"]}, "engine: '.'fast'.' does not exist"),
        ({"record": ["weights"]}, "record: unknown .'weights'., choose from"),
        ({"timesteps": -1}, "timesteps: -1, needs a whole number from 1"),
        ({"timesteps": 2.0}, "timesteps: 2.0, needs a whole number from 1"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    network, inputs = draw(3)
    with pytest.raises(ChipError, match=message):
        simulate(network, inputs, **options)


def test_without_a_kernel_auto_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        selection, "fast_engine", lambda: "not built; a C compiler (cc) at install makes it"
    )
    network, inputs = draw(3)
    assert simulate(network, inputs).engine == "torch"
    with pytest.raises(ChipError, match="engine: no compiled kernel, not built; a C compiler"):
        simulate(network, inputs, engine="fast")
    monkeypatch.setattr(selection, "torch_engine", lambda: "numba not installed")
    assert simulate(network, inputs).engine == "reference"
    with pytest.raises(ChipError, match="engine: torch does not run here, numba not installed"):
        simulate(network, inputs, engine="torch")


def test_a_run_that_falls_back_is_cut_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference needs more memory for a step than the engine it takes over from."""
    weight = np.full((200, 300), 900, dtype=np.int32)
    network = ChipNetwork(
        (Dense("d", weight, Neuron(2000, 100, 2**17)),), InputCoding((300,)), Readout("spikes")
    )
    inputs = np.ones((4, 60, 300), dtype=np.uint8)
    inputs[:, :30] = 0  # the first blocks are within every engine's means
    sizes: list[int] = []
    shown: list[int] = []
    right = ReferenceEngine.run

    def run(self: ReferenceEngine, request: RunRequest) -> Any:
        samples, steps = request.events.shape[:2]
        sizes.append(samples * steps * self.bytes_per_step(request.chain[0]))
        return right(self, request)

    monkeypatch.setattr(ReferenceEngine, "run", run)
    monkeypatch.setattr(simulation, "BLOCK_BYTES", 200_000)
    got = simulate(
        network, inputs, record=ALL, engine="torch", progress=lambda done, _: shown.append(done)
    )
    assert shown == sorted(shown)
    assert shown[-1] == 240
    assert max(sizes) <= 200_000
    assert len(sizes) > 10
    monkeypatch.undo()
    assert same(simulate(network, inputs, record=ALL, engine="reference"), got) == []


def test_settings_of_torch_do_not_reach_the_torch_engine() -> None:
    network, inputs = next(
        drawn
        for drawn in map(draw, range(100))
        if all(
            isinstance(plan, TorchLayer)
            for plan in laid_out_layers(drawn[0], selection.choose_engine("torch"))
        )
        and simulate(*drawn).output.sum() > 50
    )
    wanted = simulate(network, inputs, record=ALL, engine="reference")
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("medium")
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            torch.backends.mkldnn.flags(enabled=False),
        ):
            assert same(wanted, simulate(network, inputs, record=ALL, engine="torch")) == []
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert torch.get_num_threads() == before[1]
