"""The simulated brains: where features act, how blood follows, and what of it can be known.

For voxel v of one subject, at time t of a run:

    u_v(t) = Σ_f e_f(v) Σ_k w_fk(v) x_fk(t)         x: a family's features; w: spatially smooth Gaussian random weights,
                                                    part shared by all subjects, part private; e: where family f acts
    n_v(t) = tanh(u_v(t)) - tanh(u_v(blank))        neural response, compressive, zero while nothing is shown
    s_v    = a_v · mean over a TR of (h_v * n_v)    true signal in percent; h_v: causal double gamma, peak 4.5 to 6.5 s
    y_v    = b_v (1 + (s_v + AR(1) noise + drift) / 100)

Ceiling: with P the projection that removes constant, line and cosines below the high-pass cut-off from one run,

    c_v = sqrt( Σ_runs |P s_v|² / Σ_runs (|P s_v|² + E |P noise_v|²) ),      E |P noise|² = σ² trace(P Σ_AR(1))

is the correlation that a perfect model, one that knows s_v, reaches on average with the filtered scan. Drift lies in
what P removes. The amplitude a_v is set so that c_v² is the map of explainable variance drawn for the subject.
Letters: V voxels, T TRs, B bins of the feature clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import gammaln

from giblet.data.example.features import BIN_SECONDS, Family

Floats: TypeAlias = NDArray[np.floating[Any]]
Bools: TypeAlias = NDArray[np.bool_]

HIGH_PASS_HZ = 0.01
HRF_PEAKS_SECONDS = np.arange(4.5, 6.51, 0.25)
HRF_SECONDS = 32.0
MAXIMUM_EXPLAINABLE = 0.72
SHARED = 0.6
SMOOTHNESS_FWHM_MM = 14.0
_RESPONSIVE_ABOVE = 0.15
_NULL_SHARE = 0.15
_JITTER_MM = 3.0

# Centre and standard deviation in MNI mm, and weight. The left half of the picture acts on the right hemisphere.
_V1 = ((10.0, -88.0, 2.0), (18.0, 21.0, 18.0), 1.0)
_VENTRAL = ((26.0, -72.0, -10.0), (15.0, 20.0, 11.0), 0.7)
_MT = ((45.0, -69.0, 4.0), (15.0, 15.0, 15.0), 1.0)
_DORSAL = ((24.0, -76.0, 30.0), (17.0, 17.0, 17.0), 0.8)
Blob: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float], float]


def _mirrored(blob: Blob) -> Blob:
    (x, y, z), width, weight = blob
    return (-x, y, z), width, weight


PLACES: dict[str, tuple[Blob, ...]] = {
    "layout_left": (_V1, _VENTRAL),
    "layout_right": (_mirrored(_V1), _mirrored(_VENTRAL)),
    "motion_left": (_MT, _DORSAL, (_V1[0], _V1[1], 0.6)),
    "motion_right": (_mirrored(_MT), _mirrored(_DORSAL), _mirrored((_V1[0], _V1[1], 0.6))),
    "sound": (
        ((54.0, -20.0, 6.0), (15.0, 27.0, 14.0), 1.0),
        ((-54.0, -22.0, 6.0), (15.0, 27.0, 14.0), 1.0),
    ),
    "words": (
        ((-56.0, -42.0, 2.0), (17.0, 22.0, 15.0), 1.0),
        ((-48.0, 22.0, 14.0), (17.0, 20.0, 18.0), 0.9),
        ((-52.0, 4.0, -22.0), (15.0, 17.0, 14.0), 0.8),
        ((-46.0, -64.0, 30.0), (17.0, 17.0, 17.0), 0.8),
        ((56.0, -38.0, 2.0), (15.0, 20.0, 14.0), 0.55),
        ((0.0, 52.0, 20.0), (14.0, 17.0, 20.0), 0.5),
    ),
    "events": (
        ((0.0, -58.0, 36.0), (18.0, 20.0, 20.0), 0.8),
        ((26.0, -24.0, -12.0), (11.0, 15.0, 11.0), 0.6),
        ((-26.0, -24.0, -12.0), (11.0, 15.0, 11.0), 0.6),
    ),
}


@dataclass(frozen=True, slots=True)
class Space:
    """The voxel grid: `brain` and `grey` bool (X, Y, Z), `affine` (4, 4) to MNI mm, `mm` (V, 3) of the grey voxels."""

    brain: Bools
    grey: Bools
    affine: NDArray[np.float64]
    resolution_mm: float

    @property
    def mm(self) -> NDArray[np.float64]:
        """MNI coordinates of the grey voxels, (V, 3)."""
        voxels = np.argwhere(self.grey)
        return np.asarray(voxels @ self.affine[:3, :3].T + self.affine[:3, 3])


@dataclass(frozen=True, slots=True)
class Subject:
    """What makes one subject; arrays over the V grey voxels."""

    weights: dict[str, Floats]
    """family → float32 (K, V), times the family's envelope; columns of unresponsive voxels are zero"""
    explainable: Floats
    """c_v² of all runs together; exactly 0 in null voxels"""
    hrf_peak_seconds: Floats
    noise_percent: Floats
    noise_correlation: Floats
    baseline: Floats


