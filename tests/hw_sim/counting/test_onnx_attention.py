"""Attention and fused operators of ONNX files, in the forms in which exporters write them, against loops over pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from knarr.hw_sim import CountError, OperationCounts, count_onnx, count_torch

Array = npt.NDArray[Any]
B, L, H, E = 1, 5, 4, 3
"""Batch, length, heads of the query and width of a head."""


def file(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int]],
    outputs: dict[str, Sequence[int]],
    weights: dict[str, Array] | None = None,
    opset: int = 23,
) -> Path:
    def shaped(each: dict[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in each.items()
        ]

    stored = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", shaped(inputs), shaped(outputs), stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def counted(path: Path, **shapes: tuple[int, ...]) -> OperationCounts:
    return count_onnx(path, input_shapes=shapes)


def pairs(queries: int, keys: int, width: int, values: int) -> int:
    """Multiplications of scores and of their sums, one pair at a time."""
    return sum(1 for _ in range(queries) for _ in range(keys) for _ in range(width + values))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize("past", [0, 6])
def test_attention_of_onnx(opset: int, kv_heads: int, axes: int, past: int, tmp_path: Path) -> None:
    def shape(heads: int, length: int, width: int) -> tuple[int, ...]:
        return (B, length, heads * width) if axes == 3 else (B, heads, length, width)

    shapes = {"q": shape(H, L, E), "k": shape(kv_heads, L, E), "v": shape(kv_heads, L, 2)}
    names, results = ["q", "k", "v"], {"y": shape(H, L, 2)}
    outputs = ["y"]
    if past:
        shapes |= {"pk": (B, kv_heads, past, E), "pv": (B, kv_heads, past, 2)}
        names += ["", "pk", "pv"]
        outputs += ["nk", "nv"]
    attributes = {"is_causal": 1}
    if axes == 3:
        attributes |= {"q_num_heads": H, "kv_num_heads": kv_heads}
    node = helper.make_node("Attention", names, outputs, name="attention", **attributes)
    path = file(tmp_path / "m.onnx", [node], shapes, results, opset=opset)
    counts = counted(path, **shapes)
    total = counts.total
    assert total.mac == total.dense_padded == H * pairs(L, L + past, E, 2)
    assert total.elementwise == 3 * H * L * (L + past)


def test_effective_attention_skips_pairs_with_a_zero(tmp_path: Path) -> None:
    """Heads of one projection, two of the query for each of the keys; where key or query is 0 nothing is multiplied."""
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal((6, heads * E)) * (rng.random((6, heads * E)) < 0.6)).astype(
            np.float32
        )
        for name, heads in (("wq", H), ("wk", 2), ("wv", 2))
    }
    nodes = [helper.make_node("MatMul", ["x", f"w{one}"], [one], name=one) for one in "qkv"]
    nodes += [helper.make_node("Relu", [one], [f"{one}r"], name=f"relu_{one}") for one in "qkv"]
    nodes.append(
        helper.make_node(
            "Attention", ["qr", "kr", "vr"], ["y"], name="attention", q_num_heads=H, kv_num_heads=2
        )
    )
    path = file(tmp_path / "m.onnx", nodes, {"x": (B, L, 6)}, {"y": (B, L, H * E)}, weights)
    x = rng.standard_normal((2, L, 6)).astype(np.float32)
    counts = count_onnx(path, x)
    met = 0
    for sample in x:
        q, k, v = (
            np.maximum(sample @ weights[name], 0).reshape(L, -1, E) for name in ("wq", "wk", "wv")
        )
        for head in range(H):
            for row in range(L):
                for column in range(L):
                    both = (q[row, head] != 0) & (k[column, head // 2] != 0)
                    met += int(both.sum()) + int((v[column, head // 2] != 0).sum())
    assert counts.effective is not None
    assert counts.effective["attention"] == Fraction(met, 2)
    assert (
        counts.effective["attention"] < counts.layers["attention"].dense_valid == 2 * H * L * L * E
    )


def test_rotary_embedding(tmp_path: Path) -> None:
    node = helper.make_node("RotaryEmbedding", ["x", "c", "s"], ["y"], rotary_embedding_dim=4)
    half = np.ones((B, L, 2), dtype=np.float32)
    shape = (B, H, L, 8)
    path = file(tmp_path / "m.onnx", [node], {"x": shape}, {"y": shape}, {"c": half, "s": half})
    assert counted(path, x=shape).total.elementwise == 3 * H * L * 4


def microsoft(kind: str, inputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, ["y"], name=kind, domain="com.microsoft", **attributes)


WIDTH = H * E
FUSED: dict[str, tuple[onnx.NodeProto, dict[str, Sequence[int]], dict[str, Any], Sequence[int], int]] = {
    "MultiHeadAttention": (
        microsoft("MultiHeadAttention", ["x", "k", "v"], num_heads=H),
        {"x": (B, L, WIDTH), "k": (B, 7, WIDTH), "v": (B, 7, WIDTH)},
        {},
        (B, L, WIDTH),
        H * pairs(L, 7, E, E),
    ),
    "GroupQueryAttention": (
        microsoft("GroupQueryAttention", ["x", "k", "v", "pk", "pv"], num_heads=H, kv_num_heads=2),
        {"x": (B, L, WIDTH), "k": (B, L, 2 * E), "v": (B, L, 2 * E), "pk": (B, 2, 6, E), "pv": (B, 2, 6, E)},
        {},
        (B, L, WIDTH),
        H * pairs(L, L + 6, E, E),
    ),
    "Attention": (
        microsoft("Attention", ["x", "w", "b"], num_heads=H),
        {"x": (B, L, 8)},
        {"w": np.ones((8, 3 * WIDTH), dtype=np.float32), "b": np.ones(3 * WIDTH, dtype=np.float32)},
        (B, L, WIDTH),
        L * 8 * 3 * WIDTH + H * pairs(L, L, E, E),
    ),
    "MatMulNBits": (
        microsoft("MatMulNBits", ["x", "w", "s"], K=32, N=10, bits=4, block_size=32),
        {"x": (B, L, 32)},
        {"w": np.ones((10, 1, 16), dtype=np.uint8), "s": np.ones(10, dtype=np.float32)},
        (B, L, 10),
        L * 32 * 10,
    ),
    "FusedMatMul": (
        microsoft("FusedMatMul", ["x", "w"], transB=1, alpha=0.5),
        {"x": (B, L, 6)},
        {"w": np.ones((4, 6), dtype=np.float32)},
        (B, L, 4),
        L * 6 * 4,
    ),
    "FusedConv": (
        microsoft("FusedConv", ["x", "w", "b"], activation="Relu", kernel_shape=[3, 3]),
        {"x": (B, 2, 6, 6)},
        {"w": np.ones((4, 2, 3, 3), dtype=np.float32), "b": np.ones(4, dtype=np.float32)},
        (B, 4, 4, 4),
        4 * 16 * 18,
    ),
    "FusedGemm": (
        microsoft("FusedGemm", ["x", "w"], activation="Tanh", transB=1),
        {"x": (B, 6)},
        {"w": np.ones((4, 6), dtype=np.float32)},
        (B, 4),
        24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUSED)
def test_fused_operators(kind: str, tmp_path: Path) -> None:
    """Their shapes are known to what comes behind them too."""
    node, inputs, weights, shape, multiplications = FUSED[kind]
    behind = helper.make_node("Relu", ["y"], ["z"], name="behind")
    path = file(tmp_path / "m.onnx", [node, behind], inputs, {"z": shape}, weights)
    counts = counted(path, **{name: tuple(each) for name, each in inputs.items()})
    assert counts.total.mac == multiplications
    assert counts.layers["behind"].elementwise == np.prod(shape)
    if kind in ("FusedConv", "FusedGemm"):
        assert counts.total.elementwise == 2 * np.prod(shape)


@pytest.mark.parametrize(
    ("kind", "operands", "operations"),
    [
        ("SkipLayerNormalization", 5, (5 + 1 + 3) * L * 8 + 2 * L),
        ("SkipSimplifiedLayerNormalization", 3, (3 + 1 + 1) * L * 8 + 2 * L),
        ("BiasGelu", 2, 2 * L * 8),
        ("Gelu", 1, L * 8),
        ("QuickGelu", 1, L * 8),
    ],
)
def test_fused_elementwise(kind: str, operands: int, operations: int, tmp_path: Path) -> None:
    names = ["x", "s", "g", "b", "c"][:operands]
    weights = {name: np.ones(8, dtype=np.float32) for name in names[2 if "Skip" in kind else 1 :]}
    inputs = {name: (B, L, 8) for name in names if name not in weights}
    path = file(tmp_path / "m.onnx", [microsoft(kind, names)], inputs, {"y": (B, L, 8)}, weights)
    assert counted(path, **inputs).total.elementwise == operations


@pytest.mark.parametrize(
    ("node", "inputs", "reason"),
    [
        (microsoft("MultiHeadAttention", ["x"], num_heads=2), {"x": (B, L, 2, 3, 4)}, "in one tensor"),
        (microsoft("GroupQueryAttention", ["x", "k", "k"], num_heads=4, kv_num_heads=3), {"x": (B, L, 12), "k": (B, L, 9)}, "no attention"),
        (microsoft("Sampling", ["x"]), {"x": (B, L)}, "operation of domain"),
(helper.make_node("Attention", ["x", "k", "k"], ["y"], q_num_heads=5, kv_num_heads=3), {"x": (B, L, 12), "k": (B, L, 9)}, "heads|valid"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    node: onnx.NodeProto, inputs: dict[str, tuple[int, ...]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CountError, match=reason):
        _ = counted(file(tmp_path / "m.onnx", [node], inputs, {"y": (B, L, 12)}), **inputs).total


# What torch's current exporter writes, against torch's flop counter


class Block(nn.Module):
    """A block of a transformer; `kv_heads` below the number of heads share keys and values."""

    def __init__(
        self, width: int = 32, heads: int = 4, kv_heads: int = 4, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.causal = heads, kv_heads, causal
        shared = width // heads * kv_heads
        self.q, self.k, self.v = (
            nn.Linear(width, width),
            nn.Linear(width, shared),
            nn.Linear(width, shared),
        )
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, length, self.heads, -1).transpose(1, 2)
        k, v = (
            layer(y).view(batch, length, self.kv_heads, -1).transpose(1, 2)
            for layer in (self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=self.causal, enable_gqa=self.heads != self.kv_heads
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(x)


class Vit(nn.Module):
    """Patches of an image, a token of the class before them, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 32, 4, 4), nn.Parameter(torch.ones(1, 1, 32))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(y), -1, -1), y], 1)
        return self.head(self.blocks(y)[:, 0])


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grouped": (lambda: Block(kv_heads=2, causal=True), (1, 7, 32)),
    "vit": (Vit, (1, 3, 16, 16)),
    "decoder": (lambda: nn.Sequential(Block(causal=True), Block(causal=True)), (1, 7, 32)),
}


if "KNARR_CONFORMANCE" in os.environ:  # loading the exporter takes longer than all tests above

    @pytest.mark.filterwarnings("ignore")  # the exporter's own
    @pytest.mark.parametrize("opset", [18, 23, 24])
    @pytest.mark.parametrize("name", NETS)
    def test_what_torch_exports_today(name: str, opset: int, tmp_path: Path) -> None:
        make, shape = NETS[name]
        module, x = make().eval(), torch.randn(shape)
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            module(x)
        path = tmp_path / "m.onnx"
        torch.onnx.export(module, (x,), path, dynamo=True, opset_version=opset, verbose=False)
        written = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert ("Attention" in written) == (opset >= 23)
        assert counted(path).total.dense_padded == counter.get_total_flops() // 2
        assert count_torch(module, x).total.dense_padded == counter.get_total_flops() // 2
