"""Small pieces that several tests share: waiting with a bound, and where real recordings lie."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest


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
