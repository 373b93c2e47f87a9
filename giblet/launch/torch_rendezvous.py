"""torchrun's dynamic rendezvous, amended: whose heartbeat counts, how long one waits, and what a node may know of it.

All that giblet uses of torch's private parts is here; the elastic tests fail if they change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous import dynamic_rendezvous as torchrun

from giblet.telemetry.logs import get_logger

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
log = get_logger(__name__)


class StateHolder(torchrun._BackendRendezvousStateHolder):
    """torch's, but a node is dead when its heartbeat has not moved for so long *here*, whatever its clock says."""

    def __init__(self, backend: Any, settings: Any) -> None:
        super().__init__(backend, settings)
        self.look: Callable[[], None] | None = None
        self._moved: dict[Any, tuple[datetime, float]] = {}

    def sync(self) -> bool | None:
        """Read or write the state; first ask whether there is still something to wait for."""
        if self.look is not None and threading.current_thread() is threading.main_thread():
            self.look()
        return super().sync()

    def _sanitize(self) -> None:
        now, state = time.monotonic(), self._state
        said = dict(state.last_heartbeats)
        for node, heartbeat in said.items():
            if node not in self._moved or self._moved[node][0] != heartbeat:
                self._moved[node] = (heartbeat, now)
        patience = (self._settings.keep_alive_interval * self._settings.keep_alive_max_attempt).total_seconds()
        alive = datetime.now(UTC)
        state.last_heartbeats = {
            node: LONG_AGO if now - self._moved[node][1] > patience else alive for node in said
        }  # fmt: skip
        super()._sanitize()
        state.last_heartbeats = {node: said[node] for node in state.last_heartbeats}


class Handler(torchrun.DynamicRendezvousHandler):
    """torch's, with our state holder, and what the agent may not see: who is here."""

    def __init__(self, store: Any, backend: Any, params: RendezvousParameters) -> None:
        settings = torchrun.RendezvousSettings(
            params.run_id, params.min_nodes, params.max_nodes,
            torchrun.RendezvousTimeout(
                torchrun._get_timeout(params, "join"), torchrun._get_timeout(params, "last_call"),
                torchrun._get_timeout(params, "close"), torchrun._get_timeout(params, "heartbeat"),
            ),
            keep_alive_interval=timedelta(seconds=params.get_as_int("keep_alive_interval") or 3),
            keep_alive_max_attempt=params.get_as_int("keep_alive_max_attempt") or 4,
        )  # fmt: skip
        self.node = self._node_desc_generator.generate(params.local_addr)
        self.store, self.holder = store, StateHolder(backend, settings)
        super().__init__(self.node, settings, backend.name, store, self.holder)

    def meet(self) -> tuple[int, int]:
        """Leave the round before, wait for the next; which node this is, of how many.

        torch's `next_rendezvous` would also hand out an address for process groups, but only in the first round: one
        that joins later waits for it in vain.
        """
        self._stop_heartbeats()
        deadline = self._get_deadline(self._settings.timeout.join)
        self._op_executor.run(torchrun._RendezvousExitOp(), deadline)
        self._op_executor.run(torchrun._RendezvousJoinOp(), deadline, self._get_deadline)
        self._start_heartbeats()
        return self._get_world()

    @property
    def look(self) -> Callable[[], None] | None:
        """Called while waiting to join."""
        return self.holder.look

    @look.setter
    def look(self, look: Callable[[], None] | None) -> None:
        self.holder.look = look

    @property
    def state(self) -> Any:
        """As last read."""
        return self.holder.state

    @property
    def members(self) -> str:
        """Who trains together in this round, in a word."""
        return "+".join(sorted(repr(node) for node in self.state.participants))

    def state_now(self) -> Any:
        """Read it again, at most once a second."""
        with self._heartbeat_lock:
            self.holder.sync()
            return self.holder.state

    def stop(self) -> None:
        """No more heartbeats."""
        self._stop_heartbeats()

    def leave(self) -> None:
        """Take this node off the list, so that nobody waits for its heartbeat to stop."""
        self.stop()
        self.look = None
        try:
            with self._heartbeat_lock:
                self._op_executor.run(torchrun._RendezvousExitOp(), time.monotonic() + 5)
        except (RendezvousError, RuntimeError, OSError, KeyError) as error:
            log.debug("could not leave the rendezvous", error=str(error))


def quiet_torchrun() -> None:
    """torchrun's own log repeats what giblet says better."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
