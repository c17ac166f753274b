"""Stress-Predict: read exactly as published, aligned to the second; every damaged recording is refused or counted."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from shared_pieces import real_data

from knarr.train.datasets.splits import leave_one_subject_out
from knarr.train.datasets.stress.read import HEADER, LABEL_FILE, PEOPLE, check, read_people
from knarr.train.datasets.stress.windows import (
    StressWindows,
    cut_windows,
    frames,
    standardise,
    tonic_phasic,
)
from knarr.train.errors import DataError

START_S = 1_644_226_061
SECONDS = 660
BLOCKS = (100, 220, 300, 420, 480, 580)
"""Where labels change, seconds from the first label, as in the published files."""


def label_of(second: int) -> int:
    return sum(second >= edge for edge in BLOCKS) % 2


def write_person(root: Path, number: int, rng: np.random.Generator) -> list[str]:
    """The files of one person; returns the rows of the label file. Stress raises both signals."""
    folder = root / "Raw_data" / f"S{number:02d}"
    folder.mkdir(parents=True)
    start = START_S + 10_000 * number
    stress = np.array([label_of(second - 9) for second in range(SECONDS)])
    eda = 0.5 + 0.1 * number + 0.3 * np.repeat(stress, 4) + rng.uniform(0, 0.05, 4 * SECONDS)
    eda[0] = 0
    hr = 70 + number + 12 * stress[10:] + rng.uniform(0, 4, SECONDS - 10)
    body = "".join(f"{value:.6f}\n" for value in eda)
    (folder / "EDA.csv").write_text(f"{start}.000000\n4.000000\n{body}")
    (folder / "TEMP.csv").write_text(f"{start}.000000\n4.000000\n" + "30.13\n" * 4 * (SECONDS + 3))
    (folder / "HR.csv").write_text(
        f"{start + 10}.000000\n1.000000\n" + "".join(f"{value:.2f}\n" for value in hr)
    )
    (folder / "IBI.csv").write_text(f"{start}.000000, IBI\n15.953125,0.859375\n")
    (folder / f"tags_S{number:02d}.csv").write_bytes(
        b"".join(b"%d\r\n" % (start + 9 + edge) for edge in BLOCKS)
    )
    beats = [f"{value:.2f}".rstrip("0").rstrip(".") for value in hr] + [""]
    return [f"{number},{beat},12.1,{start + 9 + n},{label_of(n)}" for n, beat in enumerate(beats)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people; S01 has no labels, as published."""
    root = tmp_path_factory.mktemp("stress") / "stress"
    rng = np.random.default_rng(5)
    rows = [write_person(root, number, rng) for number in (1, 2, 3, 4)]
    (root / "Processed_data").mkdir()
    lines = [",".join(HEADER), *(row for part in rows[1:] for row in part)]
    (root / LABEL_FILE).write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(pristine, tmp_path / "stress")
    return tmp_path / "stress"


@pytest.fixture(scope="session")
def stress_root() -> Path:
    """The real recordings, from KNARR_SHARED_DATA or beside the project."""
    return real_data("stress_predict")


def test_signals_and_labels_are_aligned_to_the_second(pristine: Path) -> None:
    found = read_people(pristine)
    assert [person.subject for person in found.people] == ["S02", "S03", "S04"]
    assert found.unlabelled == ("S01",)
    assert not found.left_out
    for number, person in enumerate(found.people, start=2):
        folder = pristine / "Raw_data" / person.subject
        start = START_S + 10_000 * number
        eda, hr = (
            [float(line) for line in (folder / f"{name}.csv").read_text().split()[2:]]
            for name in ("EDA", "HR")
        )
        assert person.start_s == start + 10
        assert len(person.labels) == len(person.hr_bpm) == len(person.eda_us) // 4 == SECONDS - 10
        for second in range(0, SECONDS - 10, 7):
            unix = person.start_s + second
            assert person.eda_us[4 * second] == eda[4 * (unix - start)]
            assert person.hr_bpm[second] == hr[unix - (start + 10)]
            assert person.labels[second] == label_of(unix - (start + 9))


