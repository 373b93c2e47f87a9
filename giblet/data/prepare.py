"""From a BIDS folder to a prepared dataset.

    dataset = prepare(config.data)

Inputs and settings are hashed first: a dataset of the same hash is simply opened. Otherwise each film is decoded once,
its pictures and its sound at the same time, whoever saw it; what was finished before a crash is not done again, and the
result is the same bytes. Memory does not grow with the films.
"""

from __future__ import annotations

import gc
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from giblet.config.schema import AUDIO_FRAMES_PER_SECOND, DataConfig
from giblet.data import text
from giblet.data.bids import annotation_file, find_runs, read_annotations
from giblet.data.grid import Layout, repeat_last, stimulus_mask
from giblet.data.manifest import ArrayFile
from giblet.data.plan import Plan, PlannedPresentation, make_plan
from giblet.data.prepared import PreparedDataset, file_sha256
from giblet.data.provenance import Inputs, gather_inputs
from giblet.data.report import array_name, build_manifest
from giblet.data.scans import Scans
from giblet.data.sound import film_frames, film_sound
from giblet.data.transfer import fetch, is_published
from giblet.data.video import sample_pictures
from giblet.data.workspace import Workspace, flush, full_disk_is_an_error_of_ours
from giblet.errors import ConfigError, OutOfSpaceError
from giblet.processors import usable_processors
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger
from giblet.telemetry.progress import Bar, progress

if TYPE_CHECKING:
    from giblet.data.audio import AudioProcessor

PIECE_SECONDS = 60
"""So much of a film's pictures is redone at most after a crash."""

AUDIO_WORK, VOLUME_WORK = 1.0, 0.05
"""Work of a second of sound and of a volume of BOLD, beside that of a second of pictures: for the estimate only."""

MOST_FILMS_AT_ONCE = 4
"""Heard at once, whatever the cores, and seen at once: each has the codec's activations and a decoder in memory."""

MOST_DECODERS = 16
"""Threads of one film's decoder; FFmpeg advises against more."""

PICTURES_AT_A_TIME = 48
"""Before the core is given to somebody else; about as much work as a window of sound."""

TURN_SECONDS = 0.0001

log = get_logger(__name__)
Array = npt.NDArray[Any]
T = TypeVar("T")


def prepare(
    config: DataConfig, *, cache_dir: str | Path | None = None, published: Storage | None = None
) -> PreparedDataset:
    """Prepare the dataset that `config` describes under `cache_dir` (`config.cache_dir` if None), or open it.

    A dataset of the same hash that is `published` in storage is fetched from there instead.

    Raises `ConfigError` where no BIDS folder is named, `DataError` for bad inputs, `DependencyError` for missing
    models, `OutOfSpaceError` for a full disk.
    """
    if config.bids is None:
        raise ConfigError("data.bids is not set", remedy="name the BIDS folder to prepare from")
    where = Path(cache_dir if cache_dir is not None else config.cache_dir)
    folder = find_runs(config.bids, config.task, config.subjects)
    inputs = gather_inputs(folder, config)
    workspace = Workspace(where, inputs.content_hash)
    if published is not None and not workspace.final.exists() and is_published(published, inputs.content_hash):
        return fetch(published, inputs.content_hash, where)
    with full_disk_is_an_error_of_ours(where), workspace.locked():
        if workspace.final.exists():
            log.info("prepared already", dataset=workspace.final)
        else:
            _Preparation(make_plan(folder, config), config, inputs, workspace).run()
    return PreparedDataset.open(workspace.final)


