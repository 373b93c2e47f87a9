"""The example data set from the real film, where the cache has it (any `giblet example` puts it there)."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from giblet.data.example import film, write_example
from tests.support.example_film import hashed_words


@pytest.fixture(scope="module")
def real_film() -> Path:
    return film.obtain_film()


def _frame(path: Path, seconds: float) -> np.ndarray:
    with av.open(path) as container:
        container.seek(int(seconds * 1e6))
        for frame in container.decode(video=0):
            if frame.time >= seconds - 1e-3:
                return frame.to_ndarray(format="gray")
    raise AssertionError(f"{path} ends before {seconds} s")


def test_the_three_runs_hold_the_whole_film_unchanged(real_film: Path, tmp_path: Path) -> None:
    parts = film.plan_parts(real_film, 3)
    assert parts[-1].stop_seconds == pytest.approx(596.458, abs=0.001)
    for index, part in enumerate(parts):
        film.cut_film(real_film, part, tmp_path / f"{index}.mp4")
        with av.open(tmp_path / f"{index}.mp4") as container:
            assert container.streams.video[0].frames == round(part.duration_seconds * 24)
        for offset in (0.0, 10.0, part.duration_seconds - 1.0):
            np.testing.assert_array_equal(
                _frame(tmp_path / f"{index}.mp4", offset), _frame(real_film, part.start_seconds + offset)
            )


def test_a_minute_of_the_film_becomes_a_data_set(real_film: Path, tmp_path: Path) -> None:
    summary = write_example(
        tmp_path / "example",
        film_path=real_film, minutes=1.0, resolution_mm=8, subjects=1, embed=hashed_words,
    )  # fmt: skip
    assert summary.film_seconds == pytest.approx(60, abs=6)
    assert "Blender Foundation" in (summary.path / "LICENSE").read_text()
    assert len((summary.path / "stimuli" / "task-bigbuckbunny_run-1.tsv").read_text().splitlines()) > 4
