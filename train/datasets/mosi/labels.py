"""Read the segments of CMU-MOSI and their scores.

Three label files are in circulation, and any of them will do:

| file | what it says |
|-|-|
| ``OpinionLevelSentiment.csv`` | no header; start_s, end_s, video, k, score |
| ``CMU_MOSI_Opinion_Labels.csd`` | HDF5, ``<any>/data/<video>/{features, intervals}`` |
| ``label.csv`` (MMSA) | header; video_id, clip_id, label and mode by name; no times |

The features are (n, 1) scores and the intervals (n, 2) seconds; row i is k = i + 1.
k counts a video's segments from 1 (Zadeh et al. 2016, https://arxiv.org/abs/1606.06259).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np

from knarr.train.datasets.files import checked_file, csv_rows, read_text
from knarr.train.errors import DataError

Layout = Literal["csv", "csd", "mmsa"]
FILES: dict[Layout, str] = {
    "csv": "OpinionLevelSentiment.csv",
    "csd": "CMU_MOSI_Opinion_Labels.csd",
    "mmsa": "label.csv",
}
SCORE_MAX = 3.0
MODES = ("train", "valid", "test")
MAX_LABEL_BYTES = 64 << 20
MAX_VALUES = 1 << 20  # of one array of a csd file: a video has some dozens

_VIDEO = re.compile("[A-Za-z0-9_-]{1,64}")  # a YouTube id; nothing that could leave the folder
_K = re.compile("[0-9]{1,5}")
_COLUMNS = ("video_id", "clip_id", "label", "mode")

# The split of 52, 10 and 31 videos that CMU-MultimodalSDK calls standard (`cmu_mosi_std_folds`).
_TRAIN = """
2iD-tVS8NPw 8d-gEyoeBzc Qr1Ca94K55A Ci-AH39fi3Y 8qrpnFRGt2A Bfr499ggo-0 QN9ZIUWUXsY 9T9Hf74oK10 7JsX8y1ysxY
1iG0909rllw Oz06ZWiO20M BioHAh1qJAQ 9c67fiY0wGQ Iu2PFX3z_1s Nzq88NnDkEk Clx4VXItLTE 9J25DZhivz8 Af8D0E4ZXaw
TvyZBvOMOTc W8NXH0Djyww 8OtFthrtaJM 0h-zjBukYpk Vj1wYRQjB-o GWuJjcEuzt8 BI97DNYfe5I PZ-lDQFboO8 1DmNV9C1hbY
OQvJTdtJ2H4 I5y0__X72p0 9qR7uwkblbs G6GlGvlkxAQ 6_0THN4chvY Njd1F0vZSm4 BvYR0L6f2Ig 03bSnISJMiM Dg_0XKD0Mf4
5W7Z1C_fDaE VbQk4H8hgr0 G-xst2euQUc MLal-t_vJPM BXuRRbG0Ugk LSi-o-IrDMs Jkswaaud0hk 2WGyTLYerpo 6Egk_28TtTM
Sqr0AcuoNnk POKffnXeBds 73jzhE8R1TQ OtBXNcAL_lE HEsqda8_d0Q VCslbP0mgZI IumbAb8q2dM
"""
_VALID = """
WKA5OygbEKI c5xsKMxpXnc atnd_PF-Lbs bvLlb-M3UXU bOL9jKpeJRs _dI--eQ6qVU ZAIRrfG22O0 X3j2zQgwYgE aiEXnCPZubE
ZUXBRvtny7o
"""
_TEST = """
tmZoasNr4rU zhpQhgha_KU lXPQBPVc5Cw iiK8YX8oH1E tStelxIAHjw nzpVDcQ0ywM etzxEpPuc6I cW1FSBF59ik d6hH302o4v8
k5Y_838nuGo pLTX3ipuDJI jUzDDGyPkXU f_pcplsH_V0 yvsjCA6Y5Fc nbWiPyCm4g0 rnaNMUZpvvg wMbj6ajWbic cM3Yna7AavY
yDtzw_Y-7RU vyB00TXsimI dq3Nf_lMPnE phBUpBr1hSo d3_k5Xpfmik v0zCBqDeKcE tIrG4oNLFzE fvVhgmXxadc ob23OKe5a9Q
cXypl4FnoZo vvZ4IcEtiZc f9O3YtZ2VfI c7UH_rxdZv4
"""
STANDARD_FOLDS = {
    video: mode
    for mode, videos in zip(MODES, (_TRAIN, _VALID, _TEST), strict=True)
    for video in videos.split()
}
"""Each of the 93 videos and its fold: "train", "valid" or "test"."""


class Key(NamedTuple):
    """Name of a segment: the video's id, and its number in the video, from 1."""

    video: str
    k: int

    def __str__(self) -> str:
        return f"{self.video}_{self.k}"


