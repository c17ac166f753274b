"""How long a video file must be by the lengths that its container states: how a truncated one is told."""

from __future__ import annotations

from typing import BinaryIO


def claimed_bytes(file: BinaryIO, size: int) -> int:
    """How long a file must be by its container's own lengths; `size` where they do not say.

    Decoders end at the end of a file, and the counts of frames in headers are right only for files that were not cut
    from others, so this is how a truncated file is told. ISO 14496-12 4.2 (mp4, mov), RIFF (avi), EBML (mkv, webm).
    """
    head = file.read(64)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        position = 0
        while position < size:
            file.seek(position)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:
                length = int.from_bytes(box[8:16], "big")
            if length == 0 and len(box) >= 8:  # to the end of the file
                return size
            position += max(length, 8)
        return position
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return size if length in (0, 0xFFFFFFFF) else 8 + length
    if head[:4] == b"\x1aE\xdf\xa3":
        header, used = _vint(head[4:])
        segment = 4 + used + (header or 0)
        if head[segment : segment + 4] == b"\x18S\x80g":
            content, used = _vint(head[segment + 4 :])
            return size if content is None else segment + 4 + used + content
    return size


def _vint(data: bytes) -> tuple[int | None, int]:
    """(value, bytes used) of an EBML number; value None for one of all ones, "not known"."""
    if not data or data[0] == 0:
        return None, 0
    used = 9 - data[0].bit_length()
    value = int.from_bytes(data[:used], "big") & ((1 << 7 * used) - 1)
    return (None if value == (1 << 7 * used) - 1 else value), used
