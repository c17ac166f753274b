"""Peak memory of one `simulate` in a fresh process, as JSON: `python memory_child.py SAMPLES`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from pathlib import Path

from published import SHAPES
from workloads import build, drawn_inputs

from knarr.hw_sim import simulate


def resident(field: str) -> int:
    """Bytes: VmRSS of now, VmHWM at its highest."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def main(samples: int) -> None:
    work = build("W1", 10)
    inputs = drawn_inputs(SHAPES["W1"], samples)
    simulate(work.network, inputs[:2], threads=1)
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # freed memory it kept would hide what simulate takes
    Path("/proc/self/clear_refs").write_text(
        "5", "utf-8"
    )  # the peak starts anew: drawing the inputs took more
    before = resident("VmRSS")
    recording = simulate(work.network, inputs, threads=1)
    peak = resident("VmHWM") - before
    output = recording.output.nbytes + sum(
        counts.nbytes for counts in recording.event_counts.values()
    )
    values = {
        "samples": samples,
        "inputs": inputs.nbytes,
        "output": output,
        "beyond": max(0, peak - output),
    }
    print(json.dumps(values))


if __name__ == "__main__":
    main(int(sys.argv[1]))
