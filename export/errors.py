"""Errors of the export stage; every message says: object: observed vs allowed; cure."""

from __future__ import annotations

from collections.abc import Iterable

from knarr.errors import KnarrError


class ExportError(KnarrError, ValueError):
    """A module or graph cannot be exported, or the export does not do what the module does.

    Attributes:
        reasons: every reason that was found, where there is more than the one of the message.
    """

    reasons: tuple[str, ...] = ()


class CertificateError(ExportError):
    """Module and graph were compared and are not the same."""


def refusal(faults: Iterable[str]) -> ExportError:
    """Return the error that tells the first of several faults, and holds all of them."""
    every = tuple(dict.fromkeys(faults))
    more = f" (and {len(every) - 1} more: knarr check lists them)" if len(every) > 1 else ""
    error = ExportError(f"{every[0]}{more}")
    error.reasons = every
    return error


def reasons_of(error: ExportError) -> tuple[str, ...]:
    """Return every reason that an error knows."""
    return error.reasons or (str(error),)
