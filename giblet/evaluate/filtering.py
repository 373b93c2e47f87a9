"""The filter that a run's BOLD went through when it was prepared, for whatever is compared with that BOLD.

A prediction, or a regressor, that still has the slow drifts which high-pass filtering took out of the BOLD is compared
with something that cannot have them. So model, baseline and true signal all pass through the filter of preparation
itself (`giblet.data.bold.clean`), within the same run, fitted to the same TRs. It looks at no BOLD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from giblet.config.schema import BoldConfig
from giblet.data.bold import clean
from giblet.data.prepared import PreparedDataset


@dataclass(frozen=True)
class RunFilter:
    """Drift removal within a run, as the dataset's BOLD had it; scaling is left out, since correlation ignores it."""

    dataset: PreparedDataset
    config: BoldConfig

    @staticmethod
    def of(dataset: PreparedDataset, fallback: BoldConfig) -> RunFilter:
        """From the settings in the dataset's manifest; `fallback` where they say nothing of BOLD."""
        recorded = dataset.manifest.settings.get("bold", {})
        known = {key: recorded[key] for key in ("detrend", "high_pass_hz") if key in recorded}
        return RunFilter(dataset, fallback.model_copy(update={**known, "standardize": False}))

    def apply(self, series: NDArray[Any], presentation: int, subject: str) -> NDArray[np.float32]:
        """Filter `series` (T,D) of a presentation over the TRs that count for a subject; zero where they do not."""
        result = np.array(series, dtype=np.float32)
        usable = np.array(self.dataset.presentations[presentation].bold_mask[subject])
        training = np.zeros(len(result), dtype=bool)
        for index, first, stop in self.dataset.manifest.split.get("train", ()):
            if index == presentation:
                training[first:stop] = True
        clean(result, usable, training, self.dataset.manifest.tr_seconds, self.config)
        return result

    def __str__(self) -> str:
        parts = ["linear detrending"] if self.config.detrend else []
        if self.config.high_pass_hz > 0:
            parts.append(f"cosine high-pass at {self.config.high_pass_hz:g} Hz")
        return " and ".join(parts) + " within each run" if parts else "none but the mean of each run"
