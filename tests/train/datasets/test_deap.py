"""DEAP: the real format as Python 2 wrote it, every damage refused by name, and windows that divide no person."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knarr.train.datasets.physio import deap
from knarr.train.datasets.physio.deap import FOLDER, GSR_CHANNEL, Layout, check, read_dat, read_deap
from knarr.train.datasets.physio.windows import EEG_28, EEG_32, PhysioWindows, Recordings, Windowing
from knarr.train.datasets.splits import (
    assert_apart,
    leave_one_subject_out,
    subject_folds,
    trial_folds,
)
from knarr.train.errors import DataError

TINY = Layout(trials=4, samples=384 + 8 * 128, baseline=384)
PEOPLE = ("s01", "s02", "s03")
Array = npt.NDArray[Any]


def py2_array(array: Array) -> bytes:
    """The opcodes with which numpy under Python 2 writes an array at protocol 2: text is str, which is bytes."""
    raw = array.tobytes()
    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02" + array.dtype.str[1:].encode() + b"K\x00K\x01\x87R"
    order = {"<": b"<", ">": b">"}[array.dtype.str[0]]
    dtype += b"(K\x03U\x01" + order + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip


def py2_dict(**items: bytes) -> bytes:
    body = b"".join(
        b"U" + bytes([len(name)]) + name.encode() + value for name, value in items.items()
    )
    return b"\x80\x02}q\x00(" + body + b"u."


def signals(seed: int, layout: Layout = TINY) -> tuple[Array, Array]:
    """Signals (trials, 40, samples) and ratings (trials, 4); trials of high valence beat at 10 Hz, others at 20 Hz."""
    rng = np.random.default_rng(seed)
    ratings = rng.uniform(1, 9, (layout.trials, 4))
    ratings[:, 0] = np.resize([2.0, 8.0, 5.0, 9.0], layout.trials)
    time = np.arange(layout.samples) / 128
    beat = np.where(
        ratings[:, :1] > 5, np.sin(2 * np.pi * 10 * time), np.sin(2 * np.pi * 20 * time)
    )
    data = rng.normal(0, 0.5, (layout.trials, 40, layout.samples)) + beat[:, None]
    data += 100 * np.arange(40)[:, None]  # which channel
    data[:, GSR_CHANNEL] += 1e5
    return data, ratings


def write(path: Path, data: Array, ratings: Array) -> None:
    path.write_bytes(py2_dict(labels=py2_array(ratings), data=py2_array(data)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deap")
    (root / FOLDER).mkdir()
    for number, subject in enumerate(PEOPLE, start=1):
        write(root / FOLDER / f"{subject}.dat", *signals(number))
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break, of links that are broken by replacing them."""
    (tmp_path / "deap" / FOLDER).mkdir(parents=True)
    for subject in PEOPLE:
        os.link(pristine / FOLDER / f"{subject}.dat", tmp_path / "deap" / FOLDER / f"{subject}.dat")
    return tmp_path / "deap"


def put(root: Path, data: bytes, subject: str = "s02") -> None:
    path = root / FOLDER / f"{subject}.dat"
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def read(root: Path, **change: Any) -> Recordings:
    return read_deap(root, **{"subjects": PEOPLE, "layout": TINY, **change})


SMALL_LAYOUT = Layout(2, 12, 4)
SMALL = py2_dict(
    data=py2_array(signals(1, SMALL_LAYOUT)[0]),
    labels=py2_array(signals(1, SMALL_LAYOUT)[1].astype("<f4")),
)


def test_the_fixture_is_what_python_2_writes() -> None:
    """Text beyond ASCII: Python 3 cannot read it without being told how, and then reads exactly what was written."""
    data, ratings = signals(1)
    file = py2_dict(labels=py2_array(ratings), data=py2_array(data))
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(file)
    content = pickle.loads(file, encoding="latin1")
    assert np.array_equal(content["data"], data)
    assert np.array_equal(content["labels"], ratings)


