"""Networks that no one here wrote: made, run and exported by snnTorch, Sinabs and SpikingJelly, then lowered by knarr.

    .venv/bin/python benchmarks/thirdparty/main.py            everything anew: environments, tests/export/thirdparty, docs/thirdparty.md
    .venv/bin/python benchmarks/thirdparty/main.py --doc      docs/thirdparty.md alone, from tests/export/thirdparty as it is

Nothing of these tools is installed beside knarr: each runs in a virtual environment of its own, made with venv and pip.
An environment that is there already can be named by its interpreter: `--python snntorch=PATH`.
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from table import written

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIXTURES, DOC = ROOT / "tests" / "export" / "thirdparty", ROOT / "docs" / "thirdparty.md"
TOOLS = {
    "snntorch": (
        "3.10",
        "torch==2.3.1",
        "numpy<2",
        "nir==1.0.8",
        "nirtorch==2.6",
        "snntorch==1.0.0",
    ),
    "sinabs": ("3.10", "torch==2.3.1", "numpy<2", "nir==1.0.4", "nirtorch==2.0.2", "sinabs==3.1.3"),
    "spikingjelly": ("3.11", "torch==2.13.0", "nir==1.0.8", "nirtorch==2.6", "spikingjelly==2.0.0"),
}
"""Python and packages of each. Sinabs pins nir <= 1.0.4; SpikingJelly 2.0.0 needs Python 3.11."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--doc", action="store_true", help="only write the document, from the files that are there"
    )
    parser.add_argument("--python", action="append", default=[], metavar="TOOL=PATH")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "thirdparty")
    arguments = parser.parse_args()
    if not arguments.doc:
        interpreters = dict(pair.split("=", 1) for pair in arguments.python)
        unknown = set(interpreters) - set(TOOLS)
        if unknown:
            parser.error(f"--python: {', '.join(sorted(unknown))} is none of {', '.join(TOOLS)}")
        with tempfile.TemporaryDirectory() as folder:
            for tool in TOOLS:
                python = interpreters.get(tool) or environment(tool, arguments.environments / tool)
                run(tool, python, Path(folder))
            keep(Path(folder))
    DOC.write_text(written(FIXTURES), "utf-8")
    print(DOC)


def environment(tool: str, folder: Path) -> str:
    """Interpreter of an environment with the tool in it, made if it is not there."""
    python, *packages = TOOLS[tool]
    interpreter = folder / "bin" / "python"
    done = folder / "installed"
    if done.is_file() and done.read_text("utf-8") == "\n".join(packages):
        return str(interpreter)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making an environment for {tool} ...", file=sys.stderr)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    start = sys.executable if here == python else shutil.which(f"python{python}")
    if start is None:
        sys.exit(
            f"{tool}: no python{python} on PATH; install it, or name an environment with --python {tool}=PATH"
        )
    subprocess.run([start, "-m", "venv", str(folder)], check=True)
    install = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *packages], check=True)
    done.write_text("\n".join(packages), "utf-8")
    return str(interpreter)


def run(tool: str, python: str, folder: Path) -> None:
    """Have the tool write its nets into the folder."""
    # A seed for hashes: NIRTorch orders some things by them.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [python, str(HERE / f"with_{tool}.py"), str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
    if done.returncode:
        sys.exit(f"{tool}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def keep(folder: Path) -> None:
    """Put what the tools wrote where the tests look; HDF5 is nine tenths air here, so the graphs go packed."""
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".nir":
            packed = lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)
            (FIXTURES / f"{path.name}.xz").write_bytes(packed)
        else:
            shutil.copyfile(path, FIXTURES / path.name)


if __name__ == "__main__":
    main()
