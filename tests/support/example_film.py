"""A made film whose every frame says its number and whose sound says the time, and the rest a small example needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FRAMES_PER_SECOND = 24
SAMPLE_RATE_HZ = 44100
_BITS = 12


def write_film(path: Path, seconds: int = 12, *, sound: bool = True, keyframe_every: int = 12) -> Path:
    """H.264 with B-frames and AAC: frame n shows n in black and white bars; second s sounds at 300 + 150 s Hz."""
    with av.open(path, "w") as out:
        video = out.add_stream(
            "libx264", rate=FRAMES_PER_SECOND, options={"crf": "16", "preset": "ultrafast", "bf": "2"}
        )
        video.width, video.height, video.pix_fmt = 96, 54, "yuv420p"
        video.codec_context.gop_size = keyframe_every
        audio = out.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono") if sound else None
        for number in range(seconds * FRAMES_PER_SECOND):
            frame = av.VideoFrame.from_ndarray(_numbered(number), format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            wave = tone(seconds)
            for start in range(0, len(wave), 1024):
                piece = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.pts = SAMPLE_RATE_HZ, start
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
    return path


def tone(seconds: int) -> NDArray[np.float32]:
    """The film's sound."""
    time = np.arange(seconds * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    hertz = 300 + 150 * np.floor(time)
    return (0.4 * np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE_HZ)).astype(np.float32)


def _numbered(number: int) -> NDArray[np.uint8]:
    image = np.zeros((54, 96, 3), np.uint8)
    for bit in range(_BITS):
        if number >> bit & 1:
            image[:, bit * 8 : bit * 8 + 8] = 255
    return image


def frame_numbers(path: Path) -> list[tuple[float, int]]:
    """(time, number shown) of every frame of a film made here."""
    shown = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            light = frame.to_ndarray(format="gray")[10:44].mean(axis=0)
            number = sum(1 << bit for bit in range(_BITS) if light[bit * 8 + 2 : bit * 8 + 6].mean() > 128)
            shown.append((frame.time, number))
    return shown


def sound_of(path: Path) -> NDArray[np.float32]:
    """All samples of a film, mono."""
    with av.open(path) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def write_table(path: Path, seconds: int = 12) -> Path:
    """An annotation table with one sentence a second."""
    rows = [f"{second}\t1\tSecond number {second} of thing {second % 4} passes." for second in range(seconds)]
    path.write_text("\n".join(["onset\tduration\ttext", *rows]) + "\n")
    return path


def hashed_words(sentences: list[str]) -> NDArray[np.float32]:
    """A stand-in for a sentence model: one pseudo-random direction a word, summed."""
    vectors = np.zeros((len(sentences), 16), np.float32)
    for row, sentence in enumerate(sentences):
        for word in sentence.split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
            vectors[row] += np.random.default_rng(seed).standard_normal(16).astype(np.float32)
    return vectors
