"""Parts of the torch engine: neurons through time, on the CPU by numba and on a device by torch, and sums of few events.

The torch engine: synapses as float matrix products that are exact, on the CPU without a compiler or on a CUDA device.

A product of integers in floats is exact in whatever order it is summed as long as no partial sum passes 2**24 (float32) or
2**53 (float64), which the weights and the largest payload bound. That leaves out what rounds on the way: TF32 is switched
off, and on a device convolutions are unfolded into matrix products, since cuDNN may take Winograd's algorithm, whose
intermediate values are no integers. Channels come last in memory, which is several times faster where they are few.
Neurons are integers: numba on the CPU (float64 that holds them), torch on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from knarr.hw_sim.arithmetic import STATE_MAX
from knarr.hw_sim.arrays import Array, Float64, Int64, IntArray
from knarr.hw_sim.network import DECAY_UNITY, Neuron

if TYPE_CHECKING:
    import torch
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path

from knarr.hw_sim.engines.base import LayerResult, Wanted
from knarr.hw_sim.engines.native import MAX_SUM
from knarr.hw_sim.engines.synapse_view import SynapseView, synapse_view
from knarr.hw_sim.network import Layer


@dataclass
class State:
    """u and v of (samples, features), float64 on the CPU, int32 on a device."""

    u: Any
    v: Any


def neurons_on_cpu(
    neuron: Neuron,
    unit: int,
    bias: Float64,
    sums: torch.Tensor,
    state: State,
    into: list[torch.Tensor],
    threads: int,
) -> Int64:
    """All steps of a block, features divided among threads.

    Args:
        neuron: the registers.
        unit: what sums were divided by.
        bias: (features,) in units of v.
        sums: (samples, timesteps, features) floats that hold integers.
        state: moved on.
        into: spikes, and u and v where they are wanted, all (samples, timesteps, features); written.
        threads: at most so many.

    Returns:
        (samples, timesteps) spikes.
    """
    from knarr.hw_sim.engines.numba_cuba import integrate

    none = np.zeros((0, 0, 0), dtype=np.int32)
    u, v = (array.numpy() for array in into[1:]) if len(into) > 1 else (none, none)
    arrays, features = sums.contiguous().numpy(), sums.shape[2]

    def part(first: int, last: int) -> Int64:
        counts = np.zeros(arrays.shape[:2], dtype=np.int64)
        integrate(
            arrays, 64.0 * unit, bias, 1 - neuron.i_decay / DECAY_UNITY, 1 - neuron.v_decay / DECAY_UNITY,
            64.0 * neuron.vth_int, state.u, state.v, into[0].numpy(), counts, u, v, first, last,
        )  # fmt: skip
        return counts

    return np.sum(_shared(part, features, threads), axis=0)


def sums_of_rows(rows: Array, frames: torch.Tensor, threads: int) -> torch.Tensor:
    """(frames, features) counts times (features, outputs) weights, event by event; (frames, outputs)."""
    import torch

    from knarr.hw_sim.engines.numba_cuba import add_rows

    x = frames.contiguous().numpy()
    sums = np.empty((len(x), rows.shape[1]), dtype=rows.dtype)
    _shared(lambda first, last: add_rows(x, rows, sums, first, last), len(x), threads)
    return torch.from_numpy(sums)


def _shared(part: Callable[[int, int], Any], n: int, threads: int) -> list[Any]:
    """`part` of first..last, by several threads where that pays."""
    threads = min(threads, max(1, n // 32))
    if threads == 1:
        return [part(0, n)]
    bounds = np.linspace(0, n, threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, bounds[:-1].tolist(), bounds[1:].tolist()))


def neurons_on_device(
    neuron: Neuron,
    unit: int,
    bias: Float64,
    sums: torch.Tensor,
    state: State,
    into: list[torch.Tensor],
    threads: int,
) -> Int64:
    """`arithmetic.step` in int32; decays in two parts, since 23 bits times 13 do not fit."""
    import torch

    driven = torch.tensor(bias, dtype=torch.int32, device=sums.device)
    threshold = 64 * neuron.vth_int

    def decay(x: torch.Tensor, register: int) -> torch.Tensor:
        keep, m = DECAY_UNITY - register, x.abs()
        return x.sign() * ((m >> 12) * keep + (((m & 4095) * keep) >> 12))

    for t in range(sums.shape[1]):
        u = decay(state.u, neuron.i_decay) + sums[:, t].to(torch.int32) * (64 * unit)
        u = torch.where(
            u > STATE_MAX, u - 2 * STATE_MAX, torch.where(u <= -STATE_MAX, u + 2 * STATE_MAX, u)
        )
        v = (decay(state.v, neuron.v_decay) + u + driven).clamp(-(STATE_MAX - 1), STATE_MAX - 1)
        fired = v > threshold
        state.u, state.v = u, v.masked_fill(fired, 0)
        into[0][:, t] = fired
        for array, values in zip(into[1:], (state.u, state.v), strict=False):
            array[:, t] = values
    return into[0].sum(dim=2, dtype=torch.int64).cpu().numpy()


FLOAT32_EXACT, FLOAT64_EXACT = 2**24, 2**53
MAX_BIAS = 2**23
SUM_BYTES = 2**23
"""Of the sums at hand, for every thread: they stay in the cache between product and neurons."""
DEVICE_SUM_BYTES = 2**28
FEW = 0.25
"""Share of inputs of a dense layer below which adding rows event by event is faster than a product."""


@dataclass(frozen=True, eq=False)
class TorchLayer:
    """A layer: its view, weights on the device, bias of every neuron in units of v, and of a dense layer on the CPU (features, outputs) weights."""

    view: SynapseView
    weight: torch.Tensor
    bias: Float64
    rows: Array | None


class TorchEngine:
    """See the module.

    Args:
        device: where.
    """

    name = "torch"

    def __init__(self, device: str) -> None:
        self.device = device

    def lay_out(self, layer: Layer, entering: tuple[int, ...], bits: int) -> TorchLayer | str:
        """See `Engine.lay_out`."""
        import torch

        view = synapse_view(layer, entering, bits)
        if isinstance(view, str):
            return view
        bias = (
            np.zeros(len(view.weight), np.int64)
            if layer.bias_int is None
            else layer.bias_int.astype(np.int64)
        )
        largest = view.bound * view.unit
        if largest >= FLOAT64_EXACT or int(np.abs(bias).max()) >= MAX_BIAS:
            return f"sums up to {largest} or its biases need more bits"
        exact = torch.float32 if view.bound < FLOAT32_EXACT else torch.float64
        weight, rows = torch.tensor(view.weight, dtype=exact, device=self.device), None
        if view.dense:
            weight = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
            rows = weight.T.contiguous().numpy() if self.device == "cpu" else None
        elif self.device == "cpu":
            weight = weight.contiguous(memory_format=torch.channels_last)
        _, high, wide = view.out
        return TorchLayer(view, weight, np.tile(64.0 * bias, high * wide), rows)

    def bytes_per_step(self, laid_out: TorchLayer) -> int:
        """Events as floats."""
        return 8 * prod(laid_out.view.entering)

    def run(
        self,
        chain: list[Any],
        events: IntArray,
        bits: int,
        wanted: list[Wanted],
        states: list[Any],
        threads: int,
        *,
        carry: bool,
    ) -> list[LayerResult] | None:
        """See `Engine.run`."""
        import torch

        before = torch.get_num_threads()
        # It takes milliseconds, and rows are added by threads of ours.
        other = threads != before and any(not layer.view.dense for layer in chain)
        if other:
            torch.set_num_threads(threads)
        try:
            with torch.inference_mode(), _exact_floats(self.device):
                block = np.ascontiguousarray(events, dtype=np.uint8 if bits <= 8 else np.int32)
                flow = torch.from_numpy(block if block.flags.writeable else block.copy())
                found = []
                arriving = flow.to(self.device).reshape(*flow.shape[:2], *chain[0].view.entering)
                arriving = arriving.permute(0, 1, 3, 4, 2).contiguous()
                for i, (layer, want) in enumerate(zip(chain, wanted, strict=True)):
                    ran, arriving, states[i] = self._layer(
                        layer, arriving, want, states[i], threads
                    )
                    # One wrap may not bring u back, nor 24 bits hold the sum of a convolution.
                    if ran.peak > MAX_SUM:
                        return None
                    found.append(ran)
                return found
        finally:
            if other:
                torch.set_num_threads(before)

    def _layer(
        self,
        layer: TorchLayer,
        arriving: torch.Tensor,
        want: Wanted,
        state: State | None,
        threads: int,
    ) -> tuple[LayerResult, torch.Tensor, State]:
        import torch

        samples, steps = arriving.shape[:2]
        outputs, high, wide = layer.view.out
        features = outputs * high * wide
        shape = (samples, steps, features)
        on_cpu = self.device == "cpu"
        state = state or self._at_rest(samples, features)
        spikes = torch.empty(shape, dtype=torch.uint8, device=self.device)
        kept = [
            torch.empty(shape, dtype=torch.int32, device=self.device)
            for _ in range(2 * want.states)
        ]
        counts = np.zeros((samples, steps), dtype=np.int64)
        peak = 0
        per_step = samples * features * layer.weight.element_size()
        block = max(1, (SUM_BYTES * threads if on_cpu else DEVICE_SUM_BYTES) // per_step)
        neurons = neurons_on_cpu if on_cpu else neurons_on_device
        for start in range(0, steps, block):
            now = slice(start, min(start + block, steps))
            sums = self._sums(layer, arriving[:, now], threads).reshape(samples, -1, features)
            low, top = torch.aminmax(sums)
            peak = max(peak, -int(low), int(top))
            into = [spikes[:, now], *(array[:, now] for array in kept)]
            counts[:, now] = neurons(
                layer.view.layer.neuron, layer.view.unit, layer.bias, sums, state, into, threads
            )

        def in_order(array: torch.Tensor) -> Array:
            image = (
                array.reshape(samples, steps, high, wide, outputs)
                .permute(0, 1, 4, 2, 3)
                .cpu()
                .numpy()
            )
            return image.reshape(samples, steps, *layer.view.layer.output_shape)

        u, v = (in_order(array) for array in kept) if kept else (None, None)
        whole = in_order(spikes) if want.spikes else None
        ran = LayerResult(counts, peak * layer.view.unit, whole, u, v)
        return ran, spikes.reshape(samples, steps, high, wide, outputs), state

    def _sums(self, layer: TorchLayer, arriving: torch.Tensor, threads: int) -> torch.Tensor:
        """(samples, steps, H, W, C) to (frames, H, W, C) sums, divided by the unit."""
        import torch
        import torch.nn.functional as F

        view = layer.view
        frames = arriving.reshape(-1, *arriving.shape[2:])
        if view.pooled:
            frames = F.pad(frames, (0, 0, 0, frames.shape[2] % 2, 0, frames.shape[1] % 2))
            rows = frames[:, ::2] + frames[:, 1::2]
            frames = rows[:, :, ::2] + rows[:, :, 1::2]
        if view.dense:
            flat = frames.reshape(len(frames), -1)
            if layer.rows is not None and np.count_nonzero(flat.numpy()) < FEW * flat.numel():
                return sums_of_rows(layer.rows, flat, threads)
            return flat.to(layer.weight.dtype) @ layer.weight.T
        x = frames.to(layer.weight.dtype)
        image = x.permute(0, 3, 1, 2)
        outputs, high, wide = view.out
        if self.device == "cpu":
            sums = F.conv2d(image, layer.weight, None, view.stride, view.padding, view.dilation)
        else:
            columns = F.unfold(image, view.kernel, view.dilation, view.padding, view.stride)
            product = torch.matmul(layer.weight.reshape(outputs, -1), columns)
            reach = view.dilation[1] * (view.kernel[1] - 1) + 1
            across = (image.shape[3] + 2 * view.padding[1] - reach) // view.stride[1] + 1
            sums = product.reshape(len(x), outputs, -1, across)
        # An odd last row or column, filled up for pooling, may give outputs that the layer does not have.
        return sums[:, :, :high, :wide].permute(0, 2, 3, 1)

    def _at_rest(self, samples: int, features: int) -> State:
        import torch

        if self.device == "cpu":
            return State(np.zeros((samples, features)), np.zeros((samples, features)))
        return State(
            *(
                torch.zeros((samples, features), dtype=torch.int32, device=self.device)
                for _ in range(2)
            )
        )


@contextmanager
def _exact_floats(device: str) -> Iterator[None]:
    """Nothing that rounds: no TF32, no autocast to 16 bits, and none of NNPACK's transforms in convolutions."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(torch.device(device).type, enabled=False),
            torch.backends.nnpack.flags(enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def cuda_device() -> str | None:
    """The CUDA device torch would use; torch, slow to import, is not asked on machines without NVIDIA's driver."""
    if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return None
    try:
        import torch
    except ImportError:
        return None
    return "cuda" if torch.cuda.is_available() else None


@cache
def torch_engine() -> TorchEngine | str:
    """The engine, proved on this device against the reference, or why there is none."""
    from knarr.hw_sim.engines.self_test import differs

    missing = [name for name in ("torch", "numba") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    device = cuda_device() or "cpu"
    try:
        wrong = differs(TorchEngine(device))
    except RuntimeError as error:  # torch's own, among them those of CUDA
        return f"it fails on {device} ({error})"
    return (
        f"it differs from the reference on {device}: {wrong}; report it"
        if wrong
        else TorchEngine(device)
    )
