"""The compiled kernel: where it is, whether it runs here, and its structures as ctypes sees them (hw_sim/csrc/cuba.c)."""

from __future__ import annotations

import ctypes
import importlib.machinery
from functools import cache
from pathlib import Path
from typing import Any

_P, _I, _F = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
WORDS, LISTS, TABLE = 0, 1, 2
LANES = 32
MAX_TAPS, MAX_LIST = 1024, 16384
MAX_SUM = 2**17
"""States are exact in float32 while 64 * |sum| stays within 2**23."""
LEVELS = ("portable vectors", "AVX2", "AVX-512")


class LayerStruct(ctypes.Structure):
    """`layer_t`."""

    _fields_ = (
        [(name, _P) for name in ("in_", "out", "weight", "dot", "bias", "state", "count", "u", "v", "peak", "windows", "bytes", "items", "begin", "events", "stop")]
        + [
            (name, _I)
            for name in (
                "mode", "steps", "channels", "groups", "planes", "blocks", "in_h", "in_w", "out_h", "out_w", "kh", "kw", "stride_y",
                "stride_x", "pad_y", "pad_x", "dil_y", "dil_x", "flush", "quads", "dot_flush", "dot_above",
                "narrow_weight", "may_wrap", "biased", "may_clip",
            )
        ]
        + [(name, _F) for name in ("keep_u", "keep_v", "threshold", "unit")]
    )  # fmt: skip


class StageStruct(ctypes.Structure):
    """`stage_t`."""

    _fields_ = (
        [("layer", LayerStruct)]
        + [(name, _I) for name in ("dense", "pool", "map_h", "map_w", "outputs")]
        + [(name, _P) for name in ("spikes", "counts", "u", "v", "peak")]
    )


class Kernel:
    """The loaded library.

    Args:
        library: as ctypes opened it.

    Attributes:
        level: index into `LEVELS` of the best instructions of this processor.
    """

    def __init__(self, library: Any) -> None:
        if library.knarr_sizes() != ctypes.sizeof(LayerStruct) << 16 | ctypes.sizeof(StageStruct):
            raise OSError("built from other sources than these")
        library.knarr_start()
        library.knarr_team.argtypes = [ctypes.POINTER(StageStruct), _I, ctypes.c_size_t, _I, _I]
        library.knarr_team.restype = _P
        library.knarr_team_free.argtypes = [_P]
        library.knarr_run.argtypes = [
            _P, _I, ctypes.POINTER(StageStruct), _I, _P, _I, _I, _I, _I, _I, _I, _I, _I, _P,
        ]  # fmt: skip
        self.team, self.free_team, self._run = library.knarr_team, library.knarr_team_free, library.knarr_run
        self.level = int(library.knarr_level())

    def run(self, *arguments: Any) -> int:
        """`knarr_run`; the interpreter is free for other threads meanwhile."""
        return int(self._run(*arguments))


@cache
def load() -> Kernel | str:
    """The kernel, or why there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_cuba{suffix}")
        if path.is_file():
            try:
                return Kernel(ctypes.CDLL(str(path)))
            except (OSError, AttributeError) as error:
                return f"{path.name} does not load ({error}); install knarr again"
    return "not built; a C compiler (cc) at install makes it"
