"""The short drills, exactly as `make drills` runs them: the table of docs/drills.md and these cannot differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import REPOSITORY  # noqa: F401  (puts ci/ on the path)

# isort: split
from drills.drill import Drill
from drills.running import Ground, chosen, ground, run_here

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.fixture(scope="module")
def place() -> Iterator[Ground]:
    with ground() as found:
        yield found


@pytest.mark.parametrize("drill", chosen([], short=True, where="processes"), ids=lambda drill: drill.name)
def test_the_promises_hold(place: Ground, drill: Drill) -> None:
    row = run_here(drill, place, brief=True)
    if row.skipped is not None:
        pytest.skip(row.skipped)
    assert row.held, "\n".join(row.broken)
    assert row.detected
