"""`knarr lava install` from small wheels on this disk: whole or not at all, whoever kills, damages or forbids."""

from __future__ import annotations

import base64
import ensurepip
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from shared_pieces import until

from knarr.cli import main
from knarr.deploy import DeployError, LavaError, install_lava
from knarr.deploy.lava import install

FILES = {
    "asteval": {"asteval/__init__.py": "VERSION = 1\n", "tests/test_a.py": ""},
    "lava-nc": {
        "lava/magma/core.py": "", "lava/proc/lif/process.py": "", "lava/utils/system.py": "",
        "lava/networks/net.py": "", "tests/big.py": "#" * 1000,
    },
    "lava-dl": {
        "lava/lib/dl/netx/__init__.py": "", "lava/lib/dl/slayer/__init__.py": "",
        "lava/lib/dl/slayer/object_detection/model.pt": "#" * 1000, "lava/lib/dl/bootstrap/a.py": "",
    },
}  # fmt: skip
KEPT = [
    "asteval/__init__.py", "lava/lib/dl/netx/__init__.py", "lava/magma/core.py", "lava/proc/lif/process.py",
    "lava/utils/system.py",
]  # fmt: skip


def make_wheel(folder: Path, wheel: install.Wheel) -> install.Wheel:
    """A wheel that asks for the Python of Lava's, with what it is on the index."""
    stem = f"{wheel.name.replace('-', '_')}-{wheel.version}"
    info = f"{stem}.dist-info"
    files = {
        **FILES[wheel.name],
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {wheel.name}\nVersion: {wheel.version}\n"
        "Requires-Python: >=3.8,<3.11\nRequires-Dist: torch==1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": "BSD\n",
    }
    record = [f"{info}/RECORD,,\n"]
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record.append(f"{name},sha256={digest.decode()},{len(text)}\n")
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in {**files, f"{info}/RECORD": "".join(record)}.items():
            file.writestr(zipfile.ZipInfo(name), text)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return install.Wheel(wheel.name, wheel.version, sha256)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only index, and pip to install from it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    made = tuple(make_wheel(folder, wheel) for wheel in install.WHEELS)
    monkeypatch.setattr(install, "WHEELS", made)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    if importlib.util.find_spec("pip") is None:  # as in environments that uv has made
        (bundled,) = Path(ensurepip.__file__).with_name("_bundled").glob("pip-*.whl")
        monkeypatch.syspath_prepend(str(bundled))
        monkeypatch.setenv("PYTHONPATH", str(bundled))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "share" / "knarr" / "lava"


