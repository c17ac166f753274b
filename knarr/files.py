"""Write files whole or not at all: a killed run leaves the old file or the new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, flush that file to disk and rename it.

    An exception in the block removes the temporary file and leaves `path` as it was.

    Raises:
        OSError: the file cannot be written; names `path`.
    """
    # Not the process's number: in two containers that share a folder it may be the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # An error of another file, or one that a library words itself, says enough already.
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # A full disk names no file by itself, and nobody knows the temporary one.
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file in one move, see `replacing`.

    Raises:
        OSError: the file cannot be written; names `path`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
