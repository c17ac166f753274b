"""MAHNOB-HCI: recordings in the real format, every damage refused by name, and people that stay who they are."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.train.datasets.physio import mahnob
from knarr.train.datasets.physio.bdf import plain_name, read_digital, read_header, read_physical
from knarr.train.datasets.physio.mahnob import check, prepare, read_mahnob, read_session
from knarr.train.datasets.physio.windows import EEG_28, EEG_32, PhysioWindows, Recordings, Windowing
from knarr.train.datasets.splits import assert_apart, leave_one_subject_out
from knarr.train.errors import DataError

Array = npt.NDArray[Any]
RATE = 256
REST_S, CLIP_S = 2, 6  # of the tests' recordings; 30 and 34 to 117 of the real ones
DIGITAL = (-(1 << 23), (1 << 23) - 1)
EEG_RANGE, GSR_RANGE = (-262144.0, 262143.0), (-8388608.0, 8388607.0)
OTHERS = ("EXG1", "EXG2", "EXG3", "GSR2", "Erg1", "Erg2", "Resp", "Temp")


def write_bdf(
    path: Path,
    digital: Mapping[str, Array],
    *,
    rate: int = RATE,
    units: Mapping[str, str] | None = None,
    header: Callable[[bytearray], None] = lambda header: None,
) -> None:
    """Write records of one second; `digital` holds integers by label, the physical ranges are the constants above."""
    units = {"GSR1": "Ohm", "Status": "Boolean", **(units or {})}
    labels, values = list(digital), list(digital.values())
    n = len(labels)
    ranges = [DIGITAL if k == "Status" else GSR_RANGE if k == "GSR1" else EEG_RANGE for k in labels]
    per_record = [len(v) * rate // max(map(len, values)) for v in values]

    def fields(width: int, of: list[Any]) -> bytes:
        return b"".join(str(one).encode().ljust(width) for one in of)

    lead = b"\xffBIOSEMI" + fields(80, ["", ""]) + b"01.01.1112.00.00" + fields(8, [256 * (n + 1)])
    lead += fields(44, ["24BIT"]) + fields(8, [max(map(len, values)) // rate, 1]) + fields(4, [n])
    table = fields(16, labels) + fields(80, ["active electrode"] * n)
    table += fields(8, [units.get(k, "uV") for k in labels])
    table += fields(8, [int(low) for low, _ in ranges]) + fields(
        8, [int(high) for _, high in ranges]
    )
    table += fields(8, [DIGITAL[0]] * n) + fields(8, [DIGITAL[1]] * n) + fields(80, ["DC"] * n)
    table += fields(8, per_record) + fields(32, ["Reserved"] * n)
    whole = bytearray(lead + table)
    assert len(whole) == 256 * (n + 1)
    header(whole)
    body = b"".join(
        v[r * k : (r + 1) * k].astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        for r in range(max(map(len, values)) // rate)
        for k, v in zip(per_record, values, strict=True)
    )
    path.write_bytes(whole + body)


def to_digital(physical: Array, ends: tuple[float, float]) -> Array:
    step = (ends[1] - ends[0]) / (DIGITAL[1] - DIGITAL[0])
    return np.rint((physical - ends[0]) / step).astype(np.int64) + DIGITAL[0]


def status(*starts: float, rate: int = RATE, baseline: int = 0) -> Array:
    """A status channel with triggers of 10 samples, and the amplifier's own bits above."""
    channel = np.full((2 * REST_S + CLIP_S) * rate, baseline)
    for start in starts:
        channel[int(start * rate) : int(start * rate) + 10] = 16
    high = np.where(np.arange(len(channel)) % rate < 7, 0x98, 0x18) << 16  # as signed 24 bits
    value = channel | high
    return np.where(value >= 1 << 23, value - (1 << 24), value)


