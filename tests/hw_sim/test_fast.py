"""The fast engines give the integers of the reference engine, whatever the network and the input."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_networks import ALL, cases, draw, draw_any, same

from knarr.hw_sim import (
    ChipError,
    ChipNetwork,
    Dense,
    InputCoding,
    Neuron,
    Readout,
    SlowEngineWarning,
    simulate,
    simulation,
)
from knarr.hw_sim.engines import kept, selection
from knarr.hw_sim.engines import native as fast
from knarr.hw_sim.engines.base import MAX_SUM, LayerRequest, RunRequest
from knarr.hw_sim.engines.native import FastEngine, FastLayer, Kernel, load
from knarr.hw_sim.engines.native_layer import LISTS, TABLE, WORDS
from knarr.hw_sim.engines.reference import ReferenceEngine
from knarr.hw_sim.engines.selection import differs
from knarr.hw_sim.engines.torch import TorchEngine, TorchLayer
from knarr.hw_sim.simulation import laid_out_layers

NETWORKS = 5000 if "KNARR_CONFORMANCE" in os.environ else 600
ROOT = Path(__file__).parents[2]
kernel = load()
# Where there is a compiler a missing kernel is a fault, and these tests fail.
needs_kernel = pytest.mark.skipif(
    isinstance(kernel, str) and shutil.which("cc") is None, reason="no C compiler on this machine"
)


def everything(chain: list[Any], inputs: np.ndarray[Any, Any], bits: int) -> RunRequest:
    """Ask one thread for all arrays of every layer."""
    wanted = [LayerRequest(spikes=True, states=True)] * len(chain)
    return RunRequest(chain, inputs, bits, wanted, [None] * len(chain), threads=1, carry=False)


@needs_kernel
@pytest.mark.parametrize(("part", "dots_above"), [(0, None), (1, -1), (2, 1000), (3, None)])
def test_every_integer_of_random_networks(
    part: int, dots_above: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dots_above is not None:  # dot products wherever they can, or nowhere
        monkeypatch.setattr(fast, "CONV_DOTS_ABOVE", dots_above)
        monkeypatch.setattr(fast, "COLUMN_DOTS_ABOVE", dots_above)
        monkeypatch.setattr(fast, "DENSE_DOTS_ABOVE", dots_above)
    fired = 0
    seen = dict.fromkeys(
        ("wrap", "clip", "tie", "silent input", "all on", "one step", "decay 0", "decay 4096"), 0
    )
    met: Counter[str] = Counter()
    for seed in range(part, NETWORKS, 4):
        network, inputs = draw_any(seed)
        reset = seed % 5 > 0
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference", reset=reset)
        except ChipError:  # sums beyond 2**53
            continue
        monkeypatch.setattr(simulation, "BLOCK_BYTES", (2**28, 3000)[seed % 3 == 0])
        got = simulate(
            network, inputs, record=ALL, engine="fast", threads=1 + seed % 8, reset=reset
        )
        assert same(wanted, got) == [], seed
        fired += sum(int(z.sum()) for z in wanted.spikes.values())
        for name, occurs in cases(network, inputs, wanted).items():
            seen[name] += occurs
        met["driven"] += network.input.neuron is not None
        met["large"] += max(wanted.peak_sum.values()) > MAX_SUM
        for found in laid_out_layers(network, selection.choose_engine("fast")):
            met.update(features(found))
    assert fired > 10_000
    assert min(seen.values()) >= NETWORKS // 300, seen
    missing = [name for name in FEATURES if met[name] < NETWORKS / 600]
    assert missing == [], met
    assert dots_above == 1000 or met["dots"] > NETWORKS / 40


FEATURES = [
    *("Conv table", "Conv lists", "Conv lists pooled", "Conv lists signed", "Conv words"),
    *("Dense words pooled", "Dense scattered", "Dense moved", "Dense signed", "Recurrent words"),
    *("Conv own", "Dense own", "Recurrent own", "wide", "large", "driven"),
]
"""Ways to compute that random networks have to meet."""


def features(layer: FastLayer) -> set[str]:
    """Name what a layer in the kernel makes use of."""
    kind, struct = type(layer.layer).__name__, layer.struct
    if layer.wide:
        return {"wide", f"{kind} wide"}
    mode = {WORDS: "words", LISTS: "lists", TABLE: "table"}[struct.mode]
    signed = struct.planes > struct.negative
    found = {f"{kind} {mode}", "dots" if struct.dot else "events"}
    found |= {f"{kind} {mode} pooled"} if layer.view.pooled else set()
    found |= {f"{kind} {mode} signed", f"{kind} signed"} if signed else set()
    found |= {f"{kind} own"} if struct.registers else set()
    found |= {f"{kind} scattered"} if struct.delays else set()
    found |= {f"{kind} moved"} if layer.shift.pairs else set()
    return found


@needs_kernel
def test_states_go_from_engine_to_engine() -> None:
    """A run that is cut in two, each half on another engine, is the run of one."""
    kernel_engine = selection.choose_engine("fast")
    engines = (ReferenceEngine(), kernel_engine)
    met: Counter[str] = Counter()
    compared = 0
    for seed in range(120):
        network, inputs = draw_any(seed)
        steps = inputs.shape[1]
        if steps < 9 or network.input.neuron is not None:
            continue
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference")
        except ChipError:  # sums beyond 2**53
            continue
        chains = [laid_out_layers(network, engine) for engine in engines]
        if any(isinstance(found, str) for found in chains[1]):
            continue
        states: list[Any] = [None] * len(network.layers)
        order = (0, 1, 0) if seed % 2 else (1, 0, 1)
        bounds = (0, 1 + steps // 3, 2 * steps // 3, steps)
        ran = []
        for which, start, stop in zip(order, bounds, bounds[1:], strict=False):
            engine, chain = engines[which], chains[which]
            request = everything(chain, inputs[:, start:stop], network.input.bits)
            own = [
                None if state is None else engine.write_state(one, state)
                for one, state in zip(chain, states, strict=True)
            ]
            request = replace(request, states=own, carry=True, signed=network.input.signed)
            ran.append(engine.run(request))
            if ran[-1] is None:
                break
            states = [
                engine.read_state(one, state)
                for one, state in zip(chain, request.states, strict=True)
            ]
        if ran[-1] is None:
            continue
        for i, one in enumerate(network.layers):
            for kind in ("spikes", "u", "v"):
                parts = [getattr(part[i], kind) for part in ran if part is not None]
                assert np.array_equal(np.concatenate(parts, axis=1), getattr(wanted, kind)[one.name]), (seed, kind)  # fmt: skip
            compared += int(wanted.spikes[one.name].sum())
        for found in chains[1]:
            met.update(features(found))
    assert compared > 1000
    assert min(met[name] for name in ("Dense scattered", "Dense moved", "Recurrent words", "Conv own")) > 1, met  # fmt: skip


@pytest.mark.filterwarnings("ignore::knarr.hw_sim.simulation.SlowEngineWarning")
def test_the_torch_engine_on_random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    fired = taken = left = pooled = 0
    for seed in range(0, NETWORKS, 1 if NETWORKS == 5000 else 4):
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
        network, inputs = draw_any(seed)
        chain = laid_out_layers(network, engine)
        if any(isinstance(found, str) for found in chain) or network.input.neuron is not None:
            continue
        request = everything(chain, inputs, network.input.bits)
        ran = engine.run(replace(request, signed=network.input.signed))
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
def test_sums_too_large_for_floats_get_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.full((3, 300), 900, dtype=np.int32)
    network = ChipNetwork(
        (Dense("d", weight, Neuron(2000, 100, 2**17)),), InputCoding((300,)), Readout("spikes")
    )
    inputs = np.ones((2, 9, 300), dtype=np.uint8)
    wanted = simulate(network, inputs, record=ALL, engine="reference")
    assert wanted.peak_sum["d"] == 270_000 > 2**17
    assert same(wanted, simulate(network, inputs, record=ALL, engine="fast")) == []
    # The layer is laid out for floats until a run meets such sums.
    assert not laid_out_layers(network, selection.choose_engine("fast"))[0].wide
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
    with pytest.warns(
        SlowEngineWarning, match="the reference runs this network, hundreds of times"
    ):
        assert simulate(network, inputs).engine == "reference"
    with pytest.raises(ChipError, match="engine: torch does not run here, numba not installed"):
        simulate(network, inputs, engine="torch")


@pytest.mark.filterwarnings("ignore::knarr.hw_sim.simulation.SlowEngineWarning")
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
    monkeypatch.setattr(selection, "fast_engine", lambda: "none here")
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


@needs_kernel
def test_runs_at_once_share_no_memory_and_leave_little() -> None:
    """Threads and memory are kept between runs; two runs at the same time never get the same."""
    drawn = [draw_any(seed) for seed in (3, 5, 8, 13, 21, 34)]
    wanted = [simulate(*pair, record=ALL, engine="reference") for pair in drawn]

    def run(job: int) -> list[str]:
        which = job % len(drawn)
        return same(wanted[which], simulate(*drawn[which], record=ALL, engine="fast", threads=1 + job % 3))  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        assert [found for found in pool.map(run, range(60)) if found] == []
    engine = selection.choose_engine("fast")
    assert isinstance(engine, FastEngine)
    memory = engine.kernel.memory
    assert 0 < sum(map(memory.size, memory.idle)) <= kept.MOST_BYTES
    assert len(memory.idle) == len(set(memory.idle))
    assert 0 < len(kept._pools) <= kept.MOST_POOLS


@needs_kernel
def test_a_child_process_runs_on_threads_of_its_own() -> None:
    """After a fork the parent's threads are not there: waiting for them would last for ever."""
    code = (
        "import os, numpy as np\n"
        "from knarr.hw_sim import ChipNetwork, Dense, InputCoding, Neuron, Readout, simulate\n"
        "layer = Dense('d', np.eye(4, dtype=np.int64) * 50, Neuron(4096, 100, 3))\n"
        "network = ChipNetwork((layer,), InputCoding((4,)), Readout('spikes'))\n"
        "x = np.ones((5, 6, 4), dtype=np.uint8)\n"
        "before = simulate(network, x, engine='fast', threads=2).output.sum()\n"
        "child = os.fork()\n"
        "after = simulate(network, x, engine='fast', threads=2).output.sum()\n"
        "if not child:\n"
        "    os._exit(0 if after == before == 120 else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, timeout=60)
