"""Per-voxel correlation against scipy, and its sums against the plain formula."""

import numpy as np
import pytest
import scipy.stats

from giblet.evaluate.correlation import TimeSums, bootstrap_weights, correlation, stretches_of


def series(trs: int = 90, voxels: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    bold = generator.normal(5.0, 2.0, (trs, voxels)).astype(np.float32)
    return (0.4 * bold + generator.normal(size=bold.shape)).astype(np.float32), bold


def test_equals_scipy_voxel_by_voxel():
    prediction, bold = series()
    expected = [scipy.stats.pearsonr(prediction[:, v], bold[:, v]).statistic for v in range(bold.shape[1])]
    np.testing.assert_allclose(correlation(prediction, bold), expected, rtol=1e-6)


def test_more_voxels_than_a_chunk(monkeypatch: pytest.MonkeyPatch):
    prediction, bold = series(voxels=23)
    whole = correlation(prediction, bold)
    monkeypatch.setattr("giblet.evaluate.correlation.VOXEL_CHUNK", 5)
    np.testing.assert_allclose(correlation(prediction, bold), whole, rtol=1e-12)


def test_is_over_time_and_not_across_voxels():
    """A prediction that knows each voxel's mean and nothing of time correlates across voxels, but scores nothing."""
    generator = np.random.default_rng(3)
    means = generator.normal(0, 10, 500)
    bold = means + generator.normal(size=(120, 500))
    prediction = means + generator.normal(size=(120, 500))
    assert scipy.stats.pearsonr(prediction[0], bold[0]).statistic > 0.9
    assert abs(correlation(prediction, bold).mean()) < 0.02


def test_blocks_are_centred_one_by_one():
    """An offset between runs that both series share is no prediction."""
    generator = np.random.default_rng(1)
    blocks = np.repeat([0, 1], 60)
    offset = np.where(blocks == 0, -5.0, 5.0)[:, None]
    prediction, bold = generator.normal(size=(2, 120, 300)) + offset
    assert correlation(prediction, bold).mean() > 0.9
    assert abs(correlation(prediction, bold, blocks).mean()) < 0.02
    first = np.concatenate([prediction[:60] - prediction[:60].mean(0), prediction[60:] - prediction[60:].mean(0)])
    second = np.concatenate([bold[:60] - bold[:60].mean(0), bold[60:] - bold[60:].mean(0)])
    expected = [scipy.stats.pearsonr(first[:, v], second[:, v]).statistic for v in range(300)]
    np.testing.assert_allclose(correlation(prediction, bold, blocks), expected, atol=1e-12)


def test_constant_and_non_finite_voxels_have_no_correlation():
    prediction, bold = series()
    bold[:, 1] = 3.7
    prediction[:, 2] = -0.1
    bold[4, 3] = np.nan
    prediction[5, 4] = np.inf
    r = correlation(prediction, bold)
    assert np.isnan(r[1:5]).all()
    assert np.isfinite(r[[0, 5, 6]]).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="TRs, voxels"):
        correlation(np.zeros((3, 2)), np.zeros((3, 4)))


def test_stretches_cover_blocks_without_crossing_them():
    blocks = np.repeat([0, 1, 2], [50, 7, 33])
    stretches = stretches_of(blocks, 10)
    assert (np.diff(stretches) >= 0).all()
    assert set(stretches) == set(range(stretches.max() + 1))
    for stretch in range(stretches.max() + 1):
        assert len(set(blocks[stretches == stretch])) == 1
        assert 5 <= (stretches == stretch).sum() <= 15


def test_bootstrap_of_sums_equals_bootstrap_of_data():
    """Weighting the sums is the same as repeating the rows of the centred series."""
    prediction, bold = series(trs=60)
    blocks = np.zeros(60, dtype=int)
    stretches = stretches_of(blocks, 10)
    sums = TimeSums.of(prediction, bold, blocks, stretches)
    weights = bootstrap_weights(stretches.max() + 1, 3, seed=0)
    assert (weights.sum(axis=1) == 6).all()
    x, y = (a.astype(np.float64) - a.astype(np.float64).mean(axis=0) for a in (prediction, bold))
    rows = np.concatenate([np.flatnonzero(stretches == k) for k in range(6) for _ in range(int(weights[1, k]))])
    expected = (x[rows] * y[rows]).sum(0) / np.sqrt((x[rows] ** 2).sum(0) * (y[rows] ** 2).sum(0))
    np.testing.assert_allclose(sums.correlation(weights)[1], expected, rtol=1e-9)
    np.testing.assert_allclose(sums.correlation(), correlation(prediction, bold), rtol=1e-12)