@dataclass(frozen=True)
class Segment:
    """One opinion.

    Attributes:
        key: video and number.
        score: sentiment, -3 (negative) .. 3 (positive).
        span_s: start and end in the whole video, seconds; None where the label file has no times.
        mode: fold that the label file names, one of MODES; None where it names none.
    """

    key: Key
    score: float
    span_s: tuple[float, float] | None = None
    mode: str | None = None


def find_labels(root: Path) -> tuple[Layout, Path]:
    """Find the label file of a folder, in it or in its ``Labels`` folder.

    Raises:
        DataError: there is none, or more than one.
    """
    places = [
        (layout, folder / name)
        for layout, name in FILES.items()
        for folder in (root, root / "Labels")
        if (folder / name).is_file()
    ]
    if not places:
        raise DataError(
            root, f"missing labels: none of {', '.join(FILES.values())}; add one or name the file"
        )
    if len(places) > 1:
        names = ", ".join(str(path.relative_to(root)) for _, path in places)
        raise DataError(root, f"several label files: {names}; name the one to use")
    return places[0]


def read_segments(
    root: Path, path: Path, layout: Layout
) -> tuple[tuple[Segment, ...], tuple[DataError, ...]]:
    """Read all segments of a label file, sorted by video and number, and the bad ones' errors.

    A segment that is named twice is left out each time. UTF-8 with or without a byte-order mark;
    any line ends.

    Args:
        root: folder that the file must lie in.
        path: the label file.
        layout: "csv", "csd" or "mmsa".

    Returns:
        The good segments, and one error for each bad record.

    Raises:
        DataError: the file as a whole cannot be used: missing, of another format, cut off, without
            records.
    """
    checked_file(path, root, MAX_LABEL_BYTES)
    records = list({"csv": _csv, "csd": _csd, "mmsa": _mmsa}[layout](path))
    if not records:
        raise DataError(path, "no records: the label file names no segment; restore it")
    bad = [record for record in records if isinstance(record, DataError)]
    segments = [record for record in records if isinstance(record, Segment)]
    times = Counter(segment.key for segment in segments)
    good = []
    for segment in segments:
        key = segment.key
        if times[key] == 1:
            good.append(segment)
        else:
            bad.append(
                DataError(path, f"duplicate id: {times[key]} records of it; keep one", str(key))
            )
    return tuple(sorted(good, key=lambda segment: segment.key)), tuple(bad)


