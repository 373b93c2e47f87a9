"""Counts and moments against numpy, on random bytes with planted values."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from giblet.storage.crc import CRC32, CRC32C
from giblet.verify import statistics
from giblet.verify.kernels import LANES
from giblet.verify.statistics import Tally, TensorStatistics, number_format

LIMIT = 1e6
FLOATS = ("float64", "float32", "float16", "bfloat16")


def measure(tensor: torch.Tensor) -> TensorStatistics:
    form = number_format(str(tensor.dtype))
    assert form is not None
    tally = Tally(form, LIMIT)
    tally.add(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return tally.result()


@np.errstate(over="ignore")
def reference(tensor: torch.Tensor) -> TensorStatistics:
    values = tensor.to(torch.float64).reshape(-1).numpy()
    finite = values[np.isfinite(values)]
    return TensorStatistics(
        elements=values.size,
        nan=int(np.isnan(values).sum()),
        inf=int(np.isinf(values).sum()),
        over_limit=int((np.abs(finite) > LIMIT).sum()) if tensor.is_floating_point() else 0,
        zero=int((values == 0).sum()),
        absmax=float(np.abs(finite).max()) if finite.size else 0.0,
        mean=float(finite.mean()) if finite.size else 0.0,
        squares=float(finite.var() * finite.size) if finite.size else 0.0,
    )


def assert_same(found: TensorStatistics, wanted: TensorStatistics) -> None:
    for count in ("elements", "nan", "inf", "over_limit", "zero", "absmax"):
        assert getattr(found, count) == getattr(wanted, count), count
    size = max(wanted.absmax, 1e-300)
    assert found.mean == pytest.approx(wanted.mean, rel=1e-5, abs=1e-6 * size)
    assert found.std == pytest.approx(wanted.std, rel=1e-5, abs=1e-9 * size)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(FLOATS),
    size=st.sampled_from([1, 2, 255, 8192, 8193, 65_536, 65_537, 150_001]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 1.0, -300.0]),
    plants=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.sampled_from(
                [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e6, 1000001.0, -2e6, 1.5e30, 65504.0, 5e-8]
            ),
        ),
        max_size=12,
    ),
    seed=st.integers(0, 2**31),
)
def test_counts_are_exactly_numpys(dtype, size, scale, offset, plants, seed):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + offset
    for where, value in plants:
        values[int(where * size)] = value
    tensor = values.to(getattr(torch, dtype))
    assert_same(measure(tensor), reference(tensor))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "bool"])
def test_integers_are_counted_and_never_over_the_limit(dtype):
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(0, 2 if dtype == "bool" else 100, (60_001,), generator=generator).to(getattr(torch, dtype))
    assert_same(measure(tensor), reference(tensor))
    big = torch.tensor([0, 7_000_000], dtype=torch.int64)
    assert measure(big).over_limit == 0
    assert measure(big).absmax == 7e6


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_codes_of_any_length_are_exact(dtype):
    info = torch.iinfo(getattr(torch, dtype))
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randint(info.min, info.max + 1, (700_001,), generator=generator).to(getattr(torch, dtype))
    found, wanted = measure(tensor), reference(tensor)
    assert (found.elements, found.zero, found.absmax) == (wanted.elements, wanted.zero, wanted.absmax)
    assert found.mean == pytest.approx(wanted.mean, rel=1e-12)
    assert found.std == pytest.approx(wanted.std, rel=1e-9)
    assert measure(torch.full((200_001,), 7, dtype=getattr(torch, dtype))).std == 0.0


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_every_byte_of_an_8_bit_float(dtype):
    tensor = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(getattr(torch, dtype)).repeat(300)
    assert_same(measure(tensor), reference(tensor))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_pattern_of_16_bits_and_the_edges_of_the_wider_ones(dtype):
    if dtype in ("float16", "bfloat16"):
        tensor = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(getattr(torch, dtype))
    else:
        info = torch.finfo(getattr(torch, dtype))
        edges = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal / 2, info.max, info.min, 1e6, 1000000.0625]
        tensor = torch.tensor([*edges, float("nan"), -float("nan"), float("inf")], dtype=getattr(torch, dtype))
    found, wanted = measure(tensor), reference(tensor)
    for count in ("elements", "nan", "inf", "over_limit", "zero", "absmax"):
        assert getattr(found, count) == getattr(wanted, count), count


def test_a_nearly_constant_tensor_keeps_its_deviation():
    """float32 sums alone would lose it: the mean is a million deviations away."""
    tensor = 1.0 + 1e-6 * torch.randn(200_000, generator=torch.Generator().manual_seed(3))
    assert measure(tensor).std == pytest.approx(tensor.double().std(correction=0).item(), rel=1e-4)


def test_squares_that_overflow_float32_do_not():
    tensor = torch.full((10_000,), 1e30)
    tensor[::2] = -1e30
    assert measure(tensor).std == pytest.approx(1e30, rel=1e-6)


def test_merging_parts_equals_the_whole():
    tensor = torch.randn(100_000, generator=torch.Generator().manual_seed(4)).cumsum(0)
    total = TensorStatistics()
    for part in tensor.split(777):
        total.merge(measure(part))
    assert_same(total, reference(tensor))


def test_blocks_are_joined(monkeypatch):
    """A tensor of many blocks gives what one of a few gives."""
    tensor = torch.randn(50_000, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    whole = measure(tensor)
    monkeypatch.setattr(statistics, "BLOCK_BYTES", 4096)
    assert_same(measure(tensor), whole)


@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "int8", "bool"])
@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(1, 9000),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    offset=st.sampled_from([0.0, 2.0, -300.0]),
    plant=st.sampled_from([None, float("nan"), float("-inf"), 0.0, -0.0, 1e7]),
    before=st.integers(0, 63),
    seed=st.integers(0, 2**31),
)
def test_a_file_scanned_in_one_go_is_what_its_bytes_are(dtype, size, scale, offset, plant, before, seed):
    """Odd sizes, odd places, runs that end within a block or at its edge; hashed on the way."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale + offset
    if plant is not None and dtype in FLOATS:
        values[seed % size] = plant
    tensor = (values if dtype in FLOATS else values.nan_to_num().clamp(-100, 100).abs()).to(getattr(torch, dtype))
    data = tensor.view(torch.uint8).numpy()
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BLOCK_BYTES", 4096)  # for what is looked at again; a scan takes the buffer's
        file.write(b"x" * before + data.tobytes() + b"after")
        file.flush()
        buffer = np.empty(4100, np.uint8)
        for checksum, wanted in ((CRC32C, google_crc32c.value(data.tobytes())), (CRC32, zlib.crc32(data))):
            tally = Tally(number_format(dtype), LIMIT)
            crc = tally.scan(file.fileno(), before, before + data.size, buffer, checksum)
            if crc is None:
                assert tally.result() == TensorStatistics()
                tally.add(data)
            else:
                assert crc == wanted
            assert_same(tally.result(), reference(tensor))
    healthy = plant is None or plant == 0
    enough = data.size >= LANES * tensor.element_size()
    assert (crc is not None) == enough or not healthy or abs(offset) > 3 * scale or dtype == "bool"


