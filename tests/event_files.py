"""Recordings of event cameras, written from the published descriptions of their formats.

The bytes were read back, when these were written, by the makers' own or other readers: AEDAT4 by
dv-processing 2.0.4, EVT 2 and DAT by expelliarmus 1.1.12, Event Stream by event_stream 1.6.3. All
four gave the same events.
"""

from __future__ import annotations

import struct
from itertools import groupby

import numpy as np
import numpy.typing as npt

EVENTS = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
Events = npt.NDArray[np.void]
WIDTH, HEIGHT = 40, 30


def draw(seed: int, count: int = 500, last_us: int = 200_000, first_us: int = 0) -> Events:
    """Events in order of time, every corner of the sensor among them."""
    rng = np.random.default_rng(seed)
    events = np.zeros(count, EVENTS)
    events["t"] = np.sort(rng.integers(first_us, last_us, count))
    events["x"], events["y"] = rng.integers(0, WIDTH, count), rng.integers(0, HEIGHT, count)
    events["p"] = rng.integers(0, 2, count)
    events["x"][:4], events["y"][:4] = [0, 0, WIDTH - 1, WIDTH - 1], [0, HEIGHT - 1, 0, HEIGHT - 1]
    return events


EVT2 = b"%% evt 2.0\n%% format EVT2;width=%d;height=%d\n%% end\n" % (WIDTH, HEIGHT)
EVT3 = b"%% evt 3.0\n%% format EVT3;width=%d;height=%d\n%% end\n" % (WIDTH, HEIGHT)


def evt2(events: Events, header: bytes = EVT2) -> bytes:
    """32-bit words: 8, then 28 high bits of the time; or polarity, 6 low bits, x and y of 11."""
    words, high = [], None
    for t, x, y, p in events.tolist():
        if t >> 6 != high:
            high = t >> 6
            words.append(0x8 << 28 | high & 0xFFFFFFF)
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    return header + np.array(words, "<u4").tobytes()


def evt3(events: Events, header: bytes = EVT3) -> bytes:
    """16-bit words: 8 and 6 for high and low 12 bits of the time, 0 for y, 2 for polarity and x.

    Events of one time, row and polarity become a vector: 3 for its first x, 4 for 12 bits. A camera
    sends every high word, whether or not there are events.
    """
    words, high = [], 0
    for (t, y, p), together in groupby(events[["t", "y", "p", "x"]].tolist(), lambda e: e[:3]):
        words += [0x8000 | step & 0xFFF for step in range(high, (t >> 12) + 1)]
        high = t >> 12
        words += [0x6000 | t & 0xFFF, y]
        for start, inside in groupby(sorted({e[3] for e in together}), lambda x: x // 12 * 12):
            bits = sum(1 << x - start for x in inside)
            words += [0x3000 | p << 11 | start, 0x4000 | bits]
    return header + np.array(words, "<u2").tobytes()


def dat(events: Events, version: int = 2) -> bytes:
    """A text header, type and size of an event, then 32 bits of time and 14, 14, 4 of x, y, p."""
    header = f"% Data file containing CD events.\n% Version {version}\n% Height {HEIGHT}\n% Width {WIDTH}\n"
    words = np.zeros((len(events), 2), "<u4")
    words[:, 0] = events["t"] & 0xFFFFFFFF
    x, y, p = (events[name].astype(np.uint32) for name in "xyp")
    words[:, 1] = x | y << 14 | p << 28
    return header.encode() + bytes([12, 8]) + words.tobytes()


def es(events: Events, kind: int = 1) -> bytes:
    """Magic, version, kind and size; an event has 5 bytes, and 255 lets 127 us pass. y is upwards."""
    data = bytearray(b"Event Stream" + bytes([2, 0, 0, kind]) + struct.pack("<HH", WIDTH, HEIGHT))
    last = 0
    for t, x, y, p in events.tolist():
        data += b"\xff" * ((t - last) // 127)
        data += struct.pack("<BHH", (t - last) % 127 << 1 | p, x, HEIGHT - 1 - y)
        last = t
    return bytes(data)


STREAM = """<node name="{number}" path="/out/{number}/"><attr key="typeIdentifier" type="string">{kind}</attr>
<node name="info" path="/out/{number}/info/"><attr key="sizeX" type="int">{width}</attr>
<attr key="sizeY" type="int">{height}</attr></node></node>"""


def aedat4(
    packets: list[Events],
    *,
    compression: str = "none",
    streams: tuple[str, ...] = ("EVTS",),
    table: int = -1,
) -> bytes:
    """Magic, a flatbuffer with an XML text about the streams, then packets that are flatbuffers.

    Compressed ones are frames of LZ4 or zstd with one block as it is.
    """
    nodes = "".join(
        STREAM.format(number=number, kind=kind, width=WIDTH, height=HEIGHT)
        for number, kind in enumerate(streams)
    )
    xml = f'<dv version="2.0"><node name="outInfo" path="/out/">{nodes}</node></dv>'.encode()
    code = {"none": 0, "lz4": 1, "zstd": 3}[compression]
    # Root, identifier, the list of fields (length, of the table, and where each of the three lies),
    # the table itself (back to the list, compression, place of the packets' table, the text).
    fields = struct.pack("<HHHHHxx", 10, 20, 4, 8, 16)
    root = struct.pack("<iiqI", 20 - 8, code, table, 4)
    header = struct.pack("<I", 20) + b"IOHE" + fields + root + struct.pack("<I", len(xml)) + xml
    header += bytes(4 - len(header) % 4)
    file = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    for number, events in enumerate(packets):
        data = _packed(_packet(events), compression)
        file += struct.pack("<iI", number % len(streams), len(data)) + data
    return file


def _packet(events: Events) -> bytes:
    """A table with one field: a vector of structs of 16 bytes."""
    struct_of = {
        "names": ["t", "x", "y", "p"],
        "formats": ["<i8", "<i2", "<i2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
    raw = np.zeros(len(events), np.dtype(struct_of))  # type: ignore[call-overload]
    for name in "txyp":
        raw[name] = events[name]
    head = struct.pack("<I4sHHHxx", 16, b"EVTS", 6, 8, 4) + struct.pack("<iI4x", 8, 8)
    body = head + struct.pack("<I", len(raw)) + raw.tobytes()
    return struct.pack("<I", len(body)) + body


def _packed(data: bytes, compression: str) -> bytes:
    if compression == "lz4":
        block = struct.pack("<I", 1 << 31 | len(data)) + data
        return bytes.fromhex("04224d18604082") + block + bytes(4)
    if compression == "zstd":
        block = (len(data) << 3 | 1).to_bytes(3, "little") + data
        return bytes.fromhex("28b52ffda0") + struct.pack("<I", len(data)) + block
    return data


def nmnist(events: Events) -> bytes:
    """5 bytes: x, y, then the polarity and 23 bits of the time."""
    t = events["t"]
    columns = [events["x"], events["y"], events["p"] << 7 | t >> 16, t >> 8 & 255, t & 255]
    return np.stack(columns, axis=1).astype(np.uint8).tobytes()
