"""A file written by `torch.save`: a zip archive of a pickle and of the storages' bytes, uncompressed.

The pickle is read by `unpickle`, which runs nothing. A file in torch's format of before 1.6, or any other bare pickle,
is refused without being opened.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from giblet.errors import CheckpointError
from giblet.storage.base import Storage
from giblet.storage.crc import CRC32
from giblet.verify.sources import Chunk, DamagedError, ObjectFile, Source, StoredObject, TensorRecord
from giblet.verify.statistics import number_format
from giblet.verify.unpickle import MAX_PICKLE_BYTES, TensorStub, leaves, loads

_READ_AHEAD_BYTES = 1 << 16
_LOCAL_HEADER_BYTES = 30
_END_RECORD_BYTES = 22
_MOST_BYTE_ORDER = 64
_ENCRYPTED = 0x1
_WEIGHTS = ("model_state_dict", "state_dict", "model")


@dataclass(frozen=True, slots=True)
class Archive:
    """One torch zip file: its plain content (tensors as stubs) and where each storage's bytes lie."""

    tree: Any
    storages: Mapping[str, StoredObject]


def open_torch(url: str, storage: Storage, key: str) -> Source:
    """List the tensors of a legacy checkpoint. Raises `CheckpointError` if it is not a zip file of plain data."""
    info = storage.head(key)
    if info is None:
        raise CheckpointError(f"{url}: there is no such file", remedy="check the address")
    archive = read_archive(url, storage, key, 0, info.size_bytes)
    stubs, state, weights = {}, {}, {}
    contained = isinstance(archive.tree, dict) and any(name in archive.tree for name in _WEIGHTS)
    for path, leaf in leaves(archive.tree, url):
        name = tensor_name(path)
        if not isinstance(leaf, TensorStub):
            state[".".join(path)] = leaf
            continue
        stubs[name] = leaf
        if not contained or path[0] in _WEIGHTS:
            weights[name] = name
    if not stubs:
        raise CheckpointError(f"{url}: holds no tensors", remedy="name a checkpoint")
    tensors, objects, notes = place_tensors(url, archive, stubs)
    step = state.get("global_step", state.get("step"))
    plain = {name: value for name, value in state.items() if "." not in name and _is_plain(value)}
    not_finite = [name for name, value in state.items() if isinstance(value, float) and not math.isfinite(value)]
    return Source(
        url=url,
        kind="torch",
        storage=storage,
        objects=objects,
        tensors=tensors,
        weights=weights,
        state={"contents": _contents(archive.tree), **_parts(archive.tree), **plain, "not_finite": not_finite},
        step=step if isinstance(step, int) else None,
        notes=notes,
        unordered=frozenset(name for name, stub in stubs.items() if not _row_major(stub)),
    )


def tensor_name(path: tuple[str, ...]) -> str:
    """A tensor's name in the report: weights by their own names, everything else by its path in the file."""
    return ".".join(path[1:] if len(path) > 1 and path[0] in _WEIGHTS else path)


def read_archive(url: str, storage: Storage, key: str, begin: int, size: int) -> Archive:
    """Read the directory and the pickle of the zip file at bytes `[begin, begin + size)` of an object."""
    if storage.get(key, begin, begin + min(4, size)) != b"PK\x03\x04":
        raise CheckpointError(
            f"{url}: not a zip file as torch.save writes since 1.6; a bare pickle can run anything, and was not opened",
            remedy="load it where you trust it, and save it again with torch.save",
        )
    file = io.BufferedReader(ObjectFile(storage, key, begin, size), _READ_AHEAD_BYTES)
    try:
        with zipfile.ZipFile(file) as archive:
            _refuse_what_follows(url, file, size, archive)
            members = {member.filename: member for member in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise CheckpointError(
                    f"{url}: a zip file with two members of one name, so that readers may differ; refused",
                    remedy="load it where you trust it, and save it again with torch.save",
                )
            pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{url}: a zip file, but not one of torch.save: it has {len(pickles)} data.pkl, not one"
                )
            folder = pickles[0].removesuffix("data.pkl")
            order = members.get(f"{folder}byteorder")
            if order is not None and _small(url, archive, order) != b"little":
                raise CheckpointError(f"{url}: written on a big-endian machine, which giblet does not read")
            tree = loads(_pickle_bytes(url, archive, members[pickles[0]]), url)
            storages = {
                name.removeprefix(f"{folder}data/"): _member(url, file, key, begin, size, member)
                for name, member in members.items()
                if name.startswith(f"{folder}data/")
            }
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OverflowError) as error:
        raise DamagedError(f"{url}: a damaged zip file: {error}", remedy="is it whole?") from None
    return Archive(tree, storages)


