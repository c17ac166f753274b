"""The error for command lines that cannot be followed."""

from __future__ import annotations

from knarr.errors import KnarrError


class UsageError(KnarrError, ValueError):
    """An option, a path or a combination of them that the command cannot follow."""
