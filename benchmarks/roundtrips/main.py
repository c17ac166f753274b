"""Spikes of knarr and of other NIR tools on the same files, both ways; prints one table.

    .venv/bin/python benchmarks/roundtrips/main.py --python snntorch=ENV/bin/python --out table.md

A. knarr exports a student, the tool reads the file and runs it.   B. The tool exports and runs its own net, knarr reads
the file and steps it at the dt which that exporter has in mind. Every tool runs in its own process and interpreter; one
that is not importable there is a line "not installed". Spikes of the last layer are compared, one decision per sample,
step and neuron; a run with 100 spikes or fewer on knarr's side (A) or the tool's (B) proves nothing and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from reasons import explain, with_reason
from students import Student, students
from worker import Array, first_line

from knarr.export import ExportError, read, step_nir, write

HERE = Path(__file__).parent
# Last is the step a tool can run at; where that is its own, the students are exported at 1 ms too.
TOOLS: dict[str, tuple[float, ...]] = {
    "norse": (0.001,),
    "nirtorch": (0.001,),
    "snntorch": (0.001, 1e-4),
    "sinabs": (0.001, 1.0),
    "spikingjelly": (0.001,),
    "rockpool": (0.001,),
}
OLD_NIR = ("sinabs",)  # pins nir 1.0.4, which does not know v_reset
FOREIGN = ("LIF", "CubaLIF, scaled")  # enough at a dt that a tool cannot have
NEEDED_SPIKES = 100
HEAD = "| tool | way | net | dt, s | decisions | spikes knarr / tool | differ | why | differ then |"


@dataclass(frozen=True)
class Row:
    """One line of the table; `differ` None is an error, told in `why`."""

    tool: str
    way: str
    net: str
    dt_s: float | None = None
    decisions: int = 0
    knarr: int = 0
    other: int = 0
    differ: int | None = None
    why: str = ""
    then: int | None = None

    def __str__(self) -> str:
        start = f"| {self.tool} | {self.way} | {self.net} | {'' if self.dt_s is None else f'{self.dt_s:g}'} |"
        if self.differ is None:
            return f"{start} - | - | - | {self.why} | - |"
        share = f"{self.differ} ({self.differ / self.decisions:.1%})" if self.differ else "**0**"
        then = "" if self.then is None else str(self.then)
        return f"{start} {self.decisions} | {self.knarr} / {self.other} | {share} | {self.why} | {then} |"


def compare(start: Row, student: Student, dt_s: float, ours: Array, theirs: Array) -> Row:
    """A row out of two spike trains (samples, timesteps, *features).

    Args:
        start: tool, way, net and dt of the row.
        student, dt_s: graph and inputs both came from, for the reason of a difference.
        ours, theirs: knarr's spikes and the tool's.
    """
    if ours.shape != theirs.shape:
        return replace(
            start,
            why=with_reason(start.tool, f"knarr gives shape {ours.shape}, the tool {theirs.shape}"),
        )
    row = replace(
        start,
        decisions=ours.size,
        knarr=int(ours.sum()),
        other=int(theirs.sum()),
        differ=int((ours != theirs).sum()),
    )
    if (row.knarr if start.way == "A" else row.other) <= NEEDED_SPIKES:
        return replace(row, differ=None, why=f"proves nothing: {row.knarr} / {row.other} spikes")
    if row.differ == 0:
        return row
    reason = explain(row.tool, row.way, row.net)
    if reason is None:
        return replace(row, why="not explained")
    if reason.replay is None:
        return replace(row, why=reason.text)
    again = reason.replay(student.graph, student.inputs, dt_s)
    return replace(row, why=reason.text, then=int((again.numpy() != theirs).sum()))


class Job(NamedTuple):
    row: Row
    student: Student
    dt_s: float
    spikes: Array


def rows_of(tool: str, python: str, folder: Path, timeout_s: float) -> Iterator[Row]:
    """Everything about one tool; `folder` is empty and its own."""
    jobs = written(tool, folder)
    (folder / "jobs.json").write_text(
        json.dumps({name: {"dt_s": j.dt_s} for name, j in jobs.items()}), "utf-8"
    )
    command = [python, str(HERE / f"with_{tool}.py"), str(folder)]
    # A seed for hashes: NIRTorch orders some things by them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s, env=environment
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        yield Row(tool, "-", "-", why=first_line(error))
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        missing = last.startswith("ModuleNotFoundError") and tool in last
        yield Row(tool, "-", "-", why="not installed" if missing else last)
        return
    report = json.loads((folder / "report.json").read_text("utf-8"))
    print(", ".join(report["versions"]), file=sys.stderr)
    for row in (*read_by_tool(jobs, report, folder), *read_by_knarr(tool, report, folder)):
        yield replace(row, tool=report["versions"][0])


def written(tool: str, folder: Path) -> dict[str, Job]:
    """Way A, before the tool: every student's file, inputs and spikes."""
    jobs: dict[str, Job] = {}
    for dt_s in TOOLS[tool]:
        foreign = dt_s != TOOLS[tool][-1]
        for case, student in students(dt_s):
            if foreign and case not in FOREIGN:
                continue
            name = f"job{len(jobs)}"
            path = folder / f"{name}.nir"
            write(student.graph, path)
            if tool in OLD_NIR and not foreign:
                without_zero_reset(path)
            np.savez(path.with_suffix(".npz"), inputs=student.inputs.numpy())
            spikes = step_nir(read(path), student.inputs.numpy(), dt_s).output
            jobs[name] = Job(Row(tool, "A", case, dt_s), student, dt_s, spikes)
    return jobs


