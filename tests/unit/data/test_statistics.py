"""Statistics of the training TRs, against numpy on everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from giblet.data.statistics import CodeCounts, RunningVariance, statistics


def _arrays(rng, trs=70, frames=4):
    mask = rng.random((trs, frames)) > 0.2
    return {
        "video": rng.integers(0, 256, (trs, frames, 3, 5, 3), dtype=np.uint8),
        "video_mask": mask,
        "audio": np.minimum(rng.geometric(0.05, (trs, 2, 9)), 1023).astype(np.int16),
        "audio_mask": rng.random((trs, 9)) > 0.1,
        "text": rng.normal(size=(trs, 6)).astype(np.float16),
        "text_mask": rng.random(trs) > 0.3,
    }


def test_defects_8_and_9_scales_are_fixed_and_of_the_training_set():
    rng = np.random.default_rng(0)
    arrays, training = [_arrays(rng), _arrays(rng)], [np.arange(70) < 50, np.arange(70) >= 40]
    bold = rng.normal(2, 3, (70, 8)).astype(np.float32)
    found = statistics(zip(arrays, training, strict=True), [[(bold, training[0])]], codebooks=2)

    def chosen(name):
        return [a[name][t] for a, t in zip(arrays, training, strict=True)]

    def masked(name):
        pairs = zip(chosen(name), chosen(f"{name}_mask"), strict=True)
        return np.concatenate([values[mask] for values, mask in pairs]).astype(float)

    shown = zip(np.concatenate(chosen("video")), np.concatenate(chosen("video_mask")), strict=True)
    frames = [row[own].mean(axis=0) / 255 for row, own in shown if own.any()]
    assert found.video_variance == pytest.approx(np.stack(frames).var(axis=0).mean())
    assert found.text_variance == pytest.approx(masked("text").var(axis=0).mean())
    assert found.bold_variance == pytest.approx(bold[:50].astype(float).var(axis=0).mean())
    pairs = zip(chosen("audio"), chosen("audio_mask"), strict=True)
    codes = np.concatenate([audio.transpose(0, 2, 1)[mask] for audio, mask in pairs])
    assert found.audio_code_variance == pytest.approx(codes.astype(float).var(axis=0).mean())
    for book, entropy in enumerate(found.audio_unigram_entropy_nats_by_codebook):
        shares = np.unique(codes[:, book], return_counts=True)[1] / len(codes)
        assert entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert found.audio_unigram_entropy_nats == pytest.approx(np.mean(found.audio_unigram_entropy_nats_by_codebook))
    commonest = [np.unique(book, return_counts=True)[1].max() / len(codes) for book in codes.T]
    assert found.audio_unigram_accuracy == pytest.approx(np.mean(commonest))


def test_bold_is_pooled_over_a_subject_s_runs_and_weighted_by_what_was_scanned():
    rng = np.random.default_rng(0)
    ones = np.ones(40, bool)
    small = [(rng.normal(5 * run, 1, (40, 2)).astype(np.float32), ones) for run in range(2)]
    large = [(rng.normal(0, 3, (40, 6)).astype(np.float32), ones)]
    found = statistics([], [small, large], codebooks=1).bold_variance
    pooled = [np.concatenate([bold for bold, _ in runs]).astype(float) for runs in (small, large)]
    errors = np.concatenate([((bold - bold.mean(axis=0)) ** 2).ravel() for bold in pooled])
    assert found == pytest.approx(errors.mean())


def test_a_uniform_code_has_the_entropy_of_its_alphabet():
    counts = CodeCounts(1)
    counts.add(np.arange(1024)[:, None])
    assert counts.entropies[0] == pytest.approx(np.log(1024))
    assert counts.accuracy == pytest.approx(1 / 1024)


def test_variance_does_not_cancel():
    rows = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    running = RunningVariance()
    for piece in np.array_split(rows, 7):
        running.add(piece)
    assert running.mean_variance == pytest.approx(rows.var(axis=0).mean(), rel=1e-6)
