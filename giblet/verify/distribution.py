"""How the elements of a tensor are distributed, gathered in the one pass over its bytes, in a few kilobytes.

A small tensor's values are kept. A larger one is counted by the leading twelve bits of its elements' patterns: sign,
exponent and three bits of the mantissa (of bfloat16 and float32) number bins whose width is an eighth of a power of
two; so one count serves a picture of the values and one of their magnitudes, and no range has to be known before the
first byte is read. The largest are sampled at a stride. NaN and infinities are left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np

from giblet.verify.statistics import Array, NumberFormat, byte_values, magnitude_of, numbers

BINS = 4096
KEPT_ELEMENTS = 16_384
"""Of tensors up to so many elements the values are kept: norms and biases, whose values may all lie near 1."""

COUNTED_ELEMENTS = 1 << 20
"""Tensors up to so many elements are counted whole."""

STRIDE = 13
"""Of a larger one every 13th element: a prime, so that the columns of a matrix take turns."""


class Distribution(Protocol):
    """What was gathered of one tensor."""

    form: NumberFormat
    stride: int

    def add(self, data: Array) -> None:
        """Take in `data` (uint8, whole elements); the order does not matter."""

    def merge(self, other: Distribution) -> None:
        """Take in what another thread gathered of the same tensor."""

    def shares(self, bounds: Array) -> Array:
        """Share of the elements between each two of `bounds`."""

    def magnitudes(self, exponents: Array) -> Array:
        """Share of the elements whose log10 of |x| lies between each two of `exponents`; zeros in none."""

    def quantiles(self, parts: tuple[float, ...]) -> list[float]:
        """Values below which these parts of the elements lie; none where nothing finite was seen."""


def distribution(form: NumberFormat, elements: int) -> Distribution:
    """An empty one for a tensor of this size."""
    if elements <= KEPT_ELEMENTS:
        return Kept(form)
    return Binned(form, 1 if elements <= COUNTED_ELEMENTS else STRIDE)


def are_codes(form: NumberFormat) -> bool:
    """Whether these are whole numbers of one byte: they are shown one by one, and have no order of magnitude."""
    return form.kind == "integer" and form.item_bytes == 1


class Kept:
    """The finite values themselves."""

    def __init__(self, form: NumberFormat) -> None:
        self.form, self.stride = form, 1
        self._parts: list[Array] = []

    def add(self, data: Array) -> None:
        """See `Distribution`."""
        values = numbers(data, self.form)
        self._parts.append(values[np.isfinite(values)])

    def merge(self, other: Distribution) -> None:
        """See `Distribution`."""
        assert isinstance(other, Kept)
        self._parts += other._parts

    @property
    def values(self) -> Array:
        """In no order."""
        return np.concatenate(self._parts) if self._parts else np.empty(0)

    def shares(self, bounds: Array) -> Array:
        """See `Distribution`."""
        values = self.values
        return np.asarray(np.histogram(values, bounds)[0] / max(values.size, 1))

    def magnitudes(self, exponents: Array) -> Array:
        """See `Distribution`."""
        values = self.values
        levels = np.log10(np.abs(values[values != 0]))
        return np.asarray(np.histogram(levels, exponents)[0] / max(values.size, 1))

    def quantiles(self, parts: tuple[float, ...]) -> list[float]:
        """See `Distribution`."""
        values = self.values
        return [float(value) for value in np.quantile(values, parts)] if values.size else []


class Binned:
    """Counts by leading bits of every `stride`-th element; within a bin elements are taken to lie evenly."""

    def __init__(self, form: NumberFormat, stride: int) -> None:
        self.form, self.stride = form, stride
        self._counts = np.zeros(BINS, np.int64)

    def add(self, data: Array) -> None:
        """See `Distribution`."""
        self._counts += np.bincount(_codes(data, self.form, self.stride), minlength=BINS)

    def merge(self, other: Distribution) -> None:
        """See `Distribution`."""
        assert isinstance(other, Binned)
        self._counts += other._counts

    def shares(self, bounds: Array) -> Array:
        """See `Distribution`."""
        edges, counts = self._ascending()
        total = _cumulated(counts)
        return np.asarray(np.diff(np.interp(bounds, edges, total)) / max(total[-1], 1))

    def magnitudes(self, exponents: Array) -> Array:
        """See `Distribution`."""
        edges, counts = self._ascending()
        middle = len(counts) // 2
        both = counts[middle:] + counts[:middle][::-1]
        total = _cumulated(both[1:])  # the first bin has the zeros
        levels = np.log10(edges[middle + 1 :])
        return np.asarray(np.diff(np.interp(exponents, levels, total)) / max(int(counts.sum()), 1))

    def quantiles(self, parts: tuple[float, ...]) -> list[float]:
        """See `Distribution`; to the width of a bin."""
        edges, counts = self._ascending()
        total = _cumulated(counts)
        if not total[-1]:
            return []
        wanted = np.array(parts) * total[-1]
        at = np.clip(np.searchsorted(total, wanted) - 1, 0, len(total) - 2)
        inside = (wanted - total[at]) / np.maximum(total[at + 1] - total[at], 1)
        return [float(value) for value in edges[at] + inside * (edges[at + 1] - edges[at])]

    def _ascending(self) -> tuple[Array, Array]:
        """Edges of the bins by value, and the counts between each two of them."""
        edges, codes = _bins(self.form)
        return edges, self._counts[codes]


def _cumulated(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)])


def _codes(data: Array, form: NumberFormat, stride: int) -> Array:
    """The bin of every `stride`-th element."""
    if form.kind == "byte":
        return np.asarray(byte_values(form.name)[data[::stride]].view(np.uint32) >> 20)
    values = data.view(form.numpy)[::stride]
    if are_codes(form):
        return values.view(np.uint8)
    if form.kind == "integer":
        return np.asarray(values.astype(np.float32).view(np.uint32) >> 20)
    if values.dtype.itemsize == 8:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(values.view(np.float64).astype(np.float32).view(np.uint32) >> 20)
    return np.asarray(values >> (8 * values.dtype.itemsize - 12))


@lru_cache
def _bins(form: NumberFormat) -> tuple[Array, Array]:
    """Edges in ascending order, and the codes of the bins between them."""
    if are_codes(form):
        first = -128 if form.name == "int8" else 0
        return np.arange(first, first + 257) - 0.5, np.arange(first, first + 256) % 256
    name = form.name if form.name in ("float16", "bfloat16") else "float32"
    shift = (32 if name == "float32" else 16) - 12
    lower = [magnitude_of(code << shift, name) for code in range(BINS // 2)]
    finite = [value for value in lower if np.isfinite(value)]
    upper = [*finite, 2 * finite[-1] - finite[-2]]
    edges = np.array([*(-value for value in reversed(upper[1:])), *upper])
    codes = np.arange(len(finite))
    return edges, np.concatenate([codes[::-1] + BINS // 2, codes])
