"""What the simulated brains respond to: families of features of the real film, on a clock of 0.25 s.

    layout_left, layout_right   luminance, contrast and colour of four cells of each half of the picture
    motion_left, motion_right   motion energy: quadrature pairs of spatio-temporal Gabor filters (Adelson & Bergen 1985;
                                Nishimoto et al. 2011), their squared and summed outputs compressed by a logarithm
    sound                       mean and fluctuation of a logarithmic mel spectrum
    words                       principal components of the sentence embeddings of the annotation table
    events                      novelty of each new sentence: 1 - cosine similarity to the one before, for one second

Each family is z-scored over the film and turned to principal components, whose standard deviations are softened to
their square root so that no single one rules. Squares, logarithms and quotients make most of them non-linear in the
pictures, the sound and the words that a model is given. `blank` is a family's value when nothing is shown or heard.
Letters: B bins of 0.25 s, K features, F frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from giblet.data.example.annotations import Segment
from giblet.errors import DataError, DependencyError
from giblet.telemetry.progress import Bar

Floats: TypeAlias = NDArray[np.float32]
Embed: TypeAlias = Callable[[list[str]], Floats]

BIN_SECONDS = 0.25
FRAMES_A_BIN = 3
WIDTH, HEIGHT = 48, 27
_SAMPLE_RATE_HZ = 16000
_WINDOW_SAMPLES = 400
_MEL_BANDS = 24
_COMPONENTS = {"layout": 3, "motion": 4, "sound": 5, "words": 6}
_TEMPORAL_HZ = (0.0, 2.0, -2.0, 4.0, -4.0)
_NOVELTY_BINS = round(1.0 / BIN_SECONDS)


@dataclass(frozen=True, slots=True)
class Stimulus:
    """One run's piece of the film, and what holds in it, in seconds from its start."""

    path: Path
    seconds: float
    segments: list[Segment]

    @property
    def bins(self) -> int:
        """Bins that cover it."""
        return int(np.ceil(self.seconds / BIN_SECONDS - 1e-6))


@dataclass(frozen=True, slots=True)
class Family:
    """Features of one kind: float32 (B, K) for each stimulus, and `blank` (K,), in standard deviations of the film."""

    name: str
    values: list[Floats]
    blank: Floats


def film_features(stimuli: list[Stimulus], embed: Embed, bar: Bar) -> list[Family]:
    """Every family over all stimuli; `bar` advances by seconds of film, once for pictures and once for sound."""
    layouts, energies, sounds = [], [], []
    for stimulus in stimuli:
        layout, gabor = _see(stimulus.path, stimulus.bins, bar)
        layouts.append(layout)
        energies.append(np.stack([_motion_energy(gabor[:, side]) for side in (0, 1)], axis=1))
        sounds.append(_hear(stimulus.path, stimulus.bins, bar))
    words, novelty = _read(stimuli, embed)
    families = []
    for kind, raw in (("layout", layouts), ("motion", energies)):
        for side, name in enumerate(("left", "right")):
            families.append(_family(f"{kind}_{name}", [part[:, side] for part in raw], _COMPONENTS[kind]))
    families.append(_family("sound", sounds, _COMPONENTS["sound"]))
    families.append(_family("words", words, _COMPONENTS["words"]))
    families.append(_family("events", novelty, 1))
    return families


def _family(name: str, parts: list[Floats], components: int) -> Family:
    """z-score, principal components, softened spectrum. Every raw feature is 0 when there is nothing."""
    raw = np.concatenate(parts)
    mean, scale = raw.mean(axis=0, dtype=np.float64), raw.std(axis=0, dtype=np.float64)
    varied = scale > 1e-6 * max(float(scale.max(initial=0.0)), 1e-12)
    if not varied.any():
        return Family(name, [np.zeros((len(part), 1), np.float32) for part in parts], np.zeros(1, np.float32))
    z = (raw[:, varied] - mean[varied]) / scale[varied]
    variances, axes = np.linalg.eigh(z.T @ z / len(z))
    order = np.argsort(variances)[::-1][:components]
    order = order[variances[order] > 1e-6 * variances[order[0]]]
    variances, axes = variances[order], axes[:, order]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(order))])
    softened = axes / np.sqrt(variances) * (variances / variances[0]) ** 0.25
    ends = np.cumsum([len(part) for part in parts])[:-1]
    blank = (-mean[varied] / scale[varied]) @ softened
    return Family(name, np.split((z @ softened).astype(np.float32), ends), blank.astype(np.float32))


