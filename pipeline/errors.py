"""The error for runs and their files."""

from __future__ import annotations

from knarr.errors import KnarrError


class RunError(KnarrError, ValueError):
    """A run's folder, or a file in it, that cannot be used as it is."""
