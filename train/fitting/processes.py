"""A function run by several forked processes that compute together; when one ends badly, all of them end.

Forked, not started anew: losses are closures and Norse's modules do not pickle. What a fork must not do is use a GPU that its
parent already uses, or the threads of OpenMP, which it has not got: so each process computes with one thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import torch.distributed as dist

from knarr.errors import KnarrError
from knarr.train.settings import RecipeError

COLLECTIVE_LIMIT = timedelta(minutes=5)
"""How long one process waits for the others in a sum; a process that hangs, and does not die, is found by it."""
END_LIMIT_S = 60.0
"""How long the last process may go on after the first has finished."""
GRACE_S = 1.0
"""After the first bad end: for the others' own ends, which tell the cause from what followed of it."""
MAX_REPORT_BYTES = 30_000  # a pipe holds 64 KiB, and nobody reads it before the process has ended


class FitError(KnarrError, RuntimeError):
    """A process of a fit died, hung, or raised something that cannot be sent on."""


@dataclass(frozen=True)
class _Report:
    """What a process raised.

    Args:
        raised_s: monotonic clock, which all processes of a machine share: the first is the cause of the others.
        error: what was raised.
        trace: its traceback.
    """

    raised_s: float
    error: BaseException
    trace: str


def backend(processes: int) -> str:
    """What adds up gradients: NCCL between GPUs, gloo between processors.

    Raises:
        RecipeError: this system cannot fork, there are fewer GPUs than processes, or this process uses one already.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RecipeError(
            f"fit: processes {processes} need a system that can fork; set processes to 1"
        )
    gpus = torch.cuda.device_count()
    if not gpus:
        return "gloo"
    if gpus < processes:
        raise RecipeError(
            f"fit: {processes} processes > {gpus} GPUs; set processes to {gpus}, or hide the GPUs with "
            "CUDA_VISIBLE_DEVICES='' to train on the processor"
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise RecipeError(
            f"fit: {processes} processes cannot be forked from one that already uses a GPU; run the command again: what "
            "is finished is not done twice"
        )
    return "nccl"


def in_processes(work: Callable[[int], None], count: int, scratch: Path) -> None:
    """Call `work(rank)` in `count` forks that form torch's default process group, and wait for all of them.

    Nothing outlives the call: a fork that dies or raises ends the others, an exception here (Ctrl-C) ends them all, and forks whose
    parent was killed end themselves. They talk over the loopback interface alone.

    Args:
        work: what each does; its changes to memory stay there, so it writes to files.
        count: of processes, ranks 0..count - 1.
        scratch: an empty folder, removed by the forks where the parent no longer can.

    Raises:
        RecipeError: see `backend`.
        FitError: a process was killed, ended without a word, or did not end.
        Exception: what the first process to raise did raise, with its traceback as the cause.
    """
    how = backend(count)
    context = multiprocessing.get_context("fork")
    alive, ours = os.pipe()
    forks: list[ForkProcess] = []
    reports: list[Connection] = []
    try:
        for rank in range(count):
            report, theirs = context.Pipe(duplex=False)
            reports.append(report)
            forks.append(
                context.Process(
                    target=_fork,
                    args=(work, rank, count, how, scratch, (alive, ours), theirs),
                    name=f"knarr fit {rank}",
                    daemon=True,
                )
            )
            forks[-1].start()
            theirs.close()
        _await(forks, reports)
    finally:
        for fork in forks:
            if fork.pid is not None:
                fork.kill()
        for fork in forks:
            if fork.pid is not None:
                fork.join()
        for report in reports:
            report.close()
        os.close(alive)
        os.close(ours)


def _fork(
    work: Callable[[int], None],
    rank: int,
    count: int,
    how: str,
    scratch: Path,
    parent: tuple[int, int],
    report: Connection,
) -> None:
    status = 1
    try:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a terminal sends it to all; the parent answers for all
        alive, parents_end = parent
        os.close(parents_end)
        threading.Thread(target=_end_with_parent, args=(alive, scratch), daemon=True).start()
        torch.set_num_threads(1)
        loopback = {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}
        if loopback:
            os.environ["GLOO_SOCKET_IFNAME"] = loopback.pop()
        meeting = (scratch / "meeting").resolve().as_uri()
        dist.init_process_group(
            how, init_method=meeting, rank=rank, world_size=count, timeout=COLLECTIVE_LIMIT
        )
        work(rank)
        # The group is not destroyed: gloo's own threads are joined with the interpreter locked, and one may wait for that lock.
        status = 0
    except BaseException as error:  # noqa: BLE001  # whatever it is, the parent raises it
        report.send_bytes(_pickled(_Report(time.monotonic(), error, traceback.format_exc())))
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(
            status
        )  # nothing of the parent's, such as its exit handlers, is to happen here too


def _end_with_parent(alive: int, scratch: Path) -> None:
    """`alive` reads end-of-file when the parent, the one that holds its other end, is gone."""
    os.read(alive, 1)
    shutil.rmtree(scratch, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _pickled(report: _Report) -> bytes:
    """A report as bytes; of an error that does not survive pickling, or is large, its type and text."""
    with contextlib.suppress(Exception):  # an error's own class decides what comes of pickling it
        content = pickle.dumps(report)
        pickle.loads(content)
        if len(content) <= MAX_REPORT_BYTES:
            return content
    text = f"{type(report.error).__name__}: {report.error}"[: MAX_REPORT_BYTES // 8]
    return pickle.dumps(
        _Report(report.raised_s, FitError(text), report.trace[-MAX_REPORT_BYTES // 8 :])
    )


def _await(forks: list[ForkProcess], reports: list[Connection]) -> None:
    running, deadline_s = dict(enumerate(forks)), None
    while running:
        if not _gather(running, deadline_s):
            raise FitError(
                f"fit: process {min(running)} of 0..{len(forks) - 1} did not end within {END_LIMIT_S:g} s of the first"
            )
        if any(fork.exitcode for fork in forks):
            grace_s = time.monotonic() + GRACE_S
            while running and _gather(running, grace_s):
                pass
            _tell({rank: fork for rank, fork in enumerate(forks) if rank not in running}, reports)
        deadline_s = deadline_s or time.monotonic() + END_LIMIT_S


def _gather(running: dict[int, ForkProcess], deadline_s: float | None) -> bool:
    """Wait until one has ended or time is up, and take those that have ended out of `running`."""
    left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
    ended = wait([fork.sentinel for fork in running.values()], left_s)
    for rank in [rank for rank, fork in running.items() if fork.sentinel in ended]:
        running.pop(rank).join()
    return bool(ended)


def _tell(ended: dict[int, ForkProcess], reports: list[Connection]) -> None:
    """Raise the cause: a kill from outside before any error, then the error that came first."""
    of = f"of 0..{len(reports) - 1}"
    again = "run again to go on after the last finished epoch"
    for rank, fork in ended.items():
        if fork.exitcode is not None and fork.exitcode < 0:
            name = signal.Signals(-fork.exitcode).name
            cause = " (out of memory?)" if name == "SIGKILL" else ""
            raise FitError(f"fit: process {rank} {of} was killed by {name}{cause}; {again}")
    told: list[tuple[int, _Report]] = []
    for rank in ended:
        with contextlib.suppress(EOFError, OSError):
            if reports[rank].poll():
                told.append((rank, pickle.loads(reports[rank].recv_bytes())))
    if told:
        rank, first = min(told, key=lambda one: one[1].raised_s)
        raise first.error from FitError(f"fit: in process {rank} {of}:\n{first.trace}")
    statuses = ", ".join(
        f"{rank} with {fork.exitcode}" for rank, fork in ended.items() if fork.exitcode
    )
    raise FitError(f"fit: processes {of} ended without a word: {statuses}; {again}")
