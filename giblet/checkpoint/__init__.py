"""Checkpoints: written whole or not at all, read back with every byte checked. See docs/checkpoint-format.md."""

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.manifest import Manifest
from giblet.checkpoint.reader import GibletStorageReader
from giblet.checkpoint.starts import Start
from giblet.checkpoint.store import CheckpointStore
from giblet.checkpoint.writer import GibletStorageWriter

__all__ = ["CheckpointRef", "CheckpointStore", "GibletStorageReader", "GibletStorageWriter", "Manifest", "Start"]
