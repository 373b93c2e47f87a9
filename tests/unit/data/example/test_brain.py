"""The forward model against brute force, and the ceiling against many draws of noise."""

from __future__ import annotations

import numpy as np
import pytest
from nilearn.glm.first_level.design_matrix import create_cosine_drift

from giblet.data.example import brain
from giblet.data.example.features import BIN_SECONDS, Family

TR_SECONDS = 1.5
BINS = 400
CLOCKS = [(6.0, 80), (7.2, 81)]


@pytest.fixture(scope="module")
def space() -> brain.Space:
    return brain.mni_space(8)


@pytest.fixture(scope="module")
def families() -> list[Family]:
    rng = np.random.default_rng(5)
    sizes = {name: 1 if name == "events" else 3 for name in brain.PLACES}
    return [
        Family(
            name,
            [rng.standard_normal((BINS, size)).astype(np.float32) for _ in CLOCKS],
            np.full(size, -0.5, np.float32),
        )
        for name, size in sizes.items()
    ]


@pytest.fixture(scope="module")
def subject(space: brain.Space, families: list[Family]) -> brain.Subject:
    return brain.draw_subject(space, families, 0, seed=1)


@pytest.mark.parametrize("peak_seconds", brain.HRF_PEAKS_SECONDS)
def test_the_response_peaks_where_it_says_and_not_before_zero(peak_seconds: float) -> None:
    seconds = np.arange(-5, 40, 0.01)
    response = brain.hrf(seconds, peak_seconds)
    assert seconds[response.argmax()] == pytest.approx(peak_seconds, abs=0.05)
    assert not response[seconds <= 0].any()
    assert response.sum() * 0.01 == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("onset_seconds", "tr_seconds"), [(6.0, 1.5), (7.2, 2.0)])
def test_the_response_matrix_is_the_convolution_averaged_over_a_tr(onset_seconds: float, tr_seconds: float) -> None:
    rng = np.random.default_rng(0)
    bins, trs, step = 30, 20, 0.005
    drive = rng.standard_normal(bins)
    fine = np.zeros(round(trs * tr_seconds / step))
    at = np.floor((np.arange(len(fine)) * step + step / 2 - onset_seconds) / BIN_SECONDS).astype(int)
    inside = (at >= 0) & (at < bins)
    fine[inside] = drive[at[inside]]
    kernel = brain.hrf(np.arange(0, 48, step) + step / 2, 5.5) * step
    expected = np.convolve(fine, kernel)[: len(fine)].reshape(trs, -1).mean(axis=1)
    found = brain.response_matrix(onset_seconds, bins, trs, tr_seconds, 5.5) @ drive
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_nothing_reaches_a_tr_that_ends_before_the_event() -> None:
    matrix = brain.response_matrix(6.0, BINS, 80, TR_SECONDS, 4.5)
    ends = (np.arange(80) + 1) * TR_SECONDS
    starts = 6.0 + np.arange(BINS) * BIN_SECONDS
    assert not matrix[ends[:, None] <= starts[None, :]].any()


def test_an_event_in_the_film_peaks_five_to_six_seconds_later_on_the_scanners_clock() -> None:
    event_seconds, onset_seconds = 20.0, 7.2
    drive = np.zeros(BINS)
    drive[round(event_seconds / BIN_SECONDS) : round((event_seconds + 1) / BIN_SECONDS)] = 1
    response = brain.response_matrix(onset_seconds, BINS, 120, 0.5, 5.5) @ drive
    peak_seconds = (response.argmax() + 0.5) * 0.5
    assert 5.0 <= peak_seconds - (onset_seconds + event_seconds) <= 6.5


def test_the_drift_basis_spans_nilearns() -> None:
    trs = 140
    nilearns = create_cosine_drift(brain.HIGH_PASS_HZ, np.arange(trs) * TR_SECONDS)
    basis = brain.drift_basis(trs, TR_SECONDS)
    assert basis.shape[1] == nilearns.shape[1] + 1
    np.testing.assert_allclose(brain.remove_drift(nilearns, basis), 0, atol=1e-9)
    np.testing.assert_allclose(brain.remove_drift(np.arange(trs)[:, None] * 1.0, basis), 0, atol=1e-9)


def test_expected_noise_power_is_the_trace() -> None:
    basis = brain.drift_basis(60, TR_SECONDS)
    projection = np.eye(60) - basis @ basis.T
    correlations = np.array([0.0, 0.3, 0.55])
    lags = np.abs(np.subtract.outer(np.arange(60), np.arange(60)))
    expected = [np.trace(projection @ correlation**lags) for correlation in correlations]
    np.testing.assert_allclose(brain.expected_noise_power(correlations, basis), expected, rtol=1e-4)


def test_noise_has_unit_variance_and_its_correlation() -> None:
    noise = brain.ar1_noise(np.array([0.2, 0.5]), 60_000, np.random.default_rng(0))
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.02)
    found = [np.corrcoef(series[1:], series[:-1])[0, 1] for series in noise.T]
    np.testing.assert_allclose(found, [0.2, 0.5], atol=0.02)