def recording(seed: int, beat_hz: float = 10.0, rate: int = RATE) -> dict[str, Array]:
    """All labels in an order of its own, with the digits and cases that writers differ in."""
    rng = np.random.default_rng(seed)
    n = (2 * REST_S + CLIP_S) * rate
    time = np.arange(n) / rate
    drift = rng.normal(0, 1, n)
    result = {}
    for number, name in enumerate(EEG_32):
        eeg = (
            5000
            + 40 * drift
            + 10 * np.sin(2 * np.pi * beat_hz * time + number)
            + rng.normal(0, 1, n)
        )
        label = f"{number + 1}{name}" if number % 5 == 0 else name.upper() if number % 2 else name
        result[label] = to_digital(eeg, EEG_RANGE)
    for name in OTHERS:
        result[name] = rng.integers(-1000, 1000, n)
    result["GSR1"] = to_digital(3e5 + 1e3 * np.sin(2 * np.pi * 0.1 * time) + 10 * seed, GSR_RANGE)
    shuffled = list(result)
    rng.shuffle(shuffled)
    return {
        **{name: result[name] for name in shuffled},
        "Status": status(REST_S, REST_S + CLIP_S, rate=rate),
    }


XML = (
    '<?xml version="1.0" encoding="utf-8" standalone="yes"?>\n'
    '<session sessionId="{id}" date="2009-07-17" time="11:05" isStim="1" experimentType="emotion elicitation" '
    'mediaFile="{trial}.avi" cutNr="{trial}" cutLenSec="66.0" vidRate="60.9708" feltEmo="4" {ratings} feltCtrl="5" '
    'feltPred="5"><subject id="{person}" gender="m" /><track type="Biosignals" filename="x.bdf" /></session>\n'
)


def write_session(
    root: Path,
    number: int,
    person: int,
    trial: int,
    *,
    valence: int = 7,
    arousal: int = 3,
    **change: Any,
) -> Path:
    folder = root / "Sessions" / str(number)
    folder.mkdir(parents=True)
    ratings = f'feltArsl="{arousal}" feltVlnc="{valence}"'
    text = XML.format(id=number, trial=trial, person=person, ratings=ratings)
    (folder / "session.xml").write_text(text)
    signals = recording(number, 10.0 if valence > 5 else 20.0)
    write_bdf(folder / f"Part_{person}_S_Trial{trial}_emotion.bdf", signals, **change)
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, two clips each, one of high valence; and a neutral clip and a tagging session beside them."""
    root = tmp_path_factory.mktemp("hci")
    for person in (1, 2, 10):
        for trial, valence in ((1, 2), (3, 8)):
            write_session(root, 130 * (person - 1) + 2 * trial, person, trial, valence=valence)
    for number, name in ((1, "Part_1_N_Trial1_emotion"), (90, "Part_1_taggingImages1")):
        folder = root / "Sessions" / str(number)
        folder.mkdir()
        (folder / f"{name}.bdf").write_bytes(b"not looked at")
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to break, of links that are broken by replacing them."""
    shutil.copytree(pristine, tmp_path / "hci", copy_function=os.link)
    return tmp_path / "hci"


VICTIM = 136  # person 2, trial 3


def bdf(root: Path) -> Path:
    return root / "Sessions" / str(VICTIM) / "Part_2_S_Trial3_emotion.bdf"


def put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def rewrite(
    signals: Callable[[dict[str, Array]], Mapping[str, Array]] = lambda s: s,
    rate: int = RATE,
    **change: Any,
) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        bdf(root).unlink()
        write_bdf(bdf(root), signals(recording(VICTIM, rate=rate)), rate=rate, **change)

    return apply