def mni_space(resolution_mm: int) -> Space:
    """Brain and grey matter of the MNI152 template that nilearn carries, at `resolution_mm`."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_mask

    brain, grey = load_mni152_brain_mask(resolution=resolution_mm), load_mni152_gm_mask(resolution=resolution_mm)
    brain_voxels = np.asarray(brain.dataobj) > 0
    return Space(brain_voxels, brain_voxels & (np.asarray(grey.dataobj) > 0), brain.affine, float(resolution_mm))


def draw_subject(space: Space, families: list[Family], subject: int, seed: int) -> Subject:
    """Subject number `subject`: the same however many there are."""
    shared = np.random.default_rng([seed, 1])
    private = np.random.default_rng([seed, 2, subject])
    mm = space.mm

    def mixed() -> Floats:
        common, own = _smooth_field(space, shared), _smooth_field(space, private)
        return np.asarray(np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own)

    envelopes = {family.name: _envelope(mm, PLACES[family.name], private) for family in families}
    total = np.sqrt(sum(envelope**2 for envelope in envelopes.values()))
    explainable = MAXIMUM_EXPLAINABLE * np.clip(total, 0, 1) * (0.35 + 0.65 * _uniform(mixed()))
    explainable[(total < _RESPONSIVE_ABOVE) | (_uniform(mixed()) < _NULL_SHARE)] = 0.0
    weights = {}
    for family in families:
        fields = np.stack([mixed() for _ in range(len(family.blank))])
        weights[family.name] = (fields * envelopes[family.name] * (explainable > 0)).astype(np.float32)
    low, high = HRF_PEAKS_SECONDS[0], HRF_PEAKS_SECONDS[-1]
    peak = low + (high - low) * _uniform(mixed())
    return Subject(
        weights=weights,
        explainable=explainable,
        hrf_peak_seconds=HRF_PEAKS_SECONDS[np.abs(peak[:, None] - HRF_PEAKS_SECONDS).argmin(axis=1)],
        noise_percent=0.8 + 0.5 * _uniform(mixed()),
        noise_correlation=0.2 + 0.35 * _uniform(mixed()),
        baseline=900 + 250 * _uniform(mixed()),
    )


def _smooth_field(space: Space, rng: np.random.Generator) -> Floats:
    """A Gaussian random field of unit variance at the grey voxels, (V,)."""
    sigma = SMOOTHNESS_FWHM_MM / 2.3548 / space.resolution_mm
    field = gaussian_filter(rng.standard_normal(space.grey.shape), sigma, mode="wrap")[space.grey]
    return np.asarray(field / field.std())


def _uniform(field: Floats) -> Floats:
    """A field turned to ranks: uniform in [0, 1], as smooth as it was."""
    return np.asarray(np.argsort(np.argsort(field, kind="stable"), kind="stable") / max(len(field) - 1, 1))


def _envelope(mm: NDArray[np.float64], blobs: tuple[Blob, ...], rng: np.random.Generator) -> Floats:
    """Largest of the blobs' Gaussians at each voxel, each moved by a few mm for this subject, (V,)."""
    envelope = np.zeros(len(mm))
    for centre, width, weight in blobs:
        moved = np.asarray(centre) + rng.normal(0, _JITTER_MM, 3)
        distance = (((mm - moved) / np.asarray(width)) ** 2).sum(axis=1)
        envelope = np.maximum(envelope, weight * np.exp(-distance / 2))
    return envelope


