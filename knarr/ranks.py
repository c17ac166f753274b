"""Tell apart the processes that `torchrun` starts; without it there is one, of rank 0."""

from __future__ import annotations

import os


def rank() -> int:
    """Return the number of this process, from 0; rank 0 alone writes files and prints."""
    return _of_torchrun("RANK", 0)


def world_size() -> int:
    """Return how many processes work together, over all machines."""
    return _of_torchrun("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Return how many of them work on this machine."""
    return _of_torchrun("LOCAL_WORLD_SIZE", 1)


def _of_torchrun(variable: str, alone: int) -> int:
    # WORLD_SIZE and RANK alone are not enough: other launchers set them too, and join their
    # processes otherwise.
    return int(os.environ[variable]) if "TORCHELASTIC_RUN_ID" in os.environ else alone
