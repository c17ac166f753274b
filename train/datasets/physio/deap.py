"""DEAP: EEG, skin conductance and ratings of 32 people who watched 40 music videos each.

Reads the preprocessed release for Python, ``<root>/data_preprocessed_python/s01.dat`` ..
``s32.dat``: 128 Hz, EEG of 4-45 Hz against the common average, 3 s before and 60 s of each video
(Koelstra et al. 2012, https://doi.org/10.1109/T-AFFC.2011.15). The 3 s are dropped. The files do
not name their channels: their order is that of the documentation and cannot be checked. DEAP
defines no official split; the windows offer those by person and trial.

The files are pickles of Python 2, which are read without running anything they say. The unpickler
knows only the names that numpy writes for an array, and these stand for inert recorders, so that
not even numpy's code runs on what a file says; the arrays are then built from the recorded type,
shape and bytes, every one of them checked.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from knarr.train.datasets.arrays import AnyArray
from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached, parallel
from knarr.train.datasets.files import (
    DataReport,
    OnBad,
    checked_file,
    checked_folder,
    data_report,
    is_strict,
    kinds_text,
    sha256_of,
)
from knarr.train.datasets.physio.windows import EEG_28, EEG_32, Recordings, Trial, channel_rows
from knarr.train.errors import DataError

FOLDER = "data_preprocessed_python"
SUBJECTS = tuple(f"s{number:02d}" for number in range(1, 33))
CHANNELS = 40
GSR_CHANNEL = 36  # ohm
RATINGS = 4  # valence, arousal, dominance, liking
VERSION = 1
"""Version of `_prepare`: raise it whenever it computes something else."""
MAX_BYTES = 256 << 20  # `data` alone is 40 * 40 * 8064 * 8 = 103,219,200 bytes
MAX_ENCODED = MAX_BYTES
"""Most characters that one file may have encoded.

A text kept once and encoded 10,000 times would fill the memory.
"""
MAX_OPCODES = 10_000
"""Most opcodes of a file; a dump of two arrays has about 100.

Millions of small objects fill the memory, and the stack where they are nested.
"""
ALLOWED = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)
"""The only names a file may mention.

They are what numpy writes for an array, and what Python 3 writes for bytes.
"""
_log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The shape of a subject's file; the default is DEAP's.

    Args:
        trials: Recordings of one person.
        samples: Samples of each recording.
        baseline: Samples at its beginning, before the video.
    """

    trials: int = 40
    samples: int = 8064  # 63 s at 128 Hz
    baseline: int = 384  # 3 s


OFFICIAL = Layout()


class _PersonSignals(NamedTuple):
    """Result of one file: its good trials, and one error for each of the others.

    `good` is the number of good trials, which `trials` need not hold.
    """

    subject: str
    digest: str = ""
    trials: tuple[Trial, ...] = ()
    good: int = 0
    left_out: tuple[DataError, ...] = ()
    missing: str = ""


def read_deap(
    root: Path,
    *,
    subjects: Sequence[str] = SUBJECTS,
    channels: Sequence[str] = EEG_28,
    on_bad: OnBad = "raise",
    cache: Path | None = None,
    progress: Progress | None = None,
    layout: Layout = OFFICIAL,
) -> Recordings:
    """Read people's recordings, without the seconds before the video.

    Args:
        root: Folder that holds `data_preprocessed_python`.
        subjects: Whom to read, of "s01" .. "s32".
        channels: Electrodes to keep, by name and in this order, of `windows.EEG_32`.
        on_bad: "raise" at the first missing file, bad file or bad trial, or "skip": leave bad
            trials out, all 40 of a bad file, log each, count them by reason and warn once at the
            end.
        cache: Folder for the prepared signals, 36 MB a person; without one every file is unpickled
            again.
        progress: Called with (people done, people in all).
        layout: Shape of each file; DEAP's unless a test says otherwise.

    Returns:
        The trials, named "01" .. "40" in the order of the file, 7,680 samples each.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The folder is missing or holds a file that DEAP does not have, a file or a trial
            is bad (with ``on_bad="raise"``), or no trial is left.
    """
    strict = is_strict(on_bad)
    channel_rows(channels)  # refuses a wrong name before minutes of reading

    def load(subject: str) -> _PersonSignals:
        return _load(root, subject, tuple(channels), layout, cache=cache, strict=strict)

    people = _load_people(root, subjects, load, progress)
    trials = tuple(trial for person in people for trial in person.trials)
    left_out = tuple(error for person in people for error in person.left_out)
    missing = tuple(person.missing for person in people if person.missing)
    found = Recordings(trials, tuple(channels), left_out, missing)
    for error in left_out:
        if strict:
            raise error
        _log.warning("%s", error)
    if left_out or missing:
        counts = f", {kinds_text(found.skipped)}" if left_out else ""
        warnings.warn(
            f"{root}: skipped {len(left_out)} bad trials{counts}; missing {', '.join(missing) or 'nothing'}",
            stacklevel=2,
        )
    if not trials:
        raise DataError(root, "no trials: none can be used; check the dataset")
    return found


