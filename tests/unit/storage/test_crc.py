"""Checksums of parts, joined, are the checksum of the whole."""

from __future__ import annotations

import zlib

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giblet.storage.crc import CRC32, CRC32C, join

WHOLE = {"CRC-32C": google_crc32c.value, "CRC-32": zlib.crc32}


@pytest.mark.parametrize("kind", [CRC32, CRC32C], ids=lambda kind: kind.name)
@given(parts=st.lists(st.binary(max_size=300), max_size=6))
def test_joined_parts_equal_the_whole(kind, parts):
    crc = 0
    for part in parts:
        crc = join(kind, crc, kind.extend(0, np.frombuffer(part, np.uint8)), len(part))
    assert crc == WHOLE[kind.name](b"".join(parts))


@pytest.mark.parametrize("kind", [CRC32, CRC32C], ids=lambda kind: kind.name)
def test_long_runs(kind):
    data = np.random.default_rng(0).bytes(5_000_001)
    cut = 4_999_990
    first, second = np.frombuffer(data[:cut], np.uint8), np.frombuffer(data[cut:], np.uint8)
    assert join(kind, kind.extend(0, first), kind.extend(0, second), second.size) == WHOLE[kind.name](data)
    assert join(kind, kind.extend(0, second), kind.extend(0, first), first.size) == WHOLE[kind.name](
        data[cut:] + data[:cut]
    )
