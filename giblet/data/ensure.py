"""The prepared dataset that a configuration means: named, fetched, or prepared from BIDS now."""

from __future__ import annotations

from giblet.config.schema import GibletConfig
from giblet.data.prepare import prepare
from giblet.data.prepared import PreparedDataset
from giblet.errors import ConfigError
from giblet.storage import Storage, open_storage


def ensure_prepared(config: GibletConfig) -> PreparedDataset:
    """Open `data.prepared` (fetched first where it is an `s3://` address), else prepare `data.bids`.

    Raises `ConfigError` if neither is named, and whatever fetching or preparing raises.
    """
    named = config.data.prepared
    if named is None and config.data.bids is None:
        raise ConfigError(
            "there is no data: neither data.prepared nor data.bids is set",
            remedy="name a BIDS folder: --set data.bids=FOLDER",
        )
    if named is None:
        return prepare(config.data)
    place = published_place(config)
    if place is None:
        return PreparedDataset.open(named)
    from giblet.data.transfer import fetch

    return fetch(*place, config.data.cache_dir)


def published_place(config: GibletConfig) -> tuple[Storage, str] | None:
    """Store and content hash of a `data.prepared` in storage; None for a folder, or if it is not set.

    Raises `ConfigError` for an address that is no published dataset's.
    """
    named = config.data.prepared
    if named is None or not named.startswith("s3://"):
        return None
    root, _, content_hash = named.rstrip("/").partition("/datasets/")
    if not content_hash or "/" in content_hash:
        raise ConfigError(
            f"data.prepared is {named}, which is not of the form s3://bucket/prefix/datasets/HASH",
            remedy="name a published dataset, or a folder",
        )
    return open_storage(root, config.checkpoint), content_hash
