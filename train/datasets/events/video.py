"""Decode video files to grey frames, one at a time, by PyAV.

A damaged file is refused, never shortened in silence.

Decoders end at the end of a file, so a truncated one is told by the lengths that its container
states.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeAlias

import av
import av.container
import av.error
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter

from knarr.train.datasets.arrays import UInt8
from knarr.train.datasets.events.camera import Dvs, Events, simulate
from knarr.train.errors import DataError

MAX_VIDEO_BYTES = 16 << 30
MAX_SIDE_PX = 8192
FPS_TOLERANCE = 0.01
"""Relative difference of two frame rates that is still the same rate: 30 and 29.97 are."""
END_SLACK_S = 0.5
"""Part of a span that may lie past the last frame.

Times are annotated by the sound, which outlasts the pictures.
"""
SEEK_MARGIN_S = 2.0
"""Least time before a span at which decoding begins.

A seek by storage order may end behind the time it is given.
"""

# Containers of single files. FFmpeg also reads playlists and scripts, which name other files; those
# are not opened.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpegts,mpeg,flv,asf,ogg"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
Packet: TypeAlias = "av.Packet[av.VideoStream]"
_log = logging.getLogger(__name__)
av.logging.set_level(None)  # what FFmpeg would print is in the error raised


class GreyVideo(contextlib.AbstractContextManager["GreyVideo"]):
    """An open video file.

    Use as a context manager. Memory is that of the few frames a decoder holds.

    Args:
        path: the file.

    Attributes:
        width, height: pixels.
        stated_fps: frames a second as the file's header has it; None where it has none.
        times_s: seconds since the stream's start, of each frame given so far.

    Raises:
        DataError: missing, empty or truncated file; not a video; too large a picture.
    """

    def __init__(self, path: Path) -> None:
        _check_file(path)
        self.path = path
        self.times_s: list[float] = []
        # One for all frames: a new one takes a hundred times as long as the conversion.
        self._grey = VideoReformatter()
        self._open()
        rate = self._stream.average_rate
        self.stated_fps = float(rate) if rate else None

    def _open(self) -> None:
        try:
            self._container = av.open(str(self.path.resolve()), options=_OPTIONS)
        except av.error.FFmpegError as error:
            raise self._undecodable(error) from error
        try:
            if not self._container.streams.video:
                raise DataError(self.path, "no video: the file has no video stream; check it")
            self._stream = self._container.streams.video[0]
            # Damage is an error, not a picture patched up from its neighbours.
            self._stream.codec_context.options = {"err_detect": "explode"}
            self.width, self.height = self._stream.width, self._stream.height
            if not (0 < self.width <= MAX_SIDE_PX and 0 < self.height <= MAX_SIDE_PX):
                raise DataError(
                    self.path,
                    f"picture size: {self.width} x {self.height}, allowed 1 .. {MAX_SIDE_PX} pixels; scale it",
                )
        except BaseException:
            self._container.close()
            raise

    def _undecodable(self, error: av.error.FFmpegError, where: str | None = None) -> DataError:
        return DataError(
            self.path, f"undecodable video: {error.strerror}; convert or restore it", where
        )

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(
        self, start_s: float = 0.0, end_s: float | None = None
    ) -> Generator[UInt8, None, None]:
        """Yield the luma of the frames whose time is in [start_s, end_s), in order.

        Call it once per video. Each frame is (height, width), 0 .. 255.

        Args:
            start_s: seconds since the stream's start, at least 0. Decoding begins at a key frame
                before.
            end_s: None for the end of the video.

        Raises:
            ValueError: the times are not 0 <= start_s < end_s.
            DataError: a frame does not decode, has no time or another size; there is none in the
                span, or the video ends more than `END_SLACK_S` before the span does.
        """
        if start_s < 0 or (end_s is not None and end_s <= start_s):
            raise ValueError(f"times: [{start_s}, {end_s}) s is no span; give 0 <= start_s < end_s")
        if start_s > SEEK_MARGIN_S:
            # Some streams cannot be decoded from their middle without errors. Those are read again
            # from the beginning, where an error is one of the file; what has been given stays.
            with contextlib.suppress(av.error.FFmpegError, DataError):
                yield from self._decode(self._seek(start_s), start_s, end_s)
                if self.times_s:
                    return
            self._container.close()
            self._open()
        try:
            yield from self._decode(self._container.demux(self._stream), start_s, end_s)
        except av.error.FFmpegError as error:
            raise self._undecodable(error, f"after frame {len(self.times_s)}") from error
        if not self.times_s:
            until = "its end" if end_s is None else f"{end_s} s"
            raise DataError(
                self.path,
                f"no frames: not one from {start_s} s to {until}; check the video and the times",
            )

    def _decode(
        self, packets: Iterator[Packet], start_s: float, end_s: float | None
    ) -> Iterator[UInt8]:
        base, origin_s = self._clock()
        # After a second start from the beginning, frames up to here have been given already.
        given_s = self.times_s[-1] if self.times_s else -math.inf
        for packet in packets:
            fault = partial(DataError, self.path, record=f"after frame {len(self.times_s)}")
            if packet.is_corrupt:
                raise fault("truncated video: a frame is cut short; restore it")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise fault("undecodable video: a frame is damaged; restore it")
                if frame.pts is None:
                    raise fault("no time stamps: a frame has none; wrap it as mp4")
                if (frame.width, frame.height) != (self.width, self.height):
                    raise fault(
                        f"changing size: {frame.width} x {frame.height} after {self.width} x {self.height} pixels; "
                        "cut it there"
                    )
                time_s = float(frame.pts * base) - origin_s
                # A frame belongs to the span by its time, but for the rounding of a float.
                if end_s is not None and time_s >= end_s - 1e-9:
                    return
                if time_s >= start_s - 1e-9 and time_s > given_s:
                    self.times_s.append(time_s)
                    grey = self._grey.reformat(frame, format="gray", threads=1)
                    yield grey.to_ndarray().astype(np.uint8, copy=False)
        # The packets have ended before the span: some slack is left to the sound, which lasts
        # longer.
        if end_s is not None and self.times_s and self.times_s[-1] < end_s - END_SLACK_S:
            raise DataError(
                self.path,
                f"short video: its last frame is at {self.times_s[-1]:.3f} s, before {end_s:.3f} s; correct the times",
            )

    def _clock(self) -> tuple[Fraction, float]:
        """Return the seconds that a time stamp counts, and the first one's time."""
        base = self._stream.time_base
        if base is None:
            raise DataError(
                self.path, "no time stamps: its stream has no time base; wrap it as mp4"
            )
        clock = Fraction(base.numerator, base.denominator)
        return clock, float((self._stream.start_time or 0) * clock)

    def _seek(self, start_s: float) -> Iterator[Packet]:
        """Yield the stream's packets from a key frame before `start_s` on.

        There is none where the seek ended behind that time.
        """
        base, origin_s = self._clock()
        self._container.seek(int((start_s - SEEK_MARGIN_S + origin_s) / base), stream=self._stream)
        packets = self._container.demux(self._stream)
        key = next((packet for packet in packets if packet.is_keyframe), None)
        if key is not None and key.pts is not None and float(key.pts * base) - origin_s <= start_s:
            yield key
            # Frames shown before the key frame but stored behind it need others from before it.
            yield from (packet for packet in packets if packet.pts is None or packet.pts >= key.pts)

    @property
    def fps(self) -> float | None:
        """Frames a second by the times of the frames given so far.

        It is the stated rate while there are fewer than two.
        """
        if len(self.times_s) < 2 or self.times_s[-1] <= self.times_s[0]:
            return self.stated_fps
        return (len(self.times_s) - 1) / (self.times_s[-1] - self.times_s[0])


