"""The network against the published list of its tensors and against an independent functional reference."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from giblet.config import load_config, load_config_data
from giblet.errors import ConfigError
from giblet.models import Dimensions, MultimodalAutoencoder, build_model, resolve_dimensions
from giblet.models.build import meta_model
from giblet.models.initialise import initialise
from giblet.models.structure import Structure
from tests.support.model import ROWS, SMALL, inputs

REFERENCE = json.loads((Path(__file__).parent / "data/autoencoder_3b_state_dict.json").read_text())
PRODUCTION = Path(__file__).parents[3] / "configs/prod.yaml"


def small_model(**changes):
    torch.manual_seed(0)
    model = MultimodalAutoencoder(**{**SMALL, **changes})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith(("bias", "running_mean")) or value.ndim == 1:
                value.normal_(0.3, 0.5)
    return model


def reference_forward(state, video, audio, text, *, training):
    """reference/AUTOENCODER.md in plain functional calls, dropout 0."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        if training:
            mean, variance = x.mean(0), x.var(0, unbiased=False)
        else:
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return (x - mean) / torch.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def named_blocks(x, name, count):
        for i in range(1, count + 1):
            x = F.relu(norm(linear(x, f"{name}.fc{i}"), f"{name}.bn{i}"))
        return x

    def blocks(x, name, *at):
        for i in at:
            x = F.relu(norm(linear(x, f"{name}.{i}"), f"{name}.{i + 1}"))
        return x

    x = torch.cat(
        [
            named_blocks(video.flatten(1), "encoder.video_encoder", 3),
            named_blocks(audio.flatten(1).float(), "encoder.audio_encoder", 2),
            named_blocks(text, "encoder.text_encoder", 2),
        ],
        1,
    )
    for name in ("feature_conv", "layer5", "layer6"):
        x = blocks(x, f"encoder.{name}", 0)
    bottleneck = norm(linear(x, "encoder.layer7_bottleneck.0"), "encoder.layer7_bottleneck.1")
    voxels = linear(blocks(bottleneck, "encoder.bottleneck_to_voxels", 0), "encoder.bottleneck_to_voxels.4")
    y = bottleneck
    for name in ("layer8", "layer9", "layer10", "layer11"):
        y = blocks(y, f"decoder.{name}", 0)
    codes = linear(blocks(y, "decoder.layer12_audio", 0, 4), "decoder.layer13_audio")
    codes = torch.sigmoid(codes.view(-1, *audio.shape[1:])) * 1023
    return {
        "bottleneck": bottleneck,
        "predicted_fmri": voxels,
        "video_recon": torch.sigmoid(linear(blocks(y, "decoder.layer12_video", 0, 4), "decoder.layer13_video.0")),
        "audio_recon": codes if training else codes.round().clamp(0, 1023),
        "text_recon": linear(blocks(y, "decoder.layer12_text", 0, 4), "decoder.layer13_text"),
    }


def test_the_production_state_dict_is_the_published_one():
    config = load_config(PRODUCTION)
    expected = list(Structure(config).tensors.values())
    assert [(e.name, list(e.shape)) for e in expected] == [(r["name"], r["shape"]) for r in REFERENCE]
    kinds = {"float": "float32", "int64": "int64"}
    assert [e.dtype for e in expected] == [kinds[r["dtype_role"].split(":")[0]] for r in REFERENCE]
    assert len(expected) == 162
    assert sum(math.prod(e.shape) for e in expected) == 3_405_440_249


def test_the_production_model_trains_every_published_parameter():
    model = meta_model(load_config(PRODUCTION))
    trained = dict(model.named_parameters())
    assert set(trained) == {r["name"] for r in REFERENCE if ":param:" in r["dtype_role"]}
    assert sum(p.numel() for p in trained.values()) == 3_405_302_755
    assert all(p.requires_grad for p in trained.values())
    assert sum(p.numel() for n, p in trained.items() if n.startswith("decoder.")) == 264_241_152


def test_the_constructor_s_defaults_are_the_production_network():
    with torch.device("meta"):
        state = MultimodalAutoencoder().state_dict()
    assert [(n, list(v.shape)) for n, v in state.items()] == [(r["name"], r["shape"]) for r in REFERENCE]


