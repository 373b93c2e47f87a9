"""The best score that any model could reach, voxel by voxel, from the best source that the data offer.

- `true signal`: simulated data keep the noiseless signal beside the BOLD; its correlation with the BOLD on the held-out
  TRs, after the same filter, is what a perfect model would score there.
- `repeats`: the subject saw the held-out stimulus more than once. If BOLD is signal plus independent noise, two repeats
  correlate with the signal's share of variance rho, and a perfect model with sqrt(rho) (Schoppe et al. 2016).
- `inter-subject`: several subjects with one mask saw it together. A subject's correlation with the mean of the others
  (Hasson et al. 2004) is a reference for shared signal, not a bound: a model may know what is this subject's own.
- `unknown`: none of these; scores stand without a ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from giblet.evaluate.correlation import FloatArray, correlation

CeilingKind = Literal["true signal", "repeats", "inter-subject", "unknown"]
RESPONSIVE_CEILING = 0.1
"""A voxel counts as responsive where its ceiling is at least this: below it, the ceiling is hardly above its noise."""

DESCRIPTIONS: dict[CeilingKind, str] = {
    "true signal": "what the simulation's own noiseless signal scores on the held-out TRs: the best possible",
    "repeats": "square root of the correlation between repeated showings of the held-out stimulus to the same subject",
    "inter-subject": "correlation of a subject's BOLD with the mean of the other subjects': a reference, not a bound",
    "unknown": "unknown: no true signal, no repeated showing, no second subject with the same mask",
}


@dataclass(frozen=True)
class Ceiling:
    """A subject's ceiling `r` (V,), NaN where or when unknown, and `responsive` (V,), None when unknown.

    Which voxels are responsive never depends on the predictions that are scored.
    """

    kind: CeilingKind
    r: NDArray[np.float64]
    responsive: NDArray[np.bool_] | None

    @staticmethod
    def of(kind: CeilingKind, r: NDArray[np.float64], expected: NDArray[np.float64] | None = None) -> Ceiling:
        """Responsive by `expected` (V,) where a ceiling free of sampling noise is known, else by `r` itself."""
        by = r if expected is None else expected
        return Ceiling(kind, r, np.nan_to_num(by) >= RESPONSIVE_CEILING)

    @staticmethod
    def unknown(voxels: int) -> Ceiling:
        """Nothing is known."""
        return Ceiling("unknown", np.full(voxels, np.nan), None)


def ceiling_of_true_signal(
    signal: FloatArray,
    bold: FloatArray,
    blocks: NDArray[np.integer],
    expected: NDArray[np.float64] | None = None,
) -> Ceiling:
    """From the noiseless signal (T,V), filtered as the BOLD (T,V) was; null voxels, whose signal is flat, get 0."""
    return Ceiling.of("true signal", np.nan_to_num(correlation(signal, bold, blocks)), expected)


def ceiling_of_repeats(repeats: Sequence[FloatArray], blocks: NDArray[np.integer]) -> Ceiling:
    """From two or more showings of the same TRs, each (T,V): sqrt of their mean pairwise correlation, 0 if negative."""
    pairs = [(i, j) for i in range(len(repeats)) for j in range(i)]
    rho = np.mean([correlation(repeats[i], repeats[j], blocks) for i, j in pairs], axis=0)
    return Ceiling.of("repeats", np.sqrt(np.maximum(rho, 0.0)))


def ceiling_of_others(bold: FloatArray, others: Sequence[FloatArray], blocks: NDArray[np.integer]) -> Ceiling:
    """From the other subjects' BOLD of the same TRs, each (T,V) on the same mask: r with their mean, 0 if negative."""
    mean = np.asarray(np.mean(np.stack(others), axis=0, dtype=np.float64))
    return Ceiling.of("inter-subject", np.maximum(correlation(mean, bold, blocks), 0.0))
