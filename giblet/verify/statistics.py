"""Exact counts and moments of a tensor's bytes, block by block, near the speed of memory.

The counts are taken on bit patterns. Shifting the sign of an IEEE number out (`bits << 1`) leaves an unsigned integer
that sorts like |x|: zero is 0, infinity one known pattern, and every NaN lies above it. So the maximum and the
minimum of one integer array say whether a block has anything to count at all; it is counted only if so.

Means and variances are float64 sums over rows of `ROW` float32 products, merged by Chan, Golub and LeVeque (1979),
"Updating formulae and a pairwise algorithm for computing sample variances". They cover the finite elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BLOCK_BYTES = 512 * 1024
"""Bytes measured at once: about a core's second-level cache; with fewer, Python between the passes counts for more."""

BLOCK_ELEMENTS = BLOCK_BYTES // 4
"""Elements of a block of narrow numbers, which are widened to float32."""

ROW = 8192
"""Elements of one float32 dot product: short enough to be accurate, and for BLAS not to start threads of its own."""

TORCH_SERIAL_ELEMENTS = 32_000
"""Below 32,768 elements torch converts in the calling thread."""

CODES_EXACT, CODES_STRIDE = 1 << 16, 13
"""Means and deviations of one-byte integers in longer blocks are those of every 13th: nobody reads those of codes."""

_CANCELLATION = 1e-2
"""A variance below this share of the mean square has lost digits in float32 and is computed again in float64."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How a dtype's bytes are to be read. `kind`: ieee (bit patterns), byte (256 values), integer."""

    name: str
    item_bytes: int
    kind: str
    numpy: str
    components: int = 1