def files_in(folder: Path) -> list[str]:
    """All but the files of dist-info, sorted."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if ".dist-info" not in str(path))


def assert_whole(folder: Path) -> None:
    assert files_in(folder) == sorted([*KEPT, install.MARK])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # and no traces


def test_the_pins_are_those_of_lava() -> None:
    assert [(wheel.name, wheel.version) for wheel in install.WHEELS] == [
        ("asteval", "0.9.33"),
        ("lava-nc", "0.10.0"),
        ("lava-dl", "0.6.0"),
    ]
    assert all(len(wheel.sha256) == 64 for wheel in install.WHEELS)


def test_what_netx_needs_is_kept_with_its_licences(wheels: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert install_lava(folder, progress=lambda done, of: seen.append((done, of))) == folder
    assert_whole(folder)
    assert seen[0] == (0, install.MEGABYTES)
    assert seen[-1] == (install.MEGABYTES, install.MEGABYTES)
    found = {each.name: each for each in distributions(path=[str(folder)])}
    assert {name: each.version for name, each in found.items()} == {
        wheel.name: wheel.version for wheel in install.WHEELS
    }
    assert all(len(list(folder.glob(f"{stem}-*/LICENSE"))) == 1 for stem in ("lava_nc", "lava_dl"))


def test_slayer_is_kept_where_it_is_asked_for(wheels: Path, folder: Path) -> None:
    install_lava(folder)
    install_lava(folder, slayer=True)
    assert files_in(folder) == sorted([*KEPT, install.MARK, "lava/lib/dl/slayer/__init__.py"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "lava/magma/core.py").unlink(),
        lambda folder: (folder / "lava/magma/core.py").write_bytes(b"\xff\0"),
        lambda folder: (folder / "lava/proc/lif/new.py").write_text("import os\n"),
        lambda folder: shutil.rmtree(folder / "lava"),
        lambda folder: (folder / install.MARK).write_bytes(b"\xc6\xff not utf-8"),
        lambda folder: (folder / install.MARK).write_bytes(b""),
    ],
    ids=["lost", "changed", "added", "all lost", "mark changed", "mark empty"],
)
def test_a_damaged_folder_is_made_again(
    damage: Callable[[Path], object], wheels: Path, folder: Path
) -> None:
    install_lava(folder)
    assert not install.is_damaged(folder)
    compiled = folder / "lava/magma/__pycache__/core.cpython-313.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"compiled when it was imported")
    assert not install.is_damaged(folder)
    damage(folder)
    assert install.is_damaged(folder)
    install_lava(folder)
    assert not install.is_damaged(folder)
    assert_whole(folder)


def test_a_folder_of_somebody_else_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "lava").mkdir()
    assert not install.is_damaged(tmp_path)
    assert not install.is_damaged(tmp_path / "nothing")


def test_an_installer_that_installs_nothing_is_not_believed(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_DRY_RUN", "1")
    with pytest.raises(LavaError, match=r"left no lava/lib/dl/netx.*nothing was installed"):
        install_lava(folder)
    assert list(folder.parent.iterdir()) == []


def test_a_name_with_a_star_takes_no_other_folder(wheels: Path, tmp_path: Path) -> None:
    other = tmp_path / "share" / ".mine.1.tmp"
    other.mkdir(parents=True)
    install_lava(other.with_name("*"))
    assert other.is_dir()


def test_a_second_time_does_nothing(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_lava(folder)
    monkeypatch.setattr(install, "_fetch", lambda *_: pytest.fail("fetched again"))
    install_lava(folder)
    assert_whole(folder)


def test_newer_pins_replace_the_old(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_lava(folder)
    monkeypatch.setitem(FILES["asteval"], "asteval/__init__.py", "VERSION = 2\n")
    first = make_wheel(wheels, install.WHEELS[0])
    monkeypatch.setattr(install, "WHEELS", (first, *install.WHEELS[1:]))
    install_lava(folder)
    assert_whole(folder)
    assert (folder / "asteval/__init__.py").read_text() == "VERSION = 2\n"


# --- what stands in the way


def test_another_file_of_the_same_name_is_not_installed(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES["lava-nc"], "lava/magma/core.py", "print('not ours')\n")
    make_wheel(wheels, install.WHEELS[1])
    with pytest.raises(LavaError) as caught:
        install_lava(folder)
    text = str(caught.value)
    assert text.startswith("Lava: lava-nc==0.10.0 on the package index is not the one")
    assert "sha256 differs; nothing was installed" in text
    assert list(folder.parent.iterdir()) == []


def test_an_index_without_the_wheel(wheels: Path, folder: Path) -> None:
    install_lava(folder)
    before = (folder / install.MARK).stat().st_mtime_ns
    next(wheels.glob("lava_dl*")).unlink()
    with pytest.raises(
        LavaError, match=r"wheels could not be fetched \(.*lava-dl==0\.6\.0.*PIP_FIND_LINKS"
    ) as caught:
        install_lava(folder, slayer=True)
    assert "\n" not in str(caught.value)
    assert (folder / install.MARK).stat().st_mtime_ns == before
    assert_whole(folder)


def test_neither_pip_nor_uv(wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
    monkeypatch.setenv("PATH", str(wheels))
    with pytest.raises(LavaError, match=r"neither pip nor uv .* -m ensurepip`, or install uv"):
        install_lava(folder)
    assert list(folder.parent.iterdir()) == []


def test_uv_where_there_is_no_pip(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script in uv's place notes how it was called, and lets pip do it."""
    uv, notes = wheels / "uv", wheels / "calls.txt"
    uv.write_text(
        f'#!/bin/sh\necho "$@" >> "{notes}"\n'
        f'shift 6\nexec "{sys.executable}" -m pip install --ignore-requires-python --no-compile "$@"\n'
    )
    uv.chmod(0o755)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
    monkeypatch.setenv("PATH", f"{wheels}:{os.environ['PATH']}")
    install_lava(folder)
    assert_whole(folder)
    (call,) = notes.read_text().splitlines()
    start = f"pip install --python {sys.executable} --python-version 3.10 --quiet --no-deps "
    assert call.startswith(start + "--require-hashes")


