"""The short cluster drills, exactly as `make drills` runs them, on one elastic release of two workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import Lab

# isort: split
from drills.drill import Drill
from drills.lab import ClusterScene, release
from drills.running import chosen, run_there

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[ClusterScene]:
    with release(lab) as found:
        yield found


@pytest.mark.parametrize("drill", chosen([], short=True, where="cluster"), ids=lambda drill: drill.name)
def test_the_promises_hold(scene: ClusterScene, drill: Drill) -> None:
    row = run_there(drill, scene)
    assert row.held, "\n".join(row.broken)
    assert row.detected
