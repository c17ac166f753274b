"""Small pieces that several tests share: waiting with a bound, and where real recordings lie."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FORK = multiprocessing.get_context("fork")


class Forked(FORK.Process):  # type: ignore[name-defined]
    """A process forked from this one that never collects the garbage it was born with.

    Some libraries' objects join their threads when they are freed, and a fork has none of the threads:
    a child whose collector met a decoder left over from an earlier test waited for ever.
    """

    def start(self) -> None:
        gc.freeze()
        try:
            super().start()
        finally:
            gc.unfreeze()


def until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def real_data(name: str) -> Path:
    """A folder of real recordings, from KNARR_SHARED_DATA or beside the project; skips where there is none."""
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("KNARR_SHARED_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"real data not found: {folder} (set KNARR_SHARED_DATA)")
    return folder