_FORMATS = {
    "float64": NumberFormat("float64", 8, "ieee", "<u8"),
    "float32": NumberFormat("float32", 4, "ieee", "<u4"),
    "float16": NumberFormat("float16", 2, "ieee", "<u2"),
    "bfloat16": NumberFormat("bfloat16", 2, "ieee", "<u2"),
    "complex64": NumberFormat("complex64", 8, "ieee", "<u4", 2),
    "complex128": NumberFormat("complex128", 16, "ieee", "<u8", 2),
    "float8_e4m3fn": NumberFormat("float8_e4m3fn", 1, "byte", "u1"),
    "float8_e4m3fnuz": NumberFormat("float8_e4m3fnuz", 1, "byte", "u1"),
    "float8_e5m2": NumberFormat("float8_e5m2", 1, "byte", "u1"),
    "float8_e5m2fnuz": NumberFormat("float8_e5m2fnuz", 1, "byte", "u1"),
    "float8_e8m0fnu": NumberFormat("float8_e8m0fnu", 1, "byte", "u1"),
    "bool": NumberFormat("bool", 1, "integer", "u1"),
    "uint8": NumberFormat("uint8", 1, "integer", "u1"),
    "int8": NumberFormat("int8", 1, "integer", "i1"),
    "uint16": NumberFormat("uint16", 2, "integer", "<u2"),
    "int16": NumberFormat("int16", 2, "integer", "<i2"),
    "uint32": NumberFormat("uint32", 4, "integer", "<u4"),
    "int32": NumberFormat("int32", 4, "integer", "<i4"),
    "uint64": NumberFormat("uint64", 8, "integer", "<u8"),
    "int64": NumberFormat("int64", 8, "integer", "<i8"),
}
_SAFETENSORS_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
}  # fmt: skip
_COMPONENT = {"complex64": "float32", "complex128": "float64"}
_UPPER_HALF = np.uint32(0xFFFF0000)
_maximum, _minimum = np.maximum.reduce, np.minimum.reduce
_INFINITY = {"float64": 0x7FF0 << 48, "float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


def number_format(dtype: str) -> NumberFormat | None:
    """The format of a dtype by its torch name (`float32`, `torch.float32`) or safetensors name (`F32`)."""
    name = dtype.removeprefix("torch.")
    return _FORMATS.get(_SAFETENSORS_NAMES.get(name, name))


@dataclass(slots=True)
class TensorStatistics:
    """Counts of elements (of components, for complex numbers), and moments of the finite ones."""

    elements: int = 0
    nan: int = 0
    inf: int = 0
    over_limit: int = 0
    zero: int = 0
    absmax: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    @property
    def finite(self) -> int:
        """Elements that are neither NaN nor infinite."""
        return self.elements - self.nan - self.inf

    @property
    def std(self) -> float:
        """Population standard deviation of the finite elements."""
        return math.sqrt(max(self.squares, 0.0) / self.finite) if self.finite else 0.0

    @property
    def all_zero(self) -> bool:
        """Whether there are elements and every one is zero."""
        return self.elements > 0 and self.zero == self.elements

    def merge(self, other: TensorStatistics) -> None:
        """Take in the statistics of other elements of the same tensor (Chan et al. 1979, equation 2.1)."""
        own, more = self.finite, other.finite
        if more and own:
            distance = other.mean - self.mean
            self.mean += distance * (more / (own + more))
            self.squares += other.squares + distance * distance * (own / (own + more)) * more
        elif more:
            self.mean, self.squares = other.mean, other.squares
        self.elements += other.elements
        self.nan += other.nan
        self.inf += other.inf
        self.over_limit += other.over_limit
        self.zero += other.zero
        self.absmax = max(self.absmax, other.absmax)


def is_second_moment(name: str) -> bool:
    """Variances: what they are squares of is what the limit is about (an unscaled code of 1023 has one of 1e6)."""
    return name.endswith(".running_var") or "exp_avg_sq" in name


class Meter:
    """Measures bytes. Holds scratch memory, so that each thread needs its own.

    `magnitude_limit`: a finite floating-point element with a larger absolute value counts as over the limit.
    Integers (counters, codes) never do.
    """

    def __init__(self, magnitude_limit: float) -> None:
        self._limit = magnitude_limit
        self._shifted = np.empty(BLOCK_BYTES, np.uint8)
        self._narrow = np.empty(BLOCK_ELEMENTS, np.uint16)
        self._wide = np.empty(2 * BLOCK_ELEMENTS, np.float32)
        self._words = self._wide.view(np.uint32)
        self._ones = np.ones(ROW, np.float32)
        self._rows = np.empty(2 * BLOCK_ELEMENTS // ROW, np.float32)
        self._wide_tensor = torch.from_numpy(self._wide)
        self._narrow_tensors = {
            "float16": torch.from_numpy(self._narrow.view(np.float16)),
            "bfloat16": torch.from_numpy(self._narrow.view(np.int16)).view(torch.bfloat16),
        }

    def measure(self, data: Array, form: NumberFormat, *, squares: bool = False) -> TensorStatistics:
        """Statistics of `data` (uint8, whole elements of `form`); `squares` are held to the limit squared."""
        tally = self.tally(form, squares=squares)
        with np.errstate(over="ignore", invalid="ignore"):
            tally.add(data)
        return tally.result()

    def tally(self, form: NumberFormat, *, squares: bool = False) -> Tally:
        """Statistics of bytes that come block by block."""
        return Tally(self, form, self._limit**2 if squares else self._limit)

    def moments(self, values: Array) -> tuple[float, float]:
        """Sum, and sum of squares, of float32 numbers: float64 sums over the dot products of rows."""
        count = values.size // ROW
        body, rest = values[: count * ROW].reshape(count, ROW), values[count * ROW :]
        rows = self._rows[:count]
        np.vecdot(body, body, out=rows)
        square = float(np.add.reduce(rows, dtype=np.float64))
        np.vecdot(body, self._ones, out=rows)
        total = float(np.add.reduce(rows, dtype=np.float64))
        if rest.size:
            square += float(np.vecdot(rest, rest))
            total += float(rest.sum())
        return total, square

    def shifted(self, bits: Array) -> Array:
        """The patterns without their sign, in scratch: unsigned integers that sort like |x|."""
        ordered = self._shifted[: bits.nbytes].view(bits.dtype)
        np.left_shift(bits, 1, out=ordered)
        return ordered

    def widened(self, bits: Array, name: str) -> Array:
        """The numbers of a block, at least float32, in scratch; those of bfloat16 in another order.

        Two bfloat16 make one word: shifted up it is the first of them as a float32, masked it is the second. torch
        converts the rest, twenty times as fast as numpy.
        """
        if name in ("float32", "float64"):
            return bits.view(bits.dtype.str.replace("u", "f"))
        if name == "bfloat16" and bits.size % 2 == 0:
            pairs = bits.view(np.uint32)
            np.left_shift(pairs, 16, out=self._words[: pairs.size])
            np.bitwise_and(pairs, _UPPER_HALF, out=self._words[pairs.size : bits.size])
            return self._wide[: bits.size]
        for begin in range(0, bits.size, BLOCK_ELEMENTS):
            self._convert(bits[begin : begin + BLOCK_ELEMENTS], begin, name)
        return self._wide[: bits.size]

    def _convert(self, bits: Array, begin: int, name: str) -> None:
        self._narrow[: bits.size] = bits
        source = self._narrow_tensors[name]
        for start in range(0, bits.size, TORCH_SERIAL_ELEMENTS):
            stop = min(start + TORCH_SERIAL_ELEMENTS, bits.size)
            self._wide_tensor[begin + start : begin + stop].copy_(source[start:stop])

    def copied(self, values: Array) -> Array:
        """Up to a block of numbers as float32, in scratch."""
        np.copyto(self._wide[: values.size], values)
        return self._wide[: values.size]

    def bytes_widened(self, data: Array, name: str) -> Array:
        """The numbers of 8-bit floats, in scratch."""
        return np.take(byte_values(name), data, out=self._wide[: data.size])


class Tally:
    """The statistics of one tensor's elements, block by block. What no block needs is left for the end."""

    def __init__(self, meter: Meter, form: NumberFormat, limit: float) -> None:
        self._meter, self._form = meter, form
        elements = BLOCK_ELEMENTS if form.kind == "byte" else 2 * BLOCK_ELEMENTS
        self._block_bytes = BLOCK_BYTES if form.kind == "integer" else min(elements * form.item_bytes, BLOCK_BYTES)
        self._name = "float32" if form.kind == "byte" else _COMPONENT.get(form.name, form.name)
        self._exact = TensorStatistics()
        """Of the blocks whose moments need float64, and the counts of all."""
        self._elements, self._total, self._square = 0, 0.0, 0.0
        self._largest = 0
        if form.kind != "integer":
            self._infinity = _INFINITY[self._name] << 1
            self._limit = _limit_pattern(limit, self._name) << 1

    def add(self, data: Array) -> None:
        """Take in whole elements (uint8). The caller lets numpy overflow (`errstate`)."""
        for start in range(0, data.size, self._block_bytes):
            block = data[start : start + self._block_bytes]
            if self._form.kind == "ieee":
                self._ieee(block.view(self._form.numpy))
            elif self._form.kind == "byte":
                self._ieee(self._meter.bytes_widened(block, self._form.name).view(np.uint32))
            else:
                self._integers(block.view(self._form.numpy))

    def result(self) -> TensorStatistics:
        """What was found so far."""
        found = TensorStatistics(elements=self._elements)
        if self._elements:
            found.mean = self._total / self._elements
            found.squares = self._square - self._total * found.mean
        found.merge(self._exact)
        if self._largest:
            found.absmax = max(found.absmax, magnitude_of(self._largest >> 1, self._name))
        return found

    def _ieee(self, bits: Array) -> None:
        ordered = self._meter.shifted(bits)
        largest, smallest = int(_maximum(ordered)), int(_minimum(ordered))
        bad = 0
        if smallest == 0:
            self._exact.zero += bits.size - int(np.count_nonzero(ordered)) if largest else bits.size
        if largest > self._limit:
            bad, largest = self._count_bad(ordered, largest)
        self._largest = max(self._largest, largest)
        if not largest:
            self._elements += bits.size - bad
        else:
            self._moments(self._meter.widened(bits, self._name), finite=bad == 0)

    def _count_bad(self, ordered: Array, largest: int) -> tuple[int, int]:
        """Count what is beyond the limit or not finite; how many are not, and the largest finite pattern."""
        over = int(np.count_nonzero(ordered > self._limit))
        beyond = int(np.count_nonzero(ordered >= self._infinity))
        nan = int(np.count_nonzero(ordered > self._infinity))
        counts = self._exact
        counts.nan, counts.inf = counts.nan + nan, counts.inf + beyond - nan
        counts.elements += beyond
        counts.over_limit += over - beyond
        if beyond:
            usable = ordered[ordered < self._infinity]
            largest = int(usable.max()) if usable.size else 0
        return beyond, largest

    def _moments(self, values: Array, *, finite: bool) -> None:
        if finite and values.dtype == np.float32:
            total, square = self._meter.moments(values)
            if math.isfinite(square) and square - total * total / values.size > _CANCELLATION * square:
                self._elements += values.size
                self._total += total
                self._square += square
                return
        exact = values.astype(np.float64) if finite else values[np.isfinite(values)].astype(np.float64)
        self._take_exactly(exact)

    def _take_exactly(self, values: Array) -> None:
        found = TensorStatistics(elements=values.size)
        found.mean = float(values.mean())
        found.squares = float(np.square(values - found.mean).sum())
        self._exact.merge(found)

    def _integers(self, values: Array) -> None:
        largest, smallest = int(_maximum(values)), int(_minimum(values))
        self._exact.absmax = max(self._exact.absmax, float(largest), -float(smallest))
        if smallest <= 0 <= largest:
            self._exact.zero += values.size - int(np.count_nonzero(values))
        if values.dtype.itemsize > 1 or values.size <= CODES_EXACT:
            self._take_exactly(values.astype(np.float64))
            return
        total, square = self._meter.moments(self._meter.copied(values[::CODES_STRIDE]))
        sampled = -(-values.size // CODES_STRIDE)
        mean = total / sampled
        spread = max(square - total * mean, 0.0) * (values.size / sampled)
        self._exact.merge(TensorStatistics(elements=values.size, mean=mean, squares=spread))


@lru_cache
def byte_values(name: str) -> Array:
    """The 256 numbers of an 8-bit float."""
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    values = codes.view(getattr(torch, name)).to(torch.float32)
    return np.asarray(values.numpy())


def magnitude_of(pattern: int, name: str) -> float:
    """The number with these bits (sign 0) in a format."""
    if name == "bfloat16":
        pattern, name = pattern << 16, "float32"
    size = {"float64": 8, "float32": 4, "float16": 2}[name]
    return float(np.frombuffer(pattern.to_bytes(size, "little"), dtype=f"<f{size}")[0])


@lru_cache
def _limit_pattern(limit: float, name: str) -> int:
    """Bits of the largest finite number of a format that is not above `limit`."""
    low, high = 0, _INFINITY[name] - 1
    while low < high:
        middle = (low + high + 1) // 2
        if magnitude_of(middle, name) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
