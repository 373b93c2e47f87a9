"""One pass over every byte: checksums of objects and chunks, and statistics of tensors, in bounded memory.

The bytes are cut into spans of a few megabytes; a few threads read, hash and measure spans on their own, and
the results are joined in order. Memory is a few spans whatever the size of the checkpoint.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from giblet.errors import CheckpointError
from giblet.processors import usable_processors
from giblet.storage.base import Storage
from giblet.storage.crc import join
from giblet.telemetry.progress import Bar
from giblet.verify.distribution import Distribution, distribution
from giblet.verify.sources import Reader, Source, StoredObject
from giblet.verify.statistics import BLOCK_BYTES, Array, NumberFormat, Tally, TensorStatistics, is_second_moment

SPAN_BYTES = 4 * 1024 * 1024
"""One request where each costs a round trip, and so long a span is in memory."""

FOLDER_SPAN_BYTES = 32 * 1024 * 1024
"""Of a folder's files, which are read a block at a time: few spans, so that the threads seldom wait for Python."""

_WORTH_BYTES = 4096
"""Shorter runs are not worth a call."""

REMOTE_READS = 4
"""Ranges asked for at a time where each costs a round trip."""


@dataclass(slots=True)
class StreamResult:
    """What the bytes say. The faults are sentences, each with the name of what is at fault."""

    statistics: dict[str, TensorStatistics]
    bytes_read: int = 0
    faults: list[str] = field(default_factory=list)
    checksums_checked: int = 0
    distributions: dict[str, Distribution] = field(default_factory=dict)
    """Of each tensor, where they were asked for."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes `[start, stop)` of an object that belong to the same chunks throughout (to none, for a header)."""

    start: int
    stop: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Span:
    """Work for one thread: consecutive runs of one object, or a part of a long one."""

    item: StoredObject
    runs: tuple[_Run, ...]


@dataclass(slots=True)
class _Measured:
    run: _Run
    crc: int
    length: int
    statistics: dict[str, TensorStatistics]


def stream(
    source: Source, magnitude_limit: float, *, bar: Bar | None = None, distributions: bool = False
) -> StreamResult:
    """Read, hash and measure every byte of `source`; `distributions` also counts how each tensor's values lie.

    Bytes that are not there are faults, not errors; storage that does not answer raises its own error.
    """
    statistics = {name: TensorStatistics() for name in source.tensors}
    formats = {name: record.format() for name, record in source.tensors.items()}
    result = StreamResult(statistics, faults=[f"{name}: missing" for name in source.missing])
    sizes = {name: record.elements for name, record in source.tensors.items()} if distributions else {}
    crew = _Crew(source.storage, magnitude_limit, formats, sizes)
    with ThreadPoolExecutor(crew.threads, thread_name_prefix="verify") as pool:
        try:
            for item, spans in _measured(source, pool, crew, result):
                joiner = _Joiner(item)
                for future in spans:
                    for piece in future.result():
                        joiner.add(piece)
                        result.bytes_read += piece.length
                        if bar is not None:
                            bar.advance(piece.length)
                        for name, found in piece.statistics.items():
                            statistics[name].merge(found)
                joiner.finish(result)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            crew.close()
    result.distributions = crew.distributions()
    return result


def _measured(
    source: Source, pool: ThreadPoolExecutor, crew: _Crew, result: StreamResult
) -> Iterator[tuple[StoredObject, Iterator[Future[list[_Measured]]]]]:
    """Each object with its results in order, never more than a few spans ahead, also across objects."""
    ahead: deque[Future[list[_Measured]]] = deque()
    plan = deque(
        (item, list(_spans(item, crew.span_bytes))) for item in source.objects if _is_there(source, item, result)
    )
    waiting = iter([span for _, spans in plan for span in spans])

    def refill() -> None:
        while len(ahead) < crew.threads + 2 and (span := next(waiting, None)) is not None:
            ahead.append(pool.submit(crew.measure, span))

    def results(count: int) -> Iterator[Future[list[_Measured]]]:
        for _ in range(count):
            refill()
            yield ahead.popleft()

    for item, spans in plan:
        yield item, results(len(spans))


