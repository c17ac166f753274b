"""DEAP's own files are pickles of Python 2: read here without running anything they say.

Two fences, each enough alone. Before unpickling, the opcodes are walked: only those that a dump of arrays needs, and
only the names numpy writes. While unpickling, these names stand for inert recorders, so that not even numpy's code runs
on what a file says; the arrays are then built from the recorded type, shape and bytes, every one of them checked.

DEAP: EEG, skin conductance and ratings of 32 people who watched 40 music videos each.

Reads the preprocessed release for Python, ``<root>/data_preprocessed_python/s01.dat`` .. ``s32.dat``: 128 Hz, EEG of
4-45 Hz against the common average, 3 s before and 60 s of each video (Koelstra et al. 2012,
https://doi.org/10.1109/T-AFFC.2011.15). The 3 s are dropped. The files do not name their channels: their order is that
of the documentation and cannot be checked. DEAP defines no official split; the windows offer those by person and trial.
"""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached, parallel
from knarr.train.datasets.files import DataReport, checked_file, inside, sha256_of
from knarr.train.datasets.physio.windows import EEG_28, EEG_32, Recordings, Trial, pick
from knarr.train.errors import DataError

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
        found = (
            sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        )
        raise DataError(
            path,
            f"wrong content: {found}, not a dict of exactly 'data' and 'labels'; restore the file",
        )
    signals = _array(path, "data", content["data"], (layout.trials, CHANNELS, layout.samples))
    ratings = _array(path, "labels", content["labels"], (layout.trials, RATINGS))
    return signals, ratings


def _damaged(path: Path, error: Exception) -> DataError:
    text = f"damaged pickle: {type(error).__name__}: {str(error)[:200]}; restore the file"
    return DataError(path, text)


