"""Starts the other tools, each in a process group of its own with a time limit, its output in files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peer_job import SLAYER
from workloads import Workload

from knarr.deploy import install_lava
from knarr.deploy.lava.run import lava_python, supervise

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIMIT_S = 400.0
OWN = {"snntorch": ("torch==2.3.1", "numpy<2", "snntorch==1.0.0")}
"""Packages of tools that do not live beside knarr."""

Arrays = dict[str, npt.NDArray[Any]]


def keep_workload(work: Workload, folder: Path) -> Path:
    """Write what every peer reads of a workload."""
    path = folder / f"{work.name}-{work.percent}.npz"
    arrays: Arrays = {
        "inputs": work.inputs,
        "vth": np.array(work.vth),
        "pooled": np.array([stage.pooled for stage in work.stages]),
    }
    for index, stage in enumerate(work.stages):
        arrays[f"weight/{index}"] = stage.weight
        arrays[f"entering/{index}"] = np.array(stage.entering)
    np.savez(path, **arrays)
    return path


def run_peer(
    tool: str, python: str, workload: Path, *, limit_s: float = LIMIT_S, **settings: Any
) -> Arrays:
    """Run with_<tool>.py and hand back its result.npz.

    Args:
        tool: lava, slayer, norse or snntorch.
        python: interpreter that has it.
        workload: as `keep_workload` wrote it.
        limit_s: after which it is killed with all its children.
        settings: for the script.

    Raises:
        LavaError: it died, hung or took too long; carries the tail of its log. Nothing of it is left running.
    """
    with tempfile.TemporaryDirectory(prefix="knarr-bench-") as folder:
        job = {"workload": str(workload), **settings}
        (Path(folder) / "job.json").write_text(json.dumps(job), "utf-8")
        supervise([python, str(HERE / f"with_{tool}.py"), folder], Path(folder), limit_s)
        with np.load(Path(folder) / "result.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}


def interpreter(tool: str, environments: Path) -> str:
    """The interpreter of an environment with the tool in it, which is made where the tool does not live beside knarr.

    Raises:
        LavaError: slayer cannot be fetched.
    """
    if tool == "lava":
        return lava_python()
    if tool == "slayer":
        install_lava(SLAYER, slayer=True)
    if tool not in OWN:
        return sys.executable
    folder, packages = environments / tool, OWN[tool]
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file() or done.read_text("utf-8") != "\n".join(packages):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *packages], check=True)
        done.write_text("\n".join(packages), "utf-8")
    return str(python)
