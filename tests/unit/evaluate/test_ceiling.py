"""Ceilings against simulations whose best score is known."""

import numpy as np
import pytest

from giblet.evaluate.ceiling import Ceiling, ceiling_of_others, ceiling_of_repeats, ceiling_of_true_signal
from giblet.evaluate.correlation import correlation

BLOCKS = np.zeros(600, dtype=int)


def scans(count: int, share: float, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A signal, and `count` scans of it in 200 voxels in which it has `share` of the variance."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(600, 200))
    noises = generator.normal(size=(count, 600, 200))
    return signal, [np.sqrt(share) * signal + np.sqrt(1 - share) * noise for noise in noises]


def test_true_signal_scores_the_square_root_of_its_share_of_variance():
    signal, (bold,) = scans(1, 0.36, 0)
    ceiling = ceiling_of_true_signal(signal, bold, BLOCKS)
    assert ceiling.r.mean() == pytest.approx(0.6, abs=0.01)
    assert ceiling.responsive is not None
    assert ceiling.responsive.all()


def test_voxels_without_signal_have_ceiling_zero_and_are_not_responsive():
    signal, (bold,) = scans(1, 0.36, 0)
    signal[:, :50] = 0.0
    expected = np.where(np.arange(200) < 50, 0.0, 0.6)
    ceiling = ceiling_of_true_signal(signal, bold, BLOCKS, expected)
    assert (ceiling.r[:50] == 0).all()
    assert ceiling.responsive is not None
    assert ceiling.responsive.tolist() == (expected > 0).tolist()


@pytest.mark.parametrize("count", [2, 4])
def test_repeats_estimate_what_the_true_signal_scores(count: int):
    signal, repeats = scans(count, 0.36, 1)
    estimated = ceiling_of_repeats(repeats, BLOCKS)
    assert estimated.r.mean() == pytest.approx(correlation(signal, repeats[0], BLOCKS).mean(), abs=0.02)


def test_repeats_of_noise_have_no_ceiling_below_zero():
    _, repeats = scans(2, 0.0, 2)
    ceiling = ceiling_of_repeats(repeats, BLOCKS)
    assert (ceiling.r >= 0).all()
    assert (ceiling.r == 0).mean() > 0.3


def test_others_are_a_reference_below_the_true_ceiling():
    signal, subjects = scans(3, 0.36, 3)
    ceiling = ceiling_of_others(subjects[0], subjects[1:], BLOCKS)
    assert 0.35 < ceiling.r.mean() < correlation(signal, subjects[0], BLOCKS).mean()


def test_unknown_says_so():
    ceiling = Ceiling.unknown(3)
    assert ceiling.kind == "unknown"
    assert ceiling.responsive is None
    assert np.isnan(ceiling.r).all()
