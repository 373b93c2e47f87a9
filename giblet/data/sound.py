"""A film's sound as 24 kHz mono, streamed through PyAV on the film's own clock. It needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler

from giblet.data.video import Film, open_film
from giblet.errors import DataError

Waveform = npt.NDArray[np.float32]
SAMPLE_RATE_HZ = 24_000
HOP_SAMPLES = 320
"""EnCodec's: one frame of codes, 1/75 s."""

GAP_SECONDS = 0.05
"""A jump of the sound's timestamps beyond this is filled with silence."""


def film_frames(film: Film) -> int:
    """Codec frames of a film, from its first picture to its last."""
    return math.ceil(film.duration * SAMPLE_RATE_HZ / HOP_SAMPLES)


def film_sound(film: Film) -> Iterator[Waveform]:
    """A film's first sound track as 24 kHz mono chunks, on the film's clock (0 at the first picture).

    Raises `DataError` where the film has no sound or it is damaged.
    """
    if not film.has_sound:
        raise DataError(f"{film.path} has no sound", remedy="use a film with a sound track; a silent one would do")
    with open_film(film.path) as container:
        position, zero = 0, float(film.start)
        for piece in _resampled(container.decode(container.streams.audio[0])):
            samples = _samples(piece)
            at = position
            if piece.pts is not None and piece.time_base is not None:
                at = round((float(piece.pts * piece.time_base) - zero) * SAMPLE_RATE_HZ)
            position, chunk = _aligned(samples, at, position)
            yield chunk


def resample(mono: Waveform, sample_rate_hz: int) -> Iterator[Waveform]:
    """A mono waveform of any rate as chunks at 24 kHz."""

    def frames() -> Iterator[av.AudioFrame]:
        for start in range(0, len(mono), sample_rate_hz):
            piece = mono[None, start : start + sample_rate_hz]
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="mono")
            frame.sample_rate = sample_rate_hz
            yield frame

    yield from map(_samples, _resampled(frames()))


def _resampled(frames: Iterable[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    """24 kHz mono frames; a track may change its layout or rate on the way, as broadcasts do."""
    resampler, before = _resampler(), None
    for frame in frames:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if before is not None and kind != before:
            yield from resampler.resample(None)
            resampler = _resampler()
        before = kind
        yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _resampler() -> AudioResampler:
    return AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)


def _samples(frame: av.AudioFrame) -> Waveform:
    return np.asarray(frame.to_ndarray(), np.float32).reshape(-1)


def _aligned(samples: Waveform, at: int, position: int) -> tuple[int, Waveform]:
    """Samples that should begin at `at` where `position` are there already: padded with silence, or cut."""
    late = at - position
    if late > GAP_SECONDS * SAMPLE_RATE_HZ or (position == 0 and late > 0):
        samples = np.concatenate([np.zeros(late, np.float32), samples])
    elif position == 0 and late < 0:
        samples = samples[-late:]
    return position + len(samples), samples
