"""Checkpoints: written whole or not at all, read back with every byte checked. See docs/checkpoint-format.md.

The manifest and the listings import no torch; import `CheckpointStore` and the DCP classes from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.opened import OpenCheckpoint, open_checkpoint
from giblet.checkpoint.runs import list_checkpoints, list_runs
from giblet.checkpoint.starts import Start

if TYPE_CHECKING:
    from giblet.checkpoint.reader import GibletStorageReader
    from giblet.checkpoint.store import CheckpointStore
    from giblet.checkpoint.writer import GibletStorageWriter

__all__ = [
    "CheckpointRef",
    "CheckpointStore",
    "GibletStorageReader",
    "GibletStorageWriter",
    "Manifest",
    "OpenCheckpoint",
    "Start",
    "list_checkpoints",
    "list_runs",
    "open_checkpoint",
]
_WITH_TORCH = {"CheckpointStore": "store", "GibletStorageReader": "reader", "GibletStorageWriter": "writer"}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
