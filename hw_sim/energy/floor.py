"""Datasheet floors: what a dense network cannot cost less than on a device, if every unit were busy all the time.

    floor_j = MAC_dense_padded * 2 * TDP / peak        (1 MAC = 2 operations)

It is a bound and never a consumption: small batches cost far more. `measure_gpu` gives the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from knarr.hw_sim.counts import OperationCounts
from knarr.hw_sim.energy.prices import Grade, PriceError, PriceRecord, load_profile

LABEL = "a bound at 100 % utilisation, never consumption"
PROFILE = "gpu_floor"


@dataclass(frozen=True)
class Floor:
    """The least energy of one inference on a device, from its datasheet.

    Args:
        device, precision: row of the profile `gpu_floor`, such as "v100" and "fp32".
        pj_per_mac: 2 TDP / peak, pJ, above 0.
        macs_dense_padded: multiplications of one inference, taps into the padding included.
        floor_j: their product, J.
        grade: "D", datasheet arithmetic.
        source: who says so, with TDP and peak.
        label: what the number is; print it beside the number.
    """

    device: str
    precision: str
    pj_per_mac: float
    macs_dense_padded: float
    floor_j: float
    grade: Grade
    source: str
    label: str = LABEL

    def to_json(self) -> dict[str, object]:
        """Plain dict for json.dump, with the same names."""
        return asdict(self)


def gpu_floor_rows() -> tuple[tuple[str, str], ...]:
    """Every (device, precision) that has a floor, as the profile lists them."""
    return tuple((device, precision) for device, precision, _ in _records())


def gpu_floor(counts: OperationCounts, device: str, precision: str) -> Floor:
    """Floor of one inference: 2 TDP / peak times the dense padded multiplications.

    Args:
        counts: of `count_onnx` (of `count` for a spiking network that is run densely, all its steps).
        device: a device of `gpu_floor_rows()`, or a part of its name that only one has, such as "h200".
        precision: one that the device has, such as "fp32"; TF32 has no row, fp32 does not bound it.

    Raises:
        PriceError: unknown device or precision; says which there are.
        CountError: the counts have no total.
    """
    devices = dict.fromkeys(name for name, _, _ in _records())
    found = [name for name in devices if name == device] or [
        name for name in devices if f"_{device}_" in f"_{name}_"
    ]
    if len(found) != 1:
        problem = "does not exist" if not found else f"may be any of {', '.join(found)}"
        raise PriceError(f"device: '{device}' {problem}; choose one of {', '.join(devices)}")
    records = {of: record for name, of, record in _records() if name == found[0]}
    if precision not in records:
        raise PriceError(
            f"precision: '{precision}' of device '{found[0]}' does not exist; choose one of {', '.join(records)}"
        )
    return _floor(counts, found[0], precision, records[precision])


def gpu_floors(counts: OperationCounts) -> tuple[Floor, ...]:
    """The floors of every device and precision of the profile.

    Raises:
        CountError: the counts have no total.
    """
    return tuple(_floor(counts, device, precision, record) for device, precision, record in _records())


def _floor(counts: OperationCounts, device: str, precision: str, record: PriceRecord) -> Floor:
    assert record.nominal is not None  # the test of the profile holds it to 2 TDP / peak
    macs = counts.total.dense_padded
    return Floor(
        device=device,
        precision=precision,
        pj_per_mac=record.nominal,
        macs_dense_padded=float(macs),
        floor_j=float(macs) * record.nominal * 1e-12,
        grade=record.grade,
        source=f"{record.source}: {record.note.partition(';')[0]}",
    )


def _records() -> Iterator[tuple[str, str, PriceRecord]]:
    """Device, precision and price; an id of the profile is `device_precision`."""
    for record in load_profile(PROFILE).prices:
        device, _, precision = record.id.rpartition("_")
        yield device, precision, record
