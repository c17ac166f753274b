"""DEAP's own files are pickles of Python 2: read here without running anything they say.

Two fences, each enough alone. Before unpickling, the opcodes are walked: only those that a dump of arrays needs, and
only the names numpy writes. While unpickling, these names stand for inert recorders, so that not even numpy's code runs
on what a file says; the arrays are then built from the recorded type, shape and bytes, every one of them checked.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from knarr.train.data_error import DataError

MAX_BYTES: Final = 256 << 20  # `data` alone is 40 * 40 * 8064 * 8 = 103,219,200 bytes
MAX_OPCODES: Final = 10_000  # a dump of two arrays has about 100

ALLOWED: Final = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)
"""The only names a file may mention: what numpy writes for an array, and what Python 3 writes for bytes."""

# Protocols 0 to 2. Not among them: names taken from the stack, the extension registry, persistent ids, instances.
# fmt: off
_OPCODES: Final = frozenset((
    "PROTO", "STOP", "MARK", "POP_MARK", "EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE",
    "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "GET", "BINGET", "LONG_BINGET", "PUT",
    "BINPUT", "LONG_BINPUT", "GLOBAL", "REDUCE", "BUILD",
))
# fmt: on


@dataclass(frozen=True)
class Layout:
    """The shape of a subject's file; the default is DEAP's.

    Args:
        trials: Recordings of one person.
        samples: Of each recording.
        baseline: Samples at its beginning, before the video.
    """

    trials: int = 40
    samples: int = 8064  # 63 s at 128 Hz
    baseline: int = 384  # 3 s


CHANNELS: Final = 40
RATINGS: Final = 4


def read_dat(path: Path, layout: Layout) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Read one subject's file.

    Args:
        path: A file of a size that was checked (`MAX_BYTES`).
        layout: What it should hold.

    Returns:
        Signals (trials, 40, samples) and ratings (trials, 4), float32 or float64 as stored; values as in the file.

    Raises:
        DataError: "unsafe pickle" when it names or does what arrays do not need, "damaged pickle" when it is truncated or
            no pickle, "wrong content", "wrong type" or "wrong shape" when it holds something else.
    """
    data = path.read_bytes()
    _walk(path, data)
    try:
        content = _Unpickler(path, data).load()
    except DataError:
        raise
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            OverflowError, MemoryError) as error:  # fmt: skip
        raise _damaged(path, error) from error
    if not isinstance(content, dict) or set(content) != {"data", "labels"}:
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise DataError(
            path, f"wrong content: {found}, not a dict of exactly 'data' and 'labels'; restore the file"
        )
    signals = _array(path, "data", content["data"], (layout.trials, CHANNELS, layout.samples))
    ratings = _array(path, "labels", content["labels"], (layout.trials, RATINGS))
    return signals, ratings


def _damaged(path: Path, error: Exception) -> DataError:
    text = f"damaged pickle: {type(error).__name__}: {str(error)[:200]}; restore the file"
    return DataError(path, text)


def _refuse(path: Path, what: str) -> DataError:
    return DataError(
        path, f"unsafe pickle: {what}, which no file of DEAP needs; nothing of it was run; get the file anew"
    )


def _walk(path: Path, data: bytes) -> None:
    """Refuse a pickle that names or does more than arrays need, before any of it is unpickled."""
    try:
        # Escapes that no Python wrote are only warned of; here they are damage.
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            _look_through(path, data)
    except DataError:
        raise
    except (ValueError, OverflowError, DeprecationWarning) as error:  # UnicodeDecodeError is a ValueError
        raise _damaged(path, error) from error


def _look_through(path: Path, data: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if (module, name) not in ALLOWED:
                raise _refuse(path, f"it names '{module}.{name}'"[:300])
        elif opcode.name not in _OPCODES:
            raise _refuse(path, f"it has the opcode {opcode.name}")
        if count >= MAX_OPCODES:
            raise _refuse(path, f"it has more than {MAX_OPCODES} opcodes")


class _Recorder:
    """Stands for a name of numpy: keeps what it is called with, does nothing."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __call__(self, *arguments: Any) -> _Recorder:
        if self.arguments is not None:
            raise TypeError(f"what {self.name} gave is called")
        return _Recorder(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        if self.arguments is None:
            raise TypeError(f"the name {self.name} is given a state")
        self.state = state


class _Encode:
    """Stands for `_codecs.encode`, with which Python 3 writes bytes into a pickle of protocol 2."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_BYTES  # or a text kept once and encoded 10,000 times would fill the memory

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise TypeError(
                f"_codecs.encode of {type(text).__name__} to {encoding!r:.40}, not of text to 'latin1'"
            )
        self.left -= len(text)
        if self.left < 0:
            raise ValueError(f"_codecs.encode of more than {MAX_BYTES} characters in all")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        raise TypeError("the name encode is given a state")


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # Python 2's str: one character a byte
        self.path = path
        self.encode = _Encode()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _refuse(self.path, f"it names '{module}.{name}'"[:300])
        return self.encode if name == "encode" else _Recorder(name)


def _array(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Build the array that a recorder stands for."""
    if not isinstance(value, _Recorder) or value.name != "_reconstruct" or not isinstance(value.state, tuple):
        raise DataError(path, f"wrong content: '{name}' is no array; restore the file", name)
    if len(value.state) != 5:
        raise DataError(path, f"wrong content: '{name}' has a state of {len(value.state)} parts, not 5", name)
    _, found, dtype, fortran, raw = value.state
    kind = _float_type(dtype)
    if kind is None:
        reason = (
            f"wrong type: '{name}' is not of float32 or float64 (objects are never read); restore the file"
        )
        raise DataError(path, reason, name)
    if found != shape:
        raise DataError(path, f"wrong shape: '{name}' is {found!r:.100}, not {shape}; restore the file", name)
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    size = int(np.prod(shape)) * kind.itemsize
    if not isinstance(raw, bytes) or len(raw) != size:
        bytes_found = len(raw) if isinstance(raw, bytes) else type(raw).__name__
        raise DataError(
            path, f"wrong shape: '{name}' has {bytes_found} bytes, not {size}; restore the file", name
        )
    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


def _float_type(recorded: Any) -> np.dtype[Any] | None:
    """The numpy type of a recorded dtype, such as dtype('f8', 0, 1) with the state (3, '<', ...)."""
    if not isinstance(recorded, _Recorder) or recorded.name != "dtype" or not recorded.arguments:
        return None
    code, state = recorded.arguments[0], recorded.state
    if (
        code not in ("f4", "f8")
        or not isinstance(state, tuple)
        or len(state) < 2
        or state[1] not in ("<", ">")
    ):
        return None
    return np.dtype(state[1] + code)
