"""Memory and folder do what every store must do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from giblet.storage import LocalStorage, MemoryStorage, Storage
from tests.support.storage_conformance import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("kind", ["memory", "local"])
def test_store(kind: str, case: Callable[[Storage], None], tmp_path: Path) -> None:
    store = MemoryStorage() if kind == "memory" else LocalStorage(tmp_path / "store")
    assert isinstance(store, Storage)
    case(store)
    if kind == "local":
        assert list((tmp_path / "store").glob(".partial/*")) == [], "temporary files are left over"