def _is_there(source: Source, item: StoredObject, result: StreamResult) -> bool:
    info = source.storage.head(item.key)
    if info is None:
        result.faults.append(f"{item.name}: missing")
        return False
    end = item.begin + item.size_bytes
    if info.size_bytes < end or (item.whole and info.size_bytes != end):
        result.faults.append(f"{item.name}: {info.size_bytes - item.begin:,} bytes, should be {item.size_bytes:,}")
    return True


def _spans(item: StoredObject, span_bytes: int) -> Iterator[_Span]:
    gathered: list[_Run] = []
    size = 0
    for run in _runs(item):
        for start in range(run.start, run.stop, span_bytes):
            part = _Run(start, min(start + span_bytes, run.stop), run.chunks)
            if size + part.stop - part.start > span_bytes and gathered:
                yield _Span(item, tuple(gathered))
                gathered, size = [], 0
            gathered.append(part)
            size += part.stop - part.start
    if gathered:
        yield _Span(item, tuple(gathered))


def _runs(item: StoredObject) -> Iterator[_Run]:
    """The object cut where a chunk begins or ends; chunks may overlap, as tied weights do in a torch file."""
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for index, chunk in enumerate(item.chunks):
        if not 0 <= chunk.start <= chunk.stop <= item.size_bytes:
            raise CheckpointError(
                f"{item.name}: tensor {chunk.tensor} is said to lie at bytes [{chunk.start}, {chunk.stop}), "
                f"outside of the object's {item.size_bytes}"
            )
        if chunk.start < chunk.stop:
            begins.setdefault(chunk.start, []).append(index)
            ends.setdefault(chunk.stop, []).append(index)
    blocks = (range(c.start, c.stop, c.block_bytes) for c in item.chunks if c.crcs)
    cuts = sorted({0, item.size_bytes, *begins, *ends, *itertools.chain.from_iterable(blocks)})
    alive: set[int] = set()
    for start, stop in itertools.pairwise(cuts):
        alive.difference_update(ends.get(start, ()))
        alive.update(begins.get(start, ()))
        yield _Run(start, stop, tuple(sorted(alive)))


