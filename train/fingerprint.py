"""What tells one data set from another: numbers over labels, people and a few clips of each split."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from knarr.train.clips import Clips

FORM: Final = "2:"
"""Before every number of this form; runs of earlier versions hold one of `old_fingerprint`, without it."""
CLIPS: Final = 16
GRAIN: Final = 16
"""Teacher inputs are hashed in steps of 1/16: another machine adds floats in another order, and its last bits are seldom other data."""


def fingerprint(splits: tuple[Clips, ...], *facts: Any) -> str:
    """SHA-256 over labels, and over what student and teacher see of some clips of each split, and over plain facts.

    Args:
        splits: of the data set.
        facts: groups, people, indices: lists of plain values.
    """
    digest = hashlib.sha256(json.dumps(facts).encode())
    for clips in splits:
        _add(digest, clips.labels)
        for number in range(0, len(clips.labels), max(1, len(clips.labels) // CLIPS)):
            one = np.array([number])
            _add(digest, clips.chip_inputs(one))
            for seen in clips.batch(one, None).teacher_inputs:
                _add(digest, np.rint(GRAIN * seen.numpy()).astype(np.int32))
    return FORM + digest.hexdigest()


def _add(digest: Any, values: npt.NDArray[Any]) -> None:
    digest.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())


def old_fingerprint(*splits: Clips) -> str:
    """As the first version had it: labels and student inputs of a few clips of each split, and nothing that a teacher sees."""
    digest = hashlib.sha256()
    for clips in splits:
        digest.update(clips.labels.tobytes())
        some = clips.chip_inputs(np.arange(len(clips.labels))[:: max(1, len(clips.labels) // 8)])
        # Spikes are packed, as they were before there was any other input: old runs keep their fingerprint.
        digest.update((np.packbits(some) if some.max(initial=0) <= 1 else some).tobytes())
    return digest.hexdigest()
