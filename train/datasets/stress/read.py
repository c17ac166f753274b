"""Read Stress-Predict: skin conductance and heart rate of 35 people, at rest and in stress tasks.

``<root>/Raw_data/S01 .. S35/{EDA,HR}.csv`` are an Empatica E4's: line 1 the start (unix s), line 2
the rate (Hz), then one value a line.
``<root>/Processed_data/Improved_All_Combined_hr_rsp_binary.csv`` labels every second of 34 of them,
0 at rest and 1 in a task (Iqbal et al. 2022, https://doi.org/10.3390/s22218135). Its clock is that
of the recordings, but its heart rate is stamped one second early: row i is sample i of HR.csv,
which is how the two are checked to belong together.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.arrays import Float64
from knarr.train.datasets.files import (
    DataReport,
    check_root,
    checked_file,
    checked_folder,
    csv_rows,
    data_report,
    read_text,
)
from knarr.train.errors import DataError

PEOPLE = tuple(f"S{number:02d}" for number in range(1, 36))
LABEL_FILE = "Processed_data/Improved_All_Combined_hr_rsp_binary.csv"
HEADER = ("Participant", "HR", "respr", "Time(sec)", "Label")
EDA_HZ = 4
HR_HZ = 1
EDA_RANGE_US = (0.0, 100.0)  # the sensor's range, microsiemens
HR_RANGE_BPM = (20.0, 300.0)
END_SLACK_S = 30
"""Longest distance of the ends of one person's files.

