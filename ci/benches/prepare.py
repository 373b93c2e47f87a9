"""`giblet prepare` beside ffmpeg decoding and scaling, and beside EnCodec alone; and peak memory by the film's length.

Goals: prepare <= 1.3 x the larger of the two bare times; memory flat in the film's length.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from pathlib import Path

from benches.common import CONFIG, Options, Row, Took, giblet, make_example, row, timed

FULL_SIZE = ["--set", "data.video.height=90", "--set", "data.video.width=160", "--set", "data.video.frame_skip=4"]
ENCODEC = """
import sys, torch, encodec
from giblet.data.sound import film_sound
from giblet.data.video import probe
import numpy as np
from pathlib import Path
torch.manual_seed(0)
model = encodec.EncodecModel.encodec_model_24khz(pretrained=False).eval()
model.set_target_bandwidth(3.0)
for name in sys.argv[1:]:
    sound = torch.from_numpy(np.concatenate([*film_sound(probe(Path(name)))]))
    with torch.no_grad():
        for piece in sound.split(240_000):
            model.encode(piece[None, None])
"""


def rows(options: Options) -> list[Row]:
    """Rounds of the three in turn, then the film beside half of it."""
    bids = options.example()
    films = [str(path) for path in sorted(bids.glob("stimuli/*.mp4"))]
    rounds = [(prepare(options, bids), decode(films), encode(films)) for _ in range(options.rounds)]
    ratios = [ours.seconds / max(bare.seconds, codec.seconds) for ours, bare, codec in rounds]
    codec_to_ffmpeg = statistics.median(codec.seconds / bare.seconds for _, bare, codec in rounds)
    half = options.folder / "half"
    make_example(half, options.minutes / 2)
    memory = prepare(options, bids).peak_mib / prepare(options, half).peak_mib
    peak = statistics.median(ours.peak_mib for ours, _, _ in rounds)
    return [
        row("prepare / larger of (ffmpeg, EnCodec)", ratios, goal="<= 1.3",
            note=f"EnCodec / ffmpeg {codec_to_ffmpeg:.1f}"),
        row("peak memory, film 2 x as long", [memory], goal="flat: 1", note=f"{peak:.0f} MiB"),
    ]  # fmt: skip


def prepare(options: Options, source: Path) -> Took:
    """A whole `giblet prepare`, from nothing."""
    cache = options.folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    return timed(giblet("prepare", str(source), "--config", CONFIG, "--set", f"data.cache_dir={cache}", *FULL_SIZE))


def decode(films: list[str]) -> Took:
    """ffmpeg decodes the films and scales every fourth frame."""
    import imageio_ffmpeg

    scale = ["-vf", "select=not(mod(n\\,4)),scale=160:90:flags=area", "-fps_mode", "passthrough"]
    tail = ["-an", "-pix_fmt", "rgb24", "-f", "rawvideo", "-y", os.devnull]
    took = [timed([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", film, *scale, *tail]) for film in films]
    return Took(sum(t.seconds for t in took), sum(t.processor_seconds for t in took), max(t.peak_mib for t in took))


def encode(films: list[str]) -> Took:
    """EnCodec encodes the films' sound, start of Python and all."""
    return timed([sys.executable, "-c", ENCODEC, *films])
