"""Tell apart the processes that `torchrun` starts; without it there is one, of rank 0."""

from __future__ import annotations

import os


def rank() -> int:
    """Return the number of this process, from 0; rank 0 alone writes files and prints."""
    return int(os.environ["RANK"]) if _started_by_torchrun() else 0


def world_size() -> int:
    """Return how many processes work together, over all machines."""
    return int(os.environ["WORLD_SIZE"]) if _started_by_torchrun() else 1


def local_world_size() -> int:
    """Return how many of them work on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _started_by_torchrun() else 1


def _started_by_torchrun() -> bool:
    # WORLD_SIZE and RANK alone are not enough: other launchers set them too, and join their
    # processes otherwise.
    return "TORCHELASTIC_RUN_ID" in os.environ
