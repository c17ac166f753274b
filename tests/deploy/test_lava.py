"""The simulator against running Lava, integer by integer. Each run costs seconds, so each one has to show much."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from netx_weights import netx_dense_weights

from knarr.deploy import DeployError, check, lava_python, read_net, run_on_lava, write_net
from knarr.deploy.lava.run import WORKER, supervise
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
    compare,
    simulate,
)
from knarr.hw_sim.engines.reference import synaptic_sum
from knarr.hw_sim.network import Layer

Array = npt.NDArray[Any]
LIMIT_S = 90.0
ALL = ("output", "spikes", "v")
M = 2**23
SILENT = Neuron(i_decay=4096, v_decay=4095, vth_int=NON_SPIKING_VTH)


def network(layers: list[Layer], shape: tuple[int, ...], bits: int = 1) -> ChipNetwork:
    kind = "spikes" if layers[-1].neuron.spikes else "voltage"
    return ChipNetwork(tuple(layers), InputCoding(shape, bits), Readout(kind))  # type: ignore[arg-type]


def integers(rng: np.random.Generator, low: int, high: int, shape: int | tuple[int, ...]) -> Array:
    return rng.integers(low, high, shape)


def random_spikes(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.random(shape) < 0.5).astype(np.int64)


def assert_lava_equals_simulate(net: ChipNetwork, inputs: Array, folder: Path) -> Recording:
    """Every spike and voltage of every layer; returns Lava's."""
    path = folder / "network.net"
    write_net(net, path)
    lava = run_on_lava(path, inputs, record=ALL, timeout_s=LIMIT_S)
    ours = simulate(net, inputs, record=ALL)
    assert [str(divergence) for divergence in compare(lava, ours)] == []
    for layer in net.layers:
        assert lava.v[layer.name].shape == (*inputs.shape[:2], *layer.output_shape)
        assert lava.v[layer.name].dtype == np.int64
        assert len(np.unique(lava.v[layer.name])) > 3
        assert bool(lava.spikes[layer.name].any()) == layer.neuron.spikes
        assert lava.event_counts[layer.name].tolist() == ours.event_counts[layer.name].tolist()
    assert lava.engine == "lava"
    assert lava.output.dtype == ours.output.dtype
    return lava


def test_dense_with_reset_between_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    leaky = Neuron(
        i_decay=1000, v_decay=200, vth_int=150
    )  # slow: what a wrong reset leaves behind is seen
    layers: list[Layer] = [
        Dense("first", integers(rng, -60, 100, (12, 9)), leaky),
        Dense("second", integers(rng, -60, 100, (5, 12)), leaky),
    ]
    net, inputs = network(layers, (9,)), random_spikes(rng, 7, 11, 9)
    assert compare(simulate(net, inputs), simulate(net, inputs, reset=False))
    lava = assert_lava_equals_simulate(net, inputs, tmp_path)
    assert lava.output.shape == (7, 11, 5)
    assert all(sample.any() for sample in lava.output)


