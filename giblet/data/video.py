"""Frames of a film by time, streamed through PyAV.

Sample k stands at `k x frame_skip / fps` on the film's own clock (0 at its first picture), and is the picture that is
on the screen then. Where frames are evenly spaced, that is every `frame_skip`-th frame; where the rate varies, real
timestamps decide, and nothing drifts. Pictures are scaled by area averaging (swscale's AREA) to RGB uint8, and turned
upright where the film says that it was taken with the camera held on its side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.stream
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from giblet.errors import DataError

Picture = npt.NDArray[np.uint8]
SEEK_BACK_SECONDS = 1
"""A picture just before the keyframe that a seek finds may lack what it refers to; none that counts is so near it."""

UNDECLARED = frozenset({"mpeg", "mpegts"})
"""Containers without a heading: what FFmpeg says of their length is a guess, up to half a second short."""

MISSING_SECONDS = Fraction(1, 2)
"""A film may end so much before its declared end, or two frames, whichever is more; beyond that it is truncated."""


@dataclass(frozen=True, slots=True)
class Film:
    """What a film says of itself, in seconds.

    `start` is its first picture's timestamp, where the film's clock is 0; `duration` its pictures'; `fps` its nominal
    frame rate.
    """

    path: Path
    start: Fraction
    duration: Fraction
    fps: Fraction
    has_sound: bool


@contextmanager
def open_film(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a film; whatever FFmpeg says against it within the `with` becomes a `DataError`."""
    try:
        with av.open(str(path)) as container:
            yield container
    except (av.error.FFmpegError, FileNotFoundError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} cannot be read as a film: {reason}",
            remedy="the file is truncated, damaged or of an unknown format; copy it again or convert it with ffmpeg",
        ) from error


def probe(path: Path) -> Film:
    """Read a film's heading and first picture.

    Raises `DataError` if it has no pictures, or does not say how long it is.
    """
    with open_film(path) as container:
        stream = _pictures_of(container)
        average, nominal = stream.average_rate, stream.guessed_rate
        fps = nominal if nominal and average and abs(nominal / average - 1) < Fraction(1, 100) else average or nominal
        first = next((frame for frame in container.decode(stream) if frame.pts is not None), None)
        if first is None or stream.time_base is None:
            raise DataError(f"{path} has no picture that can be decoded", remedy="copy the film again, or convert it")
        start = Fraction((first.pts or 0) * stream.time_base)
        duration = _duration(container, stream, start, Fraction(fps)) if fps else Fraction(0)
        if not fps or duration <= 0:
            raise DataError(
                f"{path} does not say how long it is or at what frame rate",
                remedy="the file is truncated or a bare stream; remux it with ffmpeg -i film -c copy film.mkv",
            )
        return Film(path, start, duration, Fraction(fps), bool(container.streams.audio))


def _pictures_of(container: av.container.InputContainer) -> Any:
    """The film's pictures, and not the cover that some films carry as a stream of one picture."""
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover and s.codec_context is not None]
    if not streams:
        raise DataError(f"{container.name} has no pictures that can be decoded", remedy="name a film in stim_file")
    return streams[0]


def _duration(container: av.container.InputContainer, stream: Any, start: Fraction, fps: Fraction) -> Fraction:
    """How long the pictures are said to last, 0 where nothing is said; measured where a container can only guess."""
    if container.format.name in UNDECLARED:
        return _measured_duration(Path(container.name), fps)
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    whole = Fraction(container.duration or 0, av.time_base)
    if "matroska" not in container.format.name:
        return whole
    # Matroska's lengths are of the time from 0 to the end, and that of the pictures alone is a tag.
    tags = {name.upper(): value for name, value in stream.metadata.items()}
    told = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tags.get("DURATION", "").strip())
    end = int(told[1]) * 3600 + int(told[2]) * 60 + Fraction(told[3]) if told else whole
    return end - start if end > start else end


def _measured_duration(path: Path, fps: Fraction) -> Fraction:
    """From the first picture's time to the last one's end, read from the packets without decoding them."""
    with open_film(path) as container:
        stream = _pictures_of(container)
        times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
        return (max(times) - min(times)) * Fraction(stream.time_base) + 1 / fps if times else Fraction(0)


