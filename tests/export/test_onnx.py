"""ONNX files: counted against a walk over torch modules, exported only when they compute what the module computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from knarr.export.errors import ExportError
from knarr.export.onnx_files import to_onnx
from knarr.hw_sim.counting.onnx.count import count_onnx
from knarr.hw_sim.errors import CountError

Array = npt.NDArray[Any]

CONVS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2, "bias": False},
    {"kernel_size": 1, "stride": 3, "groups": 4},
]


def walk(module: nn.Module, x: Array) -> dict[str, int]:
    """Taps of a Conv2d or Linear, one by one: padded, valid, non-zero weights, non-zero activations, both."""
    weight = module.weight.detach().numpy()
    sums = dict.fromkeys(("padded", "valid", "nonzero", "effective", "effective_nonzero"), 0)

    def tap(w: float, value: float | None) -> None:
        sums["padded"] += 1
        if value is not None:
            sums["valid"] += 1
            sums["nonzero"] += w != 0
            sums["effective"] += value != 0
            sums["effective_nonzero"] += w != 0 and value != 0

    if isinstance(module, nn.Linear):
        for row, (o, i) in product(x.reshape(-1, x.shape[-1]), np.ndindex(*weight.shape)):
            tap(weight[o, i], row[i])
        return sums
    assert isinstance(module, nn.Conv2d)
    with torch.no_grad():
        outputs = module(torch.from_numpy(x[None])).shape[1:]
    per_group = outputs[0] // module.groups
    for o, y, x_out in np.ndindex(*outputs):
        for c, j_y, j_x in np.ndindex(*weight.shape[1:]):
            at_y = y * module.stride[0] + j_y * module.dilation[0] - int(module.padding[0])
            at_x = x_out * module.stride[1] + j_x * module.dilation[1] - int(module.padding[1])
            inside = 0 <= at_y < x.shape[1] and 0 <= at_x < x.shape[2]
            tap(
                weight[o, c, j_y, j_x],
                x[o // per_group * weight.shape[1] + c, at_y, at_x] if inside else None,
            )
    return sums


def whole(*counts: Fraction) -> tuple[int, ...]:
    """Counts that must be whole numbers."""
    assert all(count.denominator == 1 for count in counts)
    return tuple(int(count) for count in counts)


def prune(module: nn.Module) -> None:
    """Every third weight becomes 0."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.view(-1)[::3] = 0


def sparse_samples(shape: tuple[int, ...], samples: int = 3) -> Array:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((samples, *shape)) * (rng.random((samples, *shape)) < 0.4)
    return values.astype(np.float32)


