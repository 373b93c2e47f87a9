"""Loss terms against numpy, their masks, and that parts add up to the whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from giblet.config.schema import ModelConfig
from giblet.data.batches import Batch, BatchBuilder
from giblet.models.losses import TERMS, Losses, loss_terms, scaled_video, target_frame, token_hits
from tests.support.prepared import make_prepared

STATISTICS = SimpleNamespace(
    video_variance=0.07, text_variance=1.3, bold_variance=0.9, audio_code_variance=9e4, audio_unigram_entropy_nats=6.2
)
VOXELS = [7, 5]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    data = make_prepared(tmp_path_factory.mktemp("losses") / "d", absent=((1, 0),))
    builder = BatchBuilder(data, data.segments("train", 8), segment_trs=8, context_trs=3)
    return builder.build([0, 3, 4, 6])


def outputs_for(batch: Batch, *, classify: bool):
    generator = torch.Generator().manual_seed(0)
    n, audio = batch.rows, batch.audio
    outputs = {
        "predicted_fmri": torch.randn(n, 12, generator=generator),
        "video_recon": torch.rand(n, batch.video[0, 0].numel(), generator=generator),
        "audio_recon": torch.rand(audio.shape, generator=generator) * 1023,
        "text_recon": torch.randn(n, batch.text.shape[1], generator=generator),
    }
    if classify:
        outputs["audio_logits"] = torch.randn(*audio.shape, 1024, generator=generator)
    return outputs


def numpy_terms(outputs, batch, *, classify):
    """Element by element, from the definition."""
    o = {k: v.double().numpy() for k, v in outputs.items()}
    b = {k: getattr(batch, k).numpy() for k in Batch.__dataclass_fields__ if k != "trs"}
    first = np.concatenate([[0], np.cumsum(VOXELS)])
    errors = {name: [] for name in TERMS}
    for n in range(batch.rows):
        if not b["target_mask"][n]:
            continue
        for s in range(len(VOXELS)):
            if b["bold_mask"][n, s]:
                voxels = slice(first[s], first[s + 1])
                errors["bold"] += ((o["predicted_fmri"] - b["bold"])[n, voxels] ** 2).tolist()
        frames = b["video"][n][b["video_mask"][n]].reshape(-1, o["video_recon"].shape[1]) / 255.0
        if len(frames):
            errors["video"] += ((o["video_recon"][n] - frames.mean(0)) ** 2).tolist()
        if b["text_mask"][n]:
            errors["text"] += ((o["text_recon"] - b["text"])[n] ** 2).tolist()
        for q in range(b["audio"].shape[1]):
            for a in range(b["audio"].shape[2]):
                if b["audio_mask"][n, a]:
                    if classify:
                        logits = o["audio_logits"][n, q, a]
                        errors["audio"].append(np.log(np.exp(logits).sum()) - logits[b["audio"][n, q, a]])
                    else:
                        errors["audio"].append((o["audio_recon"][n, q, a] - b["audio"][n, q, a]) ** 2)
    scales = {"bold": 0.9, "video": 0.07, "text": 1.3, "audio": 6.2 if classify else 9e4}
    return {k: np.mean(v) / scales[k] for k, v in errors.items()}, {k: len(v) for k, v in errors.items()}


@pytest.mark.parametrize("classify", [True, False])
def test_terms_are_mean_errors_of_what_counts_over_the_training_set_s_variance(batch, classify):
    config = ModelConfig(audio_objective="classify" if classify else "regress")
    assert not batch.target_mask.all()
    assert not batch.bold_mask[batch.target_mask].all()
    outputs = outputs_for(batch, classify=classify)
    expected, counts = numpy_terms(outputs, batch, classify=classify)
    terms = loss_terms(outputs, batch, STATISTICS, config, VOXELS)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)
    losses = Losses(STATISTICS, VOXELS, config)
    assert losses.counts(batch).tolist() == [counts[name] for name in TERMS]
    weights = [config.bold_weight, config.video_weight, config.audio_weight, config.text_weight]
    total = sum(w * expected[name] for w, name in zip(weights, TERMS, strict=True))
    assert losses.total(terms).item() == pytest.approx(total, rel=1e-5)


def test_the_training_set_s_mean_scores_one(batch):
    """What a ratio of 1 means, and that it does not depend on the scale of a modality."""
    rows = batch.target_mask & batch.text_mask
    text = batch.text[rows]
    statistics = SimpleNamespace(**{**vars(STATISTICS), "text_variance": text.var(0, unbiased=False).mean().item()})
    outputs = outputs_for(batch, classify=True) | {"text_recon": text.mean(0).expand(batch.rows, -1)}
    assert loss_terms(outputs, batch, statistics, ModelConfig(), VOXELS)["text"].item() == pytest.approx(1.0, rel=1e-5)


def test_parts_add_up_to_the_whole(batch):
    losses = Losses(STATISTICS, VOXELS, ModelConfig())
    outputs = outputs_for(batch, classify=True)
    whole, counts = losses.terms(outputs, batch), losses.counts(batch)
    half = batch.rows // 2
    sums = dict.fromkeys(TERMS, 0.0)
    for part in (slice(0, half), slice(half, None)):
        rows = {k: getattr(batch, k)[part] for k in Batch.__dataclass_fields__ if k != "trs"}
        terms = losses.terms({k: v[part] for k, v in outputs.items()}, Batch(**rows, trs=batch.trs), counts)
        for name in TERMS:
            sums[name] += terms[name].item()
    assert sums == pytest.approx({name: value.item() for name, value in whole.items()}, rel=1e-5)


def test_decoding_the_targets_only_gives_the_same_terms(batch):
    losses = Losses(STATISTICS, VOXELS, ModelConfig())
    outputs = outputs_for(batch, classify=True)
    short = {k: v if k == "predicted_fmri" else v[batch.target_mask] for k, v in outputs.items()}
    found, expected = losses.terms(short, batch), losses.terms(outputs, batch)
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()})
    outputs["audio_recon"] = torch.where(torch.rand(batch.audio.shape) < 0.5, batch.audio, 0)
    hits = token_hits({"audio_recon": outputs["audio_recon"][batch.target_mask]}, batch)
    assert hits == token_hits(outputs, batch) > 0


def test_what_is_masked_has_no_gradient(batch):
    outputs = {k: v.requires_grad_() for k, v in outputs_for(batch, classify=True).items()}
    losses = Losses(STATISTICS, VOXELS, ModelConfig())
    losses.total(losses.terms(outputs, batch)).backward()
    for name in ("predicted_fmri", "video_recon", "audio_logits", "text_recon"):
        gradient = outputs[name].grad
        assert gradient[~batch.target_mask].abs().max() == 0, name
        assert gradient[batch.target_mask].abs().max() > 0, name
    unseen = batch.target_mask & ~batch.bold_mask[:, 0]
    assert unseen.any()
    assert outputs["predicted_fmri"].grad[unseen][:, :7].abs().max() == 0
    assert outputs["predicted_fmri"].grad[unseen][:, 7:].abs().min() > 0


def test_the_picture_to_rebuild_is_the_mean_of_the_tr_s_own_frames(batch):
    mask = batch.video_mask.clone()
    mask[1] = torch.tensor([True, False, True])
    frame = target_frame(scaled_video(batch.video), mask)
    expected = batch.video[1, [0, 2]].double().mean(0).flatten() / 255
    torch.testing.assert_close(frame[1].double(), expected, rtol=1e-6, atol=1e-6)


def test_token_hits_count_only_what_is_there(batch):
    outputs = {"audio_recon": batch.audio.clone()}
    counted = int(Losses(STATISTICS, VOXELS, ModelConfig()).counts(batch)[TERMS.index("audio")])
    assert token_hits(outputs, batch) == counted < batch.audio.numel()
    outputs["audio_recon"] += 1
    assert token_hits(outputs, batch) == 0
