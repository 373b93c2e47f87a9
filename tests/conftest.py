"""How several processes share the tests (`pytest -n 2 --no-loadscope-reorder`, as `ci/test` does).

A file is run by one process, since its tests share what they set up; so are all end-to-end tests of a cluster, since
they share it. Those without one are a lane of their own, beside it.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

WITHOUT_CLUSTER = ("tests/e2e/test_demo.py", "tests/e2e/test_readme.py")


class Lanes(LoadScopeScheduling):
    """What one process runs without a break: a file, or the end-to-end tests with a cluster, or those without."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in WITHOUT_CLUSTER:
            return "end to end without a cluster"
        return "end to end on a cluster" if file.startswith("tests/e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    return Lanes(config, log)