def test_a_folder_of_somebody_else(wheels: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(DeployError, match=r"holds other files, .*name another one or remove it"):
        install_lava(folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    install_lava(folder)
    assert_whole(folder)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not write to."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    if os.geteuid() != 0:
        yield folder
        return
    os.seteuid(65534)  # to root nothing is closed
    try:
        yield folder
    finally:
        os.seteuid(0)


def test_a_folder_without_permission(wheels: Path, closed: Path) -> None:
    with pytest.raises(
        DeployError,
        match=r"closed.*Permission denied, so Lava cannot .*--folder or KNARR_LAVA_PATH",
    ):
        install_lava(closed / "lava")


def test_the_parent_is_a_file(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="so Lava cannot be put into"):
        install_lava(tmp_path / "file" / "lava")


# --- kill -9, and two at once

STARTER = """
import os, signal, sys, time
from pathlib import Path
from knarr.deploy.lava import install
folder, at, *wheels = sys.argv[1:]
install.WHEELS = tuple(install.Wheel(*each.split("|")) for each in wheels)

def end():
    os.kill(os.getpid(), signal.SIGKILL)

rename = Path.rename
def counted(path, target):
    # The old folder goes, then the new one comes.
    if path == Path(folder) and at == "before the old goes":
        end()
    if Path(target) == Path(folder) and at == "before the new comes":
        end()
    result = rename(path, target)
    if Path(target) == Path(folder) and at == "after the new came":
        end()
    return result

fetch = install._fetch
def fetched(installer, *others):
    if at == "while pip works":
        installer = [sys.executable, "-c", "import time; time.sleep(600)"]
    fetch(installer, *others)

Path.rename = counted
install._fetch = fetched
if at == "never":
    print("ready", flush=True)
    sys.stdin.readline()
install.install_lava(Path(folder), slayer="--slayer" in os.environ.get("KNARR_TEST", ""))
"""


def start(folder: Path, at: str, slayer: bool = False) -> subprocess.Popen[str]:
    wheels = [f"{w.name}|{w.version}|{w.sha256}" for w in install.WHEELS]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STARTER), str(folder), at, *wheels],
        env={**os.environ, "KNARR_TEST": "--slayer" if slayer else ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def group_of(pattern: str) -> list[int]:
    """Processes whose command line holds a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if pattern in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("at", "left"),
    [
        ("while pip works", "old"),
        ("before the old goes", "old"),
        ("before the new comes", "none"),
        ("after the new came", "new"),
    ],
)
def test_a_killed_install_leaves_the_old_or_none(
    at: str, left: str, wheels: Path, folder: Path
) -> None:
    install_lava(folder)
    process = start(folder, at, slayer=True)
    orphans: list[int] = []
    if at == "while pip works":

        def works() -> bool:
            orphans[:] = [
                number for number in group_of(str(folder.parent)) if number != process.pid
            ]
            return bool(orphans)

        assert until(works, 120)
        process.kill()
    process.communicate(timeout=120)  # closes its pipes
    assert process.returncode == -signal.SIGKILL
    for number in orphans:  # of a killed install pip may live on; it has no part in what follows
        os.kill(number, signal.SIGKILL)
    whole = sorted([*KEPT, install.MARK])
    new = sorted([*whole, "lava/lib/dl/slayer/__init__.py"])
    assert (files_in(folder) if folder.exists() else []) == {"old": whole, "new": new, "none": []}[
        left
    ]
    assert len(list(folder.parent.iterdir())) > folder.exists()  # traces
    install_lava(folder)
    assert_whole(folder)


def test_two_at_once(wheels: Path, folder: Path) -> None:
    both = [start(folder, "never") for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.communicate("go\n", timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert_whole(folder)


# --- the verb


def test_the_verb_says_where_lava_is_and_how_it_is_found(
    wheels: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KNARR_LAVA_PATH", str(folder))
    other = folder.with_name("other")
    for arguments, said in (
        ([], f"Lava is in {folder}\n"),
        (
            ["--folder", str(other)],
            f"Lava is in {other}\nSet KNARR_LAVA_PATH={other} so that knarr finds it.\n",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["lava", "install", *arguments])
        assert not ended.value.code
        assert capsys.readouterr().out == said
    assert files_in(folder) == files_in(other)


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["lava", "--help"], ["lava", "install", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        assert "Example: knarr lava install" in capsys.readouterr().out