class _Preparation:
    """One dataset in the making: its parts, each of which picks up where its record says.

    There are more parts at work than cores, and whoever computes something long takes one first: left to the kernel
    and Python's lock, which change between them every few milliseconds, two cores take a fifth longer.
    """

    def __init__(self, plan: Plan, config: DataConfig, inputs: Inputs, workspace: Workspace) -> None:
        self.plan, self.config, self.inputs, self.workspace = plan, config, inputs, workspace
        self._stop = threading.Event()
        self._bar_lock = threading.Lock()
        self._bar: Bar | None = None
        self._scans = Scans(plan, config.bold, workspace)
        self._text_dimension = 0
        self._audio_processor: AudioProcessor | None = None
        self._processors = usable_processors()
        self._core = threading.BoundedSemaphore(self._processors)
        self._listeners = min(len(plan.films), MOST_FILMS_AT_ONCE)
        self._audio_threads = self._video_threads = 1
        self._torch_threads = 0
        """As many as torch had before a listener changed that; 0 until then."""
        self._import_lock = threading.Lock()

    def run(self) -> None:
        """Make every part, then the manifest."""
        workspace, plan = self.workspace, self.plan
        workspace.begin()
        self._check_room()
        self._allocate()
        seconds = sum(float(film.duration) for film in plan.films.values())
        scanned = sum(p.grid.trs for p in plan.presentations for _ in p.scans)
        films = list(enumerate(plan.films))
        unheard, unseen = iter(films), iter(films)  # a list's iterator gives each item to one thread
        viewers = min(self._listeners, self._processors)
        self._audio_threads = max(self._processors // self._listeners, 1)
        self._video_threads = min(max(self._processors // 2 // viewers, 1), MOST_DECODERS)
        with progress("prepare", total=seconds * (1 + AUDIO_WORK) + scanned * VOLUME_WORK, unit="s") as self._bar:
            try:
                self._in_parallel(
                    [
                        *[lambda: self._each(self._audio, unheard)] * self._listeners,
                        *[lambda: self._each(self._video, unseen)] * viewers,
                        self._bold_and_text,
                    ]
                )
            finally:
                if self._torch_threads:
                    import torch

                    torch.set_num_threads(self._torch_threads)
        log.info("statistics and hashes")
        self._fill_and_mask()
        manifest = build_manifest(
            plan,
            self.config,
            self.inputs,
            self._subjects(),
            self._text_dimension,
            entry=self._entry,
            load=lambda name: np.load(workspace.folder / f"{name}.npy", mmap_mode="r"),
            notes=self._scans.notes(),
        )
        log.info("prepared", dataset=workspace.finish(manifest))

    def _subjects(self) -> list[str]:
        return [f"sub-{subject}" for subject in self.plan.bids.subjects]

    @contextmanager
    def _importing(self) -> Iterator[None]:
        """One thread at a time, since two in one package's circular imports see half of a module; garbage can wait."""
        with self._import_lock, self._core:
            collecting = gc.isenabled()
            gc.disable()
            try:
                yield
            finally:
                if collecting:
                    gc.enable()

    def _with_a_core(self, pictures: Iterator[T]) -> Iterator[T]:
        while True:
            with self._core:
                made = list(islice(pictures, PICTURES_AT_A_TIME))
            if not made:
                return
            yield from made

    def _each(self, work: Callable[..., None], items: Iterable[Sequence[Any]]) -> None:
        for item in items:
            work(*item)

    def _in_parallel(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run jobs in threads; the first failure stops the others at their next piece and is raised."""
        with _short_turns(), ThreadPoolExecutor(len(jobs), "prepare") as pool:
            futures: list[Future[None]] = [pool.submit(job) for job in jobs]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and future.exception() is None for future in futures):
                    self._stop.set()
        failures = [error for future in futures if (error := future.exception()) is not None]
        for error in failures:
            if not isinstance(error, _StoppedElsewhereError):
                raise error

    def _advance(self, amount: float) -> None:
        if self._stop.is_set():
            raise _StoppedElsewhereError
        with self._bar_lock:
            if self._bar is not None:
                self._bar.advance(amount)

    # ------------------------------------------------------------------ arrays

    def _array(self, presentation: int, name: str) -> Array:
        plan, trs = self.plan, self.plan.presentations[presentation].grid.trs
        size = self.config.video
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "video": ((trs, plan.video_frames, size.height, size.width, 3), "uint8"),
            "video_mask": ((trs, plan.video_frames), "bool"),
            "audio": ((trs, self.config.audio.codebooks, plan.audio_frames), "int16"),
            "audio_mask": ((trs, plan.audio_frames), "bool"),
            "text": ((trs, self._text_dimension), "float16"),
            "text_mask": ((trs,), "bool"),
            "stimulus_mask": ((trs,), "bool"),
        }
        return self.workspace.array(array_name(presentation, name), *shapes[name])

    def _allocate(self) -> None:
        """Claim the disk for all arrays of pictures and sound, so that a full one is found now."""
        for index in range(len(self.plan.presentations)):
            for name in ("video", "video_mask", "audio", "audio_mask", "stimulus_mask"):
                self._array(index, name)

    def _check_room(self) -> None:
        """Refuse to start where the disk cannot hold the largest arrays."""
        size = self.config.video
        frame = size.height * size.width * 3
        needed = sum(p.grid.trs * self.plan.video_frames * frame for p in self.plan.presentations)
        there = sum(path.stat().st_blocks * 512 for path in self.workspace.folder.rglob("video.npy"))
        free = shutil.disk_usage(self.workspace.folder).free
        if needed - there > free:
            raise OutOfSpaceError(
                f"the pictures alone need {(needed - there) / 2**20:.0f} MiB, and {self.workspace.folder} has "
                f"{free / 2**20:.0f} MiB left",
                remedy="free some space, set data.cache_dir to a larger disk, or lower data.video.height and width",
            )

    def _entry(self, name: str) -> ArrayFile:
        path = self.workspace.folder / f"{name}.npy"
        array = np.load(path, mmap_mode="r")
        return ArrayFile(file=f"{name}.npy", shape=array.shape, dtype=str(array.dtype), sha256=file_sha256(path))

    def _showings(self, film: Path, layout: Callable[[PlannedPresentation], Layout]) -> list[tuple[int, Any]]:
        """Where a film's samples go: (presentation, placement) of each showing with any in the scan."""
        return [
            (index, placement)
            for index, presentation in enumerate(self.plan.presentations)
            for shown, placement in zip(presentation.films, layout(presentation).placements, strict=True)
            if shown == film and len(placement.tr)
        ]

    # ------------------------------------------------------------------- parts

    def _video(self, number: int, path: Path) -> None:
        """A film's pictures, into every presentation that shows it, recorded every so often."""
        film, part = self.plan.films[path], f"video-{number:03d}"
        targets = [(self._array(index, "video"), placement) for index, placement in self._showings(path, _video_layout)]
        if not targets:
            return
        stop = max(placement.stop for _, placement in targets)
        k = self.workspace.state(part).get("next", min(placement.first for _, placement in targets))
        step = float(self.config.video.frame_skip / film.fps)
        self._advance(k * step)
        piece = max(round(PIECE_SECONDS / step), 1)
        size = self.config.video
        pictures = sample_pictures(
            film, frame_skip=size.frame_skip, first=k, stop=stop, height=size.height, width=size.width,
            threads=self._video_threads,
        ) if k < stop else iter(())  # fmt: skip
        for k, picture in self._with_a_core(pictures):
            for array, placement in targets:
                if placement.first <= k < placement.stop:
                    at = k - placement.first
                    array[placement.tr[at], placement.slot[at]] = picture
            self._advance(step)
            if (k + 1) % piece == 0 or k + 1 == stop:
                flush(*(array for array, _ in targets))
                self.workspace.record(part, {"next": k + 1})

    def _audio(self, number: int, path: Path) -> None:
        """A film's sound as codes, into every presentation that shows it, recorded after each window."""
        with self._importing():
            import torch

            from giblet.data.audio import Past

            processor = self._processor()
            if not self._torch_threads:
                self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(self._audio_threads)  # of this thread, and of threads that begin later
        film, record = self.plan.films[path], self.workspace.scratch(f"audio-{number:03d}.safetensors")
        frames = film_frames(film)
        past = Past.load(record) if record.exists() else Past()
        first = past.frames
        self._advance(AUDIO_WORK * first / AUDIO_FRAMES_PER_SECOND)
        if first >= frames:
            return
        targets = [(self._array(index, "audio"), placement) for index, placement in self._showings(path, _audio_layout)]
        with processor.joined():
            for codes in processor.stream(film_sound(film), frames, past):
                stop = first + codes.shape[1]
                for array, placement in targets:
                    low, high = max(first, placement.first), min(stop, placement.stop)
                    if low < high:
                        here = slice(low - placement.first, high - placement.first)
                        array[placement.tr[here], :, placement.slot[here]] = codes[:, low - first : high - first].T
                self._advance(AUDIO_WORK * codes.shape[1] / AUDIO_FRAMES_PER_SECOND)
                first = stop
                flush(*(array for array, _ in targets))
                past.save(record)

    def _processor(self) -> AudioProcessor:
        from giblet.data.audio import AudioProcessor

        if self._audio_processor is None:
            self._audio_processor = AudioProcessor(self.config.audio, self._listeners, self._core)
        return self._audio_processor

    def _bold_and_text(self) -> None:
        with self._importing():
            import nilearn.masking  # noqa: F401 (what `bold` needs of it)
        for subject in self._subjects():
            with self._core:
                self._scans.write(subject, lambda volumes: self._advance(volumes * VOLUME_WORK))
        self._text()

    def _text(self) -> None:
        """Words of all presentations."""
        self._text_dimension = self.workspace.state("text").get("dimension", 0)
        if self._text_dimension:
            return
        with self._importing():
            encoder = text.SentenceEncoder(self.config.text)
        self._text_dimension = text.text_dimension(self.config.text, encoder.dimension)
        embedded: dict[Path, list[tuple[float, float, Any]]] = {}
        for film in self.plan.films:
            table = annotation_file(film)
            rows = read_annotations(table) if table else []
            with self._core:
                vectors = encoder.encode([row.text for row in rows])
            embedded[film] = [(r.onset, r.onset + r.duration, v) for r, v in zip(rows, vectors, strict=True)]
        for index, presentation in enumerate(self.plan.presentations):
            words = []
            for film, showing in zip(presentation.films, presentation.showings, strict=True):
                onset, end = float(showing.onset), float(showing.onset + showing.duration)
                words += [
                    text.Words(onset + start, min(onset + stop, end), vector)
                    for start, stop, vector in embedded[film]
                    if onset + start < end
                ]
            values, mask = text.on_grid(presentation.grid, words, self.config.text, encoder.dimension)
            arrays = self._array(index, "text"), self._array(index, "text_mask")
            arrays[0][:], arrays[1][:] = values, mask
            flush(*arrays)
        self.workspace.record("text", {"dimension": self._text_dimension})

    def _fill_and_mask(self) -> None:
        """Masks, and a TR's last frame where it has fewer than others. Done anew each time: it is quick."""
        for index, presentation in enumerate(self.plan.presentations):
            for name, layout in (("video", presentation.video), ("audio", presentation.audio)):
                values, mask = self._array(index, name), self._array(index, f"{name}_mask")
                repeat_last(values, layout.counts, axis=values.ndim - 1 if name == "audio" else 1)
                mask[:] = layout.mask(mask.shape[1])
                flush(values, mask)
            seen = self._array(index, "stimulus_mask")
            seen[:] = stimulus_mask(presentation.grid, presentation.showings)
            flush(seen)


@contextmanager
def _short_turns() -> Iterator[None]:
    """A thread that imports runs Python and nothing else; let the others, which mostly do not, have the lock soon."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _StoppedElsewhereError(Exception):
    """Another part failed; its error is the one to report."""


def _video_layout(presentation: PlannedPresentation) -> Layout:
    return presentation.video


def _audio_layout(presentation: PlannedPresentation) -> Layout:
    return presentation.audio