def read_by_tool(jobs: dict[str, Job], report: dict[str, Any], folder: Path) -> Iterator[Row]:
    """Way A, after the tool."""
    for name, job in jobs.items():
        if name in report["errors"]:
            why = with_reason(job.row.tool, f"tool refuses: {report['errors'][name]}")
            yield replace(job.row, why=why)
            continue
        theirs = np.load(folder / f"{name}.out.npz")["spikes"]
        row = compare(job.row, job.student, job.dt_s, job.spikes, theirs)
        yield replace(row, why="; ".join(why for why in (row.why, report["notes"][name]) if why))


def read_by_knarr(tool: str, report: dict[str, Any], folder: Path) -> Iterator[Row]:
    """Way B, after the tool."""
    for number, net in enumerate(report["own"]):
        name, row = f"own{number}", Row(tool, "B", net)
        if name in report["errors"]:
            yield replace(row, why=with_reason(tool, f"own export fails: {report['errors'][name]}"))
            continue
        arrays = np.load(folder / f"{name}.npz")
        dt_s = float(arrays["dt_s"])
        row = replace(row, dt_s=dt_s)
        try:
            graph = read(folder / f"{name}.nir")
            ours = step_nir(graph, arrays["inputs"], dt_s).output
        except ExportError as error:
            text = first_line(error).replace(f"{folder}/{name}.nir: ", "")
            yield replace(row, why=with_reason(tool, f"knarr refuses: {text}"))
            continue
        student = Student(graph, torch.as_tensor(arrays["inputs"]))
        yield compare(row, student, dt_s, ours, arrays["spikes"])


def without_zero_reset(path: Path) -> None:
    """Take v_reset out of a file where it is 0, as in the files of nir 1.0.4."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        for name in names:
            if name.endswith("/v_reset") and not file[name][()].any():
                del file[name]


def merged(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of one tool, way and dt that agree, or fail with the same words, become one."""
    found: dict[object, Row] = {}
    for row in rows:
        key: object = (row.tool, row.way, row.dt_s, row.differ, row.why)
        if row.differ:
            key = (key, row.net)
        old = found.get(key)
        found[key] = row if old is None else replace(
            old, net=f"{old.net}; {row.net}", decisions=old.decisions + row.decisions,
            knarr=old.knarr + row.knarr, other=old.other + row.other,
        )  # fmt: skip
    yield from found.values()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", action="append", default=[], metavar="TOOL=PATH", help="a tool's interpreter"
    )
    parser.add_argument(
        "--only", action="append", choices=list(TOOLS), help="this tool; may be given again"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one tool")
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    pythons = dict(given.split("=", 1) for given in arguments.python)
    if set(pythons) - set(TOOLS):
        parser.error(
            f"--python names {sorted(set(pythons) - set(TOOLS))}; tools are {', '.join(TOOLS)}"
        )
    torch.set_num_threads(1)
    lines = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for tool in arguments.only or TOOLS:
        with tempfile.TemporaryDirectory(prefix="knarr-roundtrip-") as folder:
            rows = rows_of(tool, pythons.get(tool, sys.executable), Path(folder), arguments.timeout)
            lines += [str(row) for row in merged(rows)]
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
