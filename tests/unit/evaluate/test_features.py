"""The baseline's features against plain numpy, and that codes are names and masked frames are nothing."""

from pathlib import Path

import numpy as np
import pytest

from giblet.evaluate import features
from tests.support.prepared import make_prepared


def test_pooling_is_the_mean_of_each_cell():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 18, 32, 3), dtype=np.uint8)
    pooled = features.pool_frames(frames)
    expected = frames.reshape(2, 3, 9, 2, 16, 2, 3).astype(float).mean(axis=(3, 5)) / 255
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)


def test_pooling_of_sizes_that_do_not_divide_keeps_the_overall_mean_of_equal_frames():
    assert features.pool_frames(np.full((1, 1, 20, 23, 3), 51, np.uint8)) == pytest.approx(0.2)
    assert features.pool_frames(np.full((1, 1, 4, 6, 3), 51, np.uint8)).shape == (1, 1, 4, 6, 3)


def test_masked_frames_do_not_count():
    frames = np.random.default_rng(0).random((2, 3, 1, 1, 3)).astype(np.float32)
    mask = np.array([[True, True, False], [True, True, True]])
    mean = features.masked_mean(frames, mask)
    np.testing.assert_allclose(mean[0], frames[0, :2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(mean[1], frames[1].mean(axis=0), rtol=1e-6)
    assert not features.masked_mean(frames, np.zeros((2, 3), bool)).any()


def test_motion_is_the_change_between_frames_across_trs():
    levels = np.array([0.1, 0.2, 0.5, 0.5, 0.9, 0.4], dtype=np.float32)
    frames = np.broadcast_to(levels.reshape(3, 2, 1, 1, 1), (3, 2, 1, 1, 3))
    moved = features.motion(frames, np.ones((3, 2), bool), None)[:, 0]
    np.testing.assert_allclose(moved, [0.1 / 2, 0.3 / 2, 0.9 / 2], rtol=1e-5)
    later = features.motion(frames[1:], np.ones((2, 2), bool), frames[0, -1])[:, 0]
    np.testing.assert_allclose(later, moved[1:], rtol=1e-6)


def test_histograms_of_codes():
    codes = np.array([[[5, 5, 7, 9], [1, 2, 3, 1]]], dtype=np.int16)
    mask = np.array([[True, True, True, False]])
    histogram = (features.code_histograms(codes, mask) ** 2).reshape(2, 1024)
    assert histogram[0, 5] == pytest.approx(2 / 3)
    assert histogram[0, 7] == pytest.approx(1 / 3)
    assert histogram[0, 9] == 0
    assert histogram.sum(axis=1) == pytest.approx([1, 1])


def test_codes_are_names_renaming_them_changes_no_kernel():
    generator = np.random.default_rng(0)
    codes, mask = generator.integers(0, 1024, (6, 2, 30)), np.ones((6, 30), bool)
    renamed = generator.permutation(1024)[codes]
    first, second = (features.code_histograms(c, mask) for c in (codes, renamed))
    np.testing.assert_allclose(first @ first.T, second @ second.T, rtol=1e-5)


def test_bands_of_a_presentation_do_not_depend_on_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    presentation = make_prepared(tmp_path / "d", trs=(40,), subjects=(3,), validation_trs=4, gap_trs=4).presentations[0]
    whole = features.presentation_features(presentation)
    monkeypatch.setattr(features, "CHUNK_TRS", 7)
    parts = features.presentation_features(presentation)
    assert tuple(whole) == features.BANDS
    for band in features.BANDS:
        assert len(whole[band]) == 40
        np.testing.assert_allclose(parts[band], whole[band], rtol=1e-5, atol=1e-7)
