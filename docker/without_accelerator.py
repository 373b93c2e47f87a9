"""Take out of an installed torch what only a GPU needs: 3.5 GB less, for machines that have none (`ACCELERATOR=none`).

torch's only build in the registry is the one for CUDA, whose library names NVIDIA's as needed: the loader wants each
of them with each function, though on a CPU none is ever called. So the large ones are replaced by libraries of the
same name with the same functions, all of which return an error. What runs on the CPU is untouched; nothing runs on a
GPU. Such an image is for trying things, and for CI: never for training.

    python without_accelerator.py ENVIRONMENT
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

LARGE_BYTES = 40_000_000

_PAGE = 4096
_DYNAMIC_BYTES = 16 * 10
_RETURN_ONE = bytes([0xB8, 1, 0, 0, 0, 0xC3])  # mov eax, 1; ret: in all of CUDA's interfaces 1 is an error
_DYNAMIC_SYMBOLS = 11  # SHT_DYNSYM
_VERSIONS = 0x6FFFFFFD  # SHT_GNU_verdef


def main(environment: Path) -> None:
    """Replace the large libraries in every `nvidia` folder of a Python environment, and say what that saved."""
    before = _size(environment)
    for folder in sorted(environment.glob("lib/python*/site-packages/nvidia")):
        for archive in folder.rglob("*.a"):
            archive.unlink()
        for library in folder.rglob("*.so*"):
            if not library.is_symlink() and library.stat().st_size > LARGE_BYTES:
                content = library.read_bytes()
                library.write_bytes(hollow_library(library.name, sorted(set(exported(content))), versions(content)))
    saved = f"{before / 1e9:.1f} GB of libraries became {_size(environment) / 1e9:.1f} GB"
    print(f"without an accelerator: {saved}")  # noqa: T201


def exported(library: bytes) -> Iterator[bytes]:
    """The names that an ELF library (64 bits, little-endian) defines for others."""
    for start, length, strings in _sections(library, _DYNAMIC_SYMBOLS):
        for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", library[start : start + length]):
            if section != 0 and info >> 4 != 0:  # defined here, and not local
                yield _string(library, strings + name)


def versions(library: bytes) -> list[bytes]:
    """The symbol versions that an ELF library defines, its own name first; [] when it has none."""
    names = []
    for start, _, strings in _sections(library, _VERSIONS):
        step = 1
        while step:
            first_name, step = struct.unpack_from("<2I", library, start + 12)
            names.append(_string(library, strings + struct.unpack_from("<I", library, start + first_name)[0]))
            start += step
    return names


def _sections(library: bytes, wanted: int) -> Iterator[tuple[int, int, int]]:
    """Where each section of a kind starts, how long it is, and where its strings start."""
    headers = struct.unpack_from("<Q", library, 40)[0]
    size, count = struct.unpack_from("<HH", library, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, headers + number * size) for number in range(count)]
    for _, kind, _, _, start, length, link, _, _, _ in sections:
        if kind == wanted:
            yield start, length, sections[link][4]


def _string(library: bytes, start: int) -> bytes:
    return library[start : library.index(b"\0", start)]


def hollow_library(name: str, symbols: list[bytes], versions: list[bytes]) -> bytes:
    """An ELF library (x86-64) called `name`; each of `symbols` is a function that only returns 1.

    A first page holds headers and code, to be executed; what follows is written to by the loader: the dynamic section,
    hash table, symbols, versions and strings. `versions` are defined, since the loader asks for them, but no symbol has
    one (its index is 1), which fits all. Source: System V ABI, chapters 4 and 5; Linux Standard Base, 10.7.
    """
    strings = bytearray(b"\0" + name.encode() + b"\0")
    code = 64 + 3 * 56
    table = [bytes(24)]
    for symbol in symbols:
        table.append(struct.pack("<IBBHQQ", len(strings), 0x12, 0, 1, code, len(_RETURN_ONE)))
        strings += symbol + b"\0"
    definitions = b""
    for index, version in enumerate(versions, start=1):
        following = 28 if index < len(versions) else 0
        definitions += struct.pack("<4H3I", 1, index == 1, index, 1, _hash(version), 20, following)
        definitions += struct.pack("<2I", len(strings), 0)
        strings += version + b"\0"
    parts = {
        "dynamic": bytes(_DYNAMIC_BYTES),  # filled below, when the places of the others are known
        "hash": _hash_table(symbols),
        "symtab": b"".join(table),
        "versym": struct.pack("<H", 0) + struct.pack("<H", 1) * len(symbols),
        "verdef": definitions,
        "strtab": bytes(strings),
    }
    at, end = {}, _PAGE
    for part, content in parts.items():
        at[part], end = end, end + len(content) + (-len(content) % 8)
    dynamic = {14: 1, 4: at["hash"], 5: at["strtab"], 6: at["symtab"], 10: len(strings), 11: 24}
    if versions:
        dynamic |= {0x6FFFFFF0: at["versym"], 0x6FFFFFFC: at["verdef"], 0x6FFFFFFD: len(versions)}
    parts["dynamic"] = b"".join(struct.pack("<qQ", *entry) for entry in [*dynamic.items(), (0, 0)])
    image = bytearray(b"\x7fELF" + bytes([2, 1, 1]) + bytes(9))
    image += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    image += struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, _PAGE, _PAGE, _PAGE)  # loaded, readable and executable
    image += struct.pack("<IIQQQQQQ", 1, 6, _PAGE, _PAGE, _PAGE, end - _PAGE, end - _PAGE, _PAGE)  # and writable
    image += struct.pack(
        "<IIQQQQQQ", 2, 6, _PAGE, _PAGE, _PAGE, _DYNAMIC_BYTES, _DYNAMIC_BYTES, 8
    )  # where the dynamic section is
    image += _RETURN_ONE
    for part, start in at.items():
        image += bytes(start - len(image)) + parts[part]
    return bytes(image) + bytes(end - len(image))


def _hash_table(symbols: list[bytes]) -> bytes:
    buckets, chain = [0] * max(1, len(symbols)), [0] * (len(symbols) + 1)
    for index, symbol in enumerate(symbols, start=1):
        bucket = _hash(symbol) % len(buckets)
        chain[index], buckets[bucket] = buckets[bucket], index
    return struct.pack(f"<{2 + len(buckets) + len(chain)}I", len(buckets), len(chain), *buckets, *chain)


def _hash(name: bytes) -> int:
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high
    return value & 0xFFFFFFFF


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
