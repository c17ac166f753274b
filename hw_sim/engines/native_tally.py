"""Counting of events at layers in the compiled kernel, while they run (csrc/cuba_tally.h)."""

from __future__ import annotations

import ctypes
from math import prod

import numpy as np

from knarr.hw_sim.arrays import Array, Int64
from knarr.hw_sim.engines.base import TallyRequest, TallyResult
from knarr.hw_sim.engines.native_layer import FastLayer, StageStruct, TallyStruct, address

MOST_STEPS = 4096
"""`MAX_TALLIED` of csrc/cuba.c."""


class KernelTally:
    """Arrays that the kernel counts one layer in.

    Args:
        layer: as the kernel takes it.
        request: what is counted.
        first: it is the first layer, whose input nobody has counted yet.
        shape: (samples, timesteps).
        threads: that count, each for itself where samples are added up.
    """

    def __init__(
        self,
        layer: FastLayer,
        request: TallyRequest,
        first: bool,
        shape: tuple[int, int],
        threads: int,
    ) -> None:
        self.layer, self.request, self.shape = layer, request, shape
        channels, height, width = layer.entering
        self.history = 0
        self.struct = TallyStruct(in_size=(height, width), out_size=layer.view.out[1:])
        self.paid = request.paid.astype(np.int32)
        self.heard = np.zeros(shape, dtype=np.int32) if first else None
        self.sent = np.zeros((threads, layer.words * 32), dtype=np.uint32)
        self.late = np.zeros((threads, 2), dtype=np.int64)
        self.reached: Int64 | None = None
        self.touched: Array | None = None
        self.own: Array | None = None
        arrays: dict[str, Array] = {"paid": self.paid}
        if request.geometry is not None:
            kernel, stride, padding, dilation = request.geometry
            self.struct.kernel, self.struct.stride = kernel, stride
            self.struct.padding, self.struct.dilation = padding, dilation
            if "reach" not in layer.derived:
                # Every channel of a pixel reaches as many outputs.
                by_pixel = request.stored.reshape(channels, -1)[0]
                edge = np.nonzero(by_pixel < by_pixel.max())[0]
                layer.derived["edge"] = edge.astype(np.int32)
                fewer = by_pixel[edge] - by_pixel.max()
                layer.derived["reach"] = fewer.astype(np.int32)
            self.struct.edges = len(layer.derived["edge"])
        elif request.delays is not None:
            self.history = self.struct.history = layer.struct.history
            if "within" not in layer.derived:
                layer.derived.update(self._delays(*request.delays))
        for name in ("edge", "reach", "within", "delay"):
            if name in layer.derived:
                arrays[name] = layer.derived[name]
        if len(arrays) > 1:
            self.reached = np.zeros(shape, dtype=np.int64)
            self.touched = np.zeros(shape, dtype=np.int32)
            arrays |= {"reached": self.reached, "touched": self.touched}
        if self.heard is not None:
            arrays["heard"] = self.heard
        if request.loop:
            self.own = np.zeros((threads, layer.struct.blocks * 32), dtype=np.uint32)
        self.arrays = arrays
        for name, array in arrays.items():
            setattr(self.struct, name, address(array))
        self.structs: list[TallyStruct] = []

    def _in_words(self, values: Array, filling: int) -> Array:
        """Reorder (..., features) to the bits of words that arrive."""
        channels, height, width = self.layer.entering
        pixels, groups = height * width, -(-channels // 32)
        by_pixel = values.reshape(-1, channels, pixels)
        wide = np.full((len(by_pixel), groups * 32, pixels), filling, dtype=np.int64)
        wide[:, :channels] = by_pixel
        return wide.swapaxes(1, 2).reshape(len(by_pixel), -1)

    def _delays(self, delay: Array, nonzero: Array) -> dict[str, Array]:
        limits = np.arange(self.history + 1)
        # Synapses of an input that act in fewer steps than there are left.
        within = np.stack(
            [
                ((delay[:, :, None] < limits) & mask[:, :, None]).sum(axis=0)
                for mask in (np.ones_like(nonzero), nonzero)
            ],
            axis=-1,
        )
        flat = within.reshape(len(within), -1).T
        by_word = self._in_words(flat, 0).T.reshape(-1, self.history + 1, 2)
        return {
            "within": np.ascontiguousarray(by_word, dtype=np.int32),
            "delay": np.ascontiguousarray(self._in_words(delay, -1), dtype=np.int16),
        }

    def fill(self, stage: StageStruct, thread: int) -> None:
        """Write addresses into the kernel's structure of one thread."""
        struct = TallyStruct()
        ctypes.memmove(ctypes.byref(struct), ctypes.byref(self.struct), ctypes.sizeof(struct))
        struct.sent = address(self.sent[thread])
        struct.nonzero, struct.late = map(address, self.late[thread, :, None])
        if self.own is not None:
            struct.own = address(self.own[thread])
        self.structs.append(struct)  # which the stage only points to
        stage.tally = ctypes.addressof(struct)

    def result(self, before: Int64 | None) -> TallyResult:
        """Return what was counted; `before` are the spikes of the layer before."""
        request, steps = self.request, self.shape[1]
        heard = before if self.heard is None else self.heard.astype(np.int64)
        assert heard is not None  # only a first layer has none before it
        derived = self.layer.derived
        if "nonzero" not in derived:
            derived["nonzero"] = self._in_words(request.nonzero, 0)[0].astype(np.float64)
        # Below 2**53 floats hold the sums, and their product has a library.
        sent = self.sent.astype(np.float64)
        nonzero_late, late = self.late.sum(axis=0).tolist()
        time = np.arange(steps)
        stored = heard * int(request.stored.max())
        if request.geometry is not None:
            assert self.reached is not None
            stored += self.reached
        stored[time >= self.paid[:, None]] = 0
        if self.history:
            assert self.reached is not None
            in_full = time < self.paid[:, None] - self.history
            stored = np.where(in_full, stored, self.reached)
        own = None
        if self.own is not None:
            outputs = prod(self.layer.view.out)
            own = self.own.sum(axis=0, dtype=np.int64)[:outputs]
        return TallyResult(
            heard,
            stored,
            int((sent @ derived["nonzero"]).sum()) + nonzero_late,
            int(sent.sum()) + late,
            None if self.touched is None else self.touched.astype(np.int64),
            own,
        )