def test_a_window_holds_one_label_and_its_own_samples(pristine: Path) -> None:
    people = read_people(pristine).people
    windows = cut_windows(people, window_s=60, step_s=20, normalise="none")
    expected: Counter[str] = Counter()
    kept = []
    for person in people:
        for start in range(0, SECONDS - 10 - 60 + 1, 20):
            labels = {label_of(start + second + 1) for second in range(60)}
            expected["two labels"] += len(labels) > 1
            if len(labels) == 1:
                kept.append((person.subject, start, labels.pop()))
    assert dict(expected) == windows.dropped
    assert kept == list(zip(windows.subjects, windows.starts_s, windows.labels, strict=True))
    assert windows.eda.shape == (len(kept), 240)
    assert windows.eda.dtype == windows.hr.dtype == np.float32
    for index in (0, 7, len(kept) - 1):
        person = next(p for p in people if p.subject == windows.subjects[index])
        start = windows.starts_s[index]
        np.testing.assert_array_equal(
            windows.eda[index], person.eda_us[4 * start : 4 * start + 240].astype(np.float32)
        )
        np.testing.assert_array_equal(
            windows.hr[index], person.hr_bpm[start : start + 60].astype(np.float32)
        )
    np.testing.assert_array_equal(windows.eda_hr[:, 0], windows.eda)
    np.testing.assert_array_equal(windows.eda_hr[:, 1, ::4], windows.hr)
    np.testing.assert_array_equal(windows.eda_hr[:, 1, 3::4], windows.hr)


def test_lost_contact_and_missing_labels_are_counted(root: Path) -> None:
    path = root / "Raw_data" / "S03" / "EDA.csv"
    lines = path.read_text().splitlines()
    lines[2 + 4 * 25] = "0.000000"
    path.write_text("\n".join(lines) + "\n")
    rows = (root / LABEL_FILE).read_text().splitlines()
    gone = [
        row
        for row in rows
        if not (row.startswith("4,") and int(row.split(",")[3]) >= START_S + 40_000 + 640)
    ]
    (root / LABEL_FILE).write_text("\n".join(gone) + "\n")
    dropped = cut_windows(read_people(root).people, window_s=10, step_s=10).dropped
    assert dropped["lost contact"] == 1
    assert dropped["few labels"] == 2
    assert (
        cut_windows(
            read_people(root).people, window_s=50, step_s=50, min_labelled=0.01
        ).dropped.get("few labels")
        is None
    )


def test_normalising_is_over_a_person_or_a_window(pristine: Path) -> None:
    people = read_people(pristine).people
    window = cut_windows(people, normalise="window")
    np.testing.assert_allclose(window.eda.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(window.hr.std(axis=1), 1, atol=1e-5)
    raw, person = cut_windows(people, normalise="none"), cut_windows(people)
    for one in people:
        mine = raw.subjects == one.subject
        expected = (raw.eda[mine] - one.eda_us.mean()) / one.eda_us.std()
        np.testing.assert_allclose(person.eda[mine], expected, atol=1e-5)
    flat = np.full((2, 8), 3.0)
    np.testing.assert_array_equal(standardise(flat), np.zeros((2, 8)))


def guess(windows: StressWindows, labels: npt.NDArray[np.int64]) -> float:
    """Balanced accuracy of the nearest class mean over people never seen."""
    features = np.stack([windows.eda.mean(axis=1), windows.hr.mean(axis=1)], axis=1)
    hit = np.zeros(len(windows), bool)
    for fold in leave_one_subject_out(windows.subjects).values():
        means = np.stack(
            [features[fold.train][labels[fold.train] == c].mean(axis=0) for c in (0, 1)]
        )
        distance = np.linalg.norm(features[fold.test][:, None] - means, axis=2)
        hit[fold.test] = distance.argmin(axis=1) == labels[fold.test]
    return float(np.mean([hit[labels == c].mean() for c in (0, 1)]))


def test_the_labels_are_learnable_over_people_and_shuffled_ones_are_not(pristine: Path) -> None:
    windows = cut_windows(read_people(pristine).people, window_s=20, step_s=10)
    assert guess(windows, windows.labels) > 0.95
    rng = np.random.default_rng(1)
    shuffled = [guess(windows, rng.permutation(windows.labels)) for _ in range(20)]
    assert 0.4 < np.mean(shuffled) < 0.6


def change(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """Replace text in a file of S03, or in the label file."""

    def apply(root: Path) -> None:
        path = root / LABEL_FILE if name == "labels" else root / "Raw_data" / "S03" / name
        text = path.read_bytes().decode()
        assert old in text
        path.write_bytes(text.replace(old, new, count).encode())

    return apply


def line(name: str, number: int, text: str | None) -> Callable[[Path], None]:
    """Replace a line of a file of S03, counted from 1; None takes it out."""

    def apply(root: Path) -> None:
        path = root / "Raw_data" / "S03" / name
        lines = path.read_text().splitlines()
        lines[number - 1 : number] = [] if text is None else [text]
        path.write_text("\n".join(lines) + "\n")

    return apply


def keep(name: str, share: float, end: str = "\n") -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "Raw_data" / "S03" / name
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[: int(share * len(lines))]) + end)

    return apply


