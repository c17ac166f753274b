"""The root of every error that knarr raises on purpose."""

from __future__ import annotations


class KnarrError(Exception):
    """Something that the user can mend; the text names the object, what was found, what is allowed,
    and a cure.

    Each stage has its own errors below this one. Any other exception that leaves knarr is a fault
    in knarr.
    """


def one_line(text: str, most: int = 300) -> str:
    """Return what a file says of itself as one short line that no terminal can be steered by."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    shown = " ".join(plain.split())
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