def sample_pictures(
    film: Film, *, frame_skip: int, first: int, stop: int, height: int, width: int, threads: int = 0
) -> Iterator[tuple[int, Picture]]:
    """Yield `(k, picture)` for the samples k in `[first, stop)`, pictures uint8 (height, width, 3).

    Memory does not grow with the film. `threads` for FFmpeg, 0 for as many as it likes. Raises `DataError` where the
    film is damaged, or ends before its declared end.
    """
    step = frame_skip / film.fps
    tolerance = 1 / film.fps / 4
    wanted = _wanted(film, [k * step + tolerance for k in range(first, stop)])
    scaler = VideoReformatter()

    def scaled(frame: av.VideoFrame) -> Picture:
        turns = round(frame.rotation / 90) % 4
        size = (height, width) if turns % 2 else (width, height)
        small = scaler.reformat(frame, *size, "rgb24", interpolation=Interpolation.AREA, threads=1)
        return np.rot90(np.asarray(small.to_ndarray(), np.uint8), turns)

    k, shown, end = first, None, Fraction(0)
    with open_film(film.path) as container:
        for time, length, frame in _frames(container, film, first * step, wanted, threads):
            while shown is not None and k < stop and k * step < time - tolerance:
                yield k, scaled(shown)
                k += 1
            if k >= stop:
                return
            shown, end = frame, time + length
    _check_end(film, end)
    while shown is not None and k < stop:
        yield k, scaled(shown)
        k += 1


def _wanted(film: Film, times: Sequence[Fraction]) -> set[int]:
    """Timestamps of the last picture and of those on the screen at `times`, read from the packets without decoding.

    Of all where they rise in the order of decoding: nothing can be left out without B-frames, and with them such
    timestamps are not the pictures'.
    """
    with open_film(film.path) as container:
        stream = _pictures_of(container)
        stamps = np.array([packet.pts for packet in container.demux(stream) if packet.pts is not None], np.int64)
        base = Fraction(stream.time_base or 0)
    if (np.diff(stamps) > 0).all():
        return set(stamps.tolist())
    stamps.sort()
    bounds = [math.floor((time + film.start) / base) for time in times]
    shown = stamps[np.maximum(np.searchsorted(stamps, bounds, side="right") - 1, 0)]
    return {*shown.tolist(), int(stamps[-1])}


def _frames(
    container: av.container.InputContainer, film: Film, start: Fraction, wanted: set[int], threads: int
) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
    """Decoded frames with time and duration in seconds, from the keyframe before `start` on.

    Those that are not wanted are left out where no other refers to them: half of a film with B-frames.
    """
    stream = _pictures_of(container)
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    base = Fraction(stream.time_base or 0)
    if start > SEEK_BACK_SECONDS:
        goal = start - SEEK_BACK_SECONDS
        container.seek(int((goal + film.start) / base), stream=stream, backward=True)
    for frame in _decoded(container, stream, wanted):
        if frame.pts is None:
            continue
        time = frame.pts * base - film.start
        if frame.is_corrupt and time >= start:
            raise DataError(
                f"{film.path} is damaged at {float(time):.2f} s", remedy="copy the film again, or re-encode it"
            )
        yield time, _frame_seconds(frame, base, film), frame


def _decoded(container: av.container.InputContainer, stream: Any, wanted: set[int]) -> Iterator[Any]:
    for packet in container.demux(stream):
        needed = packet.pts is None or packet.pts in wanted
        stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        yield from packet.decode()


def _frame_seconds(frame: Any, base: Fraction, film: Film) -> Fraction:
    duration = getattr(frame, "duration", None)
    return Fraction(duration) * base if duration else 1 / film.fps


def _check_end(film: Film, end: Fraction) -> None:
    missing = film.duration - end
    if missing > max(MISSING_SECONDS, 2 / film.fps):
        raise DataError(
            f"{film.path} is truncated: it says it lasts {float(film.duration):.2f} s, and its pictures end at "
            f"{float(end):.2f} s",
            remedy="copy the film again",
        )
