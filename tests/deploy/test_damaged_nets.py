"""Damaged `.net` files, each with one fault netx takes in silence, stops at or hangs on: found by name before anything runs.

And three times over that the silence is real: Lava runs the damaged file, says nothing, and gives another result.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from knarr.deploy import DeployError, check, lava_python, read_net, run_on_lava, write_net
from knarr.deploy.lava.run import WORKER, supervise
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

Change = Callable[[h5py.File], None]
LIMIT_S = 120.0
SHAPE = (2, 6, 5)
NEURON = Neuron(2048, 512, 90, "n")


def good() -> ChipNetwork:
    """/layer/0 input, 1 conv, 2 flatten, 3 dense with delays, 4 dense_rec."""
    rng: Any = np.random.default_rng(0)
    conv = Conv("conv", rng.integers(-90, 100, (4, 2, 3, 2)), NEURON, SHAPE, (1, 2), (1, 0))
    width = int(np.prod(conv.output_shape))
    weight = rng.integers(-90, 100, (6, width))
    fc = Dense("fc", weight, NEURON, np.arange(6) - 2, None, rng.integers(0, 5, weight.shape))
    loop = Recurrent("loop", rng.integers(-90, 100, (3, 6)), rng.integers(-90, 100, (3, 3)), NEURON)
    return ChipNetwork((conv, fc, loop), InputCoding(SHAPE), Readout("spikes"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_net(good(), tmp_path / "a.net")
    with h5py.File(tmp_path / "a.net", "a") as file:
        del file.attrs["knarr_manifest"]  # as from elsewhere
    return tmp_path / "a.net"


def put(key: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value

    return change


def element(key: str, value: float) -> Change:
    """One number of an array becomes another."""

    def change(file: h5py.File) -> None:
        array = file[key][()].astype(np.float64 if value != int(value) else np.int64)
        array.flat[1] = value
        put(key, array)(file)

    return change


def both(one: Change, other: Change) -> Change:
    def change(file: h5py.File) -> None:
        one(file)
        other(file)

    return change


def no_flatten(file: h5py.File) -> None:
    del file["layer/2"]
    file.move("layer/3", "layer/2")
    file.move("layer/4", "layer/3")


def never_positive(file: h5py.File) -> None:
    weight = np.maximum(-np.abs(file["layer/3/weight"][()]), -63)
    weight[0, 0] = -64
    put("layer/3/weight", weight)(file)


# fmt: off
DAMAGES: dict[str, tuple[Change, str, str, str]] = {
    # name: change, rule, layer, message
    "fraction": (
        element("layer/3/weight", 12.5), "weights_are_integers", "dense_3",
        r"/layer/3/weight is not made of integers: 1 of 288 have a fraction .* first 12\.5 at \(0, 1\)",
    ),
    "float weights": (
        put("layer/1/weight", np.full((4, 2, 3, 2), 0.37)), "weights_are_integers", "conv_1",
        r"48 of 48 .* first 0\.37 at \(0, 0, 0, 0\)",
    ),
    "not a number": (
        put("layer/4/weight_rec", np.full((3, 3), np.nan)), "weights_are_integers", "dense_rec_4",
        r"/layer/4/weight_rec holds nan at \(0, 0\)",
    ),
    "text weights": (
        put("layer/1/weight", b"many"), "weights_are_integers", "conv_1",
        "/layer/1/weight holds no numbers",
    ),
    "complex weights": (
        both(put("layer/3/weight", None), put("layer/3/weight/imag", np.ones((6, 48)))), "weights_are_integers", "dense_3",
        "/layer/3/weight is a group; only real weights",
    ),
    "huge weights": (
        element("layer/3/weight", 2**40), "weights_are_integers", "dense_3",
        r"-\d+\.\.1099511627776, allowed -256\.\.254",
    ),
    "no weights": (put("layer/1/weight", None), "weights_are_integers", "conv_1", "/layer/1 has no weight;"),
    "dense weights of 10 bits": (
        element("layer/3/weight", 300), "weights_fit_8_bits", "dense_3",
        r"-\d+\.\.300, allowed -128\.\.127",
    ),
    "dense weights of 9 bits": (
        element("layer/3/weight", 129), "weights_fit_8_bits", "dense_3",
        r"-\d+\.\.129, allowed -128\.\.127",
    ),
    "conv weights of 9 bits": (
        element("layer/1/weight", -131), "weights_fit_8_bits", "conv_1",
        r"-131\.\.\d+, allowed -128\.\.127",
    ),
    "loop weights of 9 bits together": (
        put("layer/4/weight_rec", np.array([[200, -2, 0], [4, 2, 2], [0, 0, 6]])), "weights_fit_8_bits", "dense_rec_4",
        r"\.\.200, allowed -128\.\.127",
    ),
    "no positive weight": (never_positive, "weights_survive_netx", "dense_3", "clip or truncate its weights"),
    "conv delay": (put("layer/1/delay", 3), "delays_are_kept", "conv_1", "conv delay, which netx ignores"),
    "long delay": (
        element("layer/3/delay", 63), "delays_are_kept", "dense_3",
        r"/layer/3/delay spans 0\.\.63, allowed 0\.\.62",
    ),
    "negative delay": (element("layer/3/delay", -1), "delays_are_kept", "dense_3", r"spans -1\.\.4, allowed 0\.\.62"),
    "half a delay": (
        element("layer/3/delay", 1.5), "delays_are_kept", "dense_3",
        r"/layer/3/delay is not made of integers: 1 of 288 .* first 1\.5",
    ),
    "delays of no shape": (
        put("layer/3/delay", np.ones(5, dtype=np.int64)), "delays_are_kept", "dense_3",
        r"of shape \(5,\) for weights of \(6, 48\)",
    ),
    "loop with delay": (
        put("layer/4/delay", np.ones(3, dtype=np.int64)), "delays_are_kept", "dense_rec_4",
        "/layer/4/delay in dense_rec makes netx drop the weight exponent",
    ),
    "iDecay 0": (
        put("layer/1/neuron/iDecay", 0), "decays_fit_registers", "conv_1",
        r"i_decay 0, hardware has 1\.\.4096",
    ),
    "iDecay 5000": (
        put("layer/1/neuron/iDecay", 5000), "decays_fit_registers", "conv_1",
        r"iDecay 5000, hardware has 1\.\.4096",
    ),
    "vDecay 4096": (
        put("layer/3/neuron/vDecay", 4096), "decays_fit_registers", "dense_3",
        r"v_decay 4096, hardware has 0\.\.4095",
    ),
    "vDecay -1": (
        put("layer/3/neuron/vDecay", -1), "decays_fit_registers", "dense_3",
        r"vDecay -1, hardware has 0\.\.4095",
    ),
    "float iDecay": (
        put("layer/1/neuron/iDecay", 409.6), "registers_are_integers", "conv_1",
        r"/layer/1/neuron/iDecay must be one integer, or one per channel or neuron, is float64 409\.6; a float hangs Lava",
    ),
    "whole float vDecay": (
        put("layer/4/neuron/vDecay", 128.0), "registers_are_integers", "dense_rec_4",
        r"vDecay must be one integer, or one per channel or neuron, is float64 128\.0",
    ),
    "float threshold": (
        put("layer/3/neuron/vThMant", np.float32(80.5)), "registers_are_integers", "dense_3",
        r"vThMant must be one integer, or one per channel or neuron, is float32 80\.5",
    ),
    "decays of other neurons": (
        put("layer/3/neuron/iDecay", np.arange(1, 6)), "registers_are_integers", "dense_3",
        r"/layer/3/neuron/iDecay is of shape \(5,\), the layer has neurons \(6,\); write one integer or \(6,\)",
    ),
    "decays of neurons in torch's order": (
        put("layer/1/neuron/vDecay", np.arange(48).reshape(4, 6, 2)), "registers_are_integers", "conv_1",
        r"vDecay is of shape \(4, 6, 2\), the layer has neurons \(4, 6, 2\); netx's .*or \(4,\) or \(1, 1, 4\) or \(2, 6, 4\)",
    ),
    "one decay of many": (
        put("layer/3/neuron/vDecay", np.array([1, 2, 3, 4, 5, 5000])), "decays_fit_registers", "dense_3",
        "vDecay 5000, hardware has 0..4095",
    ),
    "one threshold of many": (
        put("layer/3/neuron/vThMant", np.array([1, 2, 3, 4, 5, -1])), "thresholds_fit_registers", "dense_3",
        "threshold -1, allowed 0..131071",
    ),
    "decays of rank 2": (
        put("layer/3/neuron/iDecay", np.ones((2, 3), dtype=np.int64)), "registers_are_integers", "dense_3",
        r"must be one integer, or one per channel or neuron, is of shape \(2, 3\)",
    ),
    "no threshold": (
        put("layer/3/neuron/vThMant", None), "registers_are_integers", "dense_3",
        "/layer/3/neuron has no vThMant",
    ),
    "high threshold": (
        put("layer/3/neuron/vThMant", 2**17), "thresholds_fit_registers", "dense_3",
        r"threshold 131072, allowed 0\.\.131071",
    ),
    "threshold beyond v": (
        put("layer/3/neuron/vThMant", 2**18), "thresholds_fit_registers", "dense_3",
        r"threshold 262144, allowed 0\.\.131071",
    ),
    "negative threshold": (
        put("layer/3/neuron/vThMant", -5), "thresholds_fit_registers", "dense_3",
        r"threshold -5, allowed 0\.\.131071",
    ),
    "large bias": (
        element("layer/3/bias", 5000), "biases_fit_registers", "dense_3",
        r"bias -2\.\.5000, allowed -4095\.\.4095",
    ),
    "wrapping bias": (
        element("layer/3/bias", -40_000), "biases_fit_registers", "dense_3",
        r"bias -40000\.\.3, allowed -4095\.\.4095",
    ),
    "bias beyond 32 bits": (
        element("layer/3/bias", 2**33), "biases_fit_registers", "dense_3",
        r"bias -2\.\.8589934592",
    ),
    "fraction in bias": (
        element("layer/3/bias", 0.25), "biases_are_integers", "dense_3",
        r"/layer/3/bias is not made of integers: 1 of 6 .* first 0\.25 at \(1,\)",
    ),
    "bias of every neuron": (
        put("layer/1/bias", np.ones((4, 6, 2), dtype=np.int64)), "biases_are_integers", "conv_1",
        r"/layer/1/bias is of shape \(4, 6, 2\), allowed \(4,\)",
    ),
    "unknown type": (
        put("layer/3/type", b"densse"), "types_are_known", "densse_3",
        "'densse', which is unknown, and netx would skip it in silence",
    ),
    "pool": (put("layer/1/type", b"pool"), "types_are_known", "pool_1", "'pool', which is not supported"),
    "no type": (put("layer/2/type", None), "types_are_known", "layer_2", "/layer/2 has no type"),
    "gap": (
        lambda file: file.move("layer/4", "layer/5"), "layers_are_numbered", "file",
        r"5 groups, without \['4'\] but with \['5'\]; netx needs 0\.\.4",
    ),
    "no layers": (put("layer", None), "file_holds_layers", "file", "has no /layer group"),
    "array of groups": (
        put("layer/1/groups", np.array([1])), "steps_are_integers", "conv_1",
        r"/layer/1/groups is int64\(1,\) \[1\]; netx needs one integer above 0",
    ),
    "refDelay": (
        put("layer/3/neuron/refDelay", 4), "nothing_is_unread", "dense_3",
        r"/layer/3/neuron/refDelay is \[4\], allowed 1",
    ),
    "wgtExp": (
        put("layer/3/neuron/wgtExp", 2), "nothing_is_unread", "dense_3",
        r"/layer/3/neuron/wgtExp is \[2\], allowed 0",
    ),
    "graded spikes": (
        put("layer/1/neuron/gradedSpike", True), "nothing_is_unread", "conv_1",
        r"/layer/1/neuron/gradedSpike is \[True\], allowed 0",
    ),
    "message bits": (
        put("layer/1/neuron/messageBits", 8), "nothing_is_unread", "conv_1",
        "/layer/1/neuron/messageBits stops netx",
    ),
    "no neuron": (put("layer/1/neuron", None), "neurons_are_there", "conv_1", "/layer/1 has no neuron group"),
    "another neuron": (
        put("layer/3/neuron/type", b"SDNN"), "neurons_are_there", "dense_3",
        "neuron type 'SDNN', supported are CUBA and LOIHI",
    ),
    "no flatten": (
        no_flatten, "shapes_chain", "dense_2",
        r"/layer/2: dense receives \(4, 6, 2\); netx needs a flatten",
    ),
    "two flattens": (
        both(lambda file: file.move("layer/4", "layer/5"), put("layer/4/type", b"flatten")), "shapes_chain", "flatten_4",
        r"/layer/4 flattens \(6,\), needs \(C, H, W\)",
    ),
    "(W, H, C) input": (
        put("layer/0/shape", np.array(SHAPE[::-1])), "shapes_chain", "conv_1",
        r"receives 5 channels of \(5, 6, 2\), .*; it looks like \(W, H, C\)",
    ),
    "(W, H, C) conv": (
        put("layer/1/shape", np.array([2, 6, 4])), "descriptions_agree", "conv_1",
        r"says \(2, 6, 4\), the layer gives \(4, 6, 2\); it looks like \(W, H, C\)",
    ),
    "another width": (
        put("layer/3/shape", np.array([7])), "descriptions_agree", "dense_3",
        r"/layer/3/shape says \(7,\), the layer gives \(6,\)",
    ),
    "narrow matrix": (
        both(put("layer/3/weight", np.eye(6, 40, dtype=np.int64)), put("layer/3/delay", None)), "shapes_chain", "dense_3",
        "/layer/3 receives 48 values, has 40 inputs",
    ),
    "inFeatures": (
        put("layer/3/inFeatures", 49), "descriptions_agree", "dense_3",
        r"/layer/3/inFeatures says \(49,\), the layer gives \(48,\)",
    ),
    "outFeatures": (
        put("layer/4/outFeatures", 4), "descriptions_agree", "dense_rec_4",
        r"/layer/4/outFeatures says \(4,\), the layer gives \(3,\)",
    ),
    "inChannels": (
        put("layer/1/inChannels", 1), "descriptions_agree", "conv_1",
        r"/layer/1/inChannels says \(1,\), the layer gives \(2,\)",
    ),
    "outChannels": (
        put("layer/1/outChannels", 2), "descriptions_agree", "conv_1",
        r"/layer/1/outChannels says \(2,\), the layer gives \(4,\)",
    ),
    "turned kernel": (
        put("layer/1/kernelSize", np.array([2, 3])), "descriptions_agree", "conv_1",
        r"/layer/1/kernelSize says \(2, 3\), the layer gives \(3, 2\)",
    ),
    "flat kernel": (
        put("layer/1/weight", np.ones((4, 12), dtype=np.int64)), "kernels_fit", "conv_1",
        r"of shape \(4, 12\), needs \(out, in / groups, height, width\)",
    ),
    "narrow loop": (
        put("layer/4/weight_rec", np.ones((3, 2), dtype=np.int64)), "kernels_fit", "dense_rec_4",
        r"/layer/4/weight_rec is of shape \(3, 2\), needs \(3, 3\)",
    ),
    "stride 0": (
        put("layer/1/stride", np.array([0, 1])), "steps_are_integers", "conv_1",
        r"/layer/1/stride is \(0, 1\), allowed 1\.\.4096",
    ),
    "absurd stride": (
        put("layer/1/stride", np.int64(10**15)), "steps_are_integers", "conv_1",
        r"/layer/1/stride is \(1000000000000000, ",
    ),
    "float stride": (
        put("layer/1/stride", np.array([1.0, 2.0])), "steps_are_integers", "conv_1",
        r"/layer/1/stride is float64\(2,\) \[1\.0, 2\.0\]; netx needs",
    ),
    "input without shape": (put("layer/0/shape", None), "inputs_have_shapes", "input", "/layer/0 has no shape"),
    "negative input": (
        put("layer/0/shape", np.array([2, -6, 5])), "inputs_have_shapes", "input",
        r"/layer/0/shape is \(2, -6, 5\), needs 1 or 3 positive sizes",
    ),
    "two inputs": (put("layer/2/type", b"input"), "one_input_comes_first", "input_2", "/layer/2 is a second input"),
}
# fmt: on


def apply(change: Change, path: Path) -> None:
    with h5py.File(path, "a") as file:
        change(file)


def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("a worker was started")

    monkeypatch.setattr(subprocess, "Popen", fail)


@pytest.mark.parametrize("name", DAMAGES)
def test_it_is_found_and_nothing_is_started(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, rule, layer, message = DAMAGES[name]
    assert [v for v in check(path) if v.severity == "error"] == []
    apply(change, path)
    errors = [violation for violation in check(path) if violation.severity == "error"]
    found = [
        violation for violation in errors if (violation.rule, violation.layer) == (rule, layer)
    ]
    assert len(found) == 1, [str(error) for error in errors]
    assert re.search(message, found[0].message), found[0].message
    assert ";" in found[0].message  # what to do about it
    assert all("\n" not in str(error) and len(str(error)) < 400 for error in errors)
    no_worker(monkeypatch)
    with pytest.raises(DeployError, match=r"a\.net: ") as caught:
        run_on_lava(path, np.zeros((1, 2, *SHAPE), dtype=np.int64))
    assert "\n" not in str(caught.value)


def test_what_netx_runs_is_not_refused(path: Path) -> None:
    """One spread bias, one delay for all, a loop of which only one matrix is empty, kernels with a last axis of time."""
    apply(put("layer/3/bias", np.array([3])), path)
    apply(put("layer/3/delay", np.int64(2)), path)
    apply(put("layer/4/weight", np.zeros((3, 6), dtype=np.int64)), path)
    with h5py.File(path) as file:
        kernel = file["layer/1/weight"][()]
    apply(put("layer/1/weight", kernel[..., None].astype(np.float32)), path)
    assert [str(v) for v in check(path) if v.severity == "error"] == []
    network = read_net(path)
    conv, dense = network.layers[:2]
    assert isinstance(dense, Dense)
    assert dense.bias_int is not None
    assert dense.delay_int is not None
    assert dense.bias_int.tolist() == [3] * 6
    assert (dense.delay_int == 2).all()
    assert np.array_equal(conv.weight_int, kernel)


def test_every_fault_is_listed(path: Path) -> None:
    """Of the file and of the network in it, not the first alone."""
    names = [
        "fraction",
        "conv delay",
        "float threshold",
        "large bias",
        "conv weights of 9 bits",
        "outFeatures",
    ]
    for name in names:
        apply(DAMAGES[name][0], path)
    apply(put("layer/4/neuron/vDecay", 4096), path)
    found = {(violation.rule, violation.layer) for violation in check(path)}
    assert found == {DAMAGES[name][1:3] for name in names} | {
        ("decays_fit_registers", "dense_rec_4")
    }
    with pytest.raises(DeployError, match=r"\[registers_are_integers\] and 3 more$"):
        read_net(path)


def test_a_good_file_is_the_network_it_came_from(path: Path, tmp_path: Path) -> None:
    again = read_net(path)
    assert [layer.name for layer in again.layers] == ["conv_1", "dense_3", "dense_rec_4"]
    inputs = np.random.default_rng(0).integers(0, 2, (2, 12, *SHAPE))
    ours, theirs = simulate(good(), inputs), simulate(again, inputs)
    assert ours.output.sum() > 5
    np.testing.assert_array_equal(ours.output, theirs.output, strict=True)
    write_net(again, tmp_path / "b.net")
    assert read_net(tmp_path / "b.net") == again


def test_bounds_on_states_name_their_numbers() -> None:
    def of(weight: int, i_decay: int, v_decay: int, vth: int = 100, bias: int = 0) -> list[str]:
        layer = Dense(
            "fc", np.array([[weight, -1]]), Neuron(i_decay, v_decay, vth), np.array([bias])
        )
        kind = "spikes" if layer.neuron.spikes else "voltage"
        network = ChipNetwork((layer,), InputCoding((2,)), Readout(kind))  # type: ignore[arg-type]
        return [v.message for v in check(network) if v.rule == "states_fit_registers"]

    assert of(127, 4, 4095) == []  # 127 * 64 * 1024 = 8323072, below 2**23
    (message,) = of(127, 3, 4095)
    assert (
        "|u| could reach 11097429 (sum 127 * 64 * 4096 / i_decay 3), it wraps at 8388608" in message
    )
    (message,) = of(127, 4, 4, NON_SPIKING_VTH)[:1]
    assert (
        "|v| could reach 8522825728 (8323072 and bias, * 4096 / v_decay 4), it saturates at 8388607"
        in message
    )
    assert (
        of(127, 4096, 1) == []
    )  # a spiking neuron fires on the way up, and -1 alone falls to -64 * 4096
    assert "v_decay 0" in of(127, 4096, 0)[0]
    assert of(0, 4096, 2, bias=-62) == []  # (64 + 62 * 64) * 2048 = 2**23 - 2**17
    assert len(of(0, 4096, 2, bias=-63)) == 1  # 2**23


# --- the silence is real

JOBS = """
import contextlib, importlib.util, io, sys, warnings
from pathlib import Path
import numpy as np
warnings.simplefilter("ignore")