def _pickle_bytes(url: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{url}: data.pkl is compressed or encrypted; torch.save does neither")
    if member.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{url}: data.pkl has {member.file_size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
    return archive.read(member)


def _small(url: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > _MOST_BYTE_ORDER:
        raise CheckpointError(f"{url}: {member.filename} has {member.file_size:,} bytes; torch writes a word there")
    return archive.read(member)


def _refuse_what_follows(url: str, file: IO[bytes], size: int, archive: zipfile.ZipFile) -> None:
    """A zip file ends with its end record and the comment in it."""
    file.seek(size - _END_RECORD_BYTES - len(archive.comment))
    if file.read(4) != b"PK\x05\x06":
        raise DamagedError(f"{url}: a damaged zip file: bytes follow its end", remedy="was it written over?")


def _member(url: str, file: IO[bytes], key: str, begin: int, size: int, member: zipfile.ZipInfo) -> StoredObject:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{url}: {member.filename} is compressed or encrypted; torch.save does neither")
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) != _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise DamagedError(f"{url}: a damaged zip file: no header before {member.filename}", remedy="is it whole?")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + _LOCAL_HEADER_BYTES + names
    if start + member.file_size > size:
        raise DamagedError(f"{url}: a damaged zip file: {member.filename} reaches beyond its end")
    return StoredObject(
        key, member.file_size, (), crc=member.CRC, checksum=CRC32, begin=begin + start, whole=False,
        label=f"{url.rpartition('/')[2]}:{member.filename}",
    )  # fmt: skip


def place_tensors(
    url: str, archive: Archive, stubs: Mapping[str, TensorStub]
) -> tuple[dict[str, TensorRecord], tuple[StoredObject, ...], tuple[str, ...]]:
    """Where each tensor's bytes lie. Tensors that share a storage share its bytes, which are read once."""
    chunks: dict[str, list[Chunk]] = {}
    tensors, notes = {}, []
    for name, stub in stubs.items():
        form = number_format(stub.dtype)
        item = archive.storages.get(stub.storage.key)
        if form is None:
            raise CheckpointError(f"{url}: tensor {name} has dtype {stub.dtype}, which giblet cannot judge")
        tensors[name] = TensorRecord(name, form.name, stub.shape)
        if item is None:
            raise CheckpointError(f"{url}: tensor {name} lies in data/{stub.storage.key}, which is not in the file")
        elements = _span(stub)
        stop = (stub.offset + elements) * form.item_bytes
        if stop > item.size_bytes:
            raise CheckpointError(f"{url}: tensor {name} reaches beyond data/{stub.storage.key}, where it lies")
        if elements != math.prod(stub.shape):
            notes.append(f"{name} is a view with gaps or repeats: all {elements:,} elements under it are counted")
        zeros = (0,) * len(stub.shape)
        chunks.setdefault(stub.storage.key, []).append(
            Chunk(name, stub.offset * form.item_bytes, stop, zeros, stub.shape)
        )
    return tensors, tuple(_filled(archive, chunks)), tuple(notes)


def _filled(archive: Archive, chunks: Mapping[str, list[Chunk]]) -> Iterator[StoredObject]:
    for key, item in archive.storages.items():
        yield StoredObject(
            item.key, item.size_bytes, tuple(chunks.get(key, ())), item.crc, item.checksum, item.begin,
            whole=False, label=item.label,
        )  # fmt: skip


def _row_major(stub: TensorStub) -> bool:
    expected = 1
    for size, stride in zip(reversed(stub.shape), reversed(stub.stride), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _span(stub: TensorStub) -> int:
    """Elements from the first to the last that the view touches."""
    if not math.prod(stub.shape):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(stub.shape, stub.stride, strict=True))


def _contents(tree: Any) -> list[str]:
    return [str(key) for key in tree] if isinstance(tree, dict) else []


def _parts(tree: Any) -> dict[str, bool]:
    """Whether what a training goes on from is there."""
    names = _contents(tree)
    return {
        "has_optimizer": any(name.startswith("optim") for name in names),
        "has_schedule": any("sched" in name for name in names),
        "has_history": any(name.endswith("history") for name in names),
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
