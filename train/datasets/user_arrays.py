"""Read arrays that a user brings: one `.npz` of all clips of a split, or one `.npz` for each clip.

    inputs          (N, T, *features), of one clip (T, *features): spikes, whole numbers, or floats
    labels          (N,) classes by number or by name, or float targets (N,) or (N, k)
    teacher_inputs  (N, *any), what the teacher sees in place of the inputs
    logits          (N, outputs), what a teacher said already
    groups          (N,) person or recording that a clip belongs to
    names           (N,) names of the clips

Of one clip, the singular (`label`, `group`, `name`) does as well. Nothing is unpickled. Clips of one
split, and of the other, get one length: shorter ones are padded with zeros at their end, longer ones
are cut, and both are counted.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from knarr.arrays import MAGIC
from knarr.train.datasets.arrays import AnyArray
from knarr.train.errors import DataError

SINGULAR: Final = {"labels": "label", "groups": "group", "names": "name"}
KEYS: Final = ("inputs", "labels", "teacher_inputs", "logits", "groups", "names")
MAX_BYTES: Final = 16 << 30
"""Most bytes that the arrays of a split may unpack to: a small file may claim to hold terabytes."""
PATTERN: Final = "*?["
"""Characters that make a path a pattern of names."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class UserSplit:
    """The clips of one split, as the files hold them.

    Args:
        source: The files, for messages.
        inputs: One array (T, *features) for each clip; lengths may differ.
        labels: (N,) or (N, k).
        teacher_inputs: (N, *any), or None.
        logits: (N, outputs) float32, or None.
        groups: (N,) text or whole numbers, or None.
        names: (N,) names, all different.
    """

    source: Path
    inputs: Sequence[AnyArray]
    labels: AnyArray
    names: tuple[str, ...]
    teacher_inputs: AnyArray | None = None
    logits: AnyArray | None = None
    groups: AnyArray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def part(self, chosen: AnyArray) -> UserSplit:
        """Return the clips `chosen`."""

        def of(values: AnyArray | None) -> AnyArray | None:
            return None if values is None else values[chosen]

        return UserSplit(
            self.source,
            [self.inputs[number] for number in chosen],
            self.labels[chosen],
            tuple(self.names[number] for number in chosen),
            of(self.teacher_inputs),
            of(self.logits),
            of(self.groups),
        )


@dataclass
class Lengths:
    """Record of what was done to give all clips one length.

    Args:
        timesteps: The length.
        padded, steps_added: Clips that were shorter, and the steps of zeros that were added in all.
        cut, steps_lost: Clips that were longer, and the steps that were taken off in all.
    """

    timesteps: int
    padded: int = 0
    steps_added: int = 0
    cut: int = 0
    steps_lost: int = 0

    def sentences(self, what: str) -> list[str]:
        """Say what was done to the clips of a split; nothing where nothing was."""
        said = []
        if self.padded:
            said.append(
                f"{what}: {self.padded} clips are shorter than {self.timesteps} steps and were padded with "
                f"{self.steps_added} steps of zeros at their end"
            )
        if self.cut:
            said.append(
                f"{what}: {self.cut} clips are longer than {self.timesteps} steps and were cut: "
                f"{self.steps_lost} steps at their end are lost"
            )
        return said


def read_split(root: Path, given: str, progress: Progress | None = None) -> UserSplit:
    """Read a split strictly.

    Args:
        root: Folder that a relative path starts from.
        given: A `.npz` file, a folder of them, or a pattern such as `train/*.npz`.
        progress: Called with (files read, in all).

    Raises:
        DataError: Nothing there, or a file that is none or does not fit the others.
    """
    paths = _files(root, given)
    source = root / given
    found = []
    for number, path in enumerate(paths, start=1):
        found.append(_read(path))
        if progress is not None and len(paths) > 1:
            progress(number, len(paths))
    return _joined(source, found)


def same_length(split: UserSplit, timesteps: int) -> tuple[AnyArray, Lengths]:
    """Return (N, timesteps, *features) of all clips, and what was padded and cut for it."""
    done = Lengths(timesteps)
    shape, kind = split.inputs[0].shape[1:], np.result_type(*(clip.dtype for clip in split.inputs))
    joined = np.zeros((len(split), timesteps, *shape), kind)
    for row, clip in zip(joined, split.inputs, strict=True):
        row[: len(clip)] = clip[:timesteps]
        short = timesteps - len(clip)
        done.padded += short > 0
        done.steps_added += max(short, 0)
        done.cut += short < 0
        done.steps_lost += max(-short, 0)
    return joined, done


def _files(root: Path, given: str) -> list[Path]:
    path = root / given
    if any(character in given for character in PATTERN):
        base, pattern = root, given
        if Path(given).is_absolute():  # glob takes relative patterns alone
            base, pattern = Path(path.anchor), str(path.relative_to(path.anchor))
        paths = sorted(each for each in base.glob(pattern) if each.is_file())
        missing = "no file has such a name"
    elif path.is_dir():
        paths = sorted(path.rglob("*.npz"))
        missing = "no .npz file in this folder"
    else:
        paths = [path] if path.is_file() else []
        missing = "missing file: not there"
    if not paths:
        raise DataError(
            path, f"{missing}; give a .npz file, a folder of them, or a pattern such as train/*.npz"
        )
    return paths