@settings(max_examples=150, deadline=None)
@example(at=92, value=92, keep=1)  # a backslash makes an escape that pickletools only warns of
@given(at=st.integers(-700, 300), value=st.integers(0, 255), keep=st.integers(1, 1000))
def test_whatever_the_bytes_only_dataset_errors_come_out(at: int, value: int, keep: int) -> None:
    """One byte changed near the beginning or the end of the parts that are not signals, and cut anywhere."""
    file = bytearray(SMALL)
    file[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s01.dat"
        for content in (file, file[: len(file) * keep // 1000 or 1]):
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                data, ratings = read_dat(path, SMALL_LAYOUT)
                assert (data.shape, ratings.shape) == ((2, 40, 12), (2, 4))


def test_a_file_of_the_real_size(tmp_path: Path) -> None:
    layout = Layout()
    assert (layout.trials, layout.samples, layout.baseline) == (40, 8064, 384)
    data = np.zeros((40, 40, 8064))
    data[:, :, 384:] = np.arange(40)[:, None] + np.arange(40)[:, None, None] / 64
    assert data.nbytes == 103_219_200
    (tmp_path / FOLDER).mkdir()
    write(tmp_path / FOLDER / "s07.dat", data, np.full((40, 4), 6.0))
    found = read_deap(tmp_path, subjects=("s07",))
    assert len(found.trials) == 40
    assert [trial.trial for trial in found.trials][::39] == ["01", "40"]
    last = found.trials[39]
    assert (last.eeg.shape, last.gsr.shape) == ((28, 7680), (7680,))
    assert last.eeg.dtype == last.gsr.dtype == np.float32
    assert (last.gsr == 36 + 39 / 64).all()
    windows = PhysioWindows(found)
    assert len(windows) == 600  # 15 a trial, 19,200 of all people
    assert windows[599].shape == (29, 512)


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f4"])
def test_pickles_of_python_3_read_the_same(tmp_path: Path, protocol: int, kind: str) -> None:
    data, ratings = (array.astype(kind) for array in signals(3, Layout(2, 40, 8)))
    path = tmp_path / "s01.dat"
    path.write_bytes(
        pickle.dumps({"labels": ratings, "data": np.asfortranarray(data)}, protocol=protocol)
    )
    found = read_dat(path, Layout(2, 40, 8))
    assert np.array_equal(found[0], data)
    assert np.array_equal(found[1], ratings)
    write(path, data, ratings)
    assert np.array_equal(read_dat(path, Layout(2, 40, 8))[0], data)


def test_signals_are_those_of_the_file_by_channel(pristine: Path) -> None:
    data, ratings = signals(2)
    found = read(pristine)
    assert found.channels == EEG_28
    assert [trial.subject for trial in found.trials] == [s for s in PEOPLE for _ in range(4)]
    rows = [EEG_32.index(name) for name in EEG_28]
    assert rows == [*range(14), 16, 17, *range(19, 23), *range(24, 32)]
    trial = found.trials[5]
    assert (trial.subject, trial.trial) == ("s02", "02")
    assert np.array_equal(trial.eeg, data[1, rows, 384:].astype(np.float32))
    assert np.array_equal(trial.gsr, data[1, 36, 384:].astype(np.float32))
    assert (trial.valence, trial.arousal) == (ratings[1, 0], ratings[1, 1])
    swapped = read(pristine, channels=("O2", "Cz"))
    assert np.array_equal(swapped.trials[5].eeg, data[1, [31, 23], 384:].astype(np.float32))


def test_subjects_are_read_in_their_order_whoever_asks(pristine: Path) -> None:
    found = read(pristine, subjects=("s03", "s01"))
    assert [trial.subject for trial in found.trials] == ["s01"] * 4 + ["s03"] * 4
    for wrong in ((), ("s01", "s01"), ("s33",), ("1",)):
        with pytest.raises(ValueError, match=r"are not different ones of s01 \.\. s32"):
            read(pristine, subjects=wrong)
    with pytest.raises(ValueError, match="channels: Xz: ask for different ones of Fp1"):
        read(pristine, channels=("Xz",))


def test_the_cache_changes_nothing_but_the_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, first = read(root), read(root, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3
    monkeypatch.setattr(deap, "read_dat", None)  # not called again
    again = read(root, cache=tmp_path / "cache")
    for a, b, c in zip(plain.trials, first.trials, again.trials, strict=True):
        assert np.array_equal(a.eeg, b.eeg)
        assert np.array_equal(b.eeg, c.eeg)
        assert np.array_equal(a.gsr, c.gsr)
        assert (a.subject, a.trial, a.valence, a.arousal) == (
            c.subject,
            c.trial,
            c.valence,
            c.arousal,
        )
    monkeypatch.undo()
    data, ratings = signals(9)
    put(root, py2_dict(labels=py2_array(ratings), data=py2_array(data)))
    assert read(root, cache=tmp_path / "cache").trials[4].valence == ratings[0, 0]
    assert read(root, cache=tmp_path / "cache").trials[4].gsr[0] == np.float32(data[0, 36, 384])


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


class NumpyBomb(Bomb):
    """A name that begins like an allowed one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.lib.format.open_memmap, (str(self.target), "w+", "f8", (1,))


def attacks(target: Path) -> dict[str, tuple[bytes, str]]:
    data, ratings = signals(2)
    good = {"data": data, "labels": ratings}
    names = f"(S'{target}'\n".encode()
    return {
        "in the dict": (
            pickle.dumps({**good, "x": Bomb(target)}, 2),
            r"it names '(posix|nt)\.mkdir'",
        ),
        "alone": (pickle.dumps(Bomb(target), 2), r"it names 'posix\.mkdir'"),
        "instead of data": (
            pickle.dumps({"data": Bomb(target), "labels": ratings}, 2),
            r"posix\.mkdir",
        ),
        "protocol 0": (pickle.dumps(Bomb(target), 0), r"posix\.mkdir"),
        "protocol 4": (pickle.dumps(Bomb(target), 4), r"it names 'posix\.mkdir'"),
        "name from the stack": (
            b"\x80\x02\x8c\x05posix\x8c\x05mkdir\x93" + names + b"tR.",
            r"it names 'posix\.mkdir'",
        ),
        "name from the stack 2": (
            b"\x80\x02U\x05posixU\x05mkdir\x93" + names + b"tR.",
            r"it names 'posix\.mkdir'",
        ),
        "old instance": (b"(" + names[1:] + b"iposix\nmkdir\n.", r"it names 'posix\.mkdir'"),
        "numpy's own": (
            pickle.dumps(NumpyBomb(target), 2),
            r"it names 'numpy\.lib\.format\.open_memmap'",
        ),
        "builtins": (b"c__builtin__\neval\n" + names + b"tR.", r"it names '__builtin__\.eval'"),
        "dotted": (
            b"cnumpy\ndtype.__init__\n" + names + b"tR.",
            r"it names 'numpy\.dtype\.__init__'",
        ),
        "module with a space": (b"cnumpy dtype\nx\n.", "unsafe pickle|damaged pickle"),
        "extension": (b"\x80\x02\x82\x01.", "damaged pickle: ValueError: unregistered extension"),
        "persistent": (b"Pposix\n.", "damaged pickle: UnpicklingError: A load persistent id"),
        "hidden behind the end": (
            py2_dict(labels=py2_array(ratings), data=py2_array(data))
            + b"cposix\nmkdir\n"
            + names
            + b"tR.",
            "",
        ),
        "many opcodes": (b"\x80\x02" + b"]" * 20_000 + b".", "more than 10000 opcodes"),
    }


@pytest.mark.parametrize("case", attacks(Path("x")))
def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(
    root: Path, tmp_path: Path, case: str
) -> None:
    target = tmp_path / "ran"
    file, reason = attacks(target)[case]
    put(root, file)
    if reason:
        with pytest.raises(DataError, match=rf"s02\.dat: .*(unsafe pickle: )?.*({reason})"):
            read(root)
    else:  # what follows the end is no part of the pickle
        read(root)
    assert not target.exists()


def test_the_attacks_would_work_on_a_bare_unpickler(tmp_path: Path) -> None:
    for case in ("in the dict", "protocol 4", "old instance", "name from the stack 2"):
        target = tmp_path / case
        pickle.loads(attacks(target)[case][0])
        assert target.is_dir()


def test_no_name_but_those_of_arrays_is_found(root: Path, tmp_path: Path) -> None:
    assert len(read(root).trials) == 12
    for case in (
        "in the dict",
        "alone",
        "protocol 4",
        "name from the stack",
        "old instance",
        "builtins",
    ):
        put(root, attacks(tmp_path / "ran")[case][0])
        with pytest.raises(DataError, match="unsafe pickle: it names"):
            read(root)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "file",
    [
        b"cnumpy\ndtype\n}b.",  # a state for a name
        b"cnumpy\ndtype\n(tR(tR.",  # what a name gave is called
        b"c_codecs\nencode\n}b.",
        b"c_codecs\nencode\n(K\x01U\x06latin1tR.",
        b"c_codecs\nencode\n(U\x01xU\x05utf-8tR.",
        b"c_codecs\nencode\n(U\x06latin1tR.",
        b"\x80\x02U\x01xR.",
        b"}}K\x01s.",  # a dict as a key
        b"0.",
        b"t.",
    ],
)
def test_misused_names_are_refused(root: Path, file: bytes) -> None:
    put(root, file)
    with pytest.raises(DataError, match=r"s02\.dat: (damaged|unsafe) pickle"):
        read(root)


def test_text_is_not_encoded_without_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text, kept once and encoded again and again: small files that would fill the memory."""
    monkeypatch.setattr(deap, "MAX_ENCODED", 1 << 20)
    once = b"c_codecs\nencode\n(h\x01U\x06latin1tR"
    text = b"T" + struct.pack("<i", 60_000) + b"a" * 60_000 + b"q\x01"
    put(root, b"\x80\x02(" + text + once * 20 + b"l.")
    with pytest.raises(DataError, match="encode of more than 1048576 characters"):
        read(root)
    put(root, b"\x80\x02(" + text + once * 10 + b"l.")
    with pytest.raises(DataError, match="wrong content: list"):
        read(root)


def changed(
    data: Callable[[Array], Array] = lambda a: a, labels: Callable[[Array], Array] = lambda a: a
) -> bytes:
    own_data, own_labels = signals(2)
    return py2_dict(labels=py2_array(labels(own_labels)), data=py2_array(data(own_data)))


def set_to(value: float, *at: int) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array = array.copy()
        array[at] = value
        return array

    return change


GOOD = changed()
RAW, FEWER = (
    b"T" + struct.pack("<i", n) + signals(2)[0].tobytes()[:n] + b"tbu"
    for n in (1_802_240, 1_802_232)
)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file: 0 bytes"),
    "truncated early": (GOOD[:200], "damaged pickle"),
    "truncated late": (GOOD[:-9], "damaged pickle"),
    "without its last byte": (GOOD[:-1], "damaged pickle"),
    "no pickle": (b"PK\x03\x04" + bytes(100), "damaged pickle|unsafe pickle"),
    "39 channels": (changed(data=lambda a: a[:, :39]), r"wrong shape: 'data' is \(4, 39, 1408\), not \(4, 40, 1408\)"),
    "3 trials": (changed(lambda a: a[:3], lambda a: a[:3]), r"wrong shape: 'data' is \(3, 40, 1408\)"),
    "transposed": (changed(data=lambda a: a.transpose(0, 2, 1).copy()), "wrong shape: 'data'"),
    "three ratings": (changed(labels=lambda a: a[:, :3].copy()), r"wrong shape: 'labels' is \(4, 3\)"),
    "integers": (changed(data=lambda a: a.astype("<i8")), "wrong type: 'data' is not of float32 or float64"),
    "objects": (
        pickle.dumps({"data": signals(2)[0].astype(object), "labels": signals(2)[1]}, 2)[:300_000],
        "unsafe pickle: it has more than 10000 opcodes",
    ),
    "few objects": (
        pickle.dumps({"data": np.array([1, None]), "labels": signals(2)[1]}, 2),
        r"wrong type: 'data' is not of float32 or float64 \(objects are never read\)",
    ),
    "no labels": (py2_dict(data=py2_array(signals(2)[0])), r"wrong content: \['data'\], not a dict of exactly"),
    "another key": (GOOD[:-2] + b"U\x01xK\x01u.", r"wrong content: \['data', 'labels', 'x'\]"),
    "a list": (b"\x80\x02].", "wrong content: list"),
    "numbers for arrays": (py2_dict(data=b"K\x01", labels=b"K\x02"), "wrong content: 'data' is no array"),
    "a name for an array": (
        py2_dict(data=b"cnumpy\nndarray\n", labels=b"K\x02"),
        "wrong content: 'data' is no array",
    ),
    "fewer bytes": (GOOD.replace(RAW, FEWER), r"wrong shape: 'data' has 1802232 bytes, not 1802240"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_by_name_and_skipped_when_asked(root: Path, case: str) -> None:
    file, reason = BAD_FILES[case]
    put(root, file)
    with pytest.raises(DataError, match=rf"s02\.dat: .*({reason})") as caught:
        read(root)
    kind = caught.value.kind
    with pytest.warns(UserWarning, match=f"skipped 4 bad trials, {kind} 4; missing nothing"):
        found = read(root, on_bad="skip")
    assert found.skipped == {kind: 4}
    assert {trial.subject for trial in found.trials} == {"s01", "s03"}
    assert [str(error.record)[-8:] for error in found.left_out] == [
        f"trial 0{k}" for k in (1, 2, 3, 4)
    ]


NAN, INF = float("nan"), float("inf")
BAD_TRIALS: dict[str, tuple[bytes, str]] = {
    "NaN in EEG": (changed(data=set_to(NAN, 1, 3, 900)), "not finite: a signal is NaN"),
    "infinite resistance": (changed(data=set_to(INF, 1, 36, 900)), "not finite"),
    "NaN in an unused channel": (changed(data=set_to(NAN, 1, 39, 900)), "not finite"),
    "NaN before the video": (changed(data=set_to(-INF, 1, 0, 0)), "not finite"),
    "beyond float32": (changed(data=set_to(1e39, 1, 0, 900)), "not finite"),
    "rating 0": (
        changed(labels=set_to(0.0, 1, 0)),
        "label out of range: ratings .* are not all 1 .. 9",
    ),
    "rating 9.01": (changed(labels=set_to(9.01, 1, 1)), "label out of range"),
    "rating NaN": (changed(labels=set_to(NAN, 1, 1)), "label out of range"),
    "unused rating": (changed(labels=set_to(0.9, 1, 3)), "label out of range"),
}


@pytest.mark.parametrize("case", BAD_TRIALS)
@pytest.mark.parametrize("cache", [False, True])
def test_a_bad_trial_is_refused_by_name_and_skipped_when_asked(
    root: Path, tmp_path: Path, case: str, cache: bool
) -> None:
    file, reason = BAD_TRIALS[case]
    put(root, file)
    where = {"cache": tmp_path / "cache"} if cache else {}
    with pytest.raises(DataError, match=rf"s02\.dat: record trial 02: {reason}") as caught:
        read(root, **where)
    for _ in range(1 + cache):
        with pytest.warns(UserWarning, match=f"skipped 1 bad trials, {caught.value.kind} 1"):
            found = read(root, on_bad="skip", **where)
        assert [(t.subject, t.trial) for t in found.trials][4:7] == [
            ("s02", "01"),
            ("s02", "03"),
            ("s02", "04"),
        ]
        assert len(found.trials) == 11


def test_ratings_at_the_ends_are_good(root: Path) -> None:
    put(root, changed(labels=lambda a: np.resize([1.0, 9.0], a.shape)))
    assert {trial.valence for trial in read(root).trials[4:8]} == {1.0}


def test_a_missing_file_is_named(root: Path) -> None:
    (root / FOLDER / "s02.dat").unlink()
    with pytest.raises(DataError, match=r"s02\.dat: missing file"):
        read(root)
    with pytest.warns(UserWarning, match=f"skipped 0 bad trials; missing {FOLDER}/s02.dat"):
        found = read(root, on_bad="skip")
    assert found.missing == (f"{FOLDER}/s02.dat",)
    assert len(found.trials) == 8
    with (
        pytest.warns(UserWarning, match="missing"),
        pytest.raises(DataError, match="no trials: none can be used"),
    ):
        read(root, subjects=("s09",), on_bad="skip")


def test_a_broken_folder_is_always_refused(root: Path, tmp_path: Path) -> None:
    for on_bad in ("raise", "skip"):
        with pytest.raises(
            DataError, match=f"{FOLDER}: missing folder: .* the folder that holds {FOLDER}"
        ):
            read(root / FOLDER, on_bad=on_bad)
    (root / FOLDER / "s33.dat").write_bytes(b"x")
    with pytest.raises(DataError, match=r"s33\.dat: unknown file"):
        read(root, on_bad="skip")
    (root / FOLDER / "s33.dat").rename(root / FOLDER / "s02 (copy).dat")
    with pytest.raises(DataError, match=r"s02 \(copy\)\.dat: unknown file"):
        check(root, layout=TINY)
    (root / FOLDER / "s02 (copy).dat").unlink()
    (root / FOLDER / "s02.dat").rename(tmp_path / "s02.dat")
    (root / FOLDER / "s02.dat").symlink_to(tmp_path / "s02.dat")
    with pytest.raises(DataError, match=r"s02\.dat: outside root"):
        read(root)
    with pytest.raises(ValueError, match="on_bad: 'ignore' is neither"):
        read(root, on_bad="ignore")


def test_the_same_recording_of_two_people_is_neither_s(root: Path) -> None:
    put(root, (root / FOLDER / "s01.dat").read_bytes(), "s03")
    with pytest.raises(
        DataError, match=r"s01\.dat: record trial 01: duplicate recording: .* s03\.dat"
    ):
        read(root)
    with pytest.warns(UserWarning, match="skipped 8 bad trials, duplicate recording 8"):
        found = read(root, on_bad="skip")
    assert {trial.subject for trial in found.trials} == {"s02"}
    assert check(root, layout=TINY).subjects == 1


def test_too_large_a_file_is_not_read(root: Path) -> None:
    put(root, b"x")
    os.truncate(root / FOLDER / "s02.dat", (256 << 20) + 1)
    with pytest.raises(DataError, match="file too large: 268435457 > 268435456"):
        read(root)


def test_check_accounts_for_every_trial(root: Path) -> None:
    put(root, BAD_TRIALS["rating 0"][0])
    put(root, BAD_FILES["truncated late"][0], "s03")
    done: list[tuple[int, int]] = []
    report = check(root, layout=TINY, progress=lambda *at: done.append(at))
    assert done[-1] == (32, 32)
    assert (report.name, report.samples, report.subjects) == ("deap", 7, 2)
    assert report.splits == {"loso/s01": 4, "loso/s02": 3}
    assert len(report.skipped) == 5
    assert len(report.missing) == 29
    assert report.samples + len(report.skipped) + 4 * len(report.missing) == 32 * 4
    assert "s02.dat: record trial 02: label out of range" in report.skipped[0]
    assert f"{FOLDER}/s04.dat" in report.missing


def test_windows_hold_what_the_trials_hold(pristine: Path) -> None:
    found = read(pristine)
    windows = PhysioWindows(found, Windowing(window_s=2.0, stride_s=1.0, normalise="none"))
    assert len(windows) == 12 * 7
    sample = windows[7 * 5 + 3]
    trial = found.trials[5]
    assert (windows.subjects[7 * 5 + 3], windows.trials[7 * 5 + 3]) == ("s02", "02")
    assert np.array_equal(sample[:28], trial.eeg[:, 384:640])
    assert np.array_equal(sample[28], trial.gsr[384:640])
    assert sample.dtype == np.float32
    siemens = PhysioWindows(found, Windowing(normalise="none", gsr_unit="siemens"))[0]
    # 1 / x, rounded to float32 once
    np.testing.assert_allclose(siemens[28], 1 / found.trials[0].gsr[:512], rtol=1e-6)
    assert windows.subjects[:3].tolist() == ["s01"] * 3
    assert windows.valence[:3].tolist() == [0] * 3


def test_each_window_is_scaled_by_itself(pristine: Path) -> None:
    found = read(pristine)
    windows = PhysioWindows(found)
    assert len(windows) == 24
    for k in (0, 23):
        assert np.abs(windows[k].mean(axis=1)).max() < 1e-5
        assert np.abs(windows[k].std(axis=1) - 1).max() < 1e-4
    flat = replace(found.trials[0], gsr=np.full(1024, 0.1, np.float32))
    assert (PhysioWindows(replace(found, trials=(flat,)))[0][28] == 0).all()


@pytest.mark.parametrize(
    ("rating", "inclusive", "label"),
    [
        (5.0, False, 0),
        (5.0, True, 1),
        (5.01, False, 1),
        (4.99, True, 0),
        (1.0, False, 0),
        (9.0, False, 1),
    ],
)
def test_labels(rating: float, inclusive: bool, label: int) -> None:
    assert Windowing(inclusive=inclusive).label(rating) == label


def test_what_cannot_be_cut_is_refused(pristine: Path) -> None:
    found = read(pristine)
    with pytest.raises(
        DataError, match="subject s01: record trial 01: short trial: 1024 < 1280 samples"
    ):
        PhysioWindows(found, Windowing(window_s=10.0))
    negative = replace(found.trials[0], gsr=-found.trials[0].gsr)
    with pytest.raises(
        DataError, match=r"no conductance: resistance -.* is not above 0; use gsr_unit='ohm'"
    ):
        PhysioWindows(replace(found, trials=(negative,)), Windowing(gsr_unit="siemens"))
    with pytest.raises(DataError, match="wrong shape: EEG"):
        PhysioWindows(replace(found, channels=("Cz",)))
    with pytest.raises(DataError, match="no trials"):
        PhysioWindows(Recordings((), EEG_28))
    with pytest.raises(ValueError, match="two trials of a person have the same name"):
        PhysioWindows(replace(found, trials=found.trials[:1] * 2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"window_s": 0.0}, "window_s: 0.0 s is 0.0 samples"),
        ({"stride_s": 0.001}, "stride_s: 0.001 s is 0.128 samples"),
        ({"window_s": NAN}, "window_s: nan s"),
        ({"stride_s": INF}, "stride_s: inf s"),
        ({"threshold": 0.0}, "threshold: 0.0 outside the ratings 1 .. 9"),
        ({"gsr_unit": "volt"}, "gsr_unit: 'volt' is neither"),
        ({"normalise": "all"}, "normalise: 'all' is neither"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Windowing(**change)


def test_splits_divide_no_person_and_no_trial(pristine: Path) -> None:
    windows = PhysioWindows(read(pristine))
    everything = list(range(24))
    folds = leave_one_subject_out(windows.subjects)
    assert list(folds) == list(PEOPLE)
    assert sorted(np.concatenate([fold.test for fold in folds.values()]).tolist()) == everything
    for fold in (*folds.values(), *subject_folds(windows.subjects, 3, seed=1)):
        assert_apart(windows.subjects, *fold)
    trials = np.char.add(windows.subjects, windows.trials)
    by_trial = trial_folds(windows.subjects, windows.trials, 4, seed=1)
    assert sorted(np.concatenate([fold.test for fold in by_trial]).tolist()) == everything
    for fold in by_trial:
        assert_apart(trials, *fold)
        assert len(fold.test) == 6
        assert set(windows.subjects[fold.test]) == set(PEOPLE)


def accuracy(windows: PhysioWindows, labels: Sequence[int]) -> float:
    """Leave one subject out: which class's mean spectrum is nearer."""
    spectra = np.stack([np.abs(np.fft.rfft(w[:28], axis=1)).mean(axis=0) for w in (windows[k] for k in range(len(windows)))])  # fmt: skip
    y, right = np.array(labels), 0
    for fold in leave_one_subject_out(windows.subjects).values():
        means = np.stack([spectra[fold.train][y[fold.train] == c].mean(axis=0) for c in (0, 1)])
        distance = ((spectra[fold.test][:, None] - means) ** 2).sum(axis=-1)
        right += int((distance.argmin(axis=1) == y[fold.test]).sum())
    return right / len(y)


def test_what_the_files_hold_can_be_learnt_and_shuffled_labels_cannot(pristine: Path) -> None:
    windows = PhysioWindows(read(pristine), Windowing(window_s=1.0, stride_s=1.0))
    assert accuracy(windows, windows.valence.tolist()) == 1.0
    shuffled = np.random.default_rng(0).permutation(windows.valence)
    assert 0.25 < accuracy(windows, shuffled.tolist()) < 0.75


def test_errors_survive_the_way_back_from_a_process() -> None:
    error = DataError("s02.dat", "unsafe pickle: it names 'posix.mkdir'", "trial 01")
    assert str(pickle.load(io.BytesIO(pickle.dumps(error)))) == str(error)