def check(root: Path, *, progress: Progress | None = None, layout: Layout = OFFICIAL) -> DataReport:
    """Read every file of DEAP and say what can be used.

    Args:
        root: Folder that holds `data_preprocessed_python`.
        progress: Called with (people done, people in all).
        layout: As for `read_deap`.

    Returns:
        Samples are trials, 1,280 in all: ``samples + len(skipped) + 40 * len(missing)`` is always
            that. The splits are
        the test sets of leave-one-subject-out, "loso/s01" and so on.

    Raises:
        DataError: The folder is missing, or holds files that DEAP does not have.
    """

    def count(subject: str) -> _PersonSignals:
        # Without the signals: those of 32 people take 1.3 GB.
        return _load(root, subject, EEG_32, layout)._replace(trials=())

    people = _load_people(root, SUBJECTS, count, progress)
    return data_report(
        "deap",
        root,
        {f"loso/{person.subject}": person.good for person in people if person.good},
        (error for person in people for error in person.left_out),
        missing=(person.missing for person in people if person.missing),
    )


def _load_people(
    root: Path,
    subjects: Sequence[str],
    load: Callable[[str], _PersonSignals],
    progress: Progress | None,
) -> list[_PersonSignals]:
    """Read each subject's file; refuse those of one content, for nobody knows whose it is."""
    if not subjects or len(set(subjects)) != len(subjects) or not set(subjects) <= set(SUBJECTS):
        raise ValueError(
            f"subjects: {list(subjects)} are not different ones of s01 .. s32; name some of them"
        )
    folder = checked_folder(root / FOLDER, root, f"give the folder that holds {FOLDER}")
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".dat" and path.stem not in SUBJECTS:
            raise DataError(path, "unknown file: none of s01.dat .. s32.dat; rename or remove it")
    people = parallel(sorted(subjects), load, workers=1, progress=progress)
    for position, (subject, digest, _, good, left_out, _) in enumerate(people):
        same = [other.subject for other in people if other.digest == digest]
        # Files that are missing or damaged have no digest, and then nothing in common.
        if digest and len(same) > 1:
            other = next(name for name in same if name != subject)
            reason = f"duplicate recording: the same content as {other}.dat, so whose is unknown; restore both"
            path = folder / f"{subject}.dat"
            errors = _of_each_trial(path, reason, good + len(left_out))
            people[position] = _PersonSignals(subject, digest, left_out=errors)
    return people


def _of_each_trial(
    path: Path, reason: str, n_trials: int, record: str = ""
) -> tuple[DataError, ...]:
    """Return one error for each trial of a file that is bad as a whole."""
    trials = (f"{record}trial {k:02d}" for k in range(1, n_trials + 1))
    return tuple(DataError(path, reason, trial) for trial in trials)


def _load(
    root: Path,
    subject: str,
    channels: tuple[str, ...],
    layout: Layout,
    *,
    cache: Path | None = None,
    strict: bool = False,
) -> _PersonSignals:
    """Read one subject's file; with `strict`, raise its first fault."""
    path = root / FOLDER / f"{subject}.dat"
    try:
        # A link that leads nowhere is not missing but bad: `checked_file` says so.
        if not strict and not os.path.lexists(path):
            return _PersonSignals(subject, missing=f"{FOLDER}/{subject}.dat")
        checked_file(path, root, MAX_BYTES)
        digest = sha256_of(path)
        prepare = partial(_prepare, path, channel_rows(channels), layout)
        if cache is None:
            arrays = prepare()
        else:
            settings = {"channels": channels, "layout": layout}
            key = cache_key("deap", VERSION, {path.name: digest}, settings)
            arrays = cached(cache, key, prepare)
    except DataError as error:
        if strict:
            raise
        record = "" if error.record is None else f"{error.record}, "
        errors = _of_each_trial(path, error.reason, layout.trials, record)
        return _PersonSignals(subject, left_out=errors)
    trials, left_out = [], []
    for row in range(layout.trials):
        name = f"{row + 1:02d}"
        fault = _fault(arrays, row)
        if fault is None:
            valence, arousal = map(float, arrays["labels"][row, :2])
            signals = arrays["eeg"][row], arrays["gsr"][row]
            trials.append(Trial(subject, name, *signals, valence, arousal))
        else:
            left_out.append(DataError(path, fault, f"trial {name}"))
    if strict and left_out:
        raise left_out[0]
    return _PersonSignals(subject, digest, tuple(trials), len(trials), tuple(left_out))


def _prepare(path: Path, channels: list[int], layout: Layout) -> Arrays:
    """Return the part of a file that is used; all of it is looked at for numbers that are none."""
    signals, ratings = read_dat(path, layout)
    largest = float(np.finfo(np.float32).max)
    finite = (np.abs(signals) <= largest).all(axis=(1, 2))  # NaN is not <= anything
    used = signals[:, [*channels, GSR_CHANNEL], layout.baseline :]
    # Trials that are not finite are zeroed, for a cast of theirs to float32 would warn.
    used = np.where(finite[:, None, None], used, 0.0)
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