def row(number: int, new: str | None) -> Callable[[Path], None]:
    """Replace a row of S03 in the label file; `{f[i]}` are its fields, None takes it out."""

    def apply(root: Path) -> None:
        rows = (root / LABEL_FILE).read_text().splitlines()
        at = [i for i, text in enumerate(rows) if text.startswith("3,")][number]
        rows[at : at + 1] = [] if new is None else new.format(f=rows[at].split(",")).split("|")
        (root / LABEL_FILE).write_text("\n".join(rows) + "\n")

    return apply


def unlink(name: str) -> Callable[[Path], None]:
    return lambda root: (root / "Raw_data" / "S03" / name).unlink()


def swap_recordings(root: Path) -> None:
    raw = root / "Raw_data"
    shutil.copy(raw / "S02" / "HR.csv", raw / "S03" / "HR.csv")
    text = (raw / "S03" / "HR.csv").read_text()
    (raw / "S03" / "HR.csv").write_text(text.replace(str(START_S + 20_010), str(START_S + 30_010)))


def link_out(root: Path) -> None:
    path = root / "Raw_data" / "S03" / "EDA.csv"
    path.rename(root.parent / "elsewhere.csv")
    path.symlink_to(root.parent / "elsewhere.csv")


GOOD_ROW = "{f[0]},{f[1]},{f[2]},{f[3]},{f[4]}"
BAD_PEOPLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no EDA": (unlink("EDA.csv"), "missing file"),
    "no folder": (lambda root: shutil.rmtree(root / "Raw_data" / "S03"), "missing file"),
    "empty EDA": (lambda root: (root / "Raw_data/S03/EDA.csv").write_text(""), "empty file"),
    "link out of the root": (link_out, "outside root"),
    "wrong rate": (line("EDA.csv", 2, "8.000000"), "wrong rate: 8 Hz, not 4"),
    "wrong rate of HR": (line("HR.csv", 2, "4.000000"), "wrong rate: 4 Hz, not 1"),
    "NaN": (line("EDA.csv", 500, "nan"), "not finite: 'nan' in line 500"),
    "infinite": (line("HR.csv", 50, "inf"), "not finite: 'inf' in line 50"),
    "no number": (line("EDA.csv", 500, "0.1O2"), "malformed number"),
    "two values in a line": (line("EDA.csv", 500, "0.1,0.2"), "malformed number"),
    "empty line": (line("EDA.csv", 500, ""), "malformed number"),
    "negative conductance": (
        line("EDA.csv", 500, "-0.2"),
        "value out of range: -0.2 in line 500, allowed 0 .. 100",
    ),
    "no heart beats so": (line("HR.csv", 50, "9000"), "value out of range: 9000 in line 50"),
    "start between seconds": (line("EDA.csv", 1, "1644256061.5"), "malformed start"),
    "start hours later": (
        line("EDA.csv", 1, f"{START_S + 30_000 + 3600}"),
        "files do not match: EDA, HR and labels start",
    ),
    "EDA cut at a line": (keep("EDA.csv", 0.5), "files do not match: EDA, HR and labels end"),
    "EDA cut in a number": (
        keep("EDA.csv", 0.99, end=""),
        "truncated file: the last line has no end",
    ),
    "HR cut at a line": (keep("HR.csv", 0.5), "files do not match: EDA, HR and labels end"),
    "header only": (keep("HR.csv", 2 / 650), "truncated file: 2 lines"),
    "one HR sample gone": (line("HR.csv", 40, None), "labels of another recording"),
    "another person's HR": (swap_recordings, "labels of another recording: HR"),
    "label out of range": (row(9, "{f[0]},{f[1]},{f[2]},{f[3]},2"), "label out of range: '2' at"),
    "label empty": (row(9, "{f[0]},{f[1]},{f[2]},{f[3]},"), "label out of range: ''"),
    "label of four fields": (row(9, "{f[0]},{f[1]},{f[2]},{f[3]}"), "malformed record"),
    "label time no number": (row(9, "{f[0]},{f[1]},{f[2]},noon,0"), "malformed record"),
    "HR cell no number": (
        row(9, "{f[0]},x,{f[2]},{f[3]},{f[4]}"),
        "labels of another recording: HR x",
    ),
    "second twice": (row(9, f"{GOOD_ROW}|{GOOD_ROW}"), "duplicate id"),
    "second missing": (row(9, None), "missing seconds"),
    "not UTF-8": (
        lambda root: (root / "Raw_data/S03/HR.csv").write_bytes(b"\xff\xfe1\n"),
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("name", BAD_PEOPLE)
def test_a_bad_recording_is_refused_or_counted(name: str, root: Path) -> None:
    damage, message = BAD_PEOPLE[name]
    damage(root)
    with pytest.raises(DataError, match=rf"record S03: {message}"):
        read_people(root)
    report = check(root)
    assert report.samples == 14
    assert report.splits == {"loso/S02": 7, "loso/S04": 7}
    assert [text.count("S03") > 0 for text in report.skipped] == [True, False]


BAD_SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no root": (shutil.rmtree, "missing root"),
    "no recordings": (lambda root: shutil.rmtree(root / "Raw_data"), "missing folder"),
    "no labels": (lambda root: (root / LABEL_FILE).unlink(), "missing file"),
    "another header": (
        change("labels", "Participant,HR", "HR,Participant"),
        "malformed header: HR,Participant",
    ),
    "no participant": (
        change("labels", "\r\n3,", "\r\nx,"),
        r"record line [0-9]+: malformed record: no participant",
    ),
    "labels cut": (
        lambda root: (root / LABEL_FILE).write_bytes((root / LABEL_FILE).read_bytes()[:-9]),
        "truncated file",
    ),
    "labels of nobody": (
        lambda root: (root / LABEL_FILE).write_text(",".join(HEADER) + "\n"),
        "no records",
    ),
}


