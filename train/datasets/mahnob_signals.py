"""From a recording of MAHNOB-HCI to what the networks see: the clip between the triggers, filtered, at 128 Hz.

Ours, where the paper leaves it open: the whole recording is referred to the average and filtered without phase, then cut,
so that the ends of the filters lie in the 30 s before and after the clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import signal

from knarr.train.data_error import DataError
from knarr.train.datasets.bdf import read_digital, read_header, read_physical
from knarr.train.datasets.cache import Arrays
from knarr.train.datasets.physio import EEG_32, RATE_HZ

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
        raise DataError(path, f"wrong rate: {found} Hz, not {allowed} for all channels; restore the file")
    units = {one.unit for one in needed[:-2]}
    if units != {"uV"}:
        raise DataError(path, f"wrong unit: EEG in {', '.join(sorted(units))}, not uV; restore the file")
    rate = int(rates.pop())
    factor = rate // RATE_HZ
    first, last = triggers(read_digital(header, needed[-1:])[0], path)
    clip = slice(-(-first // factor), -(-last // factor))  # sample k of the result is sample k * factor
    if clip.stop - clip.start < 1:
        raise DataError(path, f"empty clip: the triggers are {last - first} samples apart; restore the file")
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
