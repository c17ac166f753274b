"""What a measurement depends on: processor, instructions, versions, load."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from knarr.deploy import lava_folder

PACKAGES = ("knarr", "numpy", "numba", "torch", "norse", "lava-nc", "lava-dl")
LOOK_S = 0.5
LEVELS = (("AVX-512", {"avx512f", "avx512bw", "avx512dq", "avx512vl"}), ("AVX2", {"avx2", "fma"}))


def described() -> dict[str, Any]:
    """Without names or paths of this computer."""
    model, flags = _processor()
    level = next((name for name, needed in LEVELS if needed <= flags), "portable vectors")
    return {
        "processor": model,
        "instructions": level,
        "vnni": bool({"avx512_vnni", "avx_vnni"} & flags),
        "cores": cores(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; our own peers are in them."""
    return [round(value, 2) for value in os.getloadavg()]


def busy_cores() -> float | None:
    """How many cores others keep busy while we wait; None where the system does not say."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    before = _jiffies(path)
    time.sleep(LOOK_S)
    busy, every = (after - earlier for after, earlier in zip(_jiffies(path), before, strict=True))
    return round(cores() * busy / every, 2) if every else None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jiffies(path: Path) -> tuple[int, int]:
    """(busy, all) of all cores since the start of the system."""
    values = [int(value) for value in path.read_text("ascii").splitlines()[0].split()[1:9]]
    return sum(values) - values[3] - values[4], sum(values)


def _processor() -> tuple[str, set[str]]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), set()
    lines = [line.partition(":") for line in path.read_text("utf-8").splitlines()]
    values = {key.strip(): value.strip() for key, _, value in lines if value}
    return values.get("model name", platform.machine()), set(values.get("flags", "").split())


def _version(package: str) -> str:
    # Lava lies in a folder of its own.
    for found in distributions(name=package, path=[*sys.path, str(lava_folder())]):
        return found.version
    return "not installed"