def hrf(seconds: Floats, peak_seconds: float) -> Floats:
    """Double gamma density (Friston et al. 1998: shapes 6 and 16, ratio 1/6), stretched to peak at `peak_seconds`.

    Zero before 0; area 1 over [0, 32 s] up to the sampling.
    """
    unstretched = np.asarray(seconds) * (5.0 / peak_seconds)
    positive = np.maximum(unstretched, 1e-12)

    def gamma(shape: float) -> Floats:
        return np.asarray(np.exp((shape - 1) * np.log(positive) - positive - gammaln(shape)))

    response = np.where(unstretched > 0, gamma(6.0) - gamma(16.0) / 6, 0.0) * (5.0 / peak_seconds)
    return np.asarray(response / (1 - 1 / 6))


def response_matrix(onset_seconds: float, bins: int, trs: int, tr_seconds: float, peak_seconds: float) -> Floats:
    """(T, B): what a unit response in one bin of the film's clock adds to the mean over each TR.

    The kernel is averaged over bin and TR by integrating twice on a fine grid; nothing reaches a TR that ends before
    the bin begins.
    """
    step = 0.01
    grid = np.arange(0, HRF_SECONDS * 1.5, step)
    once = np.concatenate([[0.0], np.cumsum(hrf(grid + step / 2, peak_seconds)) * step])
    twice = np.concatenate([[0.0], np.cumsum((once[1:] + once[:-1]) / 2) * step])
    edges = np.arange(len(twice)) * step

    def area(lag: Floats) -> Floats:
        inside = np.interp(lag, edges, twice)
        return np.where(lag <= 0, 0.0, inside + np.clip(lag - edges[-1], 0, None) * once[-1])

    tr_start = np.arange(trs)[:, None] * tr_seconds
    bin_start = onset_seconds + np.arange(bins)[None, :] * BIN_SECONDS
    start, stop = tr_start - bin_start, tr_start + tr_seconds - bin_start
    inner = area(stop) - area(start) - area(stop - BIN_SECONDS) + area(start - BIN_SECONDS)
    return np.asarray(inner / tr_seconds)


def drift_basis(trs: int, tr_seconds: float, high_pass_hz: float = HIGH_PASS_HZ) -> Floats:
    """(T, K), orthonormal: constant, line, and the cosines below the cut-off (Friston's DCT set, as nilearn has it)."""
    index = np.arange(trs)
    order = int(np.floor(2 * trs * high_pass_hz * tr_seconds))
    cosines = [np.cos(np.pi / trs * (index + 0.5) * k) for k in range(1, order + 1)]
    basis = np.stack([np.ones(trs), np.linspace(-1, 1, trs), *cosines], axis=1)
    return np.asarray(np.linalg.qr(basis)[0])


def remove_drift(series: Floats, basis: Floats) -> Floats:
    """P s for each column of (T, V)."""
    return np.asarray(series - basis @ (basis.T @ series))


def expected_noise_power(correlation: Floats, basis: Floats) -> Floats:
    """trace(P Σ) of AR(1) noise with unit variance and each `correlation`, (V,): T minus Σ_k b_kᵀ Σ b_k."""
    trs = len(basis)
    spectrum = np.fft.rfft(basis, 2 * trs, axis=0)
    autocorrelation = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:trs].sum(axis=1)
    autocorrelation[1:] *= 2
    grid = np.linspace(0, 0.95, 96)
    removed = np.power(grid[:, None], np.arange(trs)[None, :]) @ autocorrelation
    return np.asarray(trs - np.interp(correlation, grid, removed))


