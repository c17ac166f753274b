"""Recordings: the file they go through, and the exact comparison of two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knarr.hw_sim import ChipError, Divergence, Recording, compare, load_recording, save_recording


def recording(seed: int = 0) -> Recording:
    rng = np.random.default_rng(seed)
    spikes = rng.integers(0, 2, (2, 4, 3, 2, 2)).astype(np.uint8)
    return Recording(
        output=rng.integers(-(2**23), 2**23, (2, 4, 5)),
        spikes={"conv/1": spikes, "fc": rng.integers(0, 2, (2, 4, 5)).astype(np.uint8)},
        v={
            "conv/1": rng.integers(-(2**23), 2**23, spikes.shape),
            "fc": rng.integers(-9, 9, (2, 4, 5)),
        },
        event_counts={"conv/1": spikes.sum(axis=(2, 3, 4), dtype=np.int64)},
        peak_sum={"conv/1": 2**23, "fc": 17},
        engine="reference",
    )


def changed(original: Recording, kind: str, name: str, *places: tuple[int, ...]) -> Recording:
    array = getattr(original, kind)[name].copy()
    for place in places:
        array[place] = 1 - array[place] if kind == "spikes" else array[place] + 1
    return replace(original, **{kind: {**getattr(original, kind), name: array}})


def assert_same(a: Recording, b: Recording) -> None:
    assert (a.engine, dict(a.peak_sum)) == (b.engine, dict(b.peak_sum))
    assert all(type(peak) is int for peak in b.peak_sum.values())
    np.testing.assert_array_equal(a.output, b.output, strict=True)
    for kind in ("spikes", "v", "event_counts"):
        left, right = getattr(a, kind), getattr(b, kind)
        assert list(left) == list(right)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    save_recording(recording(), path)
    assert_same(recording(), load_recording(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


def test_round_trip_of_output_alone_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "no suffix"
    only = Recording(output=np.array([[[-1, 2]]]))
    save_recording(only, path)
    assert_same(only, load_recording(path))


@settings(max_examples=25)
@given(
    st.text(
        st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"),
        min_size=1,
        max_size=12,
    )
)
def test_any_layer_name_survives(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("name") / "run.npz"
    array = np.arange(6).reshape(1, 2, 3)
    named = Recording(
        array, spikes={name: (array % 2).astype(np.uint8)}, v={name: array}, peak_sum={name: 3}
    )
    save_recording(named, path)
    assert_same(named, load_recording(path))


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    save_recording(recording(0), path)
    save_recording(recording(1), path)
    assert_same(recording(1), load_recording(path))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.npz"
    save_recording(recording(0), path)

    def fail(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save_recording(recording(1), path)
    assert_same(recording(0), load_recording(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.npz"]


def not_recordings() -> dict[str, Any]:
    def truncated(path: Path) -> None:
        save_recording(recording(), path)
        path.write_bytes(path.read_bytes()[:-200])

    def wrong_checksum(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(
                file, format=np.array(1), engine=np.array(""), output=np.full((1, 1, 8), 0x5A5A5A5A)
            )
        content = path.read_bytes()
        path.write_bytes(content.replace(b"\x5a" * 4, b"\xa5" * 4, 1))

    def damaged_deflate(path: Path) -> None:
        save_recording(recording(), path)
        content = bytearray(path.read_bytes())
        name, extra = (
            int.from_bytes(content[26:28], "little"),
            int.from_bytes(content[28:30], "little"),
        )
        content[30 + name + extra] |= 0b110  # block type 3 of the first member does not exist
        path.write_bytes(content)

    def npz(**arrays: Any) -> Any:
        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **arrays)

        return write

    def lone_array(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, np.arange(3))

    return {
        "text": lambda path: path.write_text("not a zip file at all"),
        "empty": lambda path: path.write_bytes(b""),
        "truncated": truncated,
        "wrong_checksum": wrong_checksum,
        "damaged_deflate": damaged_deflate,
        "no_format": npz(output=np.zeros((1, 1, 1))),
        "no_output": npz(format=np.array(1), engine=np.array("x")),
        "unknown_kind": npz(
            format=np.array(1),
            engine=np.array(""),
            output=np.zeros((1, 1, 1), int),
            **{"w/a": np.zeros(1)},
        ),
        "pickled": npz(
            format=np.array(1), engine=np.array(""), output=np.array([{}], dtype=object)
        ),
        "lone_array": lone_array,
    }


@pytest.mark.parametrize("kind", not_recordings())
def test_files_that_are_no_recording_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    not_recordings()[kind](path)
    with pytest.raises(ChipError, match=r"run\.npz: not a recording \(.*\); write one with"):
        load_recording(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    with path.open("wb") as file:
        np.savez(file, format=np.array(2), output=np.zeros((1, 1, 1)), engine=np.array(""))
    with pytest.raises(ChipError, match="recording format 2, this version reads 1"):
        load_recording(path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "run.npz", tmp_path / "witness"

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (witness,))

    with path.open("wb") as file:
        np.savez(
            file, format=np.array(1), engine=np.array(""), output=np.array([Trap()], dtype=object)
        )
    with pytest.raises(ChipError, match="not a recording"):
        load_recording(path)
    assert not witness.exists()


def test_a_missing_file_stays_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_recording(tmp_path / "none.npz")


# --- compare


def test_equal_recordings_do_not_diverge() -> None:
    assert compare(recording(), recording()) == []


def test_the_earliest_difference_is_named() -> None:
    original = recording()
    # Sample 1 differs in an earlier step than sample 0.
    other = changed(original, "v", "conv/1", (0, 3, 0, 0, 0), (1, 2, 2, 1, 1), (1, 2, 2, 1, 0))
    value = int(original.v["conv/1"][1, 2, 2, 1, 0])
    assert compare(original, other) == [
        Divergence(
            "v of 'conv/1'", 3, 96, sample=1, timestep=2, index=(2, 1, 0), a=value, b=value + 1
        )
    ]
    assert str(compare(original, other)[0]) == (
        "v of 'conv/1': 3 of 96 differ, first at sample 1, time step 2, index (2, 1, 0): "
        f"{value} vs {value + 1}"
    )


def test_within_a_step_the_lower_sample_and_index_come_first() -> None:
    original = recording()
    other = changed(original, "v", "fc", (1, 1, 0), (0, 1, 4), (0, 1, 3))
    (found,) = compare(original, other)
    assert (found.sample, found.timestep, found.index) == (0, 1, (3,))


def test_every_array_that_differs_is_listed_once() -> None:
    original = recording()
    other = changed(original, "spikes", "fc", (0, 0, 0), (1, 3, 4))
    other = changed(other, "v", "conv/1", (1, 3, 2, 1, 1))
    other = replace(other, output=original.output + 1)
    found = compare(original, other)
    assert [(d.what, d.mismatches) for d in found] == [
        ("output", 40),
        ("spikes of 'fc'", 2),
        ("v of 'conv/1'", 1),
    ]


def test_spikes_of_either_dtype_compare_by_value() -> None:
    original = recording()
    wide = replace(
        original, spikes={name: array.astype(np.int64) for name, array in original.spikes.items()}
    )
    assert compare(original, wide) == []
    (found,) = compare(changed(original, "spikes", "fc", (0, 0, 0)), wide)
    assert {found.a, found.b} == {0, 1}


@pytest.mark.parametrize("kind", ["spikes", "v"])
def test_different_layers_are_refused(kind: str) -> None:
    original = recording()
    fewer = replace(original, **{kind: {"fc": getattr(original, kind)["fc"]}})
    for pair in ((original, fewer), (fewer, original)):
        with pytest.raises(
            ChipError, match=f"recordings: {kind} of layers .*; record the same layers"
        ):
            compare(*pair)


def test_different_shapes_are_refused() -> None:
    original = recording()
    with pytest.raises(ChipError, match=r"output has shape \(2, 4, 5\) vs \(1, 4, 5\)"):
        compare(original, replace(original, output=original.output[:1]))
    shorter = replace(original, v={**original.v, "fc": original.v["fc"][:, :3]})
    with pytest.raises(ChipError, match=r"v of 'fc' has shape \(2, 4, 5\) vs \(2, 3, 5\)"):
        compare(original, shorter)
