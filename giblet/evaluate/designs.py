"""The baseline's regressors, features through the haemodynamic response and BOLD's own filter, and its predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from giblet.config import GibletConfig
from giblet.data.prepared import PreparedDataset
from giblet.evaluate import baseline
from giblet.evaluate.correlation import FloatArray
from giblet.evaluate.features import presentation_features
from giblet.evaluate.filtering import RunFilter
from giblet.evaluate.haemodynamics import respond, response_kernels
from giblet.evaluate.results import MINIMUM_SHIFT_SECONDS
from giblet.evaluate.subject import Rows
from giblet.telemetry.logs import get_logger

log = get_logger(__name__)


class Designs:
    """The baseline's regressors, computed once a presentation and shared by subjects with the same valid TRs."""

    def __init__(self, dataset: PreparedDataset, run_filter: RunFilter, config: GibletConfig) -> None:
        self.dataset = dataset
        self.run_filter = run_filter
        self.seed = config.run.seed
        identity = np.ones((1, 1), dtype=np.float32)
        shifted = config.data.hrf.kind == "none"
        self.kernels = identity if shifted else response_kernels(dataset.manifest.tr_seconds)
        self._responses: dict[int, dict[str, NDArray[np.float32]]] = {}
        self._filtered: dict[tuple[int, bytes], dict[str, NDArray[np.float32]]] = {}

    def predict(self, subject: str, test: Rows) -> tuple[FloatArray | None, dict[str, float]]:
        """The baseline's prediction (T,V) of the held-out rows, and the mean weight of each band."""
        fit = Rows.of(self.dataset, subject, ("train", "validation"))
        if len(fit) < 2 * baseline.FOLDS:
            log.warning("no baseline: too few training TRs", subject=subject, trs=len(fit))
            return None, {}
        gap = int(np.ceil(MINIMUM_SHIFT_SECONDS / self.dataset.manifest.tr_seconds))
        folds = baseline.contiguous_folds(fit.presentation, fit.tr, baseline.FOLDS, gap)
        bold = fit.take({int(p): self.dataset.presentations[int(p)].bold[subject] for p in np.unique(fit.presentation)})
        usable = np.isfinite(bold).all(axis=0)
        fitted = baseline.fit_banded_ridge(
            self._rows(subject, fit),
            np.where(usable, bold, 0.0),
            folds,
            seed=self.seed,
        )
        predicted = fitted.predict(self._rows(subject, test))
        weights = dict(zip(fitted.bands, fitted.band_weights.mean(axis=1).tolist(), strict=True))
        return np.where(usable, predicted, np.nan).astype(np.float32), weights

    def _rows(self, subject: str, rows: Rows) -> dict[str, NDArray[np.float32]]:
        series = {int(p): self._of(int(p), subject) for p in np.unique(rows.presentation)}
        bands = next(iter(series.values())).keys()
        return {band: rows.take({p: values[band] for p, values in series.items()}) for band in bands}

    def _of(self, presentation: int, subject: str) -> dict[str, NDArray[np.float32]]:
        source = self.dataset.presentations[presentation]
        key = (presentation, source.bold_mask[subject].tobytes())
        if presentation not in self._responses:
            features = presentation_features(source)
            self._responses[presentation] = {band: respond(values, self.kernels) for band, values in features.items()}
        if key not in self._filtered:
            self._filtered[key] = {
                band: self.run_filter.apply(values, presentation, subject)
                for band, values in self._responses[presentation].items()
            }
        return self._filtered[key]
