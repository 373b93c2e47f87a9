"""Sound as EnCodec codes: 24 kHz mono, 75 frames a second, 2 to 32 codebooks by bandwidth.

    processor = AudioProcessor(AudioConfig(weights="encodec_24khz.th"))
    codes = processor.encode(waveform, sample_rate_hz=44100)      # int16 (Q, frames)
    codes = processor.encode_film("film.mp4")

Sound of any length is encoded in windows of bounded memory, and the codes are those of the whole at once: the network
is causal, so each window of the convolutions gets the few samples of the past that they can see, and the LSTM's state
is carried over. (Float rounding may differ, which can flip a code whose two best entries are equally near.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save

from giblet.config.schema import AudioConfig
from giblet.data.codec import load_codec
from giblet.data.lockstep import LockStep, Made
from giblet.data.sound import HOP_SAMPLES, SAMPLE_RATE_HZ, Waveform, film_frames, film_sound, resample
from giblet.data.video import probe
from giblet.data.workspace import write_atomically
from giblet.errors import DataError

Codes = npt.NDArray[np.int16]

WINDOW_FRAMES = 375
"""Five seconds: the convolutions' largest activation is then 15 MB."""

CONTEXT_SAMPLES = 478
"""The convolutions before the LSTM see so many samples before a frame's own (kernels 7, 3, 4, 3, 8, 3, 10, 3, 16 at
strides 2, 4, 5, 8)."""

LAST_KERNEL = 7


