"""The baseline's haemodynamics: the canonical response at a few latencies, since regions differ by a second or two.

SPM's double gamma (Friston et al. 1998) as nilearn has it, finely sampled, averaged over the TR in which the stimulus
is and over the TR in which BOLD is measured. Sampling it once a TR instead would peak a second late at a TR of 1.5 s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nilearn.glm.first_level import spm_hrf
from numpy.typing import NDArray

LATENCIES_SECONDS = (-1.0, 0.0, 1.0)
"""Earlier, canonical, later."""
SAMPLES_PER_TR = 60
DURATION_SECONDS = 30.0


def response_kernels(tr_seconds: float, latencies_seconds: Sequence[float] = LATENCIES_SECONDS) -> NDArray[np.float32]:
    """Causal kernels (R,K), one a latency, at the TR; each sums to 1. Tap k: the response k TRs after the stimulus."""
    taps = int(np.ceil(DURATION_SECONDS / tr_seconds))
    kernels = []
    for latency in latencies_seconds:
        fine = spm_hrf(
            tr_seconds, oversampling=SAMPLES_PER_TR, time_length=DURATION_SECONDS + tr_seconds, onset=latency
        )
        fine = np.asarray(fine, dtype=np.float64)
        during = np.convolve(fine, np.full(SAMPLES_PER_TR, 1.0 / SAMPLES_PER_TR))[: taps * SAMPLES_PER_TR]
        binned = during.reshape(taps, SAMPLES_PER_TR).mean(axis=1)
        kernels.append(binned / binned.sum())
    return np.asarray(kernels, dtype=np.float32)


def respond(features: NDArray[np.float32], kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each feature through each kernel, causally within the run: (T,D), (R,K) → (T, R·D). Nothing is before the run."""
    trs = len(features)
    lag = np.arange(trs)[:, None] - np.arange(trs)[None, :]
    taps = kernels.shape[1]
    known = (lag >= 0) & (lag < taps)
    parts = [np.where(known, kernel[lag.clip(0, taps - 1)], 0.0) @ features for kernel in kernels]
    return np.concatenate(parts, axis=1).astype(np.float32)
