"""The circular-shift test: calibrated on autocorrelated noise, powerful on signal, equal to shifting by hand."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from giblet.evaluate.correlation import correlation
from giblet.evaluate.null import circular_products, circular_shift_test, draw_shifts, false_discovery_rate


def ar1(trs: int, voxels: int, coefficient: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(trs + 50, voxels))
    return scipy.signal.lfilter([1.0], [1.0, -coefficient], noise, axis=0)[50:]


def test_products_equal_shifting_by_hand():
    prediction, bold = ar1(24, 5, 0.5, 0), ar1(24, 5, 0.5, 1)
    products = circular_products(prediction, bold)
    scale = np.sqrt(((prediction - prediction.mean(0)) ** 2).sum(0) * ((bold - bold.mean(0)) ** 2).sum(0))
    for shift in range(24):
        expected = correlation(np.roll(prediction, shift, axis=0), bold)
        np.testing.assert_allclose(products[shift] / scale, expected, atol=1e-12)


@pytest.mark.parametrize("blocks", [np.zeros(134, dtype=int), np.repeat([0, 1], [80, 70])], ids=["one run", "two"])
def test_p_values_of_noise_are_uniform_even_when_autocorrelated(blocks: np.ndarray):
    prediction, bold = ar1(len(blocks), 3000, 0.8, 2), ar1(len(blocks), 3000, 0.6, 3)
    null = circular_shift_test(prediction, bold, blocks, minimum_shift_trs=16)
    for level in (0.5, 0.1, 0.05, 0.01):
        assert 0.4 * level <= np.mean(null.p <= level) <= 1.25 * level, level
    assert abs(null.mean_r.mean()) < 0.01
    naive = scipy.stats.pearsonr(prediction, bold, axis=0, alternative="greater").pvalue
    assert np.mean(naive <= 0.01) > 0.03, "a test that ignores autocorrelation must be seen to fail here"
    assert np.mean(false_discovery_rate(null.p) <= 0.05) < 0.002


def test_finds_signal_and_keeps_the_false_discovery_rate():
    signal = ar1(134, 1000, 0.8, 4)
    prediction = np.concatenate([signal, ar1(134, 3000, 0.8, 5)], axis=1)
    bold = np.concatenate([signal + 1.5 * ar1(134, 1000, 0.5, 6), ar1(134, 3000, 0.6, 7)], axis=1)
    null = circular_shift_test(prediction, bold, np.zeros(134, dtype=int), minimum_shift_trs=16)
    found = false_discovery_rate(null.p) <= 0.05
    assert found[:1000].mean() > 0.8
    assert found[1000:].sum() / found.sum() < 0.10


def test_all_shifts_of_one_run_and_none_of_one_too_short():
    assert list(draw_shifts([50], 10, draws=1000, seed=0)[:, 0]) == list(range(10, 41))
    assert draw_shifts([38], 10, draws=1000, seed=0).shape == (0, 1)
    assert draw_shifts([50, 38], 10, draws=1000, seed=0).shape == (0, 2)
    two = draw_shifts([50, 60], 10, draws=200, seed=0)
    assert two.shape == (200, 2)
    assert two.min() == 10
    assert list(two.max(axis=0)) == [40, 50]


def test_too_short_a_run_is_unknown_and_never_significant():
    null = circular_shift_test(ar1(30, 4, 0.5, 0), ar1(30, 4, 0.5, 1), np.zeros(30, dtype=int), minimum_shift_trs=16)
    assert null.shifts == 0
    assert np.isnan(null.p).all()
    assert np.isnan(false_discovery_rate(null.p)).all()


def test_voxels_without_correlation_have_no_p():
    prediction, bold = ar1(100, 6, 0.5, 0), ar1(100, 6, 0.5, 1)
    bold[:, 2] = 1.0
    prediction[3, 4] = np.nan
    null = circular_shift_test(prediction, bold, np.zeros(100, dtype=int), minimum_shift_trs=16)
    assert np.isnan(null.p[[2, 4]]).all()
    assert np.isfinite(null.p[[0, 1, 3, 5]]).all()
    assert np.isfinite(null.mean_r).all()


def test_false_discovery_rate_equals_scipy_on_the_known_voxels():
    p = np.random.default_rng(0).uniform(size=200) ** 3
    q = false_discovery_rate(np.concatenate([p, [np.nan] * 50]))
    np.testing.assert_allclose(q[:200], scipy.stats.false_discovery_control(p))
    assert np.isnan(q[200:]).all()
    order = np.argsort(p)
    by_hand = np.minimum.accumulate((p[order] * 200 / np.arange(1, 201))[::-1])[::-1]
    np.testing.assert_allclose(q[:200][order], np.minimum(by_hand, 1))