@dataclass
class Past:
    """What the network remembers of the sound before: all that a stream needs to go on from `frames`."""

    frames: int = 0
    samples: Waveform = field(default_factory=lambda: np.zeros(0, np.float32))
    hidden: torch.Tensor | None = None
    cell: torch.Tensor | None = None
    features: torch.Tensor | None = None

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically."""
        tensors = {"hidden": self.hidden, "cell": self.cell, "features": self.features}
        known = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        content = save({"samples": torch.from_numpy(self.samples.copy()), **known}, {"frames": str(self.frames)})
        write_atomically(path, content)

    @classmethod
    def load(cls, path: Path) -> Past:
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            frames = int(file.metadata()["frames"])
        return cls(frames, tensors.pop("samples").numpy(), **tensors)


@dataclass(frozen=True, slots=True)
class _Coming:
    """A window that waits for its turn in the LSTM."""

    window: Waveform
    hidden: torch.Tensor
    made: Future[Made]


class AudioProcessor:
    """Turns sound into EnCodec codes. Deterministic on one machine for a given number of threads, and of `streams`.

    `streams`: so many threads at most have a stream at the same time; with more than one, each does so within `joined`.
    `core`: held while one of them computes, and not while it waits for another.
    """

    def __init__(
        self, config: AudioConfig | None = None, streams: int = 1, core: AbstractContextManager[Any] | None = None
    ) -> None:
        self.config = config if config is not None else AudioConfig()
        self._core = core if core is not None else nullcontext()
        self._codec = load_codec(self.config)
        self._lstm = LockStep(self._codec.lstm, streams, self._core)

    @property
    def codebooks(self) -> int:
        """Q."""
        return self.config.codebooks

    def joined(self) -> AbstractContextManager[None]:
        """While a thread is in here, the others' streams wait for each window of its own."""
        return self._lstm.stream()

    def encode(self, waveform: npt.ArrayLike | torch.Tensor, sample_rate_hz: int) -> Codes:
        """Codes int16 (Q, frames) of a waveform: (samples,), or (channels, samples), which are averaged.

        Integer samples are scaled by their type's range. `frames` is ceil(seconds x 75). Raises `DataError` for an
        empty or non-finite waveform.
        """
        mono = _as_mono(waveform)
        if sample_rate_hz != SAMPLE_RATE_HZ:
            mono = np.concatenate([*resample(mono, sample_rate_hz)])
        frames = math.ceil(len(mono) / HOP_SAMPLES)
        return np.concatenate([*self.stream([mono], frames)], axis=1)

    def encode_film(self, path: str | Path) -> Codes:
        """Codes int16 (Q, frames) of a film's first sound track, from its first picture to its last."""
        film = probe(Path(path))
        return np.concatenate([*self.stream(film_sound(film), film_frames(film))], axis=1)

    def stream(self, chunks: Iterable[Waveform], frames: int, past: Past | None = None) -> Iterator[Codes]:
        """Yield codes int16 (Q, at most 375) of 24 kHz mono chunks, `frames` in all.

        What the chunks lack at the end is silence, what they have too much is left out. `past` is brought up to date
        before each yield; one that was kept lets an interrupted stream of the same chunks go on behind it. A window is
        heard while the one before waits for the LSTM.
        """
        past = past if past is not None else Past()
        done, before = past.frames, past.samples
        state = None if past.hidden is None or past.cell is None else (past.hidden, past.cell)
        coming = None
        windows = _windows(chunks, frames)
        while True:
            with self._core:
                window = next(windows, None)
                while window is not None and done > 0:
                    done -= len(window) // HOP_SAMPLES
                    window = next(windows, None)
                if window is None:
                    break
                hidden = self._hear(window, before)
            if coming is not None:
                _, state = coming.made.result()
            following = _Coming(window, hidden, self._lstm.put(hidden, state))
            if coming is not None:
                yield self._codes(coming, past)
            coming, before = following, window
        if coming is not None:
            yield self._codes(coming, past)

    @torch.inference_mode()
    def _hear(self, window: Waveform, before: Waveform) -> torch.Tensor:
        """What the convolutions make of a window for the LSTM: (T, 1, H). Nothing is `before` a stream's first."""
        convolutions = self._codec.onwards if len(before) else self._codec.beginning
        heard = np.concatenate([before[-CONTEXT_SAMPLES:], window])
        return convolutions.before(torch.from_numpy(heard)[None, None]).permute(2, 0, 1)

    @torch.inference_mode()
    def _codes(self, coming: _Coming, past: Past) -> Codes:
        """A window's codes; `past` is brought up to date."""
        recurrent, (past.hidden, past.cell) = coming.made.result()
        convolutions = self._codec.onwards if past.frames else self._codec.beginning
        with self._core:
            features = (recurrent + coming.hidden).permute(1, 2, 0)
            joined = features if past.features is None else torch.cat([past.features, features], dim=2)
            codes = self._codec.quantize(convolutions.after(joined), self.config.bandwidth_kbps)
        past.samples = coming.window[-CONTEXT_SAMPLES:]
        past.features = joined[..., -(LAST_KERNEL - 1) :]
        past.frames += features.shape[2]
        return codes.numpy().astype(np.int16)


def _windows(chunks: Iterable[Waveform], frames: int) -> Iterator[Waveform]:
    """Cut chunks of any length into windows of whole frames, `frames` in all, silence at the end."""
    wanted, held, count = frames * HOP_SAMPLES, [], 0
    size = WINDOW_FRAMES * HOP_SAMPLES
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        while count >= size and wanted:
            joined = np.concatenate(held)
            take = min(size, wanted)
            yield joined[:take]
            wanted -= take
            held, count = [joined[take:]], len(joined) - take
        if not wanted:
            return
    rest = np.concatenate([*held, np.zeros(0, np.float32)])
    while wanted:
        take = min(size, wanted)
        window = rest[:take]
        yield np.concatenate([window, np.zeros(take - len(window), np.float32)])
        rest, wanted = rest[take:], wanted - take


def _as_mono(waveform: npt.ArrayLike | torch.Tensor) -> Waveform:
    values = waveform.detach().cpu().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)
    if np.issubdtype(values.dtype, np.integer):
        values = values / -float(np.iinfo(values.dtype).min)
    mono = values.mean(axis=0) if values.ndim == 2 else values
    if mono.ndim != 1 or not mono.size or not np.isfinite(mono).all():
        raise DataError(
            f"a waveform of shape {values.shape} is empty, not finite, or neither (samples,) nor (channels, samples)",
            remedy="give finite samples, channels first",
        )
    return np.ascontiguousarray(mono, np.float32)
