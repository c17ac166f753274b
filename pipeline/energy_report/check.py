"""The models beside published measurements: what `make energy-validation` found, as it was packaged.

A row is a prediction from prices that were not made from its measurement.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

RECORD = "checked.json"


@cache
def _record() -> list[dict[str, Any]]:
    text = files("knarr.pipeline.energy_report").joinpath(RECORD).read_text("utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def checks() -> list[dict[str, Any]]:
    """Return the rows: `what`, `predicted` with bounds, `measured`, and what was `left_out`."""
    return [dict(row) for row in _record()]
