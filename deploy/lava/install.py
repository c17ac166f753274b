"""Install Lava into a folder of its own, beside whatever Python and numpy knarr runs on.

Lava's wheels ask for Python below 3.11 and for versions of their day. They are pure Python, so they
are fetched as they are, without their dependencies, and netx's part of them is kept: 2 MB of 160.
What they import besides (numpy, scipy, h5py, networkx) are knarr's own dependencies.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from knarr.deploy.errors import DeployError, LavaError
from knarr.deploy.lava.compatibility import lava_folder
from knarr.deploy.lava.worker import kill_group, start_group


@dataclass(frozen=True)
class Wheel:
    """A wheel as it lies on the package index.

    Args:
        name: of the distribution.
        version: of the distribution.
        sha256: of the file, which the installer checks.
    """

    name: str
    version: str
    sha256: str

    @property
    def pin(self) -> str:
        """Name and version as an installer takes them."""
        return f"{self.name}=={self.version}"


WHEELS = (
    Wheel("asteval", "0.9.33", "aae3a0308575a545c8cecc43a6632219e6a90963a56380c74632cf54311e43bf"),
    Wheel("lava-nc", "0.10.0", "d646723e888a72868dac77d31beee3eef1f540366a8c1a8578a2dc3302470926"),
    Wheel("lava-dl", "0.6.0", "bcb448f2bb85dc0da4b4dbbbae16543d2a978c1da7279acc522ad621fc68c437"),
)
MEGABYTES = 240
"""Size of the wheels and of what they unpack to, together."""
KEPT = ("asteval", "lava/lib/dl/netx", "lava/magma", "lava/proc", "lava/utils", "*.dist-info")
"""Patterns of the files that stay: those that netx imports, and the licences."""
SLAYER = "lava/lib/dl/slayer/[!o]*"
"""lava-dl's training library without its 51 MB of object detection."""
NEEDED = "lava/lib/dl/netx/__init__.py"
MARK = "installed.txt"
"""File in the folder that says what is in it."""
TAIL_LINES = 4
LOOK_S = 0.5
"""Time between two looks at how far the installer is."""

Progress = Callable[[int, int], None]


def install_lava(
    folder: Path | None = None, *, slayer: bool = False, progress: Progress | None = None
) -> Path:
    """Fetch Lava's wheels with pip or uv, check their hashes and keep what netx needs.

    The folder appears whole or not at all: whatever ends this, the old one or none is left. Of two
    at once the second waits and finds the work done. A folder whose files changed since is made
    again.

    Args:
        folder: where to, `lava_folder` when left out; new, empty, or made by this function.
        slayer: keep lava-dl's slayer too, which runs where torch is installed.
        progress: called with (megabytes that are fetched and unpacked, all of them).

    Returns:
        The folder, which the worker finds if it is `lava_folder`.

    Raises:
        DeployError: the folder holds something else, or cannot be written.
        LavaError: neither pip nor uv is there, or a wheel cannot be fetched or is another file.
    """
    folder = (lava_folder() if folder is None else folder).expanduser().absolute()
    kept = (*KEPT, SLAYER) if slayer else KEPT
    content = "".join(f"{line}\n" for line in (*_requirements(), *kept))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder.parent):
            _remove_leftovers(folder)
            if _holds(folder) != content + _digest(folder):
                _install(folder, content, kept, progress)
    except OSError as error:
        raise DeployError(
            f"{error.filename or folder}: {error.strerror or error}, so Lava cannot be put into "
            f"{folder}; name a folder that can be written with --folder or KNARR_LAVA_PATH"
        ) from error
    return folder


def _install(folder: Path, content: str, kept: tuple[str, ...], progress: Progress | None) -> None:
    installer = _installer()
    new = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    fetched, chosen = new / "fetched", new / "chosen"
    chosen.mkdir(parents=True)
    try:
        _fetch(installer, fetched, new, progress)
        for pattern in kept:
            for path in sorted(fetched.glob(pattern)):
                target = chosen / path.relative_to(fetched)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        if not (chosen / NEEDED).is_file():
            raise LavaError(
                f"Lava: pip or uv said that all was well and left no {NEEDED}; nothing was "
                "installed; see what their variables (such as PIP_DRY_RUN) and configuration say"
            )
        (chosen / MARK).write_text(content + _digest(chosen), encoding="utf-8")
        if folder.exists():
            folder.rename(new / "old")
        chosen.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if progress is not None:
        progress(MEGABYTES, MEGABYTES)