def _refuse(path: Path, what: str) -> DataError:
    return DataError(
        path,
        f"unsafe pickle: {what}, which no file of DEAP needs; nothing of it was run; get the file anew",
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
    except (
        ValueError,
        OverflowError,
        DeprecationWarning,
    ) as error:  # UnicodeDecodeError is a ValueError
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
        super().__init__(
            io.BytesIO(data), encoding="latin1"
        )  # Python 2's str: one character a byte
        self.path = path
        self.encode = _Encode()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _refuse(self.path, f"it names '{module}.{name}'"[:300])
        return self.encode if name == "encode" else _Recorder(name)


def _array(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Build the array that a recorder stands for."""
    if (
        not isinstance(value, _Recorder)
        or value.name != "_reconstruct"
        or not isinstance(value.state, tuple)
    ):
        raise DataError(path, f"wrong content: '{name}' is no array; restore the file", name)
    if len(value.state) != 5:
        raise DataError(
            path, f"wrong content: '{name}' has a state of {len(value.state)} parts, not 5", name
        )
    _, found, dtype, fortran, raw = value.state
    kind = _float_type(dtype)
    if kind is None:
        reason = f"wrong type: '{name}' is not of float32 or float64 (objects are never read); restore the file"
        raise DataError(path, reason, name)
    if found != shape:
        raise DataError(
            path, f"wrong shape: '{name}' is {found!r:.100}, not {shape}; restore the file", name
        )
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    size = int(np.prod(shape)) * kind.itemsize
    if not isinstance(raw, bytes) or len(raw) != size:
        bytes_found = len(raw) if isinstance(raw, bytes) else type(raw).__name__
        raise DataError(
            path,
            f"wrong shape: '{name}' has {bytes_found} bytes, not {size}; restore the file",
            name,
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


FOLDER: Final = "data_preprocessed_python"
SUBJECTS: Final = tuple(f"s{number:02d}" for number in range(1, 33))
GSR_CHANNEL: Final = 36  # ohm
VERSION: Final = 1  # of `_prepare`
OFFICIAL: Final = Layout()

_log = logging.getLogger(__name__)


def read_deap(
    root: Path,
    *,
    subjects: Sequence[str] = SUBJECTS,
    channels: Sequence[str] = EEG_28,
    on_bad: Literal["raise", "skip"] = "raise",
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    layout: Layout = OFFICIAL,
) -> Recordings:
    """Read people's recordings, without the seconds before the video.

    Args:
        root: Folder that holds `data_preprocessed_python`.
        subjects: Whom to read, of "s01" .. "s32".
        channels: Electrodes to keep, by name and in this order, of `physio.EEG_32`.
        on_bad: "raise" at the first missing file, bad file or bad trial, or "skip": leave bad trials out, all 40 of a bad
            file, log each, count them by reason and warn once at the end.
        cache: Folder for the prepared signals, 36 MB a person; without one every file is unpickled again.
        workers: Processes to read with.
        progress: Called with (people done, people in all).
        layout: Shape of each file; DEAP's unless a test says otherwise.

    Returns:
        The trials, named "01" .. "40" in the order of the file, 7,680 samples each.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The folder is missing or holds a file that DEAP does not have, a file or a trial is bad (with
            ``on_bad="raise"``), or no trial is left.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: {on_bad!r} is neither 'raise' nor 'skip'; name one of them")
    load = partial(
        _load,
        root=root,
        channels=tuple(channels),
        cache=cache,
        layout=layout,
        strict=on_bad == "raise",
    )
    parts = _all(root, subjects, channels, load, workers, progress)
    trials = tuple(trial for part in parts for trial in part.trials)
    left_out = tuple(error for part in parts for error in part.left_out)
    missing = tuple(part.missing for part in parts if part.missing)
    found = Recordings(trials, tuple(channels), left_out, missing)
    for error in left_out:
        if on_bad == "raise":
            raise error
        _log.warning("%s", error)
    if left_out or missing:
        counts = "".join(f", {kind} {count}" for kind, count in sorted(found.skipped.items()))
        text = f"{root}: skipped {len(left_out)} bad trials{counts}; missing {', '.join(missing) or 'nothing'}"
        warnings.warn(text, stacklevel=2)
    if not trials:
        raise DataError(root, "no trials: none can be used; check the dataset")
    return found


def check(
    root: Path, *, workers: int = 1, progress: Progress | None = None, layout: Layout = OFFICIAL
) -> DataReport:
    """Read every file of DEAP and say what can be used.

    Args:
        root: Folder that holds `data_preprocessed_python`.
        workers: Processes to read with.
        progress: Called with (people done, people in all).
        layout: As for `read_deap`.

    Returns:
        Samples are trials, 1,280 in all: ``samples + len(skipped) + 40 * len(missing)`` is always that. The splits are
        the test sets of leave-one-subject-out, "loso/s01" and so on.

    Raises:
        DataError: The folder is missing, or holds files that DEAP does not have.
    """
    load = partial(_verdict, root=root, layout=layout)
    parts = _all(root, SUBJECTS, EEG_32, load, workers, progress)
    splits = {f"loso/{part.subject}": part.good for part in parts if part.good}
    return DataReport(
        name="deap",
        root=str(root),
        samples=sum(splits.values()),
        splits=splits,
        subjects=len(splits),
        skipped=tuple(str(error) for part in parts for error in part.left_out),
        missing=tuple(part.missing for part in parts if part.missing),
    )


@dataclass(frozen=True, eq=False)
class _PersonSignals:
    """What one file gave: `good` trials (kept or only counted), and one error for each of the others."""

    subject: str
    digest: str = ""
    trials: tuple[Trial, ...] = ()
    good: int = 0
    left_out: tuple[DataError, ...] = ()
    missing: str = ""


def _all(
    root: Path,
    subjects: Sequence[str],
    channels: Sequence[str],
    load: partial[_PersonSignals],
    workers: int,
    progress: Progress | None,
) -> list[_PersonSignals]:
    """Read each subject's file; refuse those with the same content, for nobody knows whose it is."""
    pick(channels)
    if not subjects or len(set(subjects)) != len(subjects) or not set(subjects) <= set(SUBJECTS):
        raise ValueError(
            f"subjects: {list(subjects)} are not different ones of s01 .. s32; name some of them"
        )
    _check_folder(root)
    parts = parallel(sorted(subjects), load, workers=workers, progress=progress)
    same: defaultdict[str, list[str]] = defaultdict(list)
    for part in parts:
        if part.digest:
            same[part.digest].append(part.subject)
    for position, part in enumerate(parts):
        others = [subject for subject in same.get(part.digest, []) if subject != part.subject]
        if others:
            reason = f"duplicate recording: the same content as {others[0]}.dat, so whose is unknown; restore both"
            path, count = root / FOLDER / f"{part.subject}.dat", part.good + len(part.left_out)
            errors = tuple(DataError(path, reason, f"trial {k:02d}") for k in range(1, count + 1))
            parts[position] = _PersonSignals(part.subject, part.digest, left_out=errors)
    return parts


def _check_folder(root: Path) -> None:
    folder = inside(root / FOLDER, root)
    if not folder.is_dir():
        raise DataError(folder, f"missing folder: not there; give the folder that holds {FOLDER}")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".dat" and path.stem not in SUBJECTS:
            raise DataError(path, "unknown file: none of s01.dat .. s32.dat; rename or remove it")


def _verdict(subject: str, *, root: Path, layout: Layout) -> _PersonSignals:
    """`_load` without the signals."""
    part = _load(subject, root=root, channels=EEG_32, cache=None, layout=layout, strict=False)
    return _PersonSignals(part.subject, part.digest, (), part.good, part.left_out, part.missing)


def _load(
    subject: str,
    *,
    root: Path,
    channels: tuple[str, ...],
    cache: Path | None,
    layout: Layout,
    strict: bool,
) -> _PersonSignals:
    """Read one subject's file; with `strict`, raise its first fault."""
    path = root / FOLDER / f"{subject}.dat"
    numbers = range(1, layout.trials + 1)
    try:
        if not strict and not path.exists() and not path.is_symlink():
            return _PersonSignals(subject, missing=f"{FOLDER}/{subject}.dat")
        checked_file(path, root, MAX_BYTES)
        digest = sha256_of(path)
        prepare = partial(_prepare, path, pick(channels), layout)
        if cache is None:
            arrays = prepare()
        else:
            settings = {
                "channels": list(channels),
                "layout": [layout.trials, layout.samples, layout.baseline],
            }
            arrays = cached(
                cache, cache_key("deap", VERSION, {path.name: digest}, settings), prepare
            )
    except DataError as error:
        if strict:
            raise
        record = "" if error.record is None else f"{error.record}, "
        errors = tuple(DataError(path, error.reason, f"{record}trial {k:02d}") for k in numbers)
        return _PersonSignals(subject, left_out=errors)
    trials, left_out = [], []
    for k in numbers:
        fault = _fault(arrays, k - 1)
        if fault is None:
            valence, arousal = map(float, arrays["labels"][k - 1, :2])
            eeg, gsr = arrays["eeg"][k - 1], arrays["gsr"][k - 1]
            trials.append(Trial(subject, f"{k:02d}", eeg, gsr, valence, arousal))
        else:
            left_out.append(DataError(path, fault, f"trial {k:02d}"))
    if strict and left_out:
        raise left_out[0]
    return _PersonSignals(subject, digest, tuple(trials), len(trials), tuple(left_out))


def _prepare(path: Path, channels: list[int], layout: Layout) -> Arrays:
    """The part of a file that is used; all of it is looked at for numbers that are none."""
    signals, ratings = read_dat(path, layout)
    largest = float(np.finfo(np.float32).max)
    finite = (np.abs(signals) <= largest).all(axis=(1, 2))  # NaN is not <= anything
    used = np.where(
        finite[:, None, None], signals[:, [*channels, GSR_CHANNEL], layout.baseline :], 0.0
    )
    return {
        "eeg": used[:, :-1].astype(np.float32),
        "gsr": used[:, -1].astype(np.float32),
        "labels": ratings.astype(np.float64),
        "finite": finite,
    }


def _fault(arrays: Arrays, row: int) -> str | None:
    if not arrays["finite"][row]:
        return "not finite: a signal is NaN, infinite or beyond float32; restore the file"
    ratings = arrays["labels"][row]
    if not ((ratings >= 1) & (ratings <= 9)).all():
        return (
            f"label out of range: ratings {ratings.tolist()} are not all 1 .. 9; restore the file"
        )
    return None
