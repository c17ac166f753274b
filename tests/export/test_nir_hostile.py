"""Files made to break a reader: a clear error, in bounded time and memory."""

from __future__ import annotations

import itertools
import resource
from pathlib import Path
from typing import Any

import h5py
import nir
import norse.torch as snn
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knarr.export import ExportError, graph_hash, read, to_nir, write

MEMORY_BYTES = 1_000_000_000


@pytest.fixture
def path(student: snn.SequentialState, spikes: np.ndarray[Any, Any], tmp_path: Path) -> Path:
    write(to_nir(student, (2, 18, 18), 1e-3, samples=spikes), tmp_path / "a.nir")
    return tmp_path / "a.nir"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(path: Path, message: str) -> None:
    before = peak()
    with pytest.raises(ExportError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak() - before < MEMORY_BYTES


def test_ten_gigabytes_in_a_small_file(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["node/nodes/lif_1/tau"]
        file["node/nodes/lif_1"].create_dataset(
            "tau", shape=(1_250_000_000,), dtype="f8", chunks=True
        )
    assert path.stat().st_size < 1_000_000
    refused(
        path,
        r"'/node/nodes/lif_1/tau' of shape \(1250000000,\) brings the data to 10,0\d\d,\d{3},\d{3} bytes",
    )


def test_a_zip_bomb(path: Path) -> None:
    """Gigabytes of zeros, compressed into a file of megabytes."""
    with h5py.File(path, "a") as file:
        del file["node/nodes/lif_1/tau"]
        tau = file["node/nodes/lif_1"].create_dataset(
            "tau", (300_000_000,), "f8", chunks=(10_000_000,), compression="gzip"
        )
        tau[:10_000_000] = 1
    refused(path, "bytes, at most 2,000,000,000 are read")


def test_a_huge_declared_layer(path: Path) -> None:
    """Scalars are spread over a layer; the layer's declared size alone must not fill the memory."""
    with h5py.File(path, "a") as file:
        file["node/nodes/input/shape"][...] = [60000, 400, 400]
    refused(path, r"node 'input': 9,600,000,000 features, at most")


def test_many_layers_spread_from_scalars(tmp_path: Path) -> None:
    one = np.ones(1)
    nodes: dict[str, Any] = {
        "input": nir.Input({"input": np.array([2048, 2048])}),
        "output": nir.Output({"output": None}),
    }
    names = ["input", *(f"n{i}" for i in range(40)), "output"]
    for name in names[1:-1]:
        nodes[name] = nir.LIF(tau=one, r=one, v_leak=one, v_threshold=one, v_reset=one)
    nodes["output"] = nir.Output({"output": np.array([2048, 2048])})
    nir.write(
        tmp_path / "a.nir", nir.NIRGraph(nodes, list(itertools.pairwise(names)), type_check=False)
    )
    refused(tmp_path / "a.nir", "its neurons' parameters take 6,710,886,400 bytes, at most")


def test_many_edges(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["node/edges"]
        file["node"].create_dataset(
            "edges", data=[["input", "conv_0"]] * 100_000, dtype=h5py.string_dtype()
        )
    refused(path, "100,000 edges, at most 20,000")


def test_a_loop_of_groups_and_links_elsewhere(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["node/nodes/lif_1/loop"] = file["node"]
    refused(path, "nested more than")
    with h5py.File(path, "a") as file:
        del file["node/nodes/lif_1/loop"]
        del file["node/nodes/lif_1/tau"]
        file["node/nodes/lif_1/tau"] = h5py.ExternalLink("/etc/passwd", "/x")
    refused(path, "'tau' is a link elsewhere")
    with h5py.File(path, "a") as file:
        del file["node/nodes/lif_1/tau"]
        file["node/nodes/lif_1"].create_dataset(
            "tau", (4,), "f8", external=[("/etc/passwd", 0, 32)]
        )
    refused(path, "is no plain dataset")


def test_many_items(path: Path) -> None:
    with h5py.File(path, "a") as file:
        group = file["node"].create_group("metadata/many")
        for i in range(300):
            group.create_group(str(i))
        for i in range(120):
            group[f"again{i}"] = file[
                "node/metadata/many/0"
            ]  # hard links: cheap for who writes them
            file["node/metadata/many/0"][f"all{i}"] = file["node/nodes"]
    refused(path, "items; it is no NIR graph|nested more than")


@pytest.mark.parametrize("chunks", [None, (2,)])
def test_a_text_of_gigabytes_in_a_length_of_four_bytes(
    path: Path, chunks: tuple[int] | None
) -> None:
    """HDF5 allocates the length that a reference into its heap claims before it reads the heap."""
    with h5py.File(path, "a") as file:
        text = file["node/metadata"].create_dataset(
            "note", (2,), h5py.string_dtype(), chunks=chunks
        )
        text[:] = ["short", "text"]
        at = text.id.get_chunk_info(0).byte_offset if chunks else text.id.get_offset()
    assert read(path).metadata["note"] == ["short", "text"]
    whole = bytearray(path.read_bytes())
    assert whole[at : at + 4] == b"\5\0\0\0"
    whole[at + 3] = 0xF0
    path.write_bytes(whole)
    refused(path, r"'/node/metadata/note' brings the text to 4,026,5\d\d,\d{3} bytes, at most")


def test_text_whose_length_cannot_be_counted(path: Path) -> None:
    for options in ({"compression": "gzip"}, {"fillvalue": "x"}):
        with h5py.File(path, "a") as file:
            group = file["node/metadata"]
            group.pop("note", None)
            group.create_dataset("note", (2,), h5py.string_dtype(), **options)
        refused(path, "'/node/metadata/note' is text that is packed or has a fill value")


def test_types_that_are_not_numbers(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["node/nodes/lif_1/tau"]
        file["node/nodes/lif_1/tau"] = np.array([1 + 2j])
    refused(path, "is of type complex128")
    with h5py.File(path, "a") as file:
        del file["node/nodes/lif_1/tau"]
        file["node/nodes/lif_1"].create_dataset("tau", (2,), h5py.vlen_dtype(np.float64))
    refused(path, "is of type object")


@pytest.mark.parametrize("what", ["free space", "object", "collection"])
def test_a_heap_that_hdf5_would_never_leave(path: Path, what: str) -> None:
    """HDF5 stays for ever at free space of size 0, and does not find its way through other sizes."""
    whole = bytearray(path.read_bytes())
    heap = whole.index(b"GCOL")
    place, size = heap + 16, int.from_bytes(whole[heap + 8 : heap + 16], "little")
    if what == "collection":
        whole[heap + 8 : heap + 16] = (1 << 40).to_bytes(8, "little")
    else:
        while what == "free space" and whole[place : place + 2] != b"\0\0":
            length = int.from_bytes(whole[place + 8 : place + 16], "little")
            place += 16 + -(-length // 8) * 8
        assert place < heap + size
        whole[place + 8 : place + 16] = (0 if what == "free space" else 1 << 63).to_bytes(
            8, "little"
        )
    path.write_bytes(whole)
    refused(path, "is text whose heap at byte .* is damaged")


def test_a_hostile_certificate_is_one_line(path: Path, tmp_path: Path) -> None:
    graph = read(path)
    for text in (
        "{}",
        "[]",
        "no json",
        '{"graph_hash": 1}',
        "[" * 100_000,
        "\ud800".encode("utf-8", "replace").decode(),
    ):
        graph.metadata["certificate"] = text
        with pytest.raises(ExportError, match="certificate: cannot be read"):
            write(graph, tmp_path / "b.nir")
        assert not (tmp_path / "b.nir").exists()


@settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_give_a_graph_or_one_line(
    data: st.DataObject, path: Path, tmp_path: Path
) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8), label="changes")):
        where = data.draw(st.integers(0, len(whole) - 1), label="where")
        whole[where] = data.draw(st.integers(0, 255), label="byte")
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(whole))), label="cut")
    target = tmp_path / "fuzz.nir"
    target.write_bytes(whole[:cut])
    before = peak()
    try:
        graph = read(target)
    except ExportError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right, so pytest.raises does not fit
    else:
        assert isinstance(graph, nir.NIRGraph)
        assert len(graph_hash(graph)) == 64
    assert peak() - before < MEMORY_BYTES


@settings(
    max_examples=100, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.binary(max_size=4000), st.binary(max_size=2000).map(lambda b: b"\x89HDF\r\n\x1a\n" + b)
    )
)
def test_random_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "random.nir").write_bytes(content)
    with pytest.raises(ExportError) as caught:
        read(tmp_path / "random.nir")
    assert "\n" not in str(caught.value)
