"""What a dataset is made from, and the content hash that follows: same inputs and settings, same hash.

The hash covers every byte of every input file (scans, sidecars, tables, films, masks, the models' weights) under its
path in the BIDS folder, and the settings that shape the arrays. It does not cover where things lie on this machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giblet.config.schema import DataConfig
from giblet.data.bids import BidsFolder, annotation_file, check_readable, find_masks, run_mask
from giblet.data.manifest import FORMAT, InputFile
from giblet.data.plan import check_shift
from giblet.data.prepared import file_sha256
from giblet.data.text import resolve_model
from giblet.data.weights import resolve_weights
from giblet.errors import DataError
from giblet.telemetry.logs import get_logger

RECIPE = 2
"""Raised whenever the same inputs and settings come to make other arrays or statistics.

2: the scale of the video loss is the variance of a TR's mean frame, which the network rebuilds, not of single frames;
that of BOLD is over a subject's runs together.
"""

SHAPING = ("video", "audio", "text", "bold", "split")
MODEL_SUFFIXES = frozenset({".json", ".txt", ".safetensors", ".bin", ".model", ".th", ".pt"})
PACKAGES = ("av", "encodec", "nibabel", "nilearn", "numpy", "scipy", "sentence-transformers", "torch", "transformers")
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Hashed inputs and what they come to. `settings` are those that shape the arrays."""

    files: tuple[InputFile, ...]
    settings: dict[str, Any]
    content_hash: str


def gather_inputs(folder: BidsFolder, config: DataConfig) -> Inputs:
    """Hash all inputs. Raises `DataError` or `DependencyError` where one is missing."""
    named = {name: check_readable(path) for name, path in sorted(_files(folder, config))}
    log.info("hashing inputs", files=len(named), bytes=sum(path.stat().st_size for path in named.values()))
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(file_sha256, named.values()))
    files = tuple(
        InputFile(path=name, bytes=path.stat().st_size, sha256=sha256)
        for (name, path), sha256 in zip(named.items(), hashes, strict=True)
    )
    settings = shaping_settings(folder, config)
    return Inputs(files, settings, content_hash(files, settings))


def content_hash(files: tuple[InputFile, ...], settings: dict[str, Any]) -> str:
    """SHA-256 over format, recipe, settings and inputs, in hexadecimal."""
    content = {
        "format": FORMAT,
        "recipe": RECIPE,
        "settings": settings,
        "inputs": [[file.path, file.sha256] for file in files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shaping_settings(folder: BidsFolder, config: DataConfig) -> dict[str, Any]:
    """The `data` settings that shape the arrays, without paths of this machine, and with the sidecars' shift."""
    settings = config.model_dump(mode="json", include=set(SHAPING))
    settings["task"], settings["subjects"] = folder.task, list(folder.subjects)
    settings["bold"]["shift_trs"] = check_shift(folder.runs, config)
    settings["bold"]["mask"] = None if config.bold.mask is None else Path(config.bold.mask).name
    if config.audio.weights not in ("random", "download"):
        settings["audio"]["weights"] = Path(config.audio.weights).name
    if Path(config.text.model).expanduser().exists():
        settings["text"]["model"] = Path(config.text.model).name
    return settings


def versions() -> dict[str, str]:
    """Versions of giblet and of the packages that shape the arrays, where they are installed."""
    found = {}
    for name in ("giblet", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _files(folder: BidsFolder, config: DataConfig) -> Iterator[tuple[str, Path]]:
    for run in folder.runs:
        for path in (run.bold, run.events_file, *run.metadata_files):
            yield folder.relative(path), path
        for event in run.events:
            yield folder.relative(event.film), event.film
            if (table := annotation_file(event.film)) is not None:
                yield folder.relative(table), table
    description = folder.root / "dataset_description.json"
    if description.exists():
        yield description.name, description
    if config.bold.mask is None:
        for own in filter(None, (run_mask(run.bold) for run in folder.runs)):
            yield folder.relative(own), own
        for subject in folder.subjects:
            for path in find_masks(folder, subject):
                yield folder.relative(path), path
    else:
        yield _existing("mask", Path(config.bold.mask))
    weights = resolve_weights(config.audio)
    if weights is not None:
        yield from _model_files("audio-weights", weights)
    yield from _model_files("text-model", resolve_model(config.text.model))


def _existing(role: str, path: Path) -> tuple[str, Path]:
    if not path.is_file():
        raise DataError(f"data.bold.mask names {path}, and there is no such file", remedy="correct the path")
    return f"{role}/{path.name}", path


def _model_files(role: str, path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield f"{role}/{path.name}", path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix in MODEL_SUFFIXES:
            yield f"{role}/{file.relative_to(path).as_posix()}", file
