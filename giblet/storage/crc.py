"""Checksums that can be joined: crc(A + B) from crc(A), crc(B) and the length of B.

So each byte is hashed once: blocks, and from theirs the object's; parts read by several threads, and the whole.
Appending n zero bytes multiplies the remainder by x^(8n) modulo the polynomial; see zlib's `crc32_combine`.
"""

from __future__ import annotations

import ctypes
import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import google_crc32c
import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Checksum:
    """A reflected 32-bit CRC: its name, its polynomial, and the function that extends it by a buffer."""

    name: str
    polynomial: int
    extend: Callable[[int, Array], int]


def _library() -> Any:
    """google_crc32c's own C function; None where its package is built otherwise.

    Called by ctypes it lets the other threads run; `google_crc32c.extend` does so for none of our buffers.
    """
    try:
        function = ctypes.CDLL(importlib.import_module("google_crc32c._crc32c").__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32
    return function


_FUNCTION = _library()


def _extend_crc32c(crc: int, data: Array) -> int:
    if _FUNCTION is None or not data.flags.c_contiguous:
        return int(google_crc32c.extend(crc, data))
    return int(_FUNCTION(crc, data.ctypes.data, data.nbytes))


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-32C of a contiguous buffer, without copying it; `crc` is that of the bytes before."""
    if not len(data):
        return crc
    return _extend_crc32c(crc, np.frombuffer(data, np.uint8))


def _extend_crc32(crc: int, data: Array) -> int:
    return zlib.crc32(data.data, crc)


CRC32C = Checksum("CRC-32C", 0x82F63B78, _extend_crc32c)
CRC32 = Checksum("CRC-32", 0xEDB88320, _extend_crc32)


def join(kind: Checksum, first: int, second: int, second_bytes: int) -> int:
    """The checksum of two runs of bytes, one after the other."""
    if not second_bytes:
        return first
    return _multiply(_power(second_bytes, kind.polynomial), first, kind.polynomial) ^ second


def _multiply(a: int, b: int, polynomial: int) -> int:
    """a(x) · b(x) modulo the polynomial; the highest bit is x^0."""
    product = 0
    mask = 1 << 31
    while True:
        if a & mask:
            product ^= b
            if not a & (mask - 1):
                return product
        mask >>= 1
        if not mask:
            return product
        b = (b >> 1) ^ polynomial if b & 1 else b >> 1


@lru_cache(maxsize=4096)
def _power(zero_bytes: int, polynomial: int) -> int:
    """x^(8 · zero_bytes) modulo the polynomial, by squaring."""
    result, square, exponent = 1 << 31, 1 << 30, 8 * zero_bytes
    while exponent:
        if exponent & 1:
            result = _multiply(square, result, polynomial)
        square = _multiply(square, square, polynomial)
        exponent >>= 1
    return result
