"""A folder in a store, by its address or as a store and a prefix: opened when needed, in another process again."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from giblet.config.schema import CheckpointConfig
from giblet.storage import Storage, as_storage


@dataclass(slots=True)
class Place:
    """Where one checkpoint lies. Pickles without the open store (its connections and locks) if it has an address."""

    location: str | os.PathLike[str] | Storage
    prefix: str
    config: CheckpointConfig | None
    _opened: Storage | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.prefix and not self.prefix.endswith("/"):
            self.prefix += "/"

    @property
    def storage(self) -> Storage:
        """The store, opened at the first call; no request is made."""
        if self._opened is None:
            self._opened = as_storage(self.location, self.config)
        return self._opened

    @property
    def url(self) -> str:
        """For messages."""
        return f"{self.storage.url}/{self.prefix}".rstrip("/")

    def __getstate__(self) -> tuple[Any, ...]:
        return self.location, self.prefix, self.config

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.location, self.prefix, self.config = state
        self._opened = None


class AtPlace:
    """What DCP's readers and writers of one place share; they set `_place`."""

    _place: Place

    @property
    def checkpoint_id(self) -> str:
        """Where it reads from or writes to, for DCP's log."""
        return self._place.url

    @property
    def _storage(self) -> Storage:
        return self._place.storage

    @property
    def _prefix(self) -> str:
        return self._place.prefix