@pytest.mark.parametrize("options", CONVS)
def test_conv_counts_are_the_walk(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(4, 4, **options).eval()
    prune(module)
    path = tmp_path / "conv.onnx"
    to_onnx(nn.Sequential(module).eval(), (4, 7, 6), path)
    samples = sparse_samples((4, 7, 6))
    counts = count_onnx(path, samples)
    walks = [walk(module, sample) for sample in samples]
    ((name, layer),) = counts.layers.items()
    assert whole(layer.dense_padded, layer.dense_valid) == (walks[0]["padded"], walks[0]["valid"])
    assert whole(layer.mac, layer.mac_nonzero) == (walks[0]["valid"], walks[0]["nonzero"])
    assert layer.acc == layer.spikes == layer.neuron_updates == 0
    outputs = module(torch.from_numpy(samples[:1])).numel()
    assert layer.bias_adds == (outputs if module.bias is not None else 0)
    assert counts.effective is not None
    assert counts.effective_nonzero is not None
    assert counts.effective[name] == Fraction(sum(w["effective"] for w in walks), len(walks))
    assert counts.effective_nonzero[name] == Fraction(
        sum(w["effective_nonzero"] for w in walks), len(walks)
    )
    assert 0 < counts.effective_nonzero[name] < counts.effective[name] < layer.mac


class Teacher(nn.Module):
    """Everything an ANN baseline usually holds; flattens as most people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 3, 3, stride=2)
        self.fc1 = nn.Linear(3 * 2, 5)
        self.fc2 = nn.Linear(5, 2)
        self.drop = nn.Dropout(0.5)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Inputs of conv1, conv2, fc1, fc2, and the output."""
        a = nn.functional.avg_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        b = nn.functional.max_pool2d(torch.relu(self.conv2(a)), 2, padding=1)
        b = b.view(b.size(0), -1)
        c = self.drop(torch.relu(self.fc1(b)))
        return [x, a, b, c, torch.softmax(self.fc2(c), dim=1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)[-1]


def teacher() -> Teacher:
    torch.manual_seed(3)
    module = Teacher()
    module.train()
    with torch.no_grad():
        module(torch.randn(16, 2, 10, 6) * 2 + 1)  # statistics that folding must not ignore
    assert module.norm.running_mean is not None
    assert module.norm.running_mean.abs().max() > 0.05
    return module.eval()


def test_a_whole_network(tmp_path: Path) -> None:
    module, path = teacher(), tmp_path / "teacher.onnx"
    to_onnx(module, (2, 10, 6), path)
    samples = sparse_samples((2, 10, 6))
    counts = count_onnx(path, samples)
    with torch.no_grad():
        inputs = [feature.numpy() for feature in module.features(torch.from_numpy(samples))]
    parts = [module.conv1, module.conv2, module.fc1, module.fc2]
    assert counts.effective is not None
    assert [name for name, layer in counts.layers.items() if layer.mac] == list(counts.effective)
    products = {name: layer for name, layer in counts.layers.items() if layer.mac}
    for part, values, (name, layer) in zip(parts, inputs[:4], products.items(), strict=True):
        walks = [walk(part, value) for value in values]
        assert whole(layer.dense_padded, layer.dense_valid) == (
            walks[0]["padded"],
            walks[0]["valid"],
        ), name
        assert counts.effective[name] == Fraction(sum(w["effective"] for w in walks), len(walks)), (
            name
        )
    assert (
        next(iter(counts.layers.values())).bias_adds == 4 * 10 * 6
    )  # what folding the batch-norm leaves behind
    assert counts.total.mac == sum(layer.dense_valid for layer in counts.layers.values())
    assert counts.total.dense_valid < counts.total.dense_padded
    assert sum(counts.effective.values()) < counts.total.mac
    assert (counts.kind, counts.samples, counts.timesteps) == ("ann", 3, 1)
    statuses = {row.operation: row.status for row in counts.ledger}
    apart = ("AveragePool", "MaxPool", "Relu", "Softmax")
    assert [statuses[operation] for operation in apart] == ["counted"] * 4
    relus, pooled, softmax = 4 * 10 * 6 + 3 * 2 + 5, 4 * 10 * 6, 2
    assert counts.total.elementwise == relus + pooled + softmax
    assert counts.total.comparisons == 0  # padding leaves one element in each window
    assert statuses["Reshape"] == "free"
    assert statuses["Initializer"] == "folded"


def test_effective_counts_do_not_depend_on_batch_or_order(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    to_onnx(teacher(), (2, 10, 6), path)
    samples = sparse_samples((2, 10, 6), 4)
    whole = count_onnx(path, samples)
    assert whole.effective == count_onnx(path, samples[::-1].copy()).effective
    assert whole.effective is not None
    for name, mean in whole.effective.items():
        singles = [count_onnx(path, sample[None]).effective for sample in samples]
        assert sum(single[name] for single in singles if single) / len(samples) == mean
    static = count_onnx(path)
    assert static.layers == whole.layers
    assert (static.samples, static.effective, static.effective_nonzero) == (0, None, None)


def test_linear_on_a_sequence_is_matmul_and_bias(tmp_path: Path) -> None:
    module, path = (
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).eval(),
        tmp_path / "s.onnx",
    )
    to_onnx(module, (5, 4), path)
    samples = sparse_samples((5, 4))
    counts = count_onnx(path, samples)
    assert [row.operation for row in counts.ledger if row.status == "counted"] == [
        "MatMul",
        "Add",
        "Relu",
        "MatMul",
    ]
    assert whole(counts.total.mac, counts.total.bias_adds) == (5 * 4 * 3 + 5 * 3 * 2, 5 * 3)
    assert counts.effective is not None
    assert next(iter(counts.effective.values())) == Fraction(
        int(np.count_nonzero(samples)) * 3, len(samples)
    )


def save(
    path: Path,
    nodes: list[Any],
    weights: dict[str, Array],
    shape: Sequence[Any] = ("batch", 2, 5, 4),
) -> Path:
    """A hand-made file with input x of this shape and output y of as many dimensions."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


WEIGHT = np.ones((3, 2, 3, 3), dtype=np.float32)


def test_asymmetric_pads(tmp_path: Path) -> None:
    """Pads (top 1, left 0, bottom 0, right 2) on 5x4: 4x4 outputs; taps per axis counted by hand."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 0, 0, 2])
    counts = count_onnx(save(tmp_path / "m.onnx", [node], {"w": WEIGHT}))
    rows = 2 + 3 + 3 + 3  # output rows 0..3 start at input row -1, 0, 1, 2
    columns = 3 + 3 + 2 + 1  # output columns 0..3 start at input column 0..3
    assert counts.layers["conv"].dense_valid == rows * columns * 3 * 2
    assert counts.layers["conv"].dense_padded == 4 * 4 * 9 * 3 * 2
    assert counts.layers["conv"].bias_adds == 0


def test_asymmetric_pads_stand_where_the_file_says(tmp_path: Path) -> None:
    """Total taps are the same when pads change sides; the fan-out of a corner is not."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 0, 0, 2])
    path = save(tmp_path / "m.onnx", [node], {"w": WEIGHT})
    for corner, rows, columns in (((0, 0), 2, 1), ((0, 3), 2, 3), ((4, 0), 1, 1), ((4, 3), 1, 3)):
        inputs = np.zeros((1, 2, 5, 4), dtype=np.float32)
        inputs[0, 1, corner[0], corner[1]] = -1
        assert count_onnx(path, inputs).effective == {"conv": Fraction(rows * columns * 3)}


@pytest.mark.parametrize(("transposed", "shape"), [(0, (4, 3)), (1, (3, 4))])
def test_gemm_orientation(transposed: int, shape: tuple[int, int], tmp_path: Path) -> None:
    """Input 1 feeds one non-zero weight, input 0 three; only these two are active."""
    weight = np.ones((4, 3), dtype=np.float32)
    weight[1, 1:] = 0
    weight = weight.T.copy() if transposed else weight
    assert weight.shape == shape
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", transB=transposed)]
    path = save(
        tmp_path / "m.onnx", nodes, {"w": weight, "b": np.zeros(3, dtype=np.float32)}, ["batch", 4]
    )
    counts = count_onnx(path, np.array([[1, 2, 0, 0]], dtype=np.float32))
    layer = counts.layers["fc"]
    assert whole(layer.mac, layer.mac_nonzero, layer.bias_adds) == (12, 10, 3)
    assert counts.effective == {"fc": Fraction(6)}
    assert counts.effective_nonzero == {"fc": Fraction(4)}


CONV = helper.make_node("Conv", ["x", "w"], ["h"], "conv")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [CONV, helper.make_node("LpNormalization", ["h"], ["y"], "lp")],
            r"'lp' \(LpNormalization\): unsupported",
        ),
        (
            [CONV, helper.make_node("LpNormalization", ["h"], ["y"])],
            r"'LpNormalization:y' \(LpNormalization\): unsupported",
        ),
        (
            [
                CONV,
                helper.make_node(
                    "BatchNormalization",
                    ["h", *["b3"] * 4],
                    ["y", "m1", "v1"],
                    "bn",
                    training_mode=1,
                ),
            ],
            r"'bn' \(BatchNormalization\).*export in eval mode so that it folds",
        ),
        (
            [CONV, helper.make_node("Dropout", ["h", "", "true"], ["y"], "drop")],
            r"'drop' \(Dropout\).*training mode",
        ),
        (
            [
                CONV,
                helper.make_node("Relu", ["h"], ["y"]),
                helper.make_node("Relu", ["h"], ["dead"], "dead"),
            ],
            r"'dead' \(Relu\): not executed",
        ),
        ([helper.make_node("Identity", ["x"], ["y"])], "no layer that is counted"),
    ],
)
def test_what_is_not_counted_has_no_total(nodes: list[Any], message: str, tmp_path: Path) -> None:
    weights = {
        "w": WEIGHT,
        "b3": np.ones(3, dtype=np.float32),
        "true": np.array(True),
    }
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 2, 5, 5]))
    with pytest.raises(CountError, match=message):
        _ = counts.total


def test_an_operation_of_another_domain_is_refused(tmp_path: Path) -> None:
    """A custom "Relu" is not the Relu that is free; what runs only elsewhere is not run here."""
    path = save(
        tmp_path / "m.onnx",
        [CONV, helper.make_node("Relu", ["h"], ["y"], "r", domain="acme")],
        {"w": WEIGHT},
    )
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("acme", 1))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CountError, match=r"'r' \(Relu\): unsupported, operation of domain 'acme'"):
        _ = count_onnx(path).total
    with pytest.raises(CountError, match="onnxruntime cannot run it"):
        count_onnx(path, np.ones((1, 2, 5, 4), dtype=np.float32))


@pytest.mark.parametrize(
    ("changes", "elementwise"), [({"alpha": 0.5}, 12), ({"beta": 2.0}, 3), ({"transA": 1}, 0)]
)
def test_gemm_with_more_than_a_product(
    changes: dict[str, float], elementwise: int, tmp_path: Path
) -> None:
    """x^T (4, 1) times (1, 3), or a reshaped x (4, 1): what scales outputs or biases is no multiplication of a weight."""
    nodes = [
        helper.make_node("Reshape", ["x", "column"], ["c"]),
        helper.make_node(
            "Gemm", ["x" if "transA" in changes else "c", "w", "b"], ["y"], "fc", **changes
        ),
    ]
    weights = {
        "w": np.ones((1, 3), dtype=np.float32),
        "b": np.ones(3, dtype=np.float32),
        "column": np.array([4, 1]),
    }
    if "transA" in changes:
        nodes, _ = nodes[1:], weights.pop("column")
    # The transposed product fits one row alone, which onnx 1.19 does not notice.
    rows = 1 if "transA" in changes else "batch"
    layer = count_onnx(save(tmp_path / "m.onnx", nodes, weights, [rows, 4])).layers["fc"]
    assert whole(layer.mac, layer.bias_adds, layer.elementwise) == (12, 12, elementwise)


def test_eval_dropout_and_shared_weights_are_counted(tmp_path: Path) -> None:
    """One row per call site, also where the second weight is an Identity of the first."""
    nodes = [
        helper.make_node("Identity", ["w"], ["w_again"], "share"),
        helper.make_node("MatMul", ["x", "w"], ["h"], "fc"),
        helper.make_node("Dropout", ["h", "", "false"], ["g"], "drop"),
        helper.make_node("MatMul", ["g", "w_again"], ["y"], "fc"),
    ]
    weights = {"w": np.ones((4, 4), dtype=np.float32), "false": np.array(False)}
    counts = count_onnx(save(tmp_path / "m.onnx", nodes, weights, ["batch", 4]))
    assert {name: layer.mac for name, layer in counts.layers.items()} == {"fc": 16, "fc:y": 16}
    assert counts.total.mac == 32


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([4, 2, 5, 4], "fixed batch of 4"),
        (["batch", 2, "h", 4], "axis 2 is h; only the batch may be dynamic"),
    ],
)
def test_shapes_that_are_not_static(shape: list[Any], message: str, tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    with pytest.raises(CountError, match=message):
        count_onnx(save(tmp_path / "m.onnx", [node], {"w": WEIGHT}, shape))


def test_static_batch_1_is_the_same(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    fixed = count_onnx(save(tmp_path / "a.onnx", [node], {"w": WEIGHT}, [1, 2, 5, 4]))
    assert fixed == count_onnx(save(tmp_path / "b.onnx", [node], {"w": WEIGHT}))
    assert fixed.total.mac == 3 * 2 * 9 * 3 * 2


@pytest.mark.parametrize(
    "content", [b"", b"hello\nworld", b"\x00" * 64, b"\x89PNG\r\n\x1a\n", bytes(range(256)) * 8]
)
def test_what_is_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CountError, match="not a valid ONNX file") as caught:
        count_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Conv", ["x", "w"], ["y"])], {"w": WEIGHT})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CountError, match="not a valid ONNX file"):
        count_onnx(path)
    with pytest.raises(CountError, match="not a valid ONNX file"):
        count_onnx(tmp_path)
    with pytest.raises(FileNotFoundError):
        count_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((1, 2, 5, 4)), "float64, needs a float32"),
        (np.zeros((1, 2, 5, 3), dtype=np.float32), r"needs \(samples, 2, 5, 4\)"),
        (np.zeros((0, 2, 5, 4), dtype=np.float32), "at least one sample"),
        (np.full((1, 2, 5, 4), np.nan, dtype=np.float32), "NaN or infinity before 'conv'"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Array, message: str, tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    path = save(tmp_path / "m.onnx", [node], {"w": WEIGHT})
    with pytest.raises(CountError, match=message):
        count_onnx(path, inputs)


def test_exported_file_computes_the_module_at_any_batch(tmp_path: Path) -> None:
    module, path = teacher(), tmp_path / "teacher.onnx"
    to_onnx(module, (2, 10, 6), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["teacher.onnx"]
    operations = {node.op_type for node in onnx.load(path).graph.node}
    assert "Conv" in operations
    assert not operations & {"BatchNormalization", "Dropout"}
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    inputs = torch.randn(7, 2, 10, 6)
    with torch.no_grad():
        expected = module(inputs).numpy()
    assert expected.std() > 1e-3
    (got,) = session.run(["output"], {"input": inputs.numpy()})
    np.testing.assert_allclose(got, expected, atol=1e-5)  # float32, other kernels
    assert not any(part.training for part in module.modules())


class BakedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, -1)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class Tupled(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Noise(nn.Module):
    """Never the same twice: no file can compute it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.Dropout()), "train mode; call module.eval"),
        (lambda: nn.Sequential(nn.Linear(4, 2)).double().eval(), "'0.weight' is torch.float64"),
        (lambda: BakedBatch().eval(), "batch"),
        (lambda: Branch().eval(), r"\(test_onnx.py:\d+: .*it may not branch on values"),
        (lambda: Tupled().eval(), "returns tuple, needs one tensor"),
        (lambda: Noise().eval(), "differs from torch"),
        (lambda: nn.Linear(5, 2).eval(), r"cannot be exported for input \(4,\)"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(
    build: Callable[[], nn.Module],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        to_onnx(build(), (4,), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_nodes_are_named_by_their_modules_and_tell_nothing_of_this_machine(tmp_path: Path) -> None:
    """A convolution keeps its own name when the batch norm behind it is folded."""
    path = tmp_path / "teacher.onnx"
    to_onnx(nn.Sequential(teacher(), nn.Linear(2, 2)).eval(), (2, 10, 6), path)
    names = [node.name for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm")]
    assert names == ["/0.conv1/Conv", "/0.conv2/Conv", "/0.fc1/Gemm", "/0.fc2/Gemm", "/1/Gemm"]
    assert len({node.name for node in onnx.load(path).graph.node}) == len(
        onnx.load(path).graph.node
    )
    assert b".py" not in path.read_bytes()


def test_a_partly_trained_module_is_named(tmp_path: Path) -> None:
    module = teacher()
    module.norm.train()
    with pytest.raises(ExportError, match="norm is in train mode"):
        to_onnx(module, (2, 10, 6), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="input_shape"):
        to_onnx(teacher(), (), tmp_path / "m.onnx")


def test_a_failed_export_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError):
        to_onnx(Noise().eval(), (4,), path)
    assert path.read_bytes() == b"old"
    to_onnx(nn.Linear(4, 2).eval(), (4,), path)
    assert path.read_bytes() != b"old"


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        to_onnx(nn.Linear(4, 2).eval(), (4,), tmp_path / "taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_export_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    module = nn.Linear(4, 2).eval()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    to_onnx(module, (4,), tmp_path / "m.onnx")
    assert torch.equal(before, torch.get_rng_state())
