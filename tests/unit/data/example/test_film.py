"""The film: cut without changing it, and fetched only when it is what it should be."""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from giblet.data.example import film
from giblet.errors import DataError, DependencyError
from tests.support.example_film import FRAMES_PER_SECOND, SAMPLE_RATE_HZ, frame_numbers, sound_of, write_film


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "made.mp4")


def test_parts_tile_the_film_and_are_about_equal(made: Path) -> None:
    parts = film.plan_parts(made, 3)
    assert parts[0].start_seconds == 0
    assert parts[-1].stop_seconds == pytest.approx(12)
    for before, after in itertools.pairwise(parts):
        assert before.stop_seconds == after.start_seconds
    assert [part.duration_seconds for part in parts] == pytest.approx([4, 4, 4], abs=0.5)


def test_minutes_take_the_beginning(made: Path) -> None:
    parts = film.plan_parts(made, 2, minutes=0.1)
    assert parts[-1].stop_seconds == pytest.approx(6, abs=0.5)


def test_every_frame_of_the_film_is_in_exactly_one_part_at_its_own_time(made: Path, tmp_path: Path) -> None:
    seen = []
    for index, part in enumerate(film.plan_parts(made, 3)):
        film.cut_film(made, part, tmp_path / f"{index}.mp4")
        for time, number in frame_numbers(tmp_path / f"{index}.mp4"):
            assert time + part.start_seconds == pytest.approx(number / FRAMES_PER_SECOND, abs=1e-3)
            seen.append(number)
    assert seen == list(range(12 * FRAMES_PER_SECOND))


def test_the_sound_of_a_part_is_the_films_to_the_sample(made: Path, tmp_path: Path) -> None:
    whole = sound_of(made)
    for index, part in enumerate(film.plan_parts(made, 3)):
        film.cut_film(made, part, tmp_path / f"{index}.mp4")
        cut = sound_of(tmp_path / f"{index}.mp4")
        start = round(part.start_seconds * SAMPLE_RATE_HZ)
        length = min(len(cut), len(whole) - start)
        assert length >= (part.duration_seconds - 0.03) * SAMPLE_RATE_HZ
        np.testing.assert_allclose(
            cut[:length], whole[start : start + length], atol=0.015
        )  # AAC noise bands are random


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no sound"):
        film.plan_parts(write_film(tmp_path / "mute.mp4", 4, sound=False), 2)


def test_a_film_with_too_few_keyframes_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keyframe every few seconds"):
        film.plan_parts(write_film(tmp_path / "long.mp4", 4, keyframe_every=1000), 3)


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(DataError, match="no film"):
        film.plan_parts(tmp_path / "text.mp4", 3)
    with pytest.raises(DataError, match="there is no film"):
        film.plan_parts(tmp_path / "none.mp4", 3)


def _package(path: Path, content: bytes) -> Path:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr(film.FILM_MEMBER, content)
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(film.ARCHIVE_MEMBER)
        entry.size = len(zipped.getvalue())
        tar.addfile(entry, io.BytesIO(zipped.getvalue()))
    return path


def test_the_film_is_taken_out_of_the_package(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    package = _package(tmp_path / "package.tar.gz", content)
    film.extract_film(package, tmp_path / "film.mp4", film_sha256=hashlib.sha256(content).hexdigest())
    assert (tmp_path / "film.mp4").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "package.tar.gz"]


def test_another_film_in_the_package_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    package = _package(tmp_path / "package.tar.gz", b"another film")
    with pytest.raises(DataError, match="SHA-256"):
        film.extract_film(package, tmp_path / "film.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["package.tar.gz"]


def test_a_truncated_package_is_refused(tmp_path: Path) -> None:
    package = _package(tmp_path / "package.tar.gz", np.random.default_rng(0).bytes(100_000))
    package.write_bytes(package.read_bytes()[:50_000])
    with pytest.raises(DataError, match="damaged"):
        film.extract_film(package, tmp_path / "film.mp4")


def test_without_a_network_the_error_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DependencyError, match="--film PATH"):
        film.obtain_film(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_copy_in_the_cache_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / film.FILM_NAME).write_bytes(b"half a film")
    with pytest.raises(DependencyError):
        film.obtain_film(tmp_path)