def _see(film: Path, bins: int, bar: Bar) -> tuple[Floats, Floats]:
    """Layout features (B, 2 sides, K) and spatial Gabor pairs (F, 2 sides, K, 2), F = 3 B."""
    frames = bins * FRAMES_A_BIN
    filters = _spatial_gabors()
    layout = np.zeros((frames, 2, 16), np.float32)
    gabor = np.zeros((frames, 2, filters.shape[1] // 2, 2), np.float32)
    said = 0.0
    for index, rgb in _frames_on_clock(film, frames):
        halves = rgb.reshape(HEIGHT, 2, WIDTH // 2, 3).swapaxes(0, 1)
        luminance = halves @ np.array([0.299, 0.587, 0.114], np.float32)
        layout[index] = _layout(halves, luminance)
        gabor[index] = (luminance.reshape(2, -1) @ filters).reshape(2, -1, 2)
        seconds = (index + 1) / FRAMES_A_BIN * BIN_SECONDS
        bar.advance(seconds - said)
        said = seconds
    return layout.reshape(bins, FRAMES_A_BIN, 2, -1).mean(axis=1), gabor


def _frames_on_clock(film: Path, frames: int) -> Iterator[tuple[int, Floats]]:
    """The frame on the screen at each tick of 12 Hz, (HEIGHT, WIDTH, 3) in [0, 1]; black where there is none."""
    tick_seconds = BIN_SECONDS / FRAMES_A_BIN
    shown: Floats = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    waiting: av.VideoFrame | None = None
    tick = 0
    with av.open(film) as container:
        video = container.streams.video[0]
        video.thread_type = "AUTO"
        # The deblocking filter costs a fifth of the decoding and cannot be seen at this size.
        video.codec_context.options = {"skip_loop_filter": "all"}
        for frame in container.decode(video):
            while tick < frames and tick * tick_seconds < frame.time - 1e-4:
                shown, waiting = _scaled(waiting, shown), None
                yield tick, shown
                tick += 1
            if tick == frames:
                return
            waiting = frame
    while tick < frames:
        shown, waiting = _scaled(waiting, shown), None
        yield tick, shown
        tick += 1


def _scaled(frame: av.VideoFrame | None, otherwise: Floats) -> Floats:
    if frame is None:
        return otherwise
    pixels = frame.reformat(WIDTH, HEIGHT, "rgb24", interpolation="AREA").to_ndarray()
    return np.asarray(pixels, np.float32) / np.float32(255)


def _layout(halves: Floats, luminance: Floats) -> Floats:
    """Mean luminance, contrast, red-green and blue-yellow of 2x2 cells a side: (2, 16)."""
    rows, columns = (slice(0, HEIGHT // 2), slice(HEIGHT // 2, None)), (slice(0, WIDTH // 4), slice(WIDTH // 4, None))
    out = []
    for row in rows:
        for column in columns:
            light = luminance[:, row, column].reshape(2, -1)
            red, green, blue = halves[:, row, column].reshape(2, -1, 3).mean(axis=1).T
            mean = light.mean(axis=1)
            contrast = light.std(axis=1) / (mean + 0.1)
            out += [np.sqrt(mean), contrast, (red - green) / (mean + 0.1), (blue - (red + green) / 2) / (mean + 0.1)]
    return np.stack(out, axis=1).astype(np.float32)


def _spatial_gabors() -> Floats:
    """(pixels of half a picture, filters x 2): cosine and sine of 4 orientations, 2 scales, upper and lower field."""
    y, x = np.mgrid[0:HEIGHT, 0 : WIDTH // 2].astype(np.float64)
    filters = []
    for centre_y in (HEIGHT * 0.27, HEIGHT * 0.73):
        for cycles_a_pixel, width in ((1 / 12, 6.0), (1 / 5, 4.0)):
            for angle in np.arange(4) * np.pi / 4:
                envelope = np.exp(-((x - WIDTH / 4) ** 2 + (y - centre_y) ** 2) / (2 * width**2))
                phase = 2 * np.pi * cycles_a_pixel * ((x - WIDTH / 4) * np.cos(angle) + (y - centre_y) * np.sin(angle))
                for wave in (np.cos(phase), np.sin(phase)):
                    filter_ = envelope * wave
                    filter_ -= envelope * filter_.sum() / envelope.sum()
                    filters.append((filter_ / np.abs(filter_).sum()).ravel())
    return np.stack(filters, axis=1).astype(np.float32)


def _motion_energy(gabor: Floats) -> Floats:
    """log(1 + energy) of each filter at each temporal frequency and direction, (B, K): Adelson & Bergen 1985, eq. 5."""
    time = (np.arange(9) - 4) * BIN_SECONDS / FRAMES_A_BIN
    even, odd = gabor[..., 0], gabor[..., 1]
    energies = []
    for hertz in _TEMPORAL_HZ:
        window = np.hanning(11)[1:-1]
        cosine, sine = window * np.cos(2 * np.pi * hertz * time), window * np.sin(2 * np.pi * hertz * time)
        if hertz:
            cosine -= window * cosine.sum() / window.sum()
        a = _filter_time(even, cosine) - _filter_time(odd, sine)
        b = _filter_time(even, sine) + _filter_time(odd, cosine)
        energies.append(np.log1p(400 * (a**2 + b**2)))
    energy = np.concatenate(energies, axis=1)
    return np.asarray(energy.reshape(-1, FRAMES_A_BIN, energy.shape[1]).mean(axis=1), np.float32)


def _filter_time(series: Floats, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlate along time, edges repeated."""
    return np.asarray(correlate1d(series.astype(np.float64), kernel, axis=0, mode="nearest"))


def _hear(film: Path, bins: int, bar: Bar) -> Floats:
    """Log mel power and its standard deviation within a bin, (B, 2 x bands); silence is 0."""
    bin_samples = round(_SAMPLE_RATE_HZ * BIN_SECONDS)
    window = np.hanning(_WINDOW_SAMPLES).astype(np.float32)
    mel = _mel_filters()
    out = np.zeros((bins, 2 * _MEL_BANDS), np.float32)
    done = 0
    for block in _sound_blocks(film, bin_samples):
        if done == bins:
            break
        pieces = block.reshape(-1, bin_samples // _WINDOW_SAMPLES, _WINDOW_SAMPLES)[: bins - done]
        power = np.abs(np.fft.rfft(pieces * window, 512)) ** 2
        level = np.log1p(power @ mel * 100)
        out[done : done + len(level)] = np.concatenate([level.mean(axis=1), level.std(axis=1)], axis=1)
        done += len(level)
        bar.advance(len(level) * BIN_SECONDS)
    return out


def _sound_blocks(film: Path, bin_samples: int) -> Iterator[Floats]:
    """The sound, mono at 16 kHz, in blocks of whole bins; the last one is filled up with silence."""
    rest = np.zeros(0, np.float32)
    with av.open(film) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=_SAMPLE_RATE_HZ)
        for frame in container.decode(audio=0):
            pieces = [piece.to_ndarray().ravel() for piece in resampler.resample(frame)]
            rest = np.concatenate([rest, *pieces])
            if len(rest) >= 40 * bin_samples:
                whole = len(rest) - len(rest) % bin_samples
                yield rest[:whole]
                rest = rest[whole:]
    yield np.pad(rest, (0, -len(rest) % bin_samples))


def _mel_filters() -> Floats:
    """Triangular filters from 60 Hz to 7 kHz, (257, bands); mel = 2595 log10(1 + f / 700)."""
    edges_mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7000 / 700), _MEL_BANDS + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    hertz = np.fft.rfftfreq(512, 1 / _SAMPLE_RATE_HZ)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None), np.float32)


def _read(stimuli: list[Stimulus], embed: Embed) -> tuple[list[Floats], list[Floats]]:
    """Embedding of what holds in each bin (B, D), overlap-weighted; and the novelty of each new sentence (B, 1)."""
    texts = [segment.text for stimulus in stimuli for segment in stimulus.segments]
    vectors = np.asarray(embed(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise DataError(f"the sentence model gave an array of shape {vectors.shape} for {len(texts)} sentences")
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    remaining = iter(vectors)
    all_words, all_novelty = [], []
    for stimulus in stimuli:
        words = np.zeros((stimulus.bins, vectors.shape[1]), np.float32)
        novelty = np.zeros((stimulus.bins, 1), np.float32)
        edges = np.arange(stimulus.bins) * BIN_SECONDS
        before = None
        for segment in stimulus.segments:
            vector = next(remaining)
            overlap = np.minimum(edges + BIN_SECONDS, segment.end_seconds) - np.maximum(edges, segment.onset_seconds)
            words += np.clip(overlap, 0, None)[:, None].astype(np.float32) / BIN_SECONDS * vector
            first = int(segment.onset_seconds / BIN_SECONDS)
            novelty[first : first + _NOVELTY_BINS] = 1.0 if before is None else 1.0 - float(before @ vector)
            before = vector
        all_words.append(words)
        all_novelty.append(novelty)
    return all_words, all_novelty


def sentence_model(name: str) -> Embed:
    """An embedder of sentences: `package:NAME` for a model that a Python package carries, else a local folder.

    Raises `DependencyError` where package or model are missing.
    """
    remedy = "install giblet with its demo and hf extras, or name the folder of a sentence-transformers model"
    try:
        folder = Path(name)
        if name.startswith("package:"):
            folder = Path(importlib.import_module(name.removeprefix("package:")).get_model_path())
        if not folder.is_dir():
            raise DependencyError(f"there is no sentence model at {folder}", remedy=remedy)
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise DependencyError(f"the sentence model {name} needs a package: {error}", remedy=remedy) from error

    def embed(sentences: list[str]) -> Floats:
        disable_progress_bar()  # type: ignore[no-untyped-call]
        model = SentenceTransformer(str(folder), device="cpu")
        return np.asarray(model.encode(sentences, show_progress_bar=False, convert_to_numpy=True), np.float32)

    return embed
