"""Banded ridge on simulated linear data: beats chance, finds the band that drives a voxel, and copes with odd input."""

import numpy as np
import pytest
import scipy.stats
from sklearn.kernel_ridge import KernelRidge

from giblet.data.hrf import canonical_kernel, convolve_causal
from giblet.evaluate import baseline
from giblet.evaluate.correlation import correlation
from giblet.evaluate.haemodynamics import respond, response_kernels

TRAIN, TEST = 200, 100


def simulate(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Bands `picture` and `sound`: voxels 0-39 follow the first, 40-79 the second, 80-119 neither."""
    generator = np.random.default_rng(seed)
    bands = {"picture": 30, "sound": 20}
    designs = {
        name: convolve_causal(generator.normal(size=(TRAIN + TEST, count)), canonical_kernel(1.5)).astype(np.float32)
        for name, count in bands.items()
    }
    signal = np.zeros((TRAIN + TEST, 120))
    signal[:, :40] = designs["picture"] @ generator.normal(size=(30, 40))
    signal[:, 40:80] = designs["sound"] @ generator.normal(size=(20, 40))
    signal[:, :80] /= signal[:, :80].std(axis=0)
    return designs, (signal + generator.normal(size=signal.shape)).astype(np.float32)


def fit(designs: dict[str, np.ndarray], bold: np.ndarray) -> baseline.BandedRidge:
    rows = np.arange(TRAIN)
    folds = baseline.contiguous_folds(np.zeros(TRAIN, int), rows, 4, 10)
    return baseline.fit_banded_ridge({name: d[:TRAIN] for name, d in designs.items()}, bold[:TRAIN], folds)


def test_beats_chance_and_finds_the_band():
    designs, bold = simulate()
    fitted = fit(designs, bold)
    r = correlation(fitted.predict({name: d[TRAIN:] for name, d in designs.items()}), bold[TRAIN:])
    assert r[:80].mean() > 0.5
    assert abs(np.nanmean(r[80:])) < 0.1
    picture = fitted.band_weights[fitted.bands.index("picture")]
    assert np.median(picture[:40]) > 0.6
    assert np.median(picture[40:80]) < 0.4
    np.testing.assert_allclose(fitted.band_weights.sum(axis=0), 1, rtol=1e-6)


def test_bands_beat_one_kernel_for_all():
    """What banding is for: an uninformative band of large variance must not drown the informative one."""
    designs, bold = simulate(1)
    designs["noise"] = np.random.default_rng(2).normal(size=(TRAIN + TEST, 2000)).astype(np.float32)
    test = {name: d[TRAIN:] for name, d in designs.items()}
    banded = correlation(fit(designs, bold).predict(test), bold[TRAIN:])[:80].mean()
    together = {"all": np.concatenate([d / np.linalg.norm(d[:TRAIN]) for d in designs.values()], axis=1)}
    single = correlation(fit(together, bold).predict({"all": together["all"][TRAIN:]}), bold[TRAIN:])[:80].mean()
    assert banded > single + 0.03


def test_one_band_equals_scikit_learn_at_the_chosen_regularisation():
    designs, bold = simulate(3)
    designs = {"picture": designs["picture"]}
    fitted = fit(designs, bold)
    predicted = fitted.predict({"picture": designs["picture"][TRAIN:]})
    voxel = 5
    alpha = float(1.0 / np.exp(fitted.model.deltas_[:, voxel]).sum())
    train = designs["picture"][:TRAIN].astype(np.float64) * np.sqrt(fitted.scales[0])
    test = designs["picture"][TRAIN:].astype(np.float64) * np.sqrt(fitted.scales[0])
    centre, level = train.mean(axis=0), bold[:TRAIN, voxel].mean()
    reference = KernelRidge(alpha=alpha, kernel="linear").fit(train - centre, bold[:TRAIN, voxel] - level)
    np.testing.assert_allclose(predicted[:, voxel], reference.predict(test - centre) + level, atol=2e-3)


def test_constant_voxels_and_dead_bands_are_no_trouble():
    designs, bold = simulate()
    bold[:, 3] = 0.0
    designs["silence"] = np.zeros((TRAIN + TEST, 4), np.float32)
    fitted = fit(designs, bold)
    assert fitted.bands == ("picture", "sound")
    predicted = fitted.predict({name: d[TRAIN:] for name, d in designs.items()})
    assert np.isfinite(predicted).all()
    assert np.isnan(correlation(predicted, bold[TRAIN:])[3])


def test_folds_are_contiguous_and_keep_their_distance():
    blocks, times = np.repeat([0, 2], [50, 70]), np.concatenate([np.arange(50), np.arange(10, 80)])
    folds = baseline.contiguous_folds(blocks, times, 4, 12)
    assert sorted(np.concatenate([scored for _, scored in folds])) == list(range(120))
    for fitted, scored in folds:
        assert (np.diff(scored) == 1).all()
        for row in fitted:
            same = scored[blocks[scored] == blocks[row]]
            assert not len(same) or np.abs(times[same] - times[row]).min() >= 12


def test_candidates_lie_on_the_simplex_and_hold_each_band_alone():
    weights = baseline.band_weight_candidates(3, 10, seed=0)
    assert weights.shape == (14, 3)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[1:4], np.eye(3), atol=1e-4)
    assert (weights > 0).all()
    assert baseline.band_weight_candidates(1, 10, seed=0).tolist() == [[1.0]]


def test_response_is_causal_and_peaks_at_five_seconds():
    kernels = response_kernels(1.5)
    np.testing.assert_allclose(kernels.sum(axis=1), 1, rtol=1e-5)
    impulse = np.zeros((40, 1), np.float32)
    impulse[10] = 1.0
    responses = respond(impulse, kernels)
    assert not responses[:10].any()
    fine = response_kernels(0.1)
    peaks = fine.argmax(axis=1) * 0.1
    assert peaks[1] == pytest.approx(5.05, abs=0.15)
    assert np.diff(peaks) == pytest.approx([1.0, 1.0], abs=0.11)


def test_canonical_response_agrees_with_the_models_own():
    """nilearn's SPM response, averaged over the stimulus's TR too, is the model's kernel smoothed by one TR."""
    own = np.convolve(canonical_kernel(1.5, 30.0), [0.5, 0.5])[:20]
    assert scipy.stats.pearsonr(response_kernels(1.5)[1], own).statistic > 0.995


def test_what_serves_the_leading_voxels_counts_for_all(monkeypatch: pytest.MonkeyPatch):
    """Voxels too noisy to choose for themselves take the weights that the predictable ones agree on."""
    generator = np.random.default_rng(5)
    designs, bold = simulate(5)
    signal = designs["picture"] @ generator.normal(size=(30, 300)).astype(np.float32)
    noisy = 0.35 * signal / signal.std(axis=0) + generator.normal(size=signal.shape)
    bold = np.concatenate([bold[:, :40], noisy], axis=1).astype(np.float32)
    test = {name: d[TRAIN:] for name, d in designs.items()}
    common = correlation(fit(designs, bold).predict(test), bold[TRAIN:])[40:].mean()
    monkeypatch.setattr(baseline, "COMMON_WEIGHT", 0.0)
    alone = correlation(fit(designs, bold).predict(test), bold[TRAIN:])[40:].mean()
    assert common > alone + 0.01
