"""Sound as EnCodec codes, through either package."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from giblet.config.schema import CODEBOOKS_BY_BANDWIDTH_KBPS, AudioConfig
from giblet.data import audio, causal, codec, sound
from giblet.data.audio import AudioProcessor
from giblet.data.sound import film_frames, film_sound
from giblet.data.video import probe
from giblet.errors import DataError, DependencyError
from tests.support.media import make_film, make_sound

RANDOM = AudioConfig(weights="random", bandwidth_kbps=6.0)
SOUND = make_sound(2.0, rate=24_000)


@pytest.fixture(scope="module")
def processor():
    return AudioProcessor(RANDOM)


@pytest.fixture(scope="module")
def reference():
    model = codec._encodec_model()
    codec.randomize(model)
    return model.eval()


def test_defect_6_a_bandwidth_has_as_many_codebooks_as_the_codec_gives(reference):
    for bandwidth, books in CODEBOOKS_BY_BANDWIDTH_KBPS.items():
        reference.set_target_bandwidth(bandwidth)
        with torch.inference_mode():
            assert reference.encode(torch.from_numpy(SOUND[:6400])[None, None])[0][0].shape == (1, books, 20)
        assert AudioConfig(bandwidth_kbps=bandwidth).codebooks == books


def test_windows_give_the_codes_of_the_whole(processor, reference, monkeypatch):
    reference.set_target_bandwidth(6.0)
    with torch.inference_mode():
        whole = reference.encode(torch.from_numpy(SOUND)[None, None])[0][0][0].numpy()
    monkeypatch.setattr(audio, "WINDOW_FRAMES", 40)
    windowed = processor.encode(SOUND, 24_000)
    assert windowed.shape == whole.shape == (8, 150)
    assert (windowed == whole).mean() > 0.995
    assert len(np.unique(whole[-1])) > 20


@pytest.mark.parametrize("backend", ["encodec", "transformers"])
def test_only_the_beginning_of_a_stream_is_padded(backend, monkeypatch):
    """Given the real past, the layers without pads are the package's own, and leave what they are given."""
    monkeypatch.setattr(causal, "PIECE_FRAMES", 16)
    layers = codec.load_codec(AudioConfig(backend=backend, weights="random"))
    heard = torch.from_numpy(make_sound(1.0, rate=24_000))[None, None]
    with torch.inference_mode():
        whole = layers.beginning.before(heard)
        kept = whole.clone()
        rest = layers.onwards.before(heard[..., 40 * 320 - audio.CONTEXT_SAMPLES :])
        torch.testing.assert_close(rest, whole[..., 40:], rtol=1e-5, atol=2e-5)
        ended = layers.onwards.after(whole)
        wanted = layers.beginning.after(whole)[..., audio.LAST_KERNEL - 1 :]
        torch.testing.assert_close(ended, wanted, rtol=1e-5, atol=2e-5)
        assert torch.equal(whole, kept)
        start = layers.onwards.before(torch.nn.functional.pad(heard[..., : 20 * 320], (audio.CONTEXT_SAMPLES, 0)))
    assert not torch.allclose(start[..., 0], whole[..., 0]), "silence before the start is not what the package pads"
    assert (layers.onwards.before.stride, layers.onwards.before.context) == (sound.HOP_SAMPLES, audio.CONTEXT_SAMPLES)
    assert (layers.onwards.after.stride, layers.onwards.after.context) == (1, audio.LAST_KERNEL - 1)


def test_a_stream_begins_as_the_package_does(processor, reference, monkeypatch):
    monkeypatch.setattr(audio, "WINDOW_FRAMES", 40)
    reference.set_target_bandwidth(6.0)
    with torch.inference_mode():
        whole = reference.encode(torch.from_numpy(SOUND)[None, None])[0][0][0].numpy()
    assert np.array_equal(processor.encode(SOUND, 24_000)[:, :40], whole[:, :40])