# --- the pickles


def read_dat(path: Path, layout: Layout) -> tuple[AnyArray, AnyArray]:
    """Read one subject's file.

    Args:
        path: A file of a size that was checked (`MAX_BYTES`).
        layout: What it should hold.

    Returns:
        Signals (trials, 40, samples) and ratings (trials, 4), float32 or float64 as stored; values
        as in the file.

    Raises:
        DataError: "unsafe pickle" when it names or does what arrays do not need, "damaged pickle"
            when it is truncated or no pickle, "wrong content", "wrong type" or "wrong shape" when
            it holds something else.
    """
    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            # Python only warns of escapes that no Python wrote; here they are damage.
            warnings.simplefilter("error", DeprecationWarning)
            for _ in islice(pickletools.genops(data), MAX_OPCODES, None):
                raise _refusal(path, f"it has more than {MAX_OPCODES} opcodes")
            content = _Unpickler(path, data).load()
    except DataError:
        raise
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            OverflowError, MemoryError, DeprecationWarning) as error:  # fmt: skip
        raise DataError(
            path, f"damaged pickle: {type(error).__name__}: {str(error)[:200]}; restore the file"
        ) from error
    if not isinstance(content, dict) or set(content) != {"data", "labels"}:
        found = type(content).__name__
        if isinstance(content, dict):
            found = str(sorted(map(str, content))[:5])
        raise DataError(
            path,
            f"wrong content: {found}, not a dict of exactly 'data' and 'labels'; restore the file",
        )
    signals = _array(path, "data", content["data"], (layout.trials, CHANNELS, layout.samples))
    ratings = _array(path, "labels", content["labels"], (layout.trials, RATINGS))
    return signals, ratings


def _refusal(path: Path, what: str) -> DataError:
    return DataError(
        path,
        f"unsafe pickle: {what}, which no file of DEAP needs; nothing of it was run; get the file anew",
    )


class _Recorder:
    """Stand for a name of numpy: keep what it is called with, do nothing."""

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
    """Stand for `_codecs.encode`, with which Python 3 writes bytes into a pickle of protocol 2."""

    def __init__(self) -> None:
        self.left = MAX_ENCODED

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise TypeError(
                f"_codecs.encode of {type(text).__name__} to {encoding!r:.40}, not of text to 'latin1'"
            )
        self.left -= len(text)
        if self.left < 0:
            raise ValueError(f"_codecs.encode of more than {MAX_ENCODED} characters in all")
        return text.encode("latin1")

    # Without it, the unpickler would set what a file says as attributes of this object.
    def __setstate__(self, state: Any) -> None:
        raise TypeError("the name encode is given a state")


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows no names but those of ALLOWED.

    Every way of a pickle to a name, an instance's class included, leads through `find_class`.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(
            io.BytesIO(data), encoding="latin1"
        )  # Python 2's str: one character a byte
        self.path = path
        self.encode = _Encode()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _refusal(self.path, f"it names '{module}.{name}'"[:300])
        return self.encode if name == "encode" else _Recorder(name)


def _array(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> AnyArray:
    """Build the array that a recorder stands for."""
    fault = partial(DataError, path, record=name)
    state = value.state if isinstance(value, _Recorder) else None
    if not isinstance(state, tuple) or value.name != "_reconstruct":
        raise fault(f"wrong content: '{name}' is no array; restore the file")
    if len(state) != 5:
        raise fault(f"wrong content: '{name}' has a state of {len(state)} parts, not 5")
    # What ndarray.__setstate__ takes: version, shape, type, order, bytes.
    _, found, dtype, fortran, raw = state
    kind = _float_type(dtype)
    if kind is None:
        raise fault(
            f"wrong type: '{name}' is not of float32 or float64 (objects are never read); restore the file"
        )
    if found != shape:
        raise fault(f"wrong shape: '{name}' is {found!r:.100}, not {shape}; restore the file")
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    size = int(np.prod(shape)) * kind.itemsize
    if not isinstance(raw, bytes) or len(raw) != size:
        n_bytes = len(raw) if isinstance(raw, bytes) else type(raw).__name__
        raise fault(f"wrong shape: '{name}' has {n_bytes} bytes, not {size}; restore the file")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


def _float_type(recorded: Any) -> np.dtype[Any] | None:
    """Return the numpy type of a recorded dtype; None where it is no float.

    It was written as dtype('f8', 0, 1), say, with the state (3, '<', ...).
    """
    if not isinstance(recorded, _Recorder) or recorded.name != "dtype" or not recorded.arguments:
        return None
    code, state = recorded.arguments[0], recorded.state
    if code not in ("f4", "f8") or not isinstance(state, tuple) or len(state) < 2:
        return None
    # Byte order is a part of the state, not of the code.
    return np.dtype(state[1] + code) if state[1] in ("<", ">") else None
