"""Where bytes are kept: an S3 bucket, a folder, or memory, behind one Protocol of five calls (`base.Storage`).

`open_storage(url, config.checkpoint)` is the way in; it makes no request. The embedded S3 server lives in `embedded`.
"""

from __future__ import annotations

import os

from giblet.config.schema import CheckpointConfig
from giblet.storage.base import (
    Cleanable,
    ConditionRefusedError,
    ObjectInfo,
    PreconditionFailedError,
    Scattering,
    Storage,
    Watchable,
    get_into,
)
from giblet.storage.local import LocalStorage
from giblet.storage.memory import MemoryStorage

__all__ = [
    "Cleanable",
    "ConditionRefusedError",
    "LocalStorage",
    "MemoryStorage",
    "ObjectInfo",
    "PreconditionFailedError",
    "Scattering",
    "Storage",
    "Watchable",
    "as_storage",
    "get_into",
    "open_storage",
]


def open_storage(url: str, config: CheckpointConfig | None = None) -> Storage:
    """The store at `url`: `s3://bucket/prefix` or a folder. No request is made yet.

    `config` (the defaults if None) holds endpoint, region, authority, encryption, timeouts and retries; its own `url`
    is not looked at. Raises `ConfigError` for an address that is neither, and `StorageUnavailableError` where
    `endpoint_url: embedded` is asked for and no embedded server runs.
    """
    if not url.startswith("s3://"):
        return LocalStorage(url)
    from giblet.storage.s3 import S3Storage  # boto3 takes a third of a second to import

    return S3Storage.open(url, config if config is not None else CheckpointConfig())


def as_storage(location: str | os.PathLike[str] | Storage, config: CheckpointConfig | None = None) -> Storage:
    """`location` itself if it is a store, else the store at that address."""
    return open_storage(os.fspath(location), config) if isinstance(location, str | os.PathLike) else location
