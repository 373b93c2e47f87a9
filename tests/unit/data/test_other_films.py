"""Films as the world makes them: other codecs, containers, rates, sizes, clocks and sounds, written by ffmpeg."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest

from giblet.data import video
from giblet.data.sound import SAMPLE_RATE_HZ, film_frames, film_sound
from giblet.data.video import probe, sample_pictures
from tests.support.media import grey, make_film

SECONDS, SKIP = 3, 4
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", "-g", "12", "-bf", "3"]
CORNER = "color=navy:size=64x48:rate=10:duration=2,drawbox=x=0:y=0:w=32:h=16:color=white:t=fill"
AAC = ["-c:a", "aac"]
FAITHFUL = ["-c:v", "ffv1", "-c:a", "pcm_s16le"]

FILMS: dict[str, tuple[str, list[str], Fraction]] = {
    "H.264 with B-frames": (".mp4", [*X264, *AAC], Fraction(24)),
    "H.264 in AVI, with B-frames": (".avi", [*X264, "-c:a", "mp3"], Fraction(25)),
    "MPEG-4 in AVI, with B-frames": (".avi", ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2", "-c:a", "mp3"], Fraction(25)),
    "H.264 in Matroska": (".mkv", [*X264, "-c:a", "flac"], Fraction(24000, 1001)),
    "VP9 in WebM": (
        ".webm",
        ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"],
        Fraction(25),
    ),
    "MPEG-2 program stream": (
        ".mpg", ["-c:v", "mpeg2video", "-q:v", "2", "-bf", "2", "-c:a", "mp2"], Fraction(30000, 1001),
    ),
    "MPEG transport stream": (".ts", [*X264, *AAC], Fraction(25)),
    "Windows Media": (".wmv", ["-c:v", "wmv2", "-q:v", "2", "-c:a", "wmav2"], Fraction(25)),
    "Flash": (".flv", [*X264, *AAC, "-ar", "44100"], Fraction(25)),
    "ten bits, 4:2:2": (".mov", ["-c:v", "prores", "-pix_fmt", "yuv422p10le", "-c:a", "pcm_s16le"], Fraction(25)),
    "fifty frames a second": (".mp4", [*X264, *AAC], Fraction(50)),
    "sixty frames a second": (".mkv", [*FAITHFUL], Fraction(60000, 1001)),
    "853 by 480": (".mp4", [*X264, "-vf", "scale=853:480", "-pix_fmt", "yuv444p", *AAC], Fraction(24)),
    "mono": (".mp4", [*X264, *AAC, "-ac", "1", "-ar", "44100"], Fraction(24)),
    "5.1": (".mp4", [*X264, *AAC, "-ac", "6"], Fraction(24)),
    "a clock that starts at 7.5 s": (".mkv", [*FAITHFUL, "-output_ts_offset", "7.5"], Fraction(24)),
    "sound that ends early": (".mkv", [*FAITHFUL, "-af", "atrim=0:1"], Fraction(24)),
    "sound that goes on longer": (".mkv", [*FAITHFUL, "-af", "apad=pad_dur=4"], Fraction(24)),
    "sound that begins late": (".mkv", [*FAITHFUL, "-af", "asetpts=PTS+1/TB"], Fraction(24)),
}  # fmt: skip


def ffmpeg(*arguments: str | Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def pictures(path: Path, *, first: int = 0) -> list[np.ndarray]:
    film = probe(path)
    stop = math.ceil(film.duration * film.fps / SKIP)
    return [p for _, p in sample_pictures(film, frame_skip=SKIP, first=first, stop=stop, height=6, width=8, threads=2)]


@pytest.mark.parametrize("name", FILMS)
def test_its_pictures_and_its_sound_are_where_its_clock_says(name: str, tmp_path: Path) -> None:
    suffix, arguments, fps = FILMS[name]
    ffmpeg("-i", make_film(tmp_path / "source.mkv", seconds=SECONDS, fps=fps, codec="ffv1"), *arguments,
           tmp_path / f"film{suffix}")  # fmt: skip
    film = probe(tmp_path / f"film{suffix}")
    assert abs(film.fps / fps - 1) < 1e-6
    assert abs(film.duration - SECONDS) <= Fraction(1, 10)
    seen = pictures(film.path)
    assert len(seen) in (math.ceil(SECONDS * fps / SKIP), math.ceil(SECONDS * fps / SKIP) + 1)
    levels = [
        round(float(picture.mean()) - grey(k * SKIP)) for k, picture in enumerate(seen[: int(SECONDS * fps / SKIP)])
    ]
    assert max(map(abs, levels)) <= 6, levels
    again = pictures(film.path, first=len(seen) // 2)
    assert np.abs(np.stack(again) - np.stack(seen[len(seen) // 2 :]).astype(int)).max() <= 1
    sound = np.concatenate([*film_sound(film)])
    wanted = {"sound that ends early": 1, "sound that goes on longer": 7, "sound that begins late": 4}.get(
        name, SECONDS
    )
    assert abs(len(sound) / SAMPLE_RATE_HZ - wanted) < 0.15
    assert film_frames(film) == math.ceil(film.duration * 75)
    loud = [float(np.abs(second).mean()) for second in np.array_split(sound[: wanted * SAMPLE_RATE_HZ], wanted)]
    assert [level > 0.02 for level in loud] == [
        {"sound that goes on longer": s < 3, "sound that begins late": s >= 1}.get(name, True) for s in range(wanted)
    ]


PYRAMID = ["-c:v", "libx264", "-crf", "12", "-bf", "3", "-g", "24"]
WITH_B_FRAMES: dict[str, tuple[str, list[str]]] = {
    "no pyramid": (".mp4", [*PYRAMID, "-x264-params", "b-pyramid=none"]),
    "pyramid": (".mkv", [*PYRAMID, "-x264-params", "b-pyramid=normal:ref=4"]),
    "open groups of pictures": (".ts", [*PYRAMID, "-x264-params", "open-gop=1"]),
    "two fields a picture": (".mp4", [*PYRAMID, "-flags", "+ildct+ilme"]),
    "no timestamps": (".avi", [*PYRAMID]),
    "HEVC": (".mp4", ["-c:v", "libx265", "-x265-params", "log-level=error:bframes=4"]),
    "MPEG-2": (".mpg", ["-c:v", "mpeg2video", "-q:v", "2", "-bf", "2"]),
    "MPEG-4": (".mp4", ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"]),
    "VP9": (".webm", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"]),
}


@pytest.mark.parametrize("name", WITH_B_FRAMES)
def test_leaving_out_what_no_picture_needs_changes_no_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, arguments = WITH_B_FRAMES[name]
    path = tmp_path / f"film{suffix}"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=64x48:rate=24:duration={SECONDS}", "-f", "lavfi", "-i",
           f"sine=duration={SECONDS}", *arguments, "-pix_fmt", "yuv420p", path)  # fmt: skip
    seen, began_later = pictures(path), pictures(path, first=11)
    monkeypatch.setattr(video, "_decoded", lambda container, stream, _wanted: container.decode(stream))
    assert np.array_equal(seen, pictures(path))
    assert np.array_equal(began_later, pictures(path, first=11))


def test_nothing_is_left_out_where_timestamps_are_those_of_decoding(tmp_path: Path) -> None:
    """A bare stream in a container that was given no times: they say nothing of when a picture is shown."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=64x48:rate=24:duration={SECONDS}", *PYRAMID, tmp_path / "bare.264")
    ffmpeg("-i", tmp_path / "bare.264", "-c", "copy", tmp_path / "film.mp4")
    with av.open(str(tmp_path / "film.mp4")) as container:
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert len(stamps) == SECONDS * 24
    assert video._wanted(probe(tmp_path / "film.mp4"), [Fraction(1)]) == set(stamps)