def _holds(folder: Path) -> str | None:
    """Return what an installation in a folder says of itself; None where there is nothing.

    Raises:
        DeployError: somebody else's files are there.
    """
    if (folder / MARK).is_file():
        # Damaged bytes become others, which are not what is looked for.
        return (folder / MARK).read_text(encoding="utf-8", errors="replace")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    raise DeployError(
        f"{folder}: holds other files, and Lava needs a folder of its own; name another one or "
        "remove it"
    )


def is_damaged(folder: Path) -> bool:
    """Say whether files changed since they were installed into a folder; False where none were."""
    try:
        said = _holds(folder)
        return said is not None and not said.endswith(_digest(folder))
    # Somebody else's folder, or one that cannot be read.
    except (DeployError, OSError):
        return False


def _digest(folder: Path) -> str:
    """Return a line with the SHA-256 of all files of a folder; what Python compiles does not
    count.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[-1] != MARK and "__pycache__" not in name.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{content} {name}\n".encode(errors="surrogateescape"))
    return f"sha256 {whole.hexdigest()}\n"


# --- alone, and without traces


@contextlib.contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Wait until no other process installs into this parent; a kill ends the wait of others."""
    # The folder itself is locked, so that no file of the lock stays.
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    # Nobody else works here, so what lies here is of a process that was killed.
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


# --- pip and uv


def _installer() -> list[str]:
    """Return the beginning of a command that installs a wheel whatever Python it asks for.

    Raises:
        LavaError: neither pip nor uv is there.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--ignore-requires-python", "--no-compile"]
    uv = shutil.which("uv")
    if uv is not None:
        # The last Python that both wheels ask for; nothing of it is needed.
        return [uv, "pip", "install", "--python", sys.executable, "--python-version", "3.10"]
    raise LavaError(
        "Lava: neither pip nor uv is here to fetch its wheels; run "
        f"`{sys.executable} -m ensurepip`, or install uv"
    )


def _requirements() -> list[str]:
    return [f"{wheel.pin} --hash=sha256:{wheel.sha256}" for wheel in WHEELS]


def _fetch(installer: list[str], target: Path, scratch: Path, progress: Progress | None) -> None:
    """Install the wheels into a new folder, with all temporary files in another."""
    wanted, log_path = scratch / "wanted.txt", scratch / "log.txt"
    wanted.write_text("\n".join(_requirements()), encoding="utf-8")
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command = [*installer, *options, "--target", str(target), "--requirement", str(wanted)]
    environment = {
        "TMPDIR": str(scratch),  # so that a kill leaves nothing elsewhere
        "PIP_USER": "0",  # does not go with --target
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    process = start_group(command, scratch, log=log_path, environment=environment)
    status = None
    try:
        while status is None:
            if progress is not None:
                progress(min(_megabytes(scratch), MEGABYTES - 1), MEGABYTES)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(LOOK_S)
    finally:
        kill_group(process.pid)
        process.wait()
    if status:
        raise LavaError(_why_not(log_path.read_text(errors="replace")))


def _megabytes(folder: Path) -> int:
    size = 0
    # The installer moves its files about meanwhile, so none of them need be there any more.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size // 1_000_000


def _why_not(log: str) -> str:
    if "DO NOT MATCH THE HASHES" in log or "Hash mismatch" in log:
        named = " and ".join(wheel.pin for wheel in WHEELS if wheel.pin in log) or "a wheel"
        return (
            f"Lava: {named} on the package index is not the one that knarr was tested with, its "
            "sha256 differs; nothing was installed; take another index or mirror"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = " | ".join(lines[-TAIL_LINES:]) or "no reason given"
    return (
        f"Lava: its wheels could not be fetched ({said}); nothing was installed; see that the "
        "package index can be reached, or put the wheels into a folder and name it in "
        "PIP_FIND_LINKS (uv: UV_FIND_LINKS)"
    )