def edit_xml(old: str, new: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "Sessions" / str(VICTIM) / "session.xml"
        text = path.read_text()
        assert old in text
        put(path, text.replace(old, new).encode())

    return apply


def edit_header(at: int, text: str, width: int = 8) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        data = bytearray(bdf(root).read_bytes())
        data[at : at + width] = text.encode().ljust(width)
        put(bdf(root), bytes(data))

    return apply


def signal_field(column: int, text: str) -> Callable[[Path], None]:
    """Change a field of GSR1: 3 and 4 its physical, 5 and 6 its digital ends, 8 its samples."""

    def apply(root: Path) -> None:
        header = read_header(bdf(root))
        widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
        row = [signal.label for signal in header.signals].index("GSR1")
        at = 256 + sum(widths[:column]) * len(header.signals) + widths[column] * row
        edit_header(at, text, widths[column])(root)

    return apply


def without(name: str) -> Callable[[dict[str, Array]], dict[str, Array]]:
    return lambda signals: {k: v for k, v in signals.items() if plain_name(k) != plain_name(name)}


def with_status(channel: Array) -> Callable[[Path], None]:
    return rewrite(lambda signals: {**signals, "Status": channel})


def cut(keep: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda root: put(bdf(root), bdf(root).read_bytes()[: keep(bdf(root).stat().st_size)])


def half_rate(signals: dict[str, Array]) -> dict[str, Array]:
    return {**signals, "GSR1": signals["GSR1"][::2]}


def half_second(signals: dict[str, Array]) -> dict[str, Array]:
    return {
        **{name: values[:128] for name, values in signals.items()},
        "Status": np.repeat([0, 16, 0, 16], 32),
    }


def halve_the_record(header: bytearray) -> None:
    header[244:252] = b"0.5     "


def second_recording(root: Path) -> None:
    shutil.copy(bdf(root), bdf(root).with_name("Part_2_S_Trial4_emotion.bdf"))


def link_out(root: Path) -> None:
    bdf(root).rename(root.parent / "elsewhere.bdf")
    bdf(root).symlink_to(root.parent / "elsewhere.bdf")


END = REST_S + CLIP_S
BOMB = '<!DOCTYPE s [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n<session'
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no session.xml": (lambda root: (bdf(root).parent / "session.xml").unlink(), "missing file"),
    "no BDF": (lambda root: bdf(root).unlink(), "missing recording: 0 files"),
    "two BDFs": (second_recording, "two recordings: 2 files"),
    "BDF links out": (link_out, "outside root"),
    "empty BDF": (cut(lambda size: 0), "empty file"),
    "BDF cut in the data": (cut(lambda size: size - 1), "truncated file: .* as its header says"),
    "BDF cut in the middle": (cut(lambda size: size // 2), "truncated file"),
    "BDF cut in the header": (cut(lambda size: 5000), "truncated file: 5000 < .* bytes of header"),
    "BDF of 100 bytes": (cut(lambda size: 100), "not BDF"),
    "BDF with bytes behind": (lambda root: put(bdf(root), bdf(root).read_bytes() + b"x"), "trailing bytes"),
    "an EDF": (edit_header(0, "0"), "not BDF"),
    "BDF unfinished": (edit_header(236, "-1"), "unfinished recording"),
    "no records": (edit_header(236, "0"), "no samples: 0 records"),
    "records of nothing": (edit_header(244, "0"), "no samples"),
    "records that are text": (edit_header(236, "ten"), "malformed header: records is b'ten"),
    "records that are NaN": (edit_header(236, "nan"), "malformed header: records is nan"),
    "a part of a record": (edit_header(236, "9.5"), "malformed header: records is 9.5, not a whole number"),
    "other header length": (edit_header(184, "512"), "malformed header: 42 signals in 512 bytes"),
    "no signals": (edit_header(252, "0", 4), "malformed header: 0 signals"),
    "range that is NaN": (signal_field(3, "nan"), "malformed header: range of 'GSR1' is nan"),
    "range of one value": (signal_field(3, "8388607"), "malformed header: .* physical"),
    "digital range beyond 24 bits": (signal_field(6, "8388608"), "malformed header"),
    "digital range reversed": (signal_field(5, "8388607"), "malformed header"),
    "negative samples": (signal_field(8, "-256"), "malformed header: -256 samples"),
    "values that are none": (signal_field(4, "1.7e308"), "not finite"),
    "values no body has": (signal_field(4, "9e300"), "not finite: a signal goes beyond 1e.12"),
    "no GSR1": (rewrite(without("GSR1")), "record GSR1: channel missing"),
    "no Status": (rewrite(without("Status")), "record Status: channel missing"),
    "no Oz": (rewrite(without("Oz")), "record Oz: channel missing"),
    "Cz twice": (rewrite(lambda s: {**s, "99CZ": s["Status"]}), "record Cz: channel twice: 2 signals"),
    "128 Hz": (rewrite(rate=128), "wrong rate: 128 Hz, not 256 or 512"),
    "2048 Hz": (rewrite(rate=2048), "wrong rate: 2048 Hz"),
    "two rates": (rewrite(half_rate), "wrong rate: 128, 256 Hz, not 256 or 512 for all channels"),
    "millivolts": (rewrite(units={"FP2": "mV", "Fp2": "mV"}), "wrong unit: EEG in mV, uV, not uV"),
    "no trigger": (with_status(status()), "wrong events: 0 on the status channel, not 2"),
    "one trigger": (with_status(status(REST_S)), "wrong events: 1 on"),
    "three triggers": (with_status(status(1, REST_S, END)), "wrong events: 3 on"),
    "triggers side by side": (with_status(status(REST_S, REST_S + 10 / RATE)), "wrong events: 1 on"),
    "a recording of half a second": (
        rewrite(half_second, rate=128, header=halve_the_record),
        "short recording: 128 samples, less than a second",
    ),
    "XML cut": (edit_xml("</session>", ""), "malformed XML: no element found"),
    "XML empty": (lambda root: put(bdf(root).parent / "session.xml", b""), "empty file"),
    "XML of another kind": (edit_xml("session", "sessions"), "malformed session: no element 'session'"),
    "XML with entities": (edit_xml("<session", BOMB), "malformed XML: it declares a document type"),
    "XML with a file's text": (
        edit_xml("<session", '<!DOCTYPE s SYSTEM "file:///etc/hostname">\n<session'),
        "malformed XML: it declares a document type",
    ),
    "XML too deep": (edit_xml("<track", "<a>" * 20 + "</a>" * 20 + "<track"), "malformed XML: deeper than 16"),
    "no subject": (edit_xml('<subject id="2" gender="m" />', ""), r"malformed session: subjects \[\]"),
    "two subjects": (edit_xml("<track", '<subject id="3" /><track'), r"subjects \['2', '3'\]"),
    "a subject of letters": (edit_xml('subject id="2"', 'subject id="two"'), r"subjects \['two'\]"),
    "a subject of many digits": (edit_xml('subject id="2"', f'subject id="{"2" * 9000}"'), "malformed session"),
    "another subject": (edit_xml('subject id="2"', 'subject id="3"'), "subject clash: person 3, but"),
    "arousal 0": (edit_xml('feltArsl="3"', 'feltArsl="0"'), "label out of range: feltArsl is '0', not one of 1 .. 9"),
    "valence 10": (edit_xml('feltVlnc="8"', 'feltVlnc="10"'), "label out of range: feltVlnc is '10'"),
    "valence 8.5": (edit_xml('feltVlnc="8"', 'feltVlnc="8.5"'), "label out of range"),
    "valence NaN": (edit_xml('feltVlnc="8"', 'feltVlnc="NaN"'), "label out of range"),
    "valence of many digits": (edit_xml('feltVlnc="8"', f'feltVlnc="{"0" * 9000}8"'), "label out of range"),
    "no valence": (edit_xml('feltVlnc="8"', ""), "label missing: no feltVlnc"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_session_is_refused_by_name_and_skipped_when_asked(root: Path, case: str) -> None:
    spoil, reason = BAD[case]
    spoil(root)
    with pytest.raises(DataError, match=rf"Sessions/{VICTIM}.*: ({reason})") as caught:
        read_mahnob(root)
    kind = caught.value.kind
    with pytest.warns(UserWarning, match=f"skipped 1 sessions: {kind} 1"):
        found = read_mahnob(root, on_bad="skip")
    assert found.skipped == {kind: 1}
    assert names(found) == [pair for pair in EVERYONE if pair != ("subject-02", "trial-03")]


EVERYONE = [
    (f"subject-{person:02d}", f"trial-{trial:02d}") for person in (1, 2, 10) for trial in (1, 3)
]


def names(found: Recordings) -> list[tuple[str, str]]:
    return [(trial.subject, trial.trial) for trial in found.trials]


def test_everyone_is_who_they_are(pristine: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = read_mahnob(pristine)
    assert "passed over 2 neutral clips and tagging sessions" in caplog.text
    assert names(found) == EVERYONE
    assert found.channels == EEG_28
    assert found.left_out == ()
    assert [(trial.valence, trial.arousal) for trial in found.trials] == [
        (2.0, 3.0),
        (8.0, 3.0),
    ] * 3
    for trial in found.trials:
        assert trial.eeg.shape == (28, CLIP_S * 128)
        assert trial.gsr.shape == (CLIP_S * 128,)
        assert trial.eeg.dtype == trial.gsr.dtype == np.float32
    number = {EVERYONE[k]: n for k, n in enumerate((2, 6, 132, 136, 1172, 1176))}
    for trial in found.trials:  # the mean resistance tells the sessions apart
        own = 10 * number[trial.subject, trial.trial]
        time = np.arange(CLIP_S * 128) / 128 + REST_S
        expected = 3e5 + 1e3 * np.sin(2 * np.pi * 0.1 * time) + own
        np.testing.assert_allclose(trial.gsr, expected, atol=3)


def test_an_unrated_session_is_left_out_always_and_counted(root: Path) -> None:
    edit_xml('feltArsl="3"', "")(root)
    with pytest.warns(UserWarning, match="skipped 1 sessions: not rated 1"):
        found = read_mahnob(root)
    assert len(found.trials) == 5
    bdf(root).unlink()
    with pytest.warns(UserWarning, match="not rated 1"):
        assert len(read_mahnob(root).trials) == 5
    assert check(root).skipped[0].endswith("not rated: no feltArsl; nothing to learn from it")


@pytest.mark.parametrize("same_id", [True, False])
def test_a_session_that_is_there_twice_is_left_out_twice(root: Path, same_id: bool) -> None:
    copy = root / "Sessions" / "999"
    shutil.copytree(bdf(root).parent, copy)
    if not same_id:
        text = (
            (copy / "session.xml").read_text().replace(f'sessionId="{VICTIM}"', 'sessionId="999"')
        )
        (copy / "session.xml").write_text(text)
    with pytest.raises(
        DataError, match=r"136: duplicate session: id 136 subject-02 trial-03, also claimed by 999"
    ):
        read_mahnob(root)
    with pytest.warns(UserWarning, match="skipped 2 sessions: duplicate session 2"):
        found = read_mahnob(root, on_bad="skip")
    assert names(found) == [pair for pair in EVERYONE if pair != ("subject-02", "trial-03")]
    report = check(root)
    assert (report.samples, len(report.skipped)) == (5, 2)


def test_a_missing_folder_is_always_refused(tmp_path: Path, pristine: Path) -> None:
    with pytest.raises(
        DataError, match=r"Sessions: missing folder: .* the folder that holds Sessions"
    ):
        read_mahnob(tmp_path, on_bad="skip")
    with pytest.raises(DataError, match="missing folder"):
        check(tmp_path)
    (tmp_path / "Sessions").mkdir()
    with pytest.raises(DataError, match="no trials: none can be used"):
        read_mahnob(tmp_path)
    with pytest.raises(ValueError, match="on_bad: 'ignore' is neither"):
        read_mahnob(pristine, on_bad="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels: Xz"):
        read_mahnob(pristine, channels=("Xz",))


def test_check_accounts_for_every_session(root: Path) -> None:
    BAD["no GSR1"][0](root)
    done: list[tuple[int, int]] = []
    report = check(root, progress=lambda *at: done.append(at))
    assert done == [(k, 6) for k in range(1, 7)]
    assert (report.name, report.samples, report.subjects) == ("mahnob", 5, 3)
    assert report.splits == {"loso/subject-01": 2, "loso/subject-02": 1, "loso/subject-10": 2}
    assert len(report.skipped) == 1
    assert "record GSR1: channel missing" in report.skipped[0]
    assert report.missing == ("521 of 527 stimulus sessions",)


def never(path: Path) -> dict[str, Array]:
    raise AssertionError(f"{path} prepared again")


def test_the_cache_changes_nothing_but_the_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, first = read_mahnob(root), read_mahnob(root, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 6
    monkeypatch.setattr(mahnob, "prepare", never)
    again = read_mahnob(root, cache=tmp_path / "cache")
    swapped = read_mahnob(root, cache=tmp_path / "cache", channels=EEG_28[::-1])
    for a, b, c, d in zip(plain.trials, first.trials, again.trials, swapped.trials, strict=True):
        assert np.array_equal(a.eeg, b.eeg)
        assert np.array_equal(b.eeg, c.eeg)
        assert np.array_equal(c.eeg[::-1], d.eeg)
        assert np.array_equal(a.gsr, c.gsr)


def test_bdf_values_are_those_written(tmp_path: Path) -> None:
    """Both ends of the 24 bits, 0 and -1 among them."""
    signals = recording(5)
    signals["Temp"][:6] = [DIGITAL[0], DIGITAL[1], 0, -1, 255, -256]
    write_bdf(tmp_path / "a.bdf", signals)
    header = read_header(tmp_path / "a.bdf")
    assert (header.records, header.record_s, len(header.signals)) == (10, 1.0, 42)
    for label, written in signals.items():
        assert np.array_equal(read_digital(header, [header.find(label)])[0], written)
    ends = read_physical(header, [header.find("Temp")])[0][:2]
    assert ends.tolist() == [-262144.0, 262143.0]


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 256 * 5 - 1), value=st.integers(0, 255), keep=st.integers(0, 100))
def test_whatever_the_header_only_dataset_errors_come_out(at: int, value: int, keep: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bdf"
        write_bdf(path, {name: np.arange(8) for name in ("Cz", "GSR1", "Temp", "Status")}, rate=4)
        file = bytearray(path.read_bytes())
        file[at] = value
        for content in (file, file[: len(file) * keep // 100]):
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                header = read_header(path)
                read_physical(header, header.signals)


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 300), value=st.integers(0, 255), keep=st.integers(1, 500))
def test_whatever_the_xml_only_dataset_errors_come_out(at: int, value: int, keep: int) -> None:
    file = bytearray(
        XML.format(id=1, trial=1, person=1, ratings='feltArsl="3" feltVlnc="3"').encode()
    )
    file[at] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.xml"
        for content in (file, file[:keep]):
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                session = read_session(path)
                assert 1 <= session.rating("feltArsl") <= 9


def test_records_of_signals_with_rates_of_their_own(tmp_path: Path) -> None:
    signals = half_rate(recording(5))
    write_bdf(tmp_path / "a.bdf", signals)
    header = read_header(tmp_path / "a.bdf")
    gsr = header.find("gsr1")
    assert (header.rate_hz(gsr), header.rate_hz(header.find("Cz"))) == (128.0, 256.0)
    for label in ("GSR1", "Status", "Resp"):
        assert np.array_equal(read_digital(header, [header.find(label)])[0], signals[label])


def test_bdf_agrees_with_mne(tmp_path: Path) -> None:
    """The reader that others use: the same values and the same triggers, at the same samples."""
    mne = pytest.importorskip("mne")
    signals = recording(6)
    write_bdf(tmp_path / "a.bdf", signals)
    raw = mne.io.read_raw_bdf(
        tmp_path / "a.bdf", preload=True, stim_channel="Status", verbose="error"
    )
    header = read_header(tmp_path / "a.bdf")
    assert raw.info["sfreq"] == header.rate_hz(header.find("Cz"))
    assert [s.label for s in header.signals] == raw.ch_names
    for label in signals:
        if label in ("Status", "GSR1"):
            continue
        theirs = raw.get_data(picks=[label])[0] * 1e6  # volts
        np.testing.assert_allclose(
            read_physical(header, [header.find(label)])[0], theirs, atol=1e-6
        )
    gsr = raw.get_data(picks=["GSR1"])[0]
    np.testing.assert_allclose(read_physical(header, [header.find("GSR1")])[0], gsr, rtol=1e-12)
    events = mne.find_events(
        raw, stim_channel="Status", mask=0xFFFF, mask_type="and", verbose="error"
    )
    assert events[:, 0].tolist() == [REST_S * RATE, END * RATE]


@pytest.mark.parametrize("rate", [256, 512])
def test_the_clip_is_filtered_and_cut_between_the_triggers(tmp_path: Path, rate: int) -> None:
    """A known sum of sines: 10 Hz stays, in time; 1 Hz, 55 Hz, offsets and what all channels share go."""
    n = (2 * REST_S + CLIP_S) * rate
    time = np.arange(n) / rate

    def sine(hz: float, part: Array = time) -> Array:
        return np.sin(2 * np.pi * hz * part)

    signals = recording(1, rate=rate)
    for k, label in enumerate(EEG_32):
        sign = 1 if k % 2 else -1  # the average of all 32 is what they share
        eeg = (
            1000 * (k - 15.5)
            + 30 * sine(12)
            + sign * (20 * sine(10) + 50 * sine(1) + 50 * sine(55))
        )
        (own,) = [name for name in signals if plain_name(name) == label.upper()]
        signals[own] = to_digital(eeg, EEG_RANGE)
    first = REST_S * rate + 1  # the first sample of 128 Hz that is not before it
    signals["Status"] = status(first / rate, END, rate=rate)
    write_bdf(tmp_path / "a.bdf", signals, rate=rate)
    arrays = prepare(tmp_path / "a.bdf")
    assert arrays["eeg"].shape == (32, CLIP_S * 128 - 1)
    at = REST_S + (1 + np.arange(CLIP_S * 128 - 1)) / 128
    for k in (0, 1, 31):
        expected = (20 if k % 2 else -20) * sine(10, at)
        np.testing.assert_allclose(arrays["eeg"][k], expected, atol=1.0)
    np.testing.assert_allclose(arrays["gsr"], 3e5 + 1e3 * sine(0.1, at) + 10, atol=3)


def test_triggers_are_what_is_not_usual(tmp_path: Path) -> None:
    signals = recording(1)
    expected = None
    for baseline in (0, 16 << 4):
        signals["Status"] = status(REST_S, END, baseline=baseline)
        write_bdf(tmp_path / "a.bdf", signals)
        found = prepare(tmp_path / "a.bdf")["eeg"]
        assert expected is None or np.array_equal(found, expected)
        expected = found


def test_windows_and_splits_divide_no_person(pristine: Path) -> None:
    windows = PhysioWindows(read_mahnob(pristine), Windowing())
    assert len(windows) == 6
    assert windows[0].shape == (29, 512)
    assert windows.valence.tolist() == [0, 1] * 3
    assert windows.arousal.tolist() == [0] * 6
    for person, fold in leave_one_subject_out(windows.subjects).items():
        assert_apart(windows.subjects, *fold)
        assert set(windows.subjects[fold.test]) == {person}
    found = windows.recordings
    siemens = PhysioWindows(found, Windowing(normalise="none", gsr_unit="siemens"))[0][28]
    # 1 / x, rounded to float32 once
    np.testing.assert_allclose(siemens, 1 / found.trials[0].gsr[:512], rtol=1e-6)


def test_what_the_files_hold_can_be_learnt_and_swapped_labels_cannot(pristine: Path) -> None:
    """10 Hz or 20 Hz, told apart without looking at the person; half of the labels swapped, half are wrong."""
    found = read_mahnob(pristine)
    windows = PhysioWindows(found, Windowing(window_s=1.0, stride_s=1.0))

    def right(windows: PhysioWindows) -> float:
        spectra = [
            np.abs(np.fft.rfft(windows[k][:28], axis=1)).mean(axis=0) for k in range(len(windows))
        ]
        guess = np.array([spectrum[10] > spectrum[20] for spectrum in spectra])
        return float((guess == windows.valence).mean())

    assert right(windows) == 1.0
    swapped = [
        replace(trial, valence=10 - trial.valence) if k in (0, 3, 4) else trial
        for k, trial in enumerate(found.trials)
    ]
    assert right(PhysioWindows(replace(found, trials=tuple(swapped)), windows.settings)) == 0.5
