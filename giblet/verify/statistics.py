"""Exact counts and moments of a tensor's bytes, block by block, near the speed of memory.

One compiled loop (`kernels`) goes over a block. It tells the largest |x|, the zeros and the sums of x and of its
square. A healthy block needs no more. One in which something is not finite, that is over the limit, or whose sums lost
their digits (a mean of more than ten standard deviations) is looked at again with numpy in float64; so are the few
elements that fill no step of the loop, and integers of more than one byte.

Means and variances are of the finite elements, and merged by Chan, Golub and LeVeque (1979), "Updating formulae and a
pairwise algorithm for computing sample variances".
"""

from __future__ import annotations

import ctypes
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from giblet.storage.crc import Checksum
from giblet.verify.kernels import LANES, PREAD, Found, Kernel, Run, kernel

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BLOCK_BYTES = 256 * 1024
"""Bytes read, hashed and measured at once: they stay in a core's second-level cache."""

_CANCELLATION = 1e-2
"""A variance below this share of the mean square has lost digits in float32 and is computed again in float64."""

_UNDERFLOW = {"float64": 1e-303}
_UNDERFLOW_SINGLE = 1e-33
"""A mean square below it has lost digits: some of its summands lie below the smallest normal number."""


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
_CODES = ("uint8", "int8", "bool")


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


