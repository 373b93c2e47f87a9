"""One subject's held-out data and everything that is measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from giblet.data.prepared import PreparedDataset
from giblet.evaluate.ceiling import Ceiling, ceiling_of_others, ceiling_of_repeats, ceiling_of_true_signal
from giblet.evaluate.correlation import FloatArray, TimeSums, bootstrap_weights, stretches_of
from giblet.evaluate.filtering import RunFilter
from giblet.evaluate.maps import MaskSpace
from giblet.evaluate.null import ShiftNull, circular_shift_test, false_discovery_rate
from giblet.evaluate.predict import number
from giblet.evaluate.simulation import Simulation

FALSE_DISCOVERY_RATE = 0.05
BOOTSTRAP_REPLICATES = 500
BOOTSTRAP_STRETCH_SECONDS = 20.0
INTERVAL_PERCENT = (2.5, 97.5)


@dataclass(frozen=True)
class Rows:
    """Which TRs: `presentation`, `tr` and `block` (T,); a block is a contiguous stretch of one presentation."""

    presentation: NDArray[np.int64]
    tr: NDArray[np.int64]
    block: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tr)

    @staticmethod
    def of(dataset: PreparedDataset, subject: str, splits: tuple[str, ...]) -> Rows:
        """A subject's TRs that count in these splits, in the order of presentations and time."""
        found: list[tuple[int, int, int]] = []
        ranges = sorted(span for split in splits for span in dataset.manifest.split.get(split, ()))  # type: ignore[call-overload]
        for block, (presentation, first, stop) in enumerate(ranges):
            mask = dataset.presentations[presentation].bold_mask.get(subject)
            if mask is not None:
                found += [(presentation, tr, block) for tr in range(first, stop) if mask[tr]]
        table = np.asarray(found, dtype=np.int64).reshape(-1, 3)
        return Rows(table[:, 0], table[:, 1], table[:, 2])

    def take(self, series: Mapping[int, NDArray[Any]]) -> NDArray[np.float32]:
        """These rows of a series (T_p, …) for each presentation."""
        parts = [series[int(p)][self.tr[self.presentation == p]] for p in np.unique(self.presentation)]
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class System:
    """Scores of one way of predicting (the model, or the baseline) for one subject: r, p, q (V,)."""

    prediction: FloatArray
    sums: TimeSums
    r: NDArray[np.float64]
    null: ShiftNull
    q: NDArray[np.float64]

    @staticmethod
    def score(prediction: FloatArray, bold: FloatArray, rows: Rows, tr_seconds: float, shift_seconds: float) -> System:
        """Score a prediction (T,V) against BOLD (T,V) on `rows`."""
        stretches = stretches_of(rows.block, max(1, round(BOOTSTRAP_STRETCH_SECONDS / tr_seconds)))
        sums = TimeSums.of(prediction, bold, rows.block, stretches)
        minimum = max(1, int(np.ceil(shift_seconds / tr_seconds)))
        null = circular_shift_test(prediction, bold, rows.block, minimum_shift_trs=minimum)
        return System(prediction, sums, sums.correlation(), null, false_discovery_rate(null.p))

    def replicates(self, voxels: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
        """Mean r over `voxels` in each bootstrap replicate of time, (R,); all NaN with fewer than two stretches."""
        stretches = len(self.sums.xx)
        if stretches < 2 or not voxels.any():
            return np.full(BOOTSTRAP_REPLICATES, np.nan)
        weights = bootstrap_weights(stretches, BOOTSTRAP_REPLICATES, seed)
        picked = TimeSums(self.sums.xx[:, voxels], self.sums.yy[:, voxels], self.sums.xy[:, voxels])
        return np.asarray(np.nanmean(picked.correlation(weights), axis=1))

    def summary(self, ceiling: Ceiling, voxels: NDArray[np.bool_], seed: int) -> dict[str, Any]:
        """Plain numbers for the JSON file."""
        tested = np.isfinite(self.q)
        known = np.isfinite(self.r)
        top = mean_over(ceiling.r, voxels)
        mean = mean_over(self.r, voxels)
        null = self.null.mean_r
        return {
            "mean_r": number(mean),
            "mean_r_interval": interval(self.replicates(voxels, seed)),
            "share_of_ceiling": number(mean / top) if top > 0 else None,
            "mean_r_all_voxels": number(mean_over(self.r, known)),
            "median_r": number(np.nanmedian(self.r[voxels])) if known[voxels].any() else None,
            "significant_share": float((self.q[tested] <= FALSE_DISCOVERY_RATE).mean()) if tested.any() else None,
            "significant_share_of_responsive": (
                float((self.q[tested & voxels] <= FALSE_DISCOVERY_RATE).mean())
                if ceiling.responsive is not None and (tested & voxels).any()
                else None
            ),
            "chance_mean_r": number(np.mean(null)) if len(null) else None,
            "chance_interval": interval(null),
            "shifts": self.null.shifts,
        }


def mean_over(values: NDArray[np.float64], voxels: NDArray[np.bool_]) -> float:
    """Mean over the voxels that have a value; NaN if none has."""
    kept = values[voxels]
    kept = kept[np.isfinite(kept)]
    return float(kept.mean()) if len(kept) else float("nan")


def interval(samples: NDArray[np.float64]) -> list[float] | None:
    """Central 95 % of the samples, None if there are none."""
    finite = samples[np.isfinite(samples)]
    return [float(v) for v in np.percentile(finite, INTERVAL_PERCENT)] if len(finite) > 1 else None


def find_ceiling(
    dataset: PreparedDataset,
    subject: str,
    rows: Rows,
    bold: FloatArray,
    space: MaskSpace,
    run_filter: RunFilter,
    simulation: Simulation | None,
) -> tuple[Ceiling, FloatArray | None]:
    """The best ceiling that the data offer, and the filtered true signal (T,V) where there is one."""
    if simulation is not None and dataset.manifest.simulated:
        truth = _true_signal(dataset, subject, rows, space, run_filter, simulation)
        if truth is not None:
            return ceiling_of_true_signal(truth[0], bold, rows.block, truth[1]), truth[0]
    repeats = _repeats(dataset, subject, rows)
    if repeats:
        return ceiling_of_repeats([bold, *repeats], rows.block), None
    others = _others(dataset, subject, rows, space)
    if others:
        return ceiling_of_others(bold, others, rows.block), None
    return Ceiling.unknown(bold.shape[1]), None


def _true_signal(
    dataset: PreparedDataset,
    subject: str,
    rows: Rows,
    space: MaskSpace,
    run_filter: RunFilter,
    simulation: Simulation,
) -> tuple[FloatArray, NDArray[np.float64]] | None:
    signals, expected = {}, []
    for index in np.unique(rows.presentation):
        source = dataset.presentations[int(index)]
        signal = simulation.signal(subject, source.run, space, source.trs)
        ceiling = simulation.ceiling(subject, source.run, space)
        if signal is None or ceiling is None:
            return None
        signals[int(index)] = run_filter.apply(signal, int(index), subject)
        expected.append(ceiling)
    return rows.take(signals), np.mean(expected, axis=0)


def _repeats(dataset: PreparedDataset, subject: str, rows: Rows) -> list[FloatArray]:
    """The subject's BOLD of the same TRs in presentations that showed the same at the same onsets."""
    held_out = [int(p) for p in np.unique(rows.presentation)]
    if len(held_out) != 1:
        return []
    shown = dataset.presentations[held_out[0]]
    found = []
    for index, other in enumerate(dataset.presentations):
        same = other.info.stimuli == shown.info.stimuli and other.trs == shown.trs
        if index != held_out[0] and same and subject in other.bold and np.all(other.bold_mask[subject][rows.tr]):
            found.append(np.asarray(other.bold[subject][rows.tr], dtype=np.float32))
    return found


def _others(dataset: PreparedDataset, subject: str, rows: Rows, space: MaskSpace) -> list[FloatArray]:
    """BOLD of the other subjects with the same mask who were scanned in the same TRs."""
    found = []
    for other in dataset.manifest.subjects:
        if other.id == subject or other.voxels != int(space.mask.sum()):
            continue
        presentations = [dataset.presentations[int(p)] for p in np.unique(rows.presentation)]
        if any(other.id not in p.bold for p in presentations):
            continue
        theirs = MaskSpace(dataset.path / other.mask, other.voxels)
        seen = all(
            dataset.presentations[p].bold_mask[other.id][t] for p, t in zip(rows.presentation, rows.tr, strict=True)
        )
        same = np.array_equal(theirs.mask, space.mask) and np.allclose(theirs.image.affine, space.image.affine)
        if same and seen:
            found.append(
                rows.take({int(p): dataset.presentations[int(p)].bold[other.id] for p in np.unique(rows.presentation)})
            )
    return found
