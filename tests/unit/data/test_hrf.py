"""The haemodynamic response."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import gamma

from giblet.data.hrf import canonical_kernel, convolve_causal, kernel_taps


def _density(t):
    return gamma.pdf(t, 6) - gamma.pdf(t, 16) / 6


@pytest.mark.parametrize("tr", [0.5, 0.72, 1.0, 1.5, 2.0, 3.0])
def test_defect_1_an_impulse_peaks_five_to_six_seconds_later_and_never_before(tr):
    signal = np.zeros((80, 2))
    signal[30] = 1
    response = convolve_causal(signal, canonical_kernel(tr, 24))
    assert response.shape == signal.shape
    assert not response[:30].any()
    peak = int(np.argmax(response[:, 0])) - 30
    assert peak * tr <= 5.0 + 1e-9 < (peak + 1) * tr + tr / 2
    fine = convolve_causal(np.eye(1, 800)[0], canonical_kernel(0.05, 24))
    assert np.argmax(fine) * 0.05 == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("tr", [0.8, 1.5, 2.0])
def test_defect_5_a_tap_is_the_mean_over_its_bin(tr):
    kernel = canonical_kernel(tr, 24)
    means = np.array([quad(_density, k * tr, (k + 1) * tr)[0] for k in range(kernel_taps(tr, 24))])
    assert np.allclose(kernel, means / means.sum(), atol=1e-9)
    assert kernel.sum() == pytest.approx(1)


def test_convolution_is_numpy_s_cut_to_the_run():
    rng = np.random.default_rng(0)
    signal, kernel = rng.normal(size=(40, 3)), canonical_kernel(1.5)
    wanted = np.stack([np.convolve(column, kernel)[:40] for column in signal.T], axis=1)
    assert np.allclose(convolve_causal(signal, kernel), wanted)


@pytest.mark.parametrize(("tr", "taps"), [(1.5, 16), (2.0, 12), (0.1, 240), (5.0, 5)])
def test_taps_cover_the_duration(tr, taps):
    assert kernel_taps(tr, 24) == len(canonical_kernel(tr, 24)) == taps