def test_samples_shorter_than_the_pipeline(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    slow = Neuron(i_decay=500, v_decay=100, vth_int=70)
    layers: list[Layer] = [
        Dense(f"layer{i}", integers(rng, -20, 50, (8, 8)), slow, np.arange(-4, 4)) for i in range(4)
    ]
    net, inputs = network(layers, (8,)), random_spikes(rng, 9, 2, 8)
    assert compare(simulate(net, inputs), simulate(net, inputs, reset=False))
    assert_lava_equals_simulate(net, inputs, tmp_path)


def test_convolutions_flatten_and_voltage_readout(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    box = Neuron(i_decay=4096, v_decay=1024, vth_int=120)
    shape = (2, 9, 7)  # height and width differ, so that a transpose would show
    first = Conv(
        "c1", integers(rng, -40, 80, (4, 2, 3, 2)), box, shape, stride=(2, 1), padding=(1, 0)
    )
    second = Conv(
        "c2",
        integers(rng, -40, 80, (6, 2, 2, 2)),
        Neuron(i_decay=2000, v_decay=300, vth_int=150),
        first.output_shape,
        padding=(0, 1),
        dilation=(1, 2),
        groups=2,
        bias_int=np.array([10, -20, 30, 0, 5, -1]),
    )
    readout = Neuron(i_decay=3000, v_decay=77, vth_int=NON_SPIKING_VTH)
    dense = Dense("d", integers(rng, -90, 90, (3, prod(second.output_shape))), readout)
    lava = assert_lava_equals_simulate(
        network([first, second, dense], shape), random_spikes(rng, 3, 8, *shape), tmp_path
    )
    np.testing.assert_array_equal(lava.output, lava.v["d"], strict=True)


def test_convolutions_of_more_than_127_rows_channels_and_groups(tmp_path: Path) -> None:
    """Lava keeps strides and groups in 8 bits, which numpy 2 lets meet no larger size."""
    rng = np.random.default_rng(7)
    shape, channels = (1, 131, 3), 130
    tall = Conv(
        "tall",
        integers(rng, -60, 90, (channels, 1, 3, 3)),
        Neuron(i_decay=4096, v_decay=300, vth_int=150),
        shape,
        stride=(64, 1),
    )
    grouped = Conv(
        "grouped",
        integers(rng, -20, 60, (channels, 1, 2, 1)),
        Neuron(i_decay=4096, v_decay=300, vth_int=70),
        tall.output_shape,
        groups=channels,
    )
    assert_lava_equals_simulate(
        network([tall, grouped], shape), random_spikes(rng, 1, 6, *shape), tmp_path
    )


def test_bias_and_current_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    layers: list[Layer] = [
        Dense(
            "a", integers(rng, -50, 60, (10, 6)), Neuron(3, 4095, 500), integers(rng, -400, 400, 10)
        ),
        Dense(
            "b", integers(rng, -70, 90, (8, 10)), Neuron(4095, 1, 260), integers(rng, -30, 60, 8)
        ),
        Dense(
            "c", integers(rng, -70, 90, (4, 8)), Neuron(1, 0, 90_000), np.array([4095, -4095, 0, 1])
        ),
    ]
    net, inputs = network(layers, (6,)), random_spikes(rng, 5, 40, 6)
    lava = assert_lava_equals_simulate(net, inputs, tmp_path)
    assert (lava.v["a"] < 0).any()


def test_graded_input_wraps_current_and_clips_voltage(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    layers: list[Layer] = [
        Dense("a", integers(rng, -128, 128, (12, 24)), Neuron(400, 3, 120_000)),
        Dense("b", integers(rng, -60, 80, (5, 12)), Neuron(2048, 300, 50)),
    ]
    net, inputs = network(layers, (24,), bits=8), integers(rng, 0, 256, (5, 12, 24))
    # Two extremes which random payloads do not reach: sums beyond +-2**17 in one step.
    inputs[1, 3] = np.where(layers[0].weight_int[0] > 0, 255, 0)
    inputs[2, 5] = np.where(layers[0].weight_int[1] < 0, 255, 0)
    sums = synaptic_sum(layers[0], inputs.reshape(-1, 24)) * 64
    assert sums.max() > M
    assert sums.min() < -M
    lava = assert_lava_equals_simulate(net, inputs, tmp_path)
    assert np.abs(lava.v["a"]).max() == M - 1


def test_graded_convolution_wraps_its_sum(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    first = Conv("c", integers(rng, -128, 128, (3, 2, 3, 3)), Neuron(2000, 900, 40_000), (2, 5, 6))
    layers: list[Layer] = [
        first,
        Dense("d", integers(rng, -40, 50, (3, 36)), Neuron(3000, 300, 300)),
    ]
    inputs = integers(rng, 0, 2**16, (3, 8, 2, 5, 6))
    inputs[0, 2] = 2**16 - 1
    # The same sums without the wrap, by a Dense layer's rules: many of them do not fit 24 bits.
    centre = inputs[:, :, :, 1:4, 1:4].reshape(24, -1) @ first.weight_int.reshape(3, -1).T.astype(
        np.int64
    )
    assert (np.abs(centre) > M).mean() > 0.25
    assert_lava_equals_simulate(network(layers, (2, 5, 6), bits=16), inputs, tmp_path)


# --- what netx makes of dense weights


def voltages_of(weight: Array, inputs: Array, folder: Path) -> Array:
    """(steps, out) sums Lava delivers for a dense matrix that no rule of ours has looked at."""
    net = folder / "raw.net"
    with h5py.File(net, "w") as file:
        start = file.create_group("layer/0")
        start.create_dataset("type", data=np.bytes_("input"))
        start.create_dataset("shape", data=np.array([weight.shape[1]]))
        layer = file.create_group("layer/1")
        layer.create_dataset("type", data=np.bytes_("dense"))
        layer.create_dataset("shape", data=np.array([weight.shape[0]]))
        layer.create_dataset("weight", data=weight)
        neuron = layer.create_group("neuron")
        neuron.create_dataset("type", data=np.bytes_("CUBA"))
        for key, value in (("iDecay", 4096), ("vDecay", 4096), ("vThMant", NON_SPIKING_VTH)):
            neuron.create_dataset(key, data=np.int64(value))
    job = {
        "net": str(net),
        "message_bits": 0,
        "readout": "voltage",
        "record": ["output"],
        "driven": False,
        "isolated": False,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    np.save(folder / "inputs.npy", inputs[None])
    supervise([lava_python(), "-I", str(WORKER), str(folder)], folder, LIMIT_S)
    with np.load(folder / "result.npz") as arrays:
        output = arrays["output"][0]
    assert not np.any(output % 64)
    return output // 64


@pytest.mark.parametrize(
    ("weight", "effective"),
    [
        # Odd values too, clipped to the even 254.
        ([[300, 17, -3, 0], [-300, -256, 129, 255]], [[254, 17, -3, 0], [-256, -256, 129, 254]]),
        # Uniform in sign with a power of two at the end: 256 does not fit and is cut to the grid below.
        ([[-4, -3, -1, -2], [-4, -4, -1, -3]], [[-3, -3, -1, -2], [-3, -3, -1, -3]]),
        # Two decisions on the sign mode leave a negative number of bits.
        ([[0, -129, -130, -4]], [[0, 0, 0, 0]]),
    ],
    ids=["mixed", "power of two", "negative with zeros"],
)
def test_lava_runs_these_weights(
    weight: list[list[int]], effective: list[list[int]], tmp_path: Path
) -> None:
    matrix = np.array(weight)
    sums = voltages_of(matrix, np.eye(matrix.shape[1], dtype=np.int64), tmp_path)
    assert sums.T.tolist() == effective
    assert netx_dense_weights(matrix).tolist() == effective  # type: ignore[union-attr]


def test_lava_equals_simulate_on_weights_without_positives(tmp_path: Path) -> None:
    """Lava cuts -4 to -3.5, which a single spike rounds back to -4 and two do not."""
    weight = np.array([[0, -4, -3, -4], [-4, -4, -1, -3]])
    net = network([Dense("d", weight, SILENT)], (4,))
    inputs = np.concatenate([np.eye(4, dtype=np.int64), np.ones((3, 4), dtype=np.int64)])[None]
    path = tmp_path / "network.net"
    try:
        write_net(net, path)
    except DeployError:
        assert [violation.rule for violation in check(net)] == ["weights_survive_netx"]
        return
    lava = run_on_lava(path, inputs, record=ALL, timeout_s=LIMIT_S)
    assert [
        str(divergence) for divergence in compare(lava, simulate(net, inputs, record=ALL))
    ] == []


LAVAS_OWN_FUNCTIONS = """
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

results = {}
with np.load(folder / "matrices.npz") as matrices:
    for key in matrices.files:
        with contextlib.redirect_stdout(io.StringIO()):
            weight, bits, exponent, _ = optimize_weight_bits(matrices[key])
        mode = determine_sign_mode(weight)
        weight = truncate_weights(clip_weights(weight, mode, num_bits=8), mode, bits)
        results[key] = np.left_shift(weight, exponent) if exponent > 0 else np.right_shift(weight, -exponent)
        # All inputs at once: Lava shifts the sum, not the weights.
        total = weight.sum(axis=1)
        results["sum" + key] = np.left_shift(total, exponent) if exponent > 0 else np.right_shift(total, -exponent)
np.savez(folder / "result.tmp.npz", **results)
(folder / "result.tmp.npz").rename(folder / "result.npz")
"""


def families() -> dict[str, list[Array]]:
    rng = np.random.default_rng(6)

    def draw(low: int, high: int, *always: int, step: int = 1) -> list[Array]:
        """150 matrices between random bounds in low..high, each holding the values `always`."""
        drawn = []
        for _ in range(150):
            ends = np.sort(integers(rng, low // step, high // step + 1, 2))
            matrix = step * integers(rng, ends[0], ends[1] + 1, (2, 4))
            matrix.flat[: len(always)] = always
            drawn.append(matrix)
        return [matrix for matrix in drawn if matrix.any()]

    return {
        "mixed": draw(-256, 254, -1, 1),
        "mixed_even": draw(-256, 254, -2, 2, step=2),
        "mixed_outside": draw(-600, 600, -257, 255),
        "positive": draw(1, 255),
        "positive_with_zero": draw(0, 255, 0),
        "positive_outside": draw(0, 600, 256),
        "negative": draw(-256, -1),
        "negative_with_zero": draw(-128, 0, 0) + draw(-32, 0, 0, -32),
        "negative_with_zero_beyond_8_bits": draw(-256, 0, 0, -129),
        "negative_outside": draw(-600, 0, -257),
    }


@pytest.fixture(scope="module")
def lavas_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Lava's own functions on every matrix, in one process."""
    folder = tmp_path_factory.mktemp("weights")
    matrices = {
        f"{name}/{i}": matrix
        for name, drawn in families().items()
        for i, matrix in enumerate(drawn)
    }
    np.savez(folder / "matrices.npz", **matrices)
    script = folder / "script.py"
    script.write_text(LAVAS_OWN_FUNCTIONS, encoding="utf-8")
    supervise([lava_python(), "-I", str(script), str(folder), str(WORKER)], folder, LIMIT_S)
    with np.load(folder / "result.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.mark.parametrize("family", families())
def test_replay_of_netx_equals_lavas_functions(
    family: str, lavas_weights: dict[str, Array]
) -> None:
    matrices = families()[family]
    assert len(matrices) > 100
    wrong = [
        (matrix.tolist(), lavas_weights[f"{family}/{i}"].tolist(), netx_dense_weights(matrix))
        for i, matrix in enumerate(matrices)
        if not np.array_equal(lavas_weights[f"{family}/{i}"], netx_dense_weights(matrix))  # type: ignore[arg-type]
    ]
    assert not wrong, f"{len(wrong)} of {len(matrices)}, first (matrix, lava, replay): {wrong[0]}"


@pytest.mark.parametrize("family", families())
def test_weights_that_pass_the_rules_add_up_in_lava(
    family: str, lavas_weights: dict[str, Array]
) -> None:
    wrong, passed = [], 0
    for i, matrix in enumerate(families()[family]):
        if not check(network([Dense("d", matrix, SILENT)], (4,))):
            passed += 1
            got = lavas_weights[f"sum{family}/{i}"].tolist()
            if got != matrix.sum(axis=1).tolist():
                wrong.append((matrix.tolist(), got))
    assert not wrong, f"{len(wrong)} of {passed}, first (matrix, sums in Lava): {wrong[0]}"
    assert passed > 20 or family.endswith(("outside", "beyond_8_bits"))


def test_a_matrix_of_zeros_cannot_be_loaded() -> None:
    assert netx_dense_weights(np.zeros((2, 3), dtype=np.int64)) is None


# --- refused before anything is started


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good file, and an interpreter that would fail if it were started."""
    path = tmp_path / "network.net"
    write_net(network([Dense("d", np.array([[3, -3]]), Neuron(4096, 0, 10))], (2,)), path)
    monkeypatch.setenv("KNARR_LAVA_PYTHON", "/nonexistent/python")
    return path


def test_a_missing_file_is_refused(file: Path) -> None:
    with pytest.raises(DeployError, match="no such file"):
        run_on_lava(file.with_name("other.net"), [[[0, 1]]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.full((1, 2, 2), 0.5), "0.5"),
        (np.full((1, 2, 2), 2), "1-bit input"),
        (np.ones((1, 2, 3), dtype=int), "needs"),
    ],
)
def test_inputs_are_checked_first(file: Path, inputs: Array, message: str) -> None:
    with pytest.raises(ChipError, match=message):
        run_on_lava(file, inputs)


def test_an_unknown_record_is_refused(file: Path) -> None:
    with pytest.raises(DeployError, match=r"record: unknown \['w'\]"):
        run_on_lava(file, [[[0, 1]]], record=("w",))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "iDecay",
            np.float64(5.0),
            "iDecay must be one integer, or one per channel or neuron, is float64",
        ),
        ("vDecay", np.int64(4096), r"not run, .*v_decay 4096.*\[decays_fit_registers\]"),
    ],
)
def test_a_file_that_would_hang_or_differ_is_not_run(
    file: Path, key: str, value: Any, message: str
) -> None:
    with h5py.File(file, "r+") as net:
        del net[f"layer/1/neuron/{key}"]
        net[f"layer/1/neuron/{key}"] = value
    with pytest.raises(DeployError, match=message):
        run_on_lava(file, [[[0, 1]]])


@pytest.mark.parametrize("form", ["(C,)", "(1, 1, C)", "(W, H, C)", "(n,)"])
def test_registers_of_each_neuron_in_every_form(form: str, tmp_path: Path) -> None:
    """netx hands an array on as it is, so that it meets neurons in (W, H, C) order."""
    rng = np.random.default_rng(7)
    shape = (2, 4, 3)
    kernel = rng.integers(-60, 90, (5, 2, 2, 2))
    conv = Conv("conv", kernel, Neuron(1000, 200, 300), shape, padding=(1, 0))
    fc = Dense("fc", rng.integers(-60, 90, (6, 5 * 5 * 2)), Neuron(900, 100, 400))
    write_net(ChipNetwork((conv, fc), InputCoding(shape), Readout("spikes")), tmp_path / "a.net")
    # The file's own array, and the values that it means of the neuron (c, y, x) or (n,).
    channels, wide = np.arange(5), rng.integers(0, 999, (2, 5, 5))
    stored = {
        "(C,)": channels, "(1, 1, C)": channels[None, None], "(W, H, C)": wide, "(n,)": np.arange(6)
    }[form]  # fmt: skip
    by_place = wide.transpose(2, 1, 0) if form == "(W, H, C)" else channels.repeat(10)
    wanted = np.arange(6) if form == "(n,)" else by_place.ravel()
    index = 3 if form == "(n,)" else 1
    with h5py.File(tmp_path / "a.net", "a") as file:
        for register, low, factor in (("iDecay", 500, 1), ("vDecay", 50, 2), ("vThMant", 90, 1)):
            del file[f"layer/{index}/neuron/{register}"]
            file[f"layer/{index}/neuron/{register}"] = low + factor * stored
    network = read_net(tmp_path / "a.net")
    neuron = network.layers[1 if form == "(n,)" else 0].neuron
    assert np.array_equal(neuron.i_decay, 500 + wanted)
    assert np.array_equal(neuron.v_decay, 50 + 2 * wanted)
    assert np.array_equal(neuron.vth_int, 90 + wanted)
    inputs = rng.integers(0, 2, (2, 12, *shape))
    ours = simulate(network, inputs, record=ALL)
    assert min(int(spikes.sum()) for spikes in ours.spikes.values()) > 20
    lava = run_on_lava(tmp_path / "a.net", inputs, record=ALL, timeout_s=LIMIT_S)
    assert [str(divergence) for divergence in compare(lava, ours)] == []
    write_net(network, tmp_path / "b.net")
    assert read_net(tmp_path / "b.net") == network


@pytest.mark.parametrize("bits", [1, 8])
def test_inputs_with_a_sign(bits: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    layer = Dense("fc", rng.integers(-90, 100, (6, 9)), Neuron(900, 100, 150 * 2**bits))
    coding = InputCoding((9,), bits, signed=True)
    network = ChipNetwork((layer,), coding, Readout("spikes"))
    write_net(network, tmp_path / "a.net")
    assert read_net(tmp_path / "a.net") == network
    inputs = rng.integers(coding.limits[0], coding.limits[1] + 1, (2, 30, 9))
    ours = simulate(network, inputs, record=ALL)
    assert ours.output.any()
    lava = run_on_lava(tmp_path / "a.net", inputs, record=ALL, timeout_s=LIMIT_S)
    assert [str(divergence) for divergence in compare(lava, ours)] == []
