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

BLOCK_BYTES = 256 * 1024
"""Bytes measured at once: with its scratch it stays in a core's second-level cache."""

BLOCK_ELEMENTS = BLOCK_BYTES // 4
"""Elements of a block of narrow numbers, which are widened to float32."""

ROW = 8192
"""Elements of one float32 dot product: short enough to be accurate, and for BLAS not to start threads of its own."""

TORCH_SERIAL_ELEMENTS = 32_000
"""Below 32,768 elements torch converts in the calling thread."""

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
        self._wide = np.empty(BLOCK_ELEMENTS, np.float32)
        self._ones = np.ones(ROW, np.float32)
        self._wide_tensor = torch.from_numpy(self._wide)
        self._narrow_tensors = {
            "float16": torch.from_numpy(self._narrow.view(np.float16)),
            "bfloat16": torch.from_numpy(self._narrow.view(np.int16)).view(torch.bfloat16),
        }

    def measure(self, data: Array, form: NumberFormat, *, squares: bool = False) -> TensorStatistics:
        """Statistics of `data` (uint8, whole elements of `form`); `squares` are held to the limit squared."""
        total = TensorStatistics()
        size = min(BLOCK_ELEMENTS * form.item_bytes, BLOCK_BYTES)
        limit = self._limit**2 if squares else self._limit
        for start in range(0, data.size, size):
            total.merge(self._block(data[start : start + size], form, limit))
        return total

    def _block(self, data: Array, form: NumberFormat, limit: float) -> TensorStatistics:
        if form.kind == "byte":
            values = self._wide[: data.size]
            np.take(byte_values(form.name), data, out=values)
            return self._ieee(values.view(np.uint32), "float32", limit)
        values = data.view(form.numpy)
        if form.kind == "integer":
            return self._integers(values)
        name = {"complex64": "float32", "complex128": "float64"}.get(form.name, form.name)
        return self._ieee(values, name, limit)

    def _ieee(self, bits: Array, name: str, magnitude_limit: float) -> TensorStatistics:
        ordered = self._shifted[: bits.nbytes].view(bits.dtype)
        np.left_shift(bits, 1, out=ordered)
        largest, smallest = int(ordered.max()), int(ordered.min())
        found = TensorStatistics(elements=bits.size)
        if smallest == 0:
            found.zero = bits.size - int(np.count_nonzero(ordered)) if largest else bits.size
        infinity, limit = _INFINITY[name] << 1, _limit_pattern(magnitude_limit, name) << 1
        if largest > limit:
            over = int(np.count_nonzero(ordered > limit))
            beyond = int(np.count_nonzero(ordered >= infinity))
            found.nan = int(np.count_nonzero(ordered > infinity))
            found.inf = beyond - found.nan
            found.over_limit = over - beyond
        if largest >= infinity:
            usable = ordered[ordered < infinity]
            largest = int(usable.max()) if usable.size else 0
        found.absmax = magnitude_of(largest >> 1, name)
        if largest:
            self._moments(found, self._widened(bits, name), finite=found.nan + found.inf == 0)
        return found

    def _widened(self, bits: Array, name: str) -> Array:
        """The numbers of a block, at least float32. torch converts half precision twenty times as fast as numpy."""
        if name in ("float32", "float64"):
            return bits.view(bits.dtype.str.replace("u", "f"))
        self._narrow[: bits.size] = bits
        source = self._narrow_tensors[name]
        for start in range(0, bits.size, TORCH_SERIAL_ELEMENTS):
            stop = min(start + TORCH_SERIAL_ELEMENTS, bits.size)
            self._wide_tensor[start:stop].copy_(source[start:stop])
        return self._wide[: bits.size]

    def _moments(self, found: TensorStatistics, values: Array, *, finite: bool) -> None:
        if finite and values.dtype == np.float32:
            rows = values.size // ROW
            body, rest = values[: rows * ROW].reshape(rows, ROW), values[rows * ROW :]
            with np.errstate(over="ignore"):
                square = float(np.vecdot(body, body).sum(dtype=np.float64)) + float(np.vecdot(rest, rest))
            total = float(np.vecdot(body, self._ones).sum(dtype=np.float64)) + float(rest.sum())
            mean = total / values.size
            squares = square - total * mean
            if math.isfinite(square) and squares > _CANCELLATION * square:
                found.mean, found.squares = mean, squares
                return
        exact = values.astype(np.float64) if finite else values[np.isfinite(values)].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            found.mean = float(exact.mean())
            found.squares = float(np.square(exact - found.mean).sum())

    def _integers(self, values: Array) -> TensorStatistics:
        largest, smallest = int(values.max()), int(values.min())
        found = TensorStatistics(elements=values.size, absmax=float(max(largest, -smallest)))
        found.zero = values.size - int(np.count_nonzero(values))
        if values.dtype.itemsize == 1 and largest != smallest:
            wide = self._wide[: values.size]
            np.copyto(wide, values)
            self._moments(found, wide, finite=True)
        else:
            exact = values.astype(np.float64)
            found.mean = float(exact.mean())
            found.squares = float(np.square(exact - found.mean).sum())
        return found


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
