"""Which keys may differ between a save and its resume."""

from __future__ import annotations

from typing import Any

from giblet.config.load import leaves
from giblet.config.schema import GibletConfig

RESUME_MAY_CHANGE = frozenset(
    {
        "data.cache_dir", "data.prepared", "data.bids",
        "training.epochs", "training.max_steps", "training.processes", "training.device", "training.sharding",
        "training.patience_epochs", "training.loader_workers", "training.validate_every_epochs",
        "checkpoint.save_every_epochs", "checkpoint.save_every_steps", "checkpoint.save_best", "checkpoint.keep_last",
        "checkpoint.keep_every_steps", "checkpoint.asynchronous", "checkpoint.endpoint_url", "checkpoint.embedded_dir",
        "checkpoint.region",
        "checkpoint.ca_file", "checkpoint.path_style", "checkpoint.server_side_encryption",
        "checkpoint.connect_timeout_seconds", "checkpoint.read_timeout_seconds", "checkpoint.max_attempts",
        "checkpoint.url", "telemetry.*", "verify.*",
    }
)  # fmt: skip
"""Keys that may differ between a save and its resume. Any other change needs a new `run.name`."""


def config_differences(saved: GibletConfig, now: GibletConfig) -> dict[str, tuple[Any, Any]]:
    """The keys whose change between a save and its resume is not allowed: key → (saved, now)."""
    before, after = (dict(leaves(config.model_dump(mode="json"))) for config in (saved, now))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before | after)
        if before.get(key) != after.get(key) and not may_change(key)
    }


def may_change(key: str) -> bool:
    """Whether a key, written `a.b.c`, may."""
    return key in RESUME_MAY_CHANGE or f"{key.split('.')[0]}.*" in RESUME_MAY_CHANGE
