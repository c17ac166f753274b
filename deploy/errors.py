"""Errors on the way to the chip; every message says: object: observed vs allowed; cure."""

from __future__ import annotations

from knarr.errors import KnarrError


class DeployError(KnarrError, ValueError):
    """A graph or file cannot become a chip network, or a chip network breaks a rule."""


class LavaError(KnarrError, RuntimeError):
    """The Lava worker could not start, died, hung, or said no; carries the tail of its log."""


class LavaMissingError(LavaError):
    """Lava is not installed, or no longer whole, or the interpreter named for it cannot start."""
