"""How several processes share the tests (`pytest -n 3 --no-loadscope-reorder`, as `ci/test` does).

A file is run by one process, since its tests share what they set up. All of `tests/e2e` is, since they share a cluster
and a demo; it mostly waits for the cluster, so it comes first, and the other processes run everything else beside it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

E2E = Path(__file__).parent / "e2e"


class Lanes(LoadScopeScheduling):
    """What one process runs without a break: a file, or all of the end-to-end tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/e2e" if file.startswith("tests/e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    return Lanes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: E2E not in item.path.parents)