def test_a_file_that_ends_early_is_not_scanned(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(10_000))
    with path.open("rb") as file:
        tally = Tally(number_format("float32"), LIMIT)
        assert tally.scan(file.fileno(), 0, 10_004, np.empty(1 << 20, np.uint8), CRC32C) is None
        assert tally.result() == TensorStatistics()
        unknown = replace(CRC32C, address=0)
        assert tally.scan(file.fileno(), 0, 10_000, np.empty(1 << 20, np.uint8), unknown) is None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1.2e6, -0.0])
@pytest.mark.parametrize("place", [0, 15, 16, 1023, 1024, 131_071, 131_072, 299_999])
def test_one_odd_element_is_found_wherever_it_lies(dtype, value, place):
    tensor = torch.full((300_000,), 0.5).to(getattr(torch, dtype))
    tensor[1::2] = 0.25
    tensor[place] = value
    found, wanted = measure(tensor), reference(tensor)
    assert_same(found, wanted)
    assert found.elements - found.finite + found.zero + found.over_limit == 1


def test_a_mean_far_from_zero_costs_no_digits():
    tensor = 1000.0 + 0.1 * torch.randn(300_000, generator=torch.Generator().manual_seed(3))
    found = measure(tensor)
    assert found.mean == pytest.approx(tensor.double().mean().item(), rel=1e-9)
    assert found.std == pytest.approx(tensor.double().std(correction=0).item(), rel=1e-5)


def test_bytes_that_no_number_is_aligned_to():
    tensor = torch.randn(70_000, generator=torch.Generator().manual_seed(5))
    room = np.empty(4 * 70_000 + 1, np.uint8)
    room[1:] = tensor.view(torch.uint8).numpy()
    tally = Tally(number_format("float32"), LIMIT)
    tally.add(room[1:])
    assert_same(tally.result(), reference(tensor))


def test_complex_numbers_count_by_component():
    tensor = torch.tensor([1 + 0j, complex("nan"), 3j], dtype=torch.complex64)
    found = measure(tensor)
    assert (found.elements, found.nan, found.zero) == (6, 1, 3)


def test_a_dtype_that_is_not_known_has_no_format():
    assert number_format("F4") is None
    assert number_format("torch.bfloat16") == number_format("BF16")


@pytest.mark.parametrize("dtype", [*FLOATS, "float8_e4m3fn", "uint8", "int8", "bool", "int64"])
def test_where_no_code_may_be_made_numpy_finds_the_same(dtype, monkeypatch):
    tensor = torch.randn(5_000, generator=torch.Generator().manual_seed(7)).mul(3).abs().to(getattr(torch, dtype))
    with_loop = measure(tensor)
    monkeypatch.setattr(statistics, "kernel", lambda name: None)
    assert_same(measure(tensor), with_loop)


def test_a_process_that_may_not_make_code_verifies_all_the_same(tmp_path):
    """Linux's PR_SET_MDWE, as hardened services have it: LLVM crashed there."""
    save_file({"weight": torch.arange(1.0, 10_000.0)}, tmp_path / "w.safetensors")
    code = (
        "import ctypes, sys\n"
        "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
        "from giblet.cli import main\n"
        "sys.exit(main(['verify', sys.argv[1]]))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "w.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr
    assert "SAFE" in done.stdout