@pytest.mark.parametrize("name", BAD_SETS)
def test_a_set_that_is_bad_as_a_whole_is_always_refused(name: str, root: Path) -> None:
    damage, message = BAD_SETS[name]
    damage(root)
    for attempt in (read_people, check):
        with pytest.raises(DataError, match=message):
            attempt(root)


def test_labels_may_have_a_byte_order_mark(root: Path) -> None:
    (root / LABEL_FILE).write_bytes(b"\xef\xbb\xbf" + (root / LABEL_FILE).read_bytes())
    assert len(read_people(root).people) == 3


def test_an_unknown_folder_is_a_bad_record(root: Path) -> None:
    (root / "Raw_data" / "S3").mkdir()
    with pytest.raises(DataError, match="record S3: unknown folder"):
        read_people(root)


def test_arguments_out_of_range_are_refused(pristine: Path) -> None:
    people = read_people(pristine).people
    for arguments in ({"window_s": 0}, {"step_s": 0}, {"min_labelled": 1.5}, {"normalise": "all"}):
        with pytest.raises(ValueError, match=r"windows:|normalise:"):
            cut_windows(people, **arguments)
    with pytest.raises(DataError, match="no windows: none of 900 s"):
        cut_windows(people, window_s=900)


def test_check_counts_stretches_and_names_who_is_absent(pristine: Path) -> None:
    report = check(pristine)
    assert (report.name, report.samples, report.subjects) == ("stress_predict", 21, 3)
    assert report.missing == tuple(f"Raw_data/{name}" for name in PEOPLE[4:])
    assert len(report.skipped) == 1
    assert "record S01: no labels" in report.skipped[0]
    json.dumps(report.to_json(), allow_nan=False)


def test_frames_are_the_samples_of_each_step() -> None:
    signal = np.arange(512.0)
    cut = frames(signal, 32, 8)
    assert cut.shape == (61, 32)
    for t in range(61):
        np.testing.assert_array_equal(cut[t], signal[8 * t : 8 * t + 32])
    assert frames(np.zeros((5, 2, 240)), 32, 8).shape == (5, 2, 27, 32)
    for width, step in ((0, 1), (513, 1), (4, 0)):
        with pytest.raises(ValueError, match="frames:"):
            frames(signal, width, step)


def test_tonic_and_phasic_are_one_leaky_integrator() -> None:
    signal = np.random.default_rng(2).random((3, 50))
    tonic, phasic = tonic_phasic(signal, 4.0)
    gain = 1 - math.exp(-2 * math.pi * 0.05 / 4)
    for window, slow in zip(signal, tonic, strict=True):
        level = window[0]
        for n, value in enumerate(window):
            level += gain * (value - level)
            assert slow[n] == pytest.approx(level)
    np.testing.assert_allclose(tonic + phasic, signal)


def test_the_published_recordings_are_as_described(stress_root: Path) -> None:
    found = read_people(stress_root)
    assert len(found.people) == 34
    assert found.unlabelled == ("S01",)
    windows = cut_windows(found.people)
    assert len(windows) == 3256
    assert np.bincount(windows.labels).tolist() == [2240, 1016]
    assert windows.dropped == {"two labels": 399, "lost contact": 39}
    assert len(set(windows.subjects)) == 34
    assert np.isfinite(windows.eda_hr).all()
    assert guess(windows, windows.labels) > 0.58  # people that the class means have not seen
    report = check(stress_root)
    assert (report.samples, report.subjects, report.missing) == (238, 34, ())
