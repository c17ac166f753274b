"""Errors of the export stage; every message says: object: observed vs allowed; cure."""

from __future__ import annotations

from knarr.errors import KnarrError


class ExportError(KnarrError, ValueError):
    """A module or graph cannot be exported, or the export does not do what the module does."""


class CertificateError(ExportError):
    """Module and graph were compared and are not the same."""
