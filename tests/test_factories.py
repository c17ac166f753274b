"""Networks that a user names as module:function: found in the current folder, and refused with a cure that works."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from knarr.factories import FactoryError, build, build_network, look_up

MODULE = """
from torch import nn

WIDTH = 3

class System:
    name = "mine"

def student(width=WIDTH):
    return nn.Linear(width, 2)

def broken():
    return 1 / 0

def leaves():
    raise SystemExit(3)

def asks(input_shape, *, hidden, dt_s=0.1):
    return nn.Linear(*input_shape, hidden)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mynet.py").write_text(MODULE)
    (tmp_path / "mydoubtful.py").write_text("import nothing_like_it\n")
    (tmp_path / "myscript.py").write_text("import sys\n\nsys.exit(0)\n")
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my")]:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_functions_classes_and_packages_are_found(folder: Path) -> None:
    made = build_network("mynet:student", {"dt_s": 0.001}, {"width": 5})
    assert isinstance(made, nn.Linear)
    assert made.in_features == 5
    assert look_up("mynet:System").name == "mine"
    assert look_up("mynet:System.name") == "mine"
    assert build("mypackage.nets:student").in_features == 3


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mynet", "is no module and name; write package.module:function"),
        ("mynet:", "is no module and name"),
        ("mynet:stu-dent", "is no module and name"),
        ("mynet.py:student", "names a file; write the module that Python imports, 'mynet:student'"),
        ("./mypackage/nets.py:student", "'mypackage.nets:student'"),
        ("mynot:student", "no module 'mynot' in"),
        ("mynet.more:student", "no module 'mynet.more' in"),
        ("mynet:studnet", "module 'mynet' has no 'studnet'; write student"),
        ("mynet:WIDTH", "is a int, needs a function that makes it"),
        ("mynet:broken", "ZeroDivisionError: division by zero, mynet.py line 13"),
        ("mynet:leaves", "SystemExit: 3, mynet.py line 16"),
        ("mynet:asks", "needs hidden, offered are dt_s, input_shape; give a default"),
        ("mynet:System", "gives System, needs a torch module; return the network"),
        ("mydoubtful:student", "No module named 'nothing_like_it', mydoubtful.py line 1"),
        ("myscript:student", "SystemExit: 0, myscript.py line 3"),
    ],
)
def test_each_fault_names_module_attribute_and_cure(
    reference: str, words: str, folder: Path
) -> None:
    with pytest.raises(FactoryError) as caught:
        build_network(reference, {"dt_s": 0.001, "input_shape": (3,)})
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"'{reference}': ")
    assert "\n" not in str(caught.value)


def test_a_function_gets_what_it_asks_for_by_name(folder: Path) -> None:
    made = build_network("mynet:asks", {"input_shape": (4,), "classes": 3}, {"hidden": 7})
    assert isinstance(made, nn.Linear)
    assert (made.in_features, made.out_features) == (4, 7)
    with pytest.raises(FactoryError, match="takes no width; it takes input_shape, hidden, dt_s"):
        build_network("mynet:asks", {"input_shape": (4,)}, {"hidden": 7, "width": 2})


def test_another_module_of_that_name_is_never_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_network("mynet:student", {})
    other = folder / "other"
    other.mkdir()
    (other / "json.py").write_text(MODULE)
    monkeypatch.chdir(other)
    with pytest.raises(FactoryError, match=r"another module 'json' before .*rename json.py"):
        look_up("json:student")


def test_a_folder_beside_comes_first_and_two_of_one_name_are_kept_apart(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    for place, width in ((first, 4), (second, 6)):
        (place / "mynet.py").write_text(
            f"from mywidth import WIDTH\n{MODULE.replace('WIDTH = 3', '')}"
        )
        (place / "mywidth.py").write_text(f"WIDTH = {width}\n")
    for place, width in ((first, 4), (second, 6), (first, 4)):
        made = build_network("mynet:student", {}, beside=place)
        assert isinstance(made, nn.Linear)
        assert made.in_features == width
    with pytest.raises(
        FactoryError, match=f"no module 'mynot' in {second} or {folder}, or installed"
    ):
        look_up("mynot:student", beside=second)
    # What lies in the current folder alone is found there.
    assert build("mypackage.nets:student", beside=second).in_features == 3
