"""From a recording of MAHNOB-HCI to what the networks see: the clip between the triggers, filtered, at 128 Hz.

Ours, where the paper leaves it open: the whole recording is referred to the average and filtered without phase, then cut,
so that the ends of the filters lie in the 30 s before and after the clip.

The session.xml of a MAHNOB-HCI session: plain attributes, and nothing that XML can do beyond them.

MAHNOB-HCI-Tagging: EEG, skin conductance and felt emotion of 27 people who watched 20 video clips each.

Reads ``<root>/Sessions/<id>/session.xml`` and ``Part_<person>_S_Trial<n>_emotion.bdf`` (Soleymani et al. 2012,
https://doi.org/10.1109/T-AFFC.2011.25). The clip lies between two triggers on the status channel, with 30 s before and
after. The set defines no official split; the windows offer those by person and trial.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, NoReturn
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from scipy import signal

from knarr.train.datasets.cache import Arrays, Progress, cache_key, cached, parallel
from knarr.train.datasets.files import DataReport, checked_file, inside, sha256_of
from knarr.train.datasets.physio.bdf import read_digital, read_header, read_physical
from knarr.train.datasets.physio.windows import EEG_28, EEG_32, RATE_HZ, Recordings, Trial, pick
from knarr.train.errors import DataError

RATES_HZ: Final = (256, 512)  # sources disagree; both divide to 128 Hz
BAND_HZ: Final = (4.0, 45.0)  # DEAP's
FILTER_ORDER: Final = 4  # Butterworth, run forwards and backwards
TRIGGER_BITS: Final = 0xFFFF  # the 8 bits above tell of the amplifier, such as its battery
MAX_VALUE: Final = 1e12  # microvolts or ohms: no body, but a damaged header
VERSION: Final = 1  # of `prepare`
SETTINGS: Final = {"band_hz": list(BAND_HZ), "order": FILTER_ORDER, "rate_hz": RATE_HZ}
"""What the result depends on beside the file and the code."""


def prepare(path: Path) -> Arrays:
    """Read a recording whose size was checked.

    Returns:
        "eeg" (32, samples) float32, microvolts, in `EEG_32`'s order, against the average, 4-45 Hz; "gsr" (samples,) float32,
        ohms; both from the first trigger up to the second, at 128 Hz.

    Raises:
        DataError: No BDF, a channel missing, another rate or unit, not two triggers, or values no body has.
    """
    header = read_header(path)
    needed = [header.find(name) for name in (*EEG_32, "GSR1", "Status")]
    rates = {header.rate_hz(one) for one in needed}
    if len(rates) != 1 or not rates <= set(map(float, RATES_HZ)):
        found = ", ".join(f"{rate:g}" for rate in sorted(rates))
        allowed = " or ".join(map(str, RATES_HZ))
        raise DataError(
            path, f"wrong rate: {found} Hz, not {allowed} for all channels; restore the file"
        )
    units = {one.unit for one in needed[:-2]}
    if units != {"uV"}:
        raise DataError(
            path, f"wrong unit: EEG in {', '.join(sorted(units))}, not uV; restore the file"
        )
    rate = int(rates.pop())
    factor = rate // RATE_HZ
    first, last = triggers(read_digital(header, needed[-1:])[0], path)
    clip = slice(
        -(-first // factor), -(-last // factor)
    )  # sample k of the result is sample k * factor
    if clip.stop - clip.start < 1:
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
    slow = signal.resample_poly(raw, 1, factor, axis=1, padtype="line")
    band = signal.butter(FILTER_ORDER, BAND_HZ, "bandpass", fs=RATE_HZ, output="sos")
    return {
        "eeg": signal.sosfiltfilt(band, slow[:-1], axis=1)[:, clip].astype(np.float32),
        "gsr": slow[-1, clip].astype(np.float32),
    }


def triggers(status: npt.NDArray[np.int32], path: Path) -> tuple[int, int]:
    """First samples of the two triggers, the clip's start and end.

    Args:
        status: The status channel; its lowest 16 bits are the trigger inputs.
        path: The file, for the message.

    Raises:
        DataError: "wrong events": not exactly two runs that differ from the most frequent value.
    """
    inputs = status & TRIGGER_BITS
    values, counts = np.unique(inputs, return_counts=True)
    active = inputs != values[np.argmax(counts)]
    starts = np.flatnonzero(active & ~np.concatenate([[False], active[:-1]]))
    if len(starts) != 2:
        reason = f"wrong events: {len(starts)} on the status channel, not 2 (the clip's start and end); restore the file"
        raise DataError(path, reason)
    return int(starts[0]), int(starts[1])


MAX_XML_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16


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
        """Whether the person said what it felt; neutral clips and damaged sessions have no felt arousal."""
        return "feltArsl" in self.attributes

    def rating(self, name: str) -> int:
        """A felt score, 1 .. 9.

        Raises:
            DataError: Absent, not a whole number, or out of range.
        """
        text = self.attributes.get(name)
        if text is None:
            raise DataError(
                self.path, f"label missing: no {name}; restore the file", self.session_id
            )
        if not re.fullmatch("[1-9]", text):
            reason = (
                f"label out of range: {name} is '{text[:40]}', not one of 1 .. 9; restore the file"
            )
            raise DataError(self.path, reason, self.session_id)
        return int(text)


def read_session(path: Path) -> Session:
    """Read a session.xml whose size was checked.

    Raises:
        DataError: "malformed XML" (a document type or an entity is refused too), or no `session` with a sessionId and
            exactly one `subject` with a whole number for an id.
    """
    elements: list[tuple[int, str, dict[str, str]]] = []
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        if depth >= MAX_DEPTH:
            raise DataError(
                path, f"malformed XML: deeper than {MAX_DEPTH} elements; restore the file"
            )
        elements.append((depth, name, attributes))
        depth += 1

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> NoReturn:
        raise DataError(
            path, "malformed XML: it declares a document type or an entity, none allowed; remove it"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except (
        expat.ExpatError,
        ValueError,
        LookupError,
    ) as error:  # the latter two of encodings it does not know
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
        reason = f"malformed session: subjects {str(people)[:100]}, not one with a number from 1; restore the file"
        raise DataError(path, reason, attributes["sessionId"])
    return Session(path, attributes["sessionId"], int(people[0]), attributes)


FOLDER: Final = "Sessions"
STIMULUS_RECORDINGS: Final = 527
MAX_BDF_BYTES: Final = 256 << 20

_STIMULUS: Final = re.compile(
    r"Part_(?P<person>[0-9]{1,4})_S_Trial(?P<trial>[0-9]{1,4})_emotion\.bdf"
)
_OTHER: Final = re.compile(r"Part_.*_(N_Trial[0-9]+_emotion|taggingImages[12]|taggingVideos)\.bdf")
_log = logging.getLogger(__name__)


def read_mahnob(
    root: Path,
    *,
    channels: Sequence[str] = EEG_28,
    on_bad: Literal["raise", "skip"] = "raise",
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Recordings:
    """Read the stimulus part of every rated emotion session.

    Neutral clips and the tagging experiment have no felt scores and are none of this data: they are passed over and their
    number is logged. A stimulus session without a felt arousal is left out and counted, also with ``on_bad="raise"``.

    Args:
        root: Folder that holds `Sessions`.
        channels: Electrodes to keep, by name and in this order, of `physio.EEG_32`. The average that EEG refers to is
            always that of all 32.
        on_bad: "raise" at the first bad session, or "skip": leave it out, log it, count it by reason and warn at the end.
        cache: Folder for the prepared signals; without one every file is filtered again.
        workers: Processes to read with.
        progress: Called with (sessions done, sessions in all).

    Returns:
        The trials by person and trial, named "subject-01" and "trial-01", 128 Hz; EEG in microvolts, 4-45 Hz, against
        the average, skin resistance in ohms.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The folder is missing, a session is bad (with ``on_bad="raise"``), or no trial is left.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad: {on_bad!r} is neither 'raise' nor 'skip'; name one of them")
    pick(channels)
    load = partial(
        _load, root=root, channels=tuple(channels), cache=cache, strict=on_bad == "raise"
    )
    parts = _all(root, load, workers, progress)
    bad = [part.left_out for part in parts if part.left_out is not None]
    trials = sorted(
        (part.trial for part in parts if part.trial is not None), key=lambda t: (t.subject, t.trial)
    )
    found = Recordings(tuple(trials), tuple(channels), tuple(bad))
    for error in bad:
        if on_bad == "raise" and error.kind != _UNRATED:
            raise error
        _log.warning("%s", error)
    if bad:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(found.skipped.items()))
        warnings.warn(f"{root}: skipped {len(bad)} sessions: {counts}", stacklevel=2)
    if not trials:
        raise DataError(root, "no trials: none can be used; check the dataset")
    return found


