"""Which trials are being worked on, and which were left behind by a worker that was killed.

Two signs, since no single one does everywhere:

- The lock. A worker holds an fcntl lock on `.lock` in its trial's folder; the kernel drops it when the process ends, however it ends.
  It is asked only about trials of the same machine since it was switched on, and only about the very same file: over NFS such locks may
  be local to a machine, or outlive one that was switched off. So `kill -9` on the same machine is seen at once.
- The pulse. A worker writes a count into the study's own storage every PULSE_S, which every machine sees whatever folders they
  share. A trial of another machine (or before a restart of this one) is left behind when nothing of it changed for STALE_S while somebody
  watched, by the watcher's own clock: clocks of two machines are never compared.

A machine that stood still for longer than STALE_S can lose its trial to another one in this way. It is told by the storage
when it goes on, and lets go.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial

OWNER, PULSE = "owner", "pulse"
LOCK = ".lock"  # as of any run's folder, so that other commands keep out of a trial that is being fitted
PULSE_S = 30.0
STALE_S = 300.0  # several pulses, and the minute for which NFS may show an old file
LOCK_WAIT_S = 2.0  # a neighbour that asks whether we live holds our lock for an instant
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class TakenError(Exception):
    """Another process holds a trial's folder."""


class LostError(Exception):
    """Another worker has taken a trial over."""


@contextmanager
def working_on(trial: optuna.Trial, folder: Path, pulse_s: float) -> Iterator[threading.Event]:
    """Hold a trial's lock and show its pulse; the event is set when another worker took the trial over.

    Args:
        trial: as the study gave it.
        folder: of the trial, made when it is not there.
        pulse_s: seconds between two pulses.

    Raises:
        TakenError: another process of this machine holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _take(folder / LOCK)
    lost, over = threading.Event(), threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(pulse_s):
            count += 1
            try:
                trial.set_user_attr(PULSE, count)
            except UpdateFinishedTrialError:
                lost.set()
                return
            except (OSError, StorageInternalError):
                continue  # a full disk or a broken line may be mended before the next one

    thread = threading.Thread(target=beat, name="knarr-sweep-pulse", daemon=True)
    try:
        # Only now: whoever reads it may ask for the lock.
        trial.set_user_attr(OWNER, _mark(lock))
        thread.start()
        yield lost
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()
        os.close(lock)


def _take(path: Path) -> int:
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    give_up = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if time.monotonic() > give_up:
                os.close(lock)
                raise TakenError(str(path.parent)) from error
            time.sleep(0.05)


def _mark(lock: int) -> dict[str, Any]:
    """Which machine, and which file on it."""
    status = os.fstat(lock)
    return {"boot": machine(), "file": [status.st_dev, status.st_ino]}


def machine() -> str | None:
    """This machine since it was switched on; None where the system does not tell."""
    return _BOOT.read_text().strip() if _BOOT.is_file() else None


class Watch:
    """Tells which running trials were left behind. It never asks about a trial of its own process.

    Args:
        stale_s: seconds without a pulse after which a trial whose lock says nothing counts as left behind.
    """

    def __init__(self, stale_s: float) -> None:
        self.stale_s = stale_s
        self._seen: dict[int, tuple[object, float]] = {}

    def left_behind(self, trial: FrozenTrial, folder: Path) -> bool:
        """Whether nobody works on a running trial any more.

        Args:
            trial: as its storage shows it now.
            folder: where its lock lies when its worker uses the same folder as we do.
        """
        held = _held(trial.user_attrs.get(OWNER), folder / LOCK)
        if held is not None:
            return not held
        sign = (
            trial.user_attrs.get(PULSE),
            trial.user_attrs.get(OWNER),
            len(trial.intermediate_values),
        )
        now = time.monotonic()
        before = self._seen.get(trial.number)
        if before is None or before[0] != sign:
            self._seen[trial.number] = (sign, now)
            return False
        return now - before[1] > self.stale_s


def _held(owner: object, path: Path) -> bool | None:
    """Whether the lock that a trial's owner took is held; None where this machine cannot tell."""
    if not isinstance(owner, dict) or machine() is None or owner.get("boot") != machine():
        return None
    try:
        lock = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        if owner != _mark(lock):
            return None
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
