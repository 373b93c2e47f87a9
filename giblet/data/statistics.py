"""Statistics of the training TRs, by which losses are scaled: read once, in pieces, from the arrays on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.data.manifest import Statistics
from giblet.data.weights import CODEBOOK_SIZE

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
    def elements(self) -> int:
        """Rows x columns."""
        return self._count * len(self._squares)

    @property
    def squares(self) -> float:
        """Sum over all elements of the squared distance to their column's mean."""
        return float(self._squares.sum())

    @property
    def mean_variance(self) -> float:
        """The mean over columns of their variance: the squared error of the best constant prediction."""
        return self.squares / self.elements if self.elements else 0.0


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
    stimuli: Iterable[tuple[dict[str, Array], Array]],
    bolds: Iterable[Iterable[tuple[Array, Array]]],
    codebooks: int,
) -> Statistics:
    """Statistics over training rows, each of what the network is to predict.

    `stimuli` has each presentation's arrays by name and its training rows bool (T,); `bolds` has for each subject its
    runs' BOLD with the training rows that count.
    """
    video, text, codes = RunningVariance(), RunningVariance(), CodeCounts(codebooks)
    for arrays, training in stimuli:
        for rows in _pieces(training):
            video.add(mean_frames(arrays["video"][rows], arrays["video_mask"][rows]))
            text.add(arrays["text"][rows][arrays["text_mask"][rows]])
            codes.add(arrays["audio"][rows].transpose(0, 2, 1)[arrays["audio_mask"][rows]])
    entropies = codes.entropies
    return Statistics(
        video_variance=video.mean_variance / 255**2,
        text_variance=text.mean_variance,
        bold_variance=_bold_variance(bolds),
        audio_code_variance=codes.variance,
        audio_unigram_entropy_nats=float(np.mean(entropies)),
        audio_unigram_entropy_nats_by_codebook=entropies,
        audio_unigram_accuracy=codes.accuracy,
    )


def mean_frames(video: Array, mask: Array) -> Array:
    """The mean of each TR's own frames, `video` (T, F, H, W, 3) and `mask` (T, F) → float64 (TRs with any, H·W·3).

    It is what the network rebuilds (`giblet.models.losses.target_frame`). It varies less than single frames do.
    """
    means = [row[own].mean(axis=0, dtype=np.float64).ravel() for row, own in zip(video, mask, strict=True) if own.any()]
    return np.stack(means) if means else np.zeros((0, video[0, 0].size))


def _bold_variance(subjects: Iterable[Iterable[tuple[Array, Array]]]) -> float:
    """Squared distance of training rows to each voxel's mean over a subject's runs, a mean over all that is scanned."""
    squares, elements = 0.0, 0
    for runs in subjects:
        running = RunningVariance()
        for bold, training in runs:
            for rows in _pieces(training):
                running.add(bold[rows])
        squares, elements = squares + running.squares, elements + running.elements
    return squares / elements if elements else 0.0


def _pieces(training: Array) -> Iterator[Array]:
    rows = np.flatnonzero(training)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