It is 5 s in the published set, so more is a file cut short.
"""
MAX_BYTES = 64 << 20

_FOLDER = re.compile("S[0-9]{2}")
_WHOLE = re.compile("[0-9]{1,12}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Person:
    """One recording, cut to the seconds in which both signals run.

    Attributes:
        subject: "S01" and so on.
        start_s: unix time of the first second.
        eda_us: (4 n,) skin conductance, microsiemens, >= 0; 0 where the contact was lost.
        hr_bpm: (n,) heart rate, beats a minute.
        labels: (n,) 0 rest, 1 stress, -1 not labelled.
    """

    subject: str
    start_s: int
    eda_us: Float64
    hr_bpm: Float64
    labels: npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class People:
    """All recordings, by subject.

    Attributes:
        people: the good ones.
        left_out: one error for each of the others.
        unlabelled: subjects whom the label file does not know, such as S01.
    """

    people: tuple[Person, ...]
    left_out: tuple[DataError, ...]
    unlabelled: tuple[str, ...]


def read_people(root: Path) -> People:
    """Read everybody's skin conductance, heart rate and labels.

    People without labels are left out and logged.

    Args:
        root: folder that holds `Raw_data` and `Processed_data`.

    Raises:
        DataError: the root or the label file as a whole cannot be used; somebody has a bad file or
            label; or nobody is left.
    """
    found = _scan(root)
    if found.left_out:
        raise found.left_out[0]
    for subject in found.unlabelled:
        _log.info("%s: %s has no labels and is left out", root, subject)
    if not found.people:
        raise DataError(root, "no recordings: none can be used; check the dataset")
    return found


def check(root: Path) -> DataReport:
    """Read every file of Stress-Predict and say what can be used.

    Returns:
        Samples are stretches of one label, seven a person, 238 in all; windows are cut from them
        later. The splits are the test sets of leave-one-subject-out, "loso/S02" and so on. Who has
        no labels (S01, as published) is skipped.

    Raises:
        DataError: the root or the label file as a whole cannot be used.
    """
    found = _scan(root)
    stretches = {}
    for person in found.people:
        labelled = person.labels[person.labels >= 0]
        stretches[f"loso/{person.subject}"] = 1 + int(np.count_nonzero(np.diff(labelled)))
    unlabelled = [
        DataError(root / LABEL_FILE, "no labels: not one row", subject)
        for subject in found.unlabelled
    ]
    # Everybody of whom there is anything: a recording, a fault, or a folder without labels.
    known = {person.subject for person in found.people}
    known |= {str(error.record) for error in (*found.left_out, *unlabelled)}
    absent = sorted(set(PEOPLE) - known)
    return data_report(
        "stress_predict",
        root,
        stretches,
        (*found.left_out, *unlabelled),
        missing=(f"Raw_data/{subject}" for subject in absent),
    )


def _scan(root: Path) -> People:
    check_root(root)
    folder = checked_folder(root / "Raw_data", root, "check the root")
    rows = _label_rows(checked_file(root / LABEL_FILE, root, MAX_BYTES))
    present = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    people: list[Person] = []
    left_out: list[DataError] = []
    unlabelled: list[str] = []
    # Who is labelled without a recording is a fault; who is recorded without a label is not, since
    # S01 is published so.
    for subject in sorted(present | rows.keys()):
        if subject in rows:
            try:
                people.append(_person(root, subject, rows[subject]))
            except DataError as error:
                left_out.append(error)
        elif _FOLDER.fullmatch(subject):
            unlabelled.append(subject)
        else:
            left_out.append(
                DataError(
                    folder / subject,
                    "unknown folder: not S and two digits; rename or remove it",
                    subject,
                )
            )
    return People(tuple(people), tuple(left_out), tuple(unlabelled))


def _person(root: Path, subject: str, rows: list[list[str]]) -> Person:
    folder = root / "Raw_data" / subject
    eda_start_s, eda = _signal(folder / "EDA.csv", root, EDA_HZ, EDA_RANGE_US, subject)
    hr_start_s, hr = _signal(folder / "HR.csv", root, HR_HZ, HR_RANGE_BPM, subject)
    first_s, label = _labels(root / LABEL_FILE, subject, rows, hr)
    # The first value of EDA.csv is always 0 and none of the skin; where the signals overlap it has
    # passed.
    starts = (eda_start_s + 1, hr_start_s, first_s)
    ends = (eda_start_s + len(eda) // EDA_HZ, hr_start_s + len(hr) // HR_HZ, first_s + len(label))
    for what, times in (("start", starts), ("end", ends)):
        if max(times) - min(times) > END_SLACK_S:
            shown = ", ".join(str(time - eda_start_s) for time in times)
            raise DataError(
                folder,
                f"files do not match: EDA, HR and labels {what} {shown} s after EDA starts, allowed {END_SLACK_S} s apart; "
                "a file is cut short or of somebody else, restore it",
                subject,
            )
    start_s, end_s = max(starts[:2]), min(ends[:2])
    if end_s <= start_s:
        raise DataError(folder, "too short: the signals do not overlap; restore them", subject)
    # Labels may begin before the signals do, or after; seconds without one stay -1.
    labels = np.full(end_s - start_s, -1, np.int8)
    second = np.arange(start_s, end_s) - first_s
    labelled = (second >= 0) & (second < len(label))
    labels[labelled] = label[second[labelled]]
    return Person(
        subject=subject,
        start_s=start_s,
        eda_us=eda[(start_s - eda_start_s) * EDA_HZ : (end_s - eda_start_s) * EDA_HZ],
        hr_bpm=hr[start_s - hr_start_s : end_s - hr_start_s],
        labels=labels,
    )


def _signal(
    path: Path, root: Path, rate_hz: int, allowed: tuple[float, float], subject: str
) -> tuple[int, Float64]:
    """Return (start in unix s, values) of an E4 file."""
    fault = partial(DataError, path, record=subject)
    checked_file(path, root, MAX_BYTES, subject)
    lines = _text(path, subject).splitlines()
    try:
        values = np.array([float(line) for line in lines])
    except ValueError as error:
        raise fault(f"malformed number: {error}; restore it") from error
    if len(values) < 3:
        raise fault(f"truncated file: {len(values)} lines, no start, rate and values; restore it")
    # float() takes "nan" and "inf" too.
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise fault(f"not finite: '{lines[at]}' in line {at + 1}; restore it")
    start_s, rate = values[:2]
    if rate != rate_hz:
        raise fault(f"wrong rate: {rate:g} Hz, not {rate_hz}; take the original file")
    if start_s != int(start_s) or start_s < 0:
        raise fault(f"malformed start: {lines[0]} is no whole unix second; restore it")
    low, high = allowed
    signal = values[2:]
    outside = (signal < low) | (signal > high)
    if outside.any():
        # Lines count from 1, and the start and the rate stand before the signal.
        line = int(np.argmax(outside)) + 3
        raise fault(
            f"value out of range: {lines[line - 1]} in line {line}, allowed {low:g} .. {high:g}; restore it"
        )
    return int(start_s), signal


def _text(path: Path, subject: str | None = None) -> str:
    text = read_text(path, subject)
    # Every published file's last line ends, so one that does not was cut inside a number.
    if not text.endswith("\n"):
        raise DataError(path, "truncated file: the last line has no end; restore it", subject)
    return text


def _label_rows(path: Path) -> dict[str, list[list[str]]]:
    """Return the rows of each subject, fields still text."""
    lines = csv_rows(path, _text(path))
    _, header = next(lines, ("", []))
    if tuple(header) != HEADER:
        raise DataError(
            path, f"malformed header: {','.join(header)[:80]}, not {','.join(HEADER)}; restore it"
        )
    rows: dict[str, list[list[str]]] = {}
    for where, row in lines:
        if not row or _WHOLE.fullmatch(row[0]) is None or not 1 <= int(row[0]) <= 99:
            raise DataError(path, "malformed record: no participant 1 .. 99; restore it", where)
        rows.setdefault(f"S{int(row[0]):02d}", []).append(row)
    if not rows:
        raise DataError(path, "no records: it labels nobody; restore it")
    return rows


def _labels(
    path: Path, subject: str, rows: list[list[str]], hr: Float64
) -> tuple[int, npt.NDArray[np.int8]]:
    """Return (first unix second, label of it and of each one after).

    They are checked to belong to the recording `hr`.
    """
    fault = partial(DataError, path, record=subject)
    for row in rows:
        if len(row) != len(HEADER) or _WHOLE.fullmatch(row[3]) is None:
            raise fault(
                f"malformed record: '{','.join(row)[:80]}' has no five fields with a whole second; restore it"
            )
        if row[4] not in ("0", "1"):
            raise fault(
                f"label out of range: '{row[4][:20]}' at {row[3]} s, allowed 0, 1; correct it"
            )
    times = [int(row[3]) for row in rows]
    for before, after in pairwise(times):
        if after != before + 1:
            kind = "duplicate id" if after == before else "missing seconds"
            raise fault(f"{kind}: {after} s follows {before} s, each one once; restore it")
    for number, (row, beat) in enumerate(zip(rows, hr.tolist(), strict=False)):
        if row[1] and not _same(row[1], beat):  # some cells at the ends are empty
            raise fault(
                f"labels of another recording: HR {row[1][:20]} at row {number}, {beat:g} in HR.csv; restore them"
            )
    return times[0], np.array([int(row[4]) for row in rows], np.int8)


def _same(text: str, value: float) -> bool:
    """Say whether a cell is that number; both files have two decimals."""
    try:
        return abs(float(text) - value) < 0.005
    except ValueError:
        return False
