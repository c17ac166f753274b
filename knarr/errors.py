"""The root of every error that knarr raises on purpose."""

from __future__ import annotations


class KnarrError(Exception):
    """Something that the user can mend; the text names the object, what was found, what is allowed,
    and a cure.

    Each stage has its own errors below this one. Any other exception that leaves knarr is a fault
    in knarr.
    """
