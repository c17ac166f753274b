"""Read MAHNOB-HCI-Tagging: EEG, skin conductance and felt emotion.

27 people watched 20 video clips each.

Reads ``<root>/Sessions/<id>/session.xml`` and ``Part_<person>_S_Trial<n>_emotion.bdf`` (Soleymani
et al. 2012, https://doi.org/10.1109/T-AFFC.2011.25). The clip lies between two triggers on the
status channel, with 30 s before and after. The set defines no official split; the windows offer
those by person and trial.

Ours, where the paper leaves it open: the whole recording is referred to the average and filtered
without phase, then cut, so that the ends of the filters lie in the 30 s before and after the clip.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached, parallel
from knarr.train.datasets.files import (
    DataReport,
    OnBad,
    checked_file,
    checked_folder,
    data_report,
    inside,
    is_strict,
    report_skipped,
    sha256_of,
)
from knarr.train.datasets.physio.bdf import read_digital, read_header, read_physical
from knarr.train.datasets.physio.windows import (
    EEG_28,
    EEG_32,
    RATE_HZ,
    Recordings,
    Trial,
    channel_rows,
)
from knarr.train.errors import DataError

FOLDER = "Sessions"
STIMULUS_RECORDINGS = 527
MAX_BDF_BYTES = 256 << 20
MAX_XML_BYTES = 1 << 20
MAX_DEPTH = 16

RATES_HZ = (256, 512)  # sources disagree; both divide to 128 Hz
BAND_HZ = (4.0, 45.0)  # DEAP's
FILTER_ORDER = 4  # Butterworth, run forwards and backwards
TRIGGER_BITS = 0xFFFF  # the 8 bits above tell of the amplifier, such as its battery
MAX_VALUE = 1e12  # microvolts or ohms: no body, but a damaged header
VERSION = 1
"""Version of `prepare`: raise it whenever it computes something else."""
SETTINGS = {"band_hz": list(BAND_HZ), "order": FILTER_ORDER, "rate_hz": RATE_HZ}
"""Settings that a cached result depends on beside the file and the code."""

_UNRATED = "not rated"
_STIMULUS = re.compile(r"Part_(?P<person>[0-9]{1,4})_S_Trial(?P<trial>[0-9]{1,4})_emotion\.bdf")
_OTHER = re.compile(r"Part_.*_(N_Trial[0-9]+_emotion|taggingImages[12]|taggingVideos)\.bdf")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """Attributes of a session.

    Args:
        path: The file.
        session_id: As written.
        subject: The person's number, at least 1.
        attributes: All attributes of the element `session`.
    """

    path: Path
    session_id: str
    subject: int
    attributes: dict[str, str]

    @property
    def rated(self) -> bool:
        """True where the person said what it felt.

        Neutral clips and damaged sessions have no felt arousal.
        """
        return "feltArsl" in self.attributes

    def rating(self, name: str) -> int:
        """Return a felt score, 1 .. 9.

        Raises:
            DataError: Absent, not a whole number, or out of range.
        """
        text = self.attributes.get(name)
        if text is None:
            raise DataError(
                self.path, f"label missing: no {name}; restore the file", self.session_id
            )
        if not re.fullmatch("[1-9]", text):
            raise DataError(
                self.path,
                f"label out of range: {name} is '{text[:40]}', not one of 1 .. 9; restore the file",
                self.session_id,
            )
        return int(text)


class _SessionSignals(NamedTuple):
    """Result of one session: a trial, which may be only counted, or why there is none."""

    folder: Path
    session_id: str = ""
    subject: str = ""
    name: str = ""
    trial: Trial | None = None
    left_out: DataError | None = None


def read_mahnob(
    root: Path,
    *,
    channels: Sequence[str] = EEG_28,
    on_bad: OnBad = "raise",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Recordings:
    """Read the stimulus part of every rated emotion session.

    Neutral clips and the tagging experiment have no felt scores and are none of this data: they are
    passed over and their number is logged. A stimulus session without a felt arousal is left out
    and counted, also with ``on_bad="raise"``.

    Args:
        root: Folder that holds `Sessions`.
        channels: Electrodes to keep, by name and in this order, of `windows.EEG_32`. The average
            that EEG refers to is always that of all 32.
        on_bad: "raise" at the first bad session, or "skip": leave it out, log it, count it by
            reason and warn at the end.
        cache: Folder for the prepared signals; without one every file is filtered again.
        progress: Called with (sessions done, sessions in all).

    Returns:
        The trials by person and trial, named "subject-01" and "trial-01", 128 Hz; EEG in
        microvolts, 4-45 Hz, against the average, skin resistance in ohms.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The folder is missing, a session is bad (with ``on_bad="raise"``), or no trial is
            left.
    """
    strict = is_strict(on_bad)
    channel_rows(channels)  # refuses a wrong name before minutes of filtering

    def load(folder: Path) -> _SessionSignals:
        return _load(root, folder, channels, cache=cache, strict=strict)

    sessions = _load_sessions(root, load, progress)
    bad = tuple(session.left_out for session in sessions if session.left_out is not None)
    trials = [session.trial for session in sessions if session.trial is not None]
    trials.sort(key=lambda trial: (trial.subject, trial.trial))
    for error in bad:
        if strict and error.kind != _UNRATED:
            raise error
    report_skipped(root, "sessions", bad)
    if not trials:
        raise DataError(root, "no trials: none can be used; check the dataset")
    return Recordings(tuple(trials), tuple(channels), bad)


def check(root: Path, *, progress: Progress | None = None) -> DataReport:
    """Read every stimulus session and say what can be used.

    Args:
        root: Folder that holds `Sessions`.
        progress: Called with (sessions done, sessions in all).

    Returns:
        Samples are sessions; ``samples + len(skipped)`` is the number of stimulus sessions on disk.
        The splits are the test sets of leave-one-subject-out, "loso/subject-01" and so on.

    Raises:
        DataError: The folder is missing.
    """

    def count(folder: Path) -> _SessionSignals:
        # Without the signals: those of all sessions fill the memory.
        return _load(root, folder, EEG_32)._replace(trial=None)

    sessions = _load_sessions(root, count, progress)
    people = Counter(session.subject for session in sessions if session.left_out is None)
    absent = STIMULUS_RECORDINGS - len(sessions)
    missing = [f"{absent} of {STIMULUS_RECORDINGS} stimulus sessions"]
    return data_report(
        "mahnob",
        root,
        {f"loso/{subject}": trials for subject, trials in sorted(people.items())},
        (session.left_out for session in sessions if session.left_out is not None),
        missing=missing if absent > 0 else (),
    )


def _load_sessions(
    root: Path,
    load: Callable[[Path], _SessionSignals],
    progress: Progress | None,
) -> list[_SessionSignals]:
    """Read every stimulus session.

    Refused are those that claim the same id, or the same person and trial.
    """
    sessions = parallel(_stimulus_sessions(root), load, workers=1, progress=progress)
    checked = []
    for session in sessions:
        own_id, own_trial = session.session_id, (session.subject, session.name)
        others = [other for other in sessions if other is not session]
        # A session that was refused early has no id or no name yet, and claims nothing by it.
        rivals = [other for other in others if own_id and other.session_id == own_id]
        if session.name:
            rivals += [other for other in others if (other.subject, other.name) == own_trial]
        if rivals:
            error = DataError(
                session.folder,
                f"duplicate session: id {own_id} {session.subject} {session.name}, "
                f"also claimed by {rivals[0].folder.name}; keep the right one",
            )
            checked.append(_SessionSignals(session.folder, left_out=error))
        else:
            checked.append(session)
    return checked


def _stimulus_sessions(root: Path) -> list[Path]:
    """List the sessions by number, without neutral clips and the tagging experiment."""
    sessions = checked_folder(root / FOLDER, root, f"give the folder that holds {FOLDER}")
    folders = [path for path in sessions.iterdir() if path.is_dir()]
    stimulus = [path for path in folders if not _is_other(path)]
    others = len(folders) - len(stimulus)
    if others:
        _log.info("%s: passed over %d neutral clips and tagging sessions", sessions, others)
    # Their names are numbers: shorter ones come first.
    return sorted(stimulus, key=lambda path: (len(path.name), path.name))


def _is_other(folder: Path) -> bool:
    recordings = [path.name for path in folder.glob("*.bdf")]
    return bool(recordings) and all(map(_OTHER.fullmatch, recordings))


def _load(
    root: Path,
    folder: Path,
    channels: Sequence[str],
    *,
    cache: Path | None = None,
    strict: bool = False,
) -> _SessionSignals:
    """Read one session; with `strict`, raise its fault."""
    session_id = subject = name = ""
    try:
        xml = checked_file(folder / "session.xml", root, MAX_XML_BYTES, folder.name)
        session = read_session(xml)
        session_id = session.session_id
        if not session.rated:
            raise DataError(
                session.path, f"{_UNRATED}: no feltArsl; nothing to learn from it", folder.name
            )
        path, person, number = _recording(folder, root)
        if session.subject != person:
            raise DataError(
                session.path,
                f"subject clash: person {session.subject}, but the recording is {path.name}; correct one",
                folder.name,
            )
        subject, name = f"subject-{person:02d}", f"trial-{number:02d}"
        valence, arousal = session.rating("feltVlnc"), session.rating("feltArsl")
        checked_file(path, root, MAX_BDF_BYTES, folder.name)
        if cache is None:
            arrays = prepare(path)
        else:
            key = cache_key("mahnob", VERSION, {path.name: sha256_of(path)}, SETTINGS)
            arrays = cached(cache, key, partial(prepare, path))
    except DataError as error:
        if strict and error.kind != _UNRATED:
            raise
        return _SessionSignals(folder, session_id, subject, name, left_out=error)
    eeg = np.ascontiguousarray(arrays["eeg"][channel_rows(channels)])
    trial = Trial(subject, name, eeg, arrays["gsr"], float(valence), float(arousal))
    return _SessionSignals(folder, session_id, subject, name, trial)


def _recording(folder: Path, root: Path) -> tuple[Path, int, int]:
    """Return the one stimulus recording of a session, with the numbers of its person and trial."""
    inside(folder, root)
    names = [path.name for path in sorted(folder.glob("*.bdf"))]
    found = [match for match in map(_STIMULUS.fullmatch, names) if match is not None]
    if len(found) != 1:
        kind = "two recordings" if found else "missing recording"
        raise DataError(
            folder,
            f"{kind}: {len(found)} files Part_<person>_S_Trial<n>_emotion.bdf, not 1; restore the session",
        )
    return folder / found[0][0], int(found[0]["person"]), int(found[0]["trial"])


def read_session(path: Path) -> Session:
    """Read a session.xml whose size was checked.

    It may hold plain attributes, and nothing that XML can do beyond them.

    Raises:
        DataError: "malformed XML" (a document type or an entity is refused too), or no `session`
            with a sessionId and exactly one `subject` with a whole number for an id.
    """
    elements: list[tuple[int, str, dict[str, str]]] = []
    opened: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(opened) >= MAX_DEPTH:
            raise DataError(
                path, f"malformed XML: deeper than {MAX_DEPTH} elements; restore the file"
            )
        elements.append((len(opened), name, attributes))
        opened.append(name)

    # Entities can name other files, or grow to gigabytes from a few lines.
    def refuse(*_: object) -> NoReturn:
        raise DataError(
            path, "malformed XML: it declares a document type or an entity, none allowed; remove it"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: opened.pop()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    # The latter two are raised for encodings that it does not know.
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(path, f"malformed XML: {error}; restore the file") from error
    _, name, attributes = elements[0]
    if name != "session" or not attributes.get("sessionId"):
        raise DataError(
            path, "malformed session: no element 'session' with a sessionId; restore the file"
        )
    people = [
        found.get("id", "") for level, child, found in elements if (level, child) == (1, "subject")
    ]
    if len(people) != 1 or not re.fullmatch("[0-9]{1,9}", people[0]) or int(people[0]) < 1:
        raise DataError(
            path,
            f"malformed session: subjects {str(people)[:100]}, not one with a number from 1; restore the file",
            attributes["sessionId"],
        )
    return Session(path, attributes["sessionId"], int(people[0]), attributes)


def prepare(path: Path) -> Arrays:
    """Read a recording whose size was checked: the clip between the triggers, filtered, at 128 Hz.

    Returns:
        "eeg" (32, samples) float32, microvolts, in `EEG_32`'s order, against the average, 4-45 Hz;
        "gsr" (samples,) float32, ohms; both from the first trigger up to the second, at 128 Hz.

    Raises:
        DataError: No BDF, a channel missing, another rate or unit, not two triggers, or values no
            body has.
    """
    header = read_header(path)
    needed = [header.find(name) for name in (*EEG_32, "GSR1", "Status")]
    rates = sorted({header.rate_hz(one) for one in needed})
    if len(rates) != 1 or rates[0] not in RATES_HZ:
        found = ", ".join(f"{rate:g}" for rate in rates)
        allowed = " or ".join(map(str, RATES_HZ))
        raise DataError(
            path, f"wrong rate: {found} Hz, not {allowed} for all channels; restore the file"
        )
    units = {one.unit for one in needed[:-2]}
    if units != {"uV"}:
        raise DataError(
            path, f"wrong unit: EEG in {', '.join(sorted(units))}, not uV; restore the file"
        )
    rate = int(rates[0])
    factor = rate // RATE_HZ
    first, last = triggers(read_digital(header, needed[-1:])[0], path)
    # Sample k of the result is sample k * factor of the recording; both ends are rounded up.
    clip = slice(-(-first // factor), -(-last // factor))
    if clip.stop <= clip.start:
        raise DataError(
            path, f"empty clip: the triggers are {last - first} samples apart; restore the file"
        )
    raw = np.stack(read_physical(header, needed[:-1]))
    if raw.shape[1] < rate:
        raise DataError(
            path, f"short recording: {raw.shape[1]} samples, less than a second; restore the file"
        )
    if not (np.abs(raw) <= MAX_VALUE).all():
        raise DataError(path, f"not finite: a signal goes beyond {MAX_VALUE:g}; restore the file")
    raw[:-1] -= raw[:-1].mean(axis=0)
    # Electrodes drift by millivolts: padding along the line between the ends keeps a step out of
    # the filter.
    from scipy import signal  # takes seconds to load, and checking a folder filters nothing

    slow = signal.resample_poly(raw, 1, factor, axis=1, padtype="line")
    band = signal.butter(FILTER_ORDER, BAND_HZ, "bandpass", fs=RATE_HZ, output="sos")
    return {
        "eeg": signal.sosfiltfilt(band, slow[:-1], axis=1)[:, clip].astype(np.float32),
        "gsr": slow[-1, clip].astype(np.float32),
    }


def triggers(status: npt.NDArray[np.int32], path: Path) -> tuple[int, int]:
    """Find the first samples of the two triggers, the clip's start and end.

    Args:
        status: The status channel; its lowest 16 bits are the trigger inputs.
        path: The file, for the message.

    Raises:
        DataError: "wrong events": not exactly two runs that differ from the most frequent value.
    """
    inputs = status & TRIGGER_BITS
    # At rest the inputs are not always 0, so rest is what they are most of the time.
    values, counts = np.unique(inputs, return_counts=True)
    active = inputs != values[np.argmax(counts)]
    starts = np.flatnonzero(np.diff(active, prepend=False) & active)
    if len(starts) != 2:
        raise DataError(
            path,
            f"wrong events: {len(starts)} on the status channel, not 2 (the clip's start and end); restore the file",
        )
    return int(starts[0]), int(starts[1])
