"""Films made with PyAV whose frames can be told apart by their brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SAMPLE_RATE_HZ = 48_000


def grey(frame: int) -> int:
    """The brightness of a frame: neighbours differ by 16, and 13 frames pass before one repeats."""
    return 24 + 16 * (frame % 13)


def make_film(
    path: Path,
    *,
    seconds: float = 6.0,
    fps: Fraction | int = 24,
    size: tuple[int, int] = (64, 48),
    sound: bool = True,
    brightness: Callable[[int], int] = grey,
    times_ms: Sequence[int] | None = None,
    codec: str = "mpeg4",
    seed: int = 0,
) -> Path:
    """Write a film of solid grey frames. `times_ms` makes its frame rate vary: each frame's time in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    count = len(times_ms) if times_ms is not None else round(seconds * fps)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=Fraction(fps))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.bit_rate = 4_000_000
        if times_ms is not None:
            video.codec_context.time_base = Fraction(1, 1000)
            video.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="stereo") if sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), brightness(index), np.uint8), "rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts = index if times_ms is None else times_ms[index]
            frame.time_base = Fraction(1, 1) / fps if times_ms is None else Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            _write_sound(container, audio, seconds, seed)
    return path


def _write_sound(container, stream, seconds: float, seed: int) -> None:
    wave = make_sound(seconds, seed=seed)
    for start in range(0, len(wave), 1024):
        piece = np.stack([wave[start : start + 1024]] * 2)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, start, Fraction(1, SAMPLE_RATE_HZ)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make_sound(seconds: float, *, rate: int = SAMPLE_RATE_HZ, seed: int = 0) -> np.ndarray:
    """A swelling chirp with noise, float32 (samples,)."""
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(times))
    wave = 0.4 * np.sin(2 * np.pi * (200 + 300 * times) * times) * (0.6 + 0.4 * np.sin(times)) + 0.05 * noise
    return wave.astype(np.float32)
