"""Statistics of the training TRs, by which losses are scaled: read once, in pieces, from the arrays on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.data.codec import CODEBOOK_SIZE
from giblet.data.manifest import Statistics

Array = npt.NDArray[Any]
ROWS_AT_ONCE = 32


class RunningVariance:
    """Each column's variance over all rows seen, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)

    def add(self, rows: Array) -> None:
        """Add rows (n, columns), by Chan, Golub and LeVeque's update (1979), which does not cancel."""
        if not len(rows):
            return
        rows = rows.reshape(len(rows), -1)
        mean = rows.mean(axis=0, dtype=np.float64)
        squares = np.zeros(rows.shape[1])
        for row in rows:
            squares += np.square(row - mean)
        if not self._count:
            self._count, self._mean, self._squares = len(rows), mean, squares
            return
        total = self._count + len(rows)
        delta = mean - self._mean
        self._squares += squares + np.square(delta) * (self._count * len(rows) / total)
        self._mean += delta * (len(rows) / total)
        self._count = total

    @property
    def mean_variance(self) -> float:
        """The mean over columns of their variance: the squared error of the best constant prediction."""
        return float(self._squares.mean() / self._count) if self._count else 0.0


class CodeCounts:
    """How often each code occurs in each codebook, and each code position's variance."""

    def __init__(self, codebooks: int) -> None:
        self._counts = np.zeros((codebooks, CODEBOOK_SIZE), np.int64)

    def add(self, codes: Array) -> None:
        """Add codes (n, Q)."""
        for book, counts in enumerate(self._counts):
            counts += np.bincount(codes[:, book], minlength=CODEBOOK_SIZE)

    @property
    def variance(self) -> float:
        """Mean over codebooks of the variance of code numbers."""
        return float(np.mean([self._moment(counts) for counts in self._counts]))

    @property
    def entropies(self) -> tuple[float, ...]:
        """Of each codebook's unigram distribution, in nats: the cross-entropy of the best constant guess."""
        return tuple(self._entropy(counts) for counts in self._counts)

    @property
    def accuracy(self) -> float:
        """How often the commonest code of each codebook is right."""
        totals = np.maximum(self._counts.sum(axis=1), 1)
        return float((self._counts.max(axis=1) / totals).mean())

    @staticmethod
    def _moment(counts: Array) -> float:
        total = max(int(counts.sum()), 1)
        values = np.arange(len(counts))
        mean = (counts * values).sum() / total
        return float((counts * np.square(values - mean)).sum() / total)

    @staticmethod
    def _entropy(counts: Array) -> float:
        shares = counts[counts > 0] / max(int(counts.sum()), 1)
        return float(-(shares * np.log(shares)).sum())


def statistics(
    stimuli: Iterable[tuple[dict[str, Array], Array]], bolds: Iterable[tuple[Array, Array]], codebooks: int
) -> Statistics:
    """Statistics over training rows.

    `stimuli` has each presentation's arrays by name and its training rows bool (T,); `bolds` each subject's BOLD with
    the training rows that count.
    """
    video, text, codes = RunningVariance(), RunningVariance(), CodeCounts(codebooks)
    for arrays, training in stimuli:
        for rows in _pieces(training):
            video.add(arrays["video"][rows][arrays["video_mask"][rows]])
            text.add(arrays["text"][rows][arrays["text_mask"][rows]])
            codes.add(arrays["audio"][rows].transpose(0, 2, 1)[arrays["audio_mask"][rows]])
    voxel_variances = _bold_variances(bolds)
    entropies = codes.entropies
    return Statistics(
        video_variance=video.mean_variance / 255**2,
        text_variance=text.mean_variance,
        bold_variance=float(np.mean(voxel_variances)) if len(voxel_variances) else 0.0,
        audio_code_variance=codes.variance,
        audio_unigram_entropy_nats=float(np.mean(entropies)),
        audio_unigram_entropy_nats_by_codebook=entropies,
        audio_unigram_accuracy=codes.accuracy,
    )


def _bold_variances(bolds: Iterable[tuple[Array, Array]]) -> list[float]:
    """Each run's mean voxel variance over training rows."""
    variances = []
    for bold, training in bolds:
        running = RunningVariance()
        for rows in _pieces(training):
            running.add(bold[rows])
        if training.any():
            variances.append(running.mean_variance)
    return variances


def _pieces(training: Array) -> Iterator[Array]:
    rows = np.flatnonzero(training)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