def is_video(path: Path) -> bool:
    """Say whether a file is a video, whole or cut, by its content."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if claimed_bytes(file, size) > size:
            return True
    try:
        av.open(str(path.resolve()), options=_OPTIONS).close()
    except av.error.FFmpegError:
        return False
    return True


def events_of_video(
    path: Path,
    camera: Dvs,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    fps: float | None = None,
) -> Events:
    """Return the events that a simulated camera sees in a video file.

    A rate that the header states and the frames do not keep is logged as a warning; `Events.fps` is
    that of the frames.

    Args:
        path: the video file.
        camera: settings of the simulation.
        start_s, end_s: the part to look at, as in `GreyVideo.frames`.
        fps: the rate that the frames must have, within a hundredth; None for any.

    Raises:
        DataError: as `GreyVideo` and `simulate`; or the rate is not `fps`.
    """
    with GreyVideo(path) as video:
        with contextlib.closing(video.frames(start_s, end_s)) as frames:
            events = simulate(frames, camera, source=str(path))
        found = video.fps
        if fps is not None and not _same_rate(found, fps):
            shown = "none" if found is None else f"{found:.3f}"
            raise DataError(
                path, f"wrong rate: {shown} frames/s, expected {fps:g}; convert the video"
            )
        if not _same_rate(found, video.stated_fps):
            _log.warning(
                "%s: its header states %s frames/s, its frames keep %s",
                path,
                video.stated_fps,
                found,
            )
        steps_s = np.diff(video.times_s)
        if len(steps_s) and steps_s.max() > 1.5 * np.median(steps_s):
            _log.warning(
                "%s: uneven frames: steps of %.4f .. %.4f s; events are differences of neighbours all the same",
                path,
                steps_s.min(),
                steps_s.max(),
            )
        return replace(events, fps=found)


def _same_rate(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= FPS_TOLERANCE * other


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(path, "missing video: no such file; restore it")
    size = path.stat().st_size
    if not 0 < size <= MAX_VIDEO_BYTES:
        raise DataError(
            path, f"file size: {size} bytes, allowed 1 .. {MAX_VIDEO_BYTES}; restore it"
        )
    with path.open("rb") as file:
        claimed = claimed_bytes(file, size)
    if claimed > size:
        raise DataError(path, f"truncated video: {size} of at least {claimed} bytes; restore it")


def claimed_bytes(file: BinaryIO, size: int) -> int:
    """Return how long a file must be by its container's own lengths; `size` where they do not say.

    Decoders end at the end of a file, and the counts of frames in headers are right only for files
    that were not cut from others, so this is how a truncated file is told. ISO 14496-12 4.2 (mp4,
    mov), RIFF (avi), EBML (mkv, webm).
    """
    head = file.read(64)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        position = 0
        while position < size:
            file.seek(position)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:  # a long one: its length stands behind the type
                length = int.from_bytes(box[8:16], "big")
            if length == 0 and len(box) >= 8:  # to the end of the file
                return size
            # Every box has a header of 8 bytes, so damage that says less cannot keep the loop in
            # place.
            position += max(length, 8)
        return position
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        # What is streamed, or longer than 4 GB, does not say.
        return size if length in (0, 0xFFFFFFFF) else 8 + length
    if head[:4] == b"\x1aE\xdf\xa3":
        header, used = _vint(head[4:])
        segment = 4 + used + (header or 0)
        if head[segment : segment + 4] == b"\x18S\x80g":
            content, used = _vint(head[segment + 4 :])
            return size if content is None else segment + 4 + used + content
    return size


def _vint(data: bytes) -> tuple[int | None, int]:
    """Return (value, bytes used) of an EBML number; value None for one of all ones, "not known"."""
    if not data or data[0] == 0:
        return None, 0
    # The first set bit of the first byte says how many bytes the number has, and is none of its
    # own.
    used = 9 - data[0].bit_length()
    largest = (1 << 7 * used) - 1
    value = int.from_bytes(data[:used], "big") & largest
    return (None if value == largest else value), used