@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_the_functional_reference(training):
    model = small_model(dropout_scale=0.0).train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = model(*inputs())
    expected = reference_forward(state, *inputs(), training=training)
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-5, atol=2e-5 if name != "audio_recon" else 1e-2)
    shapes = {
        "bottleneck": (10,),
        "predicted_fmri": (9,),
        "video_recon": (36,),
        "audio_recon": (2, 5),
        "text_recon": (6,),
    }
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {n: (ROWS, *s) for n, s in shapes.items()}


def test_flat_inputs_are_the_same_inputs():
    model = small_model().eval()
    video, audio, text = inputs()
    once, flat = model(video, audio, text), model(video.flatten(1), audio.flatten(1), text)
    assert all(torch.equal(once[name], flat[name]) for name in once)


def test_dropout_has_the_published_probabilities():
    model = small_model()
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    encoders = (model.encoder.video_encoder, model.encoder.audio_encoder, model.encoder.text_encoder)
    assert [encoder.dropouts for encoder in encoders] == [(0.3, 0.3, 0.2), (0.3, 0.2), (0.2, 0.2)]
    assert found.pop("encoder.feature_conv.3") == 0.2
    assert len(found) == 13
    assert set(found.values()) == {0.3}


def test_initial_values_follow_the_reference_and_nothing_but_name_and_seed():
    torch.manual_seed(0)
    once, again = MultimodalAutoencoder(**SMALL), MultimodalAutoencoder(**SMALL)
    initialise(once, seed=5)
    initialise(again.decoder, seed=5, prefix="decoder")
    initialise(again.encoder, seed=5, prefix="encoder")
    for name, value in once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    initialise(again, seed=6)
    assert not torch.equal(once.state_dict()["encoder.layer5.0.weight"], again.state_dict()["encoder.layer5.0.weight"])


@pytest.mark.parametrize("how", ["constructor", "initialise"])
def test_encoder_starts_at_pytorch_s_defaults_and_decoder_kaiming_normal(how):
    torch.manual_seed(0)
    wide = {"encoder_hidden": (300, 400), "decoder_hidden": (300, 200, 14, 12)}
    model = MultimodalAutoencoder(**{**SMALL, **wide})
    if how == "initialise":
        with torch.no_grad():
            for value in model.state_dict().values():
                value.fill_(7)
        initialise(model, seed=1)
    state = model.state_dict()
    uniform = state["encoder.layer6.0.weight"]
    assert uniform.abs().max() <= 300**-0.5
    assert uniform.std().item() == pytest.approx(300**-0.5 / math.sqrt(3), rel=0.02)
    assert state["encoder.layer6.0.bias"].std().item() == pytest.approx(300**-0.5 / math.sqrt(3), rel=0.15)
    assert state["decoder.layer9.0.weight"].std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)
    assert state["decoder.layer9.0.bias"].abs().max() == 0
    assert state["decoder.layer9.1.running_var"].eq(1).all()


def test_classified_codes_have_logits_and_their_argmax():
    model = small_model(audio_objective="classify").eval()
    outputs = model(*inputs())
    assert outputs["audio_logits"].shape == (ROWS, 2, 5, 1024)
    assert torch.equal(outputs["audio_recon"], outputs["audio_logits"].argmax(-1))
    head = model.decoder.audio_codebook
    features = torch.randn(3, 2, 5, 16)
    expected = torch.einsum("nqae,qec->nqac", features, head.weight) + head.bias[None]
    torch.testing.assert_close(head(features), expected)


def test_layer_norm_is_the_alternative():
    model = small_model(norm="layer")
    assert not any("running" in name for name in model.state_dict())
    assert model(*[values[:1] for values in inputs()])["bottleneck"].shape == (1, 10)


def test_rows_must_be_whole_segments():
    with pytest.raises(ValueError, match="12 rows are no whole number of segments of 5 TRs"):
        small_model()(*inputs(), trs=5)


def test_widths_come_from_the_dataset_where_the_configuration_leaves_them_open():
    prepared = Dimensions(3, 36, 64, 4, 113, 384, 500)
    assert resolve_dimensions(load_config_data({}), prepared) == prepared
    fewer = load_config_data({"model": {"audio_frames": 112}})
    assert resolve_dimensions(fewer, prepared).audio_frames == 112
    with pytest.raises(ConfigError, match=r"model.voxels is 7, but the prepared dataset has 500.*\n.*remedy") as caught:
        resolve_dimensions(load_config_data({"model": {"voxels": 7, "text_dimension": 9}}), prepared)
    assert "model.text_dimension is 9" in str(caught.value)
    with pytest.raises(ConfigError, match=r"model\.video_frames is not set"):
        build_model(load_config_data({}))
