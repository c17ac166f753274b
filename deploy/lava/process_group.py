"""Ends a process group for good: every member, and the shared memory that killed members leave behind.

Only the standard library is imported: the Lava worker loads this file in an interpreter that need not have knarr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

SHARED_MEMORY = "/dev/shm/"


def members(group: int) -> list[int]:
    """Process ids of a group that still run; zombies have ended and do not count."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The command in parentheses may itself hold spaces, so split after it: state, parent, group.
                state, _, process_group = (
                    (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                )
                if int(process_group) == group and state != "Z":
                    found.append(int(entry.name))
    return found


def shared_memory(processes: list[int]) -> set[str]:
    """Files under /dev/shm that processes have mapped."""
    files: set[str] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/maps").read_text().splitlines():
                path = line.partition("/")[1] + line.partition("/")[2]
                if path.startswith(SHARED_MEMORY):
                    files.add(path.removesuffix(" (deleted)"))
    return files


def kill_group(group: int, *, wait_s: float = 10.0, spare: int | None = None) -> None:
    """SIGKILL every member of a group, wait until all are gone, remove the shared memory only they had.

    Args:
        group: process group id.
        wait_s: how long to wait for the end, seconds.
        spare: a member to let live: the one that calls.

    Raises:
        TimeoutError: a member survived SIGKILL for `wait_s` seconds.
    """
    files = shared_memory(members(group))
    deadline = time.monotonic() + wait_s
    while left := [process for process in members(group) if process != spare]:
        files |= shared_memory(left)  # of what was forked meanwhile
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if spare is None:
                os.killpg(group, signal.SIGKILL)
        for process in left if spare is not None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"processes {left} of group {group} survive SIGKILL; end them by hand"
            )
        time.sleep(0.02)
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
