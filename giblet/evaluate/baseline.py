"""The baseline that everybody in the field would try first: banded ridge regression from the stimulus to each voxel.

Banded ridge (Nunez-Elizalde, Huth and Gallant 2019) as `himalaya` solves it (Dupré la Tour et al. 2022): one linear
kernel a band, and for each voxel weights of the bands and regularisation, chosen by cross-validation over contiguous
blocks of time. A few minutes of film are too few to choose for each voxel on its own, so what is good for the voxels
that can be predicted at all counts beside the voxel's own score (docs/decisions/060-baseline.md). Features are
convolved with the haemodynamic response and filtered within each run exactly as the BOLD was, since a regressor that
keeps the drifts which the BOLD has lost is handicapped.

Everything that is fitted sees training and validation TRs only. Training the model uses validation TRs too, to stop in
time; the baseline has no such need, so it may fit on them, which makes it stronger rather than weaker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from himalaya.kernel_ridge import MultipleKernelRidgeCV, generate_dirichlet_samples
from himalaya.scoring import l2_neg_loss
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
ALPHAS = np.logspace(0, 3, 5)
FOLDS = 4
RANDOM_BAND_WEIGHTS = 12
COMMON_WEIGHT = 0.5
"""How much the leading voxels' mean score counts beside a voxel's own when hyperparameters are chosen."""
LEADING_SHARE = 0.1
SMALLEST_BAND_WEIGHT = 1e-6
"""In place of 0, whose logarithm himalaya takes."""


@dataclass(frozen=True)
class BandedRidge:
    """A fitted baseline: `designs` (T, D_band) of the fitted TRs, and `scales` that make their kernels comparable."""

    bands: tuple[str, ...]
    model: MultipleKernelRidgeCV
    designs: tuple[FloatArray, ...]
    scales: tuple[float, ...]

    @property
    def band_weights(self) -> NDArray[np.float64]:
        """How much each band's kernel weighs for each voxel, (bands, V); columns sum to 1."""
        weights = np.exp(np.asarray(self.model.deltas_, dtype=np.float64))
        return np.asarray(weights / weights.sum(axis=0))

    def predict(self, designs: Mapping[str, FloatArray]) -> FloatArray:
        """BOLD (T,V) from designs (T, D_band)."""
        kernels = np.stack(
            [
                designs[band] @ fitted.T * scale
                for band, fitted, scale in zip(self.bands, self.designs, self.scales, strict=True)
            ]
        )
        return np.asarray(self.model.predict(kernels.astype(np.float32)), dtype=np.float32)


def fit_banded_ridge(
    designs: Mapping[str, FloatArray],
    bold: FloatArray,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    *,
    random_band_weights: int = RANDOM_BAND_WEIGHTS,
    seed: int = 0,
) -> BandedRidge:
    """Fit BOLD (T,V) from `designs` (T, D_band), choosing hyperparameters on `folds` of (fit rows, score rows).

    Bands that never vary are left out.
    """
    bands = tuple(band for band, design in designs.items() if float(np.square(design).sum()) > 0.0)
    fitted = tuple(np.ascontiguousarray(designs[band], dtype=np.float32) for band in bands)
    kernels = [design @ design.T for design in fitted]
    scales = tuple(float(len(kernel) / np.trace(kernel)) for kernel in kernels)
    scaled = np.stack([kernel * scale for kernel, scale in zip(kernels, scales, strict=True)]).astype(np.float32)
    targets = np.ascontiguousarray(bold, dtype=np.float32)
    weights = band_weight_candidates(len(bands), random_band_weights, seed)
    first = _solve(scaled, targets, folds, weights[:1], l2_neg_loss)
    gain = first.cv_scores_[0] + targets.var(axis=0)
    leading = np.argsort(gain)[-max(1, round(LEADING_SHARE * len(gain))) :]
    model = _solve(scaled, targets, folds, weights, common_score(leading))
    return BandedRidge(bands, model, fitted, scales)


def common_score(leading: NDArray[np.int64]) -> Callable[[FloatArray, FloatArray], FloatArray]:
    """A score for himalaya: each target's negative squared error, plus `COMMON_WEIGHT` times the leading targets' mean.

    The scorer takes (T,V) and (alphas,T,V) of all targets at once, and returns (alphas,V).
    """

    def score(true: FloatArray, predicted: FloatArray) -> FloatArray:
        own = np.asarray(l2_neg_loss(true, predicted))
        return np.asarray(own + COMMON_WEIGHT * own[..., leading].mean(axis=-1, keepdims=True), dtype=np.float32)

    return score


def _solve(
    kernels: FloatArray,
    bold: FloatArray,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    weights: NDArray[np.float32],
    score: Callable[[FloatArray, FloatArray], FloatArray],
) -> MultipleKernelRidgeCV:
    model = MultipleKernelRidgeCV(
        kernels="precomputed",
        solver="random_search",
        solver_params={
            "n_iter": weights,
            "alphas": ALPHAS,
            # One regularisation at a time and all voxels at once: bounded memory, and the scorer sees every voxel.
            "n_alphas_batch": 1,
            "score_func": score,
            "progress_bar": False,
        },
        fit_intercept=True,
        cv=list(folds),
    )
    return model.fit(kernels, bold)


def band_weight_candidates(bands: int, random: int, seed: int) -> NDArray[np.float32]:
    """Weights of the bands to try, (candidates, bands): all alike, each alone, and random ones on the simplex."""
    even = np.full((1, bands), 1.0 / bands)
    if bands == 1:
        return even.astype(np.float32)
    drawn = generate_dirichlet_samples(random, bands, concentration=[0.3, 1.0], random_state=seed)
    weights = np.concatenate([even, np.eye(bands), np.asarray(drawn)]).clip(min=SMALLEST_BAND_WEIGHT)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def contiguous_folds(
    blocks: NDArray[np.integer], times: NDArray[np.integer], folds: int, gap_trs: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut rows into `folds` contiguous stretches; each is scored by a fit on the rows at least `gap_trs` away.

    `blocks` (T,) is each row's presentation, `times` (T,) its TR there; rows of different presentations are never near.
    """
    order = np.arange(len(blocks))
    result = []
    for scored in np.array_split(order, folds):
        near = np.zeros(len(order), dtype=bool)
        for block in np.unique(blocks[scored]):
            mine = scored[blocks[scored] == block]
            first, last = times[mine].min(), times[mine].max()
            near |= (blocks == block) & (times > first - gap_trs) & (times < last + gap_trs)
        result.append((order[~near], scored))
    return result
