"""Arrays of other people's: hostile files end in one line, and numbers come back plain."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knarr.arrays import ArrayFileError, read_npy, read_npz


def npy(header: str, content: bytes = b"\0" * 64) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def header(shape: str = "(8,)", order: str = "False", descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .npy array"),
        (b"PK\x03\x04", r"several arrays \(.npz\)"),
        (b"\x93NUMPY\x01", "header is damaged"),
        (npy("{'descr': '|u1', 'shape': ("), "header is damaged"),
        (npy(header("(" + "-" * 5000 + "1,)")), "header is damaged|names no shape"),
        (npy(header("(" * 300 + "1" + ")" * 300)), "header is damaged"),
        (npy(header("(True,)")), "names no shape"),
        (npy(header("(-1,)")), "names no shape|header is damaged"),
        (npy(header("(1.5,)")), "names no shape|header is damaged"),
        (npy(header(f"({2**62}, 8)")), r"declares .* and holds 64; it was cut off"),
        (npy(header("(65,)")), "it was cut off"),
        (npy(header(descr="'|O'")), "not plain numbers"),
        (npy(header(descr="'<M8[s]'")), "not plain numbers"),
        (npy(header(descr="'<c8'")), "not plain numbers"),
        (npy(header(descr="[('a', '<f4')]")), "not plain numbers"),
        (npy(header("(" + "1," * 64 + ")", descr="'|u1'")), "names no shape"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 40, "header is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ArrayFileError, match=message) as caught:
        read_npy(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [">i2", "<u8", ">f4", "<f2", "?", ">f8", "i1", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_come_back_plain(dtype: str, order: Any, tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4) % 2
    np.save(tmp_path / "x.npy", np.array(values, dtype=dtype, order=order))
    np.savez(tmp_path / "x.npz", a=np.array(values, dtype=dtype, order=order), b=np.zeros(()))
    for found in (read_npy(tmp_path / "x.npy"), read_npz(tmp_path / "x.npz")["a"]):
        assert np.array_equal(found, values)
        assert found.dtype.isnative
        assert found.flags.c_contiguous
        assert found.dtype.itemsize <= 8
        assert found.dtype != np.float16


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knarr.arrays.MAPPED_BYTES", 100)
    values = np.arange(64, dtype=np.int32).reshape(8, 8)
    np.save(tmp_path / "x.npy", values)
    found = read_npy(tmp_path / "x.npy")
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, values)


def test_damaged_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(1000), b=np.arange(5))
    whole = path.read_bytes()
    for content in (whole[:100], whole[:-30], whole[:60] + b"\xff" * 40 + whole[100:], b"PK"):
        path.write_bytes(content)
        with pytest.raises(ArrayFileError, match=r"not a .npz file|damaged|cut off"):
            read_npz(path)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(other.getvalue())
    with pytest.raises(ArrayFileError, match=r"'readme.txt' is no array"):
        read_npz(path)
    monkeypatch.setattr("knarr.arrays.MAX_UNPACKED_BYTES", 1000)
    path.write_bytes(whole)
    with pytest.raises(ArrayFileError, match="of at most 1,000"):
        read_npz(path)
