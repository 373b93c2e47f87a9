"""How several processes share the tests (`pytest -n 2 --no-loadscope-reorder`, as `ci/test` does).

A file is run by one process, since its tests share what they set up; all of `tests/e2e` is, since they share a cluster.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling


class Lanes(LoadScopeScheduling):
    """What one process runs without a break: a file, or all of the end-to-end tests."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/e2e" if file.startswith("tests/e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    return Lanes(config, log)
