"""`.net` files made to break a reader: a clear error, in bounded time and memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knarr.deploy import DeployError, check, read_net, write_net
from knarr.hw_sim import ChipNetwork, Conv, Dense, InputCoding, Neuron, Readout, Recurrent

MEMORY_BYTES = 1_000_000_000
SHAPE = (2, 6, 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """/layer/0 input, 1 conv, 2 flatten, 3 dense with bias and delays, 4 dense_rec."""
    rng: Any = np.random.default_rng(0)
    neuron = Neuron(2048, 512, 90)
    conv = Conv("conv", rng.integers(-90, 100, (4, 2, 3, 2)), neuron, SHAPE, (1, 2), (1, 0))
    weight = rng.integers(-90, 100, (6, 48))
    fc = Dense("fc", weight, neuron, np.arange(6) - 2, None, rng.integers(0, 5, weight.shape))
    loop = Recurrent("loop", rng.integers(-90, 100, (3, 6)), rng.integers(-90, 100, (3, 3)), neuron)
    write_net(
        ChipNetwork((conv, fc, loop), InputCoding(SHAPE), Readout("spikes")), tmp_path / "a.net"
    )
    put(tmp_path / "a.net", "knarr_manifest", None)  # as from elsewhere
    return tmp_path / "a.net"


def put(path: Path, key: str, value: Any) -> None:
    """Replace or remove an item, or the attribute of the root."""
    with h5py.File(path, "a") as file:
        if key == "knarr_manifest":
            file.attrs.pop(key, None)
            if value is not None:
                file.attrs[key] = value
            return
        if key in file:
            del file[key]
        if value is not None:
            file[key] = value


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(path: Path, message: str) -> None:
    before = peak()
    for read in (check, read_net):
        with pytest.raises(DeployError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "NIR" not in str(caught.value)
    assert peak() - before < MEMORY_BYTES


def test_no_file_and_no_hdf5(tmp_path: Path) -> None:
    refused(tmp_path / "none.net", "no such file; write one with `knarr deploy`")
    (tmp_path / "text.net").write_text("hello")
    refused(tmp_path / "text.net", "not an HDF5 file, so not a netx .net file")


def test_ten_gigabytes_declared(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["layer/1/weight"]
        file.create_dataset("layer/1/weight", shape=(4, 2, 12_500, 12_500), dtype="f8", chunks=True)
    assert path.stat().st_size < 1_000_000
    refused(
        path,
        r"'/layer/1/weight' of shape \(4, 2, 12500, 12500\) brings the data to 10,0\d\d,\d{3},\d{3} bytes",
    )


def test_small_numbers_that_would_grow(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["layer/3/weight"]
        file.create_dataset(
            "layer/3/weight", (30_000, 30_000), "i1", chunks=True, compression="gzip"
        )
    refused(path, r"brings the data to 900,\d{3},\d{3} values, at most 33,554,432")


def test_a_chunk_larger_than_its_data(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["layer/3/bias"]
        file.create_dataset(
            "layer/3/bias", (6,), "i8", chunks=(2**28,), maxshape=(None,), compression="gzip"
        )
    refused(path, r"'/layer/3/bias' of shape \(6,\) brings the data to 2,147,\d{3},\d{3} bytes")


def test_loops_and_links_elsewhere(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["layer/1/loop"] = file["layer"]
    refused(path, "nested more than 40 deep; it is no netx .net file")
    put(path, "layer/1/loop", None)
    put(path, "layer/1/weight", h5py.ExternalLink("/etc/passwd", "/x"))
    refused(path, "'weight' is a link elsewhere; a netx .net file holds its own data")
    put(path, "layer/1/weight", h5py.SoftLink("/nowhere"))
    refused(path, "'weight' is a link elsewhere")


def test_sizes_that_only_a_simulation_would_meet(path: Path) -> None:
    before = peak()
    put(path, "layer/0/shape", np.array([2, 10**9, 10**9]))
    put(path, "layer/1/padding", np.array([4096, 4096]))
    sizes = [
        violation.message for violation in check(path) if violation.rule == "sizes_are_bounded"
    ]
    assert (
        "/layer/0 sends 2,000,000,000,000,000,000 values of (2, 1000000000, 1000000000)" in sizes[0]
    )
    assert len(sizes) == 3
    with pytest.raises(DeployError, match=r"and \d+ more$"):
        read_net(path)
    assert peak() - before < MEMORY_BYTES


NOTES = (
    '{"format": 3, "lowering": {"weight_bits": 8, "calibration": %s, "layers": [%s], '
    '"rewrites": [], "approximations": []}}'
)
LAYER = '"name": "a", "weight_error": 0.1, "weights_clipped": 0, "sum_limit": 10'
MEASURED = '{"samples": 1, "timesteps": 2, "classes_kept": 1}'


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("no json", "manifest cannot be read"),
        ("[" * 100_000, "manifest cannot be read"),
        ("[]", "another format"),
        ('{"format": 1}', "another format"),
        (7, "no text"),
        ('{"format": 3, "layers": 5}', "manifest is damaged at layers "),
        ('{"format": 3, "layers": [5]}', "manifest is damaged at layers.0 "),
        ('{"format": 3, "layers": [{"name": "a\\nb"}]}', r"names a layer 'a\\nb'"),
        ('{"format": 3, "layers": [{"units_per_volt": "x"}]}', "layers.0.units_per_volt"),
        ('{"format": 3, "input": {"bits": "x"}}', "damaged at input.bits"),
        ('{"format": 3, "input": {"bits": true}}', "damaged at input.bits"),
        ('{"format": 3, "input": []}', "damaged at input "),
        ('{"format": 3, "readout": {"kind": "spikes", "votes": true}}', "damaged at readout.votes"),
        ('{"format": 3, "readout": {"kind": "spikes", "votes": 1.5}}', "damaged at readout.votes"),
        ('{"format": 3, "dt_s": "0.001"}', "damaged at dt_s"),
        ('{"format": 3, "dt_s": -1.0}', "damaged at dt_s"),
        ('{"format": 3, "graph_hash": 7}', "damaged at graph_hash"),
        ('{"format": 3, "lowering": []}', "damaged at lowering "),
        ('{"format": 3, "lowering": {"weight_bits": 8}}', "layers, rewrites missing"),
        ('{"format": 3, "lowering": {"trained": {}}}', "weight_bits is missing"),
        (
            '{"format": 3, "lowering": {"weight_bits": 8, "trained": 5}}',
            "damaged at lowering.trained",
        ),
        (NOTES % ("null", '{"weight_error": 0.1}'), "lowering.layers.0.name"),
        (NOTES % ("null", f"{{{LAYER}}}"), "layer 'a' has no sum_bound"),
        (NOTES % ("5", f"{{{LAYER}}}"), "damaged at lowering.calibration"),
        (NOTES % (MEASURED, f"{{{LAYER}}}"), "layer 'a' has no sum_peak"),
        (NOTES % (MEASURED, f'{{{LAYER}, "decisions": 0}}'), "lowering.layers.0.decisions"),
        ('{"format": 3, "input": {"bits": 99}}', "input: 99 bits, allowed"),
        ('{"format": 3, "input": {"units": NaN}}', "damaged at input.units"),
        ('{"format": 3, "readout": {"kind": "voltage"}}', "does not go with a voltage readout"),
        ('{"format": 3, "readout": {"kind": "spikes", "more": 1}}', "does not fit the file"),
        ('{"format": 3, "layers": [{"name": "a"}, {"name": "a"}]}', "layer names repeat"),
    ],
)
def test_hostile_manifests_are_one_line(manifest: Any, message: str, path: Path) -> None:
    put(path, "knarr_manifest", manifest)
    (violation,) = (v for v in check(path) if v.severity == "error")
    assert "\n" not in str(violation)
    with pytest.raises(DeployError, match=message) as caught:
        read_net(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_hostile_names_and_types_are_one_line(path: Path) -> None:
    put(path, "layer/3/type", b"den\nse" + b"x" * 100_000)
    put(path, "layer/9\n9/type", b"dense")
    found = check(path)
    assert {"types_are_known", "layers_are_numbered"} <= {violation.rule for violation in found}
    assert all("\n" not in str(violation) and len(str(violation)) < 500 for violation in found)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_give_a_network_or_one_line(
    data: st.DataObject, path: Path, tmp_path: Path
) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8), label="changes")):
        where = data.draw(st.integers(0, len(whole) - 1), label="where")
        whole[where] = data.draw(st.integers(0, 255), label="byte")
    target = tmp_path / "fuzz.net"
    target.write_bytes(
        whole[: data.draw(st.one_of(st.none(), st.integers(0, len(whole))), label="cut")]
    )
    before = peak()
    try:
        network = read_net(target)
        assert all("\n" not in str(violation) for violation in check(target))
    except DeployError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right, so pytest.raises does not fit
        assert "fault in knarr" not in str(error)  # noqa: PT017
    else:
        assert isinstance(network, ChipNetwork)
    assert peak() - before < MEMORY_BYTES


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**40), 2**40).map(np.int64),
    st.floats().map(np.float64),
    st.booleans(),
    st.binary(max_size=9).filter(lambda text: b"\0" not in text),
    st.lists(st.integers(-9, 9), max_size=6).map(lambda numbers: np.array(numbers, dtype=np.int64)),
    st.lists(st.floats(-9, 9), min_size=1, max_size=6).map(np.array),
    st.sampled_from(((1, 1), (6, 48), (4, 2, 3, 2), (0, 3), (1, 1, 1))).map(
        lambda shape: np.ones(shape, dtype=np.int8)
    ),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_item_may_hold_anything(data: st.DataObject, path: Path, tmp_path: Path) -> None:
    """Whatever is said where: a network, or rules that explain why not."""
    target = tmp_path / "fuzz.net"
    target.write_bytes(path.read_bytes())
    with h5py.File(path) as file:
        items: list[str] = []
        file.visit(items.append)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        item = data.draw(st.sampled_from(items), label="item")
        with h5py.File(target) as file:
            parent = item.rpartition("/")[0]
            reachable = not parent or (parent in file and isinstance(file[parent], h5py.Group))
        if reachable:
            put(target, item, data.draw(VALUES, label="value"))
    try:
        found = check(target)
    except DeployError as error:  # bytes that are no text
        assert "not a readable HDF5 file" in str(error)  # noqa: PT017 - both ends are right
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert all("\n" not in str(violation) for violation in found)
    assert not any("fault in knarr" in str(violation) for violation in found), [
        str(v) for v in found
    ]
    if not any(violation.severity == "error" for violation in found):
        assert isinstance(read_net(target), ChipNetwork)
