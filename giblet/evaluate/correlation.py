"""Pearson correlation of predicted with measured BOLD: per voxel, over time, never across voxels within a TR.

Held-out time comes in blocks (a run, or a contiguous stretch of one). Both series are centred within each block, so
that no difference between runs can pass for prediction. The same sums, kept per short stretch of time, give the
bootstrap its confidence intervals without touching the data again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
VOXEL_CHUNK = 4096
RELATIVE_TINY = 1e-10
"""A voxel whose centred sum of squares is below this share of its raw one is constant up to rounding."""


def centre_in_blocks(series: FloatArray, blocks: NDArray[np.integer]) -> NDArray[np.float64]:
    """`series` (T,V) minus its mean over each block; `blocks` (T,) says which block each TR is in."""
    centred = np.asarray(series, dtype=np.float64).copy()
    for block in np.unique(blocks):
        rows = blocks == block
        centred[rows] -= centred[rows].mean(axis=0)
    return centred


def correlation(
    prediction: FloatArray, bold: FloatArray, blocks: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Pearson's r of each column of `prediction` (T,V) with the same column of `bold` (T,V); returns (V,).

    Centred within each block of `blocks` (T,), one block if None. NaN where either series is constant or not finite.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != bold.shape or prediction.ndim != 2:
        raise ValueError(f"prediction {prediction.shape} and BOLD {bold.shape} must both be (TRs, voxels)")
    labels = np.zeros(len(bold), dtype=np.int64) if blocks is None else blocks
    result = np.full(bold.shape[1], np.nan)
    for start in range(0, bold.shape[1], VOXEL_CHUNK):
        columns = slice(start, start + VOXEL_CHUNK)
        sums = TimeSums.of(prediction[:, columns], bold[:, columns], labels, np.zeros(len(labels), dtype=np.int64))
        result[columns] = sums.correlation()
    return result


@dataclass(frozen=True)
class TimeSums:
    """Sums of squares and products of centred series, for each of K stretches of time: enough for any r over them.

    `xx`, `yy`, `xy` are (K,V), where x is the prediction and y the BOLD. NaN marks voxels without a correlation.
    """

    xx: NDArray[np.float64]
    yy: NDArray[np.float64]
    xy: NDArray[np.float64]

    @staticmethod
    def of(
        prediction: FloatArray, bold: FloatArray, blocks: NDArray[np.integer], stretches: NDArray[np.integer]
    ) -> TimeSums:
        """From (T,V) series; `blocks` (T,) for the centring, `stretches` (T,) with labels 0…K-1 for the sums."""
        usable = np.isfinite(prediction).all(axis=0) & np.isfinite(bold).all(axis=0)
        x = centre_in_blocks(np.where(usable, prediction, 0.0), blocks)
        y = centre_in_blocks(np.where(usable, bold, 0.0), blocks)
        usable &= _varies(x, prediction) & _varies(y, bold)
        members = (stretches[None, :] == np.arange(int(stretches.max(initial=0)) + 1)[:, None]).astype(np.float64)
        xx, yy, xy = members @ (x * x), members @ (y * y), members @ (x * y)
        for sums in (xx, yy, xy):
            sums[:, ~usable] = np.nan
        return TimeSums(xx, yy, xy)

    def correlation(self, weights: NDArray[np.floating] | None = None) -> NDArray[np.float64]:
        """r (V,) over all stretches, or (R,V) for `weights` (R,K): how often each stretch counts in each replicate."""
        counts = np.ones((1, len(self.xx))) if weights is None else weights
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (counts @ self.xy) / np.sqrt((counts @ self.xx) * (counts @ self.yy))
        r = np.clip(r, -1.0, 1.0)
        return r[0] if weights is None else r


def _varies(centred: NDArray[np.float64], raw: FloatArray) -> NDArray[np.bool_]:
    raw_squares = (np.nan_to_num(np.asarray(raw, dtype=np.float64), posinf=0.0, neginf=0.0) ** 2).sum(axis=0)
    squares = (centred**2).sum(axis=0)
    return np.asarray((squares > RELATIVE_TINY * raw_squares) & (squares > 0))


def stretches_of(blocks: NDArray[np.integer], trs: int) -> NDArray[np.int64]:
    """Label each TR with a contiguous stretch of about `trs` TRs that never crosses a block: 0…K-1, shape (T,)."""
    labels = np.zeros(len(blocks), dtype=np.int64)
    first = 0
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        count = max(1, round(len(rows) / trs))
        labels[rows] = first + np.arange(len(rows)) * count // len(rows)
        first += count
    return labels


def bootstrap_weights(stretches: int, replicates: int, seed: int) -> NDArray[np.float64]:
    """How often each stretch is drawn when K of K are drawn with replacement: (R,K). Block bootstrap (Künsch 1989)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(stretches, np.full(stretches, 1.0 / stretches), size=replicates).astype(np.float64)
