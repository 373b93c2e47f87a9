"""How the tests share a machine when several processes run them (`pytest -n 3 --dist loadgroup`, as `ci/test` does).

A file is run by one process, since its tests share what they set up. All of `tests/e2e` is, since they share a cluster
and a demo; it mostly waits for the cluster, so it comes first, and the other processes run everything else beside it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group, and put the longest first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("e2e" if E2E in item.path.parents else str(item.path)))
    items.sort(key=lambda item: E2E not in item.path.parents)
