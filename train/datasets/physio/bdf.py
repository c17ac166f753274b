"""BDF, the 24-bit format of BioSemi: strict, by channel name, only the signals asked for.

A header of 256 bytes and 256 more for each signal, then records: the samples of each signal in
turn, 3 bytes each, little end first, two's complement
(https://www.biosemi.com/faq/file_format.htm). A file that is not exactly as long as its header says
is refused. mne 1.12 is the library that would read it: it takes truncated files, bytes behind the
end and two channels of one name in silence, and rounds values otherwise by their conversion to
volts.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from knarr.train.datasets.arrays import Float64
from knarr.train.errors import DataError

MAX_SIGNALS = 1024
_MAGIC = b"\xffBIOSEMI"
_INT24 = (-(1 << 23), (1 << 23) - 1)
# Widths of a signal's fields: label, transducer, unit, physical min and max, digital min and max,
# filter, samples, reserved.
_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)


@dataclass(frozen=True)
class Signal:
    """One signal of a header.

    Args:
        label: Name as written.
        unit: Unit of the physical values, such as "uV".
        physical: Values that the ends of `digital` stand for.
        digital: Ends of the integer range.
        samples: Samples in each record.
        offset: Where its samples begin within a record, in samples.
    """

    label: str
    unit: str
    physical: tuple[float, float]
    digital: tuple[int, int]
    samples: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Header of a file.

    Args:
        path: The file.
        n_bytes: Length of the header.
        records: Number of records.
        record_s: Duration of a record in seconds.
        signals: Signals in their order.
    """

    path: Path
    n_bytes: int
    records: int
    record_s: float
    signals: tuple[Signal, ...]

    def find(self, name: str) -> Signal:
        """Return the signal of a name, compared as `plain_name`.

        Raises:
            DataError: "channel missing", or "channel twice".
        """
        found = [signal for signal in self.signals if plain_name(signal.label) == plain_name(name)]
        if len(found) != 1:
            kind = f"channel twice: {len(found)} signals" if found else "channel missing: no signal"
            raise DataError(self.path, f"{kind} '{name}'; restore the file", name)
        return found[0]

    def rate_hz(self, signal: Signal) -> float:
        """Return the sampling rate of a signal."""
        return signal.samples / self.record_s


def plain_name(label: str) -> str:
    """Return a label in upper case without leading digits: writers differ in both."""
    return re.sub("^[0-9]+", "", label.strip().upper())


def read_header(path: Path) -> Header:
    """Read and check the header of a file whose size was checked.

    Raises:
        DataError: "not BDF", "malformed header", "unfinished recording", "no samples", or
            "truncated file" when the file's length is not what the header says.
    """
    with path.open("rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256 or not fixed.startswith(_MAGIC):
            raise DataError(
                path, "not BDF: the first bytes are not those of the format; restore the file"
            )
        n_bytes = _whole(path, "header bytes", fixed[184:192])
        count = _whole(path, "signals", fixed[252:256])
        records = _whole(path, "records", fixed[236:244])
        record_s = _number(path, "record duration", fixed[244:252])
        # Bounded before it is believed: the header's own length decides how much is read next.
        if not 1 <= count <= MAX_SIGNALS or n_bytes != 256 * (count + 1):
            raise DataError(
                path,
                f"malformed header: {count} signals in {n_bytes} bytes, not 256 for each and 256; restore it",
            )
        table = file.read(n_bytes - 256)
    if records == -1:  # what the recorder writes at the start and corrects at the end
        raise DataError(path, "unfinished recording: its number of records is -1; restore the file")
    if records < 1 or record_s <= 0:
        raise DataError(path, f"no samples: {records} records of {record_s} s; restore the file")
    if len(table) != n_bytes - 256:
        raise DataError(
            path, f"truncated file: {256 + len(table)} < {n_bytes} bytes of header; restore it"
        )
    signals = _signals(path, table, count)
    size = path.stat().st_size
    whole = n_bytes + records * 3 * sum(signal.samples for signal in signals)
    if size != whole:
        kind = "truncated file" if size < whole else "trailing bytes"
        raise DataError(
            path, f"{kind}: {size} bytes, not {whole} as its header says; restore the file"
        )
    return Header(path, n_bytes, records, record_s, signals)


def read_digital(header: Header, signals: Sequence[Signal]) -> list[npt.NDArray[np.int32]]:
    """Return the integers of signals, each (records * samples,), -8388608 .. 8388607."""
    width = sum(signal.samples for signal in header.signals)
    shape = (header.records, width, 3)
    # Mapped, for a recording has 47 signals and a caller may want one.
    raw = np.memmap(header.path, np.uint8, "r", offset=header.n_bytes, shape=shape)
    result = []
    for signal in signals:
        part = raw[:, signal.offset : signal.offset + signal.samples].astype(np.int32)
        value = part[..., 0] | part[..., 1] << 8 | part[..., 2] << 16
        # Flipping bit 23 and taking it away again spreads the sign over the upper 8 bits.
        result.append(((value ^ 0x800000) - 0x800000).reshape(-1))
    return result


def read_physical(header: Header, signals: Sequence[Signal]) -> list[Float64]:
    """Return the values of signals in their units, each (records * samples,)."""
    result: list[Float64] = []
    for signal, digital in zip(signals, read_digital(header, signals), strict=True):
        low, high = signal.physical
        first, last = signal.digital
        step = np.float64((high - low) / (last - first))
        # A range near the end of the floats gives no numbers; whoever uses the values refuses
        # those.
        with np.errstate(over="ignore", invalid="ignore"):
            result.append((digital - first) * step + low)
    return result


def _signals(path: Path, table: bytes, count: int) -> tuple[Signal, ...]:
    stream = io.BytesIO(table)
    # One field of all signals stands before the next field of the first.
    columns = [[stream.read(width) for _ in range(count)] for width in _WIDTHS]
    signals: list[Signal] = []
    offset = 0
    for name, _, unit, low, high, first, last, _, per_record, _ in zip(*columns, strict=True):
        label = name.decode("latin1").strip()
        where = f"range of '{label}'"
        physical = _number(path, where, low), _number(path, label, high)
        digital = _whole(path, where, first), _whole(path, label, last)
        samples = _whole(path, f"samples of '{label}'", per_record)
        ordered = _INT24[0] <= digital[0] < digital[1] <= _INT24[1]
        if samples < 1 or not ordered or physical[0] == physical[1]:
            raise DataError(
                path,
                f"malformed header: {samples} samples, digital {digital}, physical {physical}; restore the file",
                label,
            )
        text = unit.decode("latin1").strip()
        signals.append(Signal(label, text, physical, digital, samples, offset))
        offset += samples
    return tuple(signals)


def _whole(path: Path, what: str, field: bytes) -> int:
    value = _number(path, what, field)
    if not value.is_integer():
        raise DataError(
            path, f"malformed header: {what} is {value}, not a whole number; restore the file"
        )
    return int(value)


def _number(path: Path, what: str, field: bytes) -> float:
    try:
        value = float(field.decode("ascii"))
    except ValueError as error:
        raise DataError(
            path, f"malformed header: {what} is {field[:20]!r}, not a number; restore the file"
        ) from error
    if not math.isfinite(value):
        raise DataError(path, f"malformed header: {what} is {value}; restore the file")
    return value