def check(root: Path, *, workers: int = 1, progress: Progress | None = None) -> DataReport:
    """Read every stimulus session and say what can be used.

    Args:
        root: Folder that holds `Sessions`.
        workers: Processes to read with.
        progress: Called with (sessions done, sessions in all).

    Returns:
        Samples are sessions; ``samples + len(skipped)`` is the number of stimulus sessions on disk. The splits are the test
        sets of leave-one-subject-out, "loso/subject-01" and so on.

    Raises:
        DataError: The folder is missing.
    """
    parts = _all(root, partial(_verdict, root=root), workers, progress)
    people = Counter(part.subject for part in parts if part.left_out is None)
    skipped = tuple(str(part.left_out) for part in parts if part.left_out is not None)
    short = STIMULUS_RECORDINGS - len(parts)
    return DataReport(
        name="mahnob",
        root=str(root),
        samples=people.total(),
        splits={f"loso/{subject}": count for subject, count in sorted(people.items())},
        subjects=len(people),
        skipped=skipped,
        missing=(f"{short} of {STIMULUS_RECORDINGS} stimulus sessions",) if short > 0 else (),
    )


_UNRATED: Final = "not rated"


@dataclass(frozen=True, eq=False)
class _SessionSignals:
    """What one session gave: a trial (kept or only counted) or why there is none."""

    folder: Path
    session_id: str = ""
    subject: str = ""
    name: str = ""
    trial: Trial | None = None
    left_out: DataError | None = None


