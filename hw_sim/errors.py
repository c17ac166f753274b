"""Errors of the chip's side. Every message says: object: observed vs allowed; cure."""

from __future__ import annotations

from knarr.errors import KnarrError, one_line


class ChipError(KnarrError, ValueError):
    """A chip network, its inputs or its counts are not what the chip (or the counter) can take."""


class CountError(ChipError):
    """An operation cannot be counted; no total is given for a model that holds one."""


def first_line(error: Exception) -> str:
    """Return the first line of what a library raised; the rest is for its own developers."""
    return one_line(str(error).strip().partition("\n")[0])
