"""What a drill is: a fault as data, a short function that causes it, and the row that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Where = Literal["processes", "cluster"]


class BrokenPromiseError(AssertionError):
    """Something happened that must never happen, or did not happen in time."""


class NotHereError(Exception):
    """This machine lacks what the drill needs; the message says what."""


@dataclass(frozen=True)
class Drill:
    """`run` causes the fault in a scene, sees the run through, and returns what noticed it, in a few words.

    `loses`: the most that may be lost. `goal_seconds`: from the fault to the next step, stated and not enforced, since
    it is the machine's too. `short`: also one of the normal tests. `lasts_seconds`: how long a passing fault lasts;
    `briefly` as a test. `starts`: no run may need more, whatever happens.
    """

    name: str
    fault: str
    run: Callable[[Any], str]
    where: Where = "processes"
    loses: Literal["nothing", "since the last save"] = "since the last save"
    goal_seconds: float | None = None
    short: bool = False
    lasts_seconds: float = 60.0
    briefly: float = 5.0
    starts: int = 4


DRILLS: list[Drill] = []
"""All of them, in the order of the table; the modules that define them add to it."""


def drill(name: str, fault: str, **more: Any) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Add a function to the drills."""

    def add(function: Callable[[Any], str]) -> Callable[[Any], str]:
        DRILLS.append(Drill(name, fault, function, **more))
        return function

    return add


@dataclass
class Row:
    """One line of the table. `broken`: the promises that did not hold; `person`: what somebody had to do.

    `open_end`: a start left no word of its end, so that the ledger cannot say how much more was repeated.
    """

    name: str
    fault: str
    where: str
    detected: str = ""
    steps_lost: int | None = None
    seconds: float | None = None
    goal_seconds: float | None = None
    repeated: int | None = None
    missed: int | None = None
    open_end: bool = False
    verdict: str = ""
    person: str = "nothing"
    starts: int = 0
    took_seconds: float = 0.0
    skipped: str | None = None
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Every promise held."""
        return not self.broken

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)
