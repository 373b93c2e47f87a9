"""How values lie, beside numpy on the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from giblet.verify import distribution as module
from giblet.verify.distribution import Binned, Kept, distribution
from giblet.verify.statistics import number_format

SIZE = 60_000
BOUNDS = np.linspace(-0.06, 0.06, 9)
EXPONENTS = np.arange(-6.0, 1.0, 0.5)


def gathered(tensor: torch.Tensor, parts: int = 3) -> module.Distribution:
    """As threads do: each takes some of the bytes, and the results are put together."""
    form = number_format(str(tensor.dtype))
    assert form is not None
    whole = distribution(form, tensor.numel())
    for part in tensor.chunk(parts):
        one = distribution(form, tensor.numel())
        one.add(part.contiguous().view(torch.uint8).numpy())
        whole.merge(one)
    return whole


def values(dtype: torch.dtype, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (0.02 * torch.randn(size, generator=generator) + 0.004).to(dtype)


@pytest.mark.parametrize("size", [SIZE, 5_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_shares_are_numpys_histogram(dtype, size):
    tensor = values(dtype, size)
    numbers = tensor.double().numpy()
    found = gathered(tensor)
    assert isinstance(found, Binned if size == SIZE else Kept)
    exact = size != SIZE
    wanted = np.histogram(numbers, BOUNDS)[0] / size
    np.testing.assert_allclose(found.shares(BOUNDS), wanted, atol=1e-12 if exact else 2e-3)
    wanted = np.histogram(np.log10(np.abs(numbers[numbers != 0])), EXPONENTS)[0] / size
    np.testing.assert_allclose(found.magnitudes(EXPONENTS), wanted, atol=1e-12 if exact else 2e-3)
    parts = (0.001, 0.5, 0.999)
    np.testing.assert_allclose(found.quantiles(parts), np.quantile(numbers, parts), rtol=0.13 / 2, atol=1e-3)


def test_what_is_not_finite_is_left_out():
    for size in (SIZE, 1_000):
        tensor = torch.full((size,), float("nan"))
        assert gathered(tensor).quantiles((0.5,)) == []
        tensor[: size // 2] = 0.01
        tensor[-1] = float("inf")
        found = gathered(tensor)
        assert found.quantiles((0.5,)) == pytest.approx([0.01], rel=0.13)
        assert found.shares(np.array([-1.0, 1.0])) == pytest.approx([1.0])


def test_codes_are_counted_one_by_one():
    for dtype, low in ((torch.uint8, 0), (torch.int8, -128)):
        tensor = (torch.arange(SIZE) % 100 + low).to(dtype)
        bounds = np.arange(low, low + 257) - 0.5
        wanted = np.histogram(tensor.numpy(), bounds)[0] / SIZE
        np.testing.assert_allclose(gathered(tensor).shares(bounds), wanted, atol=1e-12)


def test_a_large_tensor_is_sampled_in_every_column(monkeypatch):
    monkeypatch.setattr(module, "COUNTED_ELEMENTS", 20_000)
    matrix = torch.zeros(512, 256)
    matrix[:, 26] = 1.0  # a multiple of the stride: a sample of whole rows would see it always, or never
    found = gathered(matrix.reshape(-1), parts=1)
    assert found.stride == 13
    assert found.shares(np.array([0.5, 2.0])) == pytest.approx([1 / 256], rel=0.1)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_floats(dtype):
    tensor = values(torch.float32).to(getattr(torch, dtype))
    quantiles = gathered(tensor).quantiles((0.1, 0.9))
    assert quantiles == pytest.approx(np.quantile(tensor.float().numpy(), (0.1, 0.9)).tolist(), rel=0.3)
