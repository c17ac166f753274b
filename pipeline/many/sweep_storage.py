"""Where a study is kept: a journal on a file system that several machines may share, or a database.

Nothing is unpickled. Of Optuna 5.0's storages only Redis keeps a pickled snapshot (`storages/journal/_storage.py`, for a
`BaseJournalSnapshot`), of its samplers only CMA-ES its state; neither is used. A journal is a line of JSON per change and a database
holds JSON text. A file of somebody else's can therefore name wrong parameters, which the recipe checks again, but runs nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from knarr.pipeline.many.sweep_alive import machine
from knarr.pipeline.many.sweep_space import SweepError

JOURNAL = "study.journal"
MAX_JOURNAL_BYTES = 2**30  # 10,000 trials of 100 epochs with 20 parameters have a third of it
LOCK_GRACE_S = 30  # optuna's own: a writer holds the lock for one flushed line
DATABASES = ("sqlite", "postgresql", "mysql")
TABLE_TRIES = 5


class _Lock:
    """Optuna's lock for NFS, with a quicker way past a writer of this machine that was killed while it held it.

    That lock is a file that is made and removed, so it outlives its owner, and others break it after the grace period. Here all
    writers of one machine also queue for an fcntl lock, which the kernel takes from the dead: who has that and finds a lock file of
    this machine knows that nobody holds it.
    """

    _own = (
        threading.Lock()
    )  # fcntl locks do not tell threads of a process apart, nor two of these in one

    def __init__(self, path: Path) -> None:
        self.path, self.queue = (
            path.with_name(f"{path.name}.lock"),
            path.with_name(f".{path.name}.queue"),
        )
        # Not optuna's default, a symbolic link: its age is looked up through its target, and while that fails nobody waits.
        self.shared = JournalFileOpenLock(str(path), grace_period=LOCK_GRACE_S)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._own:
            queue = os.open(self.queue, os.O_CREAT | os.O_RDWR, 0o644)
            try:
                in_turn = _in_turn(queue) and machine() is not None
                if in_turn and self._owner() == machine():
                    self.path.unlink(missing_ok=True)
                self.shared.acquire()
                try:
                    if in_turn:
                        self._sign()
                    yield
                finally:
                    # Refused where this process stood still for longer than the grace period and another one broke the lock. What was
                    # written is written; the other's line may stand before it, which the format allows.
                    with suppress(RuntimeError):
                        self.shared.release()
            finally:
                os.close(queue)

    def _owner(self) -> str | None:
        try:
            return self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def _sign(self) -> None:
        # Opened, not made: another machine may have broken it in between.
        with suppress(FileNotFoundError), self.path.open("r+") as file:
            file.write(machine() or "")


def _in_turn(queue: int) -> bool:
    """Whether the machine's own lock was had in time; over NFS a machine that was switched off may keep it."""
    give_up = time.monotonic() + LOCK_GRACE_S
    while time.monotonic() < give_up:
        try:
            fcntl.lockf(queue, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.002)
        except OSError:
            return False  # a file system without such locks
    return False


class Journal(BaseJournalBackend):
    """Optuna's file format and lock, for files whose last writer was killed.

    Optuna leaves the beginning of a line where it is, and the next writer's line goes on after it: from the one after that on
    nobody can read the study. Here a line without its end is cut off, by the next writer and under the lock; what it said did
    not happen. No reader has used it, since readers wait for a line's end.

    Args:
        path: of the file, made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._alone = _Lock(self.path)
        self._reader = JournalFileBackend(str(self.path), lock_obj=self._alone.shared)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._reader.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._write(text.encode())

    def repair(self) -> int:
        """Cut a half-written line off now; returns how many bytes it had."""
        return self._write(b"")

    def _write(self, content: bytes) -> int:
        with self._alone(), self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            end = _whole_lines(file, size)
            if end < size:
                file.truncate(end)
            file.seek(end)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            return size - end


def _whole_lines(file: Any, size: int) -> int:
    """Where the last whole line of an open file ends."""
    block = 2**16
    end = size
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return int(start + at + 1)
        end = start
    return 0


def open_storage(url: str | None, folder: Path) -> tuple[BaseStorage, int]:
    """A study's storage, and how many bytes of a half-written line were cut off it.

    Args:
        url: "sqlite:///file" for the processes of one machine, "postgresql://..." or "mysql://..." with their drivers installed;
            None for the journal in `folder`, which machines may share over NFS version 3 or later.
        folder: of the sweep.

    Raises:
        SweepError: a journal that is damaged before its last line, or a database that does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _open_journal(folder / JOURNAL) if url is None else (_open_database(url), 0)


def _open_journal(path: Path) -> tuple[BaseStorage, int]:
    if path.is_file() and path.stat().st_size > MAX_JOURNAL_BYTES:
        raise SweepError(
            f"{path}: {path.stat().st_size} bytes, at most {MAX_JOURNAL_BYTES}; give another --out, or a database"
        )
    journal = Journal(path)
    cut = journal.repair()
    try:
        return JournalStorage(journal), cut
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        RecursionError,
    ) as error:
        raise SweepError(
            f"{path}: {_damage(path)} ({type(error).__name__}); put a copy of it back, or give another --out"
        ) from error


def _damage(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                sound = isinstance(json.loads(line), dict)
            except (ValueError, RecursionError):
                sound = False
            if not sound:
                return f"line {number} is damaged: {line[:40]!r}"
    return "not the journal of a study"


def _open_database(url: str) -> BaseStorage:
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise SweepError(
            f"storage '{url}': no address of a database; such as sqlite:///study.db"
        ) from error
    shown = parsed.render_as_string(hide_password=True)
    kind = parsed.get_backend_name()
    if kind not in DATABASES:
        raise SweepError(f"storage '{shown}': {kind} is none of {', '.join(DATABASES)}")
    waiting: dict[str, Any] = {"connect_args": {"timeout": 60}} if kind == "sqlite" else {}
    for attempt in range(TABLE_TRIES):
        try:
            return RDBStorage(url, engine_kwargs=waiting)
        except ImportError as error:
            raise SweepError(
                f"storage '{shown}': its driver is not installed ({error.__cause__})"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(getattr(error, "orig", error)).splitlines()[:1])
            # Two workers that begin at once both make the tables, and one of them is refused.
            again = any(
                word in reason for word in ("already exists", "locked", "UNIQUE constraint")
            )
            if not again or attempt == TABLE_TRIES - 1:
                raise SweepError(f"storage '{shown}': {reason}; see that it is there") from error
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")