def _all(
    root: Path, load: partial[_SessionSignals], workers: int, progress: Progress | None
) -> list[_SessionSignals]:
    """Read every stimulus session; refuse those that claim the same id, or the same person and trial."""
    parts = parallel(_stimulus_sessions(root), load, workers=workers, progress=progress)
    by_id: defaultdict[str, list[_SessionSignals]] = defaultdict(list)
    by_trial: defaultdict[tuple[str, str], list[_SessionSignals]] = defaultdict(list)
    for part in parts:
        if part.session_id:
            by_id[part.session_id].append(part)
        if part.name:
            by_trial[part.subject, part.name].append(part)
    for position, part in enumerate(parts):
        same_id = by_id.get(part.session_id, [])
        claims = same_id if len(same_id) > 1 else by_trial.get((part.subject, part.name), [])
        others = [other.folder.name for other in claims if other is not part]
        if others:
            reason = (
                f"duplicate session: id {part.session_id} {part.subject} {part.name}, also claimed by {others[0]}; "
                "keep the right one"
            )
            parts[position] = _SessionSignals(part.folder, left_out=DataError(part.folder, reason))
    return parts


def _stimulus_sessions(root: Path) -> list[Path]:
    """Folders of sessions that are not known to be neutral clips or of the tagging experiment, by number."""
    sessions = inside(root / FOLDER, root)
    if not sessions.is_dir():
        raise DataError(sessions, f"missing folder: not there; give the folder that holds {FOLDER}")
    folders = [path for path in sessions.iterdir() if path.is_dir()]
    other = [path for path in folders if _is_other(path)]
    if other:
        _log.info("%s: passed over %d neutral clips and tagging sessions", sessions, len(other))
    return sorted(set(folders) - set(other), key=lambda path: (len(path.name), path.name))


def _is_other(folder: Path) -> bool:
    recordings = [path.name for path in folder.glob("*.bdf")]
    return bool(recordings) and all(_OTHER.fullmatch(name) for name in recordings)


def _verdict(folder: Path, *, root: Path) -> _SessionSignals:
    """`_load` without the signals."""
    part = _load(folder, root=root, channels=EEG_32, cache=None, strict=False)
    return _SessionSignals(
        part.folder, part.session_id, part.subject, part.name, left_out=part.left_out
    )


def _load(
    folder: Path, *, root: Path, channels: tuple[str, ...], cache: Path | None, strict: bool
) -> _SessionSignals:
    """Read one session; with `strict`, raise its fault."""
    session_id = subject = name = ""
    try:
        session = read_session(
            checked_file(folder / "session.xml", root, MAX_XML_BYTES, folder.name)
        )
        session_id = session.session_id
        if not session.rated:
            raise DataError(
                session.path, f"{_UNRATED}: no feltArsl; nothing to learn from it", folder.name
            )
        path, person, number = _recording(folder, root)
        if session.subject != person:
            reason = f"subject clash: person {session.subject}, but the recording is {path.name}; correct one"
            raise DataError(session.path, reason, folder.name)
        subject, name = f"subject-{person:02d}", f"trial-{number:02d}"
        valence, arousal = session.rating("feltVlnc"), session.rating("feltArsl")
        checked_file(path, root, MAX_BDF_BYTES, folder.name)
        make = partial(prepare, path)
        if cache is None:
            arrays = make()
        else:
            key = cache_key("mahnob", VERSION, {path.name: sha256_of(path)}, SETTINGS)
            arrays = cached(cache, key, make)
    except DataError as error:
        if strict and error.kind != _UNRATED:
            raise
        return _SessionSignals(folder, session_id, subject, name, left_out=error)
    eeg = np.ascontiguousarray(arrays["eeg"][pick(channels)])
    trial = Trial(subject, name, eeg, arrays["gsr"], float(valence), float(arousal))
    return _SessionSignals(folder, session_id, subject, name, trial)


def _recording(folder: Path, root: Path) -> tuple[Path, int, int]:
    """The one stimulus recording of a session, with the numbers of its person and trial."""
    inside(folder, root)
    found = [
        (path, match)
        for path in sorted(folder.glob("*.bdf"))
        if (match := _STIMULUS.fullmatch(path.name))
    ]
    if len(found) != 1:
        what = "missing recording" if not found else "two recordings"
        reason = f"{what}: {len(found)} files Part_<person>_S_Trial<n>_emotion.bdf, not 1; restore the session"
        raise DataError(folder, reason)
    path, match = found[0]
    return path, int(match["person"]), int(match["trial"])
