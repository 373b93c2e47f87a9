"""The ranks that save and load together: what one of them finds out, all of them know.

Collectives run on a gloo group of their own, so that they never mix with training's. Without a process group there is
one rank, and every call is plain.
"""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from giblet.errors import EXIT_CRASHED, GibletError
from giblet.telemetry.logs import get_logger

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=1)
"""How long a rank waits for the slowest: ranks upload in their own time. The hang watch is quicker."""
log = get_logger(__name__)


class PeerFailedError(GibletError):
    """Another rank failed at something all had to do; its log has the traceback."""

    exit_code = EXIT_CRASHED


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    value: T | None
    error: GibletError | None


class Ranks:
    """A group of ranks; `Ranks()` makes it from the default process group if there is one (a collective call)."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self.rank, self.world_size = 0, 1
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self.rank, self.world_size = dist.get_rank(self._group), dist.get_world_size(self._group)

    @property
    def is_first(self) -> bool:
        """Is this the rank that speaks for all."""
        return self.rank == 0

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value on the first rank; None elsewhere."""
        if self._group is None:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, group_dst=0, group=self._group)
        return values

    def broadcast(self, value: T | None) -> T:
        """The first rank's value on every rank."""
        if self._group is None:
            return value  # type: ignore[return-value]
        box = [value]
        dist.broadcast_object_list(box, group_src=0, group=self._group)
        return box[0]  # type: ignore[return-value]

    def scatter(self, values: list[T] | None) -> T:
        """From the first rank's list, each rank its own."""
        if self._group is None:
            assert values is not None
            return values[0]
        box: list[Any] = [None]
        dist.scatter_object_list(box, values, group_src=0, group=self._group)
        return box[0]  # type: ignore[no-any-return]

    def on_first(self, work: Callable[[], T]) -> T:
        """Does it on the first rank; its result, or its error, is everyone's."""
        outcome = self.broadcast(_attempt(work) if self.is_first else None)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[return-value]

    def on_all(self, work: Callable[[], T]) -> T:
        """Does it on every rank; if it failed on any, the lowest such rank's error is raised on all.

        Results stay where they are: only errors travel, so that this costs the same whatever the work returns.
        """
        outcome = _attempt(work)
        _raise_first(self.all_gather(outcome.error))
        return outcome.value  # type: ignore[return-value]

    def to_first(self, work: Callable[[], T]) -> list[T] | None:
        """As `on_all`, and the first rank gets everyone's result, by rank; None elsewhere."""
        outcomes = self.gather(_attempt(work))
        errors = [] if outcomes is None else [outcome.error for outcome in outcomes]
        _raise_first(self.broadcast(errors))
        return None if outcomes is None else [outcome.value for outcome in outcomes]  # type: ignore[misc]

    def close(self) -> None:
        """Give the group back. Not collective; safe to repeat."""
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None


def _raise_first(errors: list[GibletError | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _attempt(work: Callable[[], T]) -> _Outcome[T]:
    try:
        return _Outcome(work(), None)
    except GibletError as error:
        return _Outcome(None, error)
    except Exception as error:
        log.error("a rank failed", traceback=traceback.format_exc())
        return _Outcome(None, PeerFailedError(f"{type(error).__name__}: {error}"))