folder, worker = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("lava_worker", worker)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.load_compatibility().prepare()
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights

for job in sorted(folder.glob("job_*")):
    module.run(job)

# A loop's two matrices are optimised together, and cut apart again before Lava cuts their values.
sums = {}
with np.load(folder / "loops.npz") as loops:
    for key in loops.files:
        with contextlib.redirect_stdout(io.StringIO()):
            joint, bits, exponent, _ = optimize_weight_bits(loops[key])
        total = 0
        for part in (joint[:, :4], joint[:, 4:]):
            mode = determine_sign_mode(part)
            arrives = truncate_weights(clip_weights(part, mode, num_bits=8), mode, bits).sum(axis=1)
            total = total + (arrives << exponent if exponent > 0 else arrives >> -exponent)
        sums[key] = total
np.savez(folder / "sums.npz", **sums)
(folder / "sums.npz").rename(folder / "result.npz")
"""
OPEN = {"iDecay": 4096, "vDecay": 4095, "vThMant": NON_SPIKING_VTH}
"""Registers with which v is what arrived in this step, while it is small."""


def layer(
    file: h5py.File, index: int, kind: str, registers: dict[str, int] | None = None, **items: Any
) -> None:
    file[f"layer/{index}/type"] = np.bytes_(kind)
    for key, value in items.items():
        file[f"layer/{index}/{key}"] = value
    for key, value in (registers or {}).items():
        file[f"layer/{index}/neuron/{key}"] = value
    if registers:
        file[f"layer/{index}/neuron/type"] = np.bytes_("CUBA")


def fractions(file: h5py.File) -> None:
    layer(file, 0, "input", shape=np.array([3]))
    layer(file, 1, "dense", OPEN, shape=np.array([1]), weight=np.array([[2.9, -3.9, 0.6]]))


def power_of_two(file: h5py.File) -> None:
    layer(file, 0, "input", shape=np.array([3]))
    layer(file, 1, "dense", OPEN, shape=np.array([1]), weight=np.array([[-4, -3, -1]]))


def conv_delay(file: h5py.File) -> None:
    layer(file, 0, "input", shape=np.array([1, 1, 3]))
    layer(
        file, 1, "conv", OPEN, shape=np.array([1, 1, 3]), weight=np.array([[[[5]]]]), stride=1, padding=0, dilation=1,
        groups=1, delay=np.array([1]),
    )  # fmt: skip


def misspelt(file: h5py.File) -> None:
    layer(file, 0, "input", shape=np.array([3]))
    layer(
        file, 1, "Dense", OPEN | {"vThMant": 1000}, shape=np.array([3]), weight=np.eye(3, dtype=int)
    )
    layer(file, 2, "dense", OPEN, shape=np.array([1]), weight=np.array([[3, 2, 1]]))


def wrapping_bias(file: h5py.File) -> None:
    layer(file, 0, "input", shape=np.array([3]))
    layer(
        file, 1, "dense", OPEN | {"vDecay": 4095}, shape=np.array([1]), weight=np.array([[1, 1, 1]]),
        bias=np.array([40_000]),
    )  # fmt: skip


SILENT: dict[str, tuple[Change, str, list[int], list[int]]] = {
    # name: file, rule, what it says v / 64 is in three steps of one spike each, what Lava makes of it
    "fractions": (fractions, "weights_are_integers", [3, -4, 1], [2, -3, 0]),
    "power of two": (power_of_two, "weights_survive_netx", [-4, -3, -1], [-3, -3, -1]),
    "conv delay": (conv_delay, "delays_are_kept", [0, 5, 5], [5, 5, 5]),
    "misspelt type": (misspelt, "types_are_known", [0, 0, 0], [3, 2, 1]),
    "wrapping bias": (
        wrapping_bias,
        "biases_fit_registers",
        [40_001, 40_010, 40_010],
        [-25_535, -25_542, -25_542],
    ),
}


def loops() -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Matrices of recurrent layers, of every combination of signs, small and beyond what fits."""
    rng: Any = np.random.default_rng(3)
    pairs = []
    for _ in range(600):
        signs = rng.integers(0, 3, 2)
        limit, step = int(rng.choice([4, 33, 127, 128, 200, 256, 300])), int(rng.choice([1, 1, 2]))
        ends = [((-limit, limit), (0, limit), (-limit, 0))[sign] for sign in signs]
        new, back = (
            step * rng.integers(low // step, high // step + 1, (3, width))
            for (low, high), width in zip(ends, (4, 3), strict=True)
        )
        if new.any() or back.any():
            pairs.append((new, back))
    return pairs


@pytest.fixture(scope="module")
def lavas_voltages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file above run by the worker that `run_on_lava` starts, in one process, unchecked."""
    folder = tmp_path_factory.mktemp("silent")
    for number, (write, *_) in enumerate(SILENT.values()):
        job = folder / f"job_{number}"
        job.mkdir()
        with h5py.File(job / "a.net", "w") as file:
            write(file)
            shape = tuple(file["layer/0/shape"][()])
        content = {
            "net": str(job / "a.net"), "message_bits": 0, "readout": "voltage", "record": ["output"], "driven": False,
            "isolated": False,
        }  # fmt: skip
        (job / "job.json").write_text(json.dumps(content), encoding="utf-8")
        np.save(job / "inputs.npy", np.eye(3, dtype=np.int64).reshape(1, 3, *shape))
    np.savez(folder / "loops.npz", **{str(i): np.hstack(pair) for i, pair in enumerate(loops())})
    (folder / "script.py").write_text(JOBS, encoding="utf-8")
    supervise(
        [lava_python(), "-I", str(folder / "script.py"), str(folder), str(WORKER)], folder, LIMIT_S
    )
    return folder


@pytest.mark.parametrize("name", SILENT)
def test_lava_runs_it_wrongly_and_says_nothing(name: str, lavas_voltages: Path) -> None:
    _, rule, says, gives = SILENT[name]
    job = lavas_voltages / f"job_{list(SILENT).index(name)}"
    assert rule in {
        violation.rule for violation in check(job / "a.net") if violation.severity == "error"
    }
    with np.load(job / "result.npz") as arrays:
        output: npt.NDArray[np.int64] = arrays["output"][0]
    v = output.sum(axis=1) // 64  # of a convolution one place at a time is not 0
    assert v.tolist() == gives
    assert v.tolist() != says
    log = (lavas_voltages / "log.txt").read_text()
    assert "Traceback" not in log
    assert "rror" not in log


def test_loops_that_pass_the_rules_add_up_in_lava(lavas_voltages: Path) -> None:
    passed, wrong, corrupted = 0, [], 0
    with np.load(lavas_voltages / "result.npz") as sums:
        for number, (weight, back) in enumerate(loops()):
            network = ChipNetwork(
                (Recurrent("loop", weight, back, Neuron(4096, 4095, 100)),),
                InputCoding((4,)),
                Readout("spikes"),
            )
            added = sums[str(number)].tolist() == (weight.sum(axis=1) + back.sum(axis=1)).tolist()
            if not [violation for violation in check(network) if violation.severity == "error"]:
                passed += 1
                wrong += [] if added else [(weight.tolist(), back.tolist())]
            else:
                corrupted += not added
    assert wrong == []
    assert passed > 200
    assert corrupted > 50
