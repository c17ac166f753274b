"""Threads and memory of the compiled kernel, kept between runs.

To start a thread or to touch new memory costs as much as several samples of a small network. What is
taken is out of reach of other calls until it is given back: two runs at once never share any.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

MOST_BYTES = 2**28
"""Memory that is kept; what is given back beyond it is freed."""
MOST_POOLS = 4

_pools: list[tuple[int, ThreadPoolExecutor]] = []


def take_threads(count: int) -> ThreadPoolExecutor:
    """Return a pool of so many idle threads."""
    for entry in list(_pools):
        if entry[0] == count:
            try:
                _pools.remove(entry)
            except ValueError:  # another thread was faster
                continue
            return entry[1]
    return ThreadPoolExecutor(count, thread_name_prefix="knarr")


def give_threads(count: int, pool: ThreadPoolExecutor) -> None:
    """Give a pool back, none of whose threads works any more."""
    _pools.append((count, pool))
    while len(_pools) > MOST_POOLS:
        _pools.pop(0)[1].shutdown(wait=False)


class KeptMemory:
    """Blocks of memory of one kernel.

    Args:
        free: gives one back to the system.
        size: bytes of one.
    """

    def __init__(self, free: Callable[[int], object], size: Callable[[int], int]) -> None:
        self.free, self.size = free, size
        self.idle: list[int] = []
        os.register_at_fork(after_in_child=self.idle.clear)
        atexit.register(self.clear)

    def take(self) -> int | None:
        """Return an idle block, the last one given back, or None."""
        try:
            return self.idle.pop()
        except IndexError:
            return None

    def give(self, block: int) -> None:
        """Keep a block for later, or free it where enough are kept."""
        if sum(map(self.size, self.idle)) + self.size(block) > MOST_BYTES:
            self.free(block)
        else:
            self.idle.append(block)

    def clear(self) -> None:
        """Free everything."""
        while (block := self.take()) is not None:
            self.free(block)


# The threads of a parent process do not exist in its child.
os.register_at_fork(after_in_child=_pools.clear)
