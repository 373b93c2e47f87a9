"""The filter that a run's BOLD went through when it was prepared, for whatever is compared with that BOLD.

A prediction, or a regressor, that still has the slow drifts which high-pass filtering took out of the BOLD is compared
with something that cannot have them. So model, baseline and true signal all pass through the same linear filter, within
the same run, over the same TRs. It looks at no BOLD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nilearn.signal import clean
from numpy.typing import NDArray

from giblet.config.schema import BoldConfig


@dataclass(frozen=True)
class RunFilter:
    """Linear detrending and cosine high-pass within a run, as `data.bold` sets them."""

    tr_seconds: float
    detrend: bool
    high_pass_hz: float

    @staticmethod
    def of(settings: Mapping[str, Any], fallback: BoldConfig, tr_seconds: float) -> RunFilter:
        """From the `settings` of a dataset's manifest; `fallback` where they say nothing of BOLD."""
        bold = settings.get("bold", {})
        return RunFilter(
            tr_seconds,
            bool(bold.get("detrend", fallback.detrend)),
            float(bold.get("high_pass_hz", fallback.high_pass_hz)),
        )

    def apply(self, series: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Filter the valid TRs of a run: `series` (T,D), `valid` (T,) → (T,D), zero where not valid."""
        result = np.zeros(series.shape, dtype=np.float32)
        if not valid.any():
            return result
        rows = np.asarray(series[valid], dtype=np.float64)
        if self.detrend or self.high_pass_hz > 0:
            cosine = {"filter": "cosine", "high_pass": self.high_pass_hz} if self.high_pass_hz > 0 else {"filter": None}
            rows = clean(rows, detrend=self.detrend, standardize=None, t_r=self.tr_seconds, **cosine)
        result[valid] = rows - rows.mean(axis=0)
        return result

    def __str__(self) -> str:
        parts = ["linear detrending"] if self.detrend else []
        parts += [f"cosine high-pass at {self.high_pass_hz:g} Hz"] if self.high_pass_hz > 0 else []
        return " and ".join(parts) + " within each run" if parts else "no filter"