class _Crew:
    """The threads' work: each has its own reader.

    `sizes`: the tensors, and their elements, of which it is gathered how their values lie.
    """

    def __init__(
        self, storage: Storage, magnitude_limit: float, formats: dict[str, NumberFormat], sizes: dict[str, int]
    ) -> None:
        self._storage, self._limit, self._formats, self._sizes = storage, magnitude_limit, formats, sizes
        self._own = threading.local()
        self._readers: list[Reader] = []
        self._counted: list[dict[str, Distribution]] = []
        local = Reader(storage, 0).local
        self.threads = max(2, min(usable_processors(), 8)) if local else REMOTE_READS
        self.span_bytes = FOLDER_SPAN_BYTES if local else SPAN_BYTES

    def close(self) -> None:
        """Close every thread's file."""
        for reader in self._readers:
            reader.close()

    def distributions(self) -> dict[str, Distribution]:
        """What the threads gathered, put together."""
        whole = {name: distribution(self._formats[name], elements) for name, elements in self._sizes.items()}
        for counted in self._counted:
            for name, part in counted.items():
                whole[name].merge(part)
        return whole

    def measure(self, span: _Span) -> list[_Measured]:
        """Read, hash and measure one span."""
        if not hasattr(self._own, "reader"):
            self._own.reader = Reader(self._storage, BLOCK_BYTES)
            self._own.counted = {}
            self._readers.append(self._own.reader)
            self._counted.append(self._own.counted)
        reader: Reader = self._own.reader
        if reader.local:
            return [
                self._scanned(reader, span.item, run) or self._in_blocks(reader, span.item, run) for run in span.runs
            ]
        first, last = span.runs[0].start, span.runs[-1].stop
        data = reader.read(span.item.key, span.item.begin + first, span.item.begin + last)
        return [
            self._measure_run(span.item, run, _cut(data[run.start - first : run.stop - first])) for run in span.runs
        ]

    def _scanned(self, reader: Reader, item: StoredObject, run: _Run) -> _Measured | None:
        """A run of one tensor in one go, without Python between its blocks, if there is nothing suspicious in it."""
        if len(run.chunks) != 1 or self._sizes or (run.stop - run.start) < _WORTH_BYTES:
            return None
        name = item.chunks[run.chunks[0]].tensor
        tally = self._tally(self._formats[name], is_second_moment(name))
        try:
            file, buffer = reader.opened(item.key)
        except FileNotFoundError:
            return None
        crc = tally.scan(file, item.begin + run.start, item.begin + run.stop, buffer, item.checksum)
        if crc is None:
            return None
        return _Measured(run, crc, run.stop - run.start, {name: tally.result()})

    def _in_blocks(self, reader: Reader, item: StoredObject, run: _Run) -> _Measured:
        starts = range(item.begin + run.start, item.begin + run.stop, BLOCK_BYTES)
        stop = item.begin + run.stop
        return self._measure_run(item, run, (reader.read(item.key, at, min(at + BLOCK_BYTES, stop)) for at in starts))

    def _tally(self, form: NumberFormat, squares: bool) -> Tally:
        return Tally(form, self._limit**2 if squares else self._limit)

    def _measure_run(self, item: StoredObject, run: _Run, parts: Iterable[Array]) -> _Measured:
        owners = {item.chunks[index].tensor: self._formats[item.chunks[index].tensor] for index in run.chunks}
        kinds = {name: (form, is_second_moment(name)) for name, form in owners.items()}
        tallies = {kind: self._tally(*kind) for kind in set(kinds.values())}
        hashed = item.crc is not None or any(item.chunks[index].crcs for index in run.chunks)
        extend, crc, length = item.checksum.extend, 0, 0
        for part in parts:
            if hashed:
                crc = extend(crc, part)
            length += part.size
            for (form, _), tally in tallies.items():
                tally.add(part[: part.size - part.size % form.item_bytes])
            for name in owners.keys() & self._sizes.keys():
                self._count(name, part)
        found = {kind: tally.result() for kind, tally in tallies.items()}
        return _Measured(run, crc, length, {name: found[kind] for name, kind in kinds.items()})

    def _count(self, name: str, part: Array) -> None:
        counted: dict[str, Distribution] = self._own.counted
        if name not in counted:
            counted[name] = distribution(self._formats[name], self._sizes[name])
        counted[name].add(part[: part.size - part.size % self._formats[name].item_bytes])


def _cut(data: Array) -> Iterator[Array]:
    """Blocks that fit a core's cache, each hashed and measured while it is warm."""
    for start in range(0, data.size, BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


class _Joiner:
    """The checksums of one object and of its chunks, joined run by run."""

    def __init__(self, item: StoredObject) -> None:
        self._item = item
        self._crc, self._length = 0, 0
        self._blocks: dict[tuple[int, int], int] = {}

    def add(self, piece: _Measured) -> None:
        """The next run in order."""
        kind = self._item.checksum
        self._crc = join(kind, self._crc, piece.crc, piece.length)
        self._length += piece.length
        for index in piece.run.chunks:
            chunk = self._item.chunks[index]
            if chunk.crcs:
                block = (index, (piece.run.start - chunk.start) // chunk.block_bytes)
                self._blocks[block] = join(kind, self._blocks.get(block, 0), piece.crc, piece.length)

    def finish(self, result: StreamResult) -> None:
        """Compare with what was recorded."""
        item = self._item
        result.checksums_checked += sum(len(chunk.crcs) for chunk in item.chunks) + (item.crc is not None)
        for index, chunk in enumerate(item.chunks):
            bad = [block for block, crc in enumerate(chunk.crcs) if self._blocks.get((index, block), 0) != crc]
            if bad:
                result.faults.append(
                    f"{chunk.tensor}: {item.checksum.name} differs from the recorded one in {len(bad)} of "
                    f"{len(chunk.crcs)} blocks of its bytes in {item.name}"
                )
        short = self._length != item.size_bytes
        if short and not any(fault.startswith(f"{item.name}: ") for fault in result.faults):
            result.faults.append(f"{item.name}: {self._length:,} bytes could be read of {item.size_bytes:,}")
        if item.crc is not None and self._crc != item.crc:
            result.faults.append(
                f"{item.name}: {item.checksum.name} {self._crc:08x} of the object, recorded is {item.crc:08x}"
            )