def test_pictures_that_nothing_needs_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "film.mp4"
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=64x48:rate=24:duration={SECONDS}", *PYRAMID, path)
    decoded: list[av.VideoFrame] = []
    real = video._decoded

    def counted(*arguments: Any) -> Iterator[Any]:
        for frame in real(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video, "_decoded", counted)
    assert len(pictures(path)) == SECONDS * 24 / SKIP
    assert len(decoded) < 0.75 * SECONDS * 24


def test_a_film_taken_with_the_camera_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    """As ffmpeg turns it: its own upright copy of the film is the reference."""
    ffmpeg("-f", "lavfi", "-i", CORNER, "-f", "lavfi", "-i", "sine=duration=2",
           *X264, *AAC, "-pix_fmt", "yuv420p", tmp_path / "flat.mp4")  # fmt: skip
    for turn in (90, 180, 270):
        ffmpeg("-display_rotation", turn, "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
        ffmpeg("-i", tmp_path / "turned.mp4", *FAITHFUL, tmp_path / "upright.mkv")
        turned, upright = pictures(tmp_path / "turned.mp4"), pictures(tmp_path / "upright.mkv")
        flat = pictures(tmp_path / "flat.mp4")
        assert len(turned) == len(upright) == 5
        assert np.abs(np.stack(turned).astype(int) - np.stack(upright)).mean() < 8
        assert np.abs(np.stack(turned).astype(int) - np.stack(flat)).mean() > 20


def test_a_cover_is_not_the_film(tmp_path: Path) -> None:
    source = make_film(tmp_path / "source.mkv", seconds=SECONDS, codec="ffv1")
    ffmpeg("-f", "lavfi", "-i", "color=red:size=640x480", "-frames:v", "1", tmp_path / "cover.png")
    ffmpeg("-i", source, "-i", tmp_path / "cover.png", "-map", "1:v", "-map", "0:v", "-map", "0:a", "-c:v:0", "png",
           "-disposition:v:0", "attached_pic", "-c:v:1", "libx264", *AAC, tmp_path / "film.mp4")  # fmt: skip
    film = probe(tmp_path / "film.mp4")
    assert (film.fps, round(film.duration)) == (24, SECONDS)
    assert abs(pictures(film.path)[3].mean() - grey(3 * SKIP)) < 6