class Tally:
    """The statistics of one tensor's elements, block by block.

    `limit`: a finite floating-point element with a larger absolute value counts as over it. Integers never do.
    """

    def __init__(self, form: NumberFormat, limit: float) -> None:
        self._form, self._limit = form, math.inf if form.kind == "integer" else limit
        self._name = "float32" if form.kind == "byte" else _COMPONENT.get(form.name, form.name)
        self._codes = form.name in _CODES
        wide_integers = form.kind == "integer" and not self._codes
        self._kernel = None if wide_integers else kernel("uint8" if form.name == "bool" else self._name)
        self._item_bytes = np.dtype(form.numpy).itemsize
        self._found = Found()
        self._least = _UNDERFLOW.get(self._name, _UNDERFLOW_SINGLE)
        self._whole = TensorStatistics()

    def add(self, data: Array) -> None:
        """Take in whole elements (uint8)."""
        for start in range(0, data.size, BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            if self._kernel is None:
                self._look_closely(numbers(block, self._form))
            elif self._form.kind == "byte":
                for begin in range(0, block.size, BLOCK_BYTES // 4):
                    wide = byte_values(self._form.name)[block[begin : begin + BLOCK_BYTES // 4]]
                    self._take(self._kernel, wide.view(np.uint8), _FORMATS["float32"], 4)
            else:
                self._take(self._kernel, block, self._form, self._item_bytes)

    def scan(self, file: int, first: int, stop: int, buffer: Array, checksum: Checksum) -> int | None:
        """Take in bytes `[first, stop)` of an open file, read and hashed on the way; their checksum.

        None, and nothing taken in, where they are not all there or deserve a closer look: then `add` them.
        """
        if self._kernel is None or self._form.kind == "byte" or not checksum.address:
            return None
        size, step = stop - first, LANES * self._item_bytes
        block_bytes = buffer.size - buffer.size % step
        run = Run(file, first, stop, block_bytes, buffer.ctypes.data, PREAD, checksum.address, 0)
        self._found = Found()
        if size < step or self._kernel.scan(ctypes.byref(run), ctypes.byref(self._found)) != stop:
            return None
        if not self._trust(size // step * LANES):
            return None
        if size % step:
            last = (size - 1) % block_bytes + 1
            self._look_closely(numbers(buffer[last - size % step : last - size % self._item_bytes], self._form))
        return run.crc

    def result(self) -> TensorStatistics:
        """What was found so far."""
        return self._whole

    def _take(self, loop: Kernel, data: Array, form: NumberFormat, item_bytes: int) -> None:
        steps = data.size // (LANES * item_bytes)
        stop = steps * LANES * item_bytes
        if steps:
            loop.measure(data.ctypes.data, steps, ctypes.byref(self._found))
            if not self._trust(steps * LANES):
                self._look_closely(numbers(data[:stop], form))
        if stop < data.size:
            self._look_closely(numbers(data[stop:], form))

    def _trust(self, count: int) -> bool:
        """Take what the loop found of so many elements, unless it has to be looked at again."""
        found = self._found
        absmax = float(found.top) if self._codes else magnitude_of(found.top, self._name)
        if not (absmax <= self._limit and absmax < math.inf):
            return False
        mean = found.total / count
        squares = found.square - found.total * mean
        sound = squares > _CANCELLATION * found.square and self._least * count < found.square < math.inf
        if not (sound or self._codes):
            if absmax:
                return False
            mean, squares = 0.0, 0.0
        self._whole.merge(
            TensorStatistics(elements=count, zero=found.zeros, absmax=absmax, mean=mean, squares=max(squares, 0.0))
        )
        return True

    def _look_closely(self, values: Array) -> None:
        """Take in float64 numbers, whatever they are."""
        with np.errstate(over="ignore", invalid="ignore"):
            finite = values[np.isfinite(values)]
            nan = int(np.count_nonzero(np.isnan(values)))
            found = TensorStatistics(elements=values.size, nan=nan, inf=values.size - finite.size - nan)
            if finite.size:
                sizes = np.abs(finite)
                found.zero = finite.size - int(np.count_nonzero(sizes))
                found.over_limit = int(np.count_nonzero(sizes > self._limit))
                found.absmax, found.mean = float(sizes.max()), float(finite.mean())
                found.squares = float(np.square(finite - found.mean).sum())
        self._whole.merge(found)


def numbers(data: Array, form: NumberFormat) -> Array:
    """The elements (of complex ones their components) as float64."""
    if form.kind == "byte":
        return np.asarray(byte_values(form.name)[data].astype(np.float64))
    values = data.view(form.numpy)
    if form.kind == "integer":
        return np.asarray(values.astype(np.float64))
    if form.name == "bfloat16":
        values = (values.astype(np.uint32) << 16).view("<f4")
    else:
        values = values.view(values.dtype.str.replace("u", "f"))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.asarray(values.astype(np.float64))


_FLOAT8 = {
    "float8_e4m3fn": (4, 7), "float8_e5m2": (5, 15), "float8_e4m3fnuz": (4, 8), "float8_e5m2fnuz": (5, 16),
}  # fmt: skip
"""Bits of the exponent, and its bias."""


@lru_cache
def byte_values(name: str) -> Array:
    """The 256 numbers of an 8-bit float (float32), as the OCP's and ONNX's tables have them."""
    codes = np.arange(256)
    if name == "float8_e8m0fnu":
        return np.asarray(np.append(np.exp2(codes[:255] - 127.0), np.nan).astype(np.float32))
    exponent_bits, bias = _FLOAT8[name]
    mantissa_bits = 7 - exponent_bits
    exponent, fraction = (codes & 127) >> mantissa_bits, (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent > 0, 1 + fraction, 2 * fraction) * np.exp2(exponent - bias)
    values[128:] *= -1
    if name.endswith("uz"):
        values[128] = np.nan
    elif name == "float8_e5m2":
        values[(codes & 127) > 0x7C], values[0x7C], values[0xFC] = np.nan, np.inf, -np.inf
    else:
        values[[0x7F, 0xFF]] = np.nan
    return np.asarray(values.astype(np.float32))


def magnitude_of(pattern: int, name: str) -> float:
    """The number with these bits (sign 0) in a format."""
    if name == "bfloat16":
        pattern, name = pattern << 16, "float32"
    size, code = {"float64": (8, "<d"), "float32": (4, "<f"), "float16": (2, "<e")}[name]
    return float(struct.unpack(code, pattern.to_bytes(size, "little"))[0])