def test_the_ceiling_is_what_a_perfect_model_reaches(subject: brain.Subject, families: list[Family]) -> None:
    signals = brain.true_signals(subject, families, CLOCKS, TR_SECONDS)
    ceilings = brain.ceilings(subject, signals, TR_SECONDS)
    bases = [brain.drift_basis(len(signal), TR_SECONDS) for signal in signals]
    truth = np.concatenate([brain.remove_drift(s, basis) for s, basis in zip(signals, bases, strict=True)])
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(30):
        scans = []
        for signal, basis in zip(signals, bases, strict=True):
            noise = subject.noise_percent * brain.ar1_noise(subject.noise_correlation, len(signal), rng)
            drift = basis @ rng.normal(0, 5, (basis.shape[1], signal.shape[1]))
            scans.append(brain.remove_drift(signal + noise + drift, basis))
        scan = np.concatenate(scans)
        norm = np.sqrt((truth**2).sum(axis=0) * (scan**2).sum(axis=0))
        draws.append((truth * scan).sum(axis=0) / np.where(norm > 0, norm, 1))
    found, responsive = np.mean(draws, axis=0), subject.explainable > 0
    assert np.abs(found[responsive] - ceilings.overall[responsive]).max() < 0.06
    assert found[responsive].mean() == pytest.approx(ceilings.overall[responsive].mean(), abs=0.005)
    np.testing.assert_allclose(ceilings.overall, np.sqrt(subject.explainable), atol=1e-4)


def test_null_voxels_have_neither_signal_nor_ceiling(subject: brain.Subject, families: list[Family]) -> None:
    null = subject.explainable == 0
    assert 0.3 < null.mean() < 0.95
    signals = brain.true_signals(subject, families, CLOCKS, TR_SECONDS)
    assert all(not signal[:, null].any() and signal[:, ~null].any(axis=0).all() for signal in signals)
    assert not brain.ceilings(subject, signals, TR_SECONDS).overall[null].any()


def test_ceilings_lie_in_the_stated_range(subject: brain.Subject) -> None:
    ceilings = np.sqrt(subject.explainable[subject.explainable > 0])
    assert np.quantile(ceilings, 0.02) > 0.15
    assert np.quantile(ceilings, 0.98) <= np.sqrt(brain.MAXIMUM_EXPLAINABLE)
    assert 0.35 < np.median(ceilings) < 0.7


def test_the_scan_starts_from_rest(subject: brain.Subject, families: list[Family]) -> None:
    for signal, (onset_seconds, _) in zip(
        brain.true_signals(subject, families, CLOCKS, TR_SECONDS), CLOCKS, strict=True
    ):
        assert not signal[: int(onset_seconds / TR_SECONDS)].any()


def test_features_act_where_they_belong(space: brain.Space, subject: brain.Subject) -> None:
    def centre(name: str) -> np.ndarray:
        strength = np.abs(subject.weights[name]).sum(axis=0)
        return strength @ space.mm / strength.sum()

    assert centre("layout_left")[1] < -60
    assert centre("motion_right")[1] < -55
    assert centre("layout_left")[0] > 5 > -5 > centre("layout_right")[0]
    assert abs(centre("sound")[0]) < 15
    assert -40 < centre("sound")[1] < 0
    assert centre("words")[0] < -15


def test_subjects_share_some_weights_and_own_the_rest(space: brain.Space, families: list[Family]) -> None:
    first, second = (brain.draw_subject(space, families, index, seed=1) for index in (0, 1))
    both = (first.explainable > 0) & (second.explainable > 0)
    pairs = [
        np.corrcoef(a, b)[0, 1]
        for name in ("layout_left", "sound", "words")
        for a, b in zip(first.weights[name][:, both], second.weights[name][:, both], strict=True)
    ]
    assert 0.3 < np.mean(pairs) < 0.85


def test_a_subject_is_the_same_whenever_it_is_drawn(space: brain.Space, families: list[Family]) -> None:
    again = brain.draw_subject(space, families, 0, seed=1)
    other = brain.draw_subject(space, families, 0, seed=2)
    reference = brain.draw_subject(space, families, 0, seed=1)
    np.testing.assert_array_equal(again.weights["words"], reference.weights["words"])
    assert not np.array_equal(other.weights["words"], reference.weights["words"])


@pytest.mark.parametrize(("resolution_mm", "grey_voxels"), [(4, 27_724), (6, 8_494)])
def test_the_mask_is_the_templates_grey_matter(resolution_mm: int, grey_voxels: int) -> None:
    space = brain.mni_space(resolution_mm)
    assert space.grey.sum() == pytest.approx(grey_voxels, rel=0.01)
    assert (space.brain | ~space.grey).all()
    np.testing.assert_allclose(np.abs(np.diag(space.affine)[:3]), resolution_mm)