@dataclass(frozen=True)
class _ArrayFile:
    """The arrays of one file under the names of KEYS, each with an axis of clips.

    Args:
        path: The file.
        arrays: The arrays.
        one_clip: Whether the file holds one clip, which has no such axis there.
    """

    path: Path
    arrays: dict[str, AnyArray]
    one_clip: bool


def _read(path: Path) -> _ArrayFile:
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > MAX_BYTES:
            raise DataError(path, f"file too large: unpacks to {claimed} > {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as archive:
            found = {str(key): archive[key] for key in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        if isinstance(error, DataError):
            raise
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                raise DataError(
                    path,
                    "one array: inputs and labels belong in one file; save both with numpy.savez_compressed(file, inputs=..., labels=...)",
                ) from error
        raise DataError(
            path,
            f"not arrays: {error}; save them with numpy.savez_compressed, clips of different lengths one in each file",
        ) from error
    plural = {single: key for key, single in SINGULAR.items()}
    named: dict[str, AnyArray] = {}
    for key, values in found.items():
        name = plural.get(key, key)
        if name not in KEYS:
            raise DataError(
                path, f"unknown array: '{key}' is none of {', '.join(KEYS)}; leave it out"
            )
        if name in named:
            raise DataError(path, f"array twice: '{key}' and '{name}'; keep one")
        if values.dtype.kind not in "biufU":
            raise DataError(
                path, f"dtype: '{key}' is {values.dtype}; give numbers, or text for names"
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(path, f"not finite: '{key}' holds NaN or infinity; clean it")
        named[name] = values
    for key in ("inputs", "labels"):
        if key not in named:
            raise DataError(path, f"missing array: no '{key}' among {', '.join(found)}; add it")
    if named["inputs"].dtype.kind == "U":
        raise DataError(path, "dtype: 'inputs' are text; give numbers")
    # Targets of one clip may be several numbers; the singular says that they are those of one.
    one_clip = "label" in found or named["labels"].ndim == 0
    if one_clip:
        named = {key: values[None] for key, values in named.items()}
    _check(path, named)
    return _ArrayFile(path, named, one_clip)


def _joined(source: Path, files: list[_ArrayFile]) -> UserSplit:
    """Put the clips of all files behind each other."""
    first = files[0].arrays
    for one in files:
        _check_alike(source, first, one)
    names = [name for one in files for name in _names(one, len(files) == 1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(source, f"names: '{twice}' stands there twice; give each clip its own")

    def all_of(key: str) -> AnyArray | None:
        return np.concatenate([one.arrays[key] for one in files]) if key in first else None

    labels = all_of("labels")
    assert labels is not None, "every file has labels"
    logits = all_of("logits")
    return UserSplit(
        source,
        [clip for one in files for clip in one.arrays["inputs"]],
        labels,
        tuple(names),
        all_of("teacher_inputs"),
        None if logits is None else logits.astype(np.float32),
        all_of("groups"),
    )


def _names(one: _ArrayFile, alone: bool) -> list[str]:
    if "names" in one.arrays:
        return [str(name) for name in one.arrays["names"]]
    if one.one_clip:
        return [one.path.stem]
    stem = "" if alone else f"{one.path.stem}/"
    return [f"{stem}{number}" for number in range(len(one.arrays["inputs"]))]


def _check_alike(source: Path, first: dict[str, AnyArray], one: _ArrayFile) -> None:
    """Refuse a file whose clips do not go with those of the first one."""
    if one.arrays.keys() != first.keys():
        differ = "', '".join(sorted(one.arrays.keys() ^ first.keys()))
        raise DataError(
            one.path, f"other arrays: '{differ}' not in all files of {source}; save all files alike"
        )
    for key, values in one.arrays.items():
        axis = 2 if key == "inputs" else 1  # clips may differ in their length
        mine, theirs = (each.shape[axis:] for each in (values, first[key]))
        if mine != theirs:
            raise DataError(
                one.path,
                f"shape: {key} of a clip are {mine}, in other files {theirs}; make them alike",
            )
        if (values.dtype.kind == "U") != (first[key].dtype.kind == "U"):
            raise DataError(
                one.path,
                f"dtype: {key} are text in some files and numbers in others; make them alike",
            )


def _check(path: Path, one: dict[str, AnyArray]) -> None:
    """Refuse arrays of a file that do not go with each other."""
    inputs = one["inputs"]
    if inputs.ndim < 3:
        raise DataError(
            path,
            f"shape: inputs {inputs.shape}; needs (clips, timesteps, *features), or (timesteps, *features) with the "
            "label of one clip",
        )
    if 0 in inputs.shape:
        raise DataError(path, f"shape: inputs {inputs.shape} hold nothing; leave the file out")
    for key, values in one.items():
        if values.ndim == 0 or len(values) != len(inputs):
            count = len(values) if values.ndim else 1
            cure = (
                "names are those of clips, names of classes go to data.classes in the recipe"
                if key == "names"
                else "give one for each clip"
            )
            raise DataError(path, f"shape: {count} {key} for {len(inputs)} clips; {cure}")
        dims: Any = {"labels": (1, 2), "logits": (2,), "groups": (1,), "names": (1,)}
        if values.ndim not in dims.get(key, range(1, 9)):
            raise DataError(path, f"shape: {key} {values.shape}; see docs/own_data.md")
