"""Pictures by time."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from giblet.data.video import probe, sample_pictures
from giblet.errors import DataError
from tests.support.media import grey, make_film


def _pictures(path, *, skip=1, first=0, stop=None, height=6, width=8):
    film = probe(path)
    stop = int(film.duration * film.fps / skip) if stop is None else stop
    return list(sample_pictures(film, frame_skip=skip, first=first, stop=stop, height=height, width=width, threads=1))


def _frames_seen(pictures):
    """Which frame each picture is, from its brightness (modulo 13)."""
    levels = np.array([picture.mean() for _, picture in pictures])
    return np.rint((levels - 24) / 16).astype(int)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("fps", [24, Fraction(30000, 1001)])
def test_every_nth_frame_and_no_other(tmp_path, suffix, fps):
    path = make_film(tmp_path / f"film{suffix}", seconds=3, fps=fps)
    pictures = _pictures(path, skip=4, stop=17)
    assert [k for k, _ in pictures] == list(range(17))
    assert _frames_seen(pictures).tolist() == [(4 * k) % 13 for k in range(17)]
    assert pictures[0][1].shape == (6, 8, 3)
    assert pictures[0][1].dtype == np.uint8


def test_defect_24_the_frame_rate_is_the_film_s_own(tmp_path):
    for fps in (12, 25, Fraction(24000, 1001)):
        assert probe(make_film(tmp_path / f"{float(fps)}.mp4", seconds=2, fps=fps)).fps == fps


def test_a_variable_frame_rate_is_followed_by_time(tmp_path):
    times = [0, 40, 80, 500, 1000, 1040, 1500, 1960, 2000, 2040, 2900, 2960]
    path = make_film(tmp_path / "vfr.mkv", seconds=3, times_ms=times)
    film = probe(path)
    step = 1 / film.fps
    pictures = _pictures(path, stop=int(Fraction(29, 10) / step))
    slack = float(step) / 4 * 1000
    wanted = [max(i for i, t in enumerate(times) if t <= k * float(step) * 1000 + slack) for k, _ in pictures]
    assert _frames_seen(pictures).tolist() == wanted
    assert len(set(wanted)) > 5


def test_resuming_in_the_middle_gives_the_same_pictures(tmp_path):
    path = make_film(tmp_path / "film.mp4", seconds=8, codec="libx264")
    whole = _pictures(path, skip=3)
    for first in (1, 20, 45):
        assert all(
            a == b and np.array_equal(p, q)
            for (a, p), (b, q) in zip(_pictures(path, skip=3, first=first), whole[first:], strict=True)
        )


def test_scaling_averages_areas(tmp_path):
    path = tmp_path / "noise.mkv"
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(image[::2, ::2], 2, 0), 2, 1)  # colour is kept at half resolution
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    picture = _pictures(path, stop=1, height=12, width=16)[0][1]
    mean = image.reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(picture - mean).mean() < 2
    assert np.abs(picture - mean).max() < 8


def test_a_truncated_film_is_refused(tmp_path):
    whole = make_film(tmp_path / "film.mkv", seconds=6)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.mkv"):
        _pictures(cut, stop=144)
    headless = tmp_path / "cut.mp4"
    content = make_film(tmp_path / "film.mp4", seconds=6).read_bytes()
    headless.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.mp4 cannot be read as a film"):
        probe(headless)


def test_a_film_whose_heading_stands_first_is_found_truncated_too(tmp_path):
    source = make_film(tmp_path / "film.mp4", seconds=6)
    front = tmp_path / "front.mp4"
    with av.open(str(source)) as old, av.open(str(front), "w", options={"movflags": "faststart"}) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(front.read_bytes()[: front.stat().st_size * 6 // 10])
    assert probe(cut).duration == 6
    with pytest.raises(DataError, match=r"cut\.mp4"):
        _pictures(cut)


def test_what_is_no_film_is_refused(tmp_path):
    text = tmp_path / "film.mp4"
    text.write_text("not a film")
    with pytest.raises(DataError, match="cannot be read as a film"):
        probe(text)
    with pytest.raises(DataError, match="cannot be read as a film"):
        probe(tmp_path / "absent.mp4")


def test_the_film_s_own_frames_are_told_apart():
    assert len({grey(i) for i in range(13)}) == 13
