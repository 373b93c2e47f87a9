"""Whole-run prediction: the same in any chunk, causal, masked; and what is rebuilt is scored as by plain numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from giblet.evaluate.predict import Reconstruction, context_trs, predict_presentation, stimulus_means
from tests.support.evaluation import tiny


def predict(model, dataset, held_out=None, **settings):
    held_out = np.ones(dataset.presentations[2].trs, bool) if held_out is None else held_out
    reconstruction = Reconstruction(stimulus_means(dataset))
    model.eval()
    bold, pictures = predict_presentation(
        model, dataset, 2, held_out=held_out, reconstruction=reconstruction, **settings
    )
    return bold, pictures, reconstruction


@pytest.mark.parametrize("chunk_trs", [1, 7, 33])
def test_chunks_equal_the_run_in_one_piece(tmp_path: Path, chunk_trs: int):
    _, dataset, model = tiny(tmp_path / "d")
    whole, _, first = predict(model, dataset, chunk_trs=80)
    parts, _, second = predict(model, dataset, chunk_trs=chunk_trs)
    assert whole.std() > 0
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert second.scores() == pytest.approx(first.scores(), rel=1e-4)


def test_equals_the_model_called_on_the_whole_run(tmp_path: Path):
    _, dataset, model = tiny(tmp_path / "d")
    source = dataset.presentations[2]
    bold, _, _ = predict(model, dataset)
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(np.array(source.video)).float() / 255,
            torch.from_numpy(np.array(source.audio)).long(),
            torch.from_numpy(np.array(source.text)).float(),
            trs=source.trs,
        )
    np.testing.assert_allclose(bold, outputs["predicted_fmri"].numpy(), atol=1e-5)


def test_context_is_the_kernels_past(tmp_path: Path):
    _, _, model = tiny(tmp_path / "d")
    assert context_trs(model) == 15
    model.encoder.bottleneck_to_voxels.hrf = "none"
    assert context_trs(model) == 0


def test_reconstruction_scores_equal_plain_numpy(tmp_path: Path):
    _, dataset, model = tiny(tmp_path / "d")
    source = dataset.presentations[2]
    held_out = np.zeros(80, bool)
    held_out[10:75] = True
    _, pictures, reconstruction = predict(model, dataset, held_out, picture_trs=frozenset({20, 60}))
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(np.array(source.video)).float() / 255,
            torch.from_numpy(np.array(source.audio)).long(),
            torch.from_numpy(np.array(source.text)).float(),
            trs=80,
        )
    weights = source.video_mask[..., None, None, None].astype(float)
    frames = ((source.video / 255.0) * weights).sum(1) / weights.sum(1)
    training = []
    for index, first, stop in dataset.manifest.split["train"]:
        p = dataset.presentations[index]
        w = p.video_mask[first:stop][..., None, None, None].astype(float)
        training.append((p.video[first:stop] / 255.0 * w).sum(1) / w.sum(1))
    mean = np.concatenate(training).mean(axis=0)
    rebuilt = outputs["video_recon"].numpy().reshape(frames.shape)
    error = np.square(rebuilt - frames)[held_out].mean()
    scores = reconstruction.scores()
    expected = 1 - error / np.square(mean - frames)[held_out].mean()
    assert scores["video_r2_against_training_mean"] == pytest.approx(expected, abs=1e-5)
    assert scores["video_psnr_db"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
    counted = np.broadcast_to((source.audio_mask & held_out[:, None])[:, None], source.audio.shape)
    hits = (outputs["audio_recon"].numpy() == source.audio)[counted]
    assert scores["audio_tokens"] == counted.sum()
    assert scores["audio_token_accuracy"] == pytest.approx(hits.mean())
    spoken = source.text_mask & held_out
    columns = [
        np.corrcoef(outputs["text_recon"].numpy()[spoken, d], source.text[spoken, d].astype(np.float32))[0, 1]
        for d in range(source.text.shape[1])
    ]
    assert scores["text_mean_r"] == pytest.approx(np.mean(columns), abs=1e-5)
    assert [pair.seconds for pair in pictures] == [30.0, 90.0]
    np.testing.assert_array_equal(pictures[0].true, np.round(frames[20] * 255).astype(np.uint8))


def test_unigram_is_the_training_sets_most_frequent_code(tmp_path: Path):
    _, dataset, _ = tiny(tmp_path / "d")
    counts = np.zeros((2, 1024), int)
    for index, first, stop in dataset.manifest.split["train"]:
        p = dataset.presentations[index]
        for tr in range(first, stop):
            for codebook in range(2):
                np.add.at(counts[codebook], p.audio[tr, codebook][p.audio_mask[tr]], 1)
    codes = stimulus_means(dataset).codes
    assert counts[np.arange(2), codes].tolist() == counts.max(axis=1).tolist()