def test_an_interrupted_stream_goes_on_behind_what_it_remembers(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(audio, "WINDOW_FRAMES", 40)
    whole = processor.encode(SOUND, 24_000)
    past = audio.Past()
    stream = processor.stream([SOUND], 150, past)
    first = np.concatenate([next(stream), next(stream)], axis=1)
    past.save(tmp_path / "past")
    again = audio.Past.load(tmp_path / "past")
    assert again.frames == 80
    rest = np.concatenate([*processor.stream([SOUND], 150, again)], axis=1)
    assert np.array_equal(np.concatenate([first, rest], axis=1), whole)


class OneCore:
    """A core that knows whose it is."""

    def __init__(self):
        self.lock, self.owner = threading.Lock(), None

    def __enter__(self):
        assert self.lock.acquire(timeout=60), "somebody waits for another and keeps the core"
        self.owner = threading.get_ident()

    def __exit__(self, *error):
        self.owner = None
        self.lock.release()


def test_whoever_computes_has_a_core_and_whoever_waits_has_none(processor, monkeypatch):
    monkeypatch.setattr(audio, "WINDOW_FRAMES", 40)
    core, begun, computed = OneCore(), threading.Barrier(2), []
    shared = AudioProcessor(RANDOM, streams=2, core=core)

    def watched(owner, name):
        compute = getattr(owner, name)

        def look(*given):
            computed.append((name, core.owner == threading.get_ident()))
            return compute(*given)

        return look

    monkeypatch.setattr(shared._lstm._lstm, "forward", watched(shared._lstm._lstm, "forward"))
    monkeypatch.setattr(shared._codec.quantizer, "encode", watched(shared._codec.quantizer, "encode"))
    monkeypatch.setattr(shared, "_hear", watched(shared, "_hear"))

    def listen():
        with shared.joined():
            begun.wait(60)
            return np.concatenate([*shared.stream([SOUND], 150)], axis=1)

    with ThreadPoolExecutor(2) as pool:
        first, second = [future.result() for future in [pool.submit(listen), pool.submit(listen)]]
    assert np.array_equal(first, second)
    assert (first == processor.encode(SOUND, 24_000)).mean() > 0.995
    assert {name for name, _ in computed} == {"forward", "encode", "_hear"}
    assert all(had_a_core for _, had_a_core in computed)


def test_both_packages_give_the_same_codes_from_the_same_weights(tmp_path, reference, processor):
    torch.save(reference.state_dict(), tmp_path / "encodec.th")
    (tmp_path / "hf").mkdir()
    save_file(codec.to_transformers_names(reference.state_dict()), tmp_path / "hf" / "model.safetensors")
    wanted = processor.encode(SOUND, 24_000)
    for backend, weights in (("encodec", "hf"), ("transformers", "encodec.th")):
        config = AudioConfig(backend=backend, weights=str(tmp_path / weights), bandwidth_kbps=6.0)
        assert (AudioProcessor(config).encode(SOUND, 24_000) == wanted).mean() > 0.995


def test_streaming_equals_transformers_own_encoding(tmp_path, reference):
    transformers = pytest.importorskip("transformers")
    model = transformers.EncodecModel(transformers.EncodecConfig()).eval()
    model.load_state_dict(codec.to_transformers_names(reference.state_dict()))
    with torch.inference_mode():
        whole = model.encode(torch.from_numpy(SOUND)[None, None], bandwidth=3.0).audio_codes[0, 0].numpy()
    torch.save(reference.state_dict(), tmp_path / "w.th")
    mine = AudioProcessor(AudioConfig(backend="transformers", weights=str(tmp_path / "w.th"))).encode(SOUND, 24_000)
    assert mine.shape == whole.shape
    assert (mine == whole).mean() > 0.995


def test_names_translate_there_and_back(reference):
    state = reference.state_dict()
    there = codec.to_transformers_names(state)
    assert set(there) == set(codec._transformers_model().state_dict())
    assert list(codec.to_encodec_names(there)) == list(state)


def test_defect_22_the_processor_takes_what_it_says_it_takes(tmp_path, processor):
    plain = processor.encode(SOUND, 24_000)
    assert plain.dtype == np.int16
    assert plain.shape == (8, 150)
    assert plain.min() >= 0
    assert plain.max() < 1024
    assert np.array_equal(processor.encode(torch.from_numpy(SOUND), 24_000), plain)
    assert np.array_equal(processor.encode(np.stack([SOUND, SOUND]), 24_000), plain)
    integers = processor.encode((SOUND * 16384).astype(np.int16), 24_000)
    assert np.array_equal(integers, processor.encode((SOUND * 16384).astype(np.int16) / 32768, 24_000))
    assert processor.encode(make_sound(1.0), 48_000).shape == (8, 75)
    film = make_film(tmp_path / "film.mp4", seconds=1.5)
    assert processor.encode_film(film).shape == (8, film_frames(probe(film)))
    for bad in (np.zeros(0), np.array([np.nan, 1.0]), np.zeros((2, 3, 4))):
        with pytest.raises(DataError, match="waveform"):
            processor.encode(bad, 24_000)


def test_a_film_s_sound_is_on_the_film_s_clock(tmp_path):
    path = make_film(tmp_path / "film.mp4", seconds=2)
    heard = np.concatenate([*film_sound(probe(path))])
    sent = make_sound(2.0, rate=24_000)
    lags = range(-480, 481)
    middle = slice(4800, 40_000)
    match = [np.corrcoef(np.roll(heard, -lag)[middle], sent[middle])[0, 1] for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 24, "more than a millisecond off"
    assert max(match) > 0.8


def test_sound_that_ends_early_is_silent_to_the_film_s_end(processor):
    codes = np.concatenate([*processor.stream([SOUND[:24_000]], 150)], axis=1)
    padded = processor.encode(np.concatenate([SOUND[:24_000], np.zeros(24_000, np.float32)]), 24_000)
    assert np.array_equal(codes, padded)


def test_a_gap_in_the_sound_is_silence():
    position, chunk = sound._aligned(np.ones(100, np.float32), at=5000, position=1000)
    assert (position, len(chunk), chunk[:4000].any()) == (5100, 4100, False)
    position, chunk = sound._aligned(np.ones(100, np.float32), at=1003, position=1000)
    assert (position, len(chunk)) == (1100, 100)
    position, chunk = sound._aligned(np.ones(100, np.float32), at=-30, position=0)
    assert (position, len(chunk)) == (70, 70)


def test_random_weights_are_the_same_each_time_and_make_varied_codes(processor):
    again = AudioProcessor(RANDOM).encode(SOUND, 24_000)
    assert np.array_equal(again, processor.encode(SOUND, 24_000))
    assert all(len(np.unique(book)) >= 5 for book in again)


def test_a_film_without_sound_is_refused(tmp_path, processor):
    film = make_film(tmp_path / "silent.mp4", seconds=1, sound=False)
    with pytest.raises(DataError, match="has no sound"):
        processor.encode_film(film)


@pytest.mark.parametrize("backend", ["encodec", "transformers"])
def test_missing_weights_are_one_clear_error(tmp_path, backend):
    with pytest.raises(DependencyError, match="no such file"):
        AudioProcessor(AudioConfig(backend=backend, weights=str(tmp_path / "absent.th")))


@pytest.mark.parametrize("backend", ["encodec", "transformers"])
def test_weights_that_cannot_be_downloaded_are_one_clear_error(tmp_path, monkeypatch, backend):
    import huggingface_hub

    def offline(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DependencyError, match="could not be downloaded: no network"):
        AudioProcessor(AudioConfig(backend=backend))


def test_other_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.th")
    with pytest.raises(DataError, match="does not hold the weights of EnCodec"):
        AudioProcessor(AudioConfig(weights=str(tmp_path / "other.th")))
    (tmp_path / "broken.th").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="cannot be read as weights"):
        AudioProcessor(AudioConfig(weights=str(tmp_path / "broken.th")))
