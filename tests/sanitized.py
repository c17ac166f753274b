"""Run random networks on a kernel that is built with a sanitizer: `python tests/sanitized.py address`, `undefined` or
`thread`, and how many networks.

The sanitizer's library has to be loaded before Python's own, so that the script starts itself again under it. Every level of
instructions that the processor has is run, on one to eight threads, and compared with the reference.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
OPTIONS = {
    # Python keeps what it allocates until its end.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0",
}


def start(kind: str, networks: int) -> int:
    """Build the kernel, and run this script on it in a process of its own."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (extension,) = config["tool"]["setuptools"]["ext-modules"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        command = ["cc", "-shared", "-fPIC", "-g", *extension["extra-compile-args"], "-g1"]
        command += [f"-fsanitize={kind}", "-fno-sanitize-recover=all", "-o", str(library)]
        command += [str(ROOT / source) for source in extension["sources"]]
        subprocess.run([*command, "-lm"], check=True)
        runtime = subprocess.run(
            ["cc", f"-print-file-name={LIBRARIES[kind]}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        environment = {**os.environ, **OPTIONS, "LD_PRELOAD": runtime, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, kind, str(networks), str(library)]
        if kind == "thread" and shutil.which("setarch"):
            # It wants addresses where the kernel of the system might not put them.
            command = ["setarch", "-R", *command]
        return subprocess.run(command, env=environment, check=False).returncode


def run(library: str, networks: int) -> None:
    """Compare random networks on the library with the reference."""
    from random_networks import ALL, draw_any, same

    from knarr.hw_sim import ChipError, count, simulate, simulation
    from knarr.hw_sim.engines import selection
    from knarr.hw_sim.engines.native import FastEngine, Kernel

    kernel = Kernel(ctypes.CDLL(library))
    compared = spikes = 0
    for seed in range(networks):
        engine = FastEngine(kernel, seed % (kernel.level + 1))
        selection.fast_engine = lambda engine=engine: engine  # type: ignore[assignment]
        network, inputs = draw_any(seed)
        reset = seed % 5 > 0
        simulation.BLOCK_BYTES = 3000 if seed % 4 == 0 else 2**28
        try:
            wanted = simulate(network, inputs, record=ALL, engine="reference", reset=reset)
        except ChipError:  # sums beyond 2**53
            continue
        got = simulate(
            network, inputs, record=ALL, engine="fast", threads=1 + seed % 8, reset=reset
        )
        differing = same(wanted, got)
        if differing:
            raise SystemExit(f"network {seed}: {differing[0]}")
        if network.input.bits == 1:
            count(network, inputs)  # what arrives is counted while it runs
        compared += 1
        spikes += sum(int(fired.sum()) for fired in wanted.spikes.values())
    found = f"{compared} networks, {spikes:,} spikes: every integer equal, and the sanitizer silent"
    sys.stdout.write(found + "\n")


if __name__ == "__main__":
    kind, networks = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500
    if len(sys.argv) > 3:
        run(sys.argv[3], networks)
    else:
        sys.exit(start(kind, networks))
