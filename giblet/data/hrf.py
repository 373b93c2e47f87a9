"""The canonical haemodynamic response, averaged over TRs, and causal convolution with it.

The response to an impulse is SPM's difference of two gamma densities,

    h(t) = g(t; 6) - g(t; 16) / 6,   g(t; a) = t^(a-1) exp(-t) / Gamma(a),   t in seconds

(Friston et al. 1998, NeuroImage 7:30-40), which peaks at 5.0 s. A TR of BOLD is a mean over its bin, so a tap of the
kernel is the mean of h over that lag's bin, from the integral of h and not from samples of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammainc

from giblet.config.schema import GibletConfig

if TYPE_CHECKING:
    from torch import Tensor

PEAK_SHAPE = 6.0
UNDERSHOOT_SHAPE = 16.0
UNDERSHOOT_RATIO = 1.0 / 6.0


def canonical_kernel(tr_seconds: float, duration_seconds: float = 24.0) -> npt.NDArray[np.float64]:
    """Kernel (K,) that sums to 1, K = ceil(duration / TR); tap k is the mean of h over `[k, k + 1) x TR`.

    Raises `ValueError` unless both arguments are positive.
    """
    if tr_seconds <= 0 or duration_seconds <= 0:
        raise ValueError(f"tr_seconds {tr_seconds} and duration_seconds {duration_seconds} must be positive")
    taps = kernel_taps(tr_seconds, duration_seconds)
    edges = np.arange(taps + 1) * tr_seconds
    integral = gammainc(PEAK_SHAPE, edges) - UNDERSHOOT_RATIO * gammainc(UNDERSHOOT_SHAPE, edges)
    kernel: npt.NDArray[np.float64] = np.diff(integral)
    kernel /= kernel.sum()
    return kernel


def hrf_kernel(config: GibletConfig, tr_seconds: float) -> Tensor | None:
    """The kernel (K,) float32 that the configuration's model convolves with at this TR; None where it does not."""
    import torch  # preparing does without

    hrf = config.data.hrf
    if hrf.kind == "none":
        return None
    return torch.as_tensor(canonical_kernel(tr_seconds, hrf.duration_seconds), dtype=torch.float32)


def kernel_taps(tr_seconds: float, duration_seconds: float) -> int:
    """K: how many TRs the kernel covers."""
    return max(math.ceil(round(duration_seconds / tr_seconds, 6)), 1)


def convolve_causal(
    signal: npt.NDArray[np.floating[Any]], kernel: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """`full convolution[:T]` along time of one run: row t sees rows up to t only. `signal` (T,) or (T, columns)."""
    result = np.zeros(signal.shape, np.float64)
    for lag, weight in enumerate(kernel[: len(signal)]):
        result[lag:] += weight * signal[: len(signal) - lag]
    return result
