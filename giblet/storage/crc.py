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
    """A reflected 32-bit CRC: its name, its polynomial, and the function that extends it by a buffer.

    `address` is that of the C function below it, (crc, data, size) -> crc in C's integers; 0 where it is not found.
    """

    name: str
    polynomial: int
    extend: Callable[[int, Array], int]
    address: int


def _function(module: str, name: str) -> Any:
    """A function of the C library that a module was linked with; None where it is built otherwise."""
    try:
        return getattr(ctypes.CDLL(getattr(importlib.import_module(module), "__file__", None)), name)
    except (ImportError, OSError, AttributeError):
        return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function is not None else 0


_CRC32C = _function("google_crc32c._crc32c", "crc32c_extend")
"""Called by ctypes it lets the other threads run; `google_crc32c.extend` does so for none of our buffers."""
if _CRC32C is not None:
    _CRC32C.argtypes, _CRC32C.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32


def _extend_crc32c(crc: int, data: Array) -> int:
    if _CRC32C is None or not data.flags.c_contiguous:
        return int(google_crc32c.extend(crc, data))
    return int(_CRC32C(crc, data.ctypes.data, data.nbytes))


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-32C of a contiguous buffer, without copying it; `crc` is that of the bytes before."""
    if not len(data):
        return crc
    return _extend_crc32c(crc, np.frombuffer(data, np.uint8))


def _extend_crc32(crc: int, data: Array) -> int:
    return zlib.crc32(data.data, crc)


CRC32C = Checksum("CRC-32C", 0x82F63B78, _extend_crc32c, _address(_CRC32C))
CRC32 = Checksum("CRC-32", 0xEDB88320, _extend_crc32, _address(_function("zlib", "crc32")))


def join(kind: Checksum, first: int, second: int, second_bytes: int) -> int:
    """The checksum of two runs of bytes, one after the other."""
    if not second_bytes:
        return first
    if not first:
        return second
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
    """x^(8 · zero_bytes) modulo the polynomial."""
    result = 1 << 31
    for doublings in range(zero_bytes.bit_length()):
        if zero_bytes >> doublings & 1:
            result = _multiply(_doubled(doublings, polynomial), result, polynomial)
    return result


@lru_cache
def _doubled(doublings: int, polynomial: int) -> int:
    """x^8, squared so many times."""
    if not doublings:
        return 1 << 23
    root = _doubled(doublings - 1, polynomial)
    return _multiply(root, root, polynomial)