def _segment(
    path: Path,
    where: str,
    video: str,
    k: str,
    score: str | float,
    span_s: tuple[str | float, str | float] | None = None,
    mode: str | None = None,
) -> Segment | DataError:
    """Return a checked record; an error is returned too, so that a reader can go on."""
    if _VIDEO.fullmatch(video) is None:
        return DataError(
            path, f"malformed id: {video[:80]!r} is no id of a video; correct it", where
        )
    if _K.fullmatch(k) is None or int(k) < 1:
        return DataError(
            path, f"segment number: {k[:80]!r}, not a whole number from 1; correct it", where
        )
    key = Key(video, int(k))
    # From here on the record has a name, which says more than its line.
    fault = partial(DataError, path, record=str(key))
    try:
        value = float(score)
        span = None if span_s is None else (float(span_s[0]), float(span_s[1]))
    except ValueError:
        return fault("malformed number: score or times are no numbers; correct them")
    # NaN is not <= anything.
    if not abs(value) <= SCORE_MAX:
        return fault(f"score out of range: {value:g}, allowed -3 .. 3; correct it")
    if span is not None and not 0 <= span[0] < span[1] < math.inf:
        return fault(f"malformed times: [{span[0]:g}, {span[1]:g}) s is no span; correct them")
    if mode is not None and mode not in MODES:
        return fault(f"unknown split: {mode[:80]!r} is none of {', '.join(MODES)}; correct it")
    return Segment(key, value, span, mode)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, fields) of every row that is not empty."""
    for where, row in csv_rows(path, read_text(path)):
        fields = [field.strip() for field in row]
        if any(fields):
            yield where, fields


def _csv(path: Path) -> Iterator[Segment | DataError]:
    for where, row in _rows(path):
        if len(row) == 5:
            start_s, end_s, video, k, score = row
            yield _segment(path, where, video, k, score, (start_s, end_s))
        else:
            yield DataError(path, f"malformed record: {len(row)} fields, not 5; restore it", where)


def _mmsa(path: Path) -> Iterator[Segment | DataError]:
    rows = _rows(path)
    _, header = next(rows, ("", []))
    absent = [name for name in _COLUMNS if header.count(name) != 1]
    if absent:
        raise DataError(path, f"malformed header: no one column {', '.join(absent)}; restore it")
    for where, row in rows:
        if len(row) == len(header):
            cells = dict(zip(header, row, strict=True))
            video, k, score, mode = (cells[name] for name in _COLUMNS)
            yield _segment(path, where, video, k, score, mode=mode)
        else:
            yield DataError(
                path, f"malformed record: {len(row)} fields, not {len(header)}; restore it", where
            )


def _csd(path: Path) -> Iterator[Segment | DataError]:
    try:
        with h5py.File(path, "r") as file:
            # The name of the top group differs between releases, so it is found by what it holds.
            tops = [top["data"] for top in file.values() if _is_group(top) and "data" in top]
            if len(tops) != 1 or not _is_group(tops[0]):
                raise DataError(path, "malformed csd: no one group '<root>/data'; restore it")
            videos = {video: _csd_arrays(entry) for video, entry in tops[0].items()}
    # What h5py raises for a file that is cut off.
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(path, f"malformed csd: not HDF5 ({error}); restore it") from error
    for video, arrays in videos.items():
        if arrays is None:
            yield DataError(
                path, "malformed video: not features (n, 1) and intervals (n, 2); restore it", video
            )
            continue
        scores, spans_s = (array.tolist() for array in arrays)
        for i, ((score,), span_s) in enumerate(zip(scores, spans_s, strict=True)):
            yield _segment(path, f"{video} row {i}", video, str(i + 1), score, tuple(span_s))


def _is_group(item: Any) -> bool:
    return isinstance(item, h5py.Group)


def _csd_arrays(entry: Any) -> list[Any] | None:
    """Return the scores (n, 1) and times (n, 2) of a video, or None where it has none."""
    if not _is_group(entry):
        return None
    arrays = [entry.get(name) for name in ("features", "intervals")]
    # Size and type are known before anything is read: HDF5 can state terabytes in a small file.
    for array in arrays:
        if not isinstance(array, h5py.Dataset) or array.size >= MAX_VALUES:
            return None
        if array.dtype.kind not in "fiu":
            return None
    scores, spans_s = (np.asarray(array) for array in arrays)
    n = len(scores) if scores.ndim else 0
    if scores.shape != (n, 1) or spans_s.shape != (n, 2):
        return None
    return [scores, spans_s]
