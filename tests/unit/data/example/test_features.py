"""What the features see, hear and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from giblet.data.example import features
from giblet.data.example.annotations import Segment
from giblet.errors import DependencyError
from tests.support.example_film import hashed_words, write_film


class Count:
    """A progress bar that counts."""

    done = 0.0

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def stimulus(tmp_path_factory: pytest.TempPathFactory) -> features.Stimulus:
    path = write_film(tmp_path_factory.mktemp("film") / "made.mp4", 6)
    return features.Stimulus(path, 6.0, [Segment(0, 3, "one two three"), Segment(3, 3, "four five six")])


def _moving_bars(direction: int) -> np.ndarray:
    """Vertical bars drifting at 2 Hz, as pictures of half a field, (F, pixels)."""
    y, x = np.mgrid[0 : features.HEIGHT, 0 : features.WIDTH // 2]
    ticks = np.arange(60)[:, None, None] / 12
    bars = 0.5 + 0.5 * np.cos(2 * np.pi * (x / 12 - direction * 2.0 * ticks)) + 0 * y
    return bars.reshape(60, -1).astype(np.float32)


def test_motion_energy_tells_directions_apart() -> None:
    filters = features._spatial_gabors()
    energies = {
        direction: features._motion_energy((_moving_bars(direction) @ filters).reshape(60, -1, 2))[5:-5].mean(axis=0)
        for direction in (1, -1, 0)
    }
    by_frequency = {d: e.reshape(len(features._TEMPORAL_HZ), -1).max(axis=1) for d, e in energies.items()}
    forward, backward = features._TEMPORAL_HZ.index(2.0), features._TEMPORAL_HZ.index(-2.0)
    assert (
        by_frequency[1][forward] > 2 * by_frequency[1][backward]
        or by_frequency[1][backward] > 2 * by_frequency[1][forward]
    )
    preferred = int(by_frequency[1].argmax())
    opposite = int(by_frequency[-1].argmax())
    assert {preferred, opposite} == {forward, backward}
    assert by_frequency[0][[forward, backward]].max() < 0.05 * by_frequency[1][preferred]


def test_a_flat_picture_has_no_motion_energy() -> None:
    flat = np.full((30, features.HEIGHT * features.WIDTH // 2), 0.7, np.float32)
    energy = features._motion_energy((flat @ features._spatial_gabors()).reshape(30, -1, 2))
    assert np.abs(energy).max() < 1e-6


def test_the_sound_is_heard_in_its_band_and_in_its_second(stimulus: features.Stimulus) -> None:
    heard = features._hear(stimulus.path, stimulus.bins, Count())[:, : features._MEL_BANDS]
    loudest = heard.argmax(axis=1)
    bins_a_second = round(1 / features.BIN_SECONDS)
    by_second = [np.median(loudest[second * bins_a_second : (second + 1) * bins_a_second]) for second in range(6)]
    assert by_second == sorted(by_second)
    assert len(set(by_second)) >= 4
    change = np.abs(np.diff(heard, axis=0)).sum(axis=1)
    assert (change.argsort()[-3:] + 1).tolist() == pytest.approx(
        [round((change.argsort()[-3:][i] + 1) / bins_a_second) * bins_a_second for i in range(3)], abs=1
    )


def test_frames_are_shown_from_their_time_until_the_next(stimulus: features.Stimulus) -> None:
    light = [float(shown[:, :4].mean()) for _, shown in features._frames_on_clock(stimulus.path, 48)]
    # Bit 0 is the left-most bar: frame n of 24 a second shows at tick n / 2, so ticks show even frames, whose bit is 0.
    assert max(light) < 0.2
    second_bit = [float(shown[5:20, 5:7].mean()) > 0.5 for _, shown in features._frames_on_clock(stimulus.path, 48)]
    assert second_bit == [bool((2 * tick) >> 1 & 1) for tick in range(48)]


def test_words_follow_their_sentences_and_novelty_their_beginnings(stimulus: features.Stimulus) -> None:
    words, novelty = features._read([stimulus], hashed_words)
    assert np.allclose(words[0][:12], words[0][0])
    assert np.allclose(words[0][12:], words[0][12])
    assert not np.allclose(words[0][0], words[0][12])
    assert np.flatnonzero(novelty[0][:, 0]).tolist() == [0, 1, 2, 3, 12, 13, 14, 15]


def test_all_families_are_standard_and_know_nothingness(stimulus: features.Stimulus) -> None:
    bar = Count()
    families = features.film_features([stimulus, stimulus], hashed_words, bar)
    assert {family.name for family in families} == {
        "layout_left", "layout_right", "motion_left", "motion_right", "sound", "words", "events",
    }  # fmt: skip
    for family in families:
        assert [part.shape for part in family.values] == [(24, len(family.blank))] * 2
        everything = np.concatenate(family.values)
        assert np.isfinite(everything).all()
        np.testing.assert_allclose(everything.mean(axis=0), 0, atol=1e-3)
        assert everything.std(axis=0).max() == pytest.approx(1, abs=1e-3)
    assert bar.done == pytest.approx(4 * 6.0, abs=0.1)


def test_a_missing_sentence_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="needs a package"):
        features.sentence_model("package:no_such_package_anywhere")
    with pytest.raises(DependencyError, match="no sentence model at"):
        features.sentence_model(str(tmp_path / "none"))