def neural_scale(subject: Subject, families: list[Family]) -> Floats:
    """Standard deviation of each voxel's drive over the whole film, (V,); 1 in null voxels."""
    values = np.concatenate([np.concatenate(family.values) for family in families], axis=1)
    covariance = np.cov(values, rowvar=False)
    weights = np.concatenate([subject.weights[family.name] for family in families])
    variance = np.einsum("kv,kv->v", weights, covariance @ weights)
    return np.asarray(np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1.0))


def true_signals(
    subject: Subject, families: list[Family], clocks: list[tuple[float, int]], tr_seconds: float
) -> list[Floats]:
    """Each run's true signal in percent, float32 (T, V). `clocks`: each run's film onset in seconds, and its TRs."""
    scale = neural_scale(subject, families)
    signals = [
        _unscaled_signal(subject, families, run, onset_seconds, trs, tr_seconds, scale)
        for run, (onset_seconds, trs) in enumerate(clocks)
    ]
    power, noise = _powers(subject, signals, tr_seconds)
    ratio = subject.explainable / (1 - subject.explainable)
    total_power, total_noise = np.sum(power, axis=0), np.sum(noise, axis=0)
    amplitude = np.sqrt(ratio * total_noise / np.where(total_power > 0, total_power, 1.0))
    return [signal * amplitude.astype(np.float32) for signal in signals]


def _unscaled_signal(
    subject: Subject,
    families: list[Family],
    run: int,
    onset_seconds: float,
    trs: int,
    tr_seconds: float,
    scale: Floats,
) -> Floats:
    """mean over a TR of h * n with a = 1, float32 (T, V), for the stimulus of run index `run`."""
    values = np.concatenate([family.values[run] for family in families], axis=1)
    blank = np.concatenate([family.blank for family in families])
    weights = np.concatenate([subject.weights[family.name] for family in families]) / scale.astype(np.float32)
    signal = np.zeros((trs, len(scale)), np.float32)
    for peak in HRF_PEAKS_SECONDS:
        voxels = np.flatnonzero((subject.hrf_peak_seconds == peak) & (subject.explainable > 0))
        if len(voxels):
            drive = np.tanh(values @ weights[:, voxels]) - np.tanh(blank @ weights[:, voxels])
            matrix = response_matrix(onset_seconds, len(values), trs, tr_seconds, float(peak))
            signal[:, voxels] = matrix.astype(np.float32) @ drive
    return signal


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best reachable correlations, (V,): over all runs, and within each run."""

    overall: Floats
    by_run: list[Floats]


def ceilings(subject: Subject, signals: list[Floats], tr_seconds: float) -> Ceilings:
    """c_v of the module's docstring for `signals` in percent, over all runs and for each run alone."""
    power, noise = _powers(subject, signals, tr_seconds)
    by_run = [np.sqrt(s / (s + n)) for s, n in zip(power, noise, strict=True)]
    total_power, total_noise = np.sum(power, axis=0), np.sum(noise, axis=0)
    return Ceilings(np.sqrt(total_power / (total_power + total_noise)), by_run)


def _powers(subject: Subject, signals: list[Floats], tr_seconds: float) -> tuple[list[Floats], list[Floats]]:
    """|P s|² and E |P noise|² of each run, each (V,)."""
    power: list[Floats] = []
    noise: list[Floats] = []
    for signal in signals:
        basis = drift_basis(len(signal), tr_seconds)
        power.append((remove_drift(signal, basis) ** 2).sum(axis=0))
        noise.append(subject.noise_percent**2 * expected_noise_power(subject.noise_correlation, basis))
    return power, noise


def ar1_noise(correlation: Floats, trs: int, rng: np.random.Generator) -> Floats:
    """Stationary AR(1) noise of unit variance, float32 (T, V): e_t = φ e_{t-1} + sqrt(1 - φ²) z_t."""
    phi = correlation.astype(np.float32)
    fresh = np.sqrt(1 - phi**2)
    noise = rng.standard_normal((trs, len(phi)), np.float32)
    for t in range(1, trs):
        noise[t] = phi * noise[t - 1] + fresh * noise[t]
    return noise
