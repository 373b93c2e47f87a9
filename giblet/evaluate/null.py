"""What chance gives: correlations with the prediction shifted in time against the BOLD, and what is significant.

A circular shift within a run breaks the tie between stimulus and brain and keeps everything else: the autocorrelation
of both series, their distribution, and the likeness of neighbouring voxels. Shifts of less than `minimum_shift_trs`
in either direction are left out, since there the series still overlap through the haemodynamic lag.

A run of T TRs has fewer than T different shifts, too few for a small p-value voxel by voxel. So each correlation is
divided by the root mean square of its voxel's correlations at shifts that are at least `minimum_shift_trs` away from
its own (and from 0), mixed with that of all voxels, and the observed one is ranked among those of all voxels together:
a pooled permutation test, as in Tusher, Tibshirani and Chu (2001). Without the distance, a large shifted value would be
divided by its equally large neighbours while the observed one is not, and the test would find too much. Multiple
testing: Benjamini and Hochberg (1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.stats
from numpy.typing import NDArray

from giblet.evaluate.correlation import FloatArray, TimeSums, centre_in_blocks

VOXEL_CHUNK = 4096
OWN_SHARE = 0.5
"""Of a voxel's own mean square in its scale; the rest is the mean over voxels, since one run's shifts estimate the own
one so coarsely that true correlations would drown in the tails that this gives the null."""


@dataclass(frozen=True)
class ShiftNull:
    """The circular-shift test of each voxel.

    `p` (V,) is one-sided, NaN where there is no correlation or no allowed shift; `mean_r` (K,) is the mean over
    voxels of each of the K shifts: the score that chance gives.
    """

    p: NDArray[np.float64]
    mean_r: NDArray[np.float64]

    @property
    def shifts(self) -> int:
        """How many shifts were tried."""
        return len(self.mean_r)


def allowed_shifts(trs: int, minimum_shift_trs: int) -> NDArray[np.int64]:
    """Circular shifts of a block of `trs` TRs that are far from 0, or none where the block is too short to be tested.

    At least one other allowed shift must be far from each of them: `trs` > 4 `minimum_shift_trs` - 2.
    """
    if trs <= 4 * minimum_shift_trs - 2:
        return np.zeros(0, dtype=np.int64)
    return np.arange(minimum_shift_trs, trs - minimum_shift_trs + 1, dtype=np.int64)


def draw_shifts(lengths: list[int], minimum_shift_trs: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Shifts (K, blocks) in TRs: all there are for a single block, else `draws` random combinations.

    (0, blocks) when a block is too short.
    """
    choices = [allowed_shifts(length, minimum_shift_trs) for length in lengths]
    if any(len(choice) == 0 for choice in choices):
        return np.zeros((0, len(lengths)), dtype=np.int64)
    if len(choices) == 1:
        return choices[0][:, None]
    generator = np.random.default_rng(seed)
    return np.stack([generator.choice(choice, size=draws) for choice in choices], axis=1)


def circular_shift_test(
    prediction: FloatArray,
    bold: FloatArray,
    blocks: NDArray[np.integer],
    *,
    minimum_shift_trs: int,
    draws: int = 250,
    seed: int = 0,
) -> ShiftNull:
    """Test r > 0 of each column of `prediction` against `bold`, both (T,V), by shifts within each block of `blocks`.

    `draws` is how many combinations of shifts are tried where there are several blocks. All p are NaN if a block is
    too short for `minimum_shift_trs`.
    """
    voxels = bold.shape[1]
    lengths = [int(np.count_nonzero(blocks == block)) for block in np.unique(blocks)]
    shifts = draw_shifts(lengths, minimum_shift_trs, draws, seed)
    if len(shifts) == 0:
        return ShiftNull(np.full(voxels, np.nan), np.zeros(0))
    observed = np.full(voxels, np.nan)
    null = np.full((len(shifts), voxels), np.nan, dtype=np.float32)
    total = np.zeros(len(shifts))
    for start in range(0, voxels, VOXEL_CHUNK):
        columns = slice(start, start + VOXEL_CHUNK)
        r, scale = _correlations(prediction[:, columns], bold[:, columns], blocks, shifts, minimum_shift_trs)
        observed[columns] = r[0] / scale[0]
        null[:, columns] = r[1:] / scale[1:]
        total += np.nansum(r[1:], axis=1)
    known = np.isfinite(observed) & np.isfinite(null).all(axis=0)
    p = np.full(voxels, np.nan)
    if not known.any():
        return ShiftNull(p, np.full(len(shifts), np.nan))
    pooled = np.sort(null[:, known], axis=None)
    at_least = len(pooled) - np.searchsorted(pooled, observed[known].astype(np.float32), side="left")
    p[known] = (at_least + 1.0) / (len(pooled) + 1.0)
    return ShiftNull(p, total / np.count_nonzero(known))


def _correlations(
    prediction: FloatArray,
    bold: FloatArray,
    blocks: NDArray[np.integer],
    shifts: NDArray[np.int64],
    minimum_shift_trs: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r (K+1,V) unshifted and at each of `shifts` (K, blocks), and the root mean square of r far from each."""
    norms = TimeSums.of(prediction, bold, blocks, np.zeros(len(blocks), dtype=np.int64))
    every = np.concatenate([np.zeros((1, shifts.shape[1]), dtype=np.int64), shifts])
    r = np.zeros((len(every), bold.shape[1]))
    squares = np.zeros_like(r)
    for column, block in enumerate(np.unique(blocks)):
        rows = blocks == block
        products = circular_products(prediction[rows], bold[rows])
        far = _far(len(products), minimum_shift_trs)
        mean_squares = (far @ products**2) / far.sum(axis=1, keepdims=True)
        r += products[every[:, column]]
        squares += mean_squares[every[:, column]]
    with np.errstate(invalid="ignore", divide="ignore"):
        power = norms.xx * norms.yy
        own = squares / power
        usual = np.nanmean(own, axis=1, keepdims=True) if np.isfinite(own).any() else own
        return r / np.sqrt(power), np.sqrt(OWN_SHARE * own + (1.0 - OWN_SHARE) * usual)


def circular_products(prediction: FloatArray, bold: FloatArray) -> NDArray[np.float64]:
    """Sum over t of prediction[t - s] · bold[t], circularly and centred, for s = 0…T-1: (T,V), by FFT."""
    usable = np.isfinite(prediction).all(axis=0) & np.isfinite(bold).all(axis=0)
    one = np.zeros(len(bold), dtype=np.int64)
    x = centre_in_blocks(np.where(usable, prediction, 0.0), one)
    y = centre_in_blocks(np.where(usable, bold, 0.0), one)
    spectrum = np.conj(scipy.fft.rfft(x, axis=0)) * scipy.fft.rfft(y, axis=0)
    return np.asarray(scipy.fft.irfft(spectrum, n=len(x), axis=0))


def _far(trs: int, minimum_shift_trs: int) -> NDArray[np.float64]:
    """(T,T): 1 where the second shift is an allowed one and far from the first."""
    shifts = np.arange(trs)
    distance = np.abs(shifts[:, None] - shifts[None, :])
    distance = np.minimum(distance, trs - distance)
    allowed = np.isin(shifts, allowed_shifts(trs, minimum_shift_trs))
    return np.asarray((distance >= minimum_shift_trs) & allowed[None, :], dtype=np.float64)


def false_discovery_rate(p: NDArray[np.floating]) -> NDArray[np.float64]:
    """Benjamini-Hochberg q-values of `p` (V,) over the voxels that have one; NaN stays NaN."""
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known], method="bh")
    return q
